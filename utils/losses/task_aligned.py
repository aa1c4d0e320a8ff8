"""Task-aligned assignment: the anchor points with the best class scores and boxes are an object's positives."""

import torch
from torch import Tensor

from utils.geometry.boxes import complete_iou
from utils.geometry.groups import rank_by_value
from utils.losses.assignment import Assignment, Overlap, Scene, lies_inside, positive_overlap
from utils.losses.parts import part

EPS = 1e-9
"""Added to an object's best metric before it divides the others."""


@part(short=("tal",), beside={"topk": "tal_topk", "alpha": "tal_alpha", "beta": "tal_beta"})
@torch.no_grad()
def task_aligned(
    scene: Scene, overlap_of: Overlap | None = None, topk: int = 10, alpha: float = 0.5, beta: float = 6.0
) -> Assignment:
    """Choose the best of score^alpha * overlap^beta among the anchor points inside an object.

    Args:
        overlap_of: compares boxes; CIoU, clamped at 0, by default.
        topk: most positives of an object.
        alpha, beta: exponents of class score and overlap.
    Source: Feng et al. 2021, TOOD, arxiv.org/abs/2108.07755, section 3.3
    Differs: the overlap is CIoU (or another measure) clamped at 0; an anchor point that several objects claim goes to
        the one with the highest overlap. Objects of all images are in one flat list instead of padded per image;
        overlaps are computed only for anchor points inside an object.
    """
    num_targets, num_anchors = len(scene.target_xyxy), len(scene.points)
    target, anchor = lies_inside(scene.points, scene.target_xyxy[:, None]).nonzero(as_tuple=True)
    image = scene.target_image[target]
    goals, predicted = scene.target_xyxy[target], scene.boxes_xyxy[image, anchor]
    if overlap_of is None:
        overlap = complete_iou(goals, predicted).clamp(min=0)
    else:
        overlap = positive_overlap(overlap_of, goals, predicted, target, num_targets)
    metric = scene.class_logits[image, scene.target_class[target], anchor].sigmoid().pow(alpha) * overlap.pow(beta)

    # a metric of 0 has no weight in the loss, but would count as a positive of masks
    chosen = (rank_by_value(target, metric) < topk) & (metric > 0)
    keep = _settled(chosen, image * num_anchors + anchor, len(scene.boxes_xyxy) * num_anchors, overlap)
    image, anchor, target, overlap, metric = (values[keep] for values in (image, anchor, target, overlap, metric))

    zeros = metric.new_zeros(num_targets)
    best_metric = zeros.scatter_reduce(0, target, metric, "amax")
    best_overlap = zeros.scatter_reduce(0, target, overlap, "amax")
    return Assignment(image, anchor, target, metric * best_overlap[target] / (best_metric[target] + EPS))


def _settled(chosen: Tensor, cell: Tensor, num_cells: int, overlap: Tensor) -> Tensor:
    """Give each cell that several pairs claim to the pair with the highest overlap, be it a claimant or not.

    Args:
        chosen: (n,) which pairs of object and anchor point claim the point.
        cell: (n,) number of the anchor point in the batch, below `num_cells`.
        overlap: (n,)
    Returns:
        (n,) which pairs keep their anchor point.
    """
    contested = torch.bincount(cell[chosen], minlength=num_cells)[cell] > 1
    keep = chosen & ~contested
    rows = contested.nonzero().squeeze(1)
    keep[rows[rank_by_value(cell[rows], overlap[rows]) == 0]] = True
    return keep
