"""Batches: choice and order of the images, and their collation."""

import functools
import multiprocessing
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from data.dataset import DetectionDataset, Item, ItemKey, batch_slices
from utils.errors import UserError

Batch = dict[str, Any]


class Share(NamedTuple):
    """What one rank of several reads.

    Attributes:
        rank, ranks: number of the rank, from 0, and of ranks.
        whole: whole batches, every `ranks`-th one, for evaluation; else a part of every batch, for training.
    """

    rank: int = 0
    ranks: int = 1
    whole: bool = False

    def of(self, number: int, batch: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return this rank's images of a batch; parts differ by at most one image."""
        if self.whole:
            return batch if number % self.ranks == self.rank else batch[:0]
        return np.array_split(batch, self.ranks)[self.rank]


ALONE = Share()


class EpochBatches(Sampler[list[ItemKey]]):
    """The batches of one epoch; their order depends only on the seed and the epoch.

    Rectangular batches keep their images; only the order of the batches is shuffled. Several ranks share the same
    batches. A rank without an image of a training batch gets the batch's first one, which does not count.
    """

    def __init__(
        self, dataset: DetectionDataset, batch_size: int, shuffle: bool, seed: int, share: Share = ALONE
    ) -> None:
        self.dataset, self.batch_size, self.shuffle, self.seed = dataset, batch_size, shuffle, seed
        self.share = share
        self.epoch, self.mosaic, self.start_batch = 0, True, 0

    def set_epoch(self, epoch: int, mosaic: bool = True, start_batch: int = 0) -> None:
        """Set the batches of the next iteration; see `Loader.set_epoch`."""
        self.epoch, self.mosaic, self.start_batch = epoch, mosaic, start_batch

    def __len__(self) -> int:
        batches = len(self._slices())
        return len(range(self.share.rank, batches, self.share.ranks)) if self.share.whole else batches

    def _slices(self) -> list[slice]:
        return batch_slices(len(self.dataset), self.batch_size, self.dataset.least_batch)

    def __iter__(self) -> Iterator[list[ItemKey]]:
        order, rng = self.dataset.order, np.random.default_rng((self.seed, self.epoch))
        if self.shuffle and not self.dataset.rect:
            order = rng.permutation(order)
        batches = [order[part] for part in self._slices()]
        if self.shuffle and self.dataset.rect:
            batches = [batches[index] for index in rng.permutation(len(batches))]
        for number, batch in enumerate(batches[self.start_batch :], self.start_batch):
            own = self.share.of(number, batch)
            if len(own) or not self.share.whole:
                counts = len(own) > 0
                keys = own if counts else batch[:1]
                yield [ItemKey(int(index), self.epoch, self.mosaic, counts) for index in keys]


class _Items(Dataset):
    """Data set of whole batches: fetches a batch's items.

    A UserError is returned instead of raised: torch would wrap a worker's error in a traceback.
    """

    def __init__(self, dataset: DetectionDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, keys: list[ItemKey]) -> Batch | UserError:
        try:
            batch = collate([self.dataset[key] for key in keys], self.dataset)
        except UserError as error:
            return error
        return batch if keys[0].counts else without_objects(batch)


def collate(items: list[Item], dataset: DetectionDataset) -> Batch:
    """Stack items into a batch.

    Returns:
        images: (B, 3, H, W) uint8 RGB, in channels_last layout.
        targets: (N, 6) float32: image index in the batch, class, centre x, centre y, width, height, normalised.
        masks: (B, H / 4, W / 4) int16, only if the data set draws masks: k at the image's k-th target, 0 elsewhere.
        outlined: (N,) bool, only with `masks`: True for targets with an outline; the others are not in `masks`.
        paths: image files.
        indices: positions in `dataset.annotations`.
        placements: placement of each image file in its letterboxed image; None for augmented images.
        counts: True; False for a rank that stands in where a batch has fewer images than there are ranks.
    """
    counts = [len(item.targets) for item in items]
    row = np.repeat(np.arange(len(items), dtype=np.float32), counts)[:, None]
    annotations = [dataset.annotations[item.index] for item in items]
    batch: Batch = {
        "images": torch.from_numpy(np.stack([item.image_rgb for item in items])).permute(0, 3, 1, 2),
        "targets": torch.from_numpy(np.concatenate((row, np.concatenate([item.targets for item in items])), 1)),
        "paths": [str(annotation.path) for annotation in annotations],
        "indices": [item.index for item in items],
        "placements": [item.placement for item in items],
        "counts": True,
    }
    if dataset.masks:
        masks = [item.masks for item in items if item.masks is not None]
        assert len(masks) == len(items), "a data set with masks draws one for every image"
        batch["masks"] = torch.from_numpy(np.stack(masks))
        batch["outlined"] = torch.from_numpy(np.concatenate([item.outlined for item in items]))
    return batch


def without_objects(batch: Batch) -> Batch:
    """Return a batch whose images do not count: without targets, and with `counts` False."""
    rest = {name: batch[name][:0] for name in ("targets", "outlined") if name in batch}
    return batch | rest | {"counts": False}


def _as_it_is(batch: Any) -> Any:
    return batch


def start_worker(on_start: Callable[[], object] | None, _: int) -> None:
    """Set up a worker process: call `on_start`, and use one thread, since the workers run in parallel."""
    if on_start is not None:
        on_start()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


class Loader:
    """The batches of a data set, epoch by epoch; its workers live as long as the loader."""

    def __init__(
        self,
        dataset: DetectionDataset,
        batches: EpochBatches,
        workers: int,
        on_worker_start: Callable[[], object] | None,
    ) -> None:
        forks = sys.platform == "linux" and "fork" in multiprocessing.get_all_start_methods()
        self.dataset, self.batches = dataset, batches
        self._loader = DataLoader(
            _Items(dataset),
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=functools.partial(start_worker, on_worker_start),
            persistent_workers=workers > 0,
            multiprocessing_context="fork" if workers > 0 and forks else None,  # shares the images in memory
            generator=torch.Generator().manual_seed(batches.seed),  # leaves torch's global random numbers alone
        )

    def set_epoch(self, epoch: int, mosaic: bool = True, start_batch: int = 0) -> None:
        """Set the batches of the next iteration.

        Args:
            epoch: number that determines the order and the augmentation.
            mosaic: False turns off mosaics and mixup; True follows the data set's settings.
            start_batch: number of batches to skip, to resume within an epoch.
        """
        self.batches.set_epoch(epoch, mosaic, start_batch)

    @property
    def share(self) -> Share:
        """What this rank of several reads."""
        return self.batches.share

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch; `start_batch` does not count."""
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
    on_worker_start: Callable[[], object] | None = None,
    share: Share = ALONE,
) -> Loader:
    """Return a loader of `dataset`'s batches; see `collate` for their content.

    Args:
        batch_size: images in a batch; must equal the batch size of a rectangular data set.
        workers: number of worker processes; 0 means this process.
        shuffle: draw a new order every epoch; else use the data set's order (by aspect ratio if it is rectangular).
        on_worker_start: function called once in each worker before it reads; must be picklable.
        share: what this rank of several reads.

    Raises:
        DataError: while iterating, if an image cannot be read any more.
        ValueError: `batch_size` differs from that of a rectangular data set.
    """
    if dataset.rect and batch_size != dataset.batch_size:
        raise ValueError(f"batch size {batch_size}: the rectangular data set was built for {dataset.batch_size}")
    return Loader(dataset, EpochBatches(dataset, batch_size, shuffle, seed, share), workers, on_worker_start)
