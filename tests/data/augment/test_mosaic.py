import numpy as np
import pytest

from data.augment.mosaic import copy_paste, covered_share, mixup, mosaic
from data.augment.sample import Sample

SQUARE = np.array([[10, 10], [30, 10], [30, 30], [10, 30]], np.float32)


def tile(value: int, boxes: list[list[float]], size_hw: tuple[int, int] = (100, 80), outline: bool = False) -> Sample:
    boxes_xyxy = np.array(boxes, np.float32).reshape(-1, 4)
    polygons = [[box[[0, 1, 2, 1, 2, 3, 0, 3]].reshape(4, 2)] if outline else [] for box in boxes_xyxy]
    return Sample(np.full((*size_hw, 3), value, np.uint8), np.full(len(boxes), value, np.int64), boxes_xyxy, polygons)


@pytest.mark.parametrize("outline", [False, True])
def test_mosaic_puts_boxes_where_their_pixels_are(outline: bool) -> None:
    tiles = [tile(value, [[0, 0, 80, 100]], outline=outline) for value in (1, 2, 3, 4)]
    whole = mosaic(tiles, 100, np.random.default_rng(5))
    assert whole.image_rgb.shape == (200, 200, 3)
    assert whole.classes.tolist() == [1, 2, 3, 4]
    for value, box in zip(whole.classes, whole.boxes_xyxy, strict=True):
        rows, columns = np.nonzero(whole.image_rgb[..., 0] == value)
        assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_mosaic_drops_what_the_canvas_cuts_off_and_may_end_up_empty() -> None:
    class Centre:
        def uniform(self, low: float, high: float, count: int) -> np.ndarray:
            return np.full(count, low)

    tiles = [tile(value, [[0, 0, 5, 5]]) for value in (1, 1, 1, 1)]
    tiles[1:] = [tile(2, []) for _ in range(3)]
    whole = mosaic(tiles, 100, Centre())  # the first tile's top left lies at (-30, -50)
    assert whole.classes.shape == (0,)
    assert whole.boxes_xyxy.shape == (0, 4)
    assert whole.polygons == []


def test_covered_share_is_over_the_area_of_the_covered() -> None:
    shares = covered_share(
        np.array([0, 0, 10, 10], np.float32), np.array([[5, 0, 15, 10], [0, 0, 100, 10], [20, 20, 30, 30]], np.float32)
    )
    assert shares == pytest.approx([0.5, 0.1, 0.0])


def test_copy_paste_mirrors_an_outlined_object() -> None:
    sample = tile(0, [[10, 10, 30, 30]], outline=True)
    sample.image_rgb[10:30, 10:20] = 200
    pasted = copy_paste(sample, 1.0, np.random.default_rng(0))
    assert pasted.boxes_xyxy.tolist() == [[10, 10, 30, 30], [50, 10, 70, 30]]
    assert pasted.classes.tolist() == [0, 0]
    assert np.argwhere(pasted.image_rgb[..., 0] == 200)[:, 1].max() == 69
    assert (pasted.image_rgb[10:30, 60:70] == 200).all()
    assert (pasted.image_rgb[10:30, 40:60] == 0).all()
    assert len(pasted.polygons) == 2


def test_copy_paste_does_nothing_with_boxes_only() -> None:
    sample = tile(0, [[10, 10, 30, 30], [40, 40, 50, 50]])
    assert copy_paste(sample, 1.0, np.random.default_rng(0)) is sample


def test_copy_paste_is_blocked_by_objects_known_by_their_box_only() -> None:
    sample = tile(0, [[10, 10, 30, 30], [50, 10, 70, 30]])
    sample.polygons[0] = [SQUARE]
    assert copy_paste(sample, 1.0, np.random.default_rng(0)) is sample
    sample.boxes_xyxy[1] += (0, 30, 0, 30)
    assert len(copy_paste(sample, 1.0, np.random.default_rng(0)).classes) == 3


def test_mixup_joins_the_objects_of_both() -> None:
    blended = mixup(tile(100, [[0, 0, 5, 5]]), tile(200, [[1, 1, 6, 6], [2, 2, 7, 7]]), np.random.default_rng(0))
    assert blended.classes.tolist() == [100, 200, 200]
    assert 120 < blended.image_rgb[0, 0, 0] < 180
