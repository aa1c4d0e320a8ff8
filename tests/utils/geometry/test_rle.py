"""Run lengths: by hand, against pycocotools, and damaged ones."""

import numpy as np
import pytest

from utils.geometry.region import Region, dense_masks, no_region
from utils.geometry.rle import (
    compress,
    counts_region,
    cropped,
    decode_region,
    decompress,
    encode_region,
    read_counts,
    region_counts,
)

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


def test_by_hand() -> None:
    # down the columns: 000 110 101 000
    assert region_counts(cropped(MASK), (3, 4)).tolist() == [3, 2, 1, 1, 1, 1, 3]
    assert np.array_equal(dense_masks([counts_region(np.array([3, 2, 1, 1, 1, 1, 3]), (3, 4))], (3, 4))[0], MASK)


def test_columns_that_touch_are_one_run() -> None:
    whole = Region(0, 1, np.ones((3, 2), bool))
    assert region_counts(whole, (3, 4)).tolist() == [3, 6, 3]
    assert region_counts(Region(0, 0, np.ones((3, 4), bool)), (3, 4)).tolist() == [0, 12]
    assert region_counts(no_region(), (3, 4)).tolist() == [12]


def test_text_by_hand() -> None:
    assert compress(np.array([6, 1, 40, 4])) == "61X13"  # 40 is 01000 and one more group 00001; 4 is kept as 4 - 1
    assert decompress("61X13").tolist() == [6, 1, 40, 4]


def test_equals_pycocotools() -> None:
    mask_module = pytest.importorskip("pycocotools.mask")
    for mask in random_masks():
        encoded = encode_region(cropped(mask), mask.shape)
        assert encoded["counts"] == mask_module.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
        assert encoded["size"] == list(mask.shape)


def test_there_and_back() -> None:
    for mask in random_masks():
        encoded = encode_region(cropped(mask), mask.shape)
        plain = {"size": encoded["size"], "counts": region_counts(cropped(mask), mask.shape).tolist()}
        for rle in (encoded, plain, {**encoded, "counts": encoded["counts"].encode()}):
            assert np.array_equal(dense_masks([decode_region(rle)], mask.shape)[0], mask)


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        ({"counts": [0, 9], "size": [40, 60]}, "the runs cover 9 pixels, expected 40 x 60"),
        ({"counts": [-1, 13], "size": [3, 4]}, "the runs cover 12"),
        ({"counts": [3, 9], "size": [3]}, r"size is \[3\]"),
        ({"counts": [3, 9]}, "size is None"),
        ({"counts": [3, "9"], "size": [3, 4]}, "neither a list of whole numbers nor a text"),
        ({"counts": "\x00", "size": [3, 4]}, "character '.x00'"),
        ({"counts": "P", "size": [3, 4]}, "ends within a number"),
    ],
)
def test_damaged_masks(rle: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_counts(rle)
