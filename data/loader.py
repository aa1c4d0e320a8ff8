"""Batches: which images, in which order, and how they are put together."""

import functools
import multiprocessing
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from data.dataset import DetectionDataset, Item, ItemKey
from models.plugins.loading import Plugin, install_plugins, loaded_plugins
from utils.errors import DataError, UserError

Batch = dict[str, Any]


class EpochBatches(Sampler[list[ItemKey]]):
    """The batches of one epoch, in an order that depends on the seed and the epoch alone.

    Rectangular batches keep their members and are shuffled as wholes.
    """

    def __init__(self, dataset: DetectionDataset, batch_size: int, shuffle: bool, seed: int, drop_last: bool) -> None:
        self.dataset, self.batch_size, self.shuffle, self.seed, self.drop_last = (
            dataset,
            batch_size,
            shuffle,
            seed,
            drop_last,
        )
        self.epoch, self.mosaic, self.start_batch = 0, True, 0

    def set_epoch(self, epoch: int, mosaic: bool = True, start_batch: int = 0) -> None:
        """Choose what the next iteration yields; see `Loader.set_epoch`."""
        self.epoch, self.mosaic, self.start_batch = epoch, mosaic, start_batch

    def __len__(self) -> int:
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[list[ItemKey]]:
        order, rng = self.dataset.order, np.random.default_rng((self.seed, self.epoch))
        if self.shuffle and not self.dataset.rect:
            order = rng.permutation(order)
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        batches = batches[: len(self)]
        if self.shuffle and self.dataset.rect:
            batches = [batches[index] for index in rng.permutation(len(batches))]
        for batch in batches[self.start_batch :]:
            yield [ItemKey(int(index), self.epoch, self.mosaic) for index in batch]


class _Items(Dataset):
    """Fetches a batch's items; a user's error is handed over as a value, so that its message survives the way out of a worker."""

    def __init__(self, dataset: DetectionDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, keys: list[ItemKey]) -> Batch | UserError:
        try:
            return collate([self.dataset[key] for key in keys], self.dataset)
        except UserError as error:
            return error


def collate(items: list[Item], dataset: DetectionDataset) -> Batch:
    """Put items together.

    Returns:
        images: (B, 3, H, W) uint8 RGB, in channels_last layout.
        targets: (N, 6) float32: image index in the batch, class, centre x, centre y, width, height over the image's size.
        masks: (B, H / 4, W / 4) int16, only if the data set draws them: k at the k-th target of that image, 0 elsewhere.
        outlined: (N,) bool, with `masks`: targets that have an outline; the others are not drawn there.
        paths: files; indices: numbers in `dataset.annotations`; original_hw: sizes of the files' images.
        ratio_wh, pad_wh: how images were letterboxed; without meaning for augmented ones.
    """
    counts = [len(item.targets) for item in items]
    row = np.repeat(np.arange(len(items), dtype=np.float32), counts)[:, None]
    annotations = [dataset.annotations[item.index] for item in items]
    batch: Batch = {
        "images": torch.from_numpy(np.stack([item.image_rgb for item in items])).permute(0, 3, 1, 2),
        "targets": torch.from_numpy(np.concatenate((row, np.concatenate([item.targets for item in items])), 1)),
        "paths": [str(annotation.path) for annotation in annotations],
        "indices": [item.index for item in items],
        "original_hw": [tuple(annotation.image_hw) for annotation in annotations],
        "ratio_wh": [item.ratio_wh for item in items],
        "pad_wh": [item.pad_wh for item in items],
    }
    if dataset.masks:
        batch["masks"] = torch.from_numpy(np.stack([item.masks for item in items]))
        batch["outlined"] = torch.from_numpy(np.concatenate([item.outlined for item in items]))
    return batch


def _as_it_is(batch: Batch | UserError) -> Batch | UserError:
    return batch


def _start_worker(plugins: list[Plugin], _: int) -> None:
    """Keep each worker on one core, since workers are what runs in parallel, and give it the plug-ins of the process that starts it."""
    install_plugins(plugins)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


class Loader:
    """Batches of a data set, epoch by epoch; workers live as long as the loader."""

    def __init__(self, dataset: DetectionDataset, batches: EpochBatches, workers: int, pin_memory: bool) -> None:
        forks = sys.platform == "linux" and "fork" in multiprocessing.get_all_start_methods()
        self.dataset, self.batches = dataset, batches
        self._loader = DataLoader(
            _Items(dataset),
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=pin_memory,
            worker_init_fn=functools.partial(_start_worker, loaded_plugins()),
            persistent_workers=workers > 0,
            multiprocessing_context="fork" if workers > 0 and forks else None,  # shares the images in memory
            generator=torch.Generator().manual_seed(batches.seed),  # leaves torch's global random numbers alone
        )

    def set_epoch(self, epoch: int, mosaic: bool = True, start_batch: int = 0) -> None:
        """Choose what the next iteration yields.

        Args:
            epoch: number that order and augmentation depend on.
            mosaic: False leaves mosaics and mixup out (they still need the data set's settings to be on when True).
            start_batch: batches to leave out at the front, to go on within an epoch.
        """
        self.batches.set_epoch(epoch, mosaic, start_batch)

    def __len__(self) -> int:
        """Batches of a whole epoch, whatever `start_batch` is."""
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._loader:
            if isinstance(batch, UserError):
                raise batch
            yield batch


def build_loader(
    dataset: DetectionDataset,
    batch_size: int,
    workers: int = 0,
    shuffle: bool = False,
    seed: int = 0,
    drop_last: bool = False,
    pin_memory: bool | None = None,
) -> Loader:
    """Return a loader of `dataset`'s batches; see `collate` for what is in them.

    Args:
        batch_size: for a rectangular data set the one that it was built with.
        workers: worker processes; 0 works in this one.
        shuffle: draw a new order every epoch; otherwise the data set's own (by aspect ratio if it is rectangular).
        pin_memory: page-locked batches for a faster way to the GPU; by default if there is CUDA.
    Raises:
        DataError: while iterating, an image that cannot be read any more.
        ValueError: another batch size than the rectangular data set's.
    """
    if dataset.rect and batch_size != dataset.batch_size:
        raise ValueError(f"batch size {batch_size}: the rectangular data set was built for {dataset.batch_size}")
    batches = EpochBatches(dataset, batch_size, shuffle, seed, drop_last)
    if len(batches) == 0:
        raise DataError(
            f"data set: {len(dataset)} images: at least one batch of {batch_size} was expected; lower the batch size"
        )
    return Loader(dataset, batches, workers, torch.cuda.is_available() if pin_memory is None else pin_memory)


class Timed:
    """Hands batches on and adds up the seconds spent waiting for them in `waited_s`."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self.batches, self.waited_s = batches, 0.0

    def __iter__(self) -> Iterator[Batch]:
        start = time.perf_counter()
        for batch in self.batches:
            self.waited_s += time.perf_counter() - start
            yield batch
            start = time.perf_counter()
