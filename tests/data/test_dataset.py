from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from data.dataset import DetectionDataset, ItemKey
from data.labels.annotation import Annotation, Objects
from data.loader import build_loader
from tests.deep_images import png
from tests.saying import assert_says
from utils.errors import DataError, SettingsError
from utils.geometry.boxes import cxcywh_to_xyxy
from utils.geometry.placement import unletterbox

Annotate = Callable[[int, tuple[int, int]], Annotation]
Build = Callable[..., DetectionDataset]


def test_letterboxed_items_lead_back_to_the_annotation(annotations: list[Annotation], build: Build) -> None:
    for rect in (False, True):
        batches = list(build_loader(build(annotations, rect=rect, batch_size=3), 3))
        assert sorted(index for batch in batches for index in batch["indices"]) == list(range(7))
        for batch in batches:
            height, width = batch["images"].shape[2:]
            for position, index in enumerate(batch["indices"]):
                targets = batch["targets"][batch["targets"][:, 0] == position]
                boxes = cxcywh_to_xyxy(targets[:, 2:] * torch.tensor([width, height, width, height]))
                back = unletterbox(boxes, batch["placements"][position])
                assert batch["placements"][position].original_hw == annotations[index].file_hw
                assert np.allclose(back, annotations[index].boxes_xyxy[:-1], atol=1e-3)  # the crowd region is left out
                assert targets[:, 1].tolist() == annotations[index].classes[:-1].tolist()


def test_rectangles_have_the_shape_of_their_batch(annotations: list[Annotation], build: Build) -> None:
    dataset = build(annotations, rect=True, batch_size=3, multiple=32)
    shapes = [tuple(batch["images"].shape) for batch in build_loader(dataset, 3)]
    # By aspect ratio: 0.47, 0.75, 0.83 | 1, 1, 1.33 | 1.6; the long side 64 becomes ceil(64 / 32 + 0.5) * 32 = 96.
    assert shapes == [(3, 3, 96, 96), (3, 3, 96, 96), (1, 3, 96, 64)]
    assert build(annotations, rect=True, batch_size=1).shapes_hw[[3, 2]].tolist() == [[64, 96], [96, 64]]


def test_images_are_rgb_and_channels_last(annotate: Annotate, build: Build) -> None:
    one = annotate(0, (64, 64))
    cv2.imwrite(str(one.path), np.full((64, 64, 3), (10, 20, 30), np.uint8))  # written as BGR
    images = next(iter(build_loader(build([one]), 1)))["images"]
    assert images.dtype == torch.uint8
    assert images[0, :, 5, 5].tolist() == [30, 20, 10]
    assert images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("written", "expected"), [(np.full((8, 8), 9, np.uint8), 9), (np.full((8, 8, 4), 9, np.uint8), 9)]
)
def test_grey_and_four_channel_images_become_rgb(annotate: Annotate, written: np.ndarray, expected: int) -> None:
    one = annotate(0, (8, 8))
    cv2.imwrite(str(one.path), written)
    images = next(iter(build_loader(DetectionDataset([one], ["a"], 32), 1)))["images"]
    assert images[0, :, 16, 16].tolist() == [expected] * 3


def test_augmented_items_depend_on_seed_epoch_and_index_only(annotations: list[Annotation], build: Build) -> None:
    dataset, again = (
        build(annotations, augment=True, masks=True),
        build(annotations, augment=True, masks=True, cache="off"),
    )
    other = build(annotations, augment=True, seed=1)
    for index in range(7):
        first, second = dataset[ItemKey(index, 3)], again[ItemKey(index, 3)]
        assert np.array_equal(first.image_rgb, second.image_rgb)
        assert np.array_equal(first.targets, second.targets)
        assert np.array_equal(first.masks, second.masks)
        assert not np.array_equal(first.image_rgb, dataset[ItemKey(index, 4)].image_rgb)
        assert not np.array_equal(first.image_rgb, other[ItemKey(index, 3)].image_rgb)
        assert first.image_rgb.shape == (64, 64, 3)
        assert set(np.unique(first.masks)) <= set(range(len(first.targets) + 1))
        assert (first.targets[:, 1:] >= 0).all()
        assert (first.targets[:, 1:] <= 1).all()


