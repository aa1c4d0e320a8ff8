"""A user's own layers, from a Python file outside the repository: loaded under a module name of its own, told apart by path and content.

A plug-in is code. It runs because a command names it (`--plugin`, the `plugins` of the yaml given as `--cfg`, `load_plugin`), never because
a checkpoint does. docs/plugins.md is the user's page.
"""

import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

import models.catalogue  # noqa: F401 registers the built-in layers, whose names are taken then
from models.registry import LayerTakenError, registered_layers, replace_layers
from utils.errors import ModelConfigError, PluginError, did_you_mean
from utils.files import REPOSITORY

EXAMPLE = "`from models.registry import layer, same`, and @layer(same) above the class"
BARE_DECORATOR = "layer.<locals>.register"
"""Qualified name of what is left where a class was decorated with `@layer` and no rule."""


@dataclass(frozen=True)
class Plugin:
    """A loaded file.

    Attributes:
        path: absolute.
        sha256: of the bytes that were run.
        layers: yaml names that it registered; `others` what it registered elsewhere, as kinds and names.
        module: name under which it is in `sys.modules`.
    """

    path: Path
    sha256: str
    layers: tuple[str, ...]
    others: tuple[tuple[str, str], ...]
    module: str
    source: bytes = field(repr=False)

    def describe(self) -> str:
        """Return one line for the start of a run."""
        names = (*self.layers, *(f"{kind} {name}" for kind, name in self.others))
        return f"plug-in {self.path} (sha256 {self.sha256[:12]}): {', '.join(names)}"

    def entries(self) -> set[tuple[str, str]]:
        """Return the kind and name of everything that it registered."""
        return {("layer", name) for name in self.layers} | set(self.others)


_LOADED: dict[Path, Plugin] = {}
_MODULES: dict[str, Plugin] = {}
"""Every plug-in that was ever loaded, by module name: networks outlive the reloading of a file."""


@dataclass
class Registry:
    """Something that plug-ins may add to: what it holds by name, how to put that back, and what was there before any plug-in."""

    read: Callable[[], dict[str, Any]]
    replace: Callable[[dict[str, Any]], None]
    built_in: dict[str, Any]


_REGISTRIES = {"layer": Registry(registered_layers, replace_layers, {})}


def add_registry(kind: str, read: Callable[[], dict[str, Any]], replace: Callable[[dict[str, Any]], None]) -> None:
    """Let plug-ins register something besides layers, such as losses; to be called once the built-in ones are there.

    Args:
        kind: what an entry is called in messages.
        read: returns a copy of the entries by name; `replace` makes such a copy the entries.
    """
    _REGISTRIES[kind] = Registry(read, replace, read())


# --- loading


def load_plugin(path: str | Path) -> Plugin:
    """Run a user's file so that the layers that it registers can be used in yaml rows; a file that is loaded already is left alone.

    One that changed since is run anew, and that is said: networks built from then on have the new layers.

    Args:
        path: a .py file, relative to the working directory.
    Raises:
        PluginError: there is no such file, it fails or registers nothing, or one of its layers has the name of another.
    """
    place, source = read_source(path)
    return install_source(place, source)


def load_plugins(paths: Iterable[str | Path]) -> list[Plugin]:
    """Load several files, see `load_plugin`; one that is named twice counts once."""
    return list({plugin.module: plugin for plugin in map(load_plugin, paths)}.values())


def load_config_plugins(config: dict[str, Any], path: Path | None, where: str) -> None:
    """Load the `plugins` of a network yaml that a command names, and take that key out of the configuration, in place.

    Args:
        path: of the yaml; files are looked for relative to its folder, then to the working directory. None for a configuration that came
            from elsewhere, such as a checkpoint, which must not choose what is run: its `plugins` are not loaded, and that is said.
    Raises:
        ModelConfigError: they are no list of files.
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
            f"{where}: plugins {', '.join(named)}: not loaded: only a command or the yaml that it names chooses what is run",
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
        PluginError: it is no Python file that can be read.
    """
    given = Path(path)
    if given.is_dir():
        raise PluginError(f"{path}: is a folder: expected a Python file, such as my_layers.py")
    if not given.is_file():
        nearby = [file.name for file in given.parent.glob("*.py")] if given.parent.is_dir() else []
        raise PluginError(
            f"{path}: no such file: expected a Python file with layers, such as my_layers.py.{did_you_mean(given.name, nearby)}"
        )
    if given.suffix != ".py":
        raise PluginError(f"{path}: its name ends in '{given.suffix}': expected a Python file, such as my_layers.py")
    try:
        return given.resolve(), given.read_bytes()
    except OSError as error:
        raise PluginError(f"{path}: cannot be read: {error.strerror}: expected a Python file") from error


