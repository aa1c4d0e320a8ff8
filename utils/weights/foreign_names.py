"""Names of weights in YOLOv9, YOLOv8 and YOLO11.

Body layers have the same names as ours. In the head, the originals number the towers; the order follows from the
number of branches.
"""

import re

from models.heads.detect import DetectionHead

NAME_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.|model\.(?=model\.))+")
"""Prefixes that data-parallel training, torch.compile and an outer module put before `model.<index>.`."""


def foreign_head_names(head: DetectionHead) -> dict[str, str]:
    """Return the originals' names of a head's parts by ours."""
    return numbered_names(len(head.aux) + 1, head.num_masks > 0)


def guessed_head_names(parts: set[str]) -> dict[str, str]:
    """Return the same for a file without a network description, from the part names of its last layer."""
    branches = sum(part.startswith("dfl") for part in parts)
    return numbered_names(branches, "proto" in parts) if branches else {}  # without: a body alone, or our own names


def numbered_names(branches: int, masks: bool) -> dict[str, str]:
    """Return the originals' names of a head's parts by ours.

    Box and class towers are numbered branch by branch, auxiliary branches first: cv2, cv3, dfl, then cv4, cv5, dfl2, …
    Mask towers follow in the same order (cv4 after one branch; cv6, cv7 after two), with proto, proto2, … for the
    prototypes.
    """
    table: dict[str, str] = {}
    for number, part in enumerate([*(f"aux.{index}" for index in range(branches - 1)), "lead"]):
        suffix = str(number + 1) if number else ""
        table |= {
            f"{part}.box": f"cv{2 * number + 2}",
            f"{part}.cls": f"cv{2 * number + 3}",
            f"{part}.dfl": f"dfl{suffix}",
        }
        if masks:
            table |= {f"{part}.masks": f"cv{2 * branches + 2 + number}", f"{part}.prototypes": f"proto{suffix}"}
    return table
