"""Network yamls: finding them, checking their keys, and reading them with their base and edits."""

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models.config.composed import on_base, patched
from models.config.places import SECTIONS, Places, yaml_places
from models.config.rows import NetworkConfig, read_rows
from models.config.yolo11 import read_as_yolo11
from models.plugins.loading import load_config_plugins
from utils.errors import ModelConfigError, did_you_mean
from utils.files import REPOSITORY, find_shipped, read_yaml
from utils.losses.settings import read_loss
from utils.wording import say_once

CONFIG_FOLDERS = ("models/detect", "models/segment")
CONFIG_KEYS = (
    *("nc", "ch", "names", "scales", "scale", "depth_multiple", "width_multiple", "max_channels"),
    *("activation", "anchors", "inplace", "folded", "backbone", "head"),
    *("scaling", "plugins", "loss", "base", "edits"),
)
"""Keys of a network yaml."""


def find_config(cfg: str | Path) -> tuple[Path, str | None]:
    """Find a network yaml by path, by the name of a shipped one, or by scaled name (yolov8m.yaml is yolov8.yaml at m).

    Returns:
        Its path, and the scale letter in the name or None.
    Raises:
        ModelConfigError: no such file; names the nearest shipped one.
    """
    wanted = Path(cfg) if str(cfg).endswith((".yaml", ".yml")) else Path(f"{cfg}.yaml")
    names: list[tuple[str, str | None]] = [(wanted.name, None)]
    if family := re.fullmatch(r"(yolo(?:v8|11))([a-z])(.*)", wanted.stem):
        names.append((f"{family[1]}{family[3]}{wanted.suffix}", family[2]))
    for name, letter in names:
        for folder in CONFIG_FOLDERS:
            if path := find_shipped(wanted.with_name(name), folder):
                return path, letter
    shipped = [path.name for folder in CONFIG_FOLDERS for path in (REPOSITORY / folder).glob("*.yaml")]
    raise ModelConfigError(
        f"{cfg}: no such network yaml: expected a path or the name of a shipped one."
        f"{did_you_mean(wanted.name, shipped)}"
    )


def read_config(
    cfg: str | Path | dict[str, Any], scale: str | None = None, patches: Sequence[str] = ()
) -> NetworkConfig:
    """Read a network yaml or a mapping; print a note about each row that is changed on reading.

    Args:
        scale: letter of its `scales`, in place of the file's own choice.
        patches: edits of its rows, applied after the file's own (models/config/language.py).
    Raises:
        ModelConfigError: invalid yaml, an unknown key, a malformed row, a scale that contradicts the file's name,
            or an edit that cannot be applied.
    """
    network, letter = read_content(cfg, (), may_load=True)
    keys, where = network.keys, network.where
    if letter is not None and scale not in (None, letter):
        raise ModelConfigError(
            f"{where}: scale {scale!r}: the name chooses {letter!r} already: "
            "leave --scale out, or the letter in the name"
        )
    if chosen := scale or letter:
        keys["scale"] = chosen
    if not isinstance(keys.get("folded", False), bool):
        raise ModelConfigError(f"{where}: folded is {keys['folded']!r}: expected true or false")
    if "loss" in keys:
        read_loss(keys["loss"], where.keys.get("loss", str(where)), ModelConfigError)
    for note in read_as_yolo11(network.rows, bool(keys.get("scales"))):
        network.notes.append(f"{where}: {note}")
    network = patched(network, patches)
    for note in network.notes:
        say_once(note, to_errors=True)
    return network


def read_content(
    cfg: str | Path | dict[str, Any], built_on: tuple[Path, ...], may_load: bool
) -> tuple[NetworkConfig, str | None]:
    """Read a network yaml and its base, if any; load the plug-ins that they name.

    Args:
        built_on: files whose base is this one, directly or through others.
        may_load: whether plug-ins may run. False within a mapping: it may come from a checkpoint.
    Returns:
        The network, and the scale letter in the file's name or None.
    """
    path, letter = None, None
    if isinstance(cfg, dict):
        config, where = copy.deepcopy(cfg), Places("network")
    else:
        path, letter = find_config(cfg)
        config, where = read_yaml(path, ModelConfigError, str(cfg)), yaml_places(path, str(cfg))
    check_keys(config, where)
    may_load = may_load and path is not None
    load_config_plugins(config, path if may_load else None, str(where))
    if "base" not in config:
        keys = {key: value for key, value in config.items() if key not in SECTIONS}
        return NetworkConfig(keys, read_rows(config, where), where), letter
    chain = (*built_on, *([path.resolve()] if path else []))
    if len(set(chain)) < len(chain):
        names = " and ".join(file.name for file in chain[:-1])
        raise ModelConfigError(f"{where}: is its own base, through {names}: expected another network")

    def read_base(base: str) -> NetworkConfig:
        beside = path.parent / base if path else Path(base)
        try:
            network, chosen = read_content(str(beside) if beside.is_file() else base, chain, may_load)
        except ModelConfigError as error:
            raise ModelConfigError(f"{where}: base: {error}") from error
        if chosen:
            network.keys["scale"] = chosen
        return network

    return on_base(config, where, read_base), letter


def base_of(cfg: str | Path) -> str | None:
    """Return the base of a network yaml as a path that is valid from any folder; None without a base."""
    path, _ = find_config(cfg)
    content = read_yaml(path, ModelConfigError, str(cfg))
    base = content.get("base") if isinstance(content, dict) else None
    if not isinstance(base, str):
        return None
    beside = path.parent / base
    return str(beside) if beside.is_file() else base


def check_keys(config: object, where: Places) -> None:
    """Check the keys of a network configuration.

    Raises:
        ModelConfigError: no mapping, an unknown key, or neither rows nor a base.
    """
    if not isinstance(config, dict):
        raise ModelConfigError(f"{where}: holds {type(config).__name__}: expected the keys nc, backbone and head")
    for key in config:
        if key not in CONFIG_KEYS:
            raise ModelConfigError(
                f"{where}: unknown key '{key}': expected one of {', '.join(CONFIG_KEYS)}."
                f"{did_you_mean(str(key), CONFIG_KEYS)}"
            )
    if "base" in config:
        return
    if "edits" in config:
        raise ModelConfigError(
            f"{where}: 'edits' without 'base': expected the network that they edit, such as base: yolov9-c.yaml"
        )
    for section in SECTIONS:
        if not isinstance(config.get(section), list) or not config[section]:
            raise ModelConfigError(
                f"{where}: '{section}' is {config.get(section)!r}: "
                "expected a list of rows [from, repeats, layer, arguments]"
            )
