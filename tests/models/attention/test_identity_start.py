"""Layers with a `start` argument: with `identity` they pass their input on unchanged at first."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.attention.attention import FocalModulation, FocalModulationBlock
from models.registry import Scale, find_layer, registered_layers
from tests.saying import assert_says
from utils.errors import ModelConfigError

NEEDS: dict[str, dict[str, Any]] = {
    "Residual": {"layer": ["Conv", 16, 3]},
    "FocalModulation": {"residual": True},
    "ACmix": {"residual": True},
    "AIFI": {"pre_norm": True},
}
"""Arguments without which a layer cannot start as the identity, by its yaml name."""


def starting(name: str, **settings: Any) -> nn.Module:
    entry = find_layer(name)
    keywords = {"start": "identity"} | NEEDS.get(name, {}) | settings
    entry.rule.apply([16], keywords, Scale())
    torch.manual_seed(0)
    return entry.cls(**keywords)


def image() -> Tensor:
    return torch.randn(2, 16, 9, 7, generator=torch.Generator().manual_seed(0))


def with_start() -> list[str]:
    return [name for name, entry in registered_layers().items() if "start" in entry.parameters()]


def test_there_are_such_layers() -> None:
    assert {"FocalModulation", "FocalModulationBlock", "GatherExcite", "ACmix"} <= set(with_start())


@pytest.mark.parametrize("name", with_start())
def test_output_is_input_and_it_learns(name: str) -> None:
    layer = starting(name)
    x = image()
    assert torch.equal(layer.eval()(x), x)
    layer.train()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (layer(x) * torch.linspace(-1, 1, x.numel()).view_as(x)).sum().backward()
        optimizer.step()
    assert not torch.allclose(layer(x), x)
    assert all(
        parameter.grad is not None and parameter.grad.abs().sum() > 0
        for parameter in layer.parameters()
        if parameter.requires_grad
    )


@pytest.mark.parametrize(
    "settings", [{"use_layerscale": True}, {"use_postln": True}, {"use_postln": True, "use_layerscale": True}]
)
def test_every_form_of_the_block(settings: dict[str, bool]) -> None:
    x = image()
    assert torch.equal(starting("FocalModulationBlock", **settings)(x), x)
    assert not torch.equal(FocalModulationBlock(16, **settings)(x), x)


def test_without_residual() -> None:
    with pytest.raises(ModelConfigError) as caught:
        FocalModulation(8, start="identity")
    assert_says(caught.value, "start is 'identity'", "residual: true")
