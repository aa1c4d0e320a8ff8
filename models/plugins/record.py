"""Record of plug-ins in a checkpoint: path, sha256 and layer names of each file whose layers the network uses.

A checkpoint never runs code: this record is for messages only. Files are run only if a command names them
(models/plugins/loading.py).
"""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from models.plugins.held import SHOWN_DIGITS, Plugin, plugin_of, used_plugins
from models.registry import registered_layers
from utils.files import write_bytes
from utils.wording import say_once, shown

COPIES = "plugins"
"""Folder of a run with the plug-ins' source as it was run."""


@dataclass(frozen=True)
class RecordedPlugin:
    """A plug-in as a checkpoint records it.

    Attributes:
        path: path of the file on the machine that wrote the checkpoint.
        sha256: of the file's content.
        layers: names of the layers that the network uses.
    """

    path: str
    sha256: str
    layers: tuple[str, ...]


def plugins_entry(model: nn.Module) -> list[dict[str, Any]]:
    """Return the plug-ins that a network needs, as plain data for its checkpoint."""
    return [
        {"path": str(plugin.path), "sha256": plugin.sha256, "layers": names} for plugin, names in used_plugins(model)
    ]


def read_plugins_entry(entry: object) -> list[RecordedPlugin]:
    """Read the record of a checkpoint; leave out malformed rows, make texts safe to print."""
    rows = [row for row in entry if isinstance(row, dict)] if isinstance(entry, list) else []
    return [
        RecordedPlugin(shown(row["path"]), shown(row["sha256"]), tuple(map(shown, row["layers"])))
        for row in rows
        if isinstance(row.get("path"), str)
        and isinstance(row.get("sha256"), str)
        and isinstance(row.get("layers"), list)
    ]


def advise_missing(recorded: Iterable[RecordedPlugin]) -> list[str]:
    """Return a line for each plug-in with missing layers: the layers, their file, the flag that loads it."""
    lines = []
    for plugin in recorded:
        missing = [name for name in plugin.layers if name not in registered_layers()]
        if not missing:
            continue
        if Path(plugin.path).is_file():
            advice = f"--plugin {shlex.quote(plugin.path)} runs that file"
        else:
            advice = f"that file is not there: --plugin PATH names a copy (a run keeps one in its folder {COPIES})"
        lines.append(f"{describe_source(missing, plugin)}; weights do not run code by themselves: {advice}")
    return lines


def describe_source(names: Sequence[str], plugin: RecordedPlugin) -> str:
    """Describe the file that layers came from."""
    verb = "comes" if len(names) == 1 else "come"
    return f"{', '.join(names)} {verb} from the plug-in {plugin.path} (sha256 {plugin.sha256[:SHOWN_DIGITS]})"


def differences(recorded: Iterable[RecordedPlugin]) -> list[str]:
    """Return a line for each recorded plug-in with a layer that has another source here."""
    lines = []
    for plugin in recorded:
        others = {name: plugin_of(name) for name in plugin.layers if name in registered_layers()}
        others = {name: other for name, other in others.items() if other is None or other.sha256 != plugin.sha256}
        if others:
            here = next(iter(others.values()))
            now = f"is {here.origin}" if here else "is a built-in layer"
            lines.append(f"{describe_source(list(others), plugin)}; here it {now}: results may differ")
    return lines


def say_differences(where: str, recorded: Iterable[RecordedPlugin]) -> None:
    """Print once which layers of a checkpoint have another source now than when it was written."""
    for line in differences(recorded):
        say_once(f"{where}: {line}")


def print_plugins(model: nn.Module, given: Sequence[Plugin] = ()) -> None:
    """Print the plug-ins that a network uses, then those that were given but not used."""
    used = used_plugins(model)
    for plugin, names in used:
        print(f"plug-in {plugin.origin}: {', '.join(names)}")
    needed = {plugin.module for plugin, _ in used}
    for plugin in given:
        if plugin.module not in needed:
            print(f"{plugin.describe()}: loaded, but this network has none of its layers")


def copy_name(plugin: Plugin | RecordedPlugin) -> str:
    """Return the name of a plug-in's copy in the folder of a run."""
    return f"{Path(plugin.path).stem}_{plugin.sha256[:8]}.py"


def keep_copies(model: nn.Module, folder: Path) -> None:
    """Write the source of a network's plug-ins, as it was run, into the folder of the run."""
    for plugin, _ in used_plugins(model):
        write_bytes(folder / COPIES / copy_name(plugin), plugin.source)


def plugins_key(model: nn.Module) -> dict[str, list[str]]:
    """Return the `plugins` key of a network's yaml, empty without plug-ins."""
    used = [str(plugin.path) for plugin, _ in used_plugins(model)]
    return {"plugins": used} if used else {}


def plugin_flags(model: nn.Module) -> str:
    """Return the flags that a later command needs to build the network, each after a space."""
    return "".join(f" --plugin {shlex.quote(str(plugin.path))}" for plugin, _ in used_plugins(model))
