"""A run that is killed at any moment, also while it writes, and resumed ends bit for bit as if nothing had been."""

import math
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.cli.command_line import REPOSITORY, CommandLine, Finished, read_table, write_data
from tests.few import few
from tests.networks import tiny_config
from utils.weights.own_file import read_checkpoint

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="made for fork and /proc")

EPOCHS, BATCHES, KILLED = 3, 4, -9
RUN = (
    "--epochs",
    EPOCHS,
    "--batch",
    2,
    "--img",
    64,
    "--close-mosaic",
    1,
    "--save-steps",
    2,
    "--multi-scale",
    "--device",
    "cpu",
    "--noplots",
)
"""Mosaics end within the run, and two batches make a step (hyp.yaml), so that some batches leave a gradient pending."""

KILLER = """
import os, runpy, signal, sys, time
from pathlib import Path

import torch

moment, number = sys.argv[1], float(sys.argv[2])
sys.argv = sys.argv[3:]
calls = 0

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def is_the_one(path):
    global calls
    calls += "/weights/" in str(path)
    return calls == number and "/weights/" in str(path)

def sync(descriptor, real=os.fsync):
    if is_the_one(os.readlink(f"/proc/self/fd/{descriptor}")):
        if moment == "half written":
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
        die()
    real(descriptor)

def replace(source, target, real=os.replace):
    the_one = is_the_one(target)
    if the_one and moment == "before the rename":
        die()
    real(source, target)
    if the_one:
        die()

def backward(self, *arguments, real=torch.Tensor.backward, **settings):
    global calls
    calls += 1
    if calls == int(number) and moment == "batch":
        die()
    if calls == int(number) and not os.fork():
        time.sleep(number % 1 / 5)
        if os.getppid() == parent:
            os.kill(parent, signal.SIGKILL)
        os._exit(0)
    real(self, *arguments, **settings)

parent = os.getpid()
if moment in ("batch", "a while later"):
    torch.Tensor.backward = backward
elif moment in ("half written", "before the sync"):
    os.fsync = sync
else:
    os.replace = replace
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a script that kills itself at the n-th batch or write into weights/.

Or it is killed from outside up to 0.2 seconds after a batch.
"""

WRITES = ("half written", "before the sync", "before the rename", "after the rename")
MOMENTS = ("a while later", "batch", *WRITES)


def random_moment(seed: str, kind: str) -> tuple[str, float]:
    """Return a moment of one kind and the number of its batch (with a fraction: the time after it) or of its write."""
    rng = random.Random(seed)
    if kind == "a while later":
        return kind, rng.uniform(1, EPOCHS * BATCHES - 2)
    return kind, rng.randint(
        1, EPOCHS * BATCHES if kind == "batch" else 2 * EPOCHS
    )  # two checkpoints an epoch, at least


def differences(first: Any, second: Any, where: str = "") -> Iterator[str]:
    """Yield where two nested structures differ in a bit."""
    if type(first) is not type(second):
        yield f"{where}: {type(first)} and {type(second)}"
    elif isinstance(first, dict):
        yield from (f"{where}.{key}: in one only" for key in first.keys() ^ second.keys())
        for key in first.keys() & second.keys():
            yield from differences(first[key], second[key], f"{where}.{key}")
    elif isinstance(first, list | tuple):
        if len(first) != len(second):
            yield f"{where}: {len(first)} and {len(second)} entries"
        for index, (one, other) in enumerate(zip(first, second, strict=False)):
            yield from differences(one, other, f"{where}[{index}]")
    elif isinstance(first, torch.Tensor):
        if first.dtype != second.dtype or not torch.equal(first, second):
            yield where
    elif not (first == second or (isinstance(first, float) and math.isnan(first) and math.isnan(second))):
        yield f"{where}: {first} and {second}"


def outcome(run: Path) -> dict[str, Any]:
    """Return all that a run has written that may not depend on the clock, its options or its network's yaml."""
    last, best = (read_checkpoint(run / "weights" / name) for name in ("last.pt", "best.pt"))
    header, rows = read_table(run / "results.csv")
    table = [[value for name, value in zip(header, row, strict=True) if not name.startswith("time/")] for row in rows]
    last["rows"] = [row[:-2] for row in last["rows"]]
    return {
        "last": {key: last[key] for key in last.keys() - {"options", "network"}},
        "best": best["model"],
        "table": table,
    }


