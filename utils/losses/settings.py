"""Which losses and which assigner a network trains with: the mapping `loss` of a hyperparameter or network yaml.

    loss: {box: shape_iou, wrap: [inner(0.8), focaler(0, 0.95)], cls: varifocal, assigner: atss, assigner_iou: ciou}

Each key may be left out. The hyperparameters override the network yaml, key by key; docs/losses.md lists the names.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from utils.errors import ModelConfigError, SettingsError, UserError, did_you_mean
from utils.losses.atss import atss
from utils.losses.box import (
    BoxLoss,
    WiseIoU,
    ciou,
    diou,
    eiou,
    focaler,
    giou,
    inner,
    iou,
    mpdiou,
    nwd,
    shape_iou,
    siou,
)
from utils.losses.classes import bce, quality_focal, slide, varifocal
from utils.losses.parts import Call, Parts
from utils.losses.task_aligned import task_aligned

PARTS: dict[str, Parts] = {
    "box": Parts("box loss", ciou, iou, giou, diou, eiou, siou, shape_iou, mpdiou, nwd, WiseIoU),
    "wrap": Parts("wrapper", inner, focaler),
    "cls": Parts("class loss", bce, varifocal, quality_focal, slide),
    "assigner": Parts("assigner", task_aligned, atss),
}
"""All parts that a yaml can name."""

SAME = "same"
"""The value of `assigner_iou` that compares boxes by the box loss's measure, wrappers included."""

DEFAULTS: dict[str, Any] = {"box": "ciou", "wrap": [], "cls": "bce", "assigner": "task_aligned", "assigner_iou": SAME}


@dataclass(frozen=True)
class LossSettings:
    """The parts of a loss, with all their numbers; `assigner_iou` is None for the measure of the box loss."""

    box: Call
    wrap: tuple[Call, ...]
    cls: Call
    assigner: Call
    assigner_iou: Call | None

    def box_loss(self) -> BoxLoss:
        """Build the box loss."""
        return BoxLoss(self.box, self.wrap)

    def assigner_measure(self, box_loss: BoxLoss) -> BoxLoss | None:
        """Return what the assigner compares boxes by; None for CIoU alone, the assigners' own."""
        measure, wraps = (self.box, self.wrap) if self.assigner_iou is None else (self.assigner_iou, ())
        if measure.part.make is ciou and not wraps:
            return None
        return box_loss if self.assigner_iou is None else BoxLoss(measure)

    def as_dict(self) -> dict[str, Any]:
        """Return the mapping `loss` with all keys and numbers, as a yaml holds it."""
        return {key: _written(getattr(self, key)) for key in DEFAULTS}

    def __str__(self) -> str:
        around = f" in {', '.join(map(str, self.wrap))}" if self.wrap else ""
        by = self.assigner_iou or f"{self.box}{around}"
        return f"box {self.box}{around}, cls {self.cls}, assigner {self.assigner} by {by}"


def _written(calls: Call | tuple[Call, ...] | None) -> str | list[str]:
    if calls is None:
        return SAME
    return [str(call) for call in calls] if isinstance(calls, tuple) else str(calls)


def read_loss(value: object, where: str, error: type[UserError] = SettingsError) -> dict[str, Any]:
    """Read a mapping `loss`.

    Args:
        value: what a yaml holds; None is an empty mapping.
        where: the file, for messages; `error` is the class to raise.
    Returns:
        Fields of `LossSettings`: those that the mapping has.
    Raises:
        UserError: an unknown key or name, or a number out of range.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        example = "{box: ciou, cls: bce, assigner: task_aligned}"
        raise error(f"{where}: loss: {value!r}: expected a mapping such as {example}")
    chosen: dict[str, Any] = {}
    for name, content in value.items():
        key, place = str(name).lower().replace("-", "_"), f"{where}: loss: {name}"
        if key not in DEFAULTS:
            cut = content is None and ")" in str(name)
            comma = ": a comma within { } ends a value unless it is quoted" if cut else ""
            raise error(f"{place}: unknown key: expected {', '.join(DEFAULTS)}{comma}.{did_you_mean(key, DEFAULTS)}")
        if key in chosen:
            raise error(f"{place}: is given twice: leave one out")
        chosen[key] = _read_key(key, content, place, error)
    return chosen


def _read_key(key: str, content: object, where: str, error: type[UserError]) -> Call | tuple[Call, ...] | None:
    if key == "wrap":
        return _read_wraps(content, where, error)
    if key == "assigner_iou" and content in (None, SAME):
        return None
    return PARTS["box" if key == "assigner_iou" else key].read(content, where, error)


def _read_wraps(value: object, where: str, error: type[UserError]) -> tuple[Call, ...]:
    """Read the wrappers that a yaml lists, or names alone, or maps to their numbers."""
    items = value if isinstance(value, list) else [] if value in (None, {}, "none") else [value]
    calls: list[Call] = []
    # yaml cuts a text at its commas: [focaler(0, 0.95)] is a list of two
    for is_mapping, group in itertools.groupby(items, lambda item: isinstance(item, Mapping)):
        for item in group if is_mapping else [", ".join(map(str, group))]:
            calls += PARTS["wrap"].read_all(item, where, error)
    names = [call.part.name for call in calls]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise error(f"{where}: {value!r}: '{twice}' is given twice: leave one out")
    return tuple(calls)


def settle_loss(
    ours: object, networks: object = None, ours_where: str = "hyperparameters", networks_where: str = "network yaml"
) -> tuple[LossSettings, list[str]]:
    """Choose the parts of a loss: the hyperparameters override the network yaml, key by key.

    Args:
        ours, networks: the mappings `loss` of the hyperparameters and of the network yaml, or None.
        ours_where, networks_where: their files, for messages.
    Returns:
        The parts, and a line for each key on which the two differ.
    Raises:
        SettingsError, ModelConfigError: a mapping that cannot be read.
    """
    first, second = read_loss(ours, ours_where), read_loss(networks, networks_where, ModelConfigError)
    overridden = [
        f"loss: {key}: {_written(first[key])} of {ours_where} overrides {_written(second[key])} of {networks_where}"
        for key in first
        if key in second and first[key] != second[key]
    ]
    return LossSettings(**read_loss(DEFAULTS, "defaults") | second | first), overridden
