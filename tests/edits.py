"""Edits of network configurations as users make them, with every later index put right."""

import copy
from typing import Any

Config = dict[str, Any]


def _absolute(config: Config) -> list[list[Any]]:
    """Return all rows, their sources as absolute indices (-1 only for the image)."""
    rows = copy.deepcopy(config["backbone"] + config["head"])
    labels = {row[4]: number for number, row in enumerate(rows) if len(row) > 4}
    for number, row in enumerate(rows):
        sources = [labels.get(source, source) for source in as_list(row[0])]
        sources = [source if source >= 0 or number + source < 0 else number + source for source in sources]
        row[0] = sources if isinstance(row[0], list) else sources[0]
    return rows


def as_list(source: Any) -> list[Any]:
    return source if isinstance(source, list) else [source]


def _renumbered(config: Config, rows: list[list[Any]], backbone: int, position: Any) -> Config:
    for row in rows:
        sources = [source if source < 0 else position(source) for source in as_list(row[0])]
        row[0] = sources if isinstance(row[0], list) else sources[0]
    return config | {"backbone": rows[:backbone], "head": rows[backbone:]}


def inserted(config: Config, after: int, row: list[Any], rewire: bool = True) -> Config:
    """Return the configuration with `[repeats, layer, arguments]` after a row.

    Args:
        rewire: whether what took the row's output by its index takes the new one's instead.
    """
    rows, backbone = _absolute(config), len(config["backbone"])
    straight = {number for number, existing in enumerate(rows) if number == after + 1 and after in as_list(existing[0])}
    for number, existing in enumerate(rows):
        for_all = rewire or number in straight
        sources = [
            source + 1 if source > after or (source == after and for_all) else source for source in as_list(existing[0])
        ]
        existing[0] = sources if isinstance(existing[0], list) else sources[0]
    rows.insert(after + 1, [after, *row])
    return _renumbered(config, rows, backbone + (after < backbone), lambda source: source)


def removed(config: Config, index: int) -> Config:
    """Return the configuration without a row of one source; what took its output takes its input."""
    rows, backbone = _absolute(config), len(config["backbone"])
    before = as_list(rows.pop(index)[0])[0]
    return _renumbered(
        config,
        rows,
        backbone - (index < backbone),
        lambda source: before if source == index else source - (source > index),
    )


def replaced(config: Config, index: int, row: list[Any]) -> Config:
    """Return the configuration with another `[repeats, layer, arguments]` in a row's place."""
    rows = _absolute(config)
    rows[index][1:] = [*row, *rows[index][4:]]
    return _renumbered(config, rows, len(config["backbone"]), lambda source: source)
