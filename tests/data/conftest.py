"""A small data set of every kind of object, for the tests of the data set and its loader."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from data.dataset import DetectionDataset
from data.labels.annotation import Annotation

SIZES_HW = [(48, 64), (64, 64), (64, 40), (30, 64), (64, 64), (128, 96), (50, 60)]
HYP = SimpleNamespace(
    hsv_h=0.015, hsv_s=0.7, hsv_v=0.4, degrees=5.0, translate=0.1, scale=0.5, shear=1.0, perspective=0.0,
    flipud=0.2, fliplr=0.5, mosaic=0.8, mixup=0.5, copy_paste=0.5,
)  # fmt: skip


@pytest.fixture
def annotate(tmp_path: Path) -> Callable[[int, tuple[int, int]], Annotation]:
    """Return `annotate(number, size_hw)`: an image with `number` objects, every second outlined, and a crowd region."""

    def write(number: int, size_hw: tuple[int, int]) -> Annotation:
        rng = np.random.default_rng(number)
        path = tmp_path / f"{number}.png"
        cv2.imwrite(str(path), rng.integers(0, 255, (*size_hw, 3), np.uint8))
        low = rng.uniform(0, 15, (number, 2))
        boxes = np.concatenate((low, low + 12), 1)
        polygons = [
            [box[[0, 1, 2, 1, 2, 3]].reshape(3, 2).astype(np.float32)] if row % 2 else []
            for row, box in enumerate(boxes)
        ]
        boxes, polygons = np.concatenate((boxes, [[0, 0, 20, 20]])).astype(np.float32), [*polygons, []]
        crowd = np.arange(number + 1) == number
        classes = np.arange(number + 1, dtype=np.int64) % 3
        return Annotation(
            path, size_hw, number, classes, boxes, polygons, crowd, np.full(number + 1, 144.0), np.arange(1, number + 2)
        )

    return write


@pytest.fixture
def annotations(annotate: Callable[[int, tuple[int, int]], Annotation]) -> list[Annotation]:
    """Seven images with 0, 1, … 6 objects."""
    return [annotate(number, size_hw) for number, size_hw in enumerate(SIZES_HW)]


@pytest.fixture
def build() -> Callable[..., DetectionDataset]:
    """Return `build(annotations, **options)`: their data set at 64 pixels, with every augmentation in its settings."""

    def make(annotations: list[Annotation], **options: object) -> DetectionDataset:
        return DetectionDataset(annotations, ["a", "b", "c"], 64, HYP, **options)

    return make
