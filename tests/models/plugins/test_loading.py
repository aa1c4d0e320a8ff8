"""Layers from a user's own file: loading, its mistakes, a yaml's `plugins`, other processes."""

import copy
import multiprocessing
import os
import pickle
import sys
import textwrap
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest
import torch
import yaml

from data.loader import start_worker
from models import registry
from models.plugins.held import loaded_plugins, used_plugins
from models.plugins.loading import (
    install_plugins,
    load_config_plugins,
    load_plugin,
    load_plugins,
    unload_plugin,
)
from models.yolo import Model
from tests.models.plugins.gate import GATE, RULE_LINE, Write, gated_config
from tests.networks import tiny_config, tiny_model
from tests.saying import assert_says
from utils.errors import ModelConfigError, PluginError
from utils.weights.own_file import network_entry

# --- loading


def test_a_loaded_layer_is_a_row_like_any_other(write: Write) -> None:
    path = write()
    plugin = load_plugin(path)
    assert (plugin.path, plugin.layers) == (path.resolve(), ("Gate",))
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
    text = "from torch import nn\nfrom models.registry import keep, layer\n"
    text += "layer(keep, 'other', name='Drop')(nn.Dropout2d)\n"
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
    assert_says(capsys.readouterr().err, "my_layers.py", "changed", old.sha256[:12], new.sha256[:12])
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


# --- mistakes

BARE = "from models.registry import layer\n\n@layer\nclass A: pass\n"
MISTAKES: dict[str, tuple[str | bytes, tuple[str, ...]]] = {
    "syntax": ("x = 1\ndef f(:\n", ("line 2 (`def f(:`)", "SyntaxError")),
    "name": ("x = 1\ny = z\n", ("line 2 (`y = z`)", "NameError: name 'z' is not defined")),
    "deep": (
        "import json\n\ndef f():\n    json.loads('{')\n\nf()\n",
        ("line 4 (`json.loads('{')`)", "JSONDecodeError"),
    ),
    "of several lines": ("raise ValueError('a\\nb')\n", ("line 1 (`raise ValueError('a\\nb')`)", "ValueError: a:")),
    "exit": ("import sys\nsys.exit()\n", ("line 2 (`sys.exit()`)", "SystemExit:")),
    "missing package": ("import no_such_package\n", ("line 1", "'no_such_package'", "a plug-in is one file")),
    "not text": (b"\xff\xfe\x00", ("SyntaxError",)),
    "empty": ("", ("has no class", "from models.registry import layer, same", "@layer(same)")),
    "undecorated": ("class Gate: pass\nclass Door: pass\n", ("Gate, Door", "have no @layer", "@layer(same)")),
    "no rule": (BARE, ("@layer above A", "has no channel rule", "@layer(same)")),
    "built-in": (
        GATE.replace("Gate", "Conv"),
        (f"line {RULE_LINE} (`@layer(same)`)", "'Conv' is a built-in layer", "models/common.py line", "name='MyConv'"),
    ),
    "torch's": (
        GATE.replace("@layer(same)", "@layer(same, name='nn.Upsample')"),
        ("'nn.Upsample' is a built-in layer", "torch.nn.modules.upsampling", "name='MyUpsample'"),
    ),
    "twice": (
        GATE + GATE,
        (f"line {RULE_LINE + len(GATE.splitlines())}", "layer 'Gate' is registered twice", "name='MyGate'"),
    ),
    "replaced": ("from models import registry\nregistry._LAYERS['Conv'] = None\n", ("replaces the layer 'Conv'",)),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_one_line_with_file_and_line(write: Write, case: str) -> None:
    text, facts = MISTAKES[case]
    path, before = write(text), registry.registered_layers()
    with pytest.raises(PluginError) as caught:
        load_plugin(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert_says(caught.value, *facts)
    assert registry.registered_layers() == before
    assert loaded_plugins() == []


def test_a_name_in_two_files(write: Write) -> None:
    first, second = write(GATE, "a.py"), write(GATE, "b.py")
    load_plugin(first)
    with pytest.raises(PluginError) as caught:
        load_plugin(second)
    assert str(caught.value).startswith(f"{second}: line {RULE_LINE} (`@layer(same)`): ")
    assert_says(caught.value, f"'Gate' is a layer of the plug-in {first}", "name='MyGate'")
    assert [plugin.path for plugin in loaded_plugins()] == [first]


def test_files_that_are_no_plugins(write: Write, tmp_path: Path) -> None:
    write()
    for path, facts in (
        (tmp_path / "my_layer.py", ("my_layer.py", "no such file", "Did you mean 'my_layers.py'?")),
        (tmp_path, (str(tmp_path), "is a folder")),
        (write(GATE, "my_layers.txt"), ("my_layers.txt", "'.txt'")),
        (tmp_path / "no" / "such.py", ("such.py", "no such file")),
    ):
        with pytest.raises(PluginError) as caught:
            load_plugin(path)
        assert_says(caught.value, *facts)


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
    for value, facts in (
        ("my_layers.py", ("plugins is 'my_layers.py'", "[my_layers.py]")),
        ([3], ("plugins is [3]", "[my_layers.py]")),
        (["other.py"], ("plugins: other.py", "no such file")),
        (["my_layers.py"], ("my_layers.py", "line 1 (`1 / 0`)", "ZeroDivisionError")),
    ):
        path.write_text(yaml.safe_dump(gated_config() | {"plugins": value}))
        with pytest.raises(ModelConfigError) as caught:
            Model(path)
        assert_says(caught.value, "net.yaml", *facts)


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
