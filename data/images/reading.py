"""Image files: read their pixels, and check that they are complete."""

import struct
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from data.images.pixels import FULL_RANGE, DeepImage, PixelRange, deep_image, describe_scaling, range_of_bits, to_8_bit
from utils.errors import DataError

JPEG_START, JPEG_SCAN, JPEG_END = b"\xff\xd8\xff", b"\xff\xda", b"\xff\xd9"
PNG_START, PNG_END = b"\x89PNG", b"IEND"
BMP_START, WEBP_START = b"BM", (b"RIFF", b"WEBP")
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
TIFF_BITS, TIFF_COLOURS, TIFF_KIND, TIFF_SHORT = 258, 262, 339, 3
TIFF_KINDS = {2: "signed", 3: "floating-point", 5: "complex", 6: "complex"}
MOST_CHANNELS = 64


class StoredForm(NamedTuple):
    """How an image file stores a value: its number of bits, its kind, and whether 0 means white."""

    bits: int
    kind: str = "unsigned"
    white_is_zero: bool = False

    @property
    def plain(self) -> bool:
        """Whether a value is an unsigned integer of at most 8 bits."""
        return self.bits <= 8 and self.kind == "unsigned"

    def __str__(self) -> str:
        return f"{self.kind} values of {self.bits} bits"


def read_image(path: str | Path, pixel_range: PixelRange | None = None) -> NDArray[np.uint8]:
    """Return an image as (H, W, 3) RGB, turned upright by its EXIF orientation.

    Args:
        pixel_range: the values that become 0 and 255, for images of more than 8 bits (data/images/pixels.py).
    Raises:
        DataError: the file cannot be read as an image, or its values have no known range.
    """
    try:
        return to_8_bit(decode(_read_bytes(path)), pixel_range)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


class ImageReader:
    """Reads images for prediction: deep ones are scaled by one range, and are counted for one line.

    Args:
        pixel_range: the values that become 0 and 255, for images of more than 8 bits; None takes 0 to 65535 for uint16,
            and refuses other types.
        origin: who gives the range, for the line.
    """

    def __init__(self, pixel_range: PixelRange | None = None, origin: str = "") -> None:
        self.pixel_range, self.origin = pixel_range, origin
        self.count = 0
        self.deep: list[DeepImage] = []

    def read(self, path: str | Path) -> NDArray[np.uint8]:
        """Read a file as `read_image` does."""
        try:
            return self.scale(decode(_read_bytes(path)), path)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error

    def scale(self, pixels: NDArray[Any], name: str | Path) -> NDArray[np.uint8]:
        """Return (H, W, 3) pixels of any number type as uint8.

        Raises:
            DataError: see `to_8_bit`.
        """
        deep, scaled = deep_image(name, pixels), to_8_bit(pixels, self.pixel_range)
        self.count += 1
        self.deep += [deep] if deep else []
        return scaled

    def describe(self) -> str | None:
        """Return a line about the deep images that were read, or None."""
        if not self.deep:
            return None
        line = describe_scaling(self.deep, self.count, self.pixel_range or FULL_RANGE, self.origin)
        if self.pixel_range is None and (fitting := range_of_bits(self.deep)) != FULL_RANGE:
            line += f"; the values fit {fitting[0]:g} to {fitting[1]:g}"
        return line


def examine_image(path: str | Path) -> tuple[tuple[int, int], DeepImage | None]:
    """Decode a whole image; return the (height, width) of `read_image`'s result, and the values of a deep image.

    Raises:
        DataError: the file is missing, empty, truncated or no image; the text is the reason alone, without the path.
    """
    content = _read_bytes(path)
    if reason := _truncation(content):
        raise DataError(reason)
    pixels = decode(content)
    return (pixels.shape[0], pixels.shape[1]), deep_image(path, pixels)


def _read_bytes(path: str | Path) -> bytes:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}") from error
    except ValueError as error:  # a zero byte in the path
        raise DataError(f"cannot be read: {error}") from error
    if not content:
        raise DataError("empty file")
    return content


def decode(content: bytes) -> NDArray[Any]:
    """Decode the bytes of an image file to (H, W, 3) RGB in the file's own number type.

    Bytes, not a path, because cv2 cannot open every path on every system.

    Raises:
        DataError: no image, or one whose depth OpenCV does not keep.
    """
    form = _stored_form(content)
    if form is not None and form.plain:
        return _imdecode(content, cv2.IMREAD_COLOR_RGB)
    is_tiff = content.startswith(TIFF_STARTS)
    # OpenCV 5 fills a deep TIFF with wrong pixels under IMREAD_COLOR, and ignores EXIF under IMREAD_UNCHANGED
    pixels = _imdecode(content, cv2.IMREAD_UNCHANGED if is_tiff else cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR, form)
    if form is not None and form.bits > 8 * pixels.dtype.itemsize:
        kept = 8 * pixels.dtype.itemsize
        raise DataError(f"{form}, of which OpenCV keeps {kept} bits: expected grey, RGB or RGBA, without palette")
    if pixels.dtype == np.uint8:
        return _imdecode(content, cv2.IMREAD_COLOR_RGB)
    return _as_rgb(pixels if form is None else _plain_values(pixels, form))


