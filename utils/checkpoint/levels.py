"""Match the levels of two heads by their strides, so that a tower keeps its weights where levels come or go."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from models.yolo import Model
from utils.checkpoint.alignment import best_pairs
from utils.weights.head_form import FIRST, head_towers

LEVEL = re.compile(r"((?:lead|aux\.\d+)\.(?:box|cls|masks)\.)(\d+)(\..+)")
"""Name of a tower's tensor within its head: what stands before the level's number, the number, the rest."""
FINEST_STRIDE = 8
"""Stride of the first level of published networks."""


def level_channels(tensors: Mapping[str, Tensor]) -> list[int]:
    """Return the input channels of each level of the lead branch among tensors under our names."""
    towers = head_towers(tensors).items()
    return [
        tower[FIRST].shape[1]
        for (kind, branch, _), tower in towers
        if (kind, branch) == ("box", "lead") and FIRST in tower
    ]


def paired_levels(model: Model, tensors: Mapping[str, Tensor], stride: Sequence[int] | None) -> dict[int, int]:
    """Return the level of a file's head that has the stride of a network's level, {number here: number there}.

    Args:
        tensors: of the file, under our names.
        stride: strides of the file's levels. Where they are unknown, levels are matched in order, by their channels and
            by the strides that published networks have.
    """
    here, there = level_channels(model.state_dict()), level_channels(tensors)
    if stride is not None:
        return {number: stride.index(step) for number, step in enumerate(model.stride) if step in stride}
    if there in ([], here) or len(here) != len(model.stride):
        return {number: number for number in range(len(model.stride))}
    likeness = [
        [(channels == here[new]) + (FINEST_STRIDE << old == step) / 2 for new, step in enumerate(model.stride)]
        for old, channels in enumerate(there)
    ]
    return best_pairs(np.array(likeness, dtype=np.float64))


def name_at_level(within: str, levels: Mapping[int, int]) -> str | None:
    """Return the name that a tensor of a head has in the file's head; None if the file has no such level.

    Args:
        within: name of the tensor within the head.
        levels: number of each level in the file.
    """
    found = LEVEL.fullmatch(within)
    if found is None:
        return within
    level = levels.get(int(found[2]))
    return None if level is None else f"{found[1]}{level}{found[3]}"


def describe_levels(model: Model, tensors: Mapping[str, Tensor], stride: Sequence[int] | None) -> str:
    """Say which levels of a network's head are new, and which of the file's have no place in it; "" if there are none.

    Args:
        tensors, stride: see `paired_levels`.
    """
    levels = paired_levels(model, tensors, stride)
    new = [str(step) for number, step in enumerate(model.stride) if number not in levels]
    known = dict(enumerate(stride or ()))
    gone = [
        f"stride {known[number]}" if known else f"number {number}"
        for number in range(len(stride or level_channels(tensors)))
        if number not in levels.values()
    ]
    parts = [f"new: stride {', '.join(new)}"] if new else []
    parts += [f"left out: {', '.join(gone)}"] if gone else []
    if not parts:
        return ""
    how = "" if known else " (matched by their channels, as the file does not say their strides)"
    return f"levels of the head{how} {', '.join(parts)}"
