"""What a predictor takes as an image, and what it says about anything else."""

import io
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from data.images.reading import ImageReader, read_image
from tests.deep_images import png, tiff
from tests.saying import assert_says
from utils.errors import DataError
from utils.inference.inputs import read_inputs, upright

pillow = pytest.importorskip("PIL.Image")
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
GREY = np.repeat(PIXELS[..., :1], 3, axis=2)


def read(image: object, pixel_range: tuple[float, float] | None = None) -> NDArray[np.uint8]:
    """Return the only image as the predictor gets it."""
    ((pixels, _),) = read_inputs(image, ImageReader(pixel_range))
    assert pixels.dtype == np.uint8
    return pixels


def refusal(image: object) -> DataError:
    """Return the error for something that is no image."""
    with pytest.raises(DataError) as caught:
        read(image)
    return caught.value


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A PNG file whose path has a space, a percent sign, a hash and a letter outside ASCII."""
    path = tmp_path / "строка 5%#1.png"
    path.write_bytes(png(PIXELS))
    return path


@pytest.mark.parametrize(
    "image",
    [PIXELS, np.asfortranarray(PIXELS), PIXELS[::-1][::-1], np.dstack((PIXELS, PIXELS[..., :1]))],
    ids=["as it is", "columns first", "mirrored view", "with alpha"],
)
def test_colour_arrays(image: NDArray) -> None:
    assert np.array_equal(read(image), PIXELS)


def test_grey_and_bool_arrays() -> None:
    assert np.array_equal(read(PIXELS[..., 0]), GREY)
    assert np.array_equal(read(PIXELS[..., :1]), GREY)
    assert np.array_equal(read(PIXELS[..., 0] > 99), np.where(GREY > 99, 255, 0))


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "i4", "f2", "f4", ">f8"])
def test_arrays_of_other_types_are_scaled_by_the_range(dtype: str) -> None:
    assert np.array_equal(read(PIXELS.astype(dtype), (0, 255)), PIXELS)


def test_whatever_gives_an_array_is_an_image() -> None:
    class Wrapped:
        def __array__(self, dtype: object = None, copy: object = None) -> NDArray:
            return PIXELS

    assert np.array_equal(read(Wrapped()), PIXELS)
    assert np.array_equal(read([Wrapped()]), PIXELS)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int16", "int32", "int64", "uint32"])
def test_types_without_a_range_are_refused(dtype: str) -> None:
    assert_says(refusal((PIXELS // 128).astype(dtype)), "image0", dtype, "0 to 1", "uint8", "pixel_range")


@pytest.mark.parametrize(
    ("array", "facts"),
    [
        (np.zeros((0, 6, 3), np.uint8), ("(0, 6, 3)", "(height, width)")),
        (np.zeros((6, 8, 2), np.uint8), ("(6, 8, 2)", "RGB")),
        (np.zeros((6, 8, 5), np.uint8), ("(6, 8, 5)", "RGB")),
        (np.zeros((3, 6, 8), np.uint8), ("(3, 6, 8)", "transpose(1, 2, 0)")),
        (np.zeros((2, 6, 8, 3), np.uint8), ("(2, 6, 8, 3)", "list(array)")),
        (np.zeros(9, np.uint8), ("(9,)", "(height, width)")),
        (np.array(7), ("()", "(height, width)")),
        (np.array([PIXELS, None], object), ("object", "list")),
        (np.array(["a.jpg"]), ("<U5", "list")),
        (np.zeros((6, 8), complex), ("complex128",)),
        (np.full((6, 8), np.nan, np.float32), ("float32", "nan")),
    ],
)
def test_other_arrays_are_refused(array: NDArray, facts: tuple[object, ...]) -> None:
    assert_says(refusal(array), "image0", *facts)


@pytest.mark.parametrize(
    ("tensor", "facts"),
    [
        (torch.zeros(3, 6, 8), ("(3, 6, 8)", "float32", "tensor.permute(1, 2, 0).mul(255).byte().cpu().numpy()")),
        (torch.zeros(6, 8, 3, dtype=torch.uint8), ("(6, 8, 3)", "uint8", "tensor.cpu().numpy()")),
        (torch.zeros(1, 3, 6, 8), ("(1, 3, 6, 8)", "tensor[0].permute(1, 2, 0).mul(255).byte().cpu().numpy()")),
    ],
)
def test_tensors_are_refused_with_what_to_give(tensor: torch.Tensor, facts: tuple[object, ...]) -> None:
    assert_says(refusal(tensor), *facts)
    assert_says(refusal([tensor]), "image0", *facts)


def test_paths_and_file_addresses(file: Path) -> None:
    from_windows = file.as_uri().replace("file:///", "FILE://localhost/")
    for image in (file, str(file), file.as_uri(), from_windows, file.as_uri().replace("file:///", "file:/")):
        ((pixels, path),) = read_inputs(image, ImageReader())
        assert np.array_equal(pixels, PIXELS)
        assert path == file


def test_content_and_open_files(file: Path, tmp_path: Path) -> None:
    content = file.read_bytes()
    for image in (content, bytearray(content), memoryview(content), io.BytesIO(content)):
        assert np.array_equal(read(image), PIXELS)
    with file.open("rb") as opened:
        ((pixels, path),) = read_inputs([opened], ImageReader())
    assert np.array_equal(pixels, PIXELS)
    assert path == file
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", content)
    with zipfile.ZipFile(tmp_path / "a.zip") as archive, archive.open("a.png") as member:
        assert np.array_equal(read(member), PIXELS)


def test_open_files_that_hold_no_image(file: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    with (tmp_path / "a.txt").open() as opened:
        assert_says(refusal(opened), tmp_path / "a.txt", "rb")
    with file.open("rb") as opened:
        opened.read()
        assert_says(refusal(opened), file, "seek(0)")
    assert_says(refusal(opened), file, "closed")
    assert_says(refusal(io.BytesIO(b"GIF")), "image0", "decoded")
    assert_says(refusal(cv2.VideoCapture()), "image0", "VideoCapture", "tuple")


@pytest.mark.parametrize("address", ["http://a.b/c.jpg", "HTTPS://a.b/c.jpg", "s3://a/b.png", "data:image/png;base64,"])
def test_network_addresses_are_refused(address: str) -> None:
    assert_says(refusal(address), address, "download")
    assert_says(refusal("file://server/share/a.jpg"), "file://server/share/a.jpg", "download")


def test_folders_patterns_videos_and_names_that_no_file_has(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"video")
    assert_says(refusal(tmp_path), tmp_path, "folder", "glob", "detect.py --source")
    assert_says(refusal(tmp_path / "*.jpg"), tmp_path / "*.jpg", "glob.glob")
    assert_says(refusal(tmp_path / "a.mp4"), tmp_path / "a.mp4", "detect.py --source")
    assert_says(refusal(tmp_path / "none.jpg"), tmp_path / "none.jpg", "No such file")
    assert_says(refusal("a\0b.jpg"), "null")
    assert_says(refusal("x" * 5000), "too long")


@pytest.mark.parametrize("image", [None, 0, 1.5, {"a": PIXELS}, object(), [None], [[PIXELS]], [PIXELS.tolist()], [{}]])
def test_anything_else_is_answered_by_what_is_taken(image: object) -> None:
    assert_says(refusal(image), "path", "bytes", "(H, W, 3)", "Pillow", "list")


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_grey_pillow_images_of_every_mode(mode: str) -> None:
    found = read(pillow.fromarray(GREY).convert(mode))
    assert np.abs(found.astype(int) - GREY).max() <= 1


def test_black_and_white_pillow_images() -> None:
    image = pillow.fromarray(PIXELS[..., 0] > 127)
    assert image.mode == "1"
    assert np.array_equal(read(image), np.where(GREY > 127, 255, 0))


def test_pillow_colours_stay() -> None:
    for mode in ("RGB", "RGBA", "CMYK"):
        assert np.array_equal(read([pillow.fromarray(PIXELS).convert(mode)]), PIXELS)
    palette = pillow.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([200, 100, 50, 1, 2, 3])
    assert read(palette).tolist() == [[[200, 100, 50], [1, 2, 3]]]


def test_deep_pillow_images() -> None:
    values = np.array([[0, 2048, 4095]], np.uint16)
    assert read(pillow.fromarray(values), (0, 4095))[0, :, 0].tolist() == [0, 128, 255]
    assert read(pillow.fromarray(values.astype(np.int32)))[0, :, 0].tolist() == [
        0,
        8,
        16,
    ]  # "I", 16 bits in older Pillows
    assert read(pillow.fromarray(values.astype(np.float32)), (0, 4095))[0, :, 0].tolist() == [0, 128, 255]
    assert_says(refusal(pillow.fromarray(values.astype(np.float32))), "float32", "pixel_range")
    assert_says(refusal(pillow.fromarray(values.astype(np.int32) - 9)), "int32", "-9 to 4086", "pixel_range")
    assert_says(refusal(pillow.open(io.BytesIO(png(np.zeros((2, 3, 3), np.uint16))))), "16 bits", "path")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pillow_images_are_turned_upright_as_files_are(tmp_path: Path, orientation: int) -> None:
    exif = pillow.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.png"
    pillow.fromarray(PIXELS).save(path, exif=exif)
    expected = read_image(path)
    ((pixels, named),) = read_inputs(pillow.open(path), ImageReader())
    assert np.array_equal(pixels, expected)
    assert named == path
    assert np.array_equal(upright(PIXELS, orientation), expected)
    (tmp_path / "a.tif").write_bytes(tiff(PIXELS, orientation))
    assert np.array_equal(read(pillow.open(tmp_path / "a.tif")), expected)


def test_broken_pillow_images(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = tmp_path / "a.png"
    path.write_bytes(png(noise)[:3000])
    assert_says(refusal(pillow.open(path)), path, "RGB")
    assert_says(refusal(pillow.new("La", (4, 3))), "La", "RGB")
    assert_says(refusal(pillow.new("RGB", (0, 3))), "image0", "(3, 0, 3)")
    closed = pillow.open(io.BytesIO(png(PIXELS)))
    closed.close()
    assert_says(refusal(closed), "image0")


def test_several_images_keep_their_places(file: Path) -> None:
    mixed = [PIXELS, file, file.read_bytes(), pillow.fromarray(PIXELS), io.BytesIO(file.read_bytes())]
    found = list(read_inputs(mixed, ImageReader()))
    assert [str(path) for _, path in found] == ["image0", str(file), "image2", "image3", "image4"]
    assert all(np.array_equal(pixels, PIXELS) for pixels, _ in found)
    assert list(read_inputs([], ImageReader())) == []
    with pytest.raises(DataError) as caught:
        list(read_inputs([PIXELS, PIXELS.astype(float)], ImageReader()))
    assert_says(caught.value, "image1", "float64")
