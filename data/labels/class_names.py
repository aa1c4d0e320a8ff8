"""Classes of two sides (a data yaml, a COCO file, weights) are matched by name, never by position."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from utils.errors import did_you_mean
from utils.wording import listed

MOST_SHOWN = 30
"""Names of one side that a message shows."""
NUMBERED = re.compile(r"(?:(?:class|cls|category|item|object|label|id|c)[ _-]?)?(\d+)", re.IGNORECASE)
"""A name that only repeats a number: `7`, `class7`, `class_7`."""


def are_numbers(names: Sequence[str]) -> bool:
    """Tell whether names only count the classes (`0`, `1` … or `class0`, `class1` …), as where no names were given."""
    found = [NUMBERED.fullmatch(name) for name in names]
    numbers = [int(match[1]) for match in found if match]
    return bool(numbers) and numbers in (list(range(len(names))), list(range(1, len(names) + 1)))


def twice(names: Sequence[str]) -> list[str]:
    """Return the names that stand more than once."""
    return [name for name, count in Counter(names).items() if count > 1]


def positions(theirs: Sequence[str], ours: Sequence[str]) -> list[int] | None:
    """Return the place in `ours` of each name of `theirs`; None unless both hold the same names, each once."""
    if sorted(theirs) != sorted(ours) or twice(ours):
        return None
    place = {name: index for index, name in enumerate(ours)}
    return [place[name] for name in theirs]


def loose(name: str) -> str:
    """Return a name without what people overlook: case, white space, `_`, `-`, and how accents are stored."""
    return re.sub(r"[\s_-]+", "", unicodedata.normalize("NFKC", name).casefold())


def near_pairs(theirs: Sequence[str], ours: Sequence[str]) -> list[tuple[str, str]]:
    """Return pairs of different names that are equal to a quick reader."""
    by_loose = {loose(name): name for name in ours}
    return [(name, by_loose[loose(name)]) for name in theirs if name not in ours and loose(name) in by_loose]


def difference(theirs: Sequence[str], ours: Sequence[str], they: str, we: str) -> str:
    """Say how two lists of names differ: both lists, the names of one side only, and pairs that are nearly equal.

    Args:
        they: what `theirs` belongs to, such as a file.
        we: the same for `ours`.
    """
    parts = [
        f"{owner} ({len(names)}): {listed(map(repr, names), MOST_SHOWN)}"
        for names, owner in ((theirs, they), (ours, we))
    ]
    for names, others, owner in ((theirs, ours, they), (ours, theirs, we)):
        if alone := [name for name in names if name not in others]:
            parts.append(f"only in {owner}: {listed(map(repr, alone), MOST_SHOWN)}")
        if repeated := twice(names):
            parts.append(f"more than once in {owner}: {listed(map(repr, repeated))}")
    return "; ".join(parts)


def advice(theirs: Sequence[str], ours: Sequence[str]) -> str:
    """Suggest how unequal names become equal: the pairs that differ in case or white space, else the nearest name."""
    if pairs := near_pairs(theirs, ours):
        return " ".join(f"{ours_name!r} and {name!r} differ in spelling only." for name, ours_name in pairs[:5])
    alone = [name for name in theirs if name not in ours]
    return did_you_mean(alone[0], [name for name in ours if name not in theirs]).strip() if alone else ""
