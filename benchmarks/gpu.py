"""Everything that a GPU can tell in one unattended run: `python -m benchmarks.gpu --out DIR [--minutes 8]`.

Parts, in this order: the tests of tests/gpu; a training on the built-in data; training speed and memory; inference
latency; attention layers against plain forms. DIR/gpu.json and DIR/gpu.md are written again after every result, so a
run that is cut off leaves what is done. `--dry` goes through all parts on the CPU with tiny settings.
"""

import argparse
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.modules import CASES
from models.yolo import Model
from utils.files import write_json, write_text
from utils.geometry.nms import non_max_suppression
from utils.hyperparameters import Hyperparameters
from utils.losses.detection import build_loss
from utils.optim.ema import ModelEMA
from utils.optim.optimizer import build_optimizer
from utils.precision import Precision, choose_precision

REPOSITORY = Path(__file__).parent.parent
NETWORKS = ("gelan-t.yaml", "gelan-c.yaml", "yolov9-c.yaml", "yolo11n.yaml", "yolov9-c-FocalModulationBlock.yaml")
OBJECTS_PER_IMAGE = 10
MOST_IMAGES = 128
MEMORY_SHARE = 0.8
REMEDIABLE = (RuntimeError, ValueError, OSError, subprocess.SubprocessError)
"""What a part may raise without ending the others: torch's errors are RuntimeErrors."""


