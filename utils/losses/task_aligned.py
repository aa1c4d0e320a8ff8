"""Task-aligned assignment: which anchor points answer for which object.

Source: Feng et al. 2021, TOOD, arxiv.org/abs/2108.07755, section 3.3. Differs: the overlap is CIoU (or another measure) clamped at 0, and an
anchor point that several objects claim goes to the one with the highest overlap. Objects of all images are handled in
one flat list instead of padded per image; overlaps are computed only for anchor points inside an object.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from utils.geometry.boxes import complete_iou
from utils.losses.box import Pairs

EPS = 1e-9

Overlap = Callable[[Tensor, Tensor], Tensor]
"""How alike objects (P, 4) and predicted boxes (P, 4) are, pair by pair: 1 at most."""


@dataclass
class Assignment:
    """The anchor points that answer for an object (P of them), and how much each counts."""

    image: Tensor
    """(P,) image of the batch."""
    anchor: Tensor
    """(P,) anchor point."""
    target: Tensor
    """(P,) row of the targets."""
    score: Tensor
    """(P,) class target in [0, 1]."""


def inside_pairs(points: Tensor, boxes_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pairs (target, anchor) with the anchor point strictly inside the box, target by target, anchors ascending.

    Args:
        points: (A, 2) pixels.
        boxes_xyxy: (N, 4) pixels.
    """
    x, y = points[:, 0], points[:, 1]
    x1, y1, x2, y2 = boxes_xyxy[..., None].unbind(1)
    inside = (x - x1 > EPS) & (x2 - x > EPS) & (y - y1 > EPS) & (y2 - y > EPS)  # (N, A)
    return inside.nonzero(as_tuple=True)


@torch.no_grad()
def assign(
    class_logits: Tensor,
    boxes_xyxy: Tensor,
    points: Tensor,
    target_image: Tensor,
    target_class: Tensor,
    target_xyxy: Tensor,
    topk: int = 10,
    alpha: float = 0.5,
    beta: float = 6.0,
    overlap_of: Overlap | None = None,
) -> Assignment:
    """Assign anchor points to objects.

    Args:
        class_logits: (B, K, A) predicted class scores before the sigmoid.
        boxes_xyxy: (B, A, 4) predicted boxes, pixels.
        points: (A, 2) anchor points, pixels.
        target_image, target_class: (N,) int64, image and class of each object.
        target_xyxy: (N, 4) pixels.
        topk, alpha, beta: at most `topk` points an object, by score^alpha * overlap^beta.
        overlap_of: how alike objects and predicted boxes are; CIoU by default.
    """
    num_targets, num_anchors = len(target_xyxy), len(points)
    target, anchor = inside_pairs(points, target_xyxy)
    image = target_image[target]
    goals, predicted = target_xyxy[target], boxes_xyxy[image, anchor]
    if overlap_of is None:
        overlap = complete_iou(goals, predicted).clamp(min=0)
    else:
        overlap = positive_overlap(overlap_of, goals, predicted, target, num_targets)
    metric = class_logits[image, target_class[target], anchor].sigmoid().pow(alpha) * overlap.pow(beta)
    if not len(target):
        return Assignment(image, anchor, target, metric)

    chosen = best_of_each(target, metric, topk) & (
        metric > 0
    )  # one that overlaps nothing would count, with no weight, for masks
    # an anchor point that several objects claim goes to the object with the highest overlap, claimant or not
    cell = image * num_anchors + anchor
    claims = torch.bincount(cell[chosen], minlength=len(boxes_xyxy) * num_anchors)
    contested = claims[cell] > 1
    keep = chosen & ~contested
    if contested.any():
        contest = contested.nonzero().squeeze(1)
        order = contest[overlap[contest].argsort(descending=True, stable=True)]
        order = order[cell[order].argsort(stable=True)]
        first = torch.ones_like(order, dtype=torch.bool)
        first[1:] = cell[order[1:]] != cell[order[:-1]]
        keep[order[first]] = True
    image, anchor, target, overlap, metric = (x[keep] for x in (image, anchor, target, overlap, metric))

    zeros = metric.new_zeros(num_targets)
    best_metric = zeros.scatter_reduce(0, target, metric, "amax")
    best_overlap = zeros.scatter_reduce(0, target, overlap, "amax")
    return Assignment(image, anchor, target, metric * best_overlap[target] / (best_metric[target] + EPS))


def positive_overlap(
    overlap_of: Overlap, goals_xyxy: Tensor, predicted_xyxy: Tensor, target: Tensor, num_targets: int
) -> Tensor:
    """Return overlaps (P,) kept within 0 and 1; those of an object for which none is above 0 are plain IoU.

    A network starts with boxes of 15 x 15 cells, and many measures are negative between those and a small object: without a first positive
    it would never learn its size.

    Args:
        target: (P,) which of the `num_targets` objects each pair is of.
    """
    overlap = overlap_of(goals_xyxy, predicted_xyxy).clamp(0, 1)
    best = overlap.new_zeros(num_targets).scatter_reduce(0, target, overlap, "amax")
    return torch.where(best[target] > 0, overlap, Pairs(predicted_xyxy, goals_xyxy, (0, 0)).iou)


def best_of_each(group: Tensor, value: Tensor, count: int) -> Tensor:
    """Return a mask of the `count` largest values of each group; `group` (n,) is ascending, ties go to the earlier."""
    order = value.argsort(descending=True, stable=True)
    order = order[group[order].argsort(stable=True)]
    sizes = torch.bincount(group)
    starts = sizes.cumsum(0) - sizes
    rank = torch.arange(len(group), device=group.device) - starts[group[order]]
    mask = torch.zeros_like(group, dtype=torch.bool)
    mask[order[rank < count]] = True
    return mask
