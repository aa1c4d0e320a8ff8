"""The images of one split in the form that the network gets: augmented or letterboxed.

The random changes of an item depend only on the seed, the epoch and its index, so batches do not depend on the number
of workers.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.augment.mosaic import copy_paste, mixup, mosaic
from data.augment.sample import Sample, by_area, index_map, outlined, scale_and_shift
from data.augment.transforms import (
    AugmentSettings,
    letterbox_sample,
    random_flips,
    random_hsv,
    random_warp,
    resize,
    resized_hw,
)
from data.images.cache import CACHE_CHOICES, ImageCache
from data.images.pixels import PixelRange
from data.images.reading import read_image
from data.labels.annotation import Annotation, Id
from utils.errors import DataError, SettingsError
from utils.geometry.placement import Placement

RECT_PAD = 0.5
"""Grey border of a rectangle, in units of `multiple`; it is added before the sides are rounded up to multiples."""


def batch_slices(count: int, size: int, least: int = 1) -> list[slice]:
    """Cut `count` items into batches of `size`; a last batch of fewer than `least` joins the one before."""
    starts = list(range(0, count, size))
    if len(starts) > 1 and count - starts[-1] < least:
        starts.pop()
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], count], strict=True)]


class ItemKey(NamedTuple):
    """Key of an item: the image's index, the epoch (for its random changes), and whether mosaics are on.

    An image that does not `count` only keeps a rank without images of its own in step with the others.
    """

    index: int  # type: ignore[assignment] # tuples have a method `index`
    epoch: int = 0
    mosaic: bool = True
    counts: bool = True


@dataclasses.dataclass(slots=True)
class Item:
    """One row of a batch.

    Attributes:
        index: number of the image in `DetectionDataset.annotations`.
        image_rgb: (H, W, 3) uint8.
        targets: (N, 5) float32: class, then centre x, centre y, width, height, divided by the image's size.
        masks: (H / 4, W / 4) int16 index map (`data.augment.sample.index_map`), or None.
        outlined: (N,) bool, True for objects with an outline; the others are not in `masks`.
        placement: position of the image file in `image_rgb`; None for an augmented image.
    """

    index: int
    image_rgb: NDArray[np.uint8]
    targets: NDArray[np.float32]
    masks: NDArray[np.int16] | None
    outlined: NDArray[np.bool_]
    placement: Placement | None


class DetectionDataset:
    """Images and targets of one split.

    Args:
        annotations: of all images; the attribute `annotations` keeps their order, without those that `min_items` drops.
        names: class names by class index.
        image_size: long side of an image, and side of a square item, in pixels.
        hyp: augmentation settings; required with `augment`.
        augment: change images at random, in mosaics with probability `hyp.mosaic`; else letterbox them.
        rect: put images of similar aspect ratio into one batch of rectangular items; no mosaics.
        batch_size: images in a batch; with `rect` they share a shape.
        multiple: the sides of rectangular items are multiples of it, after RECT_PAD.
        seed: of all random changes.
        masks: draw index maps for instance segmentation; an image's objects are then sorted from the largest to the
            smallest, and pasted copies follow.
        cache: 'ram' keeps the resized images in memory, 'auto' does so if they fit, 'off' reads files every time.
        min_items: leave out images with fewer objects; crowd regions do not count.
        single_cls: replace all classes by one, "object".
        pixel_range: values that become 0 and 255 in images of more than 8 bits; None takes 0 to 65535.
        category_ids: category id of each class, if the images are from a COCO file; left out with `single_cls`.
    Attributes:
        least_batch: fewest images of a batch; a last batch of fewer joins the one before (`use_least_batch`).
    """

    def __init__(
        self,
        annotations: Sequence[Annotation],
        names: Sequence[str],
        image_size: int,
        hyp: AugmentSettings | None = None,
        augment: bool = False,
        rect: bool = False,
        batch_size: int = 16,
        multiple: int = 32,
        seed: int = 0,
        masks: bool = False,
        cache: str = "auto",
        min_items: int = 0,
        single_cls: bool = False,
        pixel_range: PixelRange | None = None,
        category_ids: list[Id] | None = None,
    ) -> None:
        if augment and hyp is None:
            raise TypeError("DetectionDataset: augment=True needs hyp")
        self.annotations = [
            annotation for annotation in annotations if np.count_nonzero(~annotation.crowd) >= min_items
        ]
        self.num_filtered = len(annotations) - len(self.annotations)
        if not self.annotations:
            raise DataError(
                f"data set: {len(annotations)} images, none with {min_items} or more objects: at least one was expected"
            )
        self.names = list(names)
        if single_cls:
            self.names = ["object"]
            self.annotations = [
                dataclasses.replace(one, classes=np.zeros_like(one.classes)) for one in self.annotations
            ]
        self.image_size, self.hyp, self.augment, self.rect = image_size, hyp, augment, rect
        self.category_ids = None if single_cls else category_ids
        self.batch_size, self.seed, self.masks, self.pixel_range = batch_size, seed, masks, pixel_range
        self.multiple, self.least_batch = multiple, 1
        self.order: NDArray[np.int64] = np.arange(len(self))
        self.shapes_hw: NDArray[np.int64] | None = None
        if rect:
            self.order, self.shapes_hw = self._rectangles()
        self.cache = self._build_cache(cache)

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, key: ItemKey | tuple[int, int, bool]) -> Item:
        key = ItemKey(*key)
        placement = None
        if self.augment:
            sample = self._augmented(key)
        else:
            sample, placement = self._letterboxed(key.index, scaleup=False)
        width, height = sample.size_wh
        corners_norm = sample.boxes_xyxy / np.array((width, height, width, height), np.float32)
        centre, size = (corners_norm[:, :2] + corners_norm[:, 2:]) / 2, corners_norm[:, 2:] - corners_norm[:, :2]
        targets = np.concatenate((sample.classes[:, None], centre, size), 1, dtype=np.float32)
        masks = index_map(sample) if self.masks else None
        return Item(key.index, sample.image_rgb, targets, masks, outlined(sample.polygons), placement)

    def use_least_batch(self, images: int) -> None:
        """Let a last batch of fewer images join the one before."""
        self.least_batch = images
        if self.rect:
            self.order, self.shapes_hw = self._rectangles()

    def load(self, index: int) -> Sample:
        """Return image `index` with its long side `image_size`, and its objects, crowd regions left out."""
        image = self.cache[index] if self.cache is not None else self._read(index)
        annotation = self.annotations[index]
        (height, width), keep = annotation.file_hw, ~annotation.crowd
        scale_wh = image.shape[1] / width, image.shape[0] / height
        polygons = [annotation.polygons[row] if self.augment or self.masks else [] for row in np.flatnonzero(keep)]
        sample = Sample(
            image, annotation.classes[keep], *scale_and_shift(annotation.boxes_xyxy[keep], polygons, scale_wh, (0, 0))
        )
        return by_area(sample) if self.masks else sample

    def describe_cache(self) -> str:
        """Describe the image cache in one line."""
        if self.cache is not None:
            return f"{len(self)} images in memory, {self.cache.num_bytes / 2**20:.0f} MiB"
        return f"{len(self)} images, read from disk every time"

    def _read(self, index: int) -> NDArray[np.uint8]:
        annotation = self.annotations[index]
        image = read_image(annotation.path, self.pixel_range)
        if image.shape[:2] != tuple(annotation.file_hw):
            (height, width), (known_height, known_width) = image.shape[:2], annotation.file_hw
            raise DataError(
                f"{annotation.path}: the image is {width} x {height} pixels: expected {known_width} x {known_height} "
                "as when the labels were read; if the file was replaced since then, start again"
            )
        return resize(image, resized_hw(annotation.file_hw, self.image_size), fast=self.augment)

    def _build_cache(self, choice: str) -> ImageCache | None:
        if choice not in CACHE_CHOICES:
            raise SettingsError(f"cache {choice!r}: expected one of {', '.join(CACHE_CHOICES)}")
        cache = ImageCache([resized_hw(annotation.file_hw, self.image_size) for annotation in self.annotations])
        if choice == "off" or (choice == "auto" and not cache.fits):
            return None
        cache.fill(self._read)
        return cache

    def _rectangles(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the indices sorted by aspect ratio, and (N, 2), height and width of each index's item."""
        sizes_hw = np.array([annotation.file_hw for annotation in self.annotations], np.float64)
        aspect = sizes_hw[:, 0] / sizes_hw[:, 1]
        order = np.argsort(aspect, kind="stable")
        shapes_hw = np.zeros((len(self), 2), np.int64)
        for part in batch_slices(len(self), self.batch_size, self.least_batch):
            batch = order[part]
            # The smallest height and width, divided by the long side, that hold every image of the batch.
            share_hw = np.array((min(aspect[batch].max(), 1), min(1 / aspect[batch].min(), 1)))
            shapes_hw[batch] = (
                np.ceil(share_hw * self.image_size / self.multiple + RECT_PAD).astype(np.int64) * self.multiple
            )
        return order, shapes_hw

    def _shape_hw(self, index: int) -> tuple[int, int]:
        if self.shapes_hw is None:
            return self.image_size, self.image_size
        height, width = self.shapes_hw[index]
        return int(height), int(width)

    def _letterboxed(self, index: int, scaleup: bool) -> tuple[Sample, Placement]:
        """Return a letterboxed image and the image file's placement in it."""
        sample, placement = letterbox_sample(self.load(index), self._shape_hw(index), scaleup)
        (height, width), (ratio_w, ratio_h) = self.annotations[index].file_hw, placement.ratio_wh
        resized_height, resized_width = placement.original_hw  # `load` resized the file
        ratio_wh = ratio_w * resized_width / width, ratio_h * resized_height / height
        return sample, Placement((height, width), ratio_wh, placement.pad_wh)

    def _augmented(self, key: ItemKey) -> Sample:
        hyp, rng = self.hyp, np.random.default_rng((self.seed, key.epoch, key.index + 1))
        assert hyp is not None, "images are augmented with hyperparameters"
        if key.mosaic and not self.rect and rng.random() < hyp.mosaic:
            sample = self._mosaic(key.index, rng)
            if rng.random() < hyp.mixup:
                sample = mixup(sample, self._mosaic(int(rng.integers(len(self))), rng), rng)
                sample = by_area(sample) if self.masks else sample
        else:
            sample, _ = self._letterboxed(key.index, scaleup=True)
            sample = random_warp(sample, hyp, sample.size_wh, rng)
        sample.image_rgb = random_hsv(sample.image_rgb, hyp, rng)
        return random_flips(sample, hyp, rng)

    def _mosaic(self, index: int, rng: np.random.Generator) -> Sample:
        assert self.hyp is not None, "mosaics are made with hyperparameters"
        indices = rng.permutation([index, *rng.integers(len(self), size=3)])
        sample = mosaic([self.load(int(one)) for one in indices], self.image_size, rng)
        sample = copy_paste(sample, self.hyp.copy_paste, rng)
        return random_warp(sample, self.hyp, (self.image_size, self.image_size), rng)