@dataclass
class Report:
    """The results so far, and where they are written.

    Attributes:
        rows: for each part, its results as plain data.
        deadline: `time.monotonic()` after which no further result is begun.
    """

    folder: Path
    dry: bool
    deadline: float
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def left(self) -> float:
        """Seconds left."""
        return self.deadline - time.monotonic()

    def add(self, part: str, measure: Callable[[], dict[str, Any]], **what: Any) -> dict[str, Any]:
        """Measure one result, unless the time is over, and write everything again; an error becomes the result."""
        row = dict(what)
        if self.left <= 0:
            row["error"] = "not begun: the time was over"
        else:
            start = time.monotonic()
            try:
                row |= measure()
            except REMEDIABLE as error:
                row["error"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300]}"
                torch.cuda.empty_cache()
            row["took_s"] = round(time.monotonic() - start, 1)
        self.rows.setdefault(part, []).append(row)
        write_json(self.folder / "gpu.json", {"machine": describe_machine(), "dry": self.dry, "parts": self.rows})
        write_text(self.folder / "gpu.md", self.table())
        print(f"{part}: {row}", flush=True)
        return row

    def table(self) -> str:
        """Return the results as markdown, a table for each part."""
        lines = [f"Measured by `python -m benchmarks.gpu` on {describe_machine()}.", ""]
        for part, rows in self.rows.items():
            columns = list(dict.fromkeys(name for row in rows for name in row))
            lines += [f"### {part}", "", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
            lines += [f"| {' | '.join(str(row.get(name, '')) for name in columns)} |" for row in rows]
            lines.append("")
        return "\n".join(lines)


def describe_machine() -> str:
    """Return GPU, its memory, processor count and versions in a line."""
    versions = f"{os.cpu_count()} processors, torch {torch.__version__}, Python {sys.version.split()[0]}"
    if not torch.cuda.is_available():
        return f"no GPU, {versions}"
    gpu = torch.cuda.get_device_properties(0)
    return f"{gpu.name} ({gpu.total_memory / 2**30:.0f} GiB), CUDA {torch.version.cuda}, {versions}"


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(run: Callable[[], object], rounds: int, warmup: int = 2) -> float:
    """Return the median time of a call, the GPU's work included."""
    for _ in range(warmup):
        run()
    times = []
    for _ in range(rounds):
        synchronize()
        start = time.perf_counter()
        run()
        synchronize()
        times.append(time.perf_counter() - start)
    return median(times)


# --- the parts


def run_tests(report: Report) -> None:
    """Run tests/gpu; count what passed, and name what failed."""
    junit = report.folder / "tests.xml"
    words = [sys.executable, "-m", "pytest", "-o", "addopts=--import-mode=importlib", "-m", "gpu", "tests/gpu", "-q"]
    words += [f"--junitxml={junit}", "-p", "no:cacheprovider"]
    if report.dry:
        words += ["-k", "suppression or deployed or mixed"]

    def measure() -> dict[str, Any]:
        variables = os.environ | ({"YOLO_LOOM_DRY": "1"} if report.dry else {})
        with (report.folder / "tests.txt").open("w") as output:
            subprocess.run(
                words, cwd=REPOSITORY, env=variables, stdout=output, stderr=output, timeout=report.left, check=False
            )
        suite = ElementTree.parse(junit).getroot().find("testsuite")
        assert suite is not None
        counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
        broken = [
            str(case.get("name"))
            for case in suite.iter("testcase")
            if case.find("failure") is not None or case.find("error") is not None
        ]
        return counts | {"failed": ", ".join(broken)}

    report.add("tests", measure, command="pytest -m gpu tests/gpu")


def train_built_in(report: Report) -> None:
    """Train on the built-in data, and give the losses and metrics of the epochs: do they fall as on a CPU?"""
    epochs, size = (1, 64) if report.dry else (30, 192)
    words = [sys.executable, "train.py", "--cfg", "gelan-t.yaml", "--data", "data/shapes.yaml", "--img", str(size)]
    words += ["--epochs", str(epochs), "--close-mosaic", "8", "--optimizer", "AdamW", "--hyp", "data/hyp.quick.yaml"]
    words += [
        "--project",
        str(report.folder),
        "--name",
        "train",
        "--exist-ok",
        "--workers",
        str(min(os.cpu_count() or 1, 8)),
    ]
    if report.dry:
        words += ["--device", "cpu", "--noplots", "--batch", "8"]

    def measure() -> dict[str, Any]:
        with (report.folder / "train.txt").open("w") as output:
            limit = 600 if report.dry else min(180, report.left)
            try:
                subprocess.run(words, cwd=REPOSITORY, stdout=output, stderr=output, timeout=limit, check=False)
            except subprocess.TimeoutExpired:
                print(f"stopped after {limit:.0f} s", flush=True)
        header, *rows = (line.split(",") for line in (report.folder / "train" / "results.csv").read_text().splitlines())
        first, last = (dict(zip(header, row, strict=True)) for row in (rows[0], rows[-1]))
        return {
            "epochs": len(rows),
            "box loss": f"{first['train/box_loss']} to {last['train/box_loss']}",
            "mAP50": last["metrics/mAP_0.5"],
            "mAP50-95": last["metrics/mAP_0.5:0.95"],
            "s an epoch": median(float(row[header.index("time/train_s")]) for row in rows),
        }

    report.add("training on the built-in data", measure, network="gelan-t", img=size)


class Step:
    """One training step of a network on random images, and the time of its parts."""

    def __init__(self, cfg: str, precision: Precision, size: int, compiled: bool) -> None:
        torch.manual_seed(0)
        self.hyp, self.precision, self.size = Hyperparameters(), precision, size
        self.model = precision.place(Model(cfg)).train()
        self.forward = torch.compile(self.model) if compiled else self.model
        self.ema, self.loss = ModelEMA(self.model), build_loss(self.model, self.hyp)
        self.optimizer = build_optimizer(self.model, "SGD", self.hyp, self.hyp.weight_decay)
        self.parameters = [one for group in self.optimizer.param_groups for one in group["params"]]
        self.parts: dict[str, list[float]] = {}

    def batch(self, images: int) -> tuple[Tensor, Tensor]:
        """Return random pixels and targets."""
        pixels = torch.randint(0, 256, (images, 3, self.size, self.size), dtype=torch.uint8)
        count = images * OBJECTS_PER_IMAGE
        owner = torch.arange(images).repeat_interleave(OBJECTS_PER_IMAGE)[:, None].float()
        classes = torch.randint(0, self.model.nc, (count, 1)).float()
        boxes = torch.cat((0.1 + 0.8 * torch.rand(count, 2), 0.03 + 0.2 * torch.rand(count, 2)), 1)
        return pixels, torch.cat((owner, classes, boxes), 1)

    def __call__(self, pixels: Tensor, targets: Tensor, timed: bool = False) -> None:
        """Run the step; `timed` waits for the GPU after each part."""
        self.lap("", timed)
        images = self.precision.images(pixels)
        self.lap("transfer", timed)
        with self.precision.autocast():
            outputs = self.forward(images)
        self.lap("forward", timed)
        total, _ = self.loss(outputs, {"images": images, "targets": targets})
        self.lap("loss", timed)
        total.backward()
        self.lap("backward", timed)
        torch.nn.utils.clip_grad_norm_(self.parameters, self.hyp.clip_norm, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.model)
        self.lap("optimizer and EMA", timed)

    def lap(self, name: str, timed: bool) -> None:
        """End a part of a timed step."""
        if timed:
            synchronize()
            now = time.perf_counter()
            if name:
                self.parts.setdefault(name, []).append(now - self.since)
            self.since = now


def fitting_images(step: Step, most: int) -> int:
    """Return the largest power of two of images whose step leaves a fifth of the GPU's memory free."""
    if not torch.cuda.is_available():
        return 1
    total, images = torch.cuda.get_device_properties(0).total_memory, 4
    while images < most:
        torch.cuda.reset_peak_memory_stats()
        step(*step.batch(images))
        if 2 * torch.cuda.max_memory_allocated() > MEMORY_SHARE * total:
            break
        images *= 2
    return images


def busy_share(run: Callable[[], object], steps: int = 3) -> float:
    """Return the share of the time in which the GPU computes, by the profiler."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    synchronize()
    start = time.perf_counter()
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(steps):
            run()
        synchronize()
    elapsed = time.perf_counter() - start
    return sum(event.self_device_time_total for event in profile.key_averages()) / 1e6 / elapsed


def training_speed(report: Report) -> None:
    """Measure images a second, memory and the parts of a step, with and without compilation."""
    size, most, rounds = (64, 1, 1) if report.dry else (640, MOST_IMAGES, 10)
    for cfg in NETWORKS[:1] if report.dry else NETWORKS:
        for compiled in (False,) if report.dry else (False, True):

            def measure(cfg: str = cfg, compiled: bool = compiled) -> dict[str, Any]:
                step = Step(cfg, choose_precision(), size, compiled)
                images = fitting_images(step, most)
                batch = step.batch(images)
                taken = seconds(lambda: step(*batch), rounds, warmup=3)
                peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
                for _ in range(3):
                    step(*batch, timed=True)
                parts = {f"{name} ms": round(1000 * median(times), 1) for name, times in step.parts.items()}
                busy = round(busy_share(lambda: step(*batch)), 2) if torch.cuda.is_available() else ""
                return (
                    {"batch": images, "images/s": round(images / taken, 3), "peak GiB": round(peak, 1)}
                    | parts
                    | {"busy": busy}
                )

            report.add("training speed", measure, network=cfg.removesuffix(".yaml"), img=size, compiled=compiled)


def inference_latency(report: Report) -> None:
    """Measure deployed networks with decoding and NMS: eager, compiled, and compiled with CUDA graphs."""
    size, rounds = (64, 1) if report.dry else (640, 30)
    device = choose_precision().device
    formats = (torch.float32,) if device.type == "cpu" else (torch.float16, torch.float32)
    modes = ("eager",) if report.dry else ("eager", "compiled", "CUDA graphs")
    for cfg in NETWORKS[:1] if report.dry else NETWORKS:
        for images in (1,) if report.dry else (1, 32):
            for dtype in formats:
                for mode in modes:

                    def measure(
                        cfg: str = cfg, images: int = images, dtype: torch.dtype = dtype, mode: str = mode
                    ) -> dict[str, Any]:
                        return latency(cfg, images, dtype, mode, size, device, rounds)

                    what = {"network": cfg.removesuffix(".yaml"), "batch": images, "format": str(dtype)[6:]}
                    report.add("inference latency", measure, **what, mode=mode)


def latency(
    cfg: str, images: int, dtype: torch.dtype, mode: str, size: int, device: torch.device, rounds: int
) -> dict[str, Any]:
    """Return the milliseconds of the network and of the network with NMS."""
    network = Model(cfg).eval().deploy()
    classes = network.nc
    network = network.to(device, dtype, memory_format=torch.channels_last)
    run: Callable[[Tensor], Tensor] = network
    if mode != "eager":
        run = torch.compile(network, mode="reduce-overhead" if mode == "CUDA graphs" else None)
    pixels = torch.rand(images, 3, size, size, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        alone = seconds(lambda: run(pixels), rounds, warmup=5)
        whole = seconds(lambda: non_max_suppression(run(pixels).float().clone(), classes, 0.25, 0.45), rounds)
    return {"network ms": round(1000 * alone, 2), "with NMS ms": round(1000 * whole, 2)}


def attention_layers(report: Report) -> None:
    """Measure attention layers against plain forms of the same formulas, forward and backward."""
    device, rounds = choose_precision().device, 1 if report.dry else 20
    for case in CASES[:1] if report.dry else CASES:

        def measure(case: Any = case) -> dict[str, Any]:
            torch.manual_seed(0)
            module = case.make().to(device)
            x = torch.randn(case.shape, device=device, requires_grad=True)

            def backward(run: Callable[[], Tensor]) -> Callable[[], None]:
                return lambda: run().square().mean().backward()

            ours = seconds(backward(lambda: module(x)), rounds)
            plain = seconds(backward(lambda: case.plain(module, x)), rounds)
            return {"ms": round(1000 * ours, 2), "plain ms": round(1000 * plain, 2), "ratio": round(plain / ours, 2)}

        report.add("attention layers, forward and backward", measure, layer=case.name, shape=str(case.shape))


PARTS = (run_tests, train_built_in, training_speed, inference_latency, attention_layers)


def main(arguments: list[str] | None = None) -> int:
    """Run the parts; return 0 if nothing failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of gpu.json and gpu.md")
    parser.add_argument("--minutes", type=float, default=8, help="no result is begun after this time")
    parser.add_argument("--dry", action="store_true", help="rehearse all parts on the CPU with tiny settings")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available() and not options.dry:
        print("error: no CUDA device: expected one; --dry rehearses on the CPU", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    report = Report(options.out.resolve(), options.dry, time.monotonic() + 60 * options.minutes)
    print(describe_machine(), flush=True)
    for part in PARTS:
        part(report)
    return int(any("error" in row or row.get("failures") for rows in report.rows.values() for row in rows))


if __name__ == "__main__":
    sys.exit(main())
