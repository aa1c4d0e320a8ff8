"""Layers from a user's own file: loading, its mistakes, and that nothing but a command runs one."""

import copy
import dataclasses
import multiprocessing
import os
import pickle
import sys
import textwrap
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from data.loader import start_worker
from models import registry
from models.plugins import loading as plugins
from models.plugins.loading import (
    install_plugins,
    load_config_plugins,
    load_plugin,
    load_plugins,
    loaded_plugins,
    unload_plugin,
    used_plugins,
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
from tests.networks import tiny_config, tiny_model
from utils.checkpoint.importing import load_model
from utils.errors import CheckpointError, ModelConfigError, PluginError
from utils.training.options import TrainOptions
from utils.training.starting_network import starting_network
from utils.weights.own_file import network_entry, save_checkpoint

GATE = """\
from torch import Tensor, nn
from models.registry import layer, same


@layer(same)
class Gate(nn.Module):
    def __init__(self, channels: int, strength: float = 1.0) -> None:
        super().__init__()
        self.strength = strength
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return self.strength * x * self.gate(x)
"""
RULE_LINE = 5
"""Line of `@layer(same)`."""

Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give each test its own registry and its own list of what is loaded."""
    monkeypatch.setattr(registry, "_LAYERS", registry.registered_layers())
    monkeypatch.setattr(plugins, "_LOADED", {})
    monkeypatch.setattr(plugins, "_MODULES", {})
    monkeypatch.setattr(plugins, "_REGISTRIES", {"layer": plugins._REGISTRIES["layer"]})
    before = set(sys.modules)
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


def gated_config(**arguments: Any) -> dict[str, Any]:
    """The tiny network with a Gate at the end of its backbone."""
    config = tiny_config()
    config["backbone"].append([-1, 1, "Gate", [arguments] if arguments else []])
    return config


def content_of(model: Model) -> dict[str, Any]:
    return {"network": network_entry(model), "model": model.state_dict()}


# --- loading


def test_a_loaded_layer_is_a_row_like_any_other(write: Write) -> None:
    path = write()
    plugin = load_plugin(path)
    assert (plugin.path, plugin.layers, plugin.others) == (path.resolve(), ("Gate",), ())
    assert plugin.sha256 == sha256(GATE.encode()).hexdigest()
    model = Model(gated_config(strength=2.0)).eval()
    assert model.model[5].strength == 2.0
    assert torch.isfinite(model(torch.zeros(1, 3, 64, 64))).all()
    assert not list(path.parent.glob("**/*.pyc"))


def test_the_same_file_again_changes_nothing(write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = write("print('run')\n" + GATE)
    first = load_plugin(path)
    cls = registry.find_layer("Gate").cls
    monkeypatch.chdir(tmp_path)
    assert load_plugin("my_layers.py") is first
    assert load_plugins([path, "my_layers.py"]) == [first]
    assert registry.find_layer("Gate").cls is cls


def test_several_layers_of_a_file(write: Write) -> None:
    plugin = load_plugin(write(GATE + GATE.partition("same\n")[2].replace("Gate", "Door")))
    assert plugin.layers == ("Gate", "Door")


def test_a_layer_of_another_package_is_the_plugins(write: Write) -> None:
    text = "from torch import nn\nfrom models.registry import keep, layer\nlayer(keep, 'other', name='Drop')(nn.Dropout2d)\n"
    plugin = load_plugin(write(text))
    config = tiny_config()
    config["backbone"].append([-1, 1, "Drop", [0.5]])
    assert used_plugins(Model(config)) == [(plugin, ["Drop"])]
    assert used_plugins(tiny_model()) == []
    assert network_entry(Model(config))["layer_files"]["Drop"].startswith(
        f"{plugin.path.as_posix()} (sha256 {plugin.sha256[:12]})"
    )


def test_a_changed_file_is_loaded_again_and_that_is_said(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    old = load_plugin(write())
    before = Model(gated_config())
    new = load_plugin(write(GATE.replace("strength: float = 1.0", "strength: float = 3.0")))
    assert (
        f"changed since it was loaded (sha256 {old.sha256[:12]} then, {new.sha256[:12]} now)" in capsys.readouterr().err
    )
    assert (before.model[5].strength, Model(gated_config()).model[5].strength) == (1.0, 3.0)
    assert used_plugins(before) == [(old, ["Gate"])], "a network that is there keeps its layers, and its record says so"
    assert copy.deepcopy(before.model[5]).strength == 1.0
    assert pickle.loads(pickle.dumps(before.model[5])).strength == 1.0


def test_a_changed_file_of_the_same_size_and_time_is_not_taken_from_a_cache(write: Write) -> None:
    path = write()
    load_plugin(path)
    stamp = path.stat()
    write(GATE.replace("= 1.0", "= 4.0"))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    load_plugin(path)
    assert Model(gated_config()).model[5].strength == 4.0


def test_a_changed_file_that_fails_leaves_the_loaded_one(write: Write) -> None:
    old = load_plugin(write())
    with pytest.raises(PluginError, match="ZeroDivisionError"):
        load_plugin(write(GATE + "1 / 0\n"))
    assert loaded_plugins() == [old]
    assert Model(gated_config()).model[5].strength == 1.0


def test_what_failed_can_be_mended(write: Write) -> None:
    before = set(sys.modules)
    with pytest.raises(PluginError):
        load_plugin(write(GATE + "1 / 0\n"))
    assert "Gate" not in registry.registered_layers()
    assert not [name for name in set(sys.modules) - before if name.startswith("loom_plugin_")]
    assert load_plugin(write()).layers == ("Gate",)


def test_unloading(write: Write) -> None:
    plugin = load_plugin(write())
    unload_plugin(plugin)
    assert "Gate" not in registry.registered_layers()
    assert loaded_plugins() == []
    assert load_plugin(plugin.path).layers == ("Gate",)


def test_module_level_tensors_have_values_while_a_network_is_counted(write: Write, tmp_path: Path) -> None:
    path = write("import torch\nKERNEL = torch.ones(3)\n" + GATE)
    (tmp_path / "net.yaml").write_text(yaml.safe_dump(gated_config() | {"plugins": [path.name]}))
    with torch.device("meta"):
        Model(tmp_path / "net.yaml")
    assert sys.modules[loaded_plugins()[0].module].KERNEL.tolist() == [1, 1, 1]


def test_classes_are_found_by_pickle_and_dataclasses(write: Write) -> None:
    text = "from __future__ import annotations\nfrom dataclasses import dataclass, field\n"
    text += textwrap.dedent(
        """
        @dataclass
        class Settings:
            values: list[int] = field(default_factory=lambda: [1])
        """
    )
    plugin = load_plugin(write(text + GATE))
    settings = sys.modules[plugin.module].Settings([2])
    assert plugin.module.startswith("loom_plugin_my_layers_")
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert pickle.loads(pickle.dumps(plugin)) == plugin


def test_something_else_than_layers_can_be_registered(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    losses: dict[str, int] = {"ciou": 1}

    def replace(entries: dict[str, int]) -> None:
        kept = dict(entries)
        losses.clear()
        losses.update(kept)

    plugins.add_registry("box loss", losses.copy, replace)
    monkeypatch.setitem(sys.modules, "losses_of_this_test", type(sys)("losses_of_this_test"))
    sys.modules["losses_of_this_test"].losses = losses
    first = "from losses_of_this_test import losses\n"
    plugin = load_plugin(write(first + "losses['mine'] = 2\n"))
    assert (plugin.layers, plugin.others) == ((), (("box loss", "mine"),))
    assert plugin.describe().endswith(": box loss mine")
    with pytest.raises(PluginError, match=r"worse\.py: replaces the box loss 'ciou': expected names of its own"):
        load_plugin(write(first + "losses['ciou'] = 3\n", "worse.py"))
    assert losses == {"ciou": 1, "mine": 2}
    unload_plugin(plugin)
    assert losses == {"ciou": 1}


# --- mistakes

BARE = "from models.registry import layer\n\n@layer\nclass A: pass\n"
MISTAKES = {
    "syntax": (
        "x = 1\ndef f(:\n",
        r"line 2 \(`def f\(:`\): SyntaxError: .*: expected a file that runs when it is imported",
    ),
    "name": ("x = 1\ny = z\n", r"line 2 \(`y = z`\): NameError: name 'z' is not defined: expected"),
    "deep": (
        "import json\n\ndef f():\n    json.loads('{')\n\nf()\n",
        r"line 4 \(`json.loads\('\{'\)`\): JSONDecodeError: ",
    ),
    "of several lines": (
        "raise ValueError('a\\nb')\n",
        r"line 1 \(`raise ValueError\('a\\nb'\)`\): ValueError: a: expected",
    ),
    "exit": ("import sys\nsys.exit()\n", r"line 2 \(`sys\.exit\(\)`\): SystemExit: expected"),
    "missing package": (
        "import no_such_package\n",
        r"No module named 'no_such_package': a plug-in is one file: expected what it imports to be installed",
    ),
    "not text": (b"\xff\xfe\x00", r"SyntaxError: "),
    "empty": (
        "",
        r"registers nothing: it has no class: expected `from models\.registry import layer, same`, and @layer\(same\) above the class",
    ),
    "undecorated": (
        "class Gate: pass\nclass Door: pass\n",
        r"registers nothing: its classes Gate, Door have no @layer: expected",
    ),
    "no rule": (
        BARE,
        r"registers nothing: @layer above A has no channel rule: expected one in parentheses, such as @layer\(same\)",
    ),
    "built-in": (
        GATE.replace("Gate", "Conv"),
        rf"line {RULE_LINE} \(`@layer\(same\)`\): 'Conv' is a built-in layer, models/common\.py line \d+: expected another name: .*'MyConv'\)",
    ),
    "torch's": (
        GATE.replace("@layer(same)", "@layer(same, name='nn.Upsample')"),
        r"'nn\.Upsample' is a built-in layer, torch\.nn\.modules\.upsampling: expected another name: @layer\(…, name='MyUpsample'\)",
    ),
    "twice": (
        GATE + GATE,
        rf"line {RULE_LINE + len(GATE.splitlines())} .*: layer 'Gate' is registered twice in this file: expected another name",
    ),
    "replaced": (
        "from models import registry\nregistry._LAYERS['Conv'] = None\n",
        r"replaces the layer 'Conv': expected names of its own",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_one_line_with_file_and_line(write: Write, case: str) -> None:
    text, message = MISTAKES[case]
    path, before = write(text), registry.registered_layers()
    with pytest.raises(PluginError, match=rf"my_layers\.py: .*{message}") as caught:
        load_plugin(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert registry.registered_layers() == before
    assert loaded_plugins() == []


def test_a_name_in_two_files(write: Write) -> None:
    first, second = write(GATE, "a.py"), write(GATE, "b.py")
    load_plugin(first)
    with pytest.raises(PluginError) as caught:
        load_plugin(second)
    message = f"{second}: line {RULE_LINE} (`@layer(same)`): 'Gate' is a layer of the plug-in {first}: expected another name: @layer(…, name='MyGate')"
    assert str(caught.value) == message
    assert [plugin.path for plugin in loaded_plugins()] == [first]


def test_files_that_are_none(write: Write, tmp_path: Path) -> None:
    write()
    for path, message in (
        (
            tmp_path / "my_layer.py",
            r"my_layer\.py: no such file: expected a Python file with layers, .* Did you mean 'my_layers\.py'\?",
        ),
        (tmp_path, r": is a folder: expected a Python file"),
        (write(GATE, "my_layers.txt"), r"its name ends in '\.txt': expected a Python file"),
        (tmp_path / "no" / "such.py", r"such\.py: no such file"),
    ):
        with pytest.raises(PluginError, match=message):
            load_plugin(path)


# --- the yaml's key


def test_plugins_of_a_yaml_are_beside_it_or_in_the_working_directory(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(GATE, "nets/near.py")
    write(GATE.replace("Gate", "Door"), "far.py")
    config = gated_config() | {"plugins": ["near.py", "far.py"]}
    config["backbone"].append([-1, 1, "Door", []])
    (tmp_path / "nets" / "net.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    model = Model(tmp_path / "nets" / "net.yaml")
    assert [(plugin.path.name, names) for plugin, names in used_plugins(model)] == [
        ("near.py", ["Gate"]),
        ("far.py", ["Door"]),
    ]
    assert "plugins" not in model.config


def test_a_base_and_its_edits_have_plugins_of_their_own(write: Write, tmp_path: Path) -> None:
    write(GATE, "base/near.py")
    write(GATE.replace("Gate", "Door"), "door.py")
    (tmp_path / "base" / "net.yaml").write_text(yaml.safe_dump(gated_config() | {"plugins": ["near.py"]}))
    content = {"base": "base/net.yaml", "plugins": ["door.py"], "edits": ["insert Door after 0"]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    model = Model(tmp_path / "mine.yaml")
    assert [names for _, names in used_plugins(model)] == [["Gate"], ["Door"]] or [
        names for _, names in used_plugins(model)
    ] == [["Door"], ["Gate"]]


def test_mistakes_in_the_key(write: Write, tmp_path: Path) -> None:
    write("1 / 0\n")
    path = tmp_path / "net.yaml"
    for value, message in (
        (
            "my_layers.py",
            r"net\.yaml: plugins is 'my_layers\.py': expected a list of Python files, such as \[my_layers\.py\]",
        ),
        ([3], r"plugins is \[3\]: expected a list"),
        (["other.py"], r"net\.yaml: plugins: other\.py: no such file"),
        (["my_layers.py"], r"net\.yaml: plugins: .*my_layers\.py: line 1 \(`1 / 0`\): ZeroDivisionError"),
    ):
        path.write_text(yaml.safe_dump(gated_config() | {"plugins": value}))
        with pytest.raises(ModelConfigError, match=message):
            Model(path)


# --- checkpoints


@pytest.fixture
def gated(write: Write, tmp_path: Path) -> Path:
    """A checkpoint with a layer of `my_layers.py`, which is not loaded any more; running that file leaves `ran.txt` behind."""
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
        assert message.startswith(f"{gated}: its network cannot be built here: ")
        assert "unknown layer 'Gate'" in message
        expected = f"; Gate comes from the plug-in {file} (sha256 {digest}); weights do not run code by themselves: --plugin {file} runs that file"
        assert message.endswith(expected)
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
        said = f"network: plugins {file}: not loaded: only a command or the yaml that it names chooses what is run"
        assert said in capsys.readouterr().err
    assert not (tmp_path / "ran.txt").exists()


def test_options_of_a_checkpoint_do_not_choose_plugins() -> None:
    options = TrainOptions(resume="last.pt")
    options.resume_from(options.as_dict() | {"plugin": ["/tmp/other.py"], "seed": 7}, "last.pt")
    assert (options.plugin, options.seed) == ([], 7)


def test_with_the_plugin_the_checkpoint_loads(gated: Path, tmp_path: Path) -> None:
    model = load_model(gated, plugins=[tmp_path / "my_layers.py"])
    assert type(model.model[5]).__name__ == "Gate"
    assert (tmp_path / "ran.txt").read_text() == "x"
    assert load(gated, plugins=[tmp_path / "my_layers.py"]).nc == 3
    assert (tmp_path / "ran.txt").read_text() == "x"


def test_a_file_that_is_gone(gated: Path, tmp_path: Path) -> None:
    (tmp_path / "my_layers.py").unlink()
    with pytest.raises(
        CheckpointError,
        match=r"that file is not there: --plugin PATH names a copy \(a run keeps one in its folder plugins\)$",
    ):
        load_model(gated)


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


def test_a_mapping_does_not_load(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    config = gated_config() | {"plugins": [str(write())]}
    with pytest.raises(ModelConfigError, match="unknown layer 'Gate'"):
        Model(config)
    assert "not loaded" in capsys.readouterr().err
    load_config_plugins({}, None, "net")
    assert capsys.readouterr().err == ""


# --- other processes


def layers_of_a_worker(name: str) -> str:
    return registry.find_layer(name).cls.__module__


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_have_the_layers_that_ran_here(write: Write, method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    plugin = load_plugin(write())
    write("changed since")
    with multiprocessing.get_context(method).Pool(1, start_worker, (partial(install_plugins, [plugin]), 0)) as pool:
        assert pool.apply(layers_of_a_worker, ("Gate",)) == plugin.module
