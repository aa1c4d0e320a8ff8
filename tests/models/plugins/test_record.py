"""What a checkpoint records of plug-ins, and that nothing but a command runs one."""

import dataclasses
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from models.plugins.held import loaded_plugins
from models.plugins.loading import (
    load_plugin,
    load_plugins,
    unload_plugin,
)
from models.plugins.record import (
    differences,
    keep_copies,
    plugin_flags,
    plugins_entry,
    print_plugins,
    read_plugins_entry,
)
from models.yolo import Model, load
from tests.models.plugins.gate import GATE, Write, gated_config
from tests.networks import tiny_config, tiny_model
from tests.saying import assert_says
from utils.checkpoint.importing import load_model
from utils.errors import CheckpointError
from utils.training.options import TrainOptions
from utils.training.starting_network import starting_network
from utils.weights.own_file import network_entry, save_checkpoint


def content_of(model: Model) -> dict[str, Any]:
    return {"network": network_entry(model), "model": model.state_dict()}


@pytest.fixture
def gated(write: Write, tmp_path: Path) -> Path:
    """A checkpoint with a layer of `my_layers.py`, unloaded since; running that file writes `ran.txt`."""
    mark = tmp_path / "ran.txt"
    plugin = load_plugin(write(GATE + f"open({str(mark)!r}, 'a').write('x')\n"))
    save_checkpoint(tmp_path / "gated.pt", content_of(Model(gated_config())))
    unload_plugin(plugin)
    mark.unlink()
    return tmp_path / "gated.pt"


def test_what_a_checkpoint_says_of_plugins(write: Write) -> None:
    plugin = load_plugin(write())
    config = tiny_config()
    config["backbone"].append([-1, 1, "C2f", [8, {"attention": "Gate"}]])
    entry = network_entry(Model(config))
    assert entry["plugins"] == [{"path": str(plugin.path), "sha256": plugin.sha256, "layers": ["Gate"]}], (
        "inside a block, too"
    )
    plugin.path.unlink()
    assert (
        network_entry(Model(gated_config()))["layer_files"]["Gate"]
        == f"{plugin.path.as_posix()} (sha256 {plugin.sha256[:12]})"
    )
    assert network_entry(tiny_model())["plugins"] == []


def test_a_checkpoint_runs_nothing_by_itself(gated: Path, tmp_path: Path) -> None:
    file = tmp_path / "my_layers.py"
    digest = sha256(file.read_bytes()).hexdigest()[:12]
    for read in (
        lambda: load_model(gated),
        lambda: load(gated),
        lambda: starting_network(TrainOptions(weights=str(gated)), ["a", "b", "c"], None),
        lambda: starting_network(
            TrainOptions(resume=str(gated)),
            ["a", "b", "c"],
            {"network": torch.load(gated, weights_only=True)["network"]},
        ),
    ):
        with pytest.raises(CheckpointError) as caught:
            read()
        message = str(caught.value)
        assert_says(message, f"{gated}:", "unknown layer 'Gate'")
        assert_says(message, "Gate comes from", f"plug-in {file} (sha256 {digest})", f"--plugin {file}")
        assert "put that file back" not in message
    assert not (tmp_path / "ran.txt").exists()


def test_a_forged_checkpoint_runs_nothing(gated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = torch.load(gated, weights_only=True)
    file = str(tmp_path / "my_layers.py")
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(gated_config() | {"plugins": [file]}))
    for number, config in enumerate(
        (content["network"]["config"] | {"plugins": [file]}, {"base": str(tmp_path / "base.yaml"), "plugins": [file]})
    ):
        forged = tmp_path / f"forged{number}.pt"
        save_checkpoint(
            forged,
            content | {"network": content["network"] | {"config": config}, "options": {"plugin": [file], "cfg": file}},
        )
        with pytest.raises(CheckpointError, match="unknown layer 'Gate'"):
            load_model(forged)
        assert_says(capsys.readouterr().err, "network", f"plugins {file}", "not loaded")
    assert not (tmp_path / "ran.txt").exists()


def test_options_of_a_checkpoint_do_not_choose_plugins() -> None:
    options = TrainOptions(resume="last.pt")
    options = options.resume_from(options.as_dict() | {"plugin": ["/tmp/other.py"], "seed": 7}, "last.pt")
    assert (options.plugin, options.seed) == ([], 7)


def test_with_the_plugin_the_checkpoint_loads(gated: Path, tmp_path: Path) -> None:
    model = load_model(gated, plugins=[tmp_path / "my_layers.py"])
    assert type(model.model[5]).__name__ == "Gate"
    assert (tmp_path / "ran.txt").read_text() == "x"
    assert load(gated, plugins=[tmp_path / "my_layers.py"]).nc == 3
    assert (tmp_path / "ran.txt").read_text() == "x"


def test_a_file_that_is_gone(gated: Path, tmp_path: Path) -> None:
    (tmp_path / "my_layers.py").unlink()
    with pytest.raises(CheckpointError) as caught:
        load_model(gated)
    assert_says(caught.value, "my_layers.py", "is not there", "--plugin PATH", "folder plugins")


def test_another_source_than_recorded_is_said_once(
    gated: Path, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(GATE + "# changed\n")
    load_model(gated, plugins=[path])
    load_model(gated)
    lines = [line for line in capsys.readouterr().out.splitlines() if "plug-in" in line]
    assert len(lines) == 1
    assert lines[0].startswith(f"{gated}: Gate comes from the plug-in {path} (sha256 ")
    assert lines[0].endswith(f"; here it is {path} (sha256 {loaded_plugins()[0].sha256[:12]}): results may differ")


def test_a_copy_of_the_same_content_is_no_difference(gated: Path, tmp_path: Path) -> None:
    copied = tmp_path / "elsewhere" / "renamed.py"
    copied.parent.mkdir()
    copied.write_bytes((tmp_path / "my_layers.py").read_bytes())
    load_model(gated, plugins=[copied])
    recorded = read_plugins_entry(torch.load(gated, weights_only=True)["network"]["plugins"])
    assert differences(recorded) == []
    assert len(differences([dataclasses.replace(recorded[0], layers=("Conv",))])) == 1, (
        "a built-in layer of that name is another source"
    )


def test_a_damaged_record_is_left_out() -> None:
    good = {"path": "a.py\n\x1b[31m", "sha256": "00", "layers": ["Gate"]}
    assert [
        plugin.path for plugin in read_plugins_entry([3, {}, good, good | {"layers": None}, good | {"path": 1}])
    ] == ["a.py??[31m"]
    assert read_plugins_entry(None) == read_plugins_entry({"a": 1}) == []


def test_what_a_run_keeps(write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(GATE, "my layers.py")
    plugin, other = load_plugins([path, write(GATE.replace("Gate", "Door"), "door.py")])
    model = Model(gated_config())
    path.write_text("changed")
    keep_copies(model, tmp_path / "run")
    (kept,) = (tmp_path / "run" / "plugins").iterdir()
    assert (kept.name, kept.read_text()) == (f"my layers_{plugin.sha256[:8]}.py", GATE)
    assert plugin_flags(model) == f" --plugin '{path}'"
    assert read_plugins_entry(plugins_entry(model))[0].layers == ("Gate",)
    print_plugins(model, [plugin, other])
    assert capsys.readouterr().out.splitlines() == [
        f"plug-in {path} (sha256 {plugin.sha256[:12]}): Gate",
        f"plug-in {other.path} (sha256 {other.sha256[:12]}): Door: loaded, but this network has none of its layers",
    ]
    print_plugins(nn.Identity())
    assert capsys.readouterr().out == ""
