"""SE, ECA and MLCA: by hand, against plain formulations, and at sizes that the paper's pooling does not divide."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.attention.channel_attention import ECA, MLCA, SE, windows
from tests.saying import assert_says
from utils.errors import ModelConfigError


def maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_se_by_hand() -> None:
    layer = SE(2).double()
    for part, weight, bias in (
        (layer.mlp.fc1, [[1.0, 0.0], [0.0, -1.0]], [0.0, 0.0]),
        (layer.mlp.fc2, [[1.0, 2.0], [3.0, 4.0]], [0.5, 0.0]),
    ):
        part.weight.data.copy_(torch.tensor(weight)[..., None, None])
        part.bias.data.copy_(torch.tensor(bias))
    x = torch.tensor([[1.0, 2.0, 3.0, 6.0], [1.0, 1.0, 0.0, 2.0]], dtype=torch.float64).view(1, 2, 2, 2)
    # means 3 and 1; hidden relu(3), relu(-1); logits 3 + 0.5 and 9
    assert layer.gate(x).flatten().tolist() == pytest.approx([sigmoid(3.5), sigmoid(9.0)], rel=1e-14)
    assert layer(x)[0, :, 1, 1].tolist() == pytest.approx([6 * sigmoid(3.5), 2 * sigmoid(9.0)], rel=1e-14)


@pytest.mark.parametrize("size_hw", [(7, 4), (1, 1), (1, 6)], ids=str)
def test_se_as_linear_layers(size_hw: tuple[int, int]) -> None:
    layer, x = SE(24, 2).double(), maps(3, 24, *size_hw)
    first, second = layer.mlp.fc1, layer.mlp.fc2
    hidden = (x.flatten(2).mean(2) @ first.weight.flatten(1).T + first.bias).clamp(min=0)
    expected = torch.einsum(
        "bchw,bc->bchw", x, 1 / (1 + torch.exp(-(hidden @ second.weight.flatten(1).T + second.bias)))
    )
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-12)


def test_parameters() -> None:
    assert parameters(SE(256)) == 2 * 256 * 16 + 16 + 256
    assert parameters(ECA(64)) == 3
    assert parameters(MLCA(64)) == 6


@pytest.mark.parametrize(
    ("channels", "kernel"), [(1, 1), (8, 3), (16, 3), (64, 3), (128, 5), (256, 5), (512, 5), (1024, 5), (2048, 7)]
)
def test_kernel_follows_from_the_width(channels: int, kernel: int) -> None:
    assert ECA(channels).conv.kernel_size == (kernel,)
    assert MLCA(channels).conv_local.kernel_size == MLCA(channels).conv_global.kernel_size == (kernel,)


def test_eca_by_hand() -> None:
    layer = ECA(3, kernel_size=3).double()
    layer.conv.weight.data.copy_(torch.tensor([[[0.1, 1.0, -1.0]]]))
    x = torch.tensor([[0.0, 2.0], [1.0, 3.0], [2.0, 4.0]], dtype=torch.float64).view(1, 3, 1, 2)  # means 1, 2, 3
    expected = [sigmoid(1 - 2), sigmoid(0.1 + 2 - 3), sigmoid(0.1 * 2 + 3)]
    assert layer.gate(x).flatten().tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("size_hw", [(7, 4), (1, 1)], ids=str)
def test_eca_as_a_band_matrix(size_hw: tuple[int, int]) -> None:
    layer, x = ECA(32).double(), maps(2, 32, *size_hw)
    (taps,) = layer.conv.weight.detach()[0]
    band = sum(torch.diag(tap.expand(32 - abs(offset)), offset) for tap, offset in zip(taps, (-1, 0, 1), strict=True))
    expected = x * (x.mean((2, 3)) @ band.T).sigmoid()[..., None, None]
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-12)


def test_windows_are_those_of_adaptive_pooling() -> None:
    for size in range(1, 14):
        x = maps(1, 1, size)
        for cells in range(1, 9):
            inside = windows(cells, size, x)
            pooled = (x @ (inside / inside.sum(1, keepdim=True)).T)[0]
            torch.testing.assert_close(pooled, functional.adaptive_avg_pool1d(x, cells)[0], rtol=1e-12, atol=1e-14)


def test_mlca_by_hand() -> None:
    layer = MLCA(1, cells=2, local_weight=0.25, kernel_size=1).double()
    layer.conv_local.weight.data.fill_(1)
    layer.conv_global.weight.data.fill_(2)
    x = torch.tensor([[0.0, 2.0, 2.0, 2.0], [3.0, 3.0, 4.0, 4.0]], dtype=torch.float64).view(1, 1, 2, 4)
    # cells' means 1, 2, 3, 4, and 2.5 of the map
    expected = [0.75 * sigmoid(5.0) + 0.25 * sigmoid(cell) for cell in (1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0)]
    assert layer.gate(x).flatten().tolist() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("size_hw", [(10, 15), (13, 7), (5, 5), (3, 4), (1, 6), (1, 1)], ids=str)
def test_mlca_with_adaptive_pooling(size_hw: tuple[int, int]) -> None:
    layer, x = MLCA(8, local_weight=0.3).double(), maps(2, 8, *size_hw)
    cells = functional.adaptive_avg_pool2d(x, 5)
    sequence = cells.permute(0, 2, 3, 1).reshape(2, 1, -1)
    local = (
        functional.conv1d(sequence, layer.conv_local.weight, padding=1).sigmoid().view(2, 5, 5, 8).permute(0, 3, 1, 2)
    )
    overall = (
        functional.conv1d(cells.mean((2, 3)).unsqueeze(1), layer.conv_global.weight, padding=1)
        .sigmoid()
        .view(2, 8, 1, 1)
    )
    expected = x * functional.adaptive_avg_pool2d(0.3 * local + 0.7 * overall.expand(2, 8, 5, 5), size_hw)
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", [SE, ECA, MLCA])
def test_identity_start_is_a_gate_of_one_that_may_grow_to_two(kind: Any) -> None:
    layer = kind(8, start="identity")
    assert layer.gate(torch.rand(2, 8, 6, 7)).unique().tolist() == [1]
    assert parameters(layer) == parameters(kind(8))
    for parameter in layer.parameters():
        parameter.data.fill_(50)
    assert layer.gate(torch.ones(2, 8, 6, 7)).unique().tolist() == [2]


@pytest.mark.parametrize(
    ("kind", "settings", "facts"),
    [
        (SE, {"reduction": 0}, ("reduction is 0", "positive")),
        (ECA, {"kernel_size": 2}, ("kernel_size is 2", "odd", "3")),
        (ECA, {"gamma": 0}, ("gamma is 0", "positive")),
        (MLCA, {"cells": 0}, ("cells is 0", "positive")),
        (MLCA, {"local_weight": 1.5}, ("local_weight is 1.5", "from 0", "to 1")),
    ],
)
def test_settings_that_cannot_be(kind: Any, settings: dict[str, Any], facts: tuple[str, ...]) -> None:
    with pytest.raises(ModelConfigError) as caught:
        kind(8, **settings)
    assert_says(caught.value, *facts)
