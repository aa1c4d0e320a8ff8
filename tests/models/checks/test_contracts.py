"""What every registered layer promises (models/checks), swept over the registry: a new layer is tested by existing."""

import pytest

from models.check import layer_checks
from models.checks.checking import FAIL, SKIPPED, Check, make
from models.checks.layer_case import LayerCase
from models.registry import registered_layers

NAMES = sorted(registered_layers())
CHECKS = [
    pytest.param(check, id=check.name.replace(" ", "-"), marks=[pytest.mark.slow] * check.slow)
    for check in layer_checks()
]
SLOW_TO_LEARN: frozenset[str] = frozenset()
"""Layers whose first step leaves a parameter without a gradient, as their papers start them."""


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", NAMES)
def test_layer_keeps_its_promise(name: str, check: Check[LayerCase]) -> None:
    result = make(check, LayerCase.of_example(registered_layers()[name]))
    if result.outcome == SKIPPED:
        pytest.skip(result.seen)
    assert result.outcome != FAIL, f"{result.seen}: {result.remedy}"
    if check.name == "gradients" and name not in SLOW_TO_LEARN:
        assert result.seen == "nothing to train" or result.seen.endswith("parameters, at once")


def test_every_layer_says_its_signature() -> None:
    for entry in registered_layers().values():
        assert entry.signature().startswith(f"{entry.name}(")
        assert not set(entry.parameters()) & {*entry.rule.fills, "device", "dtype"}
