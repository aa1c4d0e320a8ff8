"""Which classes a user means, by name or number: those to keep, and those with a confidence threshold of their own."""

import argparse
from collections.abc import Iterable, Mapping, Sequence

from utils.errors import SettingsError, did_you_mean

CONFIDENCE = 0.25
"""Threshold of the classes that no threshold is given for."""
Thresholds = float | str | Mapping[int | str | None, float] | Sequence[float | str]
"""A threshold for all classes; or thresholds by class (None: all others); or texts such as `person=0.6`, `0.25`."""


def class_number(wanted: int | str, names: Sequence[str], flag: str) -> int:
    """Return the number of a class that is given by its name, or else by its number.

    Raises:
        SettingsError: the network has no such class.
    """
    text = str(wanted)
    if text in names:
        return list(names).index(text)
    if text.isdecimal() and int(text) < len(names):
        return int(text)
    parts = [part.strip() for part in text.split(",")]
    if len(parts) > 1 and all(part in names or part.isdecimal() for part in parts):
        words = " ".join(f"'{part}'" if " " in part else part for part in parts)
        raise SettingsError(f"{flag} {text}: expected spaces between the classes: {flag} {words}")
    known = f"the network knows 0..{len(names) - 1}: {', '.join(names[:10])}{', …' if len(names) > 10 else ''}"
    raise SettingsError(f"{flag} {text}: no such class: {known}.{did_you_mean(text, names)}")


def class_numbers(wanted: Sequence[int | str] | None, names: Sequence[str]) -> list[int] | None:
    """Turn class names or numbers into numbers; None stays None (all classes).

    Raises:
        SettingsError: a class that the network does not have.
    """
    return None if wanted is None else [class_number(entry, names, "--classes") for entry in wanted]


def class_thresholds(asked: Thresholds, names: Sequence[str]) -> float | list[float]:
    """Return the confidence threshold of all classes, or that of each class in order where they differ.

    Raises:
        SettingsError: see `split_thresholds`; or the network has no such class, or one has two thresholds.
    """
    rest, by_class = split_thresholds(asked)
    if not by_class:
        return rest
    limits: dict[int, float] = {}
    for wanted, limit in by_class:
        number = class_number(wanted, names, "--conf-thres")
        if number in limits:
            raise SettingsError(
                f"--conf-thres {wanted}={limit:g}: class {names[number]} has the threshold {limits[number]:g} already: "
                "expected one for each class"
            )
        limits[number] = limit
    return [limits.get(number, rest) for number in range(len(names))]


def split_thresholds(asked: Thresholds) -> tuple[float, list[tuple[int | str, float]]]:
    """Return the threshold of all other classes, and (class, threshold) where a class has its own.

    Raises:
        SettingsError: no number from 0 to 1, a text of another form, or two thresholds for all other classes.
    """
    entries: Iterable[tuple[int | str | None, float | str]]
    if isinstance(asked, Mapping):
        entries = asked.items()
    else:
        listed = [asked] if isinstance(asked, int | float | str) else list(asked)
        entries = [entry.rpartition("=")[::2] if isinstance(entry, str) else (None, entry) for entry in listed]
    rest: list[float] = []
    by_class: list[tuple[int | str, float]] = []
    for wanted, value in entries:
        limit = confidence(value, "" if wanted in (None, "") else f"{wanted}=")
        if wanted is None or wanted == "":
            rest.append(limit)
        else:
            by_class.append((wanted, limit))
    if len(rest) > 1:
        raise SettingsError(
            f"--conf-thres {' '.join(f'{value:g}' for value in rest)}: expected one number for all classes, and "
            "CLASS=NUMBER for a class with its own, such as person=0.6"
        )
    return rest[0] if rest else CONFIDENCE, by_class


def confidence(value: float | str, before: str = "") -> float:
    """Return a threshold as a number.

    Args:
        before: text that stands before it in a message.
    Raises:
        SettingsError: no number from 0 to 1.
    """
    try:
        number = float(value)
    except ValueError:
        raise SettingsError(
            f"--conf-thres {before}{value}: no number: expected a number from 0 to 1, or CLASS=NUMBER, such as "
            "person=0.6 or 'traffic light=0.6'"
        ) from None
    if not 0 <= number <= 1:
        raise SettingsError(f"--conf-thres {before}{number}: expected a number from 0 to 1")
    return number


def one_threshold(word: str) -> float:
    """Return the threshold that a word of a command line gives for all classes.

    Raises:
        ArgumentTypeError: it is no number, or a threshold of one class.
    """
    try:
        return float(word)
    except ValueError:
        advice = (
            "one number for all classes; detect.py takes thresholds of single classes" if "=" in word else "a number"
        )
        raise argparse.ArgumentTypeError(f"'{word}': expected {advice}") from None
