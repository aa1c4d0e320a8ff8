"""The registry of what a loss is put together from: each part declares its parameters' ranges beside its formula.

A part is a function or class with a decorator, `@part("box", scale=Range(0, 5))`. A yaml names it and its numbers: `shape_iou`,
`shape_iou(0.5)`, `shape-iou(scale=0.5)`, `{shape_iou: {scale: 0.5}}`; case, hyphens and underscores do not matter in names.
"""

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from utils.errors import SettingsError, UserError, did_you_mean

Kind = Literal["box", "wrap", "cls", "assigner"]

TITLES: dict[Kind, str] = {"box": "box loss", "wrap": "wrapper", "cls": "class loss", "assigner": "assigner"}

CALL = re.compile(r"\s*([A-Za-z][\w-]*)\s*(?:\(([^()]*)\))?\s*")
NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")


@dataclass(frozen=True)
class Range:
    """From `low` to `high`; `above` leaves `low` itself out."""

    low: float
    high: float
    above: bool = False

    def holds(self, value: float) -> bool:
        """Tell whether a value lies in it; not a number does not."""
        return (self.low < value if self.above else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        return f"{'above' if self.above else 'from'} {self.low:g} {'up to' if self.above else 'to'} {self.high:g}"


@dataclass(frozen=True)
class Part:
    """A registered part: its name, what makes it, the ranges of its parameters, and what else has to hold between them."""

    kind: Kind
    name: str
    make: Callable[..., Any]
    ranges: dict[str, Range]
    order: tuple[str, ...]
    hint: str

    def defaults(self) -> dict[str, float]:
        """Return the default of every parameter that a yaml can give."""
        signature = inspect.signature(self.make).parameters
        return {name: signature[name].default for name in self.ranges}

    def signature(self) -> str:
        """Return the part as a yaml writes it, such as ``focaler(d=0.0, u=0.95)``."""
        return written(self.name, self.defaults())

    def problem(self, arguments: Mapping[str, float]) -> str | None:
        """Say what of its numbers (all of them, by name) is out of range."""
        for name, value in arguments.items():
            if not self.ranges[name].holds(value):
                return f"{name} is {value:g}: expected a number {self.ranges[name]}"
            if isinstance(self.defaults()[name], int) and value != int(value):
                return f"{name} is {value:g}: expected a whole number"
        for first, second in zip(self.order, self.order[1:], strict=False):
            if not arguments[first] < arguments[second]:
                return f"{first} is {arguments[first]:g} and {second} is {arguments[second]:g}: expected {first} < {second}"
        return None


_PARTS: dict[Kind, dict[str, Part]] = {kind: {} for kind in TITLES}
_SHORT: dict[Kind, dict[str, str]] = {kind: {} for kind in TITLES}


def part(
    kind: Kind,
    *,
    name: str | None = None,
    short: tuple[str, ...] = (),
    order: tuple[str, ...] = (),
    hint: str = "",
    **ranges: Range,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function or class as a part of a loss.

    Args:
        name: by default that of the function.
        short: other names that a yaml may use.
        order: parameters that have to ascend.
        hint: what to say to one who gives an argument to a part that takes none.
        ranges: of each parameter that a yaml can give; the defaults are those of the signature.
    Raises:
        ValueError: the name is taken.
    """

    def register(make: Callable[..., Any]) -> Callable[..., Any]:
        key = name or make.__name__
        for spelling in (key, *short):
            if _key(spelling) in _SHORT[kind]:
                raise ValueError(f"{TITLES[kind]} '{spelling}' is registered already")
            _SHORT[kind][_key(spelling)] = key
        _PARTS[kind][key] = Part(kind, key, make, ranges, order, hint)
        return make

    return register


def registered_parts(kind: Kind) -> dict[str, Part]:
    """Return the parts of a kind by name, in order of registration."""
    return dict(_PARTS[kind])


def find_part(kind: Kind, name: str) -> Part:
    """Return a part by one of its names.

    Raises:
        SettingsError: no such part; names the nearest.
    """
    key = _SHORT[kind].get(_key(name))
    if key is None:
        nearest = did_you_mean(_key(name), _SHORT[kind])
        spelled = re.sub(r"'(\w+)'", lambda found: f"'{_SHORT[kind][found[1]]}'", nearest)
        raise SettingsError(f"unknown {TITLES[kind]}: expected one of {', '.join(_PARTS[kind])}.{spelled}")
    return _PARTS[kind][key]


def _key(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


@dataclass(frozen=True)
class Call:
    """A part that was chosen, with all its numbers."""

    part: Part
    arguments: dict[str, float] = field(default_factory=dict)

    def build(self) -> Any:
        """Return what the part makes: an object of a class, a function with its numbers bound."""
        if inspect.isclass(self.part.make):
            return self.part.make(**self.arguments)
        return functools.partial(self.part.make, **self.arguments) if self.arguments else self.part.make

    def __str__(self) -> str:
        return written(self.part.name, self.arguments)


def written(name: str, arguments: Mapping[str, float]) -> str:
    """Return a call as text that `read_call` reads."""
    return name + (f"({', '.join(f'{key}={value!r}' for key, value in arguments.items())})" if arguments else "")


def read_call(kind: Kind, value: Any, where: str, error: type[UserError] = SettingsError) -> Call:
    """Return the part and numbers that a yaml value names.

    Args:
        value: text such as ``focaler(0, 0.95)``, or a mapping of one name to its numbers (one, a list, or by name).
        where: file and key, for messages; `error` is what they raise.
    """
    try:
        name, positional, keywords = _split(kind, value)
        found = find_part(kind, name)
        return Call(found, _bound(found, positional, keywords))
    except SettingsError as problem:
        raise error(f"{where}: {value!r}: {problem}") from problem


def _split(kind: Kind, value: Any) -> tuple[str, list[float], dict[str, float]]:
    """Return name, positional and named numbers of a yaml value."""
    if isinstance(value, Mapping) and len(value) == 1:
        name, given = next(iter(value.items()))
        keywords = {str(key): _number(number) for key, number in given.items()} if isinstance(given, Mapping) else {}
        listed = (
            []
            if given is None or keywords or isinstance(given, Mapping)
            else given
            if isinstance(given, list)
            else [given]
        )
        return str(name), [_number(number) for number in listed], keywords
    if not isinstance(value, str) or not (found := CALL.fullmatch(value)):
        example = next(iter(_PARTS[kind].values())).signature()
        quoted = (
            " (within { } or [ ], a comma ends the text unless it is quoted)"
            if isinstance(value, str) and "(" in value
            else ""
        )
        raise SettingsError(
            f"expected the name of a {TITLES[kind]}, with numbers in brackets if any, such as {example}{quoted}"
        )
    positional, keywords = [], {}
    for item in filter(None, (piece.strip() for piece in (found[2] or "").split(","))):
        key, equals, number = item.rpartition("=")
        if equals and key.strip() in keywords:
            raise SettingsError(f"{key.strip()} is given twice")
        if equals:
            keywords[key.strip()] = _number(number)
        elif keywords:
            raise SettingsError(f"{item} follows a named number: expected numbers without names first")
        else:
            positional.append(_number(item))
    return found[1], positional, keywords


def _number(value: Any) -> float:
    """Return a number that stands in a yaml, or as text in a call."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and NUMBER.fullmatch(value.strip()):
        return float(value)
    raise SettingsError(f"{value!r} is no number: expected one such as 0.5")


def _bound(found: Part, positional: list[float], keywords: dict[str, float]) -> dict[str, float]:
    """Return all numbers of a part by name."""
    defaults = found.defaults()
    if (positional or keywords) and not defaults:
        raise SettingsError(f"{found.name} takes no numbers{found.hint}")
    if len(positional) > len(defaults):
        raise SettingsError(f"{len(positional)} numbers: expected at most {len(defaults)}: {found.signature()}")
    given = dict(zip(defaults, positional, strict=False))
    for key, value in keywords.items():
        if key not in defaults:
            raise SettingsError(
                f"unknown parameter '{key}': expected {found.signature()}.{did_you_mean(key, defaults)}"
            )
        if key in given:
            raise SettingsError(f"{key} is given twice: expected {found.signature()}")
        given[key] = value
    arguments = defaults | given
    if problem := found.problem(arguments):
        raise SettingsError(problem)
    return {key: type(defaults[key])(value) for key, value in arguments.items()}
