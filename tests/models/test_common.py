"""Blocks of the GELAN family: literal values, folding, and the activation of one network."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from models.common import (
    ACTIVATIONS,
    ELAN1,
    SPPELAN,
    AConv,
    ADown,
    Conv,
    RepBottleneck,
    RepConv,
    RepCSP,
    RepNCSPELAN4,
    fix_activation,
    fold_batchnorm,
    set_activation,
)  # fmt: skip
from models.necks.connections import CBFuse, CBLinear, Concat, Silence
from tests.networks import randomise, seeded_images
from tests.saying import assert_says
from utils.errors import ModelConfigError


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("arguments", "size"),
    [
        ((3,), 10),
        ((3, 2), 5),
        ((5,), 10),
        ((1,), 10),
        ((6, 2, 2), 5),
        ((3, 1, 0), 8),
        ((3, 1, None, 1, 2), 10),
        ((3, 1, None, 1, 3), 10),
    ],
)
def test_conv_size(arguments: tuple, size: int) -> None:
    assert Conv(4, 8, *arguments)(torch.zeros(2, 4, 10, 10)).shape == (2, 8, size, size)


def test_conv_is_convolution_normalisation_activation() -> None:
    unit = randomise(Conv(2, 3, 3)).eval()
    x = seeded_images(1, 2, 5, 5)
    y = functional.conv2d(x, unit.conv.weight, padding=1)
    y = (y - unit.bn.running_mean[:, None, None]) / (unit.bn.running_var[:, None, None] + 1e-3).sqrt()
    y = y * unit.bn.weight[:, None, None] + unit.bn.bias[:, None, None]
    torch.testing.assert_close(unit(x), y * y.sigmoid())
    assert unit.conv.bias is None
    assert isinstance(Conv(2, 3, activate=False).act, nn.Identity)


def test_fold_batchnorm_by_hand() -> None:
    conv, norm = nn.Conv2d(1, 1, 1, bias=True), nn.BatchNorm2d(1, eps=0.0).eval()
    with torch.no_grad():
        conv.weight.fill_(3)
        conv.bias.fill_(1)
        for tensor, value in ((norm.weight, 2), (norm.bias, 5), (norm.running_mean, 4), (norm.running_var, 16)):
            tensor.fill_(value)
    folded = fold_batchnorm(conv, norm)
    assert folded.weight.item() == 3 * 2 / 4
    assert folded.bias.item() == 5 + (1 - 4) * 2 / 4


@pytest.mark.parametrize(
    "unit",
    [
        Conv(4, 6, 3, 2, groups=2),
        Conv(4, 6, 3, dilation=2),
        RepConv(4, 6),
        RepConv(4, 6, stride=2),
        RepCSP(4, 8, repeats=2),
    ],
)
def test_folding_keeps_the_function(unit: nn.Module) -> None:
    randomise(unit).double().eval()
    x = seeded_images(2, 4, 9, 8, dtype=torch.float64)
    expected = unit(x)
    for part in reversed(list(unit.modules())):
        if hasattr(part, "fold"):
            part.fold()
            part.fold()  # a second time changes nothing
    assert not any(isinstance(part, nn.BatchNorm2d) for part in unit.modules())
    torch.testing.assert_close(unit(x), expected, rtol=1e-12, atol=1e-12)


def test_folded_repconv_is_one_convolution() -> None:
    unit = RepConv(4, 6).eval()
    unit.fold()
    assert sorted(unit.state_dict()) == ["conv.bias", "conv.weight"]
    assert unit.conv.weight.shape == (6, 4, 3, 3)


def test_folding_keeps_a_frozen_weight_frozen() -> None:
    unit = Conv(2, 2).requires_grad_(False)
    unit.fold()
    assert not unit.conv.weight.requires_grad
    assert not unit.conv.bias.requires_grad


def test_bottleneck_adds_only_equal_widths() -> None:
    assert RepBottleneck(8, 8).add
    assert not RepBottleneck(8, 8, shortcut=False).add
    assert not RepBottleneck(8, 16).add
    x = seeded_images(1, 8, 4, 4)
    unit = RepBottleneck(8, 8).eval()
    torch.testing.assert_close(unit(x), x + unit.cv2(unit.cv1(x)))


@pytest.mark.parametrize(
    ("module", "parameters"),
    [
        (Conv(3, 8, 3), 3 * 8 * 9 + 16),
        (RepConv(4, 8), 4 * 8 * 10 + 32),
        (ELAN1(8, 16, 8, 4), (64 + 16) + (4 * 4 * 9 + 8) * 2 + (16 * 16 + 32)),
        (SPPELAN(8, 16, 4), (32 + 8) + (16 * 16 + 32)),
        (AConv(8, 16), 8 * 16 * 9 + 32),
        (ADown(8, 16), (4 * 8 * 9 + 16) + (4 * 8 + 16)),
        (CBLinear(8, [4, 6]), 8 * 10 + 10),
    ],
)
def test_parameters_by_hand(module: nn.Module, parameters: int) -> None:
    assert count(module) == parameters


def test_elan_concatenates_all_stages() -> None:
    unit = randomise(ELAN1(8, 16, 8, 4)).eval()
    x = seeded_images(1, 8, 6, 6)
    first, second = unit.cv1(x).chunk(2, 1)
    third = unit.cv2(second)
    torch.testing.assert_close(unit(x), unit.cv4(torch.cat((first, second, third, unit.cv3(third)), 1)))


def test_gelan_block_has_as_many_bottlenecks_as_asked() -> None:
    unit = RepNCSPELAN4(16, 16, 8, 4, repeats=3)
    assert len(unit.cv2[0].m) == len(unit.cv3[0].m) == 3
    assert unit.cv2[0].m[0].cv1.conv1.conv.weight.shape == (2, 2, 3, 3)


def test_spp_sees_13_pixels() -> None:
    unit = SPPELAN(1, 1, 1).eval()
    unit.cv1 = nn.Identity()
    unit.cv5 = nn.Identity()
    x = torch.zeros(1, 1, 15, 15)
    x[0, 0, 7, 7] = 1
    assert [int(part.sum()) for part in unit(x)[0]] == [1, 25, 81, 169]


@pytest.mark.parametrize("size", [(8, 8), (9, 7), (2, 3)])
def test_downsamplers_halve_rounding_up_as_one_pixel_is_lost_before(size: tuple[int, int]) -> None:
    expected = tuple((side - 1 - 1) // 2 + 1 for side in size)
    x = torch.zeros(1, 4, *size)
    assert AConv(4, 8)(x.expand(2, -1, -1, -1)).shape[2:] == expected
    assert ADown(4, 8)(x.expand(2, -1, -1, -1)).shape[2:] == expected


def test_adown_sends_the_first_half_through_the_convolution() -> None:
    unit = randomise(ADown(4, 8)).eval()
    x = seeded_images(1, 4, 8, 8)
    changed = x.clone()
    changed[:, :2] = 0
    before, after = unit(x), unit(changed)
    assert not torch.equal(before[:, :4], after[:, :4])
    assert torch.equal(before[:, 4:], after[:, 4:])


def test_cblinear_and_cbfuse_by_hand() -> None:
    split = CBLinear(1, [1, 2])
    with torch.no_grad():
        split.conv.weight.copy_(torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1))
        split.conv.bias.copy_(torch.tensor([0.0, 10.0, 20.0]))
        small = torch.tensor([[[[1.0, 2.0]]]])
        parts = split(small)
        assert [part.shape[1] for part in parts] == [1, 2]
        assert parts[1].tolist() == [[[[12.0, 14.0]], [[23.0, 26.0]]]]
        target = torch.zeros(1, 2, 2, 4)
        target[0, 0] = 100
        fused = CBFuse([1])([parts, target])
    assert fused[0, 0].tolist() == [[112.0, 112.0, 114.0, 114.0]] * 2
    assert fused[0, 1].tolist() == [[23.0, 23.0, 26.0, 26.0]] * 2


def test_concat_and_silence() -> None:
    x, y = torch.zeros(1, 1, 2, 2), torch.ones(1, 2, 2, 2)
    assert Concat()([x, y])[0, :, 0, 0].tolist() == [0, 1, 1]
    assert Silence()(x) is x


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_by_name(name: str) -> None:
    unit = Conv(2, 2)
    set_activation(unit, name)
    assert type(unit.act) is type(ACTIVATIONS[name]())


@pytest.mark.parametrize(
    ("name", "kind"), [("nn.ReLU()", nn.ReLU), ("nn.LeakyReLU(0.1)", nn.LeakyReLU), ("nn.SiLU", nn.SiLU)]
)
def test_activation_as_older_files_write_it(name: str, kind: type[nn.Module]) -> None:
    unit = Conv(2, 2)
    set_activation(unit, name)
    assert isinstance(unit.act, kind)


def test_unknown_activation() -> None:
    with pytest.raises(ModelConfigError) as caught:
        set_activation(Conv(2, 2), "Swish")
    assert_says(caught.value, "activation 'Swish'", "SiLU, ReLU, ReLU6, LeakyReLU, Hardswish, Mish, GELU, Identity")


def test_a_fixed_activation_stays() -> None:
    block = RepBottleneck(4, 4)
    fix_activation(block, "ReLU")
    set_activation(block, "Mish")
    assert {type(unit.act) for unit in (block.cv1, block.cv2)} == {nn.ReLU}
    assert isinstance(block.cv1.conv1.act, nn.Identity), "a convolution without activation stays without"


def test_no_fixed_activation_leaves_it_to_the_network() -> None:
    unit = Conv(2, 2)
    fix_activation(unit, None)
    set_activation(unit, "Mish")
    assert isinstance(unit.act, nn.Mish)
