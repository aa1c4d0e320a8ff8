"""The originals' names of a network's weights, YOLOv9's and YOLOv8's and YOLO11's alike.

Body layers are named as ours are; the originals number the head's towers, in an order that follows from the branches alone.
"""

import re

from models.heads.detect import DetectionHead

NAME_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.|model\.(?=model\.))+")
"""What data-parallel training, torch.compile and an outer module put before `model.<index>.`."""


def foreign_head_names(head: DetectionHead) -> dict[str, str]:
    """Return the originals' names of a head's parts by ours."""
    return numbered_names(len(head.aux) + 1, head.num_masks > 0)


def guessed_head_names(parts: set[str]) -> dict[str, str]:
    """Return the same for a file that says no network, from the names of the parts that its last layer has."""
    branches = sum(part.startswith("dfl") for part in parts)
    return numbered_names(branches, "proto" in parts) if branches else {}  # a body without a head, or our own names


def numbered_names(branches: int, masks: bool) -> dict[str, str]:
    """Return the originals' names of a head's parts by ours.

    Box and class towers are numbered branch by branch, auxiliary ones first (cv2, cv3, dfl, then cv4, cv5, dfl2, …); the mask
    towers follow in the same order (cv4 after one branch; cv6, cv7 after two), with proto, proto2, … for the prototypes.
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


def foreign_name(name: str, head_index: int, table: dict[str, str]) -> str:
    """Return the originals' name of one of our state-dict entries."""
    prefix = f"model.{head_index}."
    if name.startswith(prefix):
        for ours, theirs in table.items():
            if name.startswith(f"{prefix}{ours}."):
                return f"{prefix}{theirs}.{name.removeprefix(f'{prefix}{ours}.')}"
    return name
