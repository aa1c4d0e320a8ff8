"""Which losses and which assigner a network trains with: the mapping `loss` of a hyperparameter or network yaml.

    loss: {box: shape_iou, wrap: [inner(0.8), focaler(0, 0.95)], cls: varifocal, assigner: atss, assigner_iou: ciou}

Each key may be left out. What the hyperparameters say goes before what the network yaml says, key by key; docs/losses.md has the names.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import utils.losses.assigners
import utils.losses.classes  # noqa: F401 both are imported to register their parts
from utils.errors import ModelConfigError, SettingsError, UserError, did_you_mean
from utils.losses.box import BoxLoss
from utils.losses.parts import Call, read_call

SAME = "same"
"""The assigner's measure where it is that of the box loss, wrappers included."""

DEFAULTS: dict[str, Any] = {"box": "ciou", "wrap": [], "cls": "bce", "assigner": "task_aligned", "assigner_iou": SAME}


@dataclass(frozen=True)
class LossSettings:
    """The parts of a loss, with all their numbers."""

    box: Call
    wrap: tuple[Call, ...]
    cls: Call
    assigner: Call
    assigner_iou: Call | None

    def box_loss(self) -> BoxLoss:
        """Build the box loss."""
        return BoxLoss(self.box, self.wrap)

    def assigner_measure(self, box_loss: BoxLoss) -> BoxLoss:
        """Return that by which the assigner compares boxes: the box loss's measure, or its own."""
        return box_loss if self.assigner_iou is None else BoxLoss(self.assigner_iou)

    def __str__(self) -> str:
        around = f" in {', '.join(map(str, self.wrap))}" if self.wrap else ""
        by = self.assigner_iou or f"{self.box}{around}"
        return f"box {self.box}{around}, cls {self.cls}, assigner {self.assigner} by {by}"


def read_loss(value: Any, where: str, error: type[UserError] = SettingsError) -> dict[str, Any]:
    """Check a mapping `loss`, and return the keys that it has in one spelling, with all numbers written out.

    Args:
        value: what a yaml holds; None says nothing.
        where: the file, for messages; `error` is what they raise.
    Raises:
        UserError: an unknown key or name, or a number out of range.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise error(
            f"{where}: loss: {value!r}: expected a mapping such as {{box: ciou, cls: bce, assigner: task_aligned}}"
        )
    chosen: dict[str, Any] = {}
    for given, content in value.items():
        key, place = str(given).lower().replace("-", "_"), f"{where}: loss: {given}"
        if key not in DEFAULTS:
            comma = (
                ": a comma within { } ends a value unless it is quoted" if content is None and ")" in str(given) else ""
            )
            raise error(f"{place}: unknown key: expected {', '.join(DEFAULTS)}{comma}.{did_you_mean(key, DEFAULTS)}")
        if key in chosen:
            raise error(f"{place}: is given twice: leave one out")
        if key == "wrap":
            chosen[key] = _read_wraps(content, place, error)
        elif key == "assigner_iou":
            chosen[key] = SAME if content in (None, SAME) else str(read_call("box", content, place, error))
        else:
            chosen[key] = str(read_call(key, content, place, error))
    return chosen


def _read_wraps(value: Any, where: str, error: type[UserError]) -> list[str]:
    """Return the wrappers that a yaml lists, or names alone, or maps to their numbers."""
    listed = value if isinstance(value, list) else [] if value in (None, {}, "none") else [value]
    if isinstance(value, Mapping):
        listed = [{name: numbers} for name, numbers in value.items()]
    calls = [read_call("wrap", item, where, error) for item in _rejoined(listed)]
    names = [call.part.name for call in calls]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise error(f"{where}: {value!r}: '{twice}' is given twice: leave one out")
    return [str(call) for call in calls]


def _rejoined(items: list[Any]) -> list[Any]:
    """Put calls together again that yaml has cut at their commas: ``[focaler(0, 0.95)]`` is read as two texts."""
    joined: list[Any] = []
    for item in items:
        if (
            joined
            and isinstance(joined[-1], str)
            and joined[-1].count("(") > joined[-1].count(")")
            and not isinstance(item, list | dict)
        ):
            joined[-1] = f"{joined[-1]}, {item}"
        else:
            joined.append(item)
    return joined


def choose_loss(ours: Any, networks: Any, networks_where: str = "network yaml") -> dict[str, Any]:
    """Return all keys of a `loss`: those of the hyperparameters over those of the network yaml over the defaults.

    Args:
        ours, networks: what the hyperparameters and the network yaml hold, if anything.
        networks_where: the latter's file, for messages.
    """
    return DEFAULTS | read_loss(networks, networks_where, ModelConfigError) | read_loss(ours, "hyperparameters")


def conflicts(ours: Any, networks: Any, ours_where: str, networks_where: str) -> list[str]:
    """Return a line for each key on which hyperparameters and network yaml differ; arguments as `choose_loss` has them."""
    first, second = read_loss(ours, ours_where), read_loss(networks, networks_where, ModelConfigError)
    differing = [key for key in first if key in second and first[key] != second[key]]
    return [
        f"loss: {key}: {first[key]} of {ours_where} goes before {second[key]} of {networks_where}" for key in differing
    ]


def build_settings(chosen: Mapping[str, Any]) -> LossSettings:
    """Return the parts that a mapping `loss` names; keys that it lacks have their defaults."""
    whole = DEFAULTS | read_loss(chosen, "hyperparameters")
    by = whole["assigner_iou"]
    return LossSettings(
        box=read_call("box", whole["box"], "loss"),
        wrap=tuple(read_call("wrap", item, "loss") for item in whole["wrap"]),
        cls=read_call("cls", whole["cls"], "loss"),
        assigner=read_call("assigner", whole["assigner"], "loss"),
        assigner_iou=None if by == SAME else read_call("box", by, "loss"),
    )
