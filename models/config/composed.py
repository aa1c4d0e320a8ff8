"""Networks written as edits of another: `base: yolov9-c.yaml` with `edits`, or patches on the command line."""

import difflib
from collections.abc import Callable, Sequence
from typing import Any

from models.config.language import Edit, read_edit
from models.config.patch import EditedRows
from models.config.places import SECTIONS, Places
from models.config.rows import NetworkConfig, show_row
from utils.errors import ModelConfigError
from utils.files import yaml_text

Read = Callable[[str], NetworkConfig]
"""Reads a network yaml by path or shipped name."""


def on_base(config: dict[str, Any], where: Places, read: Read) -> NetworkConfig:
    """Apply the edits of a configuration to its `base`.

    Other keys beside `base` and `edits` (nc, names, scales and so on) replace those of the base.

    Args:
        where: place of each item of the configuration.
        read: reads the base.
    Raises:
        ModelConfigError: rows beside a base, an unreadable base, or an edit that cannot be applied.
    """
    for section in SECTIONS:
        if section in config:
            raise ModelConfigError(
                f"{where}: '{section}' beside 'base': expected edits of the base's rows, or rows without a base"
            )
    base, edits = config["base"], config.get("edits") or []
    if not isinstance(base, str):
        raise ModelConfigError(f"{where}: base is {base!r}: expected the name or path of a network yaml")
    if not isinstance(edits, list):
        raise ModelConfigError(f"{where}: edits is {edits!r}: expected a list, such as '- insert SE after p5'")
    network = read(base)
    own = {key: value for key, value in config.items() if key not in ("base", "edits")}
    read_edits = [read_edit(edit, f"{where.of('edits', number)}: edits[{number}]") for number, edit in enumerate(edits)]
    places = Places(where.name, {}, network.where.keys | where.keys)
    return edited(NetworkConfig(network.keys | own, network.rows, places, network.notes), read_edits)


def patched(network: NetworkConfig, patches: Sequence[str]) -> NetworkConfig:
    """Apply the edits of the command line to a network."""
    return edited(network, [read_edit(patch, "--patch") for patch in patches])


def edited(network: NetworkConfig, edits: Sequence[Edit]) -> NetworkConfig:
    """Apply edits to a network; its rows change in place."""
    if not edits:
        return network
    rows = EditedRows(network.rows)
    for edit in edits:
        rows.apply(edit)
    return NetworkConfig(network.keys, rows.settled(), network.where, [*network.notes, *rows.notes])


def show_rows(config: dict[str, Any]) -> list[str]:
    """Return a configuration's rows as lines of its yaml."""
    return [
        line for section in SECTIONS for line in (f"{section}:", *(f"  - {show_row(row)}" for row in config[section]))
    ]


def config_text(config: dict[str, Any]) -> str:
    """Return a configuration as yaml text, one row per line."""
    keys = {key: value for key, value in config.items() if key not in SECTIONS}
    above = yaml_text(keys, width=140) if keys else ""
    return above + "".join(f"{line}\n" if line.startswith(" ") else f"\n{line}\n" for line in show_rows(config))


def show_difference(base: dict[str, Any], base_name: str, config: dict[str, Any], name: str) -> str:
    """Return the differences between two configurations as a unified diff of their rows and other keys."""

    def lines(content: dict[str, Any]) -> list[str]:
        keys = [f"{key}: {show_row(value)}" for key, value in content.items() if key not in SECTIONS]
        return keys + show_rows(content)

    return "\n".join(difflib.unified_diff(lines(base), lines(config), base_name, name, n=1, lineterm=""))
