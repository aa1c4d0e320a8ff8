"""Text of messages: lists, first lines, counts, and lines that are printed once."""

import sys
from collections.abc import Iterable
from functools import cache
from typing import TypeGuard


def listed(items: Iterable[object], most: int = 5) -> str:
    """Join the first items with commas: ``a, b, c and 4 more``."""
    texts = [str(item) for item in items]
    rest = len(texts) - most
    return f"{', '.join(texts[:most])} and {rest} more" if rest > 0 else ", ".join(texts)


def first_line(error: object) -> str:
    """Return the first line of an error's text that is not empty; the error's class name if it has no text."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)


def is_count(value: object, least: int = 1) -> TypeGuard[int]:
    """Tell whether a value is an integer of at least `least`; True and False are no integers here."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


LONGEST_SHOWN = 100
"""Characters of a file's own text that a message shows."""


def shown(text: object) -> str:
    """Return text from a file as a message can show it: one line, no control characters, not long."""
    if not isinstance(text, str | int | float):  # the text of nested containers can be exponentially long
        return f"a {type(text).__name__}"
    plain = "".join(letter if letter.isprintable() else "?" for letter in str(text)[: LONGEST_SHOWN + 1])
    return plain if len(plain) <= LONGEST_SHOWN else plain[:LONGEST_SHOWN] + "…"


@cache
def say_once(line: str, to_errors: bool = False) -> None:
    """Print a line unless this process has printed it before; to standard error where a program reads the output."""
    print(line, file=sys.stderr if to_errors else sys.stdout, flush=True)
