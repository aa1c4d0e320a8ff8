"""Masks of detected objects: from coefficients and prototypes to pixels of the image, cropped to the object's box.

An object's logit is the sum of the prototypes weighted by its coefficients. Its mask is where the logit is above 0.
The prototypes have a quarter of the network's resolution; between the centres of their cells the logit is interpolated
linearly. There are two rules:

- full: compute the logit at the centre of every pixel of the image. Validation (in training, in val.py and by
  pycocotools) uses this rule, so all three measure the same masks. `detect.py --retina-masks` draws it.
- fast: compute the logit at every pixel of the network's input; each pixel of the image takes the value of the input
  pixel that it lies in. This is less work where the image is larger than the input; the edges are coarser there.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.geometry.anchors import PROTOTYPE_STRIDE
from utils.geometry.placement import Placement
from utils.geometry.region import Region, box_region

Array = NDArray[np.float32]


def as_array(values: Tensor) -> Array:
    """Convert a tensor of any device and dtype to a float32 array."""
    return np.ascontiguousarray(values.detach().to("cpu", torch.float32).numpy())


def instance_region(
    coefficients: Array, prototypes: Array, box_xyxy: NDArray, placement: Placement, full: bool = True
) -> Region:
    """Return the pixels of one object in the original image.

    Args:
        coefficients: (M,).
        prototypes: (M, h, w) of the image.
        box_xyxy: (4,) corners in pixels of the original image; the mask ends at them.
        placement: of the image in the network's input.
        full: True for the full rule, False for the fast one (see the top of this file).
    """
    region = box_region(box_xyxy, placement.original_hw)
    if not region.mask.size:
        return region
    rows, columns = region.window
    x = (np.arange(columns.start, columns.stop) + 0.5) * placement.ratio_wh[0] + placement.pad_wh[0]
    y = (np.arange(rows.start, rows.stop) + 0.5) * placement.ratio_wh[1] + placement.pad_wh[1]
    if full:
        region.mask = logits_at(coefficients, prototypes, y, x) > 0
        return region
    (seen_x, column_of), (seen_y, row_of) = (np.unique(np.floor(centres), return_inverse=True) for centres in (x, y))
    mask = logits_at(coefficients, prototypes, seen_y + 0.5, seen_x + 0.5) > 0
    region.mask = mask[row_of][:, column_of]
    return region


def logits_at(coefficients: Array, prototypes: Array, y: NDArray[np.float64], x: NDArray[np.float64]) -> Array:
    """Compute an object's logits (len(y), len(x)) on the grid of rows `y` and columns `x`.

    Args:
        coefficients: (M,).
        prototypes: (M, h, w).
        y, x: ascending, in pixels of the network's input.
    """
    (top, below, share_y), (left, right, share_x) = (
        neighbours(centres, count) for centres, count in zip((y, x), prototypes.shape[1:], strict=True)
    )
    window = prototypes[:, top[0] : below[-1] + 1, left[0] : right[-1] + 1]
    logits = np.tensordot(coefficients, window, 1)
    logits = logits[top - top[0]] * (1 - share_y)[:, None] + logits[below - top[0]] * share_y[:, None]
    return logits[:, left - left[0]] * (1 - share_x) + logits[:, right - left[0]] * share_x


def neighbours(centres: NDArray[np.float64], count: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Array]:
    """Return, for points on an axis of `count` cells, the cells before and after each and the weight of the latter."""
    place = np.clip(centres / PROTOTYPE_STRIDE - 0.5, 0, count - 1)
    before = np.floor(place).astype(np.int64)
    return before, np.minimum(before + 1, count - 1), (place - before).astype(np.float32)


def instance_regions(
    coefficients: Array, prototypes: Array, boxes_xyxy: NDArray, placement: Placement, full: bool = True
) -> list[Region]:
    """Return the pixels of n objects, given (n, M) coefficients and (n, 4) boxes; see `instance_region`."""
    pairs = zip(coefficients, boxes_xyxy, strict=True)
    return [instance_region(own, prototypes, box_xyxy, placement, full) for own, box_xyxy in pairs]


def numbered_region(
    coefficients: Array, prototypes: Array, boxes_xyxy: NDArray, placement: Placement, row: int
) -> Region:
    """Return the pixels of one of n objects, by the full rule; see `instance_regions`."""
    return instance_region(coefficients[row], prototypes, boxes_xyxy[row], placement)


def prototype_map(coefficients: Array, prototypes: Array, boxes_xyxy: NDArray) -> NDArray[np.int16]:
    """Draw objects into an index map (h, w) at the prototypes' resolution: the k-th object is k, the rest 0.

    Where objects overlap, the first one wins.


    Args:
        boxes_xyxy: (n, 4) corners in pixels of the network's input.
    """
    size_hw = prototypes.shape[1:]
    placement = Placement(size_hw, (PROTOTYPE_STRIDE, PROTOTYPE_STRIDE), (0, 0))
    canvas = np.zeros(size_hw, np.int16)
    regions = instance_regions(coefficients, prototypes, boxes_xyxy / PROTOTYPE_STRIDE, placement)
    for number in range(len(regions), 0, -1):
        regions[number - 1].paint(canvas, number)
    return canvas
