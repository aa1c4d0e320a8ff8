"""Fixtures of the command-line tests: runs of small networks on a dozen images."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.command_line import SHORT, CommandLine, Finished, write_data, write_network


@pytest.fixture(scope="session")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """Return `cli(script, *arguments) -> Finished`."""
    command_line = CommandLine(tmp_path_factory.mktemp("cli"))
    yield command_line
    command_line.close()


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The yaml of eight training and four validation images; not to be changed."""
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The yaml of a network with one branch."""
    return write_network(tmp_path_factory.mktemp("network"))


@pytest.fixture
def train(cli: CommandLine, data: Path, network: Path, tmp_path: Path) -> Callable[..., Finished]:
    """Return `train(*arguments) -> Finished`: train.py for one epoch without plots, into `tmp_path / "exp"`.

    Arguments that are given again win.
    """
    return lambda *arguments: cli(
        "train.py", "--cfg", network, "--data", data, *SHORT, "--noplots", "--project", tmp_path, *arguments
    )


@pytest.fixture(scope="session")
def trained(cli: CommandLine, data: Path, network: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of one epoch; not to be changed."""
    project = tmp_path_factory.mktemp("trained")
    cli("train.py", "--cfg", network, "--data", data, *SHORT, "--noplots", "--project", project).done()
    return project / "exp"
