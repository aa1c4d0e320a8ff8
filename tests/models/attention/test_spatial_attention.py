"""CBAM and CoordAtt: by hand, and against plain formulations."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.attention.spatial_attention import CBAM, CoordAtt
from models.deploy import fold_modules
from tests.networks import randomise
from tests.saying import assert_says
from utils.errors import ModelConfigError


def maps(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def set_to(conv: nn.Conv2d, weight: list[list[float]]) -> None:
    """Give a 1 x 1 convolution a weight matrix, and no bias."""
    conv.weight.data.copy_(torch.tensor(weight)[..., None, None])
    if conv.bias is not None:
        conv.bias.data.zero_()


def test_cbam_by_hand() -> None:
    layer = CBAM(2, kernel_size=1, norm=False).double()
    set_to(layer.mlp.fc1, [[1.0, 0.0], [0.0, 1.0]])
    set_to(layer.mlp.fc2, [[1.0, 0.0], [0.0, 1.0]])
    set_to(layer.conv, [[1.0, 10.0]])  # mean, maximum
    x = torch.tensor([[1.0, 3.0], [0.0, -2.0]], dtype=torch.float64).view(1, 2, 1, 2)
    first, second = sigmoid(2.0 + 3.0), sigmoid(0.0 + 0.0)  # ReLU takes the mean of -1 away
    weighed = [[1 * first, 3 * first], [0.0, -2 * second]]
    place = [sigmoid(sum(pixel) / 2 + 10 * max(pixel)) for pixel in zip(*weighed, strict=True)]
    expected = [value * place[column] for row in weighed for column, value in enumerate(row)]
    assert layer(x).flatten().tolist() == pytest.approx(expected, rel=1e-14)
    assert (x * layer.gate(x)).flatten().tolist() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("size_hw", [(9, 6), (2, 3), (1, 1)], ids=str)
def test_cbam_against_a_plain_formulation(size_hw: tuple[int, int], folded: bool) -> None:
    torch.manual_seed(0)
    layer, x = randomise(CBAM(32)).double().eval(), maps(2, 32, *size_hw)

    def bottleneck(vector: Tensor) -> Tensor:
        hidden = functional.linear(vector, layer.mlp.fc1.weight.flatten(1), layer.mlp.fc1.bias).relu()
        return functional.linear(hidden, layer.mlp.fc2.weight.flatten(1), layer.mlp.fc2.bias)

    expected = x * torch.sigmoid(bottleneck(x.flatten(2).mean(2)) + bottleneck(x.flatten(2).max(2)[0])).view(
        2, 32, 1, 1
    )
    two = torch.stack((expected.mean(1), expected.max(1)[0]), 1)
    bn, convolved = layer.bn, functional.conv2d(two, layer.conv.weight, padding=3)
    expected = expected * torch.sigmoid(
        (convolved - bn.running_mean) / (bn.running_var + 1e-5).sqrt() * bn.weight + bn.bias
    )
    if folded:
        fold_modules(nn.Sequential(layer))
        assert isinstance(layer.bn, nn.Identity)
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-12)


def test_coord_by_hand() -> None:
    layer = CoordAtt(1).double().eval()
    layer.bn.eps = 0.0
    set_to(layer.conv, [[1.0]])
    set_to(layer.conv_rows, [[1.0]])
    set_to(layer.conv_columns, [[2.0]])
    x = torch.tensor([[1.0, 2.0], [3.0, 6.0]], dtype=torch.float64).view(1, 1, 2, 2)
    rows = [1.5 * 4.5 / 6, 4.5]  # hard swish of means 1.5 and 4.5
    columns = [2 * 5 / 6, 4.0]  # of 2 and 4
    expected = [
        value * sigmoid(rows[i // 2]) * sigmoid(2 * columns[i % 2]) for i, value in enumerate((1.0, 2.0, 3.0, 6.0))
    ]
    assert layer(x).flatten().tolist() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("size_hw", [(9, 6), (2, 3), (1, 1)], ids=str)
def test_coord_against_a_plain_formulation(size_hw: tuple[int, int], folded: bool) -> None:
    torch.manual_seed(0)
    layer, x = randomise(CoordAtt(32, 2)).double().eval(), maps(2, 32, *size_hw)
    bn, gates = layer.bn, []
    for means, last in ((x.mean(3), layer.conv_rows), (x.mean(2), layer.conv_columns)):
        hidden = torch.einsum("oc,bcl->blo", layer.conv.weight.flatten(1), means)
        hidden = (hidden - bn.running_mean) / (bn.running_var + 1e-5).sqrt() * bn.weight + bn.bias
        hidden = hidden * (hidden + 3).clamp(0, 6) / 6
        gates.append(torch.sigmoid(functional.linear(hidden, last.weight.flatten(1), last.bias)))
    expected = torch.einsum("bchw,bhc,bwc->bchw", x, *gates)
    if folded:
        fold_modules(nn.Sequential(layer))
        assert isinstance(layer.bn, nn.Identity)
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-12)


def test_coord_normalises_rows_and_columns_together() -> None:
    layer = CoordAtt(1).train()
    set_to(layer.conv, [[1.0]])
    layer(torch.tensor([[1.0, 2.0], [3.0, 6.0]]).view(1, 1, 2, 2))
    assert layer.bn.running_mean.item() == pytest.approx(0.1 * (1.5 + 4.5 + 2 + 4) / 4)


@pytest.mark.parametrize(
    ("kind", "settings", "count"),
    [(CBAM, {}, 2 * 256 * 16 + 16 + 256 + 98 + 2), (CoordAtt, {}, 3 * 256 * 8 + 16 + 512)],
)
def test_parameters(kind: Any, settings: dict[str, Any], count: int) -> None:
    assert sum(parameter.numel() for parameter in kind(256, **settings).parameters()) == count


@pytest.mark.parametrize(("kind", "settings"), [(CBAM, {}), (CBAM, {"norm": False}), (CoordAtt, {})])
def test_identity_start_is_a_gate_of_one(kind: Any, settings: dict[str, Any]) -> None:
    layer, x = kind(16, start="identity", **settings), maps(2, 16, 5, 4).float()
    assert layer.train().gate(x).unique().tolist() == [1]
    assert torch.equal(layer.eval()(x), x)


@pytest.mark.parametrize(
    ("kind", "settings", "facts"),
    [
        (CBAM, {"kernel_size": 6}, ("kernel_size is 6", "odd", "7")),
        (CBAM, {"reduction": 0}, ("reduction is 0", "positive")),
        (CoordAtt, {"reduction": -1}, ("reduction is -1", "positive")),
    ],
)
def test_settings_that_cannot_be(kind: Any, settings: dict[str, Any], facts: tuple[str, ...]) -> None:
    with pytest.raises(ModelConfigError) as caught:
        kind(8, **settings)
    assert_says(caught.value, *facts)
