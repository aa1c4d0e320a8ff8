"""Images with more than 8 bits a value: the values that they hold, and the range that becomes 0 to 255.

One range holds for all deep images of a data set, of its training, and of what runs the trained network.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from utils.errors import DataError

PixelRange = tuple[float, float]
"""The values that become 0 and 255; lower and higher ones are clipped."""
FULL_RANGE: PixelRange = (0.0, 65535.0)
"""The range of uint16 images where neither the user, the data set nor the weights give one."""
DEPTHS = (8, 10, 12, 14, 16)
"""Bits of the data that a camera writes into files of 16 bits."""
HOW_TO_STATE = (
    "give pixel_range: [low, high] in the data yaml, --pixel-range LOW HIGH to detect.py, "
    "or pixel_range=(low, high) in Python"
)


class DeepImage(NamedTuple):
    """The values of one image that is not 8 bits deep: number type, lowest and highest value."""

    path: str
    dtype: str
    low: float
    high: float


def deep_image(path: str | Path, pixels: NDArray[Any]) -> DeepImage | None:
    """Return the values of an image; None for one of 8 bits.

    Raises:
        DataError: a value is not finite.
    """
    if pixels.dtype == np.uint8:
        return None
    check_finite(pixels)
    return DeepImage(str(path), pixels.dtype.name, float(pixels.min()), float(pixels.max()))


def check_finite(pixels: NDArray[Any]) -> None:
    """Refuse NaN and infinite values.

    Raises:
        DataError: counts them.
    """
    if pixels.dtype.kind == "f" and (count := np.count_nonzero(~np.isfinite(pixels))):
        raise DataError(f"{count} of {pixels.size} values are NaN or infinite: expected finite values")


def parse_pixel_range(value: object, where: str) -> PixelRange:
    """Return a range that the user gave.

    Args:
        where: the file and key, or the flag, for messages.
    Raises:
        DataError: not two finite numbers, the lower one first.
    """
    numbers = [_number(item) for item in value] if isinstance(value, list | tuple) else []
    if len(numbers) != 2 or not all(map(math.isfinite, numbers)) or numbers[0] >= numbers[1]:
        shown = list(value) if isinstance(value, tuple) else value
        raise DataError(
            f"{where} is {shown!r}: expected the lowest and the highest pixel value, such as 0 and 4095 for 12 bits"
        )
    return numbers[0], numbers[1]


def _number(value: object) -> float:
    """Return a number as float; NaN for anything else. Yaml reads 1e3 as text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def to_8_bit(pixels: NDArray[Any], pixel_range: PixelRange | None = None) -> NDArray[np.uint8]:
    """Scale pixels of any number type to uint8; those of uint8 stay as they are.

    Args:
        pixel_range: None takes `FULL_RANGE` for uint16.
    Raises:
        DataError: another number type without a range, or values that are not finite.
    """
    if pixels.dtype == np.uint8:
        return pixels
    check_finite(pixels)
    if pixel_range is None:
        if pixels.dtype != np.uint16:
            raise DataError(
                f"{pixels.dtype.name} values from {pixels.min():g} to {pixels.max():g}: "
                f"no pixel range is known: {HOW_TO_STATE}"
            )
        pixel_range = FULL_RANGE
    low, high = pixel_range
    scaled = (pixels.astype(np.result_type(pixels.dtype, np.float32)) - low) * (255 / (high - low))
    return np.rint(scaled).clip(0, 255).astype(np.uint8)


def choose_pixel_range(images: Sequence[DeepImage], where: str) -> PixelRange | None:
    """Return the range of a data set that states none: the fewest bits of `DEPTHS` that hold its highest value.

    Args:
        images: the deep images; without any the range is None.
        where: the data yaml and split, for messages.
    Raises:
        DataError: values of another type than uint16, whose range nothing tells.
    """
    check_types(images, where)
    return range_of_bits(images) if images else None


def range_of_bits(images: Sequence[DeepImage]) -> PixelRange:
    """Return the range of the fewest bits of `DEPTHS` that hold the highest value of uint16 images."""
    highest = max(image.high for image in images)
    return 0.0, float(next(2**bits - 1 for bits in DEPTHS if highest < 2**bits))


def check_types(images: Sequence[DeepImage], where: str) -> None:
    """Refuse images whose range has to be stated.

    Args:
        images: deep images of a data set that states no range.
        where: the data yaml and split, for messages.
    Raises:
        DataError: some are of another type than uint16.
    """
    others = [image for image in images if image.dtype != "uint16"]
    if others:
        types = " and ".join(sorted({image.dtype for image in others}))
        raise DataError(
            f"{where}: {len(others)} images of {types} values, such as {others[0].path} "
            f"({span(others)} in all of them): expected a key that says which values are black and white, "
            "pixel_range: [low, high]"
        )


def span(images: Sequence[DeepImage]) -> str:
    """Return the lowest and highest value of some images as text."""
    return f"{min(image.low for image in images):g} to {max(image.high for image in images):g}"


def describe_scaling(images: Sequence[DeepImage], total: int, pixel_range: PixelRange, origin: str) -> str:
    """Describe in one line how deep images are scaled, and what is clipped.

    Args:
        images: the deep ones of `total` images; at least one.
        origin: who gives the range.
    """
    low, high = pixel_range
    types = ", ".join(sorted({image.dtype for image in images}))
    clipped = [image for image in images if image.low < low or image.high > high]
    line = (
        f"{len(images)} of {total} images are not 8 bits deep ({types}, values {span(images)}, "
        f"such as {Path(images[0].path).name}): {low:g} to {high:g} becomes 0 to 255, {origin}"
    )
    # fewer than two of the 256 levels are left of an image that is not plain
    plain = [one for one in images if one.low < one.high and _kept(one, pixel_range) * 255 < high - low]
    for found, what in ((clipped, "have values outside, which are clipped"), (plain, "become a single shade of grey")):
        if found:
            first = found[0]
            line += f"; {len(found)} of them {what} (such as {Path(first.path).name}, {first.low:g} to {first.high:g})"
    return line


def _kept(image: DeepImage, pixel_range: PixelRange) -> float:
    """Return how much of an image's span of values lies in the range."""
    return min(image.high, pixel_range[1]) - max(image.low, pixel_range[0])
