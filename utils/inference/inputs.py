"""What a predictor takes as an image: a path, an encoded file, an array or a Pillow image; it becomes uint8 RGB."""

import glob
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeGuard
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from data.images.reading import ImageReader, decode
from data.images.sources import VIDEO_SUFFIXES
from utils.errors import DataError

TAKEN = (
    "a path, file:// address, bytes or open file of an image, an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) in "
    "the order RGB, a Pillow image, or a list of these"
)
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://|data:", re.IGNORECASE)
FILE_ADDRESS = re.compile(r"file:(//(?P<host>[^/]*))?(?P<path>/.*)", re.IGNORECASE | re.DOTALL)
ORIENTATION = 0x0112
"""EXIF tag that says how an image has to be turned."""


class PillowImage(Protocol):
    """The part of Pillow's images that is used here; Pillow itself is not needed."""

    mode: str
    size: tuple[int, int]

    def load(self) -> object: ...
    def convert(self, mode: str) -> "PillowImage": ...
    def getexif(self) -> Any: ...


def read_inputs(images: object, reader: ImageReader) -> Iterator[tuple[NDArray[np.uint8], Path]]:
    """Yield each image as (H, W, 3) uint8 RGB, with its path; `image0`, `image1`, … where it has none.

    Args:
        images: one image, or an iterable of images; see `TAKEN`.
    Raises:
        DataError: what was given is no image, or cannot be read.
    """
    if is_one(images):
        yield read_input(images, 0, reader)
    elif isinstance(images, Iterable) and not isinstance(images, dict):
        for number, image in enumerate(images):
            yield read_input(image, number, reader)
    else:
        raise DataError(f"{type(images).__name__}: expected {TAKEN}")


def is_one(image: object) -> bool:
    """Tell whether something is meant as one image; other iterables hold images."""
    kinds = (str, os.PathLike, bytes, bytearray, memoryview, np.ndarray, Tensor)
    return isinstance(image, kinds) or hasattr(image, "read") or is_pillow(image) or hasattr(image, "__array__")


def is_pillow(image: object) -> TypeGuard[PillowImage]:
    """Tell whether something is an image of Pillow."""
    return all(hasattr(image, name) for name in ("mode", "size", "load", "convert", "getexif"))


def read_input(image: object, number: int, reader: ImageReader) -> tuple[NDArray[np.uint8], Path]:
    """Read one image; see `read_inputs`."""
    name = f"image{number}"
    if isinstance(image, str | os.PathLike):
        path = local_path(os.fsdecode(image))
        return read_file(path, reader), path
    try:
        if isinstance(image, Tensor):
            raise DataError(tensor_message(image))
        if isinstance(image, bytes | bytearray | memoryview):
            pixels = decode(bytes(image))
        elif is_pillow(image):
            name = getattr(image, "filename", "") or name
            pixels = pillow_pixels(image)
        elif hasattr(image, "read"):
            named = getattr(image, "name", None)
            name = named if isinstance(named, str) else name
            pixels = decode(file_content(image))
        elif hasattr(image, "__array__"):
            pixels = as_rgb(np.asarray(image))
        else:
            raise DataError(f"{type(image).__name__}: expected {TAKEN}")
        if reader.pixel_range is None and pixels.dtype not in (np.uint8, np.uint16):
            span = f"{pixels.min():g} to {pixels.max():g}"
            raise DataError(
                f"{pixels.dtype.name} values, {span}: expected uint8 from 0 to 255; or say which values are black and "
                "white, load(…, pixel_range=(low, high))"
            )
        return reader.scale(pixels, name), Path(name)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


def local_path(text: str) -> Path:
    """Return the path of a file that is named by path or by a `file://` address.

    Raises:
        DataError: another address.
    """
    found = FILE_ADDRESS.fullmatch(text)
    if (ADDRESS.match(text) is None and found is None) or os.path.exists(text):
        return Path(text)
    if found is None or (found["host"] or "").lower() not in ("", "localhost"):
        raise DataError(f"{text[:200]}: network addresses are not read: download the file first and give its path")
    path = unquote(found["path"])
    return Path(path[1:] if re.match(r"/[A-Za-z]:[/\\]", path) else path)  # file:///C:/a.jpg


