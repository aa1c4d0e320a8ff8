"""Run lengths: by hand, against pycocotools, and damaged ones."""

import numpy as np
import pytest
from pycocotools import mask as mask_api

from tests.saying import assert_says
from utils.geometry.region import Region, dense_masks, no_region
from utils.geometry.rle import counts_region, cropped, decode_region, decompress, encode_region, read_counts

MASK = np.array([[0, 1, 1, 0], [0, 1, 0, 0], [0, 0, 1, 0]], bool)


def random_masks() -> list[np.ndarray]:
    """Masks of all sizes and densities, coarse and fine."""
    rng, masks = np.random.default_rng(0), []
    for number in range(60):
        height, width = rng.integers(1, 30, 2)
        coarse = rng.random((height // 4 + 1, width // 4 + 1)) > 0.5
        masks.append(
            rng.random((height, width)) > rng.random()
            if number % 2
            else coarse.repeat(4, 0).repeat(4, 1)[:height, :width]
        )
    return masks


def counts_of(region: Region, size_hw: tuple[int, int]) -> list[int]:
    return read_counts(encode_region(region, size_hw))[1].tolist()


def test_by_hand() -> None:
    # down the columns: 000 110 101 000
    assert counts_of(cropped(MASK), (3, 4)) == [3, 2, 1, 1, 1, 1, 3]
    assert np.array_equal(dense_masks([counts_region(np.array([3, 2, 1, 1, 1, 1, 3]), (3, 4))], (3, 4))[0], MASK)


def test_columns_that_touch_are_one_run() -> None:
    whole = Region(0, 1, np.ones((3, 2), bool))
    assert counts_of(whole, (3, 4)) == [3, 6, 3]
    assert counts_of(Region(0, 0, np.ones((3, 4), bool)), (3, 4)) == [0, 12]
    assert counts_of(no_region(), (3, 4)) == [12]


def test_text_by_hand() -> None:
    assert decompress("61X13").tolist() == [6, 1, 40, 4]  # 40 is 01000 and one more group 00001; 4 is kept as 4 - 1


def test_there_and_back() -> None:
    for mask in random_masks():
        encoded = encode_region(cropped(mask), mask.shape)
        assert encoded["size"] == list(mask.shape)
        assert np.array_equal(mask_api.decode(encoded), mask)
        plain = {"size": encoded["size"], "counts": read_counts(encoded)[1].tolist()}
        for rle in (encoded, plain, {**encoded, "counts": encoded["counts"].encode()}):
            assert np.array_equal(dense_masks([decode_region(rle)], mask.shape)[0], mask)


@pytest.mark.parametrize(
    ("rle", "facts"),
    [
        ({"counts": [0, 9], "size": [40, 60]}, ("9", "40 x 60")),
        ({"counts": [-1, 13], "size": [3, 4]}, ("12", "3 x 4")),
        ({"counts": [3, 9], "size": [3]}, ("size", "[3]")),
        ({"counts": [3, 9]}, ("size", "None")),
        ({"counts": [3, "9"], "size": [3, 4]}, ("counts", "list", "text")),
        ({"counts": "0", "size": [3, 4]}, ("0", "3 x 4")),
        ({"counts": "\x00", "size": [3, 4]}, ("'\\x00'",)),
        ({"counts": "P", "size": [3, 4]}, ("ends",)),
    ],
)
def test_damaged_masks(rle: dict[str, object], facts: tuple[str, ...]) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read_counts(rle)
    assert_says(caught.value, *facts)
