"""True masks, and the overlaps of detected and true masks of one image.

pycocotools fills the true polygons, so that results can be compared with published ones. It rounds corners to fifths of
a pixel: 1,791 of 1,993 small random polygons differ from those of utils/geometry/region.py (mean IoU 0.970), and the
mAP differs in the third decimal. Overlaps are computed here: only for pairs that can match, and on windows in place of
run lengths of whole images.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_api

from data.labels.annotation import Annotation, Polygon
from utils.geometry.region import Region, box_region
from utils.geometry.rle import counts_region, cropped
from utils.metrics.detection import IOU_THRESHOLDS

LEAST = float(IOU_THRESHOLDS.min())
"""Smallest overlap of a match; smaller overlaps are not computed."""


def truth_masks(annotation: Annotation) -> tuple[list[Region], NDArray[np.bool_]]:
    """Return the region of each object of an image, and (N,) True for those to ignore.

    Ignored are crowds and objects without a mask: a detection inside their box is neither right nor wrong.
    """
    regions, ignored = [], annotation.crowd.copy()
    for row, polygon in enumerate(annotation.polygons):
        if polygon:
            regions.append(filled(polygon, annotation.file_hw))
        elif row in annotation.run_lengths:
            regions.append(counts_region(annotation.run_lengths[row], annotation.file_hw))
        else:
            regions.append(box_region(annotation.boxes_xyxy[row], annotation.file_hw))
            ignored[row] = True
    return regions, ignored


def coco_polygon(polygon: Polygon) -> list[list[float]]:
    """Convert a polygon to COCO's lists; rounding to three decimals restores the numbers before float32."""
    return [part.reshape(-1).astype(np.float64).round(3).tolist() for part in polygon]


def filled(polygon: Polygon, size_hw: tuple[int, int]) -> Region:
    """Fill a polygon of one or more parts in an image of `size_hw`, exactly as COCO's evaluation does."""
    parts = mask_api.frPyObjects(coco_polygon(polygon), *size_hw)
    return cropped(mask_api.decode(mask_api.merge(parts)).astype(bool))


def mask_overlaps(
    detections: NDArray,
    region_of: Callable[[int], Region],
    truths: Sequence[Region],
    classes: NDArray[np.int64],
    crowd: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Compute (D, G) overlaps of masks: IoU, or intersection over the detection's own area where the truth is a crowd.

    Masks are made only for detections that can match. The overlap is 0 where the classes differ, and where the boxes
    prove that it is below `LEAST`.

    Args:
        detections: (D, 6 or more) corners in pixels of the image, confidence, class index.
        region_of: makes the mask of a detection by its row; the mask lies inside the box.
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
    most = (high - low + 1).clip(min=0).prod(-1)  # most pixels in both boxes; edges may cut pixels
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
