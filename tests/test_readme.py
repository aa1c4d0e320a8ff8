"""The README's commands have flags that exist, and its ten-line layer works from a yaml."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import detect
import export
import train
import val
from models.plugins.loading import load_plugin, unload_plugin
from models.yolo import Model
from tests.networks import tiny_config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = "\n".join([README, *(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("models.md"))])
"""The README, and the page that its long tables are on."""
PARSERS = {
    "train.py": train.parse_options,
    "val.py": val.parse_options,
    "detect.py": detect.parse_options,
    "export.py": export.parse_options,
}


def block_after(mark: str) -> str:
    """Return the fenced code block that follows a line of the README."""
    found = re.search(rf"^{re.escape(mark)}\n```\w*\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    assert found, mark
    return found[1]


def python_calls() -> list[list[str]]:
    """Return the words after `python` of every call of our scripts in the README's code blocks."""
    code = "\n".join(re.findall(r"^```bash\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
    calls = [shlex.split(part, comments=True) for line in code.splitlines() for part in line.split("&&")]
    return [words[1:] for words in calls if words and words[0].endswith("python") and words[1] in PARSERS]


@pytest.mark.parametrize("call", python_calls(), ids=lambda call: " ".join(call[:3]))
def test_flags_exist(call: list[str]) -> None:
    PARSERS[call[0]](call[1:])


def test_calls_are_found() -> None:
    assert {call[0] for call in python_calls()} == PARSERS.keys()


def test_both_commands_are_marked() -> None:
    assert "train.py" in block_after("<!-- command: run -->")
    assert "pytest" in block_after("<!-- command: test -->")


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[None]:
    file = tmp_path / "gate.py"
    file.write_text(block_after("<!-- example: layer -->"))
    plugin = load_plugin(file)
    yield
    unload_plugin(plugin)


@pytest.mark.usefixtures("gate")
def test_ten_line_layer() -> None:
    config = tiny_config()
    config["backbone"].append([-1, 1, "Gate", [2.0]])
    model = Model(config).eval()
    gates = [module for module in model.modules() if type(module).__name__ == "Gate"]
    assert len(gates) == 1
    assert gates[0].strength == 2.0
    assert torch.isfinite(model(torch.zeros(1, 3, 64, 64))).all()


def rows_of_tables(columns: str) -> dict[str, tuple[str, ...]]:
    """Return the figures of every row of the tables of networks that has these columns, by the network's name."""
    return {name: tuple(figures) for name, *figures in re.findall(rf"^\| {columns} \|", PAGES, flags=re.MULTILINE)}


PLAIN = rows_of_tables(r"([\w-]+) \| ([\d,]+) \| ([\d.]+) \| ([\d,]+) \| ([\d.]+)")
SCALED = rows_of_tables(r"(yolo\S+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+)")
NETWORKS = {path.stem: path for folder in ("detect", "segment") for path in (ROOT / "models" / folder).glob("*.yaml")}


def test_every_network_is_in_a_table() -> None:
    assert len(NETWORKS) > 30
    assert PLAIN.keys() | SCALED.keys() == NETWORKS.keys()


@pytest.mark.parametrize("name", PLAIN)
def test_table_says_what_the_yamls_say(name: str) -> None:
    header = NETWORKS[name].read_text(encoding="utf-8").split("nc:")[0]
    trained, deployed = re.findall(r"([\d,]+) parameters, ([\d.]+) GFLOPs", header)
    assert (*trained, *deployed) == PLAIN[name]


@pytest.mark.parametrize("name", SCALED)
def test_scales_have_the_parameters_that_their_yamls_say(name: str) -> None:
    header = NETWORKS[name].read_text(encoding="utf-8").split("nc:")[0]
    said = re.findall(r"^# [nsmlx] as trained: ([\d,]+) parameters", header, flags=re.MULTILINE)
    assert tuple(said) == SCALED[name]
