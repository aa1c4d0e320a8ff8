"""Images with more than 8 bits a value: their range, and how they become 8 bits."""

import numpy as np
import pytest

from data.images.pixels import (
    DeepImage,
    choose_pixel_range,
    deep_image,
    describe_scaling,
    parse_pixel_range,
    to_8_bit,
)
from tests.saying import assert_says
from utils.errors import DataError


def deep(highest: float, dtype: str = "uint16", lowest: float = 0.0, path: str = "a.png") -> DeepImage:
    return DeepImage(path, dtype, lowest, highest)


def test_8_bit_pixels_are_handed_on_as_they_are() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert to_8_bit(pixels, (0, 4095)) is pixels
    assert deep_image("a.png", pixels) is None


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_the_range_becomes_0_to_255(bits: int) -> None:
    top = 2**bits - 1
    scaled = to_8_bit(np.array([0, top // 2, top], np.uint16), (0, top))
    assert scaled.tolist()[::2] == [0, 255]
    assert scaled[1] in (127, 128)


def test_values_outside_the_range_are_clipped() -> None:
    assert to_8_bit(np.array([-2000, -1000, 0, 1000, 9000], np.int16), (-1000, 1000)).tolist() == [0, 0, 128, 255, 255]
    assert to_8_bit(np.array([-0.5, 0, 1, 7], np.float64), (0, 1)).tolist() == [0, 0, 255, 255]


def test_large_integers_keep_their_differences() -> None:
    low = 2**31
    assert to_8_bit(np.array([low, low + 51, low + 255], np.uint32), (low, low + 255)).tolist() == [0, 51, 255]


def test_uint16_without_a_range_takes_all_16_bits() -> None:
    assert to_8_bit(np.array([0, 257, 65535], np.uint16)).tolist() == [0, 1, 255]


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "uint32", "float32", "float64"])
def test_other_types_need_a_range(dtype: str) -> None:
    with pytest.raises(DataError) as caught:
        to_8_bit(np.array([0, 1], dtype))
    assert_says(caught.value, dtype, "0 to 1", "pixel_range", "--pixel-range")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    pixels = np.array([0.5, value], np.float32)
    for read in (lambda: to_8_bit(pixels, (0, 1)), lambda: deep_image("a.tif", pixels)):
        with pytest.raises(DataError) as caught:
            read()
        assert_says(caught.value, "1 of 2 values", "NaN")


@pytest.mark.parametrize(
    ("highest", "top"),
    [(0, 255), (255, 255), (256, 1023), (1023, 1023), (1024, 4095), (4080, 4095), (4096, 16383), (16384, 65535)],
)
def test_the_highest_value_of_all_images_decides(highest: int, top: int) -> None:
    assert choose_pixel_range([deep(5), deep(highest), deep(0)], "d.yaml: train") == (0, max(top, 255))


def test_without_deep_images_there_is_no_range() -> None:
    assert choose_pixel_range([], "d.yaml: train") is None


def test_types_without_a_default_name_the_key() -> None:
    images = [deep(4080), deep(3.5, "float32", -1.0, "b.tif"), deep(900, "int16", -1024, "c.tif")]
    with pytest.raises(DataError) as caught:
        choose_pixel_range(images, "d.yaml: train")
    assert_says(caught.value, "d.yaml", "train", "2 images", "float32", "int16", "b.tif", "-1024 to 900", "pixel_range")


@pytest.mark.parametrize("value", [[0, 4095], (0, 4095.0), ["0", "4.095e3"]])
def test_ranges_as_yaml_has_them(value: object) -> None:
    assert parse_pixel_range(value, "d.yaml: pixel_range") == (0, 4095)


@pytest.mark.parametrize(
    "value", [12, "12", [], [1], [0, 1, 2], [5, 5], [9, 1], [0, True], [0, None], [0, float("inf")], {"low": 0}]
)
def test_anything_else_is_no_range(value: object) -> None:
    with pytest.raises(DataError) as caught:
        parse_pixel_range(value, "d.yaml: pixel_range")
    assert_says(caught.value, "d.yaml: pixel_range", value, "4095")


def test_the_line_counts_deep_and_clipped_images() -> None:
    images = [deep(4080), deep(9000, path="x/b.png")]
    line = describe_scaling(images, 7, (0, 4095), "as in training")
    assert_says(line, "2 of 7 images", "uint16", "0 to 9000", "0 to 4095", "as in training", "1 of them", "b.png")
    assert "clipped" not in describe_scaling(images[:1], 7, (0, 4095), "as in training")


def test_the_line_counts_images_of_which_nothing_is_left() -> None:
    images = [deep(4080), deep(0.9, "float32", path="b.tif"), deep(0, path="black.png"), deep(9000, lowest=8000)]
    line = describe_scaling(images, 4, (0, 4095), "as in training")
    assert_says(line, "2 of them", "shade", "b.tif, 0 to 0.9")
    assert "shade" not in describe_scaling([images[0], images[2]], 4, (0, 4095), "as in training")
