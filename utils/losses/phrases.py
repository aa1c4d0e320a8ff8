"""How a yaml names a part of a loss: ``shape_iou``, ``shape-iou(0.5)``, ``nwd(c=8)`` or ``{nwd: {c: 8}}``.

The text is Python's syntax of a call; it is parsed, never run.
"""

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from utils.errors import SettingsError

MOST_CHARACTERS = 500
"""Longest text that is parsed."""

NO_LITERAL = (ValueError, TypeError, SyntaxError, MemoryError, RecursionError, OverflowError)
"""What `ast.literal_eval` and `float` raise."""


@dataclass(frozen=True)
class Phrase:
    """A name with its numbers, by position and by name."""

    name: str
    positional: list[float] = field(default_factory=list)
    named: dict[str, float] = field(default_factory=dict)


def read_phrases(value: object, wanted: str) -> list[Phrase]:
    """Read the calls in a yaml value.

    Args:
        value: text with calls between commas, or a mapping of names to their numbers (none, one, a list, or by name).
        wanted: what a message says was expected.
    Raises:
        SettingsError: the value is something else.
    """
    if isinstance(value, Mapping):
        return [_from_item(str(name), numbers) for name, numbers in value.items()]
    if isinstance(value, str):
        text = re.sub(r"(?<=\w)-(?=[A-Za-z])", "_", value.strip())  # a hyphen in a name is read as an underscore
        return [_from_syntax(node, text, wanted) for node in _parsed(text, wanted)]
    raise SettingsError(f"expected {wanted}")


def _from_item(name: str, numbers: object) -> Phrase:
    if isinstance(numbers, Mapping):
        return Phrase(name, named={str(key): read_number(number) for key, number in numbers.items()})
    if numbers is None:
        return Phrase(name)
    return Phrase(name, [read_number(number) for number in (numbers if isinstance(numbers, list) else [numbers])])


def _parsed(text: str, wanted: str) -> list[ast.expr]:
    """Parse calls between commas."""
    try:
        if len(text) > MOST_CHARACTERS:
            raise ValueError(f"more than {MOST_CHARACTERS} characters")
        body = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError) as error:
        comma = "; within { } or [ ] yaml ends a text at a comma unless it is quoted" if "(" in text else ""
        raise SettingsError(f"{getattr(error, 'msg', error)}: expected {wanted}{comma}") from error
    return body.elts if isinstance(body, ast.Tuple) else [body]


def _from_syntax(node: ast.expr, text: str, wanted: str) -> Phrase:
    if isinstance(node, ast.Name):
        return Phrase(node.id)
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise SettingsError(f"expected {wanted}")
    named: dict[str, float] = {}
    for keyword in node.keywords:
        key = keyword.arg or "**"
        if key in named:
            raise SettingsError(f"{key} is given twice: leave one out")
        named[key] = read_number(keyword.value, text)
    return Phrase(node.func.id, [read_number(argument, text) for argument in node.args], named)


def read_number(value: object, text: str = "") -> float:
    """Return a number that a yaml holds as such, as text, or as an argument in the `text` of a call.

    Raises:
        SettingsError: it is not a number.
    """
    try:
        number = ast.literal_eval(value) if isinstance(value, str | ast.expr) else value
        if isinstance(number, int | float) and not isinstance(number, bool):
            float(number)  # an int can be too large for one
            return number
    except NO_LITERAL:
        pass
    shown = ast.get_source_segment(text, value) if isinstance(value, ast.expr) else value
    raise SettingsError(f"{shown!r} is not a number: expected one such as 0.5")
