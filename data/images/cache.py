"""Resized images in one block of memory that worker processes share."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

AUTO_LIMIT_BYTES = 2**30
AUTO_LIMIT_SHARE = 0.25
CACHE_CHOICES = ("auto", "ram", "off")


def free_memory() -> int | None:
    """Return the bytes of available memory, within the control group's limit; None if unknown."""
    free = None
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
        group = Path("/sys/fs/cgroup")
        free = min(free, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, KeyError, ValueError):  # no such file, or no limit ("max")
        return free
    return free


class ImageCache:
    """Images of known sizes in one block of memory, filled once, read-only afterwards."""

    def __init__(self, sizes_hw: Sequence[tuple[int, int]]) -> None:
        self.sizes_hw = list(sizes_hw)
        self.ends = np.cumsum([height * width * 3 for height, width in self.sizes_hw], dtype=np.int64)
        self.block: NDArray[np.uint8] = np.empty(0, np.uint8)

    @property
    def num_bytes(self) -> int:
        """Size of the full block in bytes."""
        return int(self.ends[-1]) if len(self.ends) else 0

    @property
    def fits(self) -> bool:
        """Whether the block stays under 1 GiB and a quarter of the free memory."""
        free = free_memory()
        return self.num_bytes < (AUTO_LIMIT_BYTES if free is None else min(AUTO_LIMIT_BYTES, AUTO_LIMIT_SHARE * free))

    def fill(self, read: Callable[[int], NDArray[np.uint8]]) -> None:
        """Read all images, in threads; `read(i)` must return image i in its known size."""
        self.block = np.empty(self.num_bytes, np.uint8)

        def put(index: int) -> None:
            self[index][...] = read(index)

        with ThreadPoolExecutor(
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        ) as pool:
            for _ in pool.map(put, range(len(self.sizes_hw))):
                pass
        self.block.flags.writeable = False

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        end, (height, width) = int(self.ends[index]), self.sizes_hw[index]
        return self.block[end - height * width * 3 : end].reshape(height, width, 3)
