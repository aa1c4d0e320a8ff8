"""The helper that keeps a few cases of a test in every run: none is lost, and a name that is no case is refused."""

from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from tests.few import few


def values_of(cases: list) -> list[tuple]:
    """Return the values of cases, those that are slow with the mark's name at their end."""
    return [
        (*case.values, *(mark.name for mark in case.marks)) if isinstance(case, ParameterSet) else (case,)
        for case in cases
    ]


def test_no_case_is_lost() -> None:
    assert values_of(few(["a", "b", "c"], "b")) == [("a", "slow"), ("b",), ("c", "slow")]
    assert values_of(few([Path("x/a.yaml"), Path("x/b.yaml")], "a")) == [
        (Path("x/a.yaml"),),
        (Path("x/b.yaml"), "slow"),
    ]


def test_a_tuple_is_several_arguments() -> None:
    assert values_of(few([("a", 1), ("a", 2), ("b", 1)], ("a", 2))) == [("a", 1, "slow"), (("a", 2),), ("b", 1, "slow")]
    assert values_of(few([("a", 1), ("a", 2), ("b", 1)], "a")) == [(("a", 1),), (("a", 2),), ("b", 1, "slow")]


@pytest.mark.parametrize("default", [[], ["d"], ["a", "d"]])
def test_a_name_that_is_no_case_is_refused(default: list[str]) -> None:
    with pytest.raises(ValueError, match=r"d|\[\]"):
        few(["a", "b"], *default)
