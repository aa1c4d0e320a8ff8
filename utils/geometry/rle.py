"""COCO's run-length masks: written for results files, read from annotation files (compressed text or plain lists).

pycocotools encodes them. It does not decode them here: where the runs do not fill the mask, version 2.0.11 returns
uninitialised memory as pixels, without an error.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_api

from utils.geometry.region import Region, no_region
from utils.wording import shown

Counts = NDArray[np.int64]
"""Lengths of the runs, column by column: pixels outside (the first may be 0) and inside, alternating."""

MOST_PIXELS = 1 << 30
"""Largest mask, in pixels; larger sizes in a file are mistakes."""
FIRST_CHARACTER, DATA_BITS, MORE, SIGN = 48, 5, 0x20, 0x10
MOST_BITS = 40
"""Most bits of one number in the compressed text; they hold any number up to MOST_PIXELS."""


def encode_region(region: Region, size_hw: tuple[int, int]) -> dict[str, object]:
    """Return a region as COCO's compressed mask: {"size": [H, W], "counts": text}."""
    canvas = np.zeros(size_hw, np.uint8, order="F")
    region.paint(canvas, 1)
    return {"size": [int(size_hw[0]), int(size_hw[1])], "counts": mask_api.encode(canvas)["counts"].decode("ascii")}


def decompress(text: str) -> Counts:
    """Decode COCO's compressed text into run lengths.

    A number is stored in groups of five bits, the lowest first. From the fourth number on, the text stores the
    difference to the number two places before.

    Raises:
        ValueError: an invalid character, a number beyond any image, or an incomplete last number.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        group = ord(character) - FIRST_CHARACTER
        if not 0 <= group < 2 * MORE:
            raise ValueError(f"character {character!r} in the run-length text")
        value |= (group & (MORE - 1)) << shift
        shift += DATA_BITS
        if shift > MOST_BITS:
            raise ValueError("a number in the run-length text is larger than any image")
        if group & MORE:
            continue
        value -= (1 << shift) if group & SIGN else 0
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("the run-length text ends within a number")
    return np.array(counts, np.int64)


def read_counts(rle: Mapping[str, object]) -> tuple[tuple[int, int], Counts]:
    """Read the size (H, W) and the run lengths of a mask {"size": [H, W], "counts": text or list}.

    Raises:
        ValueError: size or counts are malformed, or the runs do not fill the size.
    """
    size, counts = rle.get("size"), rle.get("counts")
    if not (isinstance(size, list | tuple) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)):
        raise ValueError(f"size is {ascii(size)[:60]}, expected height and width")
    height, width = size
    if height * width > MOST_PIXELS:
        raise ValueError(f"size is {shown(height)} x {shown(width)}, expected at most {MOST_PIXELS} pixels")
    if isinstance(counts, bytes):
        counts = counts.decode("ascii", errors="replace")
    if isinstance(counts, str):
        counts = decompress(counts)
    elif isinstance(counts, list) and all(type(count) is int for count in counts):
        counts = np.array([min(max(count, -1), MOST_PIXELS + 1) for count in counts], np.int64)
    else:
        raise ValueError("counts is neither a list of whole numbers nor a text")
    if (counts < 0).any() or counts.sum() != height * width:
        raise ValueError(f"the runs cover {counts.sum()} pixels, expected {height} x {width}")
    return (height, width), counts


def decode_region(rle: Mapping[str, object]) -> Region:
    """Return the region of a mask; arguments and errors as for `read_counts`."""
    size_hw, counts = read_counts(rle)
    return counts_region(counts, size_hw)


def counts_region(counts: Counts, size_hw: tuple[int, int]) -> Region:
    """Return the region that run lengths describe; they must fill an image of `size_hw`."""
    inside = np.arange(len(counts)) % 2 == 1
    return cropped(np.repeat(inside, counts).reshape(size_hw[1], size_hw[0]).T)


def cropped(mask: NDArray[np.bool_]) -> Region:
    """Crop the mask (H, W) of a whole image to a region."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return no_region()
    top, left = int(rows[0]), int(columns[0])
    return Region(top, left, np.ascontiguousarray(mask[top : rows[-1] + 1, left : columns[-1] + 1]))
