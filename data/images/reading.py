"""Image files: read their pixels, and check that they are complete."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from utils.errors import DataError

JPEG_START, JPEG_SCAN, JPEG_END = b"\xff\xd8\xff", b"\xff\xda", b"\xff\xd9"
PNG_START, PNG_END = b"\x89PNG", b"IEND"


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """Return an image as (H, W, 3) RGB, turned upright by its EXIF orientation.

    Raises:
        DataError: the file cannot be read as an image.
    """
    try:
        return _decode(_read_bytes(path))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def inspect_image(path: str | Path) -> tuple[int, int]:
    """Decode a whole image; return the (height, width) of `read_image`'s result.

    Raises:
        DataError: the file is missing, empty, truncated or no image; the text is the reason alone, without the path.
    """
    content = _read_bytes(path)
    if reason := _truncation(content):
        raise DataError(reason)
    pixels = _decode(content)
    return pixels.shape[0], pixels.shape[1]


def _read_bytes(path: str | Path) -> bytes:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}") from error
    if not content:
        raise DataError("empty file")
    return content


def _decode(content: bytes) -> NDArray[np.uint8]:
    """Decode bytes to RGB pixels. Bytes, not a path, because cv2 cannot open every path on every system."""
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:  # raised for absurd sizes in the header
        raise DataError(f"cannot be decoded: {error.err}") from error
    if pixels is None:
        raise DataError("cannot be decoded as an image")
    return pixels


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