class Runs:
    """Starts, kills and resumes runs of one network on one data set."""

    def __init__(self, cli: CommandLine, folder: Path) -> None:
        self.cli, self.folder, self.script = cli, folder, folder / "killer.py"
        self.script.write_text(KILLER)
        config = tiny_config(branches=2)
        config["backbone"][4] = [
            -1,
            1,
            "FocalModulationBlock",
            [{"focal_window": 3, "drop": 0.2}],
        ]  # draws random numbers while training
        config["backbone"].append([-1, 1, "Conv", [8, 3, 2]])
        config["head"][0][0] = [2, 3, 5] * 2
        (folder / "net.yaml").write_text(yaml.safe_dump(config))
        (folder / "hyp.yaml").write_text("nominal_batch: 4\nmin_steps_per_epoch: 1\nlr0: 0.02\n")
        self.data = write_data(folder / "data", train=2 * BATCHES, val=2)
        self.done: dict[str, dict[str, Any]] = {}

    def start(self, name: str, flags: tuple, *killer: object) -> Finished:
        """Train into `name`, which may hold the rest of a run without a checkpoint; `killer`: the moment to die at."""
        files = (
            "--cfg",
            self.folder / "net.yaml",
            "--data",
            self.data,
            "--hyp",
            self.folder / "hyp.yaml",
            "--project",
            self.folder,
        )
        command = (self.script, *killer, REPOSITORY / "train.py") if killer else ("train.py",)
        return self.cli(*command, *files, *RUN, *flags, "--name", name, "--exist-ok")

    def uninterrupted(self, amp: str) -> dict[str, Any]:
        """Return the outcome of the run that nothing happens to, without workers."""
        if amp not in self.done:
            self.start(f"whole {amp}", ("--workers", 0, "--amp", amp)).done()
            self.done[amp] = outcome(self.folder / f"whole {amp}")
        return self.done[amp]

    def killed_and_resumed(self, name: str, workers: int, amp: str, moment: tuple[str, float]) -> dict[str, Any]:
        """Return the outcome of a run that was killed at a moment and then resumed.

        Where nothing was saved yet, it is started again.
        """
        (kind, number), flags = moment, ("--workers", workers, "--amp", amp)
        killed = self.start(name, flags, kind, number)
        while kind == "a while later" and killed.status == 0 and number > 2:  # the run ended first
            number -= 1
            killed = self.start(name, flags, kind, number)
        assert killed.status == KILLED, killed
        last = self.folder / name / "weights" / "last.pt"
        resumed = self.cli("train.py", "--resume", last)
        if not last.exists():
            resumed.refused(
                last, "no such file", *(["args.yaml"] if (self.folder / name / "args.yaml").exists() else [])
            )
            self.start(name, flags).done()
        elif read_checkpoint(last)["epoch"] == EPOCHS:
            resumed.refused(f"{EPOCHS} epochs") if resumed.status else resumed.done()
        else:
            resumed.done()
        return outcome(self.folder / name)


@pytest.fixture(scope="module")
def runs(cli: CommandLine, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs of a tiny network on eight images."""
    return Runs(cli, tmp_path_factory.mktemp("runs"))


def check(runs: Runs, name: str, workers: int, amp: str, moment: tuple[str, float]) -> None:
    """Require that a kill leaves no trace in the outcome, with any number of workers, and no file behind."""
    found = runs.killed_and_resumed(name, workers, amp, moment)
    assert list(differences(runs.uninterrupted(amp), found)) == [], moment
    assert not list((runs.folder / name).glob("**/*.tmp"))


@pytest.mark.parametrize(
    ("workers", "amp", "moment"),
    few(
        [
            (0, "off", ("batch", 7)),  # a gradient is pending, and a checkpoint within the epoch is there
            (0, "off", ("half written", 5)),
            (2, "off", ("a while later", 5.5)),
        ],
        (0, "off", ("batch", 7)),
    ),
    ids=str,
)
def test_a_kill_leaves_no_trace(runs: Runs, workers: int, amp: str, moment: tuple[str, float]) -> None:
    check(runs, f"{workers}{amp}{moment[0]}", workers, amp, moment)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(10))
@pytest.mark.parametrize("amp", ["off", "bf16"])
@pytest.mark.parametrize("workers", [0, 2])
def test_ten_kills_leave_no_trace(runs: Runs, workers: int, amp: str, number: int) -> None:
    moment = random_moment(f"{workers}{amp}{number}", MOMENTS[number % len(MOMENTS)])
    check(runs, f"{workers}{amp}{number}", workers, amp, moment)
