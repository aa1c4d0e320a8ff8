"""Image files: checked whole, turned upright."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from data.images.reading import decode, examine_image, read_image
from tests.deep_images import TURNED, png, ramp, tiff
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
    assert examine_image(path)[0] == (48, 64)


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
    assert examine_image(path)[0] == (64, 48)
    assert read_image(path).shape == (64, 48, 3)


def test_bytes_after_the_end_of_a_jpeg_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(noise(".jpg") + b"trailing bytes")
    assert examine_image(path)[0] == (48, 64)


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
        examine_image(path)
    assert_says(caught.value, reason)
    assert path.read_bytes() == content


def test_missing_image(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_image(tmp_path / "a.jpg")
    assert_says(caught.value, "a.jpg", "No such file")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", ["u2", "u4", "i2", "i4", "f4", "f8"])
def test_tiff_of_any_number_type_keeps_its_values(dtype: str, channels: int, order: str) -> None:
    pixels = ramp(dtype, channels)
    expected = np.stack([pixels] * 3, -1) if channels == 1 else pixels[..., :3]
    found = decode(tiff(pixels, order=order))
    assert found.dtype == pixels.dtype
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_of_16_bits_keeps_its_values_and_drops_alpha(channels: int) -> None:
    pixels = ramp("u2", channels) * 100
    expected = np.stack([pixels.reshape(3, 4, -1)[..., 0]] * 3, -1) if channels < 3 else pixels[..., :3]
    assert np.array_equal(decode(png(pixels)), expected)


@pytest.mark.parametrize("form", ["png", "tiff", "grey tiff"])
def test_deep_images_are_turned_upright(form: str) -> None:
    pixels = ramp("f4", 1) if form == "grey tiff" else ramp("u2")
    turned = np.rot90(np.stack([pixels] * 3, -1) if form == "grey tiff" else pixels, -1)
    assert np.array_equal(decode(png(pixels, TURNED) if form == "png" else tiff(pixels, 6)), turned)


@pytest.mark.parametrize("form", ["grey and alpha TIFF", "float16 TIFF"])
def test_depth_that_opencv_does_not_keep_is_refused(form: str) -> None:
    pixels = ramp("u2", 2) if form == "grey and alpha TIFF" else ramp("f2")
    with pytest.raises(DataError) as caught:
        decode(tiff(pixels))
    assert_says(caught.value, "values of 16 bits")


def test_8_bit_files_are_read_as_ever(tmp_path: Path) -> None:
    for suffix in (".jpg", ".png", ".bmp", ".tif", ".webp", ".jp2", ".ppm"):
        content = noise(suffix)
        path = tmp_path / f"a{suffix}"
        path.write_bytes(content)
        expected = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
        assert np.array_equal(read_image(path, (0, 4095)), expected), suffix
        assert examine_image(path) == ((48, 64), None)


def test_deep_files_of_other_formats(tmp_path: Path) -> None:
    pixels = ramp("u2") * 10
    (tmp_path / "a.ppm").write_bytes(b"P6\n4 3\n1023\n" + pixels.astype(">u2").tobytes())
    assert np.array_equal(decode((tmp_path / "a.ppm").read_bytes()), pixels)
    assert examine_image(tmp_path / "a.ppm")[1] == (str(tmp_path / "a.ppm"), "uint16", 0, 350)


def test_read_image_scales_by_the_range(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(tiff(np.array([[0, 2048, 4095]], np.uint16)))
    assert read_image(tmp_path / "a.tif", (0, 4095))[0, :, 0].tolist() == [0, 128, 255]
    assert read_image(tmp_path / "a.tif")[0, :, 0].tolist() == [0, 8, 16]
    (tmp_path / "b.tif").write_bytes(tiff(ramp("f4")))
    with pytest.raises(DataError) as caught:
        read_image(tmp_path / "b.tif")
    assert_says(caught.value, "b.tif", "float32", "pixel_range")


@pytest.mark.parametrize("length", [5, 9, 20, 60, 130, 180])
def test_a_truncated_tiff_header_is_no_traceback(length: int) -> None:
    with pytest.raises(DataError):
        decode(tiff(ramp("u2"))[:length])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("bits", [10, 12, 14])
def test_packed_bits_of_a_tiff_keep_their_values(bits: int, channels: int) -> None:
    pixels = np.linspace(0, 2**bits - 1, 32 * channels).astype(np.uint16).reshape(4, 8, channels)
    found = decode(tiff(pixels[..., 0] if channels == 1 else pixels, bits=bits))
    assert np.array_equal(found, np.broadcast_to(pixels, (4, 8, 3)))


def test_deep_tiff_whose_0_is_white() -> None:
    pixels = np.array([[0, 10, 65535]], np.uint16)
    assert decode(tiff(pixels, white_is_zero=True))[0, :, 0].tolist() == [65535, 65525, 0]
    assert decode(tiff(pixels.astype(np.uint8), white_is_zero=True))[0, :, 0].tolist() == [255, 245, 0]
    with pytest.raises(DataError) as caught:
        decode(tiff(ramp("f4", 1), white_is_zero=True))
    assert_says(caught.value, "floating-point", "white")
