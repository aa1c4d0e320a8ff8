"""What assigners share: which points lie inside, and overlaps that keep small objects from having no positive."""

import pytest
import torch

from utils.losses.assignment import lies_inside, positive_overlap


def test_a_point_on_the_edge_is_not_inside() -> None:
    points = torch.tensor([[4.0, 4], [8.0, 4], [4.0, 0.0], [9.0, 4]]).double()
    inside = lies_inside(points, torch.tensor([[0.0, 0, 8, 8], [0.0, 0, 20, 20]]).double()[:, None])
    assert inside.nonzero().tolist() == [[0, 0], [1, 0], [1, 1], [1, 3]]


def test_an_object_without_a_positive_overlap_is_compared_by_iou() -> None:
    goals = torch.tensor([[0.0, 0, 2, 2]] * 5)
    boxes = torch.tensor(
        [[0.0, 0, 2, 1], [0, 0, 1, 1], [0, 0, 2, 2], [0, 0, 2, 1], [5, 5, 6, 6]]
    )  # IoU 1/2, 1/4, 1, 1/2, 0
    given = torch.tensor([-0.5, -0.1, 0.3, -0.2, 1.5])
    found = positive_overlap(lambda *_: given, goals, boxes, torch.tensor([0, 0, 1, 1, 3]), 4)
    assert found.tolist() == pytest.approx([0.5, 0.25, 0.3, 0.0, 1.0])
