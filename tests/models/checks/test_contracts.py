"""What every registered layer promises (models/checks), swept over the registry: a new layer is tested by existing."""

import pytest

from models.check import layer_checks
from models.checks.checking import FAIL, SKIPPED, Check, make
from models.checks.layer_case import LayerCase
from models.registry import registered_layers

NAMES = sorted(registered_layers())
FAST = [check for check in layer_checks() if not check.slow]
SLOW = [pytest.param(check, id=check.name) for check in layer_checks() if check.slow]


def case_of(name: str) -> LayerCase:
    """Return a layer as its example row has it; skip the test if a package that it needs is not installed."""
    case = LayerCase.of_example(registered_layers()[name])
    result = make(FAST[0], case)
    if result.outcome == SKIPPED:
        pytest.skip(result.seen)
    return case


@pytest.mark.parametrize("name", NAMES)
def test_layer_keeps_its_promises(name: str) -> None:
    case = case_of(name)
    results = {check.name: make(check, case) for check in FAST}
    failed = [
        f"{result.check}: {result.seen}: {result.remedy}" for result in results.values() if result.outcome == FAIL
    ]
    assert not failed, "\n".join(failed)
    assert not [check for check, result in results.items() if result.outcome == SKIPPED]
    learning = results["gradients"].seen
    assert learning == "nothing to train" or learning.endswith("parameters, at once")


@pytest.mark.slow
@pytest.mark.parametrize("check", SLOW)
@pytest.mark.parametrize("name", NAMES)
def test_layer_keeps_its_slow_promises(name: str, check: Check[LayerCase]) -> None:
    result = make(check, case_of(name))
    if result.outcome == SKIPPED:
        pytest.skip(result.seen)
    assert result.outcome != FAIL, f"{result.seen}: {result.remedy}"


def test_a_row_cannot_give_what_rule_and_repeats_fill() -> None:
    """A rule's own arguments are real parameters of the constructor, and none that a row can give."""
    for entry in registered_layers().values():
        filled = {*entry.rule.fills, *([entry.repeats] if entry.repeats else [])}
        constructor = entry.cls.__init__.__code__
        accepted = constructor.co_varnames[: constructor.co_argcount + constructor.co_kwonlyargcount]
        assert filled <= set(accepted), entry.name
        assert not filled & set(entry.parameters()), entry.name
