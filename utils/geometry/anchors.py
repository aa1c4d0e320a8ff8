"""Anchor points of a head's levels, and the geometry that head and loss share.

A head predicts, for each anchor point, a distribution over NUM_BINS distances (in cells) to each of the four sides.
"""

import torch
from torch import Tensor

NUM_BINS = 16
"""Bins of the distribution over each box side's distance (R)."""

PROTOTYPE_STRIDE = 4
"""Pixels of the network's input per cell of the mask prototypes."""


def anchor_points(maps_hw: list[tuple[int, int]], stride: list[int], like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the centres of all cells (A, 2), x and y in pixels, and their strides (A, 1): level by level, row by row.

    Args:
        maps_hw: height and width of each level's map, cells.
        stride: pixels per cell of each level.
        like: a tensor with the dtype and device of the result.
    """
    points, strides = [], []
    for (height, width), step in zip(maps_hw, stride, strict=True):
        y, x = torch.meshgrid(
            torch.arange(height, dtype=like.dtype, device=like.device) + 0.5,
            torch.arange(width, dtype=like.dtype, device=like.device) + 0.5,
            indexing="ij",
        )
        points.append(torch.stack((x, y), -1).view(-1, 2) * step)
        strides.append(x.new_full((height * width, 1), step))
    return torch.cat(points), torch.cat(strides)


def decode_boxes(distances: Tensor, points: Tensor, strides: Tensor) -> Tensor:
    """Turn the distances from anchor points to box sides (left, top, right, bottom) into corners.

    Args:
        distances: (…, A, 4) in cells.
        points: (…, A, 2) pixels.
        strides: (…, A, 1) pixels.
    Returns:
        (…, A, 4) corners in pixels.
    """
    distances = distances * strides
    return torch.cat((points - distances[..., :2], points + distances[..., 2:]), -1)
