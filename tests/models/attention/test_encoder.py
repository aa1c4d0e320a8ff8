"""AIFI: positions by hand and kept per size, and torch's own multi-head attention beside it."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.attention.encoder import AIFI, kept_position_table, position_table
from tests.saying import assert_says
from utils.errors import ModelConfigError


def maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def table(height: int, width: int, channels: int) -> Tensor:
    return position_table((height, width), channels, 10000.0, torch.float64, torch.device("cpu"))


def test_positions_by_hand() -> None:
    sin, cos = math.sin, math.cos
    assert table(2, 3, 4).flatten().tolist() == pytest.approx(
        [number for row in (0, 1) for column in (0, 1, 2) for number in (sin(column), cos(column), sin(row), cos(row))]
    )
    # two frequencies: 1 and 10000 ** -0.5
    expected = [sin(3), sin(0.03), cos(3), cos(0.03), sin(1), sin(0.01), cos(1), cos(0.01)]
    assert table(2, 5, 8)[5 + 3].tolist() == pytest.approx(expected)


def plain(layer: AIFI, x: Tensor) -> Tensor:
    """The layer by torch's multi-head attention, whose keys have biases of zero."""
    attention = nn.MultiheadAttention(x.shape[1], layer.heads, batch_first=True).to(x.dtype)
    attention.in_proj_weight.data.copy_(torch.cat((layer.query.weight, layer.key.weight, layer.value.weight)))
    attention.in_proj_bias.data.copy_(
        torch.cat((layer.query.bias, torch.zeros_like(layer.query.bias), layer.value.bias))
    )
    attention.out_proj.load_state_dict(layer.proj.state_dict())
    pixels = x.flatten(2).transpose(1, 2)
    position = table(*x.shape[2:], x.shape[1])

    def attend(values: Tensor) -> Tensor:
        return attention(values + position, values + position, values, need_weights=True)[0]

    def feed(values: Tensor) -> Tensor:
        hidden = functional.linear(values, layer.fc1.weight, layer.fc1.bias)
        return functional.linear(hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5)), layer.fc2.weight, layer.fc2.bias)

    if layer.pre_norm:
        pixels = pixels + attend(layer.norm1(pixels))
        pixels = pixels + feed(layer.norm2(pixels))
    else:
        pixels = layer.norm1(pixels + attend(pixels))
        pixels = layer.norm2(pixels + feed(pixels))
    return pixels.transpose(1, 2).view_as(x)


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("size_hw", [(4, 4), (5, 2), (1, 3), (1, 1)], ids=str)
def test_against_torchs_attention(size_hw: tuple[int, int], pre_norm: bool) -> None:
    torch.manual_seed(0)
    layer, x = AIFI(24, 32, 3, pre_norm=pre_norm).double(), maps(2, 24, *size_hw)
    torch.testing.assert_close(layer(x), plain(layer, x), rtol=1e-10, atol=1e-12)


def test_output_is_normalised_unless_norms_come_first() -> None:
    y = AIFI(16, 32, 4)(maps(2, 16, 3, 5).float())
    torch.testing.assert_close(y.mean(1), torch.zeros(2, 3, 5), rtol=0, atol=1e-5)
    assert AIFI(16, 32, 4, pre_norm=True)(maps(2, 16, 3, 5).float() + 5).mean() > 1


def test_positions_are_right_for_changing_sizes_and_in_no_state_dict() -> None:
    torch.manual_seed(0)
    layer = AIFI(16, 32, 4).double()
    keys = set(layer.state_dict())
    for size_hw in ((3, 5), (5, 3), (15, 1), (3, 5)):
        x = maps(1, 16, *size_hw)
        torch.testing.assert_close(layer(x), plain(layer, x), rtol=1e-10, atol=1e-12)
        assert torch.equal(layer.position(x), table(*size_hw, 16))
    assert set(layer.state_dict()) == keys
    assert not list(layer.buffers())
    assert not any("position" in key for key in keys)


def test_positions_are_made_once_for_a_size_and_format() -> None:
    layer, x = AIFI(16, 32, 4), maps(1, 16, 6, 11)
    kept_position_table.cache_clear()
    assert layer.position(x) is layer.position(x + 1)
    assert layer.position(x.half()).dtype is torch.float16
    assert kept_position_table.cache_info().misses == 2


def test_inference_first_leaves_training_possible() -> None:
    layer, x = AIFI(16, 32, 4), maps(1, 16, 4, 13).float()
    with torch.inference_mode():
        layer(x)
    layer(x.requires_grad_()).sum().backward()
    assert x.grad is not None


def test_scores_that_overflow_half_precision() -> None:
    layer = AIFI(16, 32, 2).half()
    for part in (layer.query, layer.key):
        part.weight.data.copy_(torch.eye(16) * 100)
    x = (maps(1, 16, 4, 4) * 20).half()
    assert (layer.query(x.flatten(2).transpose(1, 2)).float().square().sum(2)).max() > torch.finfo(torch.float16).max
    y = layer(x)
    assert y.isfinite().all()
    assert layer.explain(x)["received"].isfinite().all()
    torch.testing.assert_close(y.double(), layer.double()(x.double()), rtol=5e-2, atol=5e-2)


def test_attention_received_is_one_on_average() -> None:
    received = AIFI(16, 32, 4).double().explain(maps(2, 16, 4, 5))["received"]
    assert received.shape == (2, 1, 4, 5)
    assert received.mean((1, 2, 3)).tolist() == pytest.approx([1, 1])
    assert received.std() > 0


def test_dropout_is_for_training() -> None:
    layer, x = AIFI(16, 32, 4, drop=0.5), maps(1, 16, 4, 5).float()
    assert not torch.equal(layer.train()(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))


def test_parameters() -> None:
    assert (
        sum(parameter.numel() for parameter in AIFI(64).parameters())
        == 4 * 64 * 64 + 3 * 64 + 2 * 64 * 1024 + 1024 + 64 + 4 * 64
    )


def test_identity_start_needs_the_norms_first() -> None:
    x = maps(2, 16, 3, 5).float()
    assert torch.equal(AIFI(16, 32, 4, pre_norm=True, start="identity")(x), x)
    with pytest.raises(ModelConfigError) as caught:
        AIFI(16, start="identity")
    assert_says(caught.value, "start is 'identity'", "pre_norm: true")


@pytest.mark.parametrize(
    ("channels", "settings", "facts"),
    [
        (18, {"heads": 2}, ("18 channels", "multiple of 4", "20")),
        (12, {}, ("heads is 8", "12 channels", "1, 2, 3, 4, 6, 12")),
        (16, {"ffn_channels": 0}, ("ffn_channels is 0", "positive")),
        (16, {"temperature": -1.0}, ("temperature is -1.0", "positive")),
    ],
)
def test_settings_that_cannot_be(channels: int, settings: dict[str, Any], facts: tuple[str, ...]) -> None:
    with pytest.raises(ModelConfigError) as caught:
        AIFI(channels, **settings)
    assert_says(caught.value, *facts)
