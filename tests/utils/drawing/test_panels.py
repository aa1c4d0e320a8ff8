"""Maps over images, colours, and the layout of contact sheets."""

import numpy as np
import pytest

from data.augment.transforms import letterbox
from utils.drawing.draw import text_width
from utils.drawing.panels import (
    GAP,
    PANEL_WIDTH,
    TABLES,
    BarPanel,
    ImagePanel,
    MapPanel,
    _rows,
    contact_sheet,
    is_flat,
    laid_over,
    number,
    shown_size,
    wrapped,
)
from utils.geometry.placement import Placement

GREY = np.full((40, 80, 3), 128, np.uint8)


def hot(cells_hw: tuple[int, int], row: int, column: int) -> np.ndarray:
    values = np.zeros(cells_hw, np.float32)
    values[row, column] = 1
    return values


def test_a_map_lies_where_the_image_was_in_the_network() -> None:
    """An image of 100 x 200 fills rows 7 to 57 of a 64 x 128 input; cell (3, 10) of 8 x 8 pixels is at y 24 to 32."""
    placement = Placement((100, 200), (0.5, 0.5), (14, 7))
    found = laid_over(hot((8, 16), 3, 10), placement, (64, 128), (100, 200))
    assert found.shape == (100, 200)
    assert np.unravel_index(found.argmax(), found.shape) in [(row, column) for row in (41, 42) for column in (139, 140)]
    centre_y, centre_x = (np.arange(n) + 0.5 for n in found.shape)
    assert (found.sum(1) @ centre_y) / found.sum() == pytest.approx((28 - 7) / 0.5)
    assert (found.sum(0) @ centre_x) / found.sum() == pytest.approx((84 - 14) / 0.5)


def test_a_letterboxed_image_comes_back() -> None:
    """With a cell for every pixel, the map is the network's input; laid over the original it must equal it."""
    ramp = np.add.outer(np.arange(60), np.arange(90) * 1.5).astype(np.uint8)
    boxed, placement = letterbox(np.repeat(ramp[:, :, None], 3, 2), (128, 128))
    found = laid_over(boxed[:, :, 0].astype(np.float32), placement, (128, 128), (60, 90))
    assert np.abs(found - ramp)[2:-2, 2:-2].max() <= 1.0


def test_a_constant_map_stays_constant_and_one_cell_fills_all() -> None:
    placement = Placement((30, 50), (1.28, 1.28), (0, 12))
    for cells in ((1, 1), (2, 3)):
        assert (laid_over(np.full(cells, 0.25, np.float32), placement, (64, 64), (30, 50)) == 0.25).all()


@pytest.mark.parametrize(
    ("original_hw", "expected"),
    [((480, 640), (240, 320)), ((640, 320), (480, 240)), ((50, 2000), (8, 320)), ((2000, 3), (480, 1))],
)
def test_shown_sizes_keep_the_aspect(original_hw: tuple[int, int], expected: tuple[int, int]) -> None:
    assert shown_size(original_hw) == expected


def test_heat_leaves_the_image_where_there_is_none() -> None:
    image = np.random.default_rng(0).integers(0, 255, (40, 80, 1), np.uint8).repeat(3, 2)
    panel = MapPanel(["x"], image, hot((40, 80), 7, 9), "heat")
    assert panel.ends() == (0, 1)
    drawn = panel.draw()[:40, :80]
    changed = (drawn != image).any(2)
    assert changed.sum() == 1
    assert changed[7, 9]


def test_ends_of_the_colours() -> None:
    values = np.linspace(-3, 1, 3200, dtype=np.float32).reshape(40, 80)
    assert MapPanel([], GREY, values, "signed").ends() == (-3, 3)
    assert MapPanel([], GREY, values, "level").ends() == (-3, 1)
    assert MapPanel([], GREY, values, "level", (-8, 8)).ends() == (-8, 8)
    assert TABLES["signed"][0].tolist() == [15, 82, 186]
    assert TABLES["signed"][255].tolist() == [190, 20, 40]


def test_rounding_noise_is_no_map() -> None:
    values = np.full((40, 80), 0.5, np.float32)
    values[3, 4] = np.nextafter(np.float32(0.5), np.float32(1))
    assert (MapPanel([], GREY, values, "level").draw()[:40, :80] == 128).all()
    assert is_flat(0, 0)
    assert not is_flat(0.5, 0.501)


def test_bars_are_as_long_as_their_values() -> None:
    drawn = BarPanel([], np.array([0.25, 0.5, 1.0], np.float32), "expert {}").draw()
    blue = (drawn == (49, 104, 142)).all(2)
    lengths = [blue[row].sum() for row in (11, 34, 57)]
    assert lengths[1] == pytest.approx(2 * lengths[0], abs=2)
    assert lengths[2] == pytest.approx(4 * lengths[0], abs=4)


def test_negative_bars_start_at_zero() -> None:
    drawn = BarPanel([], np.array([-1.0, 1.0], np.float32)).draw()
    blue = [np.flatnonzero((drawn[row] == (49, 104, 142)).all(1)) for row in (11, 34)]
    assert blue[0].max() == blue[1].min()


def test_many_numbers_are_a_rising_profile() -> None:
    values = np.linspace(1, 0, 64, dtype=np.float32)
    drawn = BarPanel([], values).draw()
    heights = (drawn[:90] == (49, 104, 142)).all(2).sum(0)
    assert (np.diff(heights) >= 0).all()
    assert (heights[0], heights[-1]) == (1, 90)


def test_a_group_stays_in_a_row() -> None:
    groups = [[ImagePanel([], GREY)] * count for count in (2, 3, 1, 6, 0)]
    assert [len(row) for row in _rows(groups)] == [2, 4, 4, 2]


def test_a_sheet_holds_everything() -> None:
    panels = [
        ImagePanel(["a"], GREY, [("3 cells", (255, 0, 0))]),
        MapPanel(["b"], GREY, hot((40, 80), 1, 1), "level"),
    ]
    sheet = contact_sheet(["heading"], [panels, [BarPanel(["c"], np.array([0.5], np.float32))]])
    assert sheet.dtype == np.uint8
    assert sheet.shape[1] == 2 * PANEL_WIDTH + 3 * GAP
    wide = contact_sheet(["heading"], [panels * 2, [BarPanel(["c"], np.array([0.5], np.float32))]])
    assert wide.shape[1] == 4 * PANEL_WIDTH + 5 * GAP


def test_texts() -> None:
    lines = wrapped("layer 23.lead.box.0.1 DynamicConv expert weights of a very long name", 200)
    assert len(lines) > 1
    assert all(text_width(line, 14) <= 200 for line in lines)
    assert [number(value) for value in (0.0, 0.12345, 12345.0, 1e-9)] == ["0", "0.123", "1.23e+04", "1e-09"]