def test_without_mosaic_each_item_shows_its_own_image(annotations: list[Annotation], build: Build) -> None:
    dataset = build(annotations, augment=True)
    assert len(dataset[ItemKey(0, 0, mosaic=False)].targets) == 0
    assert all(
        len(dataset[ItemKey(index, epoch, mosaic=False)].targets) <= index for index in range(7) for epoch in range(5)
    )
    assert any(len(dataset[ItemKey(0, epoch)].targets) > 0 for epoch in range(5))


def test_images_without_objects_give_empty_targets(annotate: Annotate, build: Build) -> None:
    empty = [annotate(0, (64, 64))] * 4
    for augment in (False, True):
        batch = next(iter(build_loader(build(empty, augment=augment, masks=True), 4)))
        assert batch["targets"].shape == (0, 6)
        assert batch["masks"].shape == (4, 16, 16)
        assert not batch["masks"].any()


def test_min_items_and_single_class(annotations: list[Annotation], build: Build) -> None:
    dataset = build(annotations, min_items=3, single_cls=True)
    assert dataset.num_filtered == 3
    assert dataset.names == ["object"]
    assert [len(one) - 1 for one in dataset.annotations] == [3, 4, 5, 6]
    assert not any(one.classes.any() for one in dataset.annotations)
    assert annotations[6].classes.any()
    with pytest.raises(DataError) as caught:
        build(annotations, min_items=9)
    assert_says(caught.value, 9)


def test_a_replaced_image_is_named(annotations: list[Annotation], build: Build) -> None:
    cv2.imwrite(str(annotations[1].path), np.zeros((10, 20, 3), np.uint8))
    with pytest.raises(DataError) as caught:
        build(annotations)
    assert_says(caught.value, "1.png", "20 x 10", "64 x 64")


def test_cache_choices(annotations: list[Annotation], build: Build) -> None:
    assert build(annotations).cache is not None
    assert build(annotations, cache="off").cache is None
    assert "memory" in build(annotations, cache="ram").describe_cache()
    with pytest.raises(SettingsError) as caught:
        build(annotations, cache="disk")
    assert_says(caught.value, "disk", "auto", "ram", "off")


def test_with_masks_objects_go_from_the_largest_to_the_smallest(tmp_path: Path, build: Build) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((64, 64, 3), np.uint8))
    boxes = np.array([[8, 8, 24, 24], [0, 0, 64, 64], [40, 40, 60, 60]], np.float32)
    polygons = [[box[[0, 1, 2, 1, 2, 3, 0, 3]].reshape(4, 2)] for box in boxes[:2]] + [[]]
    one = Annotation(
        tmp_path / "a.png",
        (64, 64),
        1,
        np.array([0, 1, 2]),
        boxes,
        polygons,
        np.zeros(3, bool),
        np.ones(3),
        np.arange(1, 4),
    )
    item = build([one], masks=True)[ItemKey(0)]
    assert item.targets[:, 0].tolist() == [1, 2, 0]
    assert item.outlined.tolist() == [True, False, True]
    assert np.unique(item.masks, return_counts=True)[1].tolist() == [16 * 16 - 16, 16]
    assert (item.masks[2:6, 2:6] == 3).all()
    assert build([one])[ItemKey(0)].targets[:, 0].tolist() == [0, 1, 2]
    batch = next(iter(build_loader(build([one, one], masks=True), 2)))
    assert batch["outlined"].tolist() == [True, False, True] * 2


def test_pasted_objects_lie_on_top_of_the_masks_too(annotate: Annotate, build: Build) -> None:
    dataset = build([annotate(6, (64, 64))] * 4, augment=True, masks=True)
    for index in range(4):
        item = dataset[ItemKey(index, 1)]
        shown = np.unique(item.masks)
        assert set(shown[shown > 0]) <= set(np.flatnonzero(item.outlined) + 1)


def test_deep_images_are_scaled_by_the_range_of_the_data_set(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(np.full((64, 64), 2048, np.uint16)))
    annotation = Objects().annotation(path, (64, 64))
    for cache in ("off", "ram"):
        dataset = DetectionDataset([annotation], ["a"], 64, pixel_range=(0, 4095), cache=cache)
        assert np.unique(dataset[ItemKey(0)].image_rgb).tolist() == [128]
