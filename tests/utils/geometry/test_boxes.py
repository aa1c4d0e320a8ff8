"""Box formats and overlaps, with numbers that can be checked by hand."""

import math

import pytest
import torch

from utils.geometry.boxes import (
    box_area,
    box_iou,
    complete_iou,
    cxcywh_to_xyxy,
    intersection_and_union,
    paired_iou,
    xyxy_to_cxcywh,
)


def test_formats() -> None:
    boxes_cxcywh = torch.tensor([[10.0, 20, 4, 8], [0, 0, 0, 0]])
    boxes_xyxy = torch.tensor([[8.0, 16, 12, 24], [0, 0, 0, 0]])
    assert torch.equal(cxcywh_to_xyxy(boxes_cxcywh), boxes_xyxy)
    assert torch.equal(xyxy_to_cxcywh(boxes_xyxy), boxes_cxcywh)
    assert cxcywh_to_xyxy(torch.zeros(0, 4)).shape == (0, 4)
    assert xyxy_to_cxcywh(torch.zeros(2, 3, 4)).shape == (2, 3, 4)


def test_area() -> None:
    assert box_area(torch.tensor([[0.0, 0, 3, 4], [2, 2, 2, 9], [5, 5, 1, 1]])).tolist() == [12, 0, 0]


def test_iou() -> None:
    first = torch.tensor([[0.0, 0, 2, 2], [4, 4, 4, 4]])
    second = torch.tensor([[0.0, 0, 2, 2], [1, 1, 3, 3], [2, 0, 4, 2], [0, 0, 1, 1]])
    assert box_iou(first, second)[0].tolist() == pytest.approx([1, 1 / 7, 0, 0.25])
    assert box_iou(first, second)[1].tolist() == [0, 0, 0, 0]
    assert box_iou(first[1:], first[1:]).tolist() == [[0]], "an empty box does not overlap itself"
    assert box_iou(torch.zeros(0, 4), second).shape == (0, 4)


def test_paired_iou() -> None:
    first = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 2, 2], [4, 4, 4, 4]])
    second = torch.tensor([[0.0, 0, 2, 2], [1, 1, 3, 3], [2, 0, 4, 2], [4, 4, 4, 4]])
    assert [values.tolist() for values in intersection_and_union(first, second)] == [[4, 1, 0, 0], [4, 7, 8, 0]]
    assert paired_iou(first, second).tolist() == pytest.approx([1, 1 / 7, 0, 0])


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((0, 0, 2, 2), (0, 0, 2, 2), 1.0),
        ((0, 0, 2, 2), (1, 1, 3, 3), 1 / 7 - 2 / 18),  # overlap 1 of 7; centres sqrt(2) apart, hull 3 x 3
        ((0, 0, 2, 2), (4, 0, 6, 2), 0 - 16 / 40),  # apart: centres 4, hull 6 x 2
        ((0, 0, 4, 4), (1, 1, 3, 3), 0.25),  # one inside the other, one centre
    ],
)
def test_complete_iou_of_equal_shapes(first: tuple, second: tuple, expected: float) -> None:
    value = complete_iou(torch.tensor(first, dtype=torch.float64), torch.tensor(second, dtype=torch.float64))
    assert value.item() == pytest.approx(expected, abs=1e-6)


def test_complete_iou_counts_the_aspect() -> None:
    value = complete_iou(torch.tensor([0.0, 0, 4, 2]).double(), torch.tensor([0.0, 0, 2, 4]).double())
    overlap, distance = 4 / 12, 2 / 32
    aspect = 4 / math.pi**2 * (math.atan(2 / 4) - math.atan(4 / 2)) ** 2
    assert value.item() == pytest.approx(overlap - distance - aspect * aspect / (aspect - overlap + 1), abs=1e-6)


def test_complete_iou_broadcasts() -> None:
    boxes = torch.rand(5, 1, 4).sort(-1).values
    assert complete_iou(boxes, boxes.transpose(0, 1)).shape == (5, 5)


@pytest.mark.parametrize("second", [(3, 3, 3, 3), (3, 3, 3, 9), (3, 3, 9, 3), (0, 0, 0, 0), (5, 5, 1, 1)])
def test_complete_iou_of_degenerate_boxes_has_finite_gradients(second: tuple) -> None:
    for first in ((0.0, 0, 2, 2), (3.0, 3, 3, 3), (2.0, 2, 1, 1)):
        box = torch.tensor(first, requires_grad=True)
        value = complete_iou(box, torch.tensor(second, dtype=torch.float32))
        value.backward()
        assert value.isfinite()
        assert box.grad is not None
        assert box.grad.isfinite().all()
