"""The examples of docs/composing.md and docs/plugins.md build, and the README names the right files."""

import importlib
import re
from pathlib import Path

import pytest
import torch
import yaml

from models.loose_ends import loose_ends
from models.plugins.loading import load_plugin, unload_plugin
from models.registry import Rule
from models.yolo import Model
from tests.networks import tiny_config

ROOT = Path(__file__).parent.parent


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page in a language."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


EDITED = [block for block in blocks("docs/composing.md", "yaml") if block.startswith("base:")]


@pytest.mark.parametrize("block", EDITED)
def test_composed_networks_build_without_loose_ends(block: str) -> None:
    with torch.device("meta"):
        config = yaml.safe_load(block)
        model = Model(config, scale=None if config["base"].startswith("yolov8n") else "n")
        assert loose_ends(model) == []
        assert len(model.trace(256)) == len(model.rows)


def test_the_page_shows_a_finer_and_a_coarser_level() -> None:
    with torch.device("meta"):
        strides = [Model(yaml.safe_load(block)).stride for block in EDITED if "set head from" in block]
    assert strides == [[4, 8, 16, 32], [8, 16, 32, 64]]


def test_a_layer_with_several_inputs(tmp_path: Path) -> None:
    (block,) = [block for block in blocks("docs/plugins.md", "python") if "GateByCoarser" in block]
    (tmp_path / "my_fusion.py").write_text(block)
    plugin = load_plugin(tmp_path / "my_fusion.py")
    try:
        config = tiny_config()
        config["backbone"].append([[3, 4], 1, "GateByCoarser", [2.0]])
        config["head"] = [[[2, 5, 4], 1, "DDetect", ["nc"]]]
        model = Model(config).eval()
        assert model.model[5].strength == 2.0
        assert torch.isfinite(model(torch.rand(1, 3, 64, 64))).all()
        with torch.device("meta"):
            edited = Model("yolov8n.yaml", patches=["insert GateByCoarser [2.0] after n3 from n3, t4 for head"])
        assert edited.stride == [8, 16, 32]
    finally:
        unload_plugin(plugin)


def test_the_readme_names_the_files_of_the_channel_rules() -> None:
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    (sentence,) = re.findall(r"The other channel rules: (.*?`[^`]*`)\. A rule", text)
    said = {
        name: path
        for names, path in re.findall(r"((?:`\w+`(?:, | and )?)+) in `([\w/]+)\.py`", sentence)
        for name in re.findall(r"`(\w+)`", names)
    }
    assert said.keys() == {"to", "keep", "cat", "split", "last", "head"}
    for name, path in said.items():
        found = getattr(importlib.import_module(path.replace("/", ".")), name)
        assert isinstance(found(branches=1) if name == "head" else found, Rule)
