"""Runs the repository's command lines, and makes what they are tried on: small networks and a dozen images."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import yaml

from tests.networks import tiny_config
from tests.saying import assert_says

REPOSITORY = Path(__file__).resolve().parents[2]
NAMES = ("red", "green", "blue")
SHORT = ("--img", "64", "--batch", "4", "--epochs", "1", "--workers", "0", "--device", "cpu", "--amp", "off")
"""Flags of the quickest training run."""


@dataclass
class Finished:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def messages(self) -> list[str]:
        """The lines of the standard error, without those of progress bars."""
        return [line for line in re.split(r"[\r\n]+", self.err) if line.strip() and "batch/s" not in line]

    def done(self) -> str:
        """Require success; return the standard output."""
        assert self.status == 0, f"status {self.status}\n{self.out}\n{self.err}"
        return self.out

    def refused(self, *facts: object, status: int = 2) -> str:
        """Require that status, and one message without a traceback that gives the facts (`assert_says`); return it."""
        assert self.status == status, f"status {self.status}\n{self.out}\n{self.err}"
        assert "Traceback" not in self.out + self.err
        assert len(self.messages) == 1, self.err
        message = self.messages[0]
        assert message.startswith("error: "), message
        assert_says(message, *facts)
        return message


def environment() -> dict[str, str]:
    """Return the variables that commands run with: one thread, so that tests beside each other do not fight."""
    return os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(REPOSITORY)}


class CommandLine:
    """Runs scripts, each in a fork of a process with the libraries loaded (command_server.py).

    Where there is no fork, each runs in a fresh process.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server: subprocess.Popen | None = None

    def __call__(self, script: str | Path, *arguments: object, cwd: Path | None = None) -> Finished:
        """Run a script of the repository, a script elsewhere (absolute path), or `-m` a module."""
        argv = [script if script == "-m" else str(REPOSITORY / script), *map(str, arguments)]
        if not hasattr(os, "fork"):
            command = [sys.executable, *argv]
            done = subprocess.run(
                command, cwd=cwd or self.folder, env=environment(), capture_output=True, text=True, check=False
            )
            return Finished(done.returncode, done.stdout, done.stderr)
        if self.server is None:
            command = [sys.executable, str(Path(__file__).with_name("command_server.py"))]
            self.server = subprocess.Popen(
                command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        request = {"argv": argv, "cwd": str(cwd or self.folder), "env": environment(), "output": str(self.folder)}
        print(json.dumps(request), file=self.server.stdin, flush=True)
        status = int(self.server.stdout.readline())
        return Finished(status, *((self.folder / name).read_bytes().decode() for name in ("stdout", "stderr")))

    def close(self) -> None:
        """End the server."""
        if self.server is not None:
            self.server.stdin.close()
            self.server.wait()


def write_network(folder: Path, branches: int = 1, **settings: int) -> Path:
    """Write the yaml of `networks.tiny_config`; return its path."""
    path = folder / f"tiny{branches}.yaml"
    path.write_text(yaml.safe_dump(tiny_config(branches, **settings)))
    return path


def write_data(folder: Path, train: int = 8, val: int = 4, names: tuple[str, ...] = NAMES) -> Path:
    """Write a data set of 64-pixel images with one rectangle of each of three colours; return its yaml."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for number in range(count):
            image, rows = rng.integers(60, 120, (64, 64, 3), np.uint8), []
            for index in range(len(NAMES)):
                width, height = rng.integers(14, 30, 2)
                left, top = rng.integers(0, 64 - width), rng.integers(0, 64 - height)
                image[top : top + height, left : left + width] = 255 * np.eye(3)[2 - index]  # BGR
                rows.append(f"{index} {(left + width / 2) / 64} {(top + height / 2) / 64} {width / 64} {height / 64}\n")
            assert cv2.imwrite(str(folder / "images" / split / f"{split}{number}.jpg"), image)
            (folder / "labels" / split / f"{split}{number}.txt").write_text("".join(rows))
    path = folder / "data.yaml"
    path.write_text(f"train: images/train\nval: images/val\nnames: [{', '.join(names)}]\n")
    return path


def read_table(path: Path) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of a results.csv."""
    header, *rows = (line.split(",") for line in path.read_text().splitlines())
    return header, rows
