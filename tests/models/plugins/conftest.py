"""Fixtures for the tests of plug-ins."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.plugins.held import temporary_plugins
from tests.models.plugins.gate import GATE, Write


@pytest.fixture(autouse=True)
def own_registry() -> Iterator[None]:
    """Give each test its own registry and its own list of loaded plug-ins."""
    before = set(sys.modules)
    with temporary_plugins():
        yield
    for name in set(sys.modules) - before:
        if name.startswith("loom_plugin_"):
            del sys.modules[name]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return `write(text, name="my_layers.py") -> path`."""

    def file(text: str | bytes = GATE, name: str = "my_layers.py") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return file
