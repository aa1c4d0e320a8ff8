"""MBConv and iRMB: by hand, against plain formulations, and the widths and windows that do not divide."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.blocks.mobile import IRMB, MBConv, SqueezeExcite, fitting_head_channels
from models.deploy import fold_modules
from tests.networks import randomise
from tests.saying import assert_says
from utils.errors import ModelConfigError


def maps(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def seeded(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5
    return randomise(module).double().eval()


def normed(x: Tensor, bn: nn.BatchNorm2d) -> Tensor:
    scale = bn.weight / (bn.running_var + 1e-3).sqrt()
    return (x - bn.running_mean[:, None, None]) * scale[:, None, None] + bn.bias[:, None, None]


def test_gate_by_hand() -> None:
    gate = SqueezeExcite(1, 1).double()
    for conv, weight, bias in ((gate.reduce, 2.0, 1.0), (gate.expand, 0.5, -1.0)):
        conv.weight.data.fill_(weight)
        conv.bias.data.fill_(bias)
    y = gate(
        torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]], dtype=torch.float64)
    )  # mean 3, reduced to 7, SiLU, halved, less one
    hidden = 7 * torch.tensor(7.0, dtype=torch.float64).sigmoid()
    assert y.flatten().tolist() == pytest.approx([value * (hidden / 2 - 1).sigmoid().item() for value in (1, 2, 3, 6)])


@pytest.mark.parametrize(("out_channels", "stride"), [(6, 1), (4, 1), (6, 2)])
def test_mbconv_formula(out_channels: int, stride: int) -> None:
    block = seeded(MBConv(6, out_channels, 5, 3.0, 0.5, stride))
    x = maps(2, 6, 7, 5)
    y = functional.silu(normed(torch.einsum("oc,bchw->bohw", block.widen.conv.weight[:, :, 0, 0], x), block.widen.bn))
    y = functional.silu(
        normed(functional.conv2d(y, block.depthwise.conv.weight, None, stride, 2, 1, 18), block.depthwise.bn)
    )
    hidden = functional.silu(y.mean((2, 3)) @ block.gate.reduce.weight.flatten(1).T + block.gate.reduce.bias)
    y = y * (hidden @ block.gate.expand.weight.flatten(1).T + block.gate.expand.bias).sigmoid()[..., None, None]
    y = normed(torch.einsum("oc,bchw->bohw", block.narrow.conv.weight[:, :, 0, 0], y), block.narrow.bn)
    torch.testing.assert_close(block(x), x + y if (out_channels, stride) == (6, 1) else y, rtol=1e-12, atol=1e-12)


def test_mbconv_parameters() -> None:
    # 16 -> 64 and its norm; 3 x 3 for each of 64 and its norm; gate to 4 and back, biased; 64 -> 16 and its norm
    assert count(MBConv(16)) == (16 * 64 + 128) + (9 * 64 + 128) + (64 * 4 + 4 + 4 * 64 + 64) + (64 * 16 + 32)
    assert count(MBConv(16, 24, 5, 1, 0)) == (25 * 16 + 32) + (16 * 24 + 48), (
        "no widening at expansion 1, no gate at squeeze 0"
    )


def test_irmb_parameters() -> None:
    # norm; queries and keys; values to 32; 3 x 3 depthwise and its norm; gate to 4 and back, biased; back to 16
    assert count(IRMB(16)) == 32 + 2 * 16 * 16 + 16 * 32 + (9 * 32 + 64) + (32 * 4 + 4 + 4 * 32 + 32) + 32 * 16


def plain_attention(block: IRMB, query_key: Tensor, values: Tensor) -> Tensor:
    """Cell by cell: the softmax over the cells of the same window that are on the map."""
    batch, hidden, height, width = values.shape
    queries, keys = query_key.chunk(2, 1)
    depth, value_depth, out = queries.shape[1] // block.heads, hidden // block.heads, torch.empty_like(values)

    def window_of(row: int, column: int) -> tuple[int, int]:
        return row // block.window, column // block.window

    cells = [(row, column) for row in range(height) for column in range(width)]
    for image in range(batch):
        for head in range(block.heads):
            mine, theirs = slice(head * depth, (head + 1) * depth), slice(head * value_depth, (head + 1) * value_depth)
            for here in cells:
                near = [there for there in cells if window_of(*there) == window_of(*here)]
                query = queries[image, mine, here[0], here[1]]
                scores = torch.stack([query @ keys[image, mine, r, c] / depth**0.5 for r, c in near])
                seen = torch.stack([values[image, theirs, r, c] for r, c in near])
                out[image, theirs, here[0], here[1]] = scores.softmax(0) @ seen
    return out


@pytest.mark.parametrize("size_hw", [(6, 6), (7, 4), (2, 5), (1, 1)], ids=str)
def test_window_attention_against_cell_by_cell(size_hw: tuple[int, int]) -> None:
    block = seeded(IRMB(8, head_channels=4, window=3))
    query_key, values = maps(2, 16, *size_hw), maps(2, 16, *size_hw).flip(1)
    torch.testing.assert_close(
        block.attend(query_key, values), plain_attention(block, query_key, values), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("out_channels", [8, 12])
def test_irmb_formula(out_channels: int) -> None:
    block, x = seeded(IRMB(8, out_channels, head_channels=4, window=2)), maps(2, 8, 5, 3)
    before = normed(x, block.norm)
    values = functional.silu(functional.conv2d(before, block.value.weight))
    y = plain_attention(block, functional.conv2d(before, block.query_key.weight), values)
    y = y + block.gate(
        functional.silu(normed(functional.conv2d(y, block.local.conv.weight, padding=1, groups=16), block.local.bn))
    )
    y = functional.conv2d(y, block.proj.weight)
    torch.testing.assert_close(block(x), x + y if out_channels == 8 else y, rtol=1e-12, atol=1e-12)


def test_padded_cells_are_not_looked_at() -> None:
    block = seeded(IRMB(4, window=7))
    query_key, values = maps(1, 8, 3, 2), torch.ones(1, 8, 3, 2, dtype=torch.float64)
    torch.testing.assert_close(
        block.attend(query_key, values), values
    )  # a mean of ones; cells beyond the border would add zeros to it


@pytest.mark.parametrize(
    ("channels", "head_channels"), [(8, 8), (12, 12), (64, 64), (96, 48), (128, 64), (80, 40), (67, 1)]
)
def test_default_heads_divide_any_width(channels: int, head_channels: int) -> None:
    assert fitting_head_channels(channels) == head_channels
    assert IRMB(channels).heads == channels // head_channels


def test_folding_leaves_no_normalisation() -> None:
    block, x = seeded(IRMB(8, window=3)), maps(2, 8, 5, 4)
    expected = block(x)
    for _ in range(2):
        fold_modules(nn.Sequential(block))
    assert not any(isinstance(part, nn.BatchNorm2d) for part in block.modules())
    torch.testing.assert_close(block(x), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "settings", "facts"),
    [
        (MBConv, {"kernel_size": 4}, ("kernel_size is 4", "odd")),
        (MBConv, {"expansion": 0}, ("expansion is 0", "positive")),
        (MBConv, {"squeeze": -1}, ("squeeze is -1", "0.25")),
        (
            MBConv,
            {"stride": 2, "start": "identity"},
            ("no residual connection", "16 channels in, 16 out at stride 2", "leave it out"),
        ),
        (
            IRMB,
            {"out_channels": 8, "start": "identity"},
            ("no residual connection", "16 channels in, 8 out", "leave it out"),
        ),
        (IRMB, {"head_channels": 5}, ("head_channels is 5", "16 channels", "1, 2, 4, 8, 16")),
        (
            IRMB,
            {"head_channels": 4, "expansion": 1.6},
            ("25 channels of 16", "4 heads", "head_channels 16"),
        ),
        (IRMB, {"window": 0}, ("window is 0", "positive")),
    ],
)
def test_settings_that_cannot_be(kind: type[nn.Module], settings: dict[str, Any], facts: tuple[str, ...]) -> None:
    with pytest.raises(ModelConfigError) as caught:
        kind(16, **settings)
    assert_says(caught.value, *facts)


def test_mbconv_against_timm() -> None:
    blocks = pytest.importorskip("timm.models._efficientnet_blocks")
    gate = partial(blocks.SqueezeExcite, rd_ratio=1 / 16)  # of the widened map: a quarter of the input's
    theirs = blocks.InvertedResidual(8, 8, 3, exp_ratio=4.0, act_layer=nn.SiLU, se_layer=gate).double().eval()
    ours = seeded(MBConv(8))
    pairs = [
        (theirs.conv_pw, ours.widen.conv),
        (theirs.conv_dw, ours.depthwise.conv),
        (theirs.conv_pwl, ours.narrow.conv),
    ]
    pairs += [(theirs.bn1, ours.widen.bn), (theirs.bn2, ours.depthwise.bn), (theirs.bn3, ours.narrow.bn)]
    pairs += [(theirs.se.conv_reduce, ours.gate.reduce), (theirs.se.conv_expand, ours.gate.expand)]
    for target, source in pairs:
        target.load_state_dict(source.state_dict())
    for norm in (theirs.bn1, theirs.bn2, theirs.bn3):
        norm.eps = 1e-3
    torch.testing.assert_close(ours(maps(2, 8, 7, 6)), theirs(maps(2, 8, 7, 6)), rtol=1e-12, atol=1e-12)
