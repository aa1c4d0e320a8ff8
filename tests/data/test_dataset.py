from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from data.annotation import Annotation
from data.cache import PictureCache, free_memory
from data.dataset import DetectionDataset, ItemKey
from data.loader import Timed, build_loader
from utils.boxes import cxcywh_to_xyxy, unletterbox
from utils.errors import DataError, SettingsError

SIZES_HW = [(48, 64), (64, 64), (64, 40), (30, 64), (64, 64), (128, 96), (50, 60)]
HYP = SimpleNamespace(
    hsv_h=0.015, hsv_s=0.7, hsv_v=0.4, degrees=5.0, translate=0.1, scale=0.5, shear=1.0, perspective=0.0,
    flipud=0.2, fliplr=0.5, mosaic=0.8, mixup=0.5, copy_paste=0.5,
)  # fmt: skip


def annotation(folder: Path, number: int, size_hw: tuple[int, int]) -> Annotation:
    """Write a picture with `number` objects, every second one with an outline, and one crowd region."""
    height, width = size_hw
    rng = np.random.default_rng(number)
    path = folder / f"{number}.png"
    cv2.imwrite(str(path), rng.integers(0, 255, (height, width, 3), np.uint8))
    low = rng.uniform(0, 15, (number, 2))
    boxes = np.concatenate((low, low + 12), 1)
    polygons = [[box[[0, 1, 2, 1, 2, 3]].reshape(3, 2).astype(np.float32)] if row % 2 else [] for row, box in enumerate(boxes)]
    boxes, polygons = np.concatenate((boxes, [[0, 0, 20, 20]])).astype(np.float32), [*polygons, []]
    crowd = np.arange(number + 1) == number
    classes = np.arange(number + 1, dtype=np.int64) % 3
    return Annotation(path, size_hw, number, classes, boxes, polygons, crowd, np.full(number + 1, 144.0), np.arange(1, number + 2))


@pytest.fixture
def annotations(tmp_path: Path) -> list[Annotation]:
    """Seven pictures with 0, 1, … 6 objects."""
    return [annotation(tmp_path, number, size_hw) for number, size_hw in enumerate(SIZES_HW)]


def build(annotations: list[Annotation], **options: object) -> DetectionDataset:
    return DetectionDataset(annotations, ["a", "b", "c"], 64, HYP, **options)


def equal(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[key], second[key]) if isinstance(first[key], torch.Tensor) else first[key] == second[key] for key in first
    )


def test_letterboxed_items_lead_back_to_the_annotation(annotations: list[Annotation]) -> None:
    for rect in (False, True):
        batches = list(build_loader(build(annotations, rect=rect, batch_size=3), 3))
        assert sorted(index for batch in batches for index in batch["indices"]) == list(range(7))
        for batch in batches:
            height, width = batch["images"].shape[2:]
            for position, index in enumerate(batch["indices"]):
                targets = batch["targets"][batch["targets"][:, 0] == position]
                boxes = cxcywh_to_xyxy(targets[:, 2:] * torch.tensor([width, height, width, height]))
                back = unletterbox(boxes, batch["ratio_wh"][position], batch["pad_wh"][position], batch["original_hw"][position])
                assert batch["original_hw"][position] == SIZES_HW[index]
                assert np.allclose(back, annotations[index].boxes_xyxy[:-1], atol=1e-3)  # the crowd region is left out
                assert targets[:, 1].tolist() == annotations[index].classes[:-1].tolist()


def test_rectangles_have_the_shape_of_their_batch(annotations: list[Annotation]) -> None:
    dataset = build(annotations, rect=True, batch_size=3, stride=32, pad=0.5)
    shapes = [tuple(batch["images"].shape) for batch in build_loader(dataset, 3)]
    # By aspect ratio: 0.47, 0.75, 0.83 | 1, 1, 1.33 | 1.6; the long side 64 becomes ceil(64 / 32 + 0.5) * 32 = 96.
    assert shapes == [(3, 3, 96, 96), (3, 3, 96, 96), (1, 3, 96, 64)]
    assert [tuple(shape) for shape in build(annotations, rect=True, batch_size=1, pad=0.0).shapes_hw[[3, 2]].tolist()] == [(32, 64), (64, 64)]


def test_pictures_are_rgb_and_channels_last(tmp_path: Path) -> None:
    one = annotation(tmp_path, 0, (64, 64))
    cv2.imwrite(str(one.path), np.full((64, 64, 3), (10, 20, 30), np.uint8))  # written as BGR
    images = next(iter(build_loader(build([one]), 1)))["images"]
    assert images.dtype == torch.uint8
    assert images[0, :, 5, 5].tolist() == [30, 20, 10]
    assert images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("written", "expected"), [(np.full((8, 8), 9, np.uint8), 9), (np.full((8, 8, 4), 9, np.uint8), 9)])
def test_grey_and_four_channel_pictures_become_rgb(tmp_path: Path, written: np.ndarray, expected: int) -> None:
    one = annotation(tmp_path, 0, (8, 8))
    cv2.imwrite(str(one.path), written)
    images = next(iter(build_loader(DetectionDataset([one], ["a"], 32), 1)))["images"]
    assert images[0, :, 16, 16].tolist() == [expected] * 3


