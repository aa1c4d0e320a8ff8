"""What masks are measured against, and how far found and true masks of one image overlap.

Polygons are filled by pycocotools, where it is installed: its rule (corners go to fifths of a pixel) differs from that of
utils/geometry/region.py by a pixel here and there along the edge, which moves the mAP of small objects in the third decimal, and numbers
are to be compared with others'. Without it they are filled by utils/geometry/region.py.
"""

import functools
from collections.abc import Callable, Sequence
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from data.labels.annotation import Annotation, Polygon
from utils.geometry.region import Region, box_region, polygon_region
from utils.geometry.rle import counts_region, cropped
from utils.metrics.detection import IOU_THRESHOLDS

LEAST = float(IOU_THRESHOLDS.min())
"""Overlaps that cannot reach this are not computed."""


def truth_masks(annotation: Annotation) -> tuple[list[Region], NDArray[np.bool_]]:
    """Return the region of each object of an image, and (N,) which of them masks are not measured on, but forgiven.

    Those are crowd regions, and objects that are known by their box only: what is found inside the box is neither right nor wrong.
    """
    regions, forgiven = [], annotation.crowd.copy()
    for row, polygon in enumerate(annotation.polygons):
        if polygon:
            regions.append(filled(polygon, annotation.file_hw))
        elif row in annotation.run_lengths:
            regions.append(counts_region(annotation.run_lengths[row], annotation.file_hw))
        else:
            regions.append(box_region(annotation.boxes_xyxy[row], annotation.file_hw))
            forgiven[row] = True
    return regions, forgiven


@functools.cache
def coco_masks() -> ModuleType | None:
    """Return pycocotools' module of masks, or None where it is not installed."""
    try:
        from pycocotools import mask
    except ImportError:
        return None
    return mask


def coco_polygon(polygon: Polygon) -> list[list[float]]:
    """Return a polygon as COCO files have it; three decimals, more than they have, undo the rounding to float32."""
    return [part.reshape(-1).astype(np.float64).round(3).tolist() for part in polygon]


def filled(polygon: Polygon, size_hw: tuple[int, int]) -> Region:
    """Return the pixels of an image of `size_hw` that a polygon of one or more parts covers, as COCO's evaluation sees it."""
    module = coco_masks()
    if module is None:
        return polygon_region(polygon, size_hw)
    parts = module.frPyObjects(coco_polygon(polygon), *size_hw)
    return cropped(module.decode(module.merge(parts)).astype(bool))


def mask_overlaps(
    detections: NDArray,
    region_of: Callable[[int], Region],
    truths: Sequence[Region],
    classes: NDArray[np.int64],
    crowd: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Return (D, G) intersection over union of masks, but over the detection's own area where the truth is a crowd.

    Only the masks of detections that can match are made: 0 stands where classes differ, and where already the boxes show that the
    overlap is below `LEAST` (the lowest threshold of a match).

    Args:
        detections: (D, 6 or more) corners in pixels of the image, confidence, class index.
        region_of: makes the mask of a detection, which lies inside its box.
        truths: regions of the G truths.
        classes: (G) class indices.
        crowd: (G) truths that are crowds.
    """
    overlaps = np.zeros((len(detections), len(truths)))
    if not overlaps.size:
        return overlaps
    windows = np.array(
        [(one.left, one.top, one.left + one.mask.shape[1], one.top + one.mask.shape[0]) for one in truths], np.float64
    )
    areas = np.array([one.area for one in truths], np.float64)
    low = np.maximum(detections[:, None, :2], windows[None, :, :2])
    high = np.minimum(detections[:, None, 2:4], windows[None, :, 2:])
    most = (high - low + 1).clip(min=0).prod(-1)  # pixels in both boxes, whose edges may lie within a pixel
    possible = (detections[:, 5].astype(np.int64)[:, None] == classes[None]) & np.where(
        crowd[None], most > 0, most >= LEAST * areas[None]
    )
    for row in np.flatnonzero(possible.any(1)):
        region = region_of(int(row))
        area = region.area
        for column in np.flatnonzero(possible[row]):
            common = region.common(truths[int(column)])
            union = area if crowd[column] else area + areas[column] - common
            overlaps[row, column] = common / union if union else 0.0
    return overlaps
