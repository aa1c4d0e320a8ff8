"""ATSS: the anchor points near an object's centre whose squares overlap it better than most are its positives."""

import torch
from torch import Tensor

from utils.geometry.boxes import complete_iou, paired_iou
from utils.geometry.groups import rank_by_value
from utils.losses.assignment import Assignment, Overlap, Scene, lies_inside, positive_overlap
from utils.losses.parts import Range, part

SLACK = 1e-6
"""Tolerance of the threshold: equal overlaps differ from their mean by rounding."""


@part(topk=Range(1, 1000), anchor_scale=Range(0, 100, above=True))
@torch.no_grad()
def atss(scene: Scene, overlap_of: Overlap | None = None, topk: int = 9, anchor_scale: float = 5.0) -> Assignment:
    """Choose, of the anchor points near an object's centre, those whose squares overlap it better than most.

    Candidates are the nearest points of every level. A candidate is a positive if the IoU of its square with the object
    is at least mean plus standard deviation over the candidates, and the point lies strictly inside. A point that
    several objects claim goes to the object that overlaps its square most.

    Args:
        overlap_of: compares boxes, which gives the score; CIoU by default.
        topk: candidates a level.
        anchor_scale: side of the squares, in strides.
    Source: Zhang et al. 2020, arxiv.org/abs/1912.02424, algorithm 1
    Differs: the score is the predicted box's overlap with the object, as in YOLOv6 (arxiv.org/abs/2209.02976), in place
        of 1 and centre-ness; a score of 0 is no positive. The deviation of a single candidate is 0.
    """
    near = candidates(scene.points, scene.level_sizes, scene.target_xyxy, topk)
    number, count = near.shape
    goals = scene.target_xyxy[:, None].expand(number, count, 4)
    points = scene.points[near]
    fit = paired_iou(squares(points, scene.strides[near] * anchor_scale), goals)
    # of one candidate, or of no object, torch's deviation is not a number
    deviation = fit.std(1, correction=1) if fit.numel() > number else fit.new_zeros(number)
    chosen = lies_inside(points, goals) & (fit >= (fit.mean(1) + deviation)[:, None] - SLACK)
    target, column = chosen.nonzero(as_tuple=True)
    anchor, fit = near[target, column], fit[target, column]

    best = rank_by_value(scene.target_image[target] * len(scene.points) + anchor, fit) == 0
    target, anchor = target[best], anchor[best]
    image = scene.target_image[target]
    goals, predicted = scene.target_xyxy[target], scene.boxes_xyxy[image, anchor]
    score = positive_overlap(overlap_of or complete_iou, goals, predicted, target, number)
    kept = score > 0  # a score of 0 has no weight in the loss, but would count as a positive of masks
    return Assignment(*(values[kept] for values in (image, anchor, target, score)))


def candidates(points: Tensor, level_sizes: list[int], target_xyxy: Tensor, topk: int) -> Tensor:
    """Find the `topk` anchor points of each level (or all) that are nearest to each object's centre; ties: the earlier.

    Args:
        points: (A, 2) pixels, level by level; `level_sizes` of them.
        target_xyxy: (N, 4) pixels.
    Returns:
        (N, C) indices of points.
    """
    centres = (target_xyxy[:, :2] + target_xyxy[:, 2:]) / 2
    found, first = [], 0
    for size in level_sizes:
        squared = (centres[:, None] - points[None, first : first + size]).square().sum(2)
        found.append(squared.argsort(dim=1, stable=True)[:, :topk] + first)
        first += size
    return torch.cat(found, 1)


def squares(points: Tensor, sides: Tensor) -> Tensor:
    """Make corners (…, 4) of squares with centres (…, 2) and sides (…, 1)."""
    return torch.cat((points - sides / 2, points + sides / 2), -1)
