"""An image with its objects during augmentation, and geometry that treats boxes and outlines together.

Coordinates are continuous pixels: pixel i covers [i, i + 1]. Images may be shared; only `copy_paste` writes to one,
the fresh canvas of a mosaic.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from data.labels.annotation import Polygon
from utils.geometry.anchors import PROTOTYPE_STRIDE
from utils.geometry.region import polygon_region

SUBPIXEL_BITS = 4


@dataclass(slots=True)
class Sample:
    """An image and its objects, crowd regions left out.

    Attributes:
        image_rgb: (H, W, 3) uint8.
        classes: (N,) int64.
        boxes_xyxy: (N, 4) float32 corners.
        polygons: for each object its parts, each (K, 2) float32 x, y; no parts for an object with only a box.
    """

    image_rgb: NDArray[np.uint8]
    classes: NDArray[np.int64]
    boxes_xyxy: NDArray[np.float32]
    polygons: list[Polygon]

    @property
    def size_wh(self) -> tuple[int, int]:
        """Width and height of the image."""
        return self.image_rgb.shape[1], self.image_rgb.shape[0]

    def select(self, keep: NDArray[np.bool_]) -> "Sample":
        """Return the image with the objects where `keep` is True."""
        if keep.all():
            return self
        polygons = [self.polygons[index] for index in np.flatnonzero(keep)]
        return Sample(self.image_rgb, self.classes[keep], self.boxes_xyxy[keep], polygons)


def join(image_rgb: NDArray[np.uint8], samples: Sequence[Sample]) -> Sample:
    """Return an image with the objects of several samples, which must be in its coordinates already."""
    return Sample(
        image_rgb,
        np.concatenate([sample.classes for sample in samples]),
        np.concatenate([sample.boxes_xyxy for sample in samples]),
        [polygon for sample in samples for polygon in sample.polygons],
    )


def outlined(polygons: Sequence[Polygon]) -> NDArray[np.bool_]:
    """Return (N,), True for objects with an outline."""
    return np.array([len(polygon) > 0 for polygon in polygons], bool)


def map_points(polygons: list[Polygon], move: Callable[[NDArray[np.float32]], NDArray]) -> list[Polygon]:
    """Apply `move`, (P, 2) to (P, 2), to the points of all outlines at once."""
    parts = [part for polygon in polygons for part in polygon]
    if not parts:
        return polygons
    moved = move(np.concatenate(parts)).astype(np.float32, copy=False)
    start = 0
    result: list[Polygon] = []
    for polygon in polygons:
        result.append([])
        for part in polygon:
            result[-1].append(moved[start : start + len(part)])
            start += len(part)
    return result


def scale_and_shift(
    boxes_xyxy: NDArray[np.float32],
    polygons: list[Polygon],
    scale_wh: tuple[float, float],
    shift_wh: tuple[float, float],
) -> tuple[NDArray[np.float32], list[Polygon]]:
    """Multiply boxes and outlines by `scale_wh`, then add `shift_wh`."""
    scale, shift = np.array((*scale_wh, *scale_wh), np.float32), np.array((*shift_wh, *shift_wh), np.float32)
    return boxes_xyxy * scale + shift, map_points(polygons, lambda points: points * scale[:2] + shift[:2])


def mirror(
    boxes_xyxy: NDArray[np.float32], polygons: list[Polygon], axis: int, length: int
) -> tuple[NDArray[np.float32], list[Polygon]]:
    """Mirror boxes and outlines along `axis` (0 is x, 1 is y) of an image with `length` pixels along it."""
    boxes_xyxy = boxes_xyxy.copy()
    boxes_xyxy[:, [axis, axis + 2]] = length - boxes_xyxy[:, [axis + 2, axis]]
    scale, shift = np.ones(2, np.float32), np.zeros(2, np.float32)
    scale[axis], shift[axis] = -1, length
    return boxes_xyxy, map_points(polygons, lambda points: points * scale + shift)


def polygon_bounds(polygons: list[Polygon]) -> NDArray[np.float32]:
    """Return the (M, 4) corners of the M objects with an outline."""
    counts = [sum(len(part) for part in polygon) for polygon in polygons if polygon]
    if not counts:
        return np.zeros((0, 4), np.float32)
    points = np.concatenate([part for polygon in polygons for part in polygon])
    starts = np.cumsum([0, *counts[:-1]])
    return np.concatenate((np.minimum.reduceat(points, starts), np.maximum.reduceat(points, starts)), 1)


def _following(values: NDArray) -> NDArray:
    return np.concatenate((values[1:], values[:1]))


def clip_part(points: NDArray[np.float32], size_wh: tuple[int, int]) -> NDArray[np.float32]:
    """Return the part of an outline inside an image, (K', 2); empty if nothing is left.

    Source: Sutherland and Hodgman 1974 (clip at one side of the image after the other).
    """
    for axis in (0, 1):
        for limit, sign in ((0, 1), (size_wh[axis], -1)):
            depth = sign * (points[:, axis] - limit)  # >= 0 inside
            inside = depth >= 0
            if inside.all():
                continue
            if not inside.any():
                return points[:0]
            crosses = inside != _following(inside)
            step = np.divide(depth, depth - _following(depth), out=np.zeros_like(depth), where=crosses)
            cuts = points + step[:, None] * (_following(points) - points)
            cuts[:, axis] = limit
            points = np.concatenate((points, cuts), 1).reshape(-1, 2)[
                np.concatenate((inside[:, None], crosses[:, None]), 1).reshape(-1)
            ]
    return points if len(points) >= 3 else points[:0]


def _clip_polygon(polygon: Polygon, size_wh: tuple[int, int]) -> tuple[Polygon, NDArray[np.float32]]:
    """Return the parts inside the image and their tight (4,) box, zeros if nothing is left."""
    parts, seen = [], []
    for part in polygon:
        clipped = clip_part(part, size_wh)
        if len(clipped) == 0:
            continue
        parts.append(clipped)
        # Clipping a concave outline may add a corner of the image, which the box includes only if the object covers it.
        corner = ((clipped == 0) | (clipped == np.array(size_wh, np.float32))).all(1)
        for row in np.flatnonzero(corner):
            corner[row] = cv2.pointPolygonTest(part, clipped[row].tolist(), False) < 0
        seen.append(clipped[~corner])
    points = np.concatenate(seen) if seen else np.zeros((0, 2), np.float32)
    if len(points) == 0:
        return [], np.zeros(4, np.float32)
    return parts, np.concatenate((points.min(0), points.max(0)))


def clip(
    boxes_xyxy: NDArray[np.float32], polygons: list[Polygon], size_wh: tuple[int, int], refit: bool = False
) -> tuple[NDArray[np.float32], list[Polygon]]:
    """Clip objects at the border of an image; row i remains object i.

    Args:
        refit: compute the boxes of all outlined objects from their outlines, not only of those that the border cuts.
    Returns:
        Boxes, tight around the rest of each outline, zeros where nothing is left; and outlines.
    """
    limit = np.array((*size_wh, *size_wh), np.float32)
    rows = np.flatnonzero(outlined(polygons))
    boxes_xyxy = np.clip(boxes_xyxy, 0, limit)
    if len(rows) == 0:
        return boxes_xyxy, polygons
    bounds, polygons = polygon_bounds(polygons), list(polygons)
    crossing = ((bounds < 0) | (bounds > limit)).any(1)
    gone = (bounds[:, 2:] <= 0).any(1) | (bounds[:, :2] >= limit[:2]).any(1)
    if refit:
        boxes_xyxy[rows[~crossing]] = bounds[~crossing]
    for row in rows[gone]:
        polygons[row], boxes_xyxy[row] = [], 0
    for row in rows[crossing & ~gone]:
        polygons[row], boxes_xyxy[row] = _clip_polygon(polygons[row], size_wh)
    return boxes_xyxy, polygons


def by_area(sample: Sample) -> Sample:
    """Sort the objects from the largest to the smallest box, so that `index_map` draws small ones on top."""
    order = np.argsort(-(sample.boxes_xyxy[:, 2:] - sample.boxes_xyxy[:, :2]).prod(1), kind="stable")
    return Sample(
        sample.image_rgb, sample.classes[order], sample.boxes_xyxy[order], [sample.polygons[row] for row in order]
    )


def index_map(sample: Sample) -> NDArray[np.int16]:
    """Draw the outlined objects, (H / 4, W / 4): k at the k-th object from 1, later ones on top, else 0.

    A cell belongs to the object that covers its centre. An object that covers no cell's centre gets the cell in its
    middle. Objects without an outline are not drawn.
    """
    width, height = sample.size_wh
    canvas = np.zeros((height // PROTOTYPE_STRIDE, width // PROTOTYPE_STRIDE), np.int16)
    for number, polygon in enumerate(sample.polygons, start=1):
        region = polygon_region([np.divide(part, PROTOTYPE_STRIDE) for part in polygon], canvas.shape)
        if region.mask.any():
            region.paint(canvas, number)
        elif polygon:
            points = np.concatenate(polygon)
            middle = (points.min(0) + points.max(0)) / (2 * PROTOTYPE_STRIDE)
            column, row = np.clip(middle.astype(int), 0, (canvas.shape[1] - 1, canvas.shape[0] - 1))
            canvas[row, column] = number
    return canvas
