"""Write the implicit rules of YOLO11's own framework into the rows of its yamls.

There, a network with C3k2 blocks has depthwise class towers. At some scales every C3k2 uses C3k units.
"""

from collections.abc import Sequence

from models.config.rows import Row

FORCED_C3K_SCALES = "mlx"
"""Scales at which every C3k2 of the published YOLO11 networks uses C3k units, even if its row says False."""


def read_as_yolo11(rows: Sequence[Row], scaled: bool) -> list[str]:
    """Complete the heads and C3k2 rows of a network with C3k2, in place. A head with a `cls` argument turns this off.

    Args:
        scaled: whether the yaml has scales.
    Returns:
        A note about the changes, or no note.
    """
    blocks = [row for row in rows if row.name == "C3k2"]
    heads = [row for row in rows if row.name in ("Detect", "Segment")]
    if not blocks or not heads or any("cls" in row.keywords for row in heads):
        return []
    for row in heads:
        row.keywords["cls"] = "depthwise"
    note = (
        f"it uses C3k2: {heads[0].name} is read as YOLO11's, {{cls: depthwise}}; "
        "{cls: dense} in its row asks for YOLOv8's"
    )
    if scaled:
        for row in blocks:
            force_c3k(row)
        note += f"; and C3k2 False as '{FORCED_C3K_SCALES}', true at those scales, which is how its networks were built"
    return [note]


def force_c3k(row: Row) -> None:
    """Replace `c3k: false` of a C3k2 row by the letters of the scales at which it is true, in place."""
    if len(row.positional) >= 2:
        row.positional[1] = row.positional[1] or FORCED_C3K_SCALES
    elif not row.keywords.get("c3k"):
        row.keywords["c3k"] = FORCED_C3K_SCALES
