"""The assigner: cases that can be checked by hand, and a dense form of the same rule on random input."""

import pytest
import torch
from torch import Tensor

from utils.geometry.anchors import anchor_points
from utils.geometry.boxes import complete_iou
from utils.losses.assignment import Assignment, Scene
from utils.losses.task_aligned import task_aligned


def grid(side: int, stride: int = 8) -> Tensor:
    """Return the points of a square map, in float64."""
    return anchor_points([(side, side)], [stride], torch.zeros(1, dtype=torch.float64))[0]


def run(
    targets: list[tuple[int, int, tuple[float, float, float, float]]],
    logits: Tensor,
    boxes: Tensor,
    points: Tensor,
    **settings: float,
) -> Assignment:
    """Assign with targets written as (image, class, corners)."""
    image = torch.tensor([item[0] for item in targets], dtype=torch.int64)
    classes = torch.tensor([item[1] for item in targets], dtype=torch.int64)
    corners = torch.tensor([item[2] for item in targets], dtype=torch.float64).view(-1, 4)
    return assign(logits, boxes, points, image, classes, corners, **settings)


def assign(
    logits: Tensor, boxes: Tensor, points: Tensor, image: Tensor, classes: Tensor, corners: Tensor, **settings: float
) -> Assignment:
    """Assign in a scene of one level; strides do not matter."""
    strides = torch.ones(len(points), 1)
    return task_aligned(Scene(logits, boxes, points, strides, [len(points)], image, classes, corners), None, **settings)


def dense(
    logits: Tensor,
    boxes: Tensor,
    points: Tensor,
    image: Tensor,
    classes: Tensor,
    corners: Tensor,
    topk: int,
    alpha: float,
    beta: float,
) -> Tensor:
    """Apply the rule image by image, with full tables: (B, A, 2) target row (-1 for none) and score."""
    result = torch.zeros(len(boxes), len(points), 2, dtype=torch.float64)
    result[..., 0] = -1
    for number in range(len(boxes)):
        rows = (image == number).nonzero().squeeze(1).tolist()
        if not rows:
            continue
        overlap = torch.full((len(rows), len(points)), -1.0, dtype=torch.float64)  # -1 outside the object
        metric, chosen = torch.zeros_like(overlap), torch.zeros_like(overlap).bool()
        for index, row in enumerate(rows):
            inside = ((points - corners[row, :2] > 1e-9) & (corners[row, 2:] - points > 1e-9)).all(1)
            overlap[index, inside] = complete_iou(corners[row], boxes[number, inside]).clamp(min=0)
            metric[index, inside] = (
                logits[number, classes[row], inside].sigmoid() ** alpha * overlap[index, inside] ** beta
            )
            candidates = sorted(
                (metric[index] > 0).nonzero().squeeze(1).tolist(),
                key=lambda anchor: (-float(metric[index, anchor]), anchor),
            )
            chosen[index, candidates[:topk]] = True
        for anchor in range(len(points)):
            if chosen[:, anchor].sum() > 1:
                chosen[:, anchor] = False
                chosen[overlap[:, anchor].argmax(), anchor] = True
        for index, row in enumerate(rows):
            mine = chosen[index]
            best_metric = metric[index][mine].max() if mine.any() else 0
            best_overlap = overlap[index][mine].max() if mine.any() else 0
            result[number, mine, 0] = row
            result[number, mine, 1] = metric[index][mine] * best_overlap / (best_metric + 1e-9)
    return result


def table(found: Assignment, images: int, anchors: int) -> Tensor:
    """Bring an assignment to the form of `dense`."""
    result = torch.zeros(images, anchors, 2, dtype=torch.float64)
    result[..., 0] = -1
    cells = found.image * anchors + found.anchor
    assert len(cells.unique()) == len(cells), "an anchor point predicts one object"
    result[found.image, found.anchor, 0] = found.target.double()
    result[found.image, found.anchor, 1] = found.score.double()
    return result


# --- by hand


def test_one_object_one_point() -> None:
    points = torch.tensor([[4.0, 4.0]]).double()
    box = torch.tensor([[[0.0, 0, 8, 8]]]).double()
    found = run([(0, 1, (0, 0, 8, 8))], torch.zeros(1, 2, 1).double(), box, points)
    assert (found.image.tolist(), found.anchor.tolist(), found.target.tolist()) == ([0], [0], [0])
    # score 0.5 ** 0.5 * 1 ** 6, over itself, times the overlap 1
    assert found.score.tolist() == pytest.approx([1.0], abs=1e-6)


def test_the_score_is_the_best_overlap_shared_by_metric() -> None:
    points = torch.tensor([[2.0, 4], [6.0, 4]]).double()
    boxes = torch.tensor([[[0.0, 0, 8, 8], [2.0, 2, 6, 6]]]).double()  # overlaps 1 and 1/4
    logits = torch.tensor([[[0.0, 0.0]]]).double()
    found = run([(0, 0, (0, 0, 8, 8))], logits, boxes, points, beta=1.0)
    assert found.score.tolist() == pytest.approx([1.0, 0.25], abs=1e-6)
    found = run([(0, 0, (0, 0, 8, 8))], logits, boxes, points, beta=6.0)
    assert found.score.tolist() == pytest.approx([1.0, 0.25**6], abs=1e-6)


