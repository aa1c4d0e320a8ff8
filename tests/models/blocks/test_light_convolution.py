"""GSConv and its blocks, SPD-Conv: order of channels by hand, equal plain formulations, and what does not divide."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from models.blocks.light_convolution import GSBottleneck, GSConv, SPDConv, VoVGSCSP, space_to_depth
from models.registry import find_layer
from tests.networks import randomise
from tests.saying import assert_says
from utils.errors import ModelConfigError


def maps(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_gsconv_alternates_its_halves() -> None:
    layer = randomise(GSConv(3, 6, 3, 2)).double().eval()
    x = maps(2, 3, 9, 7)
    y, dense = layer(x), layer.dense(x)
    assert y.shape == (2, 6, 5, 4)
    torch.testing.assert_close(y[:, 0::2], dense, rtol=0, atol=0)
    torch.testing.assert_close(y[:, 1::2], layer.cheap(dense), rtol=0, atol=0)


def test_gsconv_parameters() -> None:
    assert count(GSConv(16, 32, 3)) == (9 * 16 * 16 + 32) + (25 * 16 + 32)


def test_gs_bottleneck_formula() -> None:
    x = maps(1, 8, 5, 5)
    same, other = (randomise(GSBottleneck(8, width)).double().eval() for width in (8, 12))
    torch.testing.assert_close(same(x), x + same.widen(same.narrow(x)))
    torch.testing.assert_close(other(x), other.shortcut(x) + other.widen(other.narrow(x)))
    assert same.narrow(x).shape[1] == 4
    assert isinstance(same.widen.dense.act, nn.Identity)
    assert isinstance(same.widen.cheap.act, nn.Identity)


def test_vov_gscsp_is_c3_of_its_bottlenecks() -> None:
    block = VoVGSCSP(8, 16, repeats=2).double().eval()
    assert [type(unit) for unit in block.m] == [GSBottleneck, GSBottleneck]
    x = maps(1, 8, 5, 3)
    y = block.m[1](block.m[0](block.cv1(x)))
    torch.testing.assert_close(block(x), block.cv3(torch.cat((y, block.cv2(x)), 1)))
    assert find_layer("VoVGSCSP").repeats == "repeats"


def test_space_to_depth_by_hand() -> None:
    x = torch.arange(12.0).view(1, 2, 2, 3)  # channel 0: 0 1 2 / 3 4 5, channel 1: 6 7 8 / 9 10 11
    y = space_to_depth(x, 2)
    assert y[0, :, 0, 0].tolist() == [0, 1, 3, 4, 6, 7, 9, 10]
    assert y[0, :, 0, 1].tolist() == [2, 0, 5, 0, 8, 0, 11, 0], "zeros on the right"
    assert space_to_depth(torch.ones(1, 1, 1, 1), 4).flatten().tolist() == [1] + 15 * [0]


@pytest.mark.parametrize("size_hw", [(6, 8), (7, 5), (1, 1), (2, 3)], ids=str)
def test_spdconv_is_a_wide_strided_convolution(size_hw: tuple[int, int]) -> None:
    layer, x = randomise(SPDConv(3, 5)).double().eval(), maps(2, 3, *size_hw)
    wide = functional.pixel_shuffle(
        layer.conv.conv.weight.flatten(2).transpose(0, 2).reshape(9, 12, 5).permute(2, 1, 0).reshape(5, 12, 3, 3), 2
    )
    strided = functional.conv2d(functional.pad(x, (2, 3, 2, 3)), wide, stride=2)
    assert strided.shape[2:] == (-(-size_hw[0] // 2), -(-size_hw[1] // 2))
    torch.testing.assert_close(layer(x), layer.conv.act(layer.conv.bn(strided)), rtol=1e-12, atol=1e-13)


def test_spdconv_order_of_the_authors() -> None:
    x = torch.arange(2 * 4 * 4.0).view(1, 2, 4, 4)
    theirs = torch.cat((x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]), 1)
    ours = space_to_depth(x, 2)
    for channel in range(2):
        for i in range(2):
            for j in range(2):
                assert torch.equal(ours[:, 4 * channel + 2 * i + j], theirs[:, (2 * j + i) * 2 + channel])


def test_spdconv_parameters() -> None:
    assert count(SPDConv(16, 32)) == 4 * 16 * 32 * 9 + 64


@pytest.mark.parametrize(
    ("kind", "arguments", "facts"),
    [
        (GSConv, (8, 7), ("out_channels is 7", "even", "8")),
        (GSConv, (8, 8, 2), ("kernel_size is 2", "odd")),
        (GSBottleneck, (8, 10), ("0.5 of out_channels 10", "is 5", "even", "6")),
        (VoVGSCSP, (8, 12), ("unit GSBottleneck at 6 channels", "0.5 of out_channels 6", "is 3")),
        (SPDConv, (8, 8, 2), ("kernel_size is 2", "odd")),
    ],
)
def test_widths_that_do_not_divide(kind: type[nn.Module], arguments: tuple[Any, ...], facts: tuple[str, ...]) -> None:
    with pytest.raises(ModelConfigError) as caught:
        kind(*arguments)
    assert_says(caught.value, *facts)
