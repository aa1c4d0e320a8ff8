"""The `segmentation` of a COCO object: polygons, or run lengths."""

import math
from typing import TypeGuard

import numpy as np

from data.labels.annotation import Polygon
from utils.geometry.outlines import join_outlines, trace
from utils.geometry.rle import Counts, counts_region, read_counts

EXPECTED = "expected a list of polygons [[x1, y1, x2, y2, x3, y3, …], …], or size and counts"
MOST_PIXELS = 1e6
"""Largest coordinate of a polygon, in pixels; larger ones are mistakes."""


def is_number(value: object) -> TypeGuard[int | float]:
    """Tell whether a value of a JSON file is a finite number that fits float64; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number of more than 308 digits
        return False


def read_mask(
    segmentation: object, crowd: bool, stated_hw: tuple[int, int] | None
) -> tuple[Polygon, Counts | None, str]:
    """Read an object's mask as polygons, or as run lengths for a crowd.

    Returns:
        The polygons, the run lengths (None unless a crowd has them), and the reason why a part was left out, or "".
    """
    if segmentation is None:
        return [], None, ""
    if isinstance(segmentation, list):
        return _read_polygons(segmentation)
    if not isinstance(segmentation, dict):
        return [], None, f"segmentation is {type(segmentation).__name__}: {EXPECTED}"
    try:
        size_hw, counts = read_counts(segmentation)
    except ValueError as error:
        return [], None, f"segmentation: {error}"
    if stated_hw not in (None, size_hw):
        sizes = "{1} x {0} pixels: expected the image's {3} x {2}".format(*size_hw, *(stated_hw or size_hw))
        return [], None, f"segmentation of {sizes}"
    if crowd:
        return [], counts, ""
    outlines = [join_outlines([piece]).astype(np.float32) for piece in trace(counts_region(counts, size_hw))]
    return outlines, None, ""


def _read_polygons(parts: list[object]) -> tuple[Polygon, None, str]:
    """Return the polygons of a list, None, and one line for all parts that are left out, or ""."""
    if parts and all(is_number(part) for part in parts):
        return [], None, f"segmentation is one flat list of {len(parts)} numbers: {EXPECTED}"
    kept: Polygon = []
    reasons = []
    for number, part in enumerate(parts):
        if reason := _wrong_with(part):
            reasons.append(f"segmentation[{number}]: {reason}")
        else:
            kept.append(np.array(part, np.float32).reshape(-1, 2))
    several = f"{len(reasons)} of {len(parts)} parts, the first: " if len(reasons) > 1 else ""
    return kept, None, f"{several}{reasons[0]}" if reasons else ""


def _wrong_with(part: object) -> str:
    """Say why a part of a mask is no polygon; "" if it is one."""
    expected = "expected x, y of three points or more"
    if not isinstance(part, list) or not all(map(is_number, part)):
        return f"no list of numbers: {expected}"
    if len(part) < 6 or len(part) % 2:
        return f"{len(part)} numbers: {expected}"
    if max(map(abs, part)) > MOST_PIXELS:
        return f"a coordinate of {max(part, key=abs):g}: expected pixels of the image"
    return ""
