"""Regions: the pixels of one object, stored as a window of the image; and the filling of outlines.

A pixel is inside an outline when its centre is (even-odd rule), and inside a polygon when it is inside one of its
parts. cv2.fillPoly also draws the pixels on the border, which makes objects wider; this does not. A seam that runs to a
hole or a second part and back covers no pixel.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Polygon = list[NDArray[np.float32]]
"""The outlines of one object's parts, (K, 2) x, y each."""


@dataclass(slots=True)
class Region:
    """The pixels of one object.

    Attributes:
        top, left: row and column of the mask's first pixel in the image.
        mask: (h, w) bool; outside it the object has no pixels.
    """

    top: int
    left: int
    mask: NDArray[np.bool_]

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int(np.count_nonzero(self.mask))

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the image that the mask covers."""
        height, width = self.mask.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)

    def common(self, other: "Region") -> int:
        """Count the pixels that both regions hold."""
        top, left = max(self.top, other.top), max(self.left, other.left)
        bottom = min(self.top + self.mask.shape[0], other.top + other.mask.shape[0])
        right = min(self.left + self.mask.shape[1], other.left + other.mask.shape[1])
        if bottom <= top or right <= left:
            return 0
        parts = [
            one.mask[top - one.top : bottom - one.top, left - one.left : right - one.left] for one in (self, other)
        ]
        return int(np.count_nonzero(parts[0] & parts[1]))

    def paint(self, canvas: NDArray, value: object) -> None:
        """Set the region's pixels in a whole image (H, W) or (H, W, C), in place."""
        canvas[self.window][self.mask] = value


def no_region() -> Region:
    """Return a region without any pixel."""
    return Region(0, 0, np.zeros((0, 0), bool))


def dense_masks(regions: Sequence[Region], size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Return (n, H, W), a mask of the whole image for each region."""
    masks = np.zeros((len(regions), *size_hw), bool)
    for mask, region in zip(masks, regions, strict=True):
        region.paint(mask, True)
    return masks


def box_region(box_xyxy: NDArray, size_hw: tuple[int, int]) -> Region:
    """Return the pixels whose centres lie inside a box, x1 <= x < x2 and y1 <= y < y2, in an image of `size_hw`."""
    left, top, right, bottom = (
        int(edge) for edge in np.clip(np.ceil(np.asarray(box_xyxy, np.float64) - 0.5), 0, (size_hw[1], size_hw[0]) * 2)
    )
    return Region(top, left, np.ones((max(bottom - top, 0), max(right - left, 0)), bool))


def polygon_region(polygon: Polygon, size_hw: tuple[int, int]) -> Region:
    """Return the pixels inside any of the parts (K, 2) of a polygon, in an image of `size_hw`."""
    if not polygon:
        return no_region()
    points = np.concatenate(polygon)
    if not np.isfinite(points).all():
        return no_region()
    window = box_region(np.concatenate((points.min(0), points.max(0))), size_hw)
    shape, corner = window.mask.shape, (window.left, window.top)
    if 0 in shape:
        return no_region()
    window.mask[:] = False
    for part in polygon:
        window.mask |= fill_part(np.asarray(part, np.float64) - corner, shape)
    return window


def fill_part(points: NDArray[np.float64], size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Fill a closed outline `points` (K, 2): (H, W), True where a pixel's centre is inside (even-odd rule).

    Each edge crosses some rows of pixel centres. To the right of each crossing, inside and outside swap.
    """
    height, width = size_hw
    following = np.roll(points, -1, 0)
    rising = (points[:, 1] > following[:, 1])[:, None]
    # sorted by y, so that an edge and the same edge reversed give the same numbers
    low, high = np.where(rising, following, points), np.where(rising, points, following)
    first, last = (np.clip(np.ceil(end[:, 1] - 0.5), 0, height).astype(np.int64) for end in (low, high))
    counts = last - first
    edge = np.repeat(np.arange(len(points)), counts)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts - first, counts)
    rise = np.where(counts > 0, high[:, 1] - low[:, 1], 1.0)
    x = low[edge, 0] + (row + 0.5 - low[edge, 1]) * ((high[:, 0] - low[:, 0]) / rise)[edge]
    column = np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)
    changes = (
        np.bincount(row * (width + 1) + column, minlength=height * (width + 1))
        .astype(np.uint8)
        .reshape(height, width + 1)
    )
    return (np.add.accumulate(changes, axis=1, dtype=np.uint8)[:, :width] & 1).astype(bool)
