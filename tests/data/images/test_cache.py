from collections.abc import Callable

import numpy as np

from data.dataset import DetectionDataset, ItemKey
from data.images.cache import ImageCache, free_memory
from data.labels.annotation import Annotation

Build = Callable[..., DetectionDataset]


def test_cache_only_fits_under_a_gibibyte() -> None:
    assert (free_memory() or 1) > 0
    assert not ImageCache([(1000, 1000)] * 400).fits
    assert ImageCache([(10, 10)] * 4).fits


def test_cached_images_cannot_be_written_to(annotations: list[Annotation], build: Build) -> None:
    dataset = build(annotations, augment=True)
    before = dataset.cache.block.copy()
    for index in range(7):
        dataset[ItemKey(index, 0)]
    assert np.array_equal(before, dataset.cache.block)
    assert not dataset.cache[0].flags.writeable
