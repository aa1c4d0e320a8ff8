"""What every assigner gets and returns: which anchor points are positives of which object."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from utils.geometry.boxes import paired_iou

LEAST_MARGIN = 1e-9
"""Pixels between a box's side and a point that counts as inside."""

Overlap = Callable[[Tensor, Tensor], Tensor]
"""Compares objects (P, 4) with predicted boxes (P, 4), corners in pixels, pair by pair: (P,), at most 1."""


@dataclass
class Scene:
    """Predictions, anchor points and objects of a batch.

    Attributes:
        class_logits: (B, K, A) predicted class scores before the sigmoid.
        boxes_xyxy: (B, A, 4) predicted boxes, pixels.
        points: (A, 2) anchor points, pixels, level by level.
        strides: (A, 1) pixels.
        level_sizes: number of anchor points of each level.
        target_image, target_class: (N,) int64, image and class of each object.
        target_xyxy: (N, 4) objects, pixels.
    """

    class_logits: Tensor
    boxes_xyxy: Tensor
    points: Tensor
    strides: Tensor
    level_sizes: list[int]
    target_image: Tensor
    target_class: Tensor
    target_xyxy: Tensor


@dataclass
class Assignment:
    """The P positives: anchor points with the object that each of them predicts.

    Attributes:
        image: (P,) image in the batch.
        anchor: (P,) anchor point.
        target: (P,) row of the objects.
        score: (P,) class target in [0, 1].
    """

    image: Tensor
    anchor: Tensor
    target: Tensor
    score: Tensor


Assigner = Callable[[Scene, Overlap | None], Assignment]
"""Assigns anchor points to objects; boxes are compared by the overlap given, or by CIoU."""


def lies_inside(points: Tensor, boxes_xyxy: Tensor) -> Tensor:
    """Tell which points (…, 2) lie strictly inside boxes (…, 4); both broadcast."""
    x, y = points.unbind(-1)
    x1, y1, x2, y2 = boxes_xyxy.unbind(-1)
    return (x - x1 > LEAST_MARGIN) & (x2 - x > LEAST_MARGIN) & (y - y1 > LEAST_MARGIN) & (y2 - y > LEAST_MARGIN)


def positive_overlap(
    overlap_of: Overlap, goals_xyxy: Tensor, predicted_xyxy: Tensor, target: Tensor, num_targets: int
) -> Tensor:
    """Clamp overlaps to [0, 1]; an object without any overlap above 0 is compared by plain IoU.

    An untrained network predicts boxes of 15 x 15 cells. Between those and a small object many measures are negative:
    without this rule the object would get no positive, and the network would never learn its size.

    Args:
        goals_xyxy, predicted_xyxy: (P, 4) pixels.
        target: (P,) object of each pair, below `num_targets`.
    Returns:
        (P,)
    """
    overlap = overlap_of(goals_xyxy, predicted_xyxy).clamp(0, 1)
    best = overlap.new_zeros(num_targets).scatter_reduce(0, target, overlap, "amax")
    return torch.where(best[target] > 0, overlap, paired_iou(predicted_xyxy, goals_xyxy))
