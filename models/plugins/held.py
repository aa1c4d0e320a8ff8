"""The loaded plug-ins: which layers each registered, and which plug-ins a network uses."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from models.registry import registered_layers, temporary_layers

SHOWN_DIGITS = 12
"""Digits of a sha256 in messages."""


@dataclass(frozen=True)
class Plugin:
    """A loaded plug-in file.

    Attributes:
        path: absolute path.
        sha256: of the bytes that were run.
        layers: yaml names of the layers that it registered.
        module: name of its module in `sys.modules`.
        source: the bytes that were run.
    """

    path: Path
    sha256: str
    layers: tuple[str, ...]
    module: str
    source: bytes = field(repr=False)

    @property
    def origin(self) -> str:
        """Path and digest, for messages."""
        return f"{self.path} (sha256 {self.sha256[:SHOWN_DIGITS]})"

    def describe(self) -> str:
        """Return one line for the start of a run."""
        return f"plug-in {self.origin}: {', '.join(self.layers)}"


_LOADED: dict[Path, Plugin] = {}
_MODULES: dict[str, Plugin] = {}
"""All plug-ins loaded so far, by module name: a network keeps its layers when a file is loaded again."""


def remember(plugin: Plugin) -> None:
    """Add a plug-in to the loaded ones, in place of an earlier one of the same path."""
    _LOADED[plugin.path] = _MODULES[plugin.module] = plugin


def forget(plugin: Plugin) -> None:
    """Remove a plug-in from the loaded ones."""
    _LOADED.pop(plugin.path, None)


def loaded_plugins() -> list[Plugin]:
    """Return the loaded plug-ins in the order of loading."""
    return list(_LOADED.values())


def loaded_from(path: Path) -> Plugin | None:
    """Return the plug-in that was loaded from an absolute path."""
    return _LOADED.get(path)


def plugin_of(name: str) -> Plugin | None:
    """Return the plug-in that registered a layer, None for a built-in one."""
    return next((plugin for plugin in _LOADED.values() if name in plugin.layers), None)


def used_plugins(model: nn.Module) -> list[tuple[Plugin, list[str]]]:
    """Return the plug-ins whose layers a network uses, in rows or inside blocks, with the names of those layers.

    Args:
        model: a `models.yolo.Model`, or any network without `rows`, such as an exported file's.
    """
    rows = {row.name for row in getattr(model, "rows", ())}
    kinds = {type(module) for module in model.modules()}
    used: dict[str, tuple[Plugin, set[str]]] = {}
    for name, entry in registered_layers().items():
        # A file may register a class of another package; that class counts only where a row names it.
        own = entry.cls.__module__ in _MODULES
        if entry.cls in kinds and (own or name in rows) and (plugin := plugin_of(name)):
            used.setdefault(plugin.module, (plugin, set()))[1].add(name)
    for cls in kinds:
        if cls.__module__ in _MODULES:  # the file was loaded again after the network was built
            used.setdefault(cls.__module__, (_MODULES[cls.__module__], {cls.__name__}))
    return [(plugin, sorted(names)) for plugin, names in used.values()]


@contextmanager
def temporary_plugins() -> Iterator[None]:
    """Start a `with` block without plug-ins; undo at its end what was loaded and registered in it."""
    loaded, modules = dict(_LOADED), dict(_MODULES)
    _LOADED.clear()
    _MODULES.clear()
    try:
        with temporary_layers():
            yield
    finally:
        _LOADED.clear()
        _LOADED.update(loaded)
        _MODULES.clear()
        _MODULES.update(modules)
