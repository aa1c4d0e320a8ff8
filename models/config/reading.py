"""Network yamls: finding them, checking their keys, choosing a scale."""

import copy
import math
import re
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from models.config.composed import on_base, patched
from models.config.foreign import CONFIG_KEYS, translate_config
from models.config.places import Places, yaml_places
from models.plugins.loading import load_config_plugins
from models.registry import Scale
from utils.errors import ModelConfigError, did_you_mean
from utils.files import REPOSITORY, find_shipped, read_yaml
from utils.losses.settings import read_loss

CONFIG_FOLDERS = ("models/detect", "models/segment")
SCALINGS = ("full",)
"""What `scaling` can ask for: multiples that reach hidden widths, inner repeats and the lists of CBLinear as well."""


def find_config(cfg: str | Path) -> tuple[Path, str | None]:
    """Find a network yaml, also by bare name among the shipped ones, and by scaled name (yolov8m.yaml is yolov8.yaml at m).

    Returns:
        Its path, and the scale letter that the name carried or None.
    Raises:
        ModelConfigError: no such file; names the nearest shipped one.
    """
    given = Path(cfg) if str(cfg).endswith((".yaml", ".yml")) else Path(f"{cfg}.yaml")
    family = re.fullmatch(r"(yolo(?:v8|11))([a-z])(.*)", given.stem)
    names = [(given.name, None)] + ([(f"{family[1]}{family[3]}{given.suffix}", family[2])] if family else [])
    for name, letter in names:
        for folder in CONFIG_FOLDERS:
            if found := find_shipped(given.with_name(name), folder):
                return found, letter
    shipped = [path.name for folder in CONFIG_FOLDERS for path in (REPOSITORY / folder).glob("*.yaml")]
    raise ModelConfigError(
        f"{cfg}: no such network yaml: expected a path or the name of a shipped one.{did_you_mean(given.name, shipped)}"
    )


def read_config(
    cfg: str | Path | dict[str, Any], scale: str | None = None, patches: Sequence[str] = ()
) -> tuple[dict[str, Any], Places]:
    """Read a network yaml, or take a mapping, and check its keys; what is read otherwise than it stands is printed.

    Args:
        scale: letter of its `scales`, in place of the file's own choice.
        patches: edits of its rows, made after the file's own (models/config/language.py).
    Returns:
        The configuration (its own copy, without `base` and `edits`), and where its rows stand, for messages.
    Raises:
        ModelConfigError: yaml syntax, an unknown key, no rows, a scale other than that in the file's name, or an edit that cannot be made.
    """
    config, where, letter = read_content(cfg, (), may_load=True)
    if letter is not None and scale not in (None, letter):
        raise ModelConfigError(
            f"{where}: scale {scale!r}: the name chooses {letter!r} already: leave --scale out, or the letter in the name"
        )
    config |= {key: value for key, value in (("scale", scale or letter),) if value is not None}
    if not isinstance(config.get("folded", False), bool):
        raise ModelConfigError(f"{where}: folded is {config['folded']!r}: expected true or false")
    if "loss" in config:
        read_loss(config["loss"], where.keys.get("loss", str(where)), ModelConfigError)
    config, notes = translate_config(config, None, str(where))
    for note in notes:
        say_once(f"{where}: {note}")
    config, where, notes = patched(config, where, patches)
    for note in notes:
        say_once(note)
    return config, where


def read_content(
    cfg: str | Path | dict[str, Any], built_on: tuple[Path, ...], may_load: bool
) -> tuple[dict[str, Any], Places, str | None]:
    """Read a network yaml and, where it has one, its base; load the plug-ins that they name.

    Args:
        built_on: the files that asked for this one as their base.
        may_load: False where a mapping asked for it: that may come from a checkpoint, which must not choose what is run.
    Returns:
        The configuration, where its rows stand, and the scale letter that the file's name carried or None.
    """
    if isinstance(cfg, dict):
        path, config, where, letter = None, copy.deepcopy(cfg), Places("network"), None
    else:
        path, letter = find_config(cfg)
        config = read_yaml(path, ModelConfigError, str(cfg))
        where = yaml_places(path, str(cfg))
    check_keys(config, where)
    may_load = may_load and path is not None
    load_config_plugins(config, path if may_load else None, str(where))
    if "base" not in config:
        return config, where, letter
    chain = (*built_on, *([path.resolve()] if path else []))
    if len(set(chain)) < len(chain):
        raise ModelConfigError(
            f"{where}: is its own base, by way of {' and '.join(file.name for file in chain[:-1])}: expected another network"
        )

    def read_base(base: str) -> tuple[dict[str, Any], Places]:
        beside = path.parent / base if path else Path(base)
        try:
            content, places, chosen = read_content(str(beside) if beside.is_file() else base, chain, may_load)
        except ModelConfigError as error:
            raise ModelConfigError(f"{where}: base: {error}") from error
        return content | ({"scale": chosen} if chosen else {}), places

    config, where, notes = on_base(config, where, read_base)
    for note in notes:
        say_once(note)
    return config, where, letter


