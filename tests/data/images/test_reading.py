"""Image files: checked whole, turned upright."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from data.images.reading import inspect_image, read_image
from tests.saying import assert_says
from utils.errors import DataError

# An APP1 segment that says "orientation 6": turn a quarter clockwise to see the image upright.
EXIF_TURNED = (
    b"\xff\xe1\x00\x22Exif\x00\x00MM\x00\x2a\x00\x00\x00\x08"
    b"\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00\x00\x00\x00\x00"
)


def noise(suffix: str, hw: tuple[int, int] = (48, 64)) -> bytes:
    """Return an encoded image of random pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (*hw, 3), np.uint8)
    return cv2.imencode(suffix, pixels)[1].tobytes()


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tif", ".webp"])
def test_size(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(noise(suffix))
    assert inspect_image(path) == (48, 64)


def test_pixels_are_rgb(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(cv2.imencode(".png", np.full((2, 2, 3), (0, 0, 255), np.uint8))[1].tobytes())
    assert read_image(path)[0, 0].tolist() == [255, 0, 0]


def test_grey_and_alpha_become_three_channels(tmp_path: Path) -> None:
    for shape in ((5, 6), (5, 6, 4)):
        (tmp_path / "a.png").write_bytes(cv2.imencode(".png", np.full(shape, 9, np.uint8))[1].tobytes())
        assert read_image(tmp_path / "a.png").shape == (5, 6, 3)


def test_exif_orientation_turns_size_and_pixels_alike(tmp_path: Path) -> None:
    content = noise(".jpg")
    path = tmp_path / "a.jpg"
    path.write_bytes(content[:2] + EXIF_TURNED + content[2:])
    assert inspect_image(path) == (64, 48)
    assert read_image(path).shape == (64, 48, 3)


def test_bytes_after_the_end_of_a_jpeg_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(noise(".jpg") + b"trailing bytes")
    assert inspect_image(path) == (48, 64)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"not an image at all", "cannot be decoded as an image"),
        (noise(".jpg")[:1500], "truncated JPEG"),
        (noise(".jpg")[:60], "truncated JPEG"),
        (noise(".png")[:1500], "truncated PNG"),
    ],
)
def test_broken_images(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        inspect_image(path)
    assert_says(caught.value, reason)
    assert path.read_bytes() == content


def test_missing_image(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_image(tmp_path / "a.jpg")
    assert_says(caught.value, "a.jpg", "No such file")
