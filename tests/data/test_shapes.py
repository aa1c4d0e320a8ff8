"""The built-in data set: drawn whole, the same every time, with labels that fit the images."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from data.config import load_data_config
from data.figures import FIGURES, random_figure
from data.images.reading import read_image
from data.labels.annotation import outline_area
from data.scan import load_annotations
from data.shapes import ShapesSettings, draw_if_needed, draw_sample, label_row, visible_outlines
from tests.saying import assert_says
from utils.errors import DataError
from utils.geometry.region import dense_masks, polygon_region

SETTINGS = {"train": 6, "val": 3, "image_size": [64, 96], "figure_size": [10, 50]}
YAML = Path("set.yaml")
NAMES = list(FIGURES)


def digest(folder: Path) -> dict[str, str]:
    """Return a digest of every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_same_bytes_every_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert draw_if_needed(tmp_path / name, SETTINGS, NAMES, YAML)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert len(digest(tmp_path / "a")) == 2 * 9 + 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_drawn_once_and_again_when_the_settings_change(tmp_path: Path) -> None:
    draw_if_needed(tmp_path / "a", SETTINGS, NAMES, YAML)
    before = digest(tmp_path / "a")
    assert not draw_if_needed(tmp_path / "a", SETTINGS, NAMES, YAML)
    assert draw_if_needed(tmp_path / "a", {**SETTINGS, "seed": 1, "val": 2}, NAMES, YAML)
    after = digest(tmp_path / "a")
    assert len(after) == len(before) - 2
    assert after["images/train/train_0000.jpg"] != before["images/train/train_0000.jpg"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_longer_set_begins_with_the_shorter_one(tmp_path: Path) -> None:
    draw_if_needed(tmp_path / "a", SETTINGS, NAMES, YAML)
    draw_if_needed(tmp_path / "b", {**SETTINGS, "train": 7}, NAMES, YAML)
    assert {
        key: value for key, value in digest(tmp_path / "b").items() if "0006" not in key and key != "shapes.json"
    }.items() <= digest(tmp_path / "a").items()


def test_a_folder_of_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_text("mine")
    with pytest.raises(DataError) as caught:
        draw_if_needed(tmp_path, SETTINGS, NAMES, YAML)
    assert_says(caught.value, tmp_path, YAML)
    assert (tmp_path / "photo.jpg").read_text() == "mine"


@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        ({"sead": 1}, ("sead", "seed")),
        ({"train": -1}, ("train", "-1", "400")),
        ({"train": True}, ("train", "True")),
        ({"figures": [3, 2]}, ("figures", "[3, 2]", "two whole numbers")),
        ({"max_hidden": 2}, ("max_hidden", 2, "0 to 1")),
        ({"image_size": [16, 64]}, ("image_size", 32)),
        (5, ("shapes", 5, "mapping")),
    ],
)
def test_mistakes_in_the_settings(tmp_path: Path, settings: object, facts: tuple[object, ...]) -> None:
    with pytest.raises(DataError) as caught:
        draw_if_needed(tmp_path / "a", settings, NAMES, YAML)
    assert_says(caught.value, YAML, *facts)


def test_unknown_figure(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        draw_if_needed(tmp_path / "a", SETTINGS, ["circle", "squares"], YAML)
    assert_says(caught.value, "squares", "square", "names")


def test_read_back_through_a_yaml(tmp_path: Path) -> None:
    path = tmp_path / "set.yaml"
    path.write_text(
        f"path: drawn\ntrain: images/train\nval: images/val\nnames: {NAMES}\n"
        f"shapes: {json.dumps({**SETTINGS, 'train': 20})}\n"
    )
    config = load_data_config(path)
    annotations, report = load_annotations(config, "train")
    assert (report.images, report.problems, report.unlabelled) == (20, [], 0)
    assert 0 < report.polygons < report.objects
    assert all(read_image(annotation.path).shape[:2] == annotation.file_hw for annotation in annotations)
    assert load_data_config(path).names == NAMES


def test_labels_are_the_boxes_and_outlines_of_what_is_visible() -> None:
    settings, num_hidden = ShapesSettings(), 0
    for index in range(8):
        pixels, figures = draw_sample(settings, NAMES, "train", index)
        assert pixels.dtype == np.uint8
        height, width = pixels.shape[:2]
        outlines, above = visible_outlines(figures), np.zeros((height, width), bool)
        for (figure, _), line in reversed(list(zip(figures, outlines, strict=True))):
            visible = figure.mask & ~above
            num_hidden += int((figure.mask & above).sum() > 20)
            above |= figure.mask
            filled = dense_masks([polygon_region([line], (height, width))], (height, width))[0]
            assert (filled & visible).sum() / (filled | visible).sum() > 0.93
            rows, columns = np.nonzero(filled)
            drawn_xyxy = np.array((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
            box = np.array(label_row(line, 3, True, (height, width)).split(), np.float64)
            centre, extent = box[1:3] * (width, height), box[3:] * (width, height)
            assert box[0] == 3
            assert np.abs(np.concatenate((centre - extent / 2, centre + extent / 2)) - drawn_xyxy).max() < 1.6
            outline = np.array(label_row(line, 3, False, (height, width)).split()[1:], np.float64).reshape(-1, 2) * (
                width,
                height,
            )
            assert outline_area(outline) == pytest.approx(visible.sum(), rel=0.06, abs=8)
    assert num_hidden > 3


def test_nothing_is_hidden_beyond_the_limit_and_something_is_hidden() -> None:
    settings, shares = ShapesSettings(max_hidden=0.6), []
    for index in range(20):
        _, figures = draw_sample(settings, NAMES, "val", index)
        above = np.zeros_like(figures[0][0].mask) if figures else None
        for figure, _ in reversed(figures):
            shares.append((figure.mask & above).sum() / figure.area)
            above |= figure.mask
    assert max(shares) <= 0.6
    assert max(shares) > 0.1


@pytest.mark.parametrize(
    ("name", "area"),
    [("square", 2.0), ("circle", 3.13), ("ring", 2.19), ("triangle", 1.3), ("star", 1.23), ("cross", 1.87)],
)
def test_outlines_have_the_area_of_their_figure(name: str, area: float) -> None:
    assert outline_area(FIGURES[name]()) == pytest.approx(area, abs=0.01)


def test_figure_mostly_outside_is_refused_and_size_is_kept() -> None:
    rng = np.random.default_rng(0)
    figures = [random_figure(rng, "circle", (40, 40), (64, 64)) for _ in range(50)]
    assert any(figure is None for figure in figures)
    assert max(np.ptp(figure.points, axis=0).max() for figure in figures if figure) <= 40
