"""Network files of other frameworks, read in our terms: heads that share a name, hidden rules, and keys that say nothing here.

Row formats agree (`[from, repeats, layer, arguments]`), and so do the layers' names and argument orders; what differs is here.
"""

import copy
from typing import Any, Literal

from utils.errors import ModelConfigError

Family = Literal["yolov9", "ultralytics"]

YOLOV9_HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "Detect": ("V9Detect", {}),
    "Segment": ("V9Segment", {}),
    "DualDetect": ("DualDDetect", {"box_groups": 1}),
    "TripleDetect": ("TripleDDetect", {"box_groups": 1}),
}
"""What the original YOLOv9 calls its heads, with our name and further arguments."""

FORCED_C3K_SCALES = "mlx"
"""Scales at which the published YOLO11 networks make every C3k2 one of C3k units, whatever their file says."""

CONFIG_KEYS = (
    *("nc", "ch", "names", "scales", "scale", "depth_multiple", "width_multiple", "max_channels"),
    *("activation", "anchors", "inplace", "folded", "backbone", "head"),
    *("scaling", "plugins", "loss", "base", "edits"),
)
"""Keys of a network yaml."""


def translate_config(config: dict[str, Any], family: Family | None, where: str) -> tuple[dict[str, Any], list[str]]:
    """Return a network configuration in our terms.

    Args:
        family: whose file it is; None for a yaml that a user passes, in which only the use of C3k2 gives the family away.
        where: the file's name, for messages.
    Returns:
        The configuration (its own copy), and a line for each thing that was read otherwise than it stands or left out.
    Raises:
        ModelConfigError: it asks for what our heads are not.
    """
    config = copy.deepcopy(config)
    notes: list[str] = []
    if family is not None:
        translate_keys(config, where, notes)
    if family == "yolov9":
        translate_heads(config, notes)
    else:
        translate_c3k2(config, notes)
    return config, notes


def rows_of(config: dict[str, Any]) -> list[list[Any]]:
    """Return the rows that have the form of one, in order; the others are left to the parser's message."""
    sections = [config.get(section) for section in ("backbone", "head")]
    rows = [row for section in sections if isinstance(section, list) for row in section]
    return [
        row
        for row in rows
        if isinstance(row, list) and len(row) in (4, 5) and isinstance(row[2], str) and isinstance(row[3], list)
    ]


def translate_keys(config: dict[str, Any], where: str, notes: list[str]) -> None:
    """Rename and drop keys, in place."""
    if config.get("reg_max", 16) != 16:
        raise ModelConfigError(
            f"{where}: reg_max is {config['reg_max']}: heads of 16 bins a side are built here, and no others"
        )
    if config.get("end2end"):
        raise ModelConfigError(
            f"{where}: end2end is {config['end2end']}: heads without non-maximum suppression are not built here"
        )
    if "channels" in config:
        config.setdefault("ch", config.pop("channels"))
    scales = config.get("scales")
    if not scales and not config.get("scale"):
        config.pop("scale", None)  # said as '' there
    elif scales and not config.get("scale"):
        config["scale"] = next(iter(scales))
        notes.append(f"no scale is chosen: {config['scale']}, the first, is taken, as its own framework does")
    for key in [key for key in config if key not in CONFIG_KEYS]:
        del config[key]
        notes.append(f"key '{key}' is left out: it has no meaning here")


def translate_heads(config: dict[str, Any], notes: list[str]) -> None:
    """Give the original YOLOv9's heads our names, in place."""
    for row in rows_of(config):
        if row[2] in YOLOV9_HEADS:
            name, arguments = YOLOV9_HEADS[row[2]]
            shown = f"{name} {arguments}" if arguments else name
            notes.append(f"{row[2]} is read as {shown}: the original YOLOv9's head of that name")
            row[2] = name
            set_keywords(row[3], arguments)


def translate_c3k2(config: dict[str, Any], notes: list[str]) -> None:
    """Read the heads and C3k2 rows of a file that uses C3k2 as YOLO11's, in place, unless its head says what its class towers are."""
    rows = rows_of(config)
    blocks, heads = ([row for row in rows if row[2] in names] for names in (("C3k2",), ("Detect", "Segment")))
    if not blocks or not heads or any("cls" in keywords_of(row[3]) for row in heads):
        return
    for row in heads:
        set_keywords(row[3], {"cls": "depthwise"})
    note = f"it uses C3k2: {heads[0][2]} is read as YOLO11's, {{cls: depthwise}}; {{cls: dense}} in its row asks for YOLOv8's"
    if config.get("scales"):
        for row in blocks:
            force_c3k(row[3])
        note += f"; and C3k2 False as '{FORCED_C3K_SCALES}', true at those scales, which is how its networks were built"
    notes.append(note)


def force_c3k(arguments: list[Any]) -> None:
    """Make a C3k2's false `c3k` the letters of the scales at which it is true all the same, in place."""
    keywords = keywords_of(arguments)
    positional = len(arguments) - (1 if keywords else 0)
    if positional >= 2:
        arguments[1] = arguments[1] or FORCED_C3K_SCALES
    elif not keywords.get("c3k"):
        set_keywords(arguments, {"c3k": FORCED_C3K_SCALES})


def keywords_of(arguments: list[Any]) -> dict[str, Any]:
    """Return the mapping of keyword arguments that ends a row's arguments, empty without one."""
    return arguments[-1] if arguments and isinstance(arguments[-1], dict) else {}


def set_keywords(arguments: list[Any], keywords: dict[str, Any]) -> None:
    """Set keyword arguments of a row, in place."""
    if not keywords:
        return
    if arguments and isinstance(arguments[-1], dict):
        arguments[-1] |= keywords
    else:
        arguments.append(dict(keywords))
