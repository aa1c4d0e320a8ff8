"""Translate network configurations in checkpoints of other frameworks: some head names and keys differ.

The row format `[from, repeats, layer, arguments]`, the other layer names and the argument order are the same.
"""

import copy
from collections.abc import Sequence
from typing import Any, Literal

from models.config.places import SECTIONS, Places
from models.config.reading import CONFIG_KEYS
from models.config.rows import Row, read_rows, sections_of
from models.config.yolo11 import read_as_yolo11
from utils.errors import ModelConfigError

Family = Literal["yolov9", "ultralytics"]

YOLOV9_HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "Detect": ("V9Detect", {}),
    "Segment": ("V9Segment", {}),
    "DualDetect": ("DualDDetect", {"box_groups": 1}),
    "TripleDetect": ("TripleDDetect", {"box_groups": 1}),
}
"""Head names of the original YOLOv9, each with our name and extra arguments."""


def translate_config(config: dict[str, Any], family: Family, where: str) -> tuple[dict[str, Any], list[str]]:
    """Translate a network configuration of another framework.

    Args:
        family: the framework that wrote the file.
        where: the file's name, for messages.
    Returns:
        The translated copy, and a note for each item that was dropped or changed.
        Malformed rows stay unchanged: building the network reports them.
    Raises:
        ModelConfigError: the configuration needs a head that is not supported.
    """
    config = copy.deepcopy(config)
    notes = translate_keys(config, where)
    if not all(isinstance(config.get(section), list) for section in SECTIONS):
        return config, notes
    try:
        rows = read_rows(config, Places(where))
    except ModelConfigError:
        return config, notes
    if family == "yolov9":
        notes += rename_heads(rows)
    else:
        notes += read_as_yolo11(rows, bool(config.get("scales")))
    return config | sections_of(rows), notes


def translate_keys(config: dict[str, Any], where: str) -> list[str]:
    """Rename and drop keys, in place; return a note for each key that matters."""
    if config.get("reg_max", 16) != 16:
        raise ModelConfigError(f"{where}: reg_max is {config['reg_max']}: expected 16, the only number of bins here")
    if config.get("end2end"):
        raise ModelConfigError(
            f"{where}: end2end is {config['end2end']}: heads without non-maximum suppression are not supported"
        )
    notes = []
    if "channels" in config:
        config.setdefault("ch", config.pop("channels"))
    if not config.get("scale"):
        config.pop("scale", None)  # files without a choice hold an empty string
        if scales := config.get("scales"):
            config["scale"] = next(iter(scales))
            notes.append(f"no scale is chosen: using {config['scale']}, the first, like the original framework")
    for key in [key for key in config if key not in CONFIG_KEYS]:
        del config[key]
        notes.append(f"key '{key}' is ignored: it has no use here")
    return notes


def rename_heads(rows: Sequence[Row]) -> list[str]:
    """Rename the original YOLOv9's heads, in place; return a note for each."""
    notes = []
    for row in rows:
        if row.name in YOLOV9_HEADS:
            name, arguments = YOLOV9_HEADS[row.name]
            shown = f"{name} {arguments}" if arguments else name
            notes.append(f"{row.name} is read as {shown}: our name of this YOLOv9 head")
            row.name = name
            row.keywords |= arguments
    return notes