def base_of(cfg: str | Path) -> str | None:
    """Return the network yaml that another one edits, by a path that reads from anywhere; None if it edits none."""
    path, _ = find_config(cfg)
    content = read_yaml(path, ModelConfigError, str(cfg))
    base = content.get("base") if isinstance(content, dict) else None
    return None if base is None else str(path.parent / base) if (path.parent / base).is_file() else base


def check_keys(config: object, where: Places) -> None:
    """Refuse what is no network configuration.

    Raises:
        ModelConfigError: an unknown key, or no rows and no base.
    """
    if not isinstance(config, dict):
        raise ModelConfigError(f"{where}: holds {type(config).__name__}: expected the keys nc, backbone and head")
    for key in config:
        if key not in CONFIG_KEYS:
            raise ModelConfigError(
                f"{where}: unknown key '{key}': expected one of {', '.join(CONFIG_KEYS)}.{did_you_mean(str(key), CONFIG_KEYS)}"
            )
    if "edits" in config and "base" not in config:
        raise ModelConfigError(
            f"{where}: 'edits' without 'base': expected the network that they edit, such as base: yolov9-c.yaml"
        )
    for section in ("backbone", "head") if "base" not in config else ():
        if not isinstance(config.get(section), list) or not config[section]:
            raise ModelConfigError(
                f"{where}: '{section}' is {config.get(section)!r}: expected a list of rows [from, repeats, layer, arguments]"
            )


@cache
def say_once(line: str) -> None:
    """Print a line, the first time it is said; to standard error, since standard output may be read by a program."""
    print(line, file=sys.stderr)


def choose_scale(config: dict[str, Any], where: str | Places) -> Scale:
    """Return the multipliers of a configuration: of the scale that it names, or its own.

    Raises:
        ModelConfigError: scales without a choice, an unknown one, or a multiple that is no positive number.
    """
    if config.get("scale") is not None and not config.get("scales"):
        raise ModelConfigError(
            f"{where}: scale {config['scale']!r}: this yaml has no 'scales' to choose from: leave --scale out"
        )
    multiples = (config.get("depth_multiple", 1.0), config.get("width_multiple", 1.0), config.get("max_channels"))
    if scales := config.get("scales"):
        if not isinstance(scales, dict) or not all(
            isinstance(values, list) and len(values) in (2, 3) for values in scales.values()
        ):
            raise ModelConfigError(
                f"{where}: scales are {scales!r}: expected a mapping of letters to [depth, width, most channels]"
            )
        if config.get("scale") not in scales:
            raise ModelConfigError(
                f"{where}: scale {config.get('scale')!r}: choose one of {', '.join(map(str, scales))} with --scale"
            )
        multiples = (*scales[config["scale"]], None)[:3]
    *factors, most = multiples
    if not all(
        isinstance(factor, int | float) and not isinstance(factor, bool) and 0 < factor < math.inf for factor in factors
    ):
        raise ModelConfigError(f"{where}: depth and width multiple are {factors}: expected positive numbers")
    if most is not None and (not isinstance(most, int) or isinstance(most, bool) or most < 1):
        raise ModelConfigError(f"{where}: max_channels is {most!r}: expected a positive integer")
    if config.get("scaling") not in (None, *SCALINGS):
        raise ModelConfigError(
            f"{where}: scaling is {config['scaling']!r}: expected {' or '.join(SCALINGS)}, or no such key"
        )
    return Scale(*multiples, letter=config.get("scale"), full=config.get("scaling") == "full")
