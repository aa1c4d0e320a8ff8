"""EMA attention: by hand, group by group in plain words, and widths that its groups do not divide."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from models.attention.multi_scale_attention import EMAttention
from tests.saying import assert_says
from utils.errors import ModelConfigError


def maps(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_a_single_pixel_by_hand() -> None:
    layer = EMAttention(2, groups=1).double()
    layer.conv3.weight.data.zero_()
    layer.conv3.weight.data[:, :, 1, 1] = torch.eye(2)
    layer.conv3.bias.data.zero_()
    layer.norm.bias.data.copy_(torch.tensor([0.0, math.log(3)]))
    x = torch.tensor([1.0, 2.0], dtype=torch.float64).view(1, 2, 1, 1)
    # one value is normalised to its bias, whose softmax is 1/4, 3/4; the 3 x 3 branch is the pixel, with softmax 1 : e
    seen = (0.25 * 1 + 0.75 * 2) + math.log(3) * math.e / (1 + math.e)
    assert layer(x).flatten().tolist() == pytest.approx([sigmoid(seen), 2 * sigmoid(seen)], rel=1e-7)


@pytest.mark.parametrize(("channels", "groups"), [(12, 3), (8, 8), (6, 1)])
@pytest.mark.parametrize("size_hw", [(7, 5), (1, 6), (2, 2)], ids=str)
def test_group_by_group(channels: int, groups: int, size_hw: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer, x = EMAttention(channels, groups).double(), maps(2, channels, *size_hw)
    layer.norm.weight.data.copy_(maps(channels // groups))
    layer.norm.bias.data.copy_(maps(channels // groups, 2)[:, 1])
    expected = []
    for part in x.chunk(groups, 1):
        rows, columns = (
            torch.einsum("oc,bcl->bol", layer.conv1.weight.flatten(1), part.mean(axis)) + layer.conv1.bias[:, None]
            for axis in (3, 2)
        )
        gated = torch.einsum("bchw,bch,bcw->bchw", part, rows.sigmoid(), columns.sigmoid())
        spread, mean = torch.var_mean(gated, (2, 3), keepdim=True, correction=0)
        first = (gated - mean) / (spread + 1e-5).sqrt() * layer.norm.weight[:, None, None] + layer.norm.bias[
            :, None, None
        ]
        second = functional.conv2d(part, layer.conv3.weight, layer.conv3.bias, padding=1)
        weights = [branch.mean((2, 3)).softmax(1) for branch in (first, second)]
        seen = torch.einsum("bc,bchw->bhw", weights[0], second) + torch.einsum("bc,bchw->bhw", weights[1], first)
        expected.append(part * seen.sigmoid().unsqueeze(1))
    torch.testing.assert_close(layer(x), torch.cat(expected, 1), rtol=1e-10, atol=1e-12)
    assert layer.gate(x).shape == (2, groups, *size_hw)


def test_parameters_are_those_of_one_group() -> None:
    assert sum(parameter.numel() for parameter in EMAttention(64).parameters()) == (8 * 8 + 8) + (9 * 8 * 8 + 8) + 16


def test_identity_start() -> None:
    layer, x = EMAttention(8, 2, start="identity").double(), maps(2, 8, 4, 5)
    assert torch.equal(layer(x), x)
    other = EMAttention(8, 2).double()
    other.load_state_dict({key: value for key, value in layer.state_dict().items() if key != "gain"})
    layer.gain.data.fill_(1)
    torch.testing.assert_close(layer(x), 2 * other(x), rtol=1e-12, atol=0)


def test_groups_that_do_not_divide() -> None:
    with pytest.raises(ModelConfigError) as caught:
        EMAttention(20)
    assert_says(caught.value, "groups is 8", "20 channels", "1, 2, 4, 5, 10, 20")
    with pytest.raises(ModelConfigError) as caught:
        EMAttention(16, 32)
    assert_says(caught.value, "groups is 32", "16 channels", "1, 2, 4, 8, 16")
