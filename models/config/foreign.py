"""Network configurations in checkpoints of other frameworks: heads whose names mean another layer here, and other keys.

Row formats agree (`[from, repeats, layer, arguments]`), and so do the layers' names and the order of their arguments.
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
"""What the original YOLOv9 calls its heads, with our name and further arguments."""


def translate_config(config: dict[str, Any], family: Family, where: str) -> tuple[dict[str, Any], list[str]]:
    """Return a network configuration of another framework as one of ours.

    Args:
        family: whose file it is.
        where: the file's name, for messages.
    Returns:
        The configuration (a copy), and a line for each thing that was left out or read otherwise than written.
        Malformed rows stay as they are: building the network reports them.
    Raises:
        ModelConfigError: it asks for a head that does not exist here.
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
    """Rename and drop keys, in place; return a line for each that matters."""
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
        config.pop("scale", None)  # an empty text in a file without a choice
        if scales := config.get("scales"):
            config["scale"] = next(iter(scales))
            notes.append(f"no scale is chosen: {config['scale']}, the first, is taken, as its own framework does")
    for key in [key for key in config if key not in CONFIG_KEYS]:
        del config[key]
        notes.append(f"key '{key}' is left out: it has no meaning here")
    return notes


def rename_heads(rows: Sequence[Row]) -> list[str]:
    """Give the original YOLOv9's heads our names, in place; return a line for each."""
    notes = []
    for row in rows:
        if row.name in YOLOV9_HEADS:
            name, arguments = YOLOV9_HEADS[row.name]
            shown = f"{name} {arguments}" if arguments else name
            notes.append(f"{row.name} is read as {shown}: the original YOLOv9's head of that name")
            row.name = name
            row.keywords |= arguments
    return notes
