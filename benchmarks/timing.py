"""Shared by the benchmarks: a description of the machine, and timing of variants in turn."""

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch


def machine() -> str:
    """Describe CPU, bf16 instructions, threads and torch version in one line."""
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
    """Run the variants in turn (A B A B …) and collect the seconds of their parts.

    Args:
        variants: functions by name; each runs once and returns seconds by part.
        rounds: runs of each variant that count.
        warmup: runs of each variant before these.
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
    """Print the median milliseconds of each part, and its ratio to the baseline with the range over the rounds."""
    for name, parts in collected.items():
        for part, seconds in parts.items():
            line = f"{name:<28}{part:<14}{1000 * statistics.median(seconds):>10.1f} ms"
            reference = collected[baseline].get(part)
            if name != baseline and reference:
                ratios = sorted(theirs / ours for theirs, ours in zip(reference, seconds, strict=True))
                line += f"   {statistics.median(ratios):>6.2f}x faster ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            print(line)


class Clock:
    """Stopwatch that splits one run into parts: `lap(name)` ends a part."""

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
