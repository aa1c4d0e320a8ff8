"""Two machines, played by two network namespaces with addresses of their own; one is cut off in the middle."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.command_line import REPOSITORY, environment, write_data, write_network
from utils.weights.own_file import read_checkpoint

NODES = ("loom0", "loom1")
ADDRESS = "10.77.0.{}"
LONGEST = 60
"""Seconds within which every rank ends after a machine is lost."""


def ip(*words: str) -> None:
    """Run the command `ip`."""
    subprocess.run(["ip", *words], check=True, capture_output=True)


def can_make_namespaces() -> bool:
    """Tell whether this machine lets us make network namespaces."""
    if shutil.which("ip") is None:
        return False
    made = subprocess.run(["ip", "netns", "add", "loomtry"], capture_output=True, check=False).returncode == 0
    if made:
        ip("netns", "del", "loomtry")
    return made


pytestmark = [pytest.mark.slow, pytest.mark.skipif(not can_make_namespaces(), reason="needs network namespaces")]


@pytest.fixture
def nodes() -> Iterator[None]:
    """Two namespaces joined by a cable."""
    for node in NODES:
        subprocess.run(["ip", "netns", "del", node], capture_output=True, check=False)
        ip("netns", "add", node)
    ip("link", "add", "loomv0", "netns", NODES[0], "type", "veth", "peer", "name", "loomv1", "netns", NODES[1])
    for number, node in enumerate(NODES):
        ip("-n", node, "addr", "add", f"{ADDRESS.format(number + 1)}/24", "dev", f"loomv{number}")
        ip("-n", node, "link", "set", "lo", "up")
        ip("-n", node, "link", "set", f"loomv{number}", "up")
    yield
    for node in NODES:
        ip("netns", "del", node)


def start(node: int, folder: Path, name: str, epochs: int) -> subprocess.Popen[bytes]:
    """Start torchrun on one node; its output goes into a file."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{ADDRESS.format(1)}:29500", "--rdzv-id", name]
    torchrun += ["--local-addr", ADDRESS.format(node + 1), "--rdzv-conf", f"is_host={1 - node}"]
    flags = ["--cfg", folder / "tiny1.yaml", "--data", folder / "data" / "data.yaml", "--project", folder / "runs"]
    flags += ["--name", name, "--epochs", epochs, "--img", 64, "--batch", 4, "--workers", 0, "--device", "cpu"]
    command = ["ip", "netns", "exec", NODES[node], *torchrun, str(REPOSITORY / "train.py"), *map(str, flags)]
    variables = environment() | {"GLOO_SOCKET_IFNAME": f"loomv{node}"}
    with (folder / f"{name}{node}.txt").open("wb") as output:
        return subprocess.Popen(
            [*command, "--noplots"], env=variables, stdout=output, stderr=output, start_new_session=True
        )


@pytest.mark.usefixtures("nodes")
def test_two_nodes_train_one_run_and_end_when_one_is_cut_off(tmp_path: Path):
    write_data(tmp_path / "data", train=12, val=5)
    write_network(tmp_path, 1)
    running = [start(node, tmp_path, "whole", 2) for node in (0, 1)]
    assert [one.wait(timeout=150) for one in running] == [0, 0], (tmp_path / "whole0.txt").read_text()[-2000:]
    checkpoint = read_checkpoint(tmp_path / "runs" / "whole" / "weights" / "last.pt")
    assert (checkpoint["epoch"], checkpoint["ranks"]) == (2, 2)

    running = [start(node, tmp_path, "cut", 500) for node in (0, 1)]
    try:
        wait_for(lambda: (tmp_path / "runs" / "cut" / "results.csv").is_file(), 150)
        ip("-n", NODES[1], "link", "set", "loomv1", "down")
        wait_for(lambda: all(len(messages(tmp_path, node)) == 1 for node in (0, 1)), LONGEST)
        for node in (0, 1):
            assert re.match(rf"rank {node}: error: another rank", messages(tmp_path, node)[0])
    finally:
        for one in running:
            os.killpg(one.pid, signal.SIGKILL)
            one.wait()


def messages(folder: Path, node: int) -> list[str]:
    """Return what the rank of a node said about an error."""
    text = (folder / f"cut{node}.txt").read_text(errors="replace")
    return [line for line in re.split(r"[\r\n]+", text) if line.startswith("rank ")]


def wait_for(condition, seconds: float) -> None:
    """Wait until a condition holds.

    Raises:
        AssertionError: it did not hold in time.
    """
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.2)
