"""Runs that end early, by a full disk, a lack of memory, a lost loss or Ctrl-C, and how they go on."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.cli.command_line import (
    REPOSITORY,
    SHORT,
    CommandLine,
    Finished,
    environment,
    read_table,
    write_data,
    write_network,
)
from tests.saying import assert_says
from utils.weights.own_file import read_checkpoint

Train = Callable[..., Finished]

FULL_DISK = """
import errno, os, runpy, sys

synced, sync = [], os.fsync

def fail_at_the_second_epoch(descriptor):
    synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    if sum("last.pt" in path for path in synced) == 4 and "last.pt" in synced[-1]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    sync(descriptor)

os.fsync = fail_at_the_second_epoch
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

LITTLE_MEMORY = """
import resource, runpy, sys
from pathlib import Path

import utils.training.run

status = Path("/proc/self/status").read_text().splitlines()
used = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[1]) * 2**20,) * 2)
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="made for /proc")


def write_script(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def numbers(run: Path) -> list[list[str]]:
    """Return the rows of a run's results.csv without those that depend on the clock."""
    header, rows = read_table(run / "results.csv")
    return [[value for name, value in zip(header, row, strict=True) if not name.startswith("time/")] for row in rows]


@linux
def test_full_disk_keeps_the_checkpoint_and_the_resumed_run_is_as_if_nothing_had_been(
    cli: CommandLine, train: Train, data: Path, network: Path, tmp_path: Path
) -> None:
    script = write_script(tmp_path / "full_disk.py", FULL_DISK)
    flags = (
        "--cfg",
        network,
        "--data",
        data,
        *SHORT,
        "--epochs",
        3,
        "--noplots",
        "--project",
        tmp_path,
        "--name",
        "full",
    )
    last = tmp_path / "full" / "weights" / "last.pt"
    cli(script, REPOSITORY / "train.py", *flags).refused("disk full", last, status=1)
    assert read_checkpoint(last)["epoch"] == 1
    assert {path.name for path in last.parent.iterdir()} == {"last.pt", "best.pt"}

    cli("train.py", "--resume", last).done()
    train("--epochs", 3, "--name", "whole").done()
    assert numbers(tmp_path / "full") == numbers(tmp_path / "whole")
    ours, theirs = (read_checkpoint(tmp_path / name / "weights" / "last.pt") for name in ("full", "whole"))
    for part in ("model", "ema"):
        assert all(torch.equal(value, theirs[part][name]) for name, value in ours[part].items())


@linux
def test_out_of_memory_says_what_to_lower(cli: CommandLine, data: Path, network: Path, tmp_path: Path) -> None:
    script = write_script(tmp_path / "little_memory.py", LITTLE_MEMORY)
    flags = (
        "--cfg",
        network,
        "--data",
        data,
        *SHORT,
        "--img",
        2048,
        "--batch",
        64,
        "--cache",
        "off",
        "--noplots",
        "--project",
        tmp_path,
    )
    refused = cli(script, 300, REPOSITORY / "train.py", *flags).refused
    refused("out of memory", "--batch", "--img", "--workers", "last checkpoint", status=1)


@pytest.mark.parametrize("hyp", ["lr0: 1.0e+9\n", "lr0: 1.0e+38\nwarmup_epochs: 0\n"])
def test_a_lost_loss_stops_the_run_and_leaves_no_ruined_checkpoint(train: Train, tmp_path: Path, hyp: str) -> None:
    (tmp_path / "hyp.yaml").write_text(hyp)
    train("--epochs", 20, "--hyp", tmp_path / "hyp.yaml").refused("loss", "lr0", "no epoch", status=1)
    assert not list(tmp_path.glob("exp/weights/*"))


def test_a_lost_loss_keeps_the_last_good_weights(cli: CommandLine, train: Train, tmp_path: Path) -> None:
    train("--epochs", 2).done()
    last = tmp_path / "exp" / "weights" / "last.pt"
    checkpoint = read_checkpoint(last)
    torch.save(checkpoint | {"hyp": checkpoint["hyp"] | {"lr0": 1e12}}, last)
    before = last.read_bytes()
    cli("train.py", "--resume", last, "--epochs", 9).refused(
        "loss", "epoch 2", f"python train.py --resume {last}", status=1
    )
    assert last.read_bytes() == before


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="no process groups")
def test_ctrl_c_is_resumable(cli: CommandLine, data: Path, network: Path, tmp_path: Path, workers: int) -> None:
    flags = [*SHORT, "--epochs", "500", "--noplots", "--project", str(tmp_path), "--workers", str(workers)]
    command = [sys.executable, str(REPOSITORY / "train.py"), "--cfg", str(network), "--data", str(data), *flags]
    process = subprocess.Popen(
        command,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        start_new_session=True,
    )
    next(line for line in process.stdout if line.lstrip().startswith("1/500"))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
    out, err = process.communicate(timeout=120)
    last = tmp_path / "exp" / "weights" / "last.pt"
    finished = Finished(process.returncode, out, err)
    assert finished.status == 130
    assert finished.messages == ["interrupted"]
    epoch = read_checkpoint(last)["epoch"]
    assert_says(out.splitlines()[-1], f"epoch {epoch}", f"python train.py --resume {last}")
    cli("train.py", "--resume", last, "--epochs", epoch + 1).done()
    assert len(numbers(tmp_path / "exp")) == epoch + 1


