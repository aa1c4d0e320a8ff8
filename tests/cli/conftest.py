"""Command lines, and what they are tried on: small networks of one, two and three branches, and a dozen pictures."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
NAMES = ("red", "green", "blue")
HEADS = {1: "DDetect", 2: "DualDDetect", 3: "TripleDDetect"}
SHORT = ("--img", "64", "--batch", "4", "--epochs", "1", "--workers", "0", "--device", "cpu", "--amp", "off")


@dataclass
class Finished:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def messages(self) -> list[str]:
        """The lines of the standard error, without those of progress bars."""
        return [line for line in re.split(r"[\r\n]+", self.err) if line.strip() and "batch/s" not in line and "?batch" not in line]

    def done(self) -> str:
        """Require success; return the standard output."""
        assert self.status == 0, f"status {self.status}\n{self.out}\n{self.err}"
        return self.out

    def refused(self, *expected: str, status: int = 2) -> str:
        """Require one message without a traceback, with the expected parts in it; return it."""
        assert self.status == status, f"status {self.status}\n{self.out}\n{self.err}"
        assert len(self.messages) == 1, self.err
        message = self.messages[0]
        assert message.startswith("error: "), message
        assert "Traceback" not in self.out + self.err
        for part in expected:
            assert part in message, f"{part!r} is not in: {message}"
        return message


class CommandLine:
    """Runs the repository's scripts, each in a process forked from one with the libraries loaded (a fresh one where there is no fork)."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.server = folder, None

    def __call__(self, script: str, *arguments: object, cwd: Path | None = None) -> Finished:
        """Run a script of the repository, a script elsewhere (an absolute path), or `-m` a module."""
        argv = [script if script == "-m" else str(REPOSITORY / script), *map(str, arguments)]
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
        if not hasattr(os, "fork"):
            done = subprocess.run([sys.executable, *argv], cwd=cwd or self.folder, env=env, capture_output=True, text=True, check=False)
            return Finished(done.returncode, done.stdout, done.stderr)
        if self.server is None:
            command = [sys.executable, str(Path(__file__).with_name("command_server.py"))]
            self.server = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        request = {"argv": argv, "cwd": str(cwd or self.folder), "env": env, "output": str(self.folder)}
        print(json.dumps(request), file=self.server.stdin, flush=True)
        status = int(self.server.stdout.readline())
        out, err = ((self.folder / name).read_bytes().decode() for name in ("stdout", "stderr"))
        return Finished(status, out, err)

    def close(self) -> None:
        """End the server."""
        if self.server is not None:
            self.server.stdin.close()
            self.server.wait()


@pytest.fixture(scope="session")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """Return `cli(script, *arguments) -> Finished`."""
    command_line = CommandLine(tmp_path_factory.mktemp("cli"))
    yield command_line
    command_line.close()


def write_network(folder: Path, branches: int, rows: str = "") -> Path:
    """Write the yaml of a network of about 40,000 parameters a branch, with more `rows` before its head; return its path."""
    head = f"[[{', '.join(['1, 2'] * branches)}], 1, {HEADS[branches]}, [nc]]"
    backbone = "[[-1, 1, Conv, [8, 3, 4]], [-1, 1, Conv, [8, 3, 2]], [-1, 1, Conv, [16, 3, 2]]]"
    path = folder / f"tiny{branches}.yaml"
    path.write_text(f"nc: 3\nbackbone: {backbone}\nhead:\n{rows}  - {head}\n")
    return path


def write_data(folder: Path, train: int = 8, val: int = 4) -> Path:
    """Write a data set of 64-pixel pictures with one rectangle of each colour; return its yaml."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for number in range(count):
            picture, rows = rng.integers(60, 120, (64, 64, 3), np.uint8), []
            for index in range(len(NAMES)):
                width, height = rng.integers(12, 28, 2)
                left, top = rng.integers(0, 64 - width), rng.integers(0, 64 - height)
                picture[top : top + height, left : left + width] = 255 * np.eye(3)[2 - index]
                rows.append(f"{index} {(left + width / 2) / 64} {(top + height / 2) / 64} {width / 64} {height / 64}\n")
            assert cv2.imwrite(str(folder / "images" / split / f"{number}.jpg"), picture)
            (folder / "labels" / split / f"{number}.txt").write_text("".join(rows))
    path = folder / "data.yaml"
    path.write_text(f"train: images/train\nval: images/val\nnames: [{', '.join(NAMES)}]\n")
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The yaml of eight training and four validation pictures; not to be changed."""
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The yaml of a network with one branch."""
    return write_network(tmp_path_factory.mktemp("network"), 1)


@pytest.fixture(scope="session")
def train(cli: CommandLine, data: Path, network: Path) -> Callable[..., Finished]:
    """Return `train(*arguments) -> Finished`: train.py for one short epoch; arguments given again win."""
    return lambda *arguments: cli("train.py", "--cfg", network, "--data", data, *SHORT, *arguments)


@pytest.fixture(scope="session")
def trained(train: Callable[..., Finished], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one epoch, with plots; not to be changed."""
    project = tmp_path_factory.mktemp("trained")
    train("--project", project).done()
    return project / "exp"