def install_plugins(plugins: Iterable[Plugin]) -> None:
    """Load plug-ins of another process from the sources that ran there, whatever their files say now."""
    for plugin in plugins:
        install_source(plugin.path, plugin.source)


def install_source(path: Path, source: bytes) -> Plugin:
    """Run the source of a plug-in, unless exactly that is loaded; see `load_plugin`."""
    digest = hashlib.sha256(source).hexdigest()
    known = _LOADED.get(path)
    if known and known.sha256 == digest and is_registered(known):
        return known
    before = read_registries()
    if known:
        remove_entries(known)
    try:
        plugin = run_source(path, source, digest)
    except BaseException:
        replace_entries(before)
        raise
    if known and known.sha256 != digest:
        print(
            f"{path}: changed since it was loaded (sha256 {known.sha256[:12]} then, {digest[:12]} now): loaded again",
            file=sys.stderr,
        )
    _LOADED[path] = _MODULES[plugin.module] = plugin
    return plugin


def unload_plugin(plugin: Plugin) -> None:
    """Take a plug-in's layers out of the registry; networks that have them go on as they are."""
    remove_entries(plugin)
    _LOADED.pop(plugin.path, None)


def loaded_plugins() -> list[Plugin]:
    """Return what is loaded, in the order of loading."""
    return list(_LOADED.values())


class _HeldSource(SourceFileLoader):
    """Runs the bytes that were read and hashed; Python's own loader may take older ones out of its cache."""

    def __init__(self, name: str, path: Path, source: bytes) -> None:
        super().__init__(name, str(path))
        self._source = source

    def get_code(self, fullname: str) -> Any:
        return self.source_to_code(self._source, self.path)


def run_source(path: Path, source: bytes, digest: str) -> Plugin:
    """Run a plug-in as a module, and return what it registered.

    Raises:
        PluginError: it fails, registers nothing or replaces something; what it registered until then is left to the caller.
    """
    name = module_name(path, source)
    spec = importlib.util.spec_from_file_location(name, path, loader=_HeldSource(name, path, source))
    module = importlib.util.module_from_spec(spec)
    before = read_registries()
    earlier = sys.modules.get(name)
    sys.modules[name] = module  # from the start: dataclasses and pickles look their module up
    try:
        with (
            explained(path, source, module),
            torch.device("cpu"),
        ):  # whatever the device is on which a network is being built
            spec.loader.exec_module(module)
        layers, others = added_entries(path, before)
        if not layers and not others:
            raise PluginError(f"{path}: {what_is_missing(module)}")
    except BaseException:
        if earlier is None:
            del sys.modules[name]
        else:
            sys.modules[name] = earlier
        raise
    return Plugin(path, digest, layers, others, name, source)


def module_name(path: Path, source: bytes) -> str:
    """Return the name that a file's module has, another one for every path and content."""
    stem = re.sub(r"\W", "_", path.stem)
    return f"loom_plugin_{stem}_{hashlib.sha256(str(path).encode() + bytes(1) + source).hexdigest()[:8]}"


# --- what is registered


def read_registries() -> dict[str, dict[str, Any]]:
    """Return copies of all registries, by kind."""
    return {kind: registry.read() for kind, registry in _REGISTRIES.items()}


def replace_entries(entries: dict[str, dict[str, Any]]) -> None:
    """Put registries back as `read_registries` returned them; one that was added since, as it was then."""
    for kind, registry in _REGISTRIES.items():
        registry.replace(entries.get(kind, registry.built_in))


def remove_entries(plugin: Plugin) -> None:
    """Take what a plug-in registered out of the registries."""
    gone = plugin.entries()
    replace_entries(
        {
            kind: {name: entry for name, entry in held.items() if (kind, name) not in gone}
            for kind, held in read_registries().items()
        }
    )


def is_registered(plugin: Plugin) -> bool:
    """Tell whether what a plug-in registered is still there."""
    held = read_registries()
    return all(name in held[kind] for kind, name in plugin.entries())


