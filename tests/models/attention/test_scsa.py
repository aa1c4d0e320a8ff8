"""SCSA: by hand, in plain words, and maps that its windows do not divide or that are smaller."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from models.attention.scsa import SCSA, pool
from tests.saying import assert_says
from utils.errors import ModelConfigError


def maps(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_a_single_pixel_by_hand() -> None:
    layer = SCSA(2, heads=1, kernel_sizes=(1,)).double()
    for norm in (layer.norm_rows, layer.norm_columns, layer.norm):
        norm.eps = 1e-30
    for conv in (layer.convs[0], layer.query, layer.key, layer.value):
        conv.weight.data.fill_(1)
    layer.convs[0].bias.data.zero_()
    x = torch.tensor([1.0, 3.0], dtype=torch.float64).view(1, 2, 1, 1)
    weighed = 1 * sigmoid(-1) ** 2, 3 * sigmoid(1) ** 2  # two channels normalise to -1 and 1, and again after weighing
    own = sigmoid(2 / math.sqrt(2))  # scores 1 and -1 over sqrt(2): a channel's attention to itself
    assert layer(x).flatten().tolist() == pytest.approx(
        [weighed[0] * sigmoid(1 - 2 * own), weighed[1] * sigmoid(2 * own - 1)], rel=1e-12
    )


def test_windows_average_the_cells_in_the_map() -> None:
    x = torch.arange(9, dtype=torch.float64).view(1, 1, 1, 9)
    assert pool(x, 7).flatten().tolist() == pytest.approx([3.0, 7.5])
    assert pool(x, 20).item() == pytest.approx(4.0)
    exact = maps(2, 3, 14, 21)
    torch.testing.assert_close(pool(exact, 7), functional.avg_pool2d(exact, 7), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "settings", [{"heads": 4}, {"heads": 2, "window": 2}, {"heads": 1, "kernel_sizes": (5, 3)}], ids=str
)
@pytest.mark.parametrize("size_hw", [(16, 9), (7, 7), (3, 5), (1, 6)], ids=str)
def test_in_plain_words(size_hw: tuple[int, int], settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer, x = SCSA(16, **settings).double(), maps(2, 16, *size_hw)
    for number, norm in enumerate((layer.norm_rows, layer.norm_columns, layer.norm)):
        norm.weight.data.copy_(maps(16, 3)[:, number])
        norm.bias.data.copy_(maps(16, 4)[:, number])
    expected = x
    for axis, norm in ((3, layer.norm_rows), (2, layer.norm_columns)):
        parts = x.mean(axis).chunk(len(layer.convs), 1)
        parts = [
            functional.conv1d(part, conv.weight, conv.bias, padding="same", groups=part.shape[1])
            for part, conv in zip(parts, layer.convs, strict=True)
        ]
        parts = [
            (part - part.mean((1, 2), keepdim=True)) / (part.var((1, 2), keepdim=True, correction=0) + 1e-5).sqrt()
            for part in parts
        ]
        gate = torch.sigmoid(torch.cat(parts, 1) * norm.weight[:, None] + norm.bias[:, None])
        expected = expected * gate.unsqueeze(axis)
    side = settings.get("window", 7)
    tops, lefts = (range(0, size, side) for size in size_hw)
    cells = [expected[:, :, top : top + side, left : left + side].mean((2, 3)) for top in tops for left in lefts]
    pooled = torch.stack(cells, 2)  # (B, C, cells)
    pooled = (pooled - pooled.mean((1, 2), keepdim=True)) / (
        pooled.var((1, 2), keepdim=True, correction=0) + 1e-5
    ).sqrt()
    pooled = pooled * layer.norm.weight[:, None] + layer.norm.bias[:, None]
    gates = []
    for head in torch.arange(16).chunk(layer.heads):
        query, key, value = (
            pooled[:, head] * part.weight.flatten()[head, None] for part in (layer.query, layer.key, layer.value)
        )
        attention = (torch.einsum("bcn,bdn->bcd", query, key) / math.sqrt(len(head))).softmax(2)
        gates.append(torch.einsum("bcd,bdn->bcn", attention, value).mean(2))
    expected = expected * torch.cat(gates, 1).sigmoid()[..., None, None]
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(x * layer.gate(x), expected, rtol=1e-10, atol=1e-12)


def test_scores_that_overflow_half_precision() -> None:
    layer = SCSA(8, heads=2).half()
    layer.query.weight.data.fill_(300)
    layer.key.weight.data.fill_(300)
    x = maps(1, 8, 14, 14)
    y = layer(x.half())
    assert y.isfinite().all()
    torch.testing.assert_close(y.double(), layer.double()(x), rtol=2e-2, atol=2e-3)


def test_parameters() -> None:
    assert (
        sum(parameter.numel() for parameter in SCSA(64).parameters()) == 16 * (3 + 5 + 7 + 9) + 64 + 3 * 2 * 64 + 3 * 64
    )


def test_identity_start() -> None:
    layer, x = SCSA(16, start="identity"), maps(2, 16, 9, 8).float()
    assert layer.gate(x).unique().tolist() == [1]
    assert torch.equal(layer(x), x)


@pytest.mark.parametrize(
    ("channels", "settings", "facts"),
    [
        (12, {}, ("heads is 8", "12 channels", "1, 2, 3, 4, 6")),
        (8, {}, ("heads is 8", "2 of 8 channels", "1, 2, 4")),
        (6, {"heads": 2}, ("kernel_sizes is [3, 5, 7, 9]", "6 channels", "[3, 5, 7]")),
        (7, {"heads": 1}, ("kernel_sizes is [3, 5, 7, 9]", "7 channels", "[3]")),
        (8, {"heads": 2, "kernel_sizes": ()}, ("kernel_sizes is []", "[3, 5, 7, 9]")),
        (8, {"heads": 2, "kernel_sizes": (3, 4)}, ("kernel_sizes is 4", "odd", "5")),
        (8, {"heads": 2, "window": 0}, ("window is 0", "positive")),
    ],
)
def test_settings_that_cannot_be(channels: int, settings: dict[str, Any], facts: tuple[str, ...]) -> None:
    with pytest.raises(ModelConfigError) as caught:
        SCSA(channels, **settings)
    assert_says(caught.value, *facts)
