"""Figures: that they are written, and that odd input does not stop a run."""

from pathlib import Path

import cv2
import matplotlib as mpl
import numpy as np
import pytest
import torch

from data.labels.annotation import Annotation
from tests.saying import assert_says
from utils.drawing import plots
from utils.drawing.draw import class_colour
from utils.errors import DataError
from utils.metrics.detection import DetectionMetrics, DetectionResult

NAMES = ["红细胞", "white cell", "Пласт"]
HEADER = "epoch, train/box_loss, metrics/mAP_0.5, metrics/mAP_0.5:0.95, val/box_loss, x/lr0"


def is_image(path: Path) -> bool:
    """Tell whether a file decodes and is not one flat colour."""
    pixels = cv2.imread(str(path))
    return pixels is not None and pixels.std() > 0


def test_results(tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text(f"{HEADER}\n0, 3.0, 0.1, 0.05, 3.1, 0.01\n1, 2.0, nan, , 2.2, 0.009\n")
    assert is_image(plots.plot_results(tmp_path / "results.csv", tmp_path / "results.png"))


def test_results_are_read_by_column_name(tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text("x/lr0,epoch\n0.5,3\nbad,4\n")
    columns = plots._read_results(tmp_path / "results.csv")
    assert columns["epoch"].tolist() == [3, 4]
    assert columns["x/lr0"][0] == 0.5
    assert np.isnan(columns["x/lr0"][1])


@pytest.mark.parametrize("text", ["", HEADER, "a,b\n1,2\n"])
def test_results_without_rows_or_epoch(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.csv").write_text(text)
    with pytest.raises(DataError) as caught:
        plots.plot_results(tmp_path / "results.csv", tmp_path / "results.png")
    assert_says(caught.value, "results.csv", "epoch")


def annotation(count: int, crowd: bool = False) -> Annotation:
    """An image of 100 x 200 with `count` equal objects of class 1."""
    boxes = np.tile(np.array([[10, 20, 60, 80]], np.float32), (count, 1))
    flags = np.full(count, crowd)
    return Annotation(
        Path("a.jpg"),
        (100, 200),
        0,
        np.ones(count, np.int64),
        boxes,
        [[]] * count,
        flags,
        np.ones(count),
        np.arange(count),
    )


@pytest.mark.parametrize(
    "annotations", [[annotation(3), annotation(0), annotation(2, crowd=True)], [annotation(0)], []]
)
def test_labels(tmp_path: Path, annotations: list[Annotation]) -> None:
    assert is_image(plots.plot_labels(annotations, NAMES, tmp_path / "labels.png"))


def test_many_classes_are_numbered(tmp_path: Path) -> None:
    assert is_image(
        plots.plot_labels([annotation(3)], [f"class {number}" for number in range(80)], tmp_path / "labels.png")
    )


@pytest.mark.parametrize("columns", [6, 7])
def test_batch_draws_boxes_on_their_own_image(tmp_path: Path, columns: int) -> None:
    rows = torch.tensor([[1, 0, 0.5, 0.5, 0.5, 0.5, 0.9]])[:, :columns]
    plots.plot_batch(torch.zeros(3, 3, 64, 96, dtype=torch.uint8), rows, NAMES, tmp_path / "batch.png")
    mosaic = cv2.imread(str(tmp_path / "batch.png"))
    assert mosaic.shape == (128, 192, 3)
    assert not mosaic[2:60, 2:94].any()
    assert mosaic[16, 96 + 40 : 96 + 60].any()


def test_batch_draws_masks_on_their_own_image(tmp_path: Path) -> None:
    rows = torch.tensor([[1, 0, 0.5, 0.5, 1, 1], [1, 1, 0.5, 0.5, 0.9, 0.9]])
    masks = torch.zeros(2, 16, 24, dtype=torch.int16)
    masks[1, 4:8, 6:12], masks[0, 0, 0] = 2, 1  # the first image has no object
    plots.plot_batch(torch.zeros(2, 3, 64, 96, dtype=torch.uint8), rows, NAMES, tmp_path / "batch.png", masks=masks)
    batch = cv2.imread(str(tmp_path / "batch.png"))
    red, green, blue = (round(0.45 * value) for value in class_colour(1))
    assert np.abs(batch[24, 96 + 40].astype(int) - (blue, green, red)).max() <= 1
    assert not batch[2:60, 2:94].any()
    assert not batch[50, 96 + 40].any()


def test_batch_without_objects_and_with_too_many_images(tmp_path: Path) -> None:
    images = np.zeros((20, 3, 32, 32), np.uint8)
    plots.plot_batch(images, torch.zeros(0, 6), NAMES, tmp_path / "batch.png", max_images=4)
    assert cv2.imread(str(tmp_path / "batch.png")).shape == (64, 64, 3)
    plots.plot_batch(images, [], NAMES, tmp_path / "batch.png")
    assert cv2.imread(str(tmp_path / "batch.png")).shape == (128, 128, 3)


def test_big_batches_are_scaled_down(tmp_path: Path) -> None:
    plots.plot_batch(np.zeros((4, 3, 1280, 1280), np.uint8), np.zeros((0, 6)), NAMES, tmp_path / "batch.png")
    assert max(cv2.imread(str(tmp_path / "batch.png")).shape) == plots.MAX_BATCH_SIDE


def test_curves(tmp_path: Path) -> None:
    metrics = DetectionMetrics()
    metrics.update([[0, 0, 10, 10, 0.9, 0], [20, 20, 30, 30, 0.8, 2]], [[0, 0, 10, 10], [21, 20, 30, 30]], [0, 2])
    files = plots.plot_curves(metrics.compute(), NAMES, tmp_path)
    assert [file.name for file in files] == ["PR_curve.png", "F1_curve.png", "P_curve.png", "R_curve.png"]
    assert all(map(is_image, files))
    assert plots.plot_curves(metrics.compute(), NAMES, tmp_path, "mask_")[0].name == "mask_PR_curve.png"


def test_curves_of_nothing(tmp_path: Path) -> None:
    assert all(map(is_image, plots.plot_curves(DetectionResult(), NAMES, tmp_path)))


@pytest.mark.parametrize("nc", [1, 3, 80])
def test_confusion(tmp_path: Path, nc: int) -> None:
    matrix = np.eye(nc + 1, dtype=np.int64) * 5
    assert is_image(plots.plot_confusion(matrix, [f"c{number}" for number in range(nc)], tmp_path / "confusion.png"))
    assert is_image(
        plots.plot_confusion(matrix * 0, [f"c{number}" for number in range(nc)], tmp_path / "confusion.png")
    )


def test_nothing_global_is_set(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    plots.plot_confusion(np.eye(2), ["a"], tmp_path / "confusion.png")
    assert dict(mpl.rcParams) == before
