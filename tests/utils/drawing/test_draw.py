"""Boxes, labels and masks on images."""

import cv2
import numpy as np
import pytest

from utils.drawing import draw
from utils.geometry.region import Region, no_region

needs_font = pytest.mark.skipif(not draw.HAS_FONT_FACE, reason="opencv-python 4 carries no such font")


@pytest.fixture(autouse=True)
def forget_names() -> None:
    """Let every test be the first to ask for its names."""
    draw._drawable.cache_clear()


@needs_font
@pytest.mark.parametrize("name", ["person", "红细胞", "歩行者ひらがな", "보행자", "Пешеход", "Größe čž", "Tiếng Việt"])
def test_names_of_many_scripts_are_drawn_as_they_are(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert draw.drawable_names([name]) == (name,)
    assert capsys.readouterr().err == ""


@needs_font
def test_every_letter_has_its_own_shape() -> None:
    shapes = {draw._probe(letter) for letter in "红细胞血小板보행자ПешеходёЁ"}
    assert len(shapes) == len(set("红细胞血小板보행자ПешеходёЁ"))


@needs_font
def test_decomposed_letters_are_composed() -> None:
    assert draw.drawable_names(["e\u0301te\u0301"]) == ("\u00e9t\u00e9",)


@needs_font
@pytest.mark.parametrize("name", ["ไทย", "🚗", "שלום", "مرحبا", "two\nlines", "  ", ""])
def test_names_that_cannot_be_drawn_become_their_number(name: str) -> None:
    assert draw.drawable_names(["a", "b", name]) == ("a", "b", "2")


@needs_font
def test_it_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(3):
        draw.drawable_names(["ok", "ไทย", "🚗"])
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "1 (ไทย), 2 (🚗)" in message


def test_opencv_4_draws_ascii_only(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(draw, "HAS_FONT_FACE", False)
    assert draw.drawable_names(["person", "红细胞"]) == ("person", "1")
    assert "opencv-python >= 5" in capsys.readouterr().err
    image = np.zeros((80, 160, 3), np.uint8)
    drawn = draw.draw_boxes(image, np.array([[20, 40, 60, 70]]), np.array([1]), ["person", "红细胞"], np.array([0.5]))
    assert drawn.any()


def test_text_contrasts_with_every_class_colour() -> None:
    def luminance(colour: tuple[int, int, int]) -> float:
        linear = [c / 255 / 12.92 if c / 255 <= 0.03928 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for number in range(200):
        back = draw.class_colour(number)
        low, high = sorted((luminance(back), luminance(draw.text_colour(back))))
        assert (high + 0.05) / (low + 0.05) >= 4.5  # WCAG AA


def test_first_colours_differ() -> None:
    colours = [np.array(draw.class_colour(number), float) for number in range(20)]
    distances = [np.abs(a - b).sum() for i, a in enumerate(colours) for b in colours[:i]]
    assert min(distances) > 40


def test_image_is_copied_and_box_drawn_where_it_is() -> None:
    image = np.zeros((100, 200, 3), np.uint8)
    drawn = draw.draw_boxes(
        image, np.array([[50.2, 40.4, 149.8, 79.6]]), np.array([0]), ["a"], line_width=1, hide_labels=True
    )
    assert not image.any()
    ys, xs = np.nonzero(drawn.any(2))
    assert (xs.min(), ys.min(), xs.max(), ys.max()) == (50, 40, 150, 80)
    assert tuple(drawn[60, 50]) == draw.class_colour(0)
    assert not drawn[60, 100].any()


def test_no_objects() -> None:
    image = np.full((10, 12, 3), 7, np.uint8)
    assert np.array_equal(draw.draw_boxes(image, np.zeros((0, 4)), np.zeros(0), ["a"], np.zeros(0)), image)


@pytest.mark.parametrize("box", [[0, 0, 10, 10], [190, 90, 200, 100], [0, 0, 200, 100], [-50, -50, 400, 300]])
def test_label_stays_inside_the_image(box: list[int]) -> None:
    size_wh = (80, 20)
    left, top = draw._label_corner(
        np.array(box).clip(0, (199, 99, 199, 99)), size_wh, (200, 100), np.zeros((0, 4), np.int64)
    )
    assert left >= 0
    assert top >= 0
    assert left + size_wh[0] <= 200
    assert top + size_wh[1] <= 100


def test_label_avoids_the_one_above() -> None:
    box = np.array([20, 50, 120, 90])
    first = draw._label_corner(box, (60, 15), (200, 120), np.zeros((0, 4), np.int64))
    assert first == (20, 35)
    placed = np.array([[20, 35, 80, 50]])
    assert draw._label_corner(box, (60, 15), (200, 120), placed) == (20, 50)


def test_lines_and_letters_grow_with_the_image() -> None:
    assert draw.line_width_for((120, 160)) == 1
    assert draw.line_width_for((3000, 4000)) >= 8
    assert draw.letter_size_for((120, 160), 1) == 11
    assert draw.letter_size_for((3000, 4000), 10) >= 50


def test_masks_tint_their_pixels_only_and_are_outlined() -> None:
    image, colour = np.full((20, 30, 3), 100, np.uint8), np.array(draw.class_colour(0))
    regions = [Region(5, 6, np.ones((5, 4), bool))]
    drawn = draw.draw_boxes(
        image, np.array([[0, 0, 29, 19]]), np.array([0]), ["a"], regions=regions, line_width=1, hide_labels=True
    )
    changed = (drawn[1:-1, 1:-1] != 100).any(2)
    assert np.argwhere(changed).min(0).tolist() == [4, 5]
    assert changed.sum() == 20
    assert np.array_equal(drawn[7, 7], np.round(100 * (1 - draw.MASK_OPACITY) + colour * draw.MASK_OPACITY))
    assert np.array_equal(drawn[5, 6], colour)
    assert np.array_equal(drawn[9, 8], colour)
    assert (image == 100).all()


def test_a_region_without_pixels_and_one_at_the_border() -> None:
    image = np.full((20, 30, 3), 100, np.uint8)
    regions = [no_region(), Region(15, 25, np.ones((5, 5), bool))]
    drawn = draw.draw_boxes(
        image, np.zeros((2, 4)), np.zeros(2, np.int64), ["a"], np.ones(2), regions, 1, hide_labels=True
    )
    assert (drawn[15:, 25:] != 100).any(2).all()


def test_labels() -> None:
    assert draw.label_texts(np.array([1, 0]), np.array([0.876, 1.0]), ["a", "b"]) == ["b 0.88", "a 1.00"]
    assert draw.label_texts(np.array([1]), np.array([0.876]), ["a", "b"], hide_conf=True) == ["b"]
    assert draw.label_texts(np.array([7]), None, ["a", "b"]) == ["7"]


def test_write_image_keeps_rgb_and_mends_the_suffix(tmp_path) -> None:
    image = np.zeros((4, 5, 3), np.uint8)
    image[..., 0] = 200
    path = draw.write_image(tmp_path / "图 1.PNG", image)
    assert path.name == "图 1.PNG"
    assert cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)[0, 0].tolist() == [0, 0, 200]
    assert draw.write_image(tmp_path / "raw.dng", image).name == "raw.jpg"