def added_entries(path: Path, before: dict[str, dict[str, Any]]) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Return the layers and the other entries that were not there before.

    Raises:
        PluginError: an entry that was there before is another one now.
    """
    added: list[tuple[str, str]] = []
    nested = {entry for plugin in _LOADED.values() if plugin.path != path for entry in plugin.entries()}
    for kind, entries in read_registries().items():
        earlier = before.get(kind, _REGISTRIES[kind].built_in)
        if changed := [name for name in earlier if entries.get(name) is not earlier[name]]:
            raise PluginError(f"{path}: replaces the {kind} '{changed[0]}': expected names of its own")
        added += [(kind, name) for name in entries if name not in earlier and (kind, name) not in nested]
    return tuple(name for kind, name in added if kind == "layer"), tuple(
        entry for entry in added if entry[0] != "layer"
    )


def plugin_of(name: str) -> Plugin | None:
    """Return the plug-in that registered a layer, None for a built-in one."""
    return next((plugin for plugin in _LOADED.values() if name in plugin.layers), None)


def used_plugins(model: nn.Module) -> list[tuple[Plugin, list[str]]]:
    """Return the plug-ins that a network has layers of, and the names of those, in its rows and inside blocks.

    Args:
        model: a `models.yolo.Model`, or any network without `rows`, such as an exported file's.
    """
    rows = {row.name for row in getattr(model, "rows", ())}
    kinds = {type(module) for module in model.modules()}
    used: dict[str, tuple[Plugin, set[str]]] = {}
    for name, entry in registered_layers().items():
        own = (
            entry.cls.__module__ in _MODULES
        )  # else the file registers what another package defines, which may be anywhere in a network
        if entry.cls in kinds and (own or name in rows) and (plugin := plugin_of(name)):
            used.setdefault(plugin.module, (plugin, set()))[1].add(name)
    for cls in kinds:
        if cls.__module__ in _MODULES:  # of a file that was loaded anew since the network was built
            used.setdefault(cls.__module__, (_MODULES[cls.__module__], {cls.__name__}))
    return [(plugin, sorted(names)) for plugin, names in used.values()]


# --- messages


@contextmanager
def explained(path: Path, source: bytes, module: ModuleType) -> Iterator[None]:
    """Turn whatever running a plug-in raises into one line: file, line, what.

    Raises:
        PluginError: with that line.
    """
    try:
        yield
    except LayerTakenError as error:
        raise PluginError(f"{path}: {line_of(error, path, source)}{describe_holder(error, module)}") from error
    except (Exception, SystemExit) as error:  # a user's file may raise anything
        what = str(error.msg if isinstance(error, SyntaxError) else error).strip().partition("\n")[0]
        shown = f"{type(error).__name__}: {what}" if what else type(error).__name__
        advice = ": expected a file that runs when it is imported"
        if isinstance(error, ModuleNotFoundError):
            advice = ": a plug-in is one file: expected what it imports to be installed, or in the file itself"
        raise PluginError(f"{path}: {line_of(error, path, source)}{shown}{advice}") from error


def line_of(error: BaseException, path: Path, source: bytes) -> str:
    """Return where in the plug-in an error arose, as "line 3 (`text`): "; empty if it does not say."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        number = error.lineno
    else:
        numbers = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        number = numbers[-1] if numbers else None
    lines = source.decode(errors="replace").splitlines()
    if not number or number > len(lines):
        return ""
    return f"line {number} (`{lines[number - 1].strip()}`): "


def describe_holder(error: LayerTakenError, module: ModuleType) -> str:
    """Say where the layer is that has the name already."""
    holder = error.holder
    advice = f"expected another name: @layer(…, name='My{holder.name.rpartition('.')[2]}')"
    if holder.cls.__module__ == module.__name__:
        return f"layer '{holder.name}' is registered twice in this file: {advice}"
    owner = plugin_of(holder.name)
    kind = f"a layer of the plug-in {owner.path}" if owner else f"a built-in layer, {place_of(holder.cls)}"
    return f"'{holder.name}' is {kind}: {advice}"


def place_of(cls: type) -> str:
    """Return where a class is defined: file and line of one in the repository, else its module."""
    try:
        path, line = Path(inspect.getfile(cls)), inspect.getsourcelines(cls)[1]
    except (OSError, TypeError):  # its source is not at hand
        return cls.__module__
    return (
        f"{path.relative_to(REPOSITORY).as_posix()} line {line}"
        if path.is_relative_to(REPOSITORY / "models")
        else cls.__module__
    )


def what_is_missing(module: ModuleType) -> str:
    """Say why a file has registered nothing."""
    own = [
        name for name, value in vars(module).items() if inspect.isclass(value) and value.__module__ == module.__name__
    ]
    bare = [name for name, value in vars(module).items() if getattr(value, "__qualname__", "") == BARE_DECORATOR]
    if bare:
        return f"registers nothing: @layer above {', '.join(bare)} has no channel rule: expected one in parentheses, such as @layer(same)"
    found = f"its classes {', '.join(own)} have no @layer" if own else "it has no class"
    return f"registers nothing: {found}: expected {EXAMPLE}"
