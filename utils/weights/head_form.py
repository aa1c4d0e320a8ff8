"""Find from the tensors of a file how the towers of its head are built.

The description in a file does not always say it: Ultralytics 8.3 wrote networks with YOLO11's depthwise class towers
under the yamls of YOLOv8 and YOLOv9, and older versions gave YOLO11's yamls the class towers of YOLOv8.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from models.heads.towers import WIDTHS
from models.yolo import Model
from utils.weights.foreign_names import own_names

Value = TypeVar("Value")

TOWER = re.compile(r"model\.\d+\.(lead|aux\.\d+)\.(box|cls|masks)\.(\d+)\.(.+)")
"""Name of a tower's tensor: branch, kind, level, name within the tower."""
FIRST, FIRST_POINTWISE, LAST = "0.conv.weight", "0.1.conv.weight", "2.weight"
"""Names within a tower: of its first convolution, of the same in a depthwise class tower, and of its last one."""

NOT_NEEDED = ("num_batches_tracked", "dfl.conv.weight")
"""Ends of names of tensors that a file may lack: a counter that nothing reads, and a constant."""


Widths = Mapping[str, int]
"""Hidden width of a kind of tower by branch ("aux.0", "lead"), without the branches whose towers differ in it."""


@dataclass(frozen=True)
class HeadForm:
    """Form of a head's towers; the names are those of the settings in a head's row (`TowerSettings`).

    `cls` and `box_groups` are None where there are no such towers, or where they differ in it.
    """

    cls: str | None
    box_groups: int | None
    class_width: Widths
    box_width: Widths
    mask_width: Widths

    def settings_beside(self, other: "HeadForm") -> dict[str, Any]:
        """Return the settings that turn a head of the other form into one of this form, branch by branch."""
        kinds = {"cls": (self.cls, other.cls), "box_groups": (self.box_groups, other.box_groups)}
        settings: dict[str, Any] = {
            key: here for key, (here, there) in kinds.items() if here is not None and here != there
        }
        for key in WIDTHS:
            here, there = getattr(self, key), getattr(other, key)
            wanted = [here.get(branch, width) for branch, width in there.items()]
            if wanted != list(there.values()):
                settings[key] = wanted[0] if len(set(wanted)) == 1 else wanted
        return settings


def head_form(tensors: Mapping[str, Tensor]) -> HeadForm:
    """Return the form of the head among tensors under our names."""
    towers: dict[str, dict[str, list[dict[str, Tensor]]]] = {}
    for (kind, branch, _), tower in head_towers(tensors).items():
        towers.setdefault(kind, {}).setdefault(branch, []).append(tower)

    def widths(kind: str, of_tower: Callable[[dict[str, Tensor]], int]) -> Widths:
        found = {branch: the_only(map(of_tower, held)) for branch, held in towers.get(kind, {}).items()}
        return {branch: width for branch, width in found.items() if width}

    boxes, classes = ([tower for held in towers.get(kind, {}).values() for tower in held] for kind in ("box", "cls"))
    forms = ["dense" for tower in classes if FIRST in tower]
    forms += ["depthwise" for tower in classes if FIRST_POINTWISE in tower]
    return HeadForm(
        cls=the_only(forms),
        box_groups=the_only(tower[FIRST].shape[0] // tower[LAST].shape[1] for tower in boxes if FIRST in tower),
        class_width=widths("cls", lambda tower: tower[LAST].shape[1]),
        box_width=widths("box", lambda tower: tower[FIRST].shape[0] if FIRST in tower else 0),
        mask_width=widths("masks", lambda tower: tower[LAST].shape[1]),
    )


def head_towers(tensors: Mapping[str, Tensor]) -> dict[tuple[str, str, int], dict[str, Tensor]]:
    """Return the kernels of each tower, by name within it, under (kind, branch, level), branch after branch.

    Args:
        tensors: under our names.
    """
    towers: dict[tuple[str, str, int], dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if (found := TOWER.fullmatch(name)) and tensor.ndim == 4:
            towers.setdefault((found[2], found[1], int(found[3])), {})[found[4]] = tensor
    return {place: towers[place] for place in sorted(towers) if LAST in towers[place]}


def class_count(tensors: Mapping[str, Tensor]) -> int | None:
    """Return the number of classes of the head among tensors under our names; None without class towers."""
    return the_only(tower[LAST].shape[0] for (kind, _, _), tower in head_towers(tensors).items() if kind == "cls")


def the_only(values: Iterable[Value]) -> Value | None:
    """Return the value that all items have; None for different values, or none."""
    different = set(values)
    return different.pop() if len(different) == 1 else None


def with_head_settings(config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a network's configuration with these settings in the row of its head."""
    *rows, last = config["head"]
    arguments = list(last[3])
    keywords = arguments.pop() if arguments and isinstance(arguments[-1], dict) else {}
    return dict(config) | {"head": [*rows, [*last[:3], [*arguments, keywords | dict(settings)], *last[4:]]]}


def complete_head(
    config: dict[str, Any], tensors: Mapping[str, Tensor], nc: int | None, ch: int | None
) -> tuple[dict[str, Any], list[str]]:
    """Complete the head of a configuration so that it has the towers that the tensors show.

    Args:
        tensors: of the whole network, under the originals' names or ours.
    Returns:
        The configuration with the settings that were missing or wrong, and a note about them. Both are left as they
        are where the head would not fit the tensors with these settings either.
    Raises:
        ModelConfigError: the network cannot be built.
    """
    with torch.device("meta"):
        model = Model(config, nc=nc, ch=ch)
        held, _ = own_names(tensors, model)
        settings = head_form(held).settings_beside(head_form(model.state_dict()))
        if not settings:
            return config, []
        completed = with_head_settings(config, settings)
        towers = {name: tensor.shape for name, tensor in Model(completed, nc=nc, ch=ch).head.state_dict().items()}
    prefix = f"model.{len(model.model) - 1}."
    there = {name.removeprefix(prefix): tensor.shape for name, tensor in held.items() if name.startswith(prefix)}
    if any(there.get(name) != shape for name, shape in towers.items() if not name.endswith(NOT_NEEDED)):
        return config, []
    shown = ", ".join(f"{key}: {value}" for key, value in settings.items())
    return completed, [f"its tensors show what the yaml does not say: {model.rows[-1].name} is read as {{{shown}}}"]
