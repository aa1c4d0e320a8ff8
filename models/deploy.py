"""The network that inference needs: rows and branches that only training needs dropped, normalisation folded."""

import copy
from typing import TYPE_CHECKING, Any

from torch import nn

from models.config.reading import choose_scale
from models.config.rows import IMAGE, Row, Source
from models.heads.detect import DetectionHead
from models.registry import Scale, find_layer, with_inner_repeats

if TYPE_CHECKING:
    from models.yolo import Model


def needed_rows(rows: list[Row], head: DetectionHead) -> list[int]:
    """Return the indices of the rows that the lead branch depends on, the head included, ascending."""
    needed = {rows[-1].index}
    waiting = [rows[-1].sources[position] for position in head.lead_inputs()]
    while waiting:
        index = waiting.pop()
        if index != IMAGE and index not in needed:
            needed.add(index)
            waiting.extend(rows[index].sources)
    return sorted(needed)


def prune_to_lead(model: "Model") -> "Model":
    """Return a copy without the rows and branches that only training needs; its `config` builds the same network."""
    pruned = copy.deepcopy(model)
    rows, head = pruned.rows, pruned.head
    kept, inputs, scale = needed_rows(rows, head), head.lead_inputs(), choose_scale(model.config, "network")
    rows[-1].sources, rows[-1].written = (
        [values[position] for position in inputs] for values in (rows[-1].sources, rows[-1].written)
    )
    head.keep_lead()
    first = kept[0]
    if getattr(pruned.model[first], "passes_through", False) and [
        r.index for r in rows if r.index in kept and first in r.sources
    ] == [kept[1]]:
        rows[kept[1]].sources = [IMAGE if source == first else source for source in rows[kept[1]].sources]
        kept = kept[1:]
    position = {old: new for new, old in enumerate(kept)} | {IMAGE: IMAGE}
    pruned.model = nn.ModuleList(pruned.model[index] for index in kept)
    pruned.rows = [rows[index] for index in kept]
    for new, row in enumerate(pruned.rows):
        row.index, row.sources = new, [position[source] for source in row.sources]
        row.arguments = with_inner_repeats(find_layer(row.name), row.arguments, scale)
    pruned.rows[-1].name = getattr(head, "single", pruned.rows[-1].name)
    written = [written_row(row) for row in pruned.rows]
    pruned.config = {
        key: value for key, value in pruned.config.items() if key not in ("scales", "scale", "backbone", "head")
    }
    backbone = min(
        max(sum(index < len(model.config["backbone"]) for index in kept), 1), len(kept) - 1
    )  # neither section may be empty
    pruned.config |= {"backbone": written[:backbone], "head": written[backbone:]} | written_scale(scale)
    pruned._plan()
    return pruned


def written_scale(scale: Scale) -> dict[str, Any]:
    """Return the keys that say a scale once repeats are written out: depth 1, the chosen letter's width; `scaling` stays as it is."""
    if scale.letter is not None:
        return {
            "scales": {scale.letter: [1.0, scale.width, scale.max_channels][: 3 if scale.max_channels else 2]},
            "scale": scale.letter,
        }
    return {"depth_multiple": 1.0, "width_multiple": scale.width} | (
        {"max_channels": scale.max_channels} if scale.max_channels else {}
    )


def written_row(row: Row) -> list[Any]:
    """Return a row as its yaml says it, with the sources that it has now."""
    return [written_source(row), row.repeats, row.name, row.arguments, *([row.label] if row.label else [])]


def written_source(row: Row) -> Source | list[Source]:
    """Return a row's `from` as its yaml says it: -1 for the row before where it was counted back, a label, or an index."""
    both = zip(row.written, numbers_of(row), row.sources, strict=True)
    written = [said if isinstance(said, str) and source != IMAGE else number for said, number, source in both]
    return written[0] if row.one_source else written


def numbered_source(row: Row) -> Source | list[Source]:
    """Return a row's `from` without labels."""
    numbers = numbers_of(row)
    return numbers[0] if row.one_source else numbers


def numbers_of(row: Row) -> list[Source]:
    """Return a row's sources as its yaml numbers them: -1 for the row before where it was counted back, -1 - index for the image, else an index."""
    numbers: list[Source] = []
    for source, said in zip(row.sources, row.written, strict=True):
        counted_back = isinstance(said, int) and said < 0 and source == row.index - 1
        numbers.append(-1 - row.index if source == IMAGE else -1 if counted_back else source)
    return numbers


def fold_modules(module: nn.Module) -> None:
    """Merge normalisation and parallel convolutions, in every layer that has a `fold`."""
    for child in module.children():
        fold_modules(child)
    if hasattr(module, "fold"):
        module.fold()
