"""Networks that are written as edits of another: `base: yolov9-c.yaml` and a list of `edits`, or patches on the command line."""

import difflib
from collections.abc import Callable, Sequence
from typing import Any

import yaml

from models.config.language import Edit, read_edit
from models.config.patch import Rows
from models.config.places import Places
from models.config.rows import show_row
from utils.errors import ModelConfigError

Read = Callable[[str], tuple[dict[str, Any], Places]]
"""Reads a network yaml by path or shipped name: its configuration and where its rows stand."""


def on_base(config: dict[str, Any], places: Places, read: Read) -> tuple[dict[str, Any], Places, list[str]]:
    """Return the network that a configuration with a `base` means.

    Keys beside `base` and `edits` (nc, names, scales, …) take the place of the base's.

    Args:
        read: reads the base.
    Returns:
        A configuration without `base` and `edits`, where its rows come from, and what there is to say about the edits.
    Raises:
        ModelConfigError: rows beside a base, a base that is no network, or an edit that cannot be made.
    """
    for section in ("backbone", "head"):
        if section in config:
            raise ModelConfigError(
                f"{places}: '{section}' beside 'base': expected edits of the base's rows, or rows without a base"
            )
    base, edits = config["base"], config.get("edits") or []
    if not isinstance(base, str):
        raise ModelConfigError(f"{places}: base is {base!r}: expected the name or path of a network yaml")
    if not isinstance(edits, list):
        raise ModelConfigError(f"{places}: edits is {edits!r}: expected a list, such as '- insert SE after p5'")
    found, base_places = read(base)
    own = {key: value for key, value in config.items() if key not in ("base", "edits")}
    read_edits = [
        read_edit(edit, f"{places.of('edits', number)}: edits[{number}]") for number, edit in enumerate(edits)
    ]
    content, sections, notes = edited(found | own, base_places, read_edits)
    return content, Places(places.name, sections, base_places.keys | places.keys), notes


def patched(config: dict[str, Any], places: Places, patches: Sequence[str]) -> tuple[dict[str, Any], Places, list[str]]:
    """Return a configuration after the edits of the command line, as `on_base` does."""
    edits = [read_edit(patch, "--patch") for patch in patches]
    content, sections, notes = edited(config, places, edits)
    return content, Places(places.name, sections, places.keys), notes


def edited(
    config: dict[str, Any], places: Places, edits: Sequence[Edit]
) -> tuple[dict[str, Any], dict[str, list[str]], list[str]]:
    """Return a configuration with its rows edited, the place of each row, and what there is to say."""
    if not edits:
        return config, places.rows(config), []
    rows = Rows.read(config, places.rows(config))
    for edit in edits:
        rows.apply(edit)
    sections, row_places = rows.written()
    return config | sections, row_places, rows.notes


def show_rows(config: dict[str, Any]) -> list[str]:
    """Return a configuration's rows as lines of its yaml."""
    return [
        line
        for section in ("backbone", "head")
        for line in (f"{section}:", *(f"  - {show_row(row)}" for row in config[section]))
    ]


def config_text(config: dict[str, Any]) -> str:
    """Return a configuration as a yaml that a person reads: a row a line."""
    keys = {key: value for key, value in config.items() if key not in ("backbone", "head")}
    above = yaml.safe_dump(keys, sort_keys=False, allow_unicode=True, width=140) if keys else ""
    return above + "".join(f"{line}\n" if line.startswith(" ") else f"\n{line}\n" for line in show_rows(config))


def show_difference(base: dict[str, Any], base_name: str, config: dict[str, Any], name: str) -> str:
    """Return what a network changes in another, as a unified diff of rows and of the keys beside them."""

    def lines(content: dict[str, Any]) -> list[str]:
        keys = [f"{key}: {show_row(value)}" for key, value in content.items() if key not in ("backbone", "head")]
        return keys + show_rows(content)

    return "\n".join(difflib.unified_diff(lines(base), lines(config), base_name, name, n=1, lineterm=""))
