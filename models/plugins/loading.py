"""Load a user's own layers from a Python file outside the repository.

A plug-in is code. It is run only if a command names it (`--plugin`, the `plugins` of the yaml given as `--cfg`,
`load_plugin`), never because a checkpoint does. docs/plugins.md is the user's page.
"""

import hashlib
import importlib.util
import re
import sys
from collections.abc import Iterable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

import torch

import models.catalogue  # noqa: F401 registers the built-in layers, so that their names are taken
from models.plugins.held import SHOWN_DIGITS, Plugin, forget, loaded_from, loaded_plugins, remember
from models.plugins.messages import explained, missing_layers
from models.registry import Layer, registered_layers, replace_layers
from utils.errors import ModelConfigError, PluginError, did_you_mean


def load_plugin(path: str | Path) -> Plugin:
    """Run a user's file and register its layers for yaml rows.

    An unchanged file is not run again. A changed file is run again, with a note on stderr; networks built afterwards
    have the new layers.

    Args:
        path: a .py file, relative to the working directory.
    Raises:
        PluginError: no such file, the file fails or registers nothing, or a layer's name is taken.
    """
    return install_source(*read_source(path))


def load_plugins(paths: Iterable[str | Path]) -> list[Plugin]:
    """Load several files (see `load_plugin`); a file that is named twice counts once."""
    return list({plugin.module: plugin for plugin in map(load_plugin, paths)}.values())


def load_config_plugins(config: dict[str, Any], path: Path | None, where: str) -> None:
    """Load the `plugins` of a network yaml that a command names; remove the key from `config` in place.

    Args:
        path: the yaml; files are looked up in its folder, then in the working directory. None for a configuration from
            elsewhere, such as a checkpoint: its plug-ins are not run, with a note on stderr.
    Raises:
        ModelConfigError: `plugins` is not a list of files.
        PluginError: one of them cannot be loaded.
    """
    named = config.pop("plugins", None)
    if named is None:
        return
    if not isinstance(named, list) or not all(isinstance(name, str) and name for name in named):
        raise ModelConfigError(
            f"{where}: plugins is {named!r}: expected a list of Python files, such as [my_layers.py]"
        )
    if path is None:
        print(
            f"{where}: plugins {', '.join(named)}: not loaded: "
            "expected them in --plugin, or in the yaml that the command names",
            file=sys.stderr,
        )
        return
    for name in named:
        beside = path.parent / name
        try:
            load_plugin(beside if beside.is_file() else name)
        except PluginError as error:
            raise PluginError(f"{where}: plugins: {error}") from error


def read_source(path: str | Path) -> tuple[Path, bytes]:
    """Return the absolute path and the content of a plug-in.

    Raises:
        PluginError: the path is no Python file, or cannot be read.
    """
    given = Path(path)
    if given.is_dir():
        raise PluginError(f"{path}: is a folder: expected a Python file, such as my_layers.py")
    if not given.is_file():
        nearby = [file.name for file in given.parent.glob("*.py")] if given.parent.is_dir() else []
        raise PluginError(
            f"{path}: no such file: expected a Python file with layers, such as my_layers.py."
            f"{did_you_mean(given.name, nearby)}"
        )
    if given.suffix != ".py":
        raise PluginError(f"{path}: its name ends in '{given.suffix}': expected a Python file, such as my_layers.py")
    try:
        return given.resolve(), given.read_bytes()
    except OSError as error:
        raise PluginError(f"{path}: cannot be read: {error.strerror}: expected a Python file") from error


def install_plugins(plugins: Iterable[Plugin]) -> None:
    """Load another process's plug-ins from the source that it ran; the files may have changed since."""
    for plugin in plugins:
        install_source(plugin.path, plugin.source)


def install_source(path: Path, source: bytes) -> Plugin:
    """Run the source of a plug-in unless it is loaded already; see `load_plugin`."""
    digest = hashlib.sha256(source).hexdigest()
    known = loaded_from(path)
    before = registered_layers()
    if known and known.sha256 == digest and before.keys() >= set(known.layers):
        return known
    if known:
        remove_layers(known)
    try:
        plugin = run_source(path, source, digest)
    except BaseException:
        replace_layers(before)
        raise
    if known and known.sha256 != digest:
        old, new = known.sha256[:SHOWN_DIGITS], digest[:SHOWN_DIGITS]
        print(f"{path}: changed since it was loaded (sha256 {old} then, {new} now): loaded again", file=sys.stderr)
    remember(plugin)
    return plugin


def unload_plugin(plugin: Plugin) -> None:
    """Remove a plug-in's layers from the registry; existing networks keep working."""
    remove_layers(plugin)
    forget(plugin)


def remove_layers(plugin: Plugin) -> None:
    """Remove a plug-in's layers from the registry."""
    replace_layers({name: entry for name, entry in registered_layers().items() if name not in plugin.layers})


class _HeldSource(SourceFileLoader):
    """Loader of the bytes that were read and hashed; Python's own loader may use older ones from its cache."""

    def __init__(self, name: str, path: Path, source: bytes) -> None:
        super().__init__(name, str(path))
        self._source = source

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self._source, self.path)


def run_source(path: Path, source: bytes, digest: str) -> Plugin:
    """Run a plug-in as a module; return it with the layers that it registered.

    Raises:
        PluginError: the file fails, registers nothing or replaces a layer; the caller must restore the registry.
    """
    name = module_name(path, source)
    loader = _HeldSource(name, path, source)
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None, "a loader was given"
    module = importlib.util.module_from_spec(spec)
    before, earlier = registered_layers(), sys.modules.get(name)
    sys.modules[name] = module  # before it runs: dataclasses and pickles look up their module
    try:
        # A network may be under construction on another device, such as meta.
        with explained(path, source, module), torch.device("cpu"):
            loader.exec_module(module)
        layers = added_layers(path, before)
        if not layers:
            raise PluginError(f"{path}: {missing_layers(module)}")
    except BaseException:
        if earlier is None:
            del sys.modules[name]
        else:
            sys.modules[name] = earlier
        raise
    return Plugin(path, digest, layers, name, source)


def module_name(path: Path, source: bytes) -> str:
    """Return a module name that is unique for path and content."""
    stem = re.sub(r"\W", "_", path.stem)
    return f"loom_plugin_{stem}_{hashlib.sha256(str(path).encode() + bytes(1) + source).hexdigest()[:8]}"


def added_layers(path: Path, before: dict[str, Layer]) -> tuple[str, ...]:
    """Return the layers that a plug-in registered, without those of other plug-ins that it loaded.

    Raises:
        PluginError: it replaced an existing layer.
    """
    now = registered_layers()
    if changed := [name for name, entry in before.items() if now.get(name) is not entry]:
        raise PluginError(f"{path}: replaces the layer '{changed[0]}': expected names of its own")
    nested = {name for plugin in loaded_plugins() if plugin.path != path for name in plugin.layers}
    return tuple(name for name in now if name not in before and name not in nested)
