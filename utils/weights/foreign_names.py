"""Names of weights in YOLOv9, YOLOv8 and YOLO11.

Body layers have the same names as ours. In the head, the originals number the towers; the order follows from the
number of branches.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from models.heads.detect import DetectionHead
from models.parameters import layer_index
from models.yolo import Model

NAME_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.|model\.(?=model\.))+")
"""Prefixes that data-parallel training, torch.compile and an outer module put before `model.<index>.`."""


def own_names(tensors: Mapping[str, Tensor], model: Model | None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors under our names, and the file's name of each.

    Args:
        tensors: under the originals' names or ours; a leading ``module.`` or second ``model.`` is removed.
        model: the network that the tensors belong to; None to find its head by the names.
    """
    cleaned = {name: NAME_WRAPPERS.sub("", name) for name in tensors}
    if model is not None:
        prefix, table = f"model.{len(model.model) - 1}.", foreign_head_names(model.head)
    else:
        last = max((layer_index(name) for name in cleaned.values() if re.match(r"model\.\d+\.", name)), default=0)
        prefix = f"model.{last}."
        table = guessed_head_names({name.split(".")[2] for name in cleaned.values() if name.startswith(prefix)})
    parts = {theirs: ours for ours, theirs in table.items()}
    renamed, file_names = {}, {}
    for name, clean in cleaned.items():
        ours = clean
        if clean.startswith(prefix):
            part, _, rest = clean.removeprefix(prefix).partition(".")
            ours = f"{prefix}{parts[part]}.{rest}" if part in parts else clean
        renamed[ours], file_names[ours] = tensors[name], name
    return renamed, file_names


def foreign_head_names(head: DetectionHead) -> dict[str, str]:
    """Return the originals' names of a head's parts by ours."""
    return numbered_names(len(head.aux) + 1, head.num_masks > 0)


def guessed_head_names(parts: set[str]) -> dict[str, str]:
    """Return the same for a file without a network description, from the part names of its last layer.

    The result is empty for a body without a head, and for our own names.
    """
    if "cv1" in parts or not parts & {"cv2", "cv3", "dfl"}:
        return {}
    towers, prototypes = (sum(part.startswith(kind) for part in parts) for kind in ("cv", "proto"))
    branches = sum(part.startswith("dfl") for part in parts) or prototypes or towers // 2
    return numbered_names(branches, prototypes > 0)


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