def test_resume_alone_takes_the_newest_run_below_the_working_folder(
    cli: CommandLine, train: Train, tmp_path: Path
) -> None:
    cli("train.py", "--resume", cwd=tmp_path).refused("runs/**/weights/last.pt")
    project = tmp_path / "runs" / "train"
    for _ in range(2):
        train("--project", project).done()
    out = cli("train.py", "--resume", "--epochs", 2, cwd=tmp_path).done()
    assert_says(out, f"results: {project / 'exp2'}")
    assert [len(numbers(project / name)) for name in ("exp", "exp2")] == [1, 2]


def test_resuming_refuses_what_it_cannot_go_on_from(
    cli: CommandLine, trained: Path, data: Path, tmp_path: Path
) -> None:
    weights = trained / "weights"
    cli("train.py", "--resume", weights / "last.pt").refused("last.pt", "1 epochs", "--epochs N")
    cli("train.py", "--resume", weights / "best.pt", "--epochs", 2).refused(
        "best.pt", "no optimizer state", "--weights"
    )
    cli("train.py", "--resume", weights / "none.pt").refused("none.pt", "no such file")
    other = write_data(tmp_path / "data", names=("red", "green", "blue", "black"))
    cli("train.py", "--resume", trained, "--epochs", 2, "--data", other).refused("3 classes", "4")


def test_resuming_says_which_options_it_does_not_take(cli: CommandLine, train: Train, tmp_path: Path) -> None:
    train().done()
    out = cli("train.py", "--resume", tmp_path / "exp", "--epochs", 2, "--batch", 2, "--seed", 3, "--img", 64).done()
    assert_says(out, "--batch 4", "--seed 0")


def test_resuming_refuses_another_data_set_or_other_settings(cli: CommandLine, train: Train, tmp_path: Path) -> None:
    data, network, hyp = write_data(tmp_path / "data"), write_network(tmp_path), tmp_path / "hyp.yaml"
    hyp.write_text("lr0: 0.02\n")
    train("--data", data, "--cfg", network, "--hyp", hyp).done()
    last = tmp_path / "exp" / "weights" / "last.pt"
    resume = ("train.py", "--resume", last, "--epochs", 2)

    label = data.parent / "labels" / "train" / "train3.txt"
    label.write_text("1" + label.read_text()[1:])
    data.write_text(data.read_text().replace("green", "verde"))
    (data.parent / "images" / "val" / "val3.jpg").unlink()
    write_network(tmp_path, width=16)
    hyp.write_text("lr0: 0.03\n")
    before = last.read_bytes()
    cli(*resume).refused(
        *("last.pt", "changed since the run began", "class names", "1 'green'", "'verde'"),
        *("labels of the training images", "number of validation images", "4", "3"),
        *("network yaml", "hyp.yaml", "lr0 0.02", "0.03", f"--resume {last} --force"),
    )
    assert last.read_bytes() == before

    out = cli(*resume, "--force").done()
    assert_says(out, "changed since the run began", "1 'green'", "'verde'", "--force")
    checkpoint = read_checkpoint(last)
    assert (checkpoint["epoch"], checkpoint["hyp"]["lr0"], checkpoint["network"]["names"][1]) == (2, 0.02, "verde")
    assert checkpoint["model"]["model.0.conv.weight"].shape[0] == 8
    out = cli("train.py", "--resume", last, "--epochs", 3).done()
    assert "changed since" not in out, "what it was forced to is what it goes on from"


def test_resuming_without_the_yaml_files_it_was_started_with(cli: CommandLine, train: Train, tmp_path: Path) -> None:
    network, hyp = write_network(tmp_path), tmp_path / "hyp.yaml"
    hyp.write_text("lr0: 0.02\n")
    train("--cfg", network, "--hyp", hyp).done()
    network.unlink()
    hyp.unlink()
    cli("train.py", "--resume", tmp_path / "exp", "--epochs", 2).done()
    assert read_checkpoint(tmp_path / "exp" / "weights" / "last.pt")["hyp"]["lr0"] == 0.02


def test_a_run_killed_before_its_first_checkpoint_says_what_is_there(
    cli: CommandLine, trained: Path, tmp_path: Path
) -> None:
    for name in ("args.yaml", "hyp.yaml"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    cli("train.py", "--resume", tmp_path).refused(
        f"{tmp_path}/weights/last.pt", "no such file", "args.yaml, hyp.yaml", "first checkpoint"
    )
