"""What a loss is put together from: named functions and classes that declare the ranges of their numbers.

A part is a function or class with a decorator, ``@part(scale=Range(0, 5))``, that utils/losses/settings.py lists in the
table of its kind. Case, hyphens and underscores do not matter in names.
"""

import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from utils.errors import SettingsError, UserError, did_you_mean
from utils.losses.phrases import Phrase, read_phrases

Make = TypeVar("Make", bound=Callable[..., Any])


@dataclass(frozen=True)
class Range:
    """From `low` to `high`; `above` leaves `low` itself out."""

    low: float
    high: float
    above: bool = False

    def holds(self, value: float) -> bool:
        """Tell whether a value lies in the range; NaN does not."""
        return (self.low < value if self.above else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        return f"{'above' if self.above else 'from'} {self.low:g} {'up to' if self.above else 'to'} {self.high:g}"


@dataclass(frozen=True)
class Part:
    """What `part` declares about a function or class."""

    name: str
    make: Callable[..., Any]
    ranges: dict[str, Range]
    short: tuple[str, ...] = ()
    ascending: tuple[str, ...] = ()
    beside: dict[str, str] = field(default_factory=dict)
    rank: int = 0

    def defaults(self) -> dict[str, float]:
        """Return the default of every number that a yaml can give."""
        signature = inspect.signature(self.make).parameters
        return {name: signature[name].default for name in self.ranges}

    def signature(self) -> str:
        """Return the part as a yaml writes it, such as ``focaler(d=0.0, u=0.95)``."""
        return str(Call(self, self.defaults()))

    def bind(self, phrase: Phrase) -> "Call":
        """Return the part with all its numbers: those of the phrase, and defaults.

        Raises:
            SettingsError: an unknown parameter, or a number out of range.
        """
        defaults = self.defaults()
        if (phrase.positional or phrase.named) and not defaults:
            beside = f": {', '.join(self.beside.values())} are hyperparameters beside loss" if self.beside else ""
            raise SettingsError(f"{self.name} takes no numbers{beside}")
        if len(phrase.positional) > len(defaults):
            raise SettingsError(
                f"{len(phrase.positional)} numbers: expected at most {len(defaults)}: {self.signature()}"
            )
        given = dict(zip(defaults, phrase.positional, strict=False))
        for key, value in phrase.named.items():
            if key not in defaults:
                nearest = did_you_mean(key, defaults)
                raise SettingsError(f"unknown parameter '{key}': expected {self.signature()}.{nearest}")
            if key in given:
                raise SettingsError(f"{key} is given twice: expected {self.signature()}")
            given[key] = value
        arguments = defaults | given
        if problem := self.problem(arguments):
            raise SettingsError(problem)
        return Call(self, {key: type(defaults[key])(value) for key, value in arguments.items()})

    def problem(self, arguments: Mapping[str, float]) -> str | None:
        """Describe the first number that is out of range; None if all fit."""
        for name, value in arguments.items():
            if not self.ranges[name].holds(value):
                return f"{name} is {value:g}: expected a number {self.ranges[name]}"
            if isinstance(self.defaults()[name], int) and value != int(value):
                return f"{name} is {value:g}: expected a whole number"
        for first, second in zip(self.ascending, self.ascending[1:], strict=False):
            if not arguments[first] < arguments[second]:
                values = f"{first} is {arguments[first]:g} and {second} is {arguments[second]:g}"
                return f"{values}: expected {first} < {second}"
        return None


@dataclass(frozen=True)
class Call:
    """A part that was chosen, with all its numbers."""

    part: Part
    arguments: dict[str, float] = field(default_factory=dict)

    def build(self, **beside: float) -> Any:
        """Return an object of the part's class, or its function with the numbers bound.

        Args:
            beside: values of the part's parameters that are hyperparameters.
        """
        arguments = self.arguments | beside
        if inspect.isclass(self.part.make):
            return self.part.make(**arguments)
        return functools.partial(self.part.make, **arguments) if arguments else self.part.make

    def __str__(self) -> str:
        numbers = ", ".join(f"{key}={value!r}" for key, value in self.arguments.items())
        return f"{self.part.name}({numbers})" if numbers else self.part.name


_DECLARED: dict[Callable[..., Any], Part] = {}


def part(
    *,
    name: str | None = None,
    short: tuple[str, ...] = (),
    ascending: tuple[str, ...] = (),
    beside: Mapping[str, str] | None = None,
    rank: int = 0,
    **ranges: Range,
) -> Callable[[Make], Make]:
    """Declare a function or class as a part of a loss.

    Args:
        name: by default that of the function.
        short: other names that a yaml may use.
        ascending: parameters whose numbers must ascend.
        beside: parameters that are hyperparameters beside `loss`, with the names of these.
        rank: wrappers are applied in ascending rank, whatever their order in the yaml.
        ranges: of each parameter that a yaml can give; the defaults are those of the signature.
    """

    def declare(make: Make) -> Make:
        _DECLARED[make] = Part(name or make.__name__, make, ranges, short, ascending, dict(beside or {}), rank)
        return make

    return declare


class Parts:
    """The parts of one kind, by name.

    Args:
        title: name of the kind in messages.
        makes: functions and classes declared by `part`.
    Raises:
        ValueError: a name is taken.
    """

    def __init__(self, title: str, *makes: Callable[..., Any]) -> None:
        self.title = title
        self._parts: dict[str, Part] = {}
        self._spellings: dict[str, Part] = {}
        for make in makes:
            self.add(make)

    def __iter__(self) -> Iterator[Part]:
        return iter(self._parts.values())

    def add(self, make: Callable[..., Any]) -> None:
        """Add a part, for example that of a plug-in.

        Raises:
            ValueError: its name is taken.
        """
        new = _DECLARED[make]
        for spelling in (new.name, *new.short):
            if _key(spelling) in self._spellings:
                raise ValueError(f"{self.title} '{spelling}' is registered already")
        self._parts[new.name] = new
        self._spellings |= {_key(spelling): new for spelling in (new.name, *new.short)}

    @contextmanager
    def with_part(self, make: Callable[..., Any]) -> Iterator[None]:
        """Add a part for a while."""
        before = dict(self._parts), dict(self._spellings)
        self.add(make)
        try:
            yield
        finally:
            self._parts, self._spellings = before

    def find(self, name: str) -> Part:
        """Return a part by one of its names.

        Raises:
            SettingsError: there is no such part; names the nearest.
        """
        if found := self._spellings.get(_key(name)):
            return found
        nearest = did_you_mean(_key(name), self._spellings)
        nearest = re.sub(r"'(\w+)'", lambda match: f"'{self._spellings[match[1]].name}'", nearest)
        raise SettingsError(f"unknown {self.title}: expected one of {', '.join(self._parts)}.{nearest}")

    def read_all(
        self, value: object, where: str, error: type[UserError] = SettingsError, most: int | None = None
    ) -> list[Call]:
        """Return the parts and numbers that a yaml value names.

        Args:
            value: text or a mapping, as utils/losses/phrases.py reads them.
            where: file and key, for messages; `error` is the class to raise.
            most: how many names to accept.
        """
        example = next(iter(self)).signature()
        wanted = f"the name of a {self.title}, with numbers in brackets if any, such as {example}"
        try:
            phrases = read_phrases(value, wanted)
            if not phrases or (most and len(phrases) > most):
                raise SettingsError(f"{len(phrases)} names: expected {wanted}")
            return [self.find(phrase.name).bind(phrase) for phrase in phrases]
        except SettingsError as problem:
            raise error(f"{where}: {value!r}: {problem}") from problem

    def read(self, value: object, where: str, error: type[UserError] = SettingsError) -> Call:
        """Return the one part that a yaml value names, with its numbers; arguments as `read_all`."""
        return self.read_all(value, where, error, most=1)[0]


def _key(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
