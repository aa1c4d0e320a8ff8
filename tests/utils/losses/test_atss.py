"""ATSS: cases that can be checked by hand, and a plain form of the same rule on random input."""

import math

import pytest
import torch
from torch import Tensor

from utils.geometry.anchors import anchor_points
from utils.geometry.boxes import complete_iou, paired_iou
from utils.losses.assignment import Assignment, Overlap, Scene
from utils.losses.atss import atss, candidates, squares


def levels(*sides: int, strides: tuple[int, ...] = (8, 16, 32)) -> tuple[Tensor, Tensor, list[int]]:
    """Return points, strides and sizes of square maps, in float64."""
    points, cells = anchor_points(
        [(side, side) for side in sides], list(strides[: len(sides)]), torch.zeros(1, dtype=torch.float64)
    )
    return points, cells, [side * side for side in sides]


def assign(
    boxes: Tensor,
    points: Tensor,
    strides: Tensor,
    sizes: list[int],
    image: Tensor,
    corners: Tensor,
    overlap_of: Overlap | None = None,
    **settings: float,
) -> Assignment:
    """Assign in a scene of one class, whose scores do not matter."""
    logits, classes = boxes.new_zeros(len(boxes), 1, len(points)), torch.zeros_like(image)
    return atss(Scene(logits, boxes, points, strides, sizes, image, classes, corners), overlap_of, **settings)


def plain(
    boxes: Tensor,
    points: Tensor,
    strides: Tensor,
    sizes: list[int],
    image: Tensor,
    corners: Tensor,
    topk: int,
    scale: float,
) -> Tensor:
    """Apply the rule object by object, with lists: (B, A, 2) target row (-1 for none) and score."""
    fits: dict[tuple[int, int], list[tuple[float, int]]] = {}
    for row, corner in enumerate(corners):
        x1, y1, x2, y2 = corner.tolist()
        near, first = [], 0
        for size in sizes:
            level = range(first, first + size)
            near += sorted(level, key=lambda a: (math.dist(points[a].tolist(), ((x1 + x2) / 2, (y1 + y2) / 2)), a))[
                :topk
            ]
            first += size
        overlaps = []
        for anchor in near:
            (x, y), half = points[anchor].tolist(), strides[anchor].item() * scale / 2
            shared = max(min(x + half, x2) - max(x - half, x1), 0) * max(min(y + half, y2) - max(y - half, y1), 0)
            overlaps.append(shared / (4 * half * half + (x2 - x1) * (y2 - y1) - shared))
        mean = sum(overlaps) / len(overlaps)
        deviation = (
            math.sqrt(sum((value - mean) ** 2 for value in overlaps) / (len(overlaps) - 1))
            if len(overlaps) > 1
            else 0.0
        )
        for anchor, value in zip(near, overlaps, strict=True):
            x, y = points[anchor].tolist()
            if value >= mean + deviation - 1e-6 and min(x - x1, y - y1, x2 - x, y2 - y) > 1e-9:
                fits.setdefault((int(image[row]), anchor), []).append((value, row))
    result = torch.zeros(*boxes.shape[:2], 2, dtype=torch.float64)
    result[..., 0] = -1
    for (number, anchor), claims in fits.items():
        row = max(claims, key=lambda claim: (claim[0], -claim[1]))[1]
        score = complete_iou(corners[row], boxes[number, anchor]).clamp(0, 1)
        if score > 0:
            result[number, anchor] = torch.tensor([row, score.item()], dtype=torch.float64)
    return result


def table(found: Assignment, images: int, anchors: int) -> Tensor:
    """Bring an assignment to the form of `plain`."""
    result = torch.zeros(images, anchors, 2, dtype=torch.float64)
    result[..., 0] = -1
    cells = found.image * anchors + found.anchor
    assert len(cells.unique()) == len(cells), "an anchor point predicts one object"
    result[found.image, found.anchor] = torch.stack((found.target.double(), found.score.double()), 1)
    return result


# --- by hand


def test_the_square_that_fits_wins() -> None:
    # 40 x 40 around (20, 20), which is a point of the first level: its square of 5 * 8 fits exactly, IoU 1. Of the
    # 3 x 3 nearest points those beside it are 8 off: 32 * 40 / (3200 - 1280) = 2/3, those across it
    # 32 * 32 / (3200 - 1024) = 8/17
    points, strides, sizes = levels(5)
    corners = torch.tensor([[0.0, 0, 40, 40]]).double()
    found = assign(corners.expand(1, 25, 4), points, strides, sizes, torch.tensor([0]), corners)
    # mean (1 + 4 * 2/3 + 4 * 8/17) / 9 = 0.6166, deviation 0.1733: only 1 is at least 0.7899
    assert (found.anchor.tolist(), found.target.tolist(), found.score.tolist()) == (
        [12],
        [0],
        [pytest.approx(1, abs=1e-6)],
    )


