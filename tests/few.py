"""Cases of a test over many networks or settings: a few telling ones in every run, the rest with the slow tests."""

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import pytest
from _pytest.mark import ParameterSet

Value = TypeVar("Value")


def few(values: Iterable[Value], *default: object) -> list[Value | ParameterSet]:
    """Return the cases of a parametrised test; those that `default` does not name are marked slow.

    Args:
        values: the cases. A tuple gives several arguments, as in `pytest.mark.parametrize`.
        default: what the cases of every run are known by: a path by its stem, a tuple by itself or by its first entry,
            anything else by itself.

    Raises:
        ValueError: a name in `default` is not that of a case.
    """
    cases = list(values)
    missing = [name for name in default if not any(name in known_by(case) for case in cases)]
    if missing or not default:
        raise ValueError(f"few: {missing}: expected names of cases, at least one")
    return [case if any(name in default for name in known_by(case)) else slow(case) for case in cases]


def known_by(case: object) -> list[object]:
    """Return what a case can be named by."""
    if isinstance(case, Path):
        return [case.stem]
    return [case, case[0]] if isinstance(case, tuple) else [case]


def slow(case: object) -> ParameterSet:
    """Return a case that runs with the slow tests only."""
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