def test_the_class_score_counts_by_alpha() -> None:
    points = torch.tensor([[2.0, 4], [6.0, 4]]).double()
    boxes = torch.tensor([[[0.0, 0, 8, 8], [0.0, 0, 8, 8]]]).double()
    logits = torch.tensor([[[0.0, 0.0], [0.0, -1000.0]]]).double()
    assert run([(0, 1, (0, 0, 8, 8))], logits, boxes, points).anchor.tolist() == [0], "a score of 0 is no positive"
    assert run([(0, 1, (0, 0, 8, 8))], logits, boxes, points, alpha=0.0).score.tolist() == pytest.approx(
        [1.0, 1.0], abs=1e-6
    )


@pytest.mark.parametrize("topk", [1, 3, 10, 100])
def test_topk_limits_the_points_of_an_object(topk: int) -> None:
    points = grid(4)
    boxes = torch.tensor([[[0.0, 0, 32, 32]] * 16]).double()
    boxes[0, :, 2] += torch.arange(16) * 0.5  # the further on, the worse
    found = run([(0, 0, (0, 0, 32, 32))], torch.zeros(1, 1, 16).double(), boxes, points, topk=topk)
    assert found.anchor.tolist() == list(range(min(topk, 16)))


def test_ties_go_to_the_earlier_point() -> None:
    boxes = torch.tensor([[[0.0, 0, 32, 32]] * 16]).double()
    found = run([(0, 0, (0, 0, 32, 32))], torch.zeros(1, 1, 16).double(), boxes, grid(4), topk=2)
    assert found.anchor.tolist() == [0, 1]


def test_a_point_whose_box_overlaps_nothing_is_no_positive() -> None:
    boxes = torch.zeros(1, 16, 4).double()
    boxes[0, 5] = torch.tensor([0.0, 0, 32, 32])
    found = run([(0, 0, (0, 0, 32, 32))], torch.zeros(1, 1, 16).double(), boxes, grid(4))
    assert found.anchor.tolist() == [5]


def test_a_contested_point_goes_to_the_higher_overlap() -> None:
    points = torch.tensor([[4.0, 4]]).double()
    boxes = torch.tensor([[[0.0, 0, 8, 8]]]).double()
    targets = [(0, 0, (0.0, 0.0, 16.0, 16.0)), (0, 1, (0.0, 0.0, 9.0, 9.0)), (0, 2, (0.0, 0.0, 12.0, 12.0))]
    found = run(targets, torch.zeros(1, 3, 1).double(), boxes, points)
    assert (found.target.tolist(), found.anchor.tolist()) == ([1], [0])
    assert found.score.tolist() == pytest.approx(
        [complete_iou(torch.tensor([0, 0, 9, 9.0]), boxes[0, 0].float()).item()], rel=1e-5
    )


def test_the_same_point_of_two_images_is_not_contested() -> None:
    points = torch.tensor([[4.0, 4]]).double()
    boxes = torch.tensor([[[0.0, 0, 8, 8]]] * 2).double()
    found = run([(1, 0, (0, 0, 8, 8)), (0, 0, (0, 0, 8, 8))], torch.zeros(2, 1, 1).double(), boxes, points)
    assert sorted(zip(found.image.tolist(), found.target.tolist(), strict=True)) == [(0, 1), (1, 0)]


@pytest.mark.parametrize("corners", [(4, 4, 4, 4), (4, 0, 4, 8), (8, 8, 0, 0), (100, 100, 120, 120), (1, 1, 3, 3)])
def test_objects_without_a_point_inside_get_none(corners: tuple) -> None:
    found = run(
        [(0, 0, corners)],
        torch.zeros(1, 1, 1).double(),
        torch.zeros(1, 1, 4).double(),
        torch.tensor([[4.0, 4]]).double(),
    )
    assert found.score.shape == found.anchor.shape == found.image.shape == (0,)


def test_no_objects_at_all() -> None:
    found = run([], torch.zeros(2, 3, 16).double(), torch.zeros(2, 16, 4).double(), grid(4))
    assert len(found.image) == len(found.anchor) == len(found.target) == len(found.score) == 0


# --- against the dense form


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("topk", [1, 4, 10])
def test_equals_the_dense_form(seed: int, topk: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    points, strides = anchor_points([(8, 8), (4, 4)], [8, 16], torch.zeros(1, dtype=torch.float64))
    count = [0, 1, 7, 12, 20, 40][seed]
    centre, size = rand(count, 2) * 64, rand(count, 2) * 40 + 4
    if count > 2:  # objects on top of one another contest their points
        centre[1::2] = centre[: count - count % 2 : 2] if count % 2 == 0 else centre[0 : count - 1 : 2]
        size[1] = size[0]
    corners = torch.cat((centre - size / 2, centre + size / 2), 1)
    image = torch.randint(0, 3, (count,), generator=generator)
    image[1::2] = image[: len(image[1::2]) * 2 : 2]
    classes = torch.randint(0, 4, (count,), generator=generator)
    boxes = torch.cat((points - strides * (rand(3, 80, 2) * 3), points + strides * (rand(3, 80, 2) * 3)), 2)
    logits = rand(3, 4, 80) * 6 - 3
    found = assign(logits, boxes, points, image, classes, corners, topk=topk, alpha=0.5, beta=6.0)
    expected = dense(logits, boxes, points, image, classes, corners, topk, 0.5, 6.0)
    ours = table(found, 3, 80)
    assert torch.equal(ours[..., 0], expected[..., 0])
    torch.testing.assert_close(ours[..., 1], expected[..., 1])
    assert count < 7 or (expected[..., 0] >= 0).sum() > 5