def test_overlap_of_squares() -> None:
    boxes = squares(torch.tensor([[20.0, 20.0], [28.0, 20.0]]), torch.tensor([[40.0], [40.0]]))
    assert boxes.tolist() == [[0, 0, 40, 40], [8, 0, 48, 40]]
    assert paired_iou(boxes, torch.tensor([[0.0, 0, 40, 40]])).tolist() == pytest.approx([1, 2 / 3])
    assert paired_iou(boxes, torch.tensor([[20.0, 20, 20, 20]])).tolist() == [0, 0]


def test_candidates_are_the_nearest_of_each_level() -> None:
    points, _, sizes = levels(4, 2)
    found = candidates(points, sizes, torch.tensor([[0.0, 0, 10, 10]]).double(), 3)
    assert found.tolist() == [[0, 1, 4, 16, 17, 18]]
    assert candidates(points, sizes, torch.tensor([[0.0, 0, 10, 10]]).double(), 9).shape == (1, 9 + 4)


def test_a_claimed_point_goes_to_the_better_square() -> None:
    points, strides, sizes = levels(5)
    corners = torch.tensor([[4.0, 4, 36, 36], [0, 0, 40, 40]]).double()  # both around the same point
    found = assign(corners[1].expand(1, 25, 4), points, strides, sizes, torch.tensor([0, 0]), corners)
    assert found.target[found.anchor == 12].tolist() == [1]


def test_a_single_candidate_has_no_deviation() -> None:
    points, strides, sizes = levels(1)
    corners = torch.tensor([[0.0, 0, 8, 8]]).double()
    found = assign(corners.view(1, 1, 4), points, strides, sizes, torch.tensor([0]), corners)
    assert found.score.tolist() == [pytest.approx(1, abs=1e-6)]


def test_equal_overlaps_all_reach_their_mean() -> None:
    # 10 x 10 within all nine squares: nine times 100 / 1600; one of the points lies inside it
    points, strides, sizes = levels(5)
    corners = torch.tensor([[15.0, 15, 25, 25]])
    found = assign(corners.expand(1, 25, 4), points.float(), strides.float(), sizes, torch.tensor([0]), corners)
    assert found.anchor.tolist() == [12]


@pytest.mark.parametrize("corners", [(20, 20, 20, 20), (20, 10, 20, 30), (-50, -50, -10, -10), (17, 17, 18, 18)])
def test_objects_that_hold_no_point(corners: tuple[int, ...]) -> None:
    points, strides, sizes = levels(5)
    box = torch.tensor([corners]).double()
    assert len(assign(box.expand(1, 25, 4), points, strides, sizes, torch.tensor([0]), box).anchor) == 0


@pytest.mark.filterwarnings("error")
def test_no_objects() -> None:
    points, strides, sizes = levels(5)
    found = assign(
        torch.zeros(2, 25, 4).double(), points, strides, sizes, torch.zeros(0).long(), torch.zeros(0, 4).double()
    )
    assert [len(value) for value in (found.image, found.anchor, found.target, found.score)] == [0, 0, 0, 0]


def test_the_overlap_given_is_the_score() -> None:
    points, strides, sizes = levels(5)
    corners = torch.tensor([[0.0, 0, 40, 40]]).double()
    half = assign(
        corners.expand(1, 25, 4),
        points,
        strides,
        sizes,
        torch.tensor([0]),
        corners,
        overlap_of=lambda goal, _: torch.full_like(goal[:, 0], 0.5),
    )
    assert half.score.tolist() == [0.5]


# --- against the plain form


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("topk", "scale"), [(9, 5.0), (3, 8.0), (1, 2.0)])
def test_random_scenes(seed: int, topk: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    points, strides, sizes = levels(8, 4, 2)
    image = torch.randint(0, 3, (12,), generator=generator)
    centres = torch.rand(12, 2, generator=generator).double() * 64
    half = torch.rand(12, 2, generator=generator).double() * 24 + 2
    corners = torch.cat((centres - half, centres + half), 1)
    middle = points + torch.randn(3, len(points), 2, generator=generator).double() * 4
    reach = torch.rand(3, len(points), 2, generator=generator).double() * 20 + 4
    boxes = torch.cat((middle - reach, middle + reach), 2)
    expected = plain(boxes, points, strides, sizes, image, corners, topk, scale)
    found = assign(boxes, points, strides, sizes, image, corners, topk=topk, anchor_scale=scale)
    torch.testing.assert_close(table(found, 3, len(points)), expected, rtol=1e-9, atol=1e-12)
    assert len(found.anchor) > 2