def _plain_values(pixels: NDArray[Any], form: StoredForm) -> NDArray[Any]:
    """Return the values of a deep image as its file means them.

    Raises:
        DataError: 0 means white for values that have no highest one.
    """
    spare = 8 * pixels.dtype.itemsize - form.bits
    if pixels.dtype.kind == "u" and spare > 0 and not (pixels & (2**spare - 1)).any():
        pixels = pixels >> spare  # OpenCV fills 10, 12 and 14 packed bits up to 16
    if form.white_is_zero:
        if form.kind != "unsigned":
            raise DataError(f"{form}, of which 0 means white: expected 0 for black")
        pixels = (2**form.bits - 1) - pixels
    return pixels


def _imdecode(content: bytes, flags: int, form: StoredForm | None = None) -> NDArray[Any]:
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error as error:  # raised for absurd sizes in the header
        raise DataError(f"cannot be decoded: {error.err}") from error
    if pixels is None:
        raise DataError("cannot be decoded as an image" + (f" ({form})" if form else ""))
    return pixels


def _as_rgb(pixels: NDArray[Any]) -> NDArray[Any]:
    """Return grey, BGR or BGRA pixels as RGB."""
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.shape[2] == 1:
        return np.repeat(pixels, 3, axis=2)
    return np.ascontiguousarray(pixels[..., 2::-1])


def _stored_form(content: bytes) -> StoredForm | None:
    """Return how a file stores its values, as its header tells; None if its format or header is not known here."""
    if content.startswith((JPEG_START, BMP_START)) or (content[:4], content[8:12]) == WEBP_START or _is_avif(content):
        return StoredForm(8)  # OpenCV scales an AVIF of 10 or 12 bits by the depth that the file states
    if content.startswith(PNG_START):
        return StoredForm(content[24]) if len(content) > 24 else None
    return _tiff_form(content) if content.startswith(TIFF_STARTS) else None


def _is_avif(content: bytes) -> bool:
    return content[4:8] == b"ftyp" and content[8:12] in (b"avif", b"avis")


def _tiff_form(content: bytes) -> StoredForm | None:
    """Return how the first image of a TIFF file stores its values."""
    try:
        tags = _tiff_tags(content)
    except (struct.error, OverflowError):  # truncated: the decoder refuses it, or fills it up as it always did
        return None
    kind = next((TIFF_KINDS[number] for number in tags.get(TIFF_KIND, []) if number in TIFF_KINDS), "unsigned")
    return StoredForm(max(tags.get(TIFF_BITS, [1])), kind, white_is_zero=tags.get(TIFF_COLOURS) == [0])


def _tiff_tags(content: bytes) -> dict[int, list[int]]:
    """Return the tags of the first image of a TIFF file that tell how it stores its values."""
    order = "<" if content.startswith(b"II") else ">"
    big = content[2:4] in (b"+\0", b"\0+")
    pointer, counter, size = ("Q", "Q", 20) if big else ("I", "H", 12)
    start = struct.unpack_from(order + pointer, content, 8 if big else 4)[0]
    number = struct.unpack_from(order + counter, content, start)[0]
    start += struct.calcsize(counter)
    tags = {}
    for entry in range(start, start + size * number, size):
        tag, kind, count = struct.unpack_from(f"{order}HH{pointer}", content, entry)
        if tag in (TIFF_BITS, TIFF_COLOURS, TIFF_KIND) and kind == TIFF_SHORT and count:
            place = entry + size - struct.calcsize(pointer)
            if count * 2 > struct.calcsize(pointer):
                place = struct.unpack_from(order + pointer, content, place)[0]
            tags[tag] = list(struct.unpack_from(f"{order}{min(count, MOST_CHANNELS)}H", content, place))
    return tags


def _truncation(content: bytes) -> str:
    """Describe a truncated JPEG or PNG, which decoders silently fill with grey; "" if it is complete."""
    if content.startswith(JPEG_START):
        scan = content.find(JPEG_SCAN, _jpeg_header_end(content))
        return "truncated JPEG (no end marker)" if scan < 0 or content.find(JPEG_END, scan) < 0 else ""
    if content.startswith(PNG_START):
        return "truncated PNG (no IEND chunk)" if content.rfind(PNG_END) < 0 else ""
    return ""


def _jpeg_header_end(content: bytes) -> int:
    """Return the offset after the last application segment (these may contain a thumbnail, itself a JPEG)."""
    offset = 2
    while offset + 4 <= len(content) and content[offset] == 0xFF and 0xE0 <= content[offset + 1] <= 0xEF:
        offset += 2 + int.from_bytes(content[offset + 2 : offset + 4], "big")
    return offset
