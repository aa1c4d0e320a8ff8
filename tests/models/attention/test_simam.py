"""SimAM: by hand, whole and in tiles, in formats whose squares overflow, and on a single value."""

import math

import pytest
import torch
from torch import Tensor

from models.attention.simam import SimAM
from tests.saying import assert_says
from utils.errors import ModelConfigError


def maps(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def plain(x: Tensor, regularizer: float = 1e-4) -> Tensor:
    """The paper's formula, with torch's unbiased variance."""
    squares = (x - x.mean((2, 3), keepdim=True)) ** 2
    return x * torch.sigmoid(squares / (4 * (x.var((2, 3), keepdim=True) + regularizer)) + 0.5)


def test_by_hand() -> None:
    x = torch.tensor([0.0, 0.0, 0.0, 4.0], dtype=torch.float64).view(1, 1, 2, 2)
    layer = SimAM(1, regularizer=1.0)  # mean 1, squares 1, 1, 1, 9, variance 12 / 3
    low, high = sigmoid(1 / 20 + 0.5), sigmoid(9 / 20 + 0.5)
    assert layer.gate(x).flatten().tolist() == pytest.approx([low, low, low, high], rel=1e-14)
    assert layer(x)[0, 0, 1, 1].item() == pytest.approx(4 * high, rel=1e-14)


@pytest.mark.parametrize("size_hw", [(7, 5), (1, 2), (40, 1)], ids=str)
def test_against_torchs_variance(size_hw: tuple[int, int]) -> None:
    x = maps(2, 6, *size_hw)
    torch.testing.assert_close(SimAM(6)(x), plain(x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("slices", [1, 2, 5])
def test_a_single_value_has_a_constant_weight(slices: int) -> None:
    x = maps(2, 6, 1, 1)
    torch.testing.assert_close(SimAM(6, slices=slices)(x), x * sigmoid(0.5), rtol=1e-14, atol=0)


def test_four_quarters() -> None:
    x = maps(2, 3, 6, 8)
    expected = torch.cat([torch.cat([plain(part) for part in half.chunk(2, 3)], 3) for half in x.chunk(2, 2)], 2)
    torch.testing.assert_close(SimAM(3, slices=2)(x), expected, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(SimAM(3)(x), expected)


@pytest.mark.parametrize(
    ("size_hw", "rows", "columns"),
    [((7, 11), (3, 2, 2), (4, 4, 3)), ((8, 6), (3, 3, 2), (2, 2, 2)), ((2, 4), (1, 1), (2, 1, 1))],
    ids=str,
)
def test_tiles_differ_by_one_where_the_size_does_not_divide(
    size_hw: tuple[int, int], rows: tuple[int, ...], columns: tuple[int, ...]
) -> None:
    x = maps(2, 3, *size_hw)

    def tile(part: Tensor) -> Tensor:
        return plain(part) if part.shape[2] * part.shape[3] > 1 else part * sigmoid(0.5)

    expected = torch.cat(
        [torch.cat([tile(part) for part in strip.split(columns, 3)], 3) for strip in x.split(rows, 2)], 2
    )
    torch.testing.assert_close(SimAM(3, slices=3)(x), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("slices", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_squares_that_overflow_half_precision(dtype: torch.dtype, slices: int) -> None:
    x = (maps(1, 4, 40, 40) * 1000).to(dtype)
    assert x.float().square().max() > torch.finfo(torch.float16).max
    y = SimAM(4, slices=slices)(x)
    assert y.dtype is dtype
    torch.testing.assert_close(y.double(), SimAM(4, slices=slices)(x.double()), rtol=2e-2, atol=0)


def test_squares_in_mixed_precision() -> None:
    x = (maps(1, 4, 12, 12) + 300).float()
    with torch.autocast("cpu", torch.bfloat16):
        y = SimAM(4, slices=2)(x)
    torch.testing.assert_close(y, SimAM(4, slices=2)(x), rtol=1e-6, atol=0)


def test_without_parameters_unless_it_starts_as_the_identity() -> None:
    assert not list(SimAM(8).parameters())
    layer, x = SimAM(2, start="identity").double(), maps(1, 2, 3, 3)
    assert layer.gate(x).unique().tolist() == [1]
    layer.gain.data.fill_(1)
    torch.testing.assert_close(layer(x), 2 * plain(x), rtol=1e-10, atol=1e-12)


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ModelConfigError) as caught:
        SimAM(8, regularizer=0)
    assert_says(caught.value, "regularizer is 0", "positive")
    with pytest.raises(ModelConfigError) as caught:
        SimAM(8, slices=0)
    assert_says(caught.value, "slices is 0", "positive")