def read_file(path: Path, reader: ImageReader) -> NDArray[np.uint8]:
    """Read an image file.

    Raises:
        DataError: no image; the message says what takes folders, patterns and videos.
    """
    try:
        return reader.read(path)
    except DataError as error:
        if os.path.isdir(path):
            hint = f"a folder: expected an image; give sorted(Path({str(path)!r}).glob('*.jpg')), or detect.py --source"
        elif os.path.exists(path) and path.suffix.lower() in VIDEO_SUFFIXES:
            hint = "a video: expected an image; detect.py --source reads videos"
        elif glob.has_magic(str(path)) and not os.path.exists(path):
            hint = f"no such file: for a pattern give glob.glob({str(path)!r})"
        else:
            raise
        raise DataError(f"{path}: {hint}") from error


def file_content(file: Any) -> bytes:
    """Return what is left to read in an open file.

    Raises:
        DataError: it is closed or at its end, was opened as text, or is no file.
    """
    try:
        content = file.read()
    except (OSError, ValueError) as error:
        raise DataError(f"the open file cannot be read: {error}") from error
    if isinstance(content, str):
        raise DataError("the file is open as text: expected mode 'rb'")
    if not isinstance(content, bytes | bytearray | memoryview):
        raise DataError(f"{type(file).__name__}: its read() gives {type(content).__name__}: expected {TAKEN}")
    if not content:
        raise DataError("nothing is left to read in the open file: expected an image; seek(0) goes back to its start")
    return bytes(content)


def tensor_message(tensor: Tensor) -> str:
    """Say how a tensor becomes an array of the right form."""
    shape = tuple(tensor.shape)
    steps = "[0]" if len(shape) == 4 else ""
    if len(shape) > 2 and shape[-3] in (1, 3, 4):
        steps += ".permute(1, 2, 0)"
    if tensor.is_floating_point():
        steps += ".mul(255).byte()"  # torch's images are from 0 to 1
    dtype = str(tensor.dtype).removeprefix("torch.")
    return f"torch tensor {shape} {dtype}: expected an array: give tensor{steps}.cpu().numpy()"


def as_rgb(pixels: NDArray[Any]) -> NDArray[Any]:
    """Return grey, RGB or RGBA pixels as (H, W, 3), without alpha; False and True become 0 and 255.

    Raises:
        DataError: another shape, no pixels, or no numbers.
    """
    shape, what = pixels.shape, f"array {pixels.shape} {pixels.dtype}"
    if pixels.dtype.kind not in "buif":
        raise DataError(f"{what}: expected numbers; give a list for several images")
    if pixels.ndim == 4:
        raise DataError(f"{what}: expected one image; give list(array) for several")
    if pixels.ndim == 3 and shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4):
        raise DataError(f"{what}: expected (height, width, 3): give array.transpose(1, 2, 0)")
    if not (pixels.ndim == 2 or (pixels.ndim == 3 and shape[2] in (1, 3, 4))) or not pixels.size:
        raise DataError(f"{what}: expected (height, width), or (height, width, 1, 3 or 4) in the order RGB")
    if pixels.dtype.kind == "b":
        pixels = pixels.astype(np.uint8) * 255
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    if pixels.ndim == 2 or shape[2] == 1:
        return np.repeat(pixels.reshape(*shape[:2], 1), 3, axis=2)
    return pixels[..., :3] if shape[2] == 4 else pixels


def pillow_pixels(image: PillowImage) -> NDArray[Any]:
    """Return the (H, W, 3) pixels of a Pillow image of any mode, turned upright by its EXIF orientation.

    Raises:
        DataError: the image cannot be read, or its mode cannot become RGB.
    """
    if not image.mode.startswith("I") and any(";16" in str(tile) for tile in getattr(image, "tile", ())):
        raise DataError("Pillow keeps 8 of the 16 bits of this image: expected its path")
    try:
        image.load()  # a TIFF is turned upright here and loses its orientation
        deep = image.mode.startswith(("I", "F"))
        values = np.asarray(image if deep else image.convert("RGB"))
        orientation = image.getexif().get(ORIENTATION, 1)
    except (OSError, ValueError, TypeError, SyntaxError) as error:
        raise DataError(f"Pillow image of mode {image.mode}: cannot be read as RGB: {error}") from error
    pixels = as_rgb(values)
    if image.mode == "I" and pixels.min() >= 0 and pixels.max() < 2**16:  # how Pillow opened 16-bit files before 11.3
        pixels = pixels.astype(np.uint16)
    return upright(pixels, orientation)


def upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn and mirror an image as its EXIF orientation, 1 to 8, says."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
