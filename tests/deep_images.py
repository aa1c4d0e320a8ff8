"""Image files of any depth and number type, which OpenCV and Pillow cannot all write."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

KINDS = {"u": 1, "i": 2, "f": 3}
# A TIFF block that says "orientation 6": turn a quarter clockwise to see the image upright.
TURNED = b"MM\x00\x2a\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00\x00\x00\x00\x00"


def tiff(
    pixels: NDArray, orientation: int = 1, order: str = "<", bits: int | None = None, white_is_zero: bool = False
) -> bytes:
    """Return (H, W) or (H, W, C) pixels (RGB, RGBA, grey and alpha) as an uncompressed TIFF of their number type.

    Args:
        order: of the bytes, "<" or ">".
        bits: of a value, packed; None takes those of the number type.
    """
    height, width = pixels.shape[:2]
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    colours = 2 if channels > 2 else 1
    if white_is_zero:
        colours = 0
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    if bits:
        lines = ["".join(f"{value:0{bits}b}" for value in row.ravel()) for row in pixels]
        padded = [line.ljust(-(-len(line) // 8) * 8, "0") for line in lines]
        data = b"".join(int(line, 2).to_bytes(len(line) // 8, "big") for line in padded)
    tags: dict[int, tuple[str, list[int]]] = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [bits or 8 * pixels.dtype.itemsize] * channels),
        259: ("H", [1]),
        262: ("H", [colours]),
        273: ("I", [0]),
        274: ("H", [orientation]),
        277: ("H", [channels]),
        278: ("I", [height]),
        279: ("I", [len(data)]),
        **({338: ("H", [2])} if channels in (2, 4) else {}),
        339: ("H", [KINDS[pixels.dtype.kind]] * channels),
    }
    packed = {tag: struct.pack(f"{order}{len(values)}{code}", *values) for tag, (code, values) in tags.items()}
    extra_start = 8 + 2 + 12 * len(tags) + 4
    packed[273] = struct.pack(f"{order}I", extra_start + sum(len(value) for value in packed.values() if len(value) > 4))
    entries, extra = b"", b""
    for tag, (code, values) in sorted(tags.items()):
        entries += struct.pack(f"{order}HHI", tag, {"H": 3, "I": 4}[code], len(values))
        if len(packed[tag]) > 4:
            entries += struct.pack(f"{order}I", extra_start + len(extra))
            extra += packed[tag]
        else:
            entries += packed[tag].ljust(4, b"\0")
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8)
    return start + struct.pack(f"{order}H", len(tags)) + entries + struct.pack(f"{order}I", 0) + extra + data


def png(pixels: NDArray, exif: bytes = b"") -> bytes:
    """Return uint8 or uint16 pixels as PNG: (H, W), or (H, W, C) with grey, grey and alpha, RGB or RGBA."""
    height, width = pixels.shape[:2]
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    form = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(row.dtype.newbyteorder(">")).tobytes() for row in pixels)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.dtype.itemsize, form, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    if exif:
        parts.insert(1, chunk(b"eXIf", exif))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def ramp(dtype: str, channels: int = 3, hw: tuple[int, int] = (3, 4)) -> NDArray:
    """Return pixels that all differ, (H, W) for one channel; of a float type from 0 to below 1."""
    count = hw[0] * hw[1] * channels
    values = np.arange(count, dtype=np.float64)
    if dtype.startswith("f"):
        values /= count
    elif dtype.startswith("i"):
        values -= count // 2
    return values.reshape(hw if channels == 1 else (*hw, channels)).astype(dtype)


def write_split(root: Path, split: str, pixels: list[NDArray], encode: Callable[[NDArray], bytes], suffix: str) -> None:
    """Write images of a split with one box of class 0 in each."""
    for number, one in enumerate(pixels):
        image = root / "images" / split / f"{number}{suffix}"
        label = root / "labels" / split / f"{number}.txt"
        for path in (image, label):
            path.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(encode(one))
        label.write_text("0 0.5 0.5 0.5 0.5\n")


def write_data_yaml(root: Path, more: str = "") -> Path:
    """Write a data yaml with the splits train and val, one class, and further lines."""
    path = root / "data.yaml"
    path.write_text(f"train: images/train\nval: images/val\nnames: [cell]\n{more}")
    return path
