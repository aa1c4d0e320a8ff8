"""ATSS: anchor points near an object's centre answer for it if a box around them overlaps it better than most."""

import torch
from torch import Tensor

from utils.geometry.boxes import complete_iou
from utils.losses.task_aligned import EPS, Assignment, Overlap, positive_overlap

SLACK = 1e-6
"""How far below its threshold an overlap may lie: that of equal overlaps is their own value, up to rounding."""


def candidates(points: Tensor, level_sizes: list[int], target_xyxy: Tensor, topk: int) -> Tensor:
    """Return (N, C) the anchor points nearest to each object's centre, `topk` a level (or all), ties to the earlier.

    Args:
        points: (A, 2) pixels, level by level; `level_sizes` of them.
        target_xyxy: (N, 4) pixels.
    """
    centres = (target_xyxy[:, :2] + target_xyxy[:, 2:]) / 2
    found, first = [], 0
    for size in level_sizes:
        squared = (centres[:, None] - points[None, first : first + size]).square().sum(2)
        found.append(squared.argsort(dim=1, stable=True)[:, :topk] + first)
        first += size
    return torch.cat(found, 1)


def anchor_overlap(points: Tensor, sides: Tensor, boxes_xyxy: Tensor) -> Tensor:
    """Return the IoU of squares of `sides` (…, 1) around points (…, 2) with boxes (…, 4)."""
    low = torch.maximum(points - sides / 2, boxes_xyxy[..., :2])
    high = torch.minimum(points + sides / 2, boxes_xyxy[..., 2:])
    intersection = (high - low).clamp(min=0).prod(-1)
    area = (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).prod(-1)
    return intersection / (sides[..., 0].square() + area - intersection).clamp(min=EPS)


@torch.no_grad()
def assign_by_anchors(
    boxes_xyxy: Tensor,
    points: Tensor,
    strides: Tensor,
    level_sizes: list[int],
    target_image: Tensor,
    target_xyxy: Tensor,
    topk: int = 9,
    anchor_scale: float = 5.0,
    overlap_of: Overlap | None = None,
) -> Assignment:
    """Assign anchor points to objects.

    Of the candidates of all levels, those answer whose square's IoU with the object is at least mean plus standard deviation, and whose
    point lies strictly inside. A point that several objects claim goes to the one whose IoU with the square is the highest.

    Args:
        boxes_xyxy: (B, A, 4) predicted boxes, pixels.
        points, strides: (A, 2) and (A, 1), pixels, level by level; `level_sizes` of them.
        target_image: (N,) int64, image of each object; target_xyxy (N, 4) pixels.
        topk: candidates a level.
        anchor_scale: side of the squares, strides.
        overlap_of: how alike objects and predicted boxes are, the score; CIoU by default.
    Source: Zhang et al. 2020, arxiv.org/abs/1912.02424, algorithm 1
    Differs: the score is how well the predicted box overlaps the object, as YOLOv6 (arxiv.org/abs/2209.02976) has it, where the paper has
        1 and centre-ness; one of 0 does not count. The deviation of a single candidate is 0.
    """
    found = candidates(points, level_sizes, target_xyxy, topk)
    number, count = found.shape
    goals = target_xyxy[:, None].expand(number, count, 4)
    near = points[found]
    fit = anchor_overlap(near, strides[found] * anchor_scale, goals)
    deviation = fit.std(1, correction=1) if count > 1 else torch.zeros_like(fit[:, 0])
    inside = (torch.minimum(near - goals[..., :2], goals[..., 2:] - near) > EPS).all(2)
    chosen = inside & (fit >= (fit.mean(1) + deviation)[:, None] - SLACK)
    target, column = chosen.nonzero(as_tuple=True)
    anchor, fit = found[target, column], fit[target, column]

    cell = target_image[target] * len(points) + anchor
    order = fit.argsort(descending=True, stable=True)
    order = order[cell[order].argsort(stable=True)]
    best = torch.ones_like(order, dtype=torch.bool)
    best[1:] = cell[order[1:]] != cell[order[:-1]]
    target, anchor = (value[order[best]] for value in (target, anchor))
    image = target_image[target]
    score = positive_overlap(overlap_of or complete_iou, target_xyxy[target], boxes_xyxy[image, anchor], target, number)
    kept = score > 0  # one that overlaps nothing would count, with no weight, for masks
    return Assignment(*(value[kept] for value in (image, anchor, target, score)))
