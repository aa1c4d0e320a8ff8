"""train.py in several processes and under signals: what is written, how it ends, and how it goes on."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.cli.command_line import REPOSITORY, CommandLine, environment, write_data, write_network
from tests.few import few
from tests.saying import assert_says
from tests.utils.test_ranks import torchrun
from utils.weights.own_file import read_checkpoint

FLAGS = (
    *("--img", 64, "--batch", 4, "--epochs", 3, "--workers", 0, "--device", "cpu", "--amp", "off", "--noplots"),
    *("--save-steps", 1, "--multi-scale", "--close-mosaic", 1),
)
PATCHED = """
import os, runpy, signal, sys

import utils  # first: it quiets torch's notes
import torch

number, calls, real = int(sys.argv[1]), 0, torch.Tensor.backward

def backward(self, *arguments, **settings):
    global calls
    calls += 1
    if calls == number:
        now()
    return real(self, *arguments, **settings)

torch.Tensor.backward = backward
"""
KILL_SECOND_RANK = (
    PATCHED
    + """
def now():
    if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)

sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
)
"""Runs a script, and kills the second rank in its n-th backward pass."""
SIGNAL_ITSELF = (
    PATCHED
    + """
def now(names=sys.argv[2].split()):
    for name in names:
        os.kill(os.getpid(), getattr(signal, name))

sys.argv = sys.argv[3:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
)
"""Runs a script that sends itself signals in its n-th backward pass."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with twelve training and five validation images, and a network of two branches."""
    write_data(tmp_path / "data", train=12, val=5)
    write_network(tmp_path, 2)
    return tmp_path


def words(folder: Path, name: str, *flags: object) -> list[object]:
    """Return the command line of a training; flags that are given again win."""
    fixed = ("--cfg", folder / "tiny2.yaml", "--data", folder / "data" / "data.yaml", "--project", folder / "runs")
    return [REPOSITORY / "train.py", *fixed, *FLAGS, "--name", name, *flags]


def last(folder: Path, name: str) -> dict:
    """Return the content of a run's last.pt."""
    return read_checkpoint(folder / "runs" / name / "weights" / "last.pt")


def equal(first: dict, second: dict) -> bool:
    """Tell whether two checkpoints hold the same bits in weights, average, optimizer and losses."""
    same = all(
        torch.equal(value, second[part][name]) for part in ("model", "ema") for name, value in first[part].items()
    )
    rows = [row[:11] for row in first["rows"]] == [row[:11] for row in second["rows"]]
    return same and rows and first["epoch"] == second["epoch"]


def test_two_ranks_write_one_run(folder: Path):
    """One run folder, one output, the batch said per rank; the batches are those of one process."""
    status, out, err = torchrun(*words(folder, "two", "--epochs", 1))
    assert status == 0, err
    assert sorted(path.name for path in (folder / "runs").iterdir()) == ["two"]
    assert out.count("compute: ") == 1
    assert_says(out, "4 (2 in each of 2 processes)")
    checkpoint = last(folder, "two")
    assert (checkpoint["epoch"], checkpoint["ranks"], len(checkpoint["rng_of_ranks"])) == (1, 2, 1)
    rows = (folder / "runs" / "two" / "results.jsonl").read_text().splitlines()
    assert len(rows) == 1
    assert "metrics/mAP_0.5" in rows[0]


@pytest.mark.slow
def test_a_batch_that_cannot_be_divided_is_refused(folder: Path):
    status, _, err = torchrun(*words(folder, "odd", "--batch", 15))
    assert status != 0
    messages = [line for line in err.splitlines() if line.startswith("rank ")]
    assert len(messages) == 1, err
    assert_says(messages[0], "rank 0", "--batch 15", "2", "14")
    assert not (folder / "runs").exists()


@pytest.mark.slow
def test_more_ranks_than_images_are_refused(folder: Path):
    few = write_data(folder / "few", train=2, val=1)
    status, _, err = torchrun(*words(folder, "few", "--data", few, "--batch", 6), processes=3)
    assert status != 0
    messages = [line for line in err.splitlines() if line.startswith("rank ")]
    assert len(messages) == 1, err
    assert_says(messages[0], "2 training images", "3 processes")


@pytest.mark.slow
def test_a_killed_rank_is_restarted_and_the_run_ends_as_if_nothing_had_been(folder: Path):
    """By torchrun itself, and by hand with --resume: the same bits as a run that nothing disturbed."""
    assert torchrun(*words(folder, "whole"))[0] == 0
    killer = folder / "killer.py"
    killer.write_text(KILL_SECOND_RANK)
    moment = ("5",)
    status, out, err = torchrun(killer, *moment, *words(folder, "restarted"), restarts=1)
    assert status == 0, err
    assert_says(out, "restart 1", "last.pt")
    assert equal(last(folder, "whole"), last(folder, "restarted"))
    start = time.monotonic()
    assert torchrun(killer, *moment, *words(folder, "killed"))[0] != 0
    assert time.monotonic() - start < 60
    assert last(folder, "killed")["epoch"] < 3
    resumed = [REPOSITORY / "train.py", "--resume", folder / "runs" / "killed", "--workers", 0]
    assert torchrun(*resumed)[0] == 0
    assert equal(last(folder, "whole"), last(folder, "killed"))


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_ranks(folder: Path):
    assert torchrun(*words(folder, "part", "--epochs", 1))[0] == 0
    command = [sys.executable, "train.py", "--resume", str(folder / "runs" / "part"), "--epochs", "2", "--workers", "0"]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert_says(done.stdout, "2 processes", "1")
    assert last(folder, "part")["epoch"] == 2


@pytest.mark.parametrize("name", few(["SIGTERM", "SIGUSR1"], "SIGTERM"))
def test_a_signal_ends_the_run_after_the_step_and_it_goes_on_from_there(cli: CommandLine, folder: Path, name: str):
    """Status 143, the command to type, and the same bits in the end."""
    cli(*words(folder, "whole")).done()
    signaller = folder / "signaller.py"
    signaller.write_text(SIGNAL_ITSELF)
    told = cli(signaller, 5, name, *words(folder, "told"))
    assert told.status == 143, told.err
    assert_says(told.err, name, "train.py --resume", "last.pt")
    assert last(folder, "told")["partial"]["batch"] == 2
    cli("train.py", "--resume", folder / "runs" / "told").done()
    assert equal(last(folder, "whole"), last(folder, "told"))


def test_a_second_signal_ends_at_once(cli: CommandLine, folder: Path):
    signaller = folder / "signaller.py"
    signaller.write_text(SIGNAL_ITSELF)
    told = cli(signaller, 2, "SIGTERM SIGTERM", *words(folder, "told"))
    assert told.status == 143, told.err
    assert "--resume" not in told.err


@pytest.mark.slow
def test_val_in_two_ranks_measures_bit_for_bit_what_one_process_measures(folder: Path):
    assert torchrun(*words(folder, "two", "--epochs", 1))[0] == 0
    weights, data = folder / "runs" / "two" / "weights" / "best.pt", folder / "data" / "data.yaml"
    flags = ("--weights", weights, "--data", data, "--device", "cpu", "--amp", "off", "--batch", 2, "--workers", 0)
    flags = (*flags, "--project", folder, "--noplots", "--save-json")
    alone = [sys.executable, str(REPOSITORY / "val.py"), *map(str, flags), "--name", "alone"]
    subprocess.run(alone, env=environment(), capture_output=True, check=True)
    status, _, err = torchrun(REPOSITORY / "val.py", *flags, "--name", "ranks")
    assert status == 0, err
    one, several = (json.loads((folder / name / "metrics.json").read_text()) for name in ("alone", "ranks"))
    for content in (one, several):
        del content["speed_ms"], content["settings"]
    assert one == several
    assert one["images"] == 5
    first, second = (json.loads((folder / name / "predictions.json").read_text()) for name in ("alone", "ranks"))
    assert first == second