def test_augmented_items_depend_on_seed_epoch_and_index_only(annotations: list[Annotation]) -> None:
    dataset, again = build(annotations, augment=True, masks=True), build(annotations, augment=True, masks=True, cache="off")
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


@pytest.mark.parametrize("rect", [False, True])
def test_batches_are_the_same_with_any_number_of_workers(annotations: list[Annotation], rect: bool) -> None:
    dataset = build(annotations, augment=True, masks=True, rect=rect, batch_size=2, pad=0.0)
    here, there = (build_loader(dataset, 2, workers, shuffle=True, seed=5) for workers in (0, 2))
    for epoch, mosaic in ((0, True), (1, True), (2, False)):  # the workers live on when mosaics end
        here.set_epoch(epoch, mosaic)
        there.set_epoch(epoch, mosaic)
        batches = list(here)
        assert len(batches) == len(here) == 4
        assert all(equal(first, second) for first, second in zip(batches, there, strict=True))


def test_without_mosaic_each_item_shows_its_own_picture(annotations: list[Annotation]) -> None:
    dataset = build(annotations, augment=True)
    assert len(dataset[ItemKey(0, 0, mosaic=False)].targets) == 0
    assert all(len(dataset[ItemKey(index, epoch, mosaic=False)].targets) <= index for index in range(7) for epoch in range(5))
    assert any(len(dataset[ItemKey(0, epoch)].targets) > 0 for epoch in range(5))


def test_order_changes_with_the_epoch_and_resumes_within_it(annotations: list[Annotation]) -> None:
    loader = build_loader(build(annotations, augment=True), 2, shuffle=True)
    orders = []
    for epoch in (0, 1):
        loader.set_epoch(epoch)
        orders.append([batch["indices"] for batch in loader])
    assert orders[0] != orders[1]
    assert sorted(sum(orders[0], [])) == list(range(7))
    loader.set_epoch(0, start_batch=2)
    assert [batch["indices"] for batch in loader] == orders[0][2:]
    assert [len(batch["indices"]) for batch in build_loader(build(annotations), 2, drop_last=True)] == [2, 2, 2]


def test_pictures_without_objects_give_empty_targets(tmp_path: Path) -> None:
    empty = [annotation(tmp_path, 0, (64, 64))] * 4
    for augment in (False, True):
        batch = next(iter(build_loader(build(empty, augment=augment, masks=True), 4)))
        assert batch["targets"].shape == (0, 6)
        assert batch["masks"].shape == (4, 16, 16)
        assert not batch["masks"].any()


def test_min_items_and_single_class(annotations: list[Annotation]) -> None:
    dataset = build(annotations, min_items=3, single_cls=True)
    assert dataset.num_filtered == 3
    assert dataset.names == ["object"]
    assert [len(one) - 1 for one in dataset.annotations] == [3, 4, 5, 6]
    assert not any(one.classes.any() for one in dataset.annotations)
    assert annotations[6].classes.any()
    with pytest.raises(DataError, match="none with 9 or more objects"):
        build(annotations, min_items=9)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_vanished_picture_is_named(annotations: list[Annotation], workers: int) -> None:
    dataset = build(annotations, cache="off")
    annotations[4].path.unlink()
    with pytest.raises(DataError, match=r"4\.png") as caught:
        list(build_loader(dataset, 4, workers))
    assert "Traceback" not in str(caught.value)


def test_a_replaced_picture_is_named(annotations: list[Annotation]) -> None:
    cv2.imwrite(str(annotations[1].path), np.zeros((10, 20, 3), np.uint8))
    with pytest.raises(DataError, match=r"1\.png: the picture is 20 x 10 pixels: 64 x 64 was expected"):
        build(annotations)


def test_cache_choices(annotations: list[Annotation]) -> None:
    assert build(annotations).cache is not None
    assert build(annotations, cache="off").cache is None
    assert "memory" in build(annotations, cache="ram").describe_cache()
    with pytest.raises(SettingsError, match="expected one of auto, ram, off"):
        build(annotations, cache="disk")


def test_cache_only_fits_under_a_gibibyte() -> None:
    assert (free_memory() or 1) > 0
    assert not PictureCache([(1000, 1000)] * 400).fits
    assert PictureCache([(10, 10)] * 4).fits


def test_cached_pictures_cannot_be_written_to(annotations: list[Annotation]) -> None:
    dataset = build(annotations, augment=True)
    before = dataset.cache.block.copy()
    for index in range(7):
        dataset[ItemKey(index, 0)]
    assert np.array_equal(before, dataset.cache.block)
    assert not dataset.cache[0].flags.writeable


def test_timed_counts_the_waiting(annotations: list[Annotation]) -> None:
    timed = Timed(build_loader(build(annotations), 4))
    assert len(list(timed)) == 2
    assert timed.waited_s > 0


def test_batch_size_must_be_the_rectangles_own(annotations: list[Annotation]) -> None:
    with pytest.raises(ValueError, match="built for 3"):
        build_loader(build(annotations, rect=True, batch_size=3), 4)
