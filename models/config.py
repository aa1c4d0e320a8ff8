"""Network yamls: finding them, checking their keys, choosing a scale."""

import copy
import math
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

from models.foreign import CONFIG_KEYS, translate_config
from models.registry import Scale
from utils.errors import ModelConfigError, did_you_mean
from utils.files import REPOSITORY, find_shipped, read_yaml

CONFIG_FOLDERS = ("models/detect", "models/segment")


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
    raise ModelConfigError(f"{cfg}: no such network yaml: expected a path or the name of a shipped one.{did_you_mean(given.name, shipped)}")


def read_config(cfg: str | Path | dict[str, Any], scale: str | None = None) -> tuple[dict[str, Any], str]:
    """Read a network yaml, or take a mapping, and check its keys; what is read otherwise than it stands is printed.

    Args:
        scale: letter of its `scales`, in place of the file's own choice.
    Returns:
        The configuration (its own copy), and the name that messages use for it.
    Raises:
        ModelConfigError: yaml syntax, an unknown key, no rows, or a scale other than that in the file's name.
    """
    if isinstance(cfg, dict):
        config, where, letter = copy.deepcopy(cfg), "network", None
    else:
        path, letter = find_config(cfg)
        where = str(cfg)
        config = read_yaml(path, ModelConfigError, where)
    if not isinstance(config, dict):
        raise ModelConfigError(f"{where}: holds {type(config).__name__}: expected the keys nc, backbone and head")
    for key in config:
        if key not in CONFIG_KEYS:
            raise ModelConfigError(f"{where}: unknown key '{key}': expected one of {', '.join(CONFIG_KEYS)}.{did_you_mean(str(key), CONFIG_KEYS)}")
    for section in ("backbone", "head"):
        if not isinstance(config.get(section), list) or not config[section]:
            raise ModelConfigError(f"{where}: '{section}' is {config.get(section)!r}: expected a list of rows [from, repeats, layer, arguments]")
    if letter is not None and scale not in (None, letter):
        raise ModelConfigError(f"{where}: scale {scale!r}: the name chooses {letter!r} already: leave --scale out, or the letter in the name")
    config |= {key: value for key, value in (("scale", scale or letter),) if value is not None}
    if not isinstance(config.get("folded", False), bool):
        raise ModelConfigError(f"{where}: folded is {config['folded']!r}: expected true or false")
    config, notes = translate_config(config, None, where)
    for note in notes:
        say_once(f"{where}: {note}")
    return config, where


@cache
def say_once(line: str) -> None:
    """Print a line, the first time it is said; to standard error, since standard output may be read by a program."""
    print(line, file=sys.stderr)


def choose_scale(config: dict[str, Any], where: str) -> Scale:
    """Return the multipliers of a configuration: of the scale that it names, or its own.

    Raises:
        ModelConfigError: scales without a choice, an unknown one, or a multiple that is no positive number.
    """
    if config.get("scale") is not None and not config.get("scales"):
        raise ModelConfigError(f"{where}: scale {config['scale']!r}: this yaml has no 'scales' to choose from: leave --scale out")
    multiples = (config.get("depth_multiple", 1.0), config.get("width_multiple", 1.0), config.get("max_channels"))
    if scales := config.get("scales"):
        if not isinstance(scales, dict) or not all(isinstance(values, list) and len(values) in (2, 3) for values in scales.values()):
            raise ModelConfigError(f"{where}: scales are {scales!r}: expected a mapping of letters to [depth, width, most channels]")
        if config.get("scale") not in scales:
            raise ModelConfigError(f"{where}: scale {config.get('scale')!r}: choose one of {', '.join(map(str, scales))} with --scale")
        multiples = (*scales[config["scale"]], None)[:3]
    *factors, most = multiples
    if not all(isinstance(factor, int | float) and not isinstance(factor, bool) and 0 < factor < math.inf for factor in factors):
        raise ModelConfigError(f"{where}: depth and width multiple are {factors}: expected positive numbers")
    if most is not None and (not isinstance(most, int) or isinstance(most, bool) or most < 1):
        raise ModelConfigError(f"{where}: max_channels is {most!r}: expected a positive integer")
    return Scale(*multiples, letter=config.get("scale"))
