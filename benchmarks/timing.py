"""What the benchmarks share: the machine in words, and fair timing of two variants side by side."""

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch


def machine() -> str:
    """Return CPU, its matrix instructions, threads and torch version in one line."""
    name, flags = platform.processor() or platform.machine(), ""
    if Path("/proc/cpuinfo").is_file():
        text = Path("/proc/cpuinfo").read_text()
        name = next(
            (line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")), name
        )
        flags = ", ".join(flag for flag in ("amx_bf16", "avx512_bf16") if flag in text) or "no bf16 instructions"
    return f"{name} ({flags}), {torch.get_num_threads()} threads, torch {torch.__version__}"


def in_turn(
    variants: Mapping[str, Callable[[], Mapping[str, float]]], rounds: int, warmup: int = 1
) -> dict[str, dict[str, list[float]]]:
    """Run the variants in turn, A B A B …, and collect the seconds of each of their parts.

    Args:
        variants: by name, a function that runs once and returns seconds by part.
        rounds: counted runs of each.
        warmup: runs of each before, not counted.
    """
    collected: dict[str, dict[str, list[float]]] = {name: {} for name in variants}
    for number in range(warmup + rounds):
        for name, run in variants.items():
            parts = run()
            if number >= warmup:
                for part, seconds in parts.items():
                    collected[name].setdefault(part, []).append(seconds)
    return collected


def report(collected: Mapping[str, Mapping[str, list[float]]], baseline: str) -> None:
    """Print the median milliseconds of each part, and its ratio to the baseline with the range over the pairs."""
    for name, parts in collected.items():
        for part, seconds in parts.items():
            line = f"{name:<28}{part:<14}{1000 * statistics.median(seconds):>10.1f} ms"
            reference = collected[baseline].get(part)
            if name != baseline and reference:
                ratios = sorted(theirs / ours for theirs, ours in zip(reference, seconds, strict=True))
                line += f"   {statistics.median(ratios):>6.2f}x faster ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            print(line)


class Clock:
    """Splits one run into parts: `lap(name)` ends a part."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self.start = self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        """End the part `name`."""
        now = time.perf_counter()
        self.parts[name] = now - self.last
        self.last = now

    def total(self) -> dict[str, float]:
        """Return all parts and their sum, `total`."""
        return self.parts | {"total": self.last - self.start}
