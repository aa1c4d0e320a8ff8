"""Rows that lead nowhere, and inputs that are rarely meant: the usual signs of indices that were not renumbered.

A row that is inserted into a plain yaml makes every later index point one row too early.
"""

from collections.abc import Iterator, Sequence

from models.config.rows import IMAGE, Row
from models.parameters import count_parameters
from models.summary import count_gflops
from models.yolo import Model
from utils.wording import listed

ADVICE = (
    "after a row is inserted, all later indices must be one higher: labels, or an insertion under 'edits:', "
    "need no renumbering (docs/composing.md)"
)


def loose_ends(model: Model) -> list[str]:
    """Return a line for each row that does not lead to the head and for each odd kind of input.

    The last line says what to do. There are no lines for a network without such signs.
    """
    lines = [*idle_rows(model), *odd_inputs(model.rows, model.trace())]
    return [*lines, ADVICE] if lines else []


def idle_rows(model: Model) -> Iterator[str]:
    """Yield a line for each row that does not lead to the head, with its cost."""
    rows = model.rows
    used = leading_to(rows[-1], rows)
    idle = [row for row in rows if row.index not in used]
    gflops = count_gflops(model) if idle else []
    for row in idle:
        readers = [reader.index for reader in rows if row.index in reader.sources]
        why = f"leads to no output: only rows {listed(readers)} read it" if readers else "no row reads it"
        parameters = count_parameters(model.model[row.index])
        cost = f"{parameters:,} parameters and {shown_gflops(gflops[row.index])} GFLOPs"
        yield f"{row.where}: {why}: {cost} without effect"


def shown_gflops(count: float) -> str:
    """Format a number with two decimals, and a small one with two digits."""
    return f"{count:.2f}" if count >= 0.01 else f"{count:.2g}"


def leading_to(last: Row, rows: Sequence[Row]) -> set[int]:
    """Return the index of a row and of all rows that it depends on."""
    found, waiting = {last.index}, [last]
    while waiting:
        for source in waiting.pop().sources:
            if source != IMAGE and source not in found:
                found.add(source)
                waiting.append(rows[source])
    return found


def odd_inputs(rows: Sequence[Row], shapes: Sequence[object]) -> Iterator[str]:
    """Yield a line about each row that reads a row which shrinks a map where the block after it is usually meant.

    These are the head, which also has a line about every Concat that it reads, and a Concat that reads such a row from
    afar.

    Args:
        shapes: output shape of every row, from `Model.trace`.
    """
    for row in rows:
        read = [rows[source] for source in dict.fromkeys(row.sources) if source != IMAGE]
        if row is rows[-1]:
            if joined := [source for source in read if source.name == "Concat"]:
                yield odd_input(row, joined, "which concatenates maps")
        elif row.name == "Concat":
            read = [source for source in read if source.index != row.index - 1]
        else:
            continue
        if shrunk := [source for source in read if shrinks(source, shapes)]:
            yield odd_input(row, shrunk, "which shrinks the map")


def odd_input(row: Row, sources: Sequence[Row], kind: str) -> str:
    """Return the line about a row that reads odd rows."""
    names = listed(f"{source.index} ({source.name})" for source in sources)
    return f"{row.where}: reads row {names}, {kind}: usually the block after such a row is read"


def shrinks(row: Row, shapes: Sequence[object]) -> bool:
    """Tell whether a row gives a smaller map than the one that it reads."""
    if len(row.sources) != 1 or row.sources[0] == IMAGE:
        return False
    given, made = shapes[row.sources[0]], shapes[row.index]
    return isinstance(given, tuple) and isinstance(made, tuple) and made[2] < given[2]
