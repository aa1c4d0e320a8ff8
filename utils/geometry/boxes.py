"""Boxes as tensors: formats and overlap.

Formats stand in the names: `xyxy` is two corners, `cxcywh` centre and size; pixels unless a name ends in `_norm`.
"""

import math

import torch
from torch import Tensor

EPS = 1e-7
"""Square pixels, added to the divisors of paired IoUs and box losses: empty boxes have finite values and gradients."""


def cxcywh_to_xyxy(boxes_cxcywh: Tensor) -> Tensor:
    """Convert (…, 4) centre and size to (…, 4) corners."""
    centre, half = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:4] / 2
    return torch.cat((centre - half, centre + half), -1)


def xyxy_to_cxcywh(boxes_xyxy: Tensor) -> Tensor:
    """Convert (…, 4) corners to (…, 4) centre and size."""
    low, high = boxes_xyxy[..., :2], boxes_xyxy[..., 2:4]
    return torch.cat(((low + high) / 2, high - low), -1)


def box_area(boxes_xyxy: Tensor) -> Tensor:
    """Compute the areas (…) of (…, 4) corners; 0 where x2 < x1 or y2 < y1."""
    return (boxes_xyxy[..., 2:4] - boxes_xyxy[..., :2]).clamp(min=0).prod(-1)


def box_iou(first_xyxy: Tensor, second_xyxy: Tensor) -> Tensor:
    """Compute the (N, M) intersection over union of (N, 4) and (M, 4) corners: in [0, 1], 0 for empty boxes."""
    low = torch.maximum(first_xyxy[:, None, :2], second_xyxy[None, :, :2])
    high = torch.minimum(first_xyxy[:, None, 2:], second_xyxy[None, :, 2:])
    intersection = (high - low).clamp(min=0).prod(-1)
    union = box_area(first_xyxy)[:, None] + box_area(second_xyxy)[None] - intersection
    return intersection / union.clamp(min=1e-9)


def intersection_and_union(first_xyxy: Tensor, second_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the areas (…) of intersection and union, pair by pair, of (…, 4) corners."""
    low = torch.maximum(first_xyxy[..., :2], second_xyxy[..., :2])
    high = torch.minimum(first_xyxy[..., 2:], second_xyxy[..., 2:])
    intersection = (high - low).clamp(min=0).prod(-1)
    first_area = (first_xyxy[..., 2:] - first_xyxy[..., :2]).prod(-1)
    second_area = (second_xyxy[..., 2:] - second_xyxy[..., :2]).prod(-1)
    return intersection, first_area + second_area - intersection


def paired_iou(first_xyxy: Tensor, second_xyxy: Tensor) -> Tensor:
    """Compute the intersection over union (…), pair by pair, of (…, 4) corners; 0 for empty boxes."""
    intersection, union = intersection_and_union(first_xyxy, second_xyxy)
    return intersection / (union + EPS)


def complete_iou(first_xyxy: Tensor, second_xyxy: Tensor) -> Tensor:
    """Compute the complete IoU pair by pair, with finite gradients at degenerate boxes.

    Args:
        first_xyxy, second_xyxy: (…, 4) corners, broadcastable.
    Returns:
        (…) CIoU in (-1.5, 1].
    Source: Zheng et al. 2020, arxiv.org/abs/1911.08287, eq. (10). Differs: EPS is added to the height of each box
        (before areas are taken), to the union and to the squared diagonal, as the published YOLOv9 does.
    """
    first_x1, first_y1, first_x2, first_y2 = first_xyxy.unbind(-1)
    second_x1, second_y1, second_x2, second_y2 = second_xyxy.unbind(-1)
    first_w, first_h = first_x2 - first_x1, first_y2 - first_y1 + EPS
    second_w, second_h = second_x2 - second_x1, second_y2 - second_y1 + EPS
    overlap_w = (torch.minimum(first_x2, second_x2) - torch.maximum(first_x1, second_x1)).clamp(min=0)
    overlap_h = (torch.minimum(first_y2, second_y2) - torch.maximum(first_y1, second_y1)).clamp(min=0)
    intersection = overlap_w * overlap_h
    iou = intersection / (first_w * first_h + second_w * second_h - intersection + EPS)
    hull_w = torch.maximum(first_x2, second_x2) - torch.minimum(first_x1, second_x1)
    hull_h = torch.maximum(first_y2, second_y2) - torch.minimum(first_y1, second_y1)
    centre_x = second_x1 + second_x2 - first_x1 - first_x2
    centre_y = second_y1 + second_y2 - first_y1 - first_y2
    distance = (centre_x.square() + centre_y.square()) / 4 / (hull_w.square() + hull_h.square() + EPS)
    angle = torch.atan(second_w / second_h) - torch.atan(first_w / first_h)
    aspect = 4 / math.pi**2 * angle.square()
    with torch.no_grad():
        weight = aspect / (aspect - iou + (1 + EPS))
    return iou - distance - weight * aspect
