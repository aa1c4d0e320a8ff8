"""Prepare a network for inference: drop rows and branches that only training needs, fold normalisation."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from torch import nn

from models.config.places import SECTIONS
from models.config.rows import IMAGE, Row, sections_of, settle
from models.config.scaling import choose_scale
from models.heads.detect import DetectionHead
from models.registry import Scale, find_layer, with_inner_repeats


class Network(Protocol):
    """The part of `Model` (models/yolo.py) that `prune_to_lead` uses."""

    config: dict[str, Any]
    rows: list[Row]
    model: nn.ModuleList

    @property
    def head(self) -> DetectionHead: ...


AnyNetwork = TypeVar("AnyNetwork", bound=Network)


def needed_rows(rows: Sequence[Row], head: DetectionHead) -> list[int]:
    """Return the indices of the rows that the lead branch needs, ascending, with the head."""
    needed = {rows[-1].index}
    waiting = [rows[-1].sources[position] for position in head.lead_inputs()]
    while waiting:
        index = waiting.pop()
        if index != IMAGE and index not in needed:
            needed.add(index)
            waiting.extend(rows[index].sources)
    return sorted(needed)


def prune_to_lead(model: AnyNetwork) -> AnyNetwork:
    """Return a copy without the rows and branches that only training needs; its `config` builds the copy."""
    pruned = copy.deepcopy(model)
    rows, head = pruned.rows, pruned.head
    kept, inputs, scale = needed_rows(rows, head), head.lead_inputs(), choose_scale(model.config, "network")
    rows[-1].sources = [rows[-1].sources[position] for position in inputs]
    rows[-1].written = [rows[-1].written[position] for position in inputs]
    head.keep_lead()
    rows[-1].name = head.single or rows[-1].name
    first, *others = kept
    readers = [index for index in others if first in rows[index].sources]
    if getattr(pruned.model[first], "passes_through", False) and readers == others[:1]:
        reader = rows[others[0]]
        reader.sources = [IMAGE if source == first else source for source in reader.sources]
        kept = others
    pruned.model = nn.ModuleList(pruned.model[index] for index in kept)
    pruned.rows = [rows[index] for index in kept]
    in_backbone = sum(row.section == "backbone" for row in pruned.rows)
    in_backbone = min(max(in_backbone, 1), len(kept) - 1)  # neither section may be empty
    for number, row in enumerate(pruned.rows):
        row.section = SECTIONS[number >= in_backbone]
        row.arguments = with_inner_repeats(find_layer(row.name), row.arguments, scale)
    settle(pruned.rows)
    keys = {key: value for key, value in pruned.config.items() if key not in ("scales", "scale", *SECTIONS)}
    pruned.config = keys | sections_of(pruned.rows) | scale_keys(scale)
    return pruned


def scale_keys(scale: Scale) -> dict[str, Any]:
    """Return the yaml keys of a scale, with depth 1 as the rows hold the scaled repeats; without `scaling`."""
    most = scale.max_channels
    if scale.letter is not None:
        multiples = [1.0, scale.width, *([most] if most else [])]
        return {"scales": {scale.letter: multiples}, "scale": scale.letter}
    return {"depth_multiple": 1.0, "width_multiple": scale.width} | ({"max_channels": most} if most else {})


def fold_modules(module: nn.Module) -> None:
    """Merge normalisation and parallel convolutions in every layer that has a `fold`."""
    for child in module.children():
        fold_modules(child)
    fold: Callable[[], None] | None = getattr(module, "fold", None)
    if fold is not None:
        fold()
