"""ACmix: against its straightforward form, what it keeps, what is frozen, and every setting."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.modules import saved_bytes
from benchmarks.plain_modules import plain_acmix
from models.attention.acmix import ACmix, axis, kept_coordinates, shift_kernels
from models.deploy import fold_modules
from models.registry import Scale, find_layer
from models.yolo import Model
from tests.saying import assert_says
from utils.errors import ModelConfigError


def maps(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def seeded(*arguments: Any, **settings: Any) -> ACmix:
    torch.manual_seed(0)
    layer = ACmix(*arguments, **settings).double()
    nn.init.normal_(layer.dep_conv.weight, std=0.3)
    layer.rate1.data.fill_(0.7)
    return layer


@pytest.mark.parametrize("heads", [1, 2, 4, 8])
@pytest.mark.parametrize("kernels", [(7, 3), (3, 1), (5, 5)], ids=str)
def test_acmix_is_the_papers(heads: int, kernels: tuple[int, int]) -> None:
    layer = seeded(8, 16, kernels[0], heads, kernels[1])
    ours, theirs = maps(2, 8, 9, 21).requires_grad_(), maps(2, 8, 9, 21).requires_grad_()
    y, expected = layer(ours), plain_acmix(layer, theirs)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-11)
    trained = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    upstream = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view_as(y)
    for gradient, reference in zip(
        torch.autograd.grad(y, [ours, *trained], upstream),
        torch.autograd.grad(expected, [theirs, *trained], upstream),
        strict=True,
    ):
        torch.testing.assert_close(gradient, reference, rtol=1e-9, atol=1e-9)


def test_stride_takes_every_second_cell_of_the_attention() -> None:
    layer = seeded(4, kernel_att=3, heads=2)
    strided = seeded(4, kernel_att=3, heads=2, stride=2)
    strided.load_state_dict(layer.state_dict())
    for size_hw, out_hw in (((7, 9), (4, 5)), ((8, 6), (4, 3)), ((1, 1), (1, 1))):
        x = maps(1, 4, *size_hw)
        assert strided(x).shape[2:] == out_hw
        torch.testing.assert_close(strided(x), layer(x)[:, :, ::2, ::2], rtol=1e-10, atol=1e-12)


def test_shift_kernels_shift() -> None:
    weight = shift_kernels(1, 3)
    maps_ = torch.zeros(1, 9, 3, 3)
    maps_[0, 0, 0, 0] = 5  # tap 0 is the upper left one: its map moves down and right
    assert nn.functional.conv2d(maps_, weight, padding=1)[0, 0].tolist() == [[0, 0, 0], [0, 5, 0], [0, 0, 0]]
    assert torch.equal(ACmix(8).dep_conv.weight, shift_kernels(8, 3))


def test_dead_parameters_are_frozen_and_counted() -> None:
    def frozen(layer: ACmix) -> list[str]:
        return [name for name, parameter in layer.named_parameters() if not parameter.requires_grad]

    assert frozen(ACmix(8)) == ["conv_p.bias"]
    assert frozen(ACmix(8, kernel_att=1)) == ["conv_p.weight", "conv_p.bias"]
    assert sum(parameter.numel() for parameter in ACmix(512).parameters()) == 829_934
    assert sum(parameter.numel() for parameter in ACmix(256).parameters()) == 218_414


def test_the_dead_bias_changes_nothing() -> None:
    layer, x = seeded(8), maps(1, 8, 6, 7)
    before = layer(x)
    layer.conv_p.bias.data.fill_(100)
    assert torch.equal(layer(x), before)
    torch.testing.assert_close(plain_acmix(layer, x), before, rtol=1e-9, atol=1e-10)


def test_backward_keeps_a_fifth_of_the_straightforward_form() -> None:
    for channels, size in ((64, 40), (128, 20)):
        layer, x = ACmix(channels), torch.zeros(2, channels, size, size).requires_grad_()
        plain = saved_bytes(lambda: plain_acmix(layer, x), layer, x)  # noqa: B023 called at once
        assert saved_bytes(lambda: layer(x), layer, x) * 5 < plain  # noqa: B023


def test_coordinates_are_made_once_for_a_size() -> None:
    like = torch.empty(0, dtype=torch.float64)
    assert axis(5, like).tolist() == [-1, -0.5, 0, 0.5, 1]
    assert axis(1, like).tolist() == [-1]
    assert axis(5, like) is axis(5, like)
    assert axis(5, like.bfloat16()).dtype is torch.bfloat16
    assert axis(5, torch.empty(0, device="meta")).is_meta


def test_coordinates_first_asked_for_in_inference_serve_training() -> None:
    kept_coordinates.cache_clear()
    layer, x = seeded(8), maps(1, 8, 6, 7)
    with torch.inference_mode():
        layer(x)
    copy.deepcopy(layer)(x).sum().backward()
    assert not any("coordinate" in name for name in layer.state_dict())


@pytest.mark.parametrize(
    ("heads", "remaining"), [(2, {"qkv", "mixed", "conv_p"}), (8, {"qkv", "fc", "dep_conv", "conv_p"})]
)
def test_fold(heads: int, remaining: set[str]) -> None:
    layer, x = seeded(8, 16, heads=heads, stride=2), maps(2, 8, 7, 9)
    expected, reach = layer(x), layer.explain(x)["reach"]
    for _ in range(2):
        fold_modules(nn.Sequential(layer))
        torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-12)
    assert {name for name, _ in layer.named_children()} == remaining
    torch.testing.assert_close(layer.explain(x)["reach"], reach)


def test_reach_is_the_mean_distance() -> None:
    layer = seeded(4, kernel_att=3, heads=2, dilation=2)
    for conv in (layer.conv1, layer.conv2, layer.conv_p):
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(conv.bias)
    reach = layer.explain(maps(1, 4, 5, 6))["reach"]
    assert reach.shape == (1, 2, 5, 6)
    assert reach.unique().tolist() == pytest.approx([(4 * 2 + 4 * 2 * 2**0.5) / 9])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kernel_att": 4}, "kernel_att is 4: expected an odd, positive number; try 5"),
        ({"kernel_att": -1}, "kernel_att is -1: expected an odd, positive number; try 1"),
        ({"kernel_conv": 2}, "kernel_conv is 2: expected an odd, positive number; try 3"),
        ({"heads": 3}, "heads is 3: does not divide 16 channels; try one of 1, 2, 4, 8, 16"),
        ({"heads": 0}, "heads is 0: expected a positive number"),
        ({"stride": 0}, "stride is 0: expected a positive number"),
        ({"dilation": 0}, "dilation is 0: expected a positive number"),
        (
            {"residual": True, "stride": 2},
            "residual: 16 channels in, 16 out at stride 2: it needs the same width and stride 1",
        ),
        (
            {"residual": True, "out_channels": 8},
            "residual: 16 channels in, 8 out at stride 1: it needs the same width and stride 1",
        ),
        (
            {"start": "identity"},
            "start is 'identity', but there is no residual connection to pass the input on: add residual: true",
        ),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelConfigError) as caught:
        ACmix(16, **settings)
    assert str(caught.value) == message


def test_channel_rule() -> None:
    rule = find_layer("ACmix").rule
    keywords: dict[str, Any] = {}
    assert rule.apply([24], keywords, Scale(width=0.5)) == 24
    assert keywords == {"in_channels": 24, "out_channels": 24}
    assert rule.apply([24], {"out_channels": 64}, Scale(width=0.5)) == 32
    with pytest.raises(ModelConfigError) as caught:
        rule.apply([24], {"out_channels": 0}, Scale())
    assert_says(caught.value, "out_channels is 0", "positive")


def test_in_a_network() -> None:
    rows = [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [8, 3, 2]], [-1, 1, "ACmix", [16, {"stride": 2}]]]
    rows += [
        [-1, 1, "ACmix", [{"kernel_att": 3, "residual": True}]],
        [-1, 1, "Conv", [16, 3, 2]],
        [-1, 1, "Conv", [16, 3, 2]],
    ]
    model = Model({"nc": 2, "backbone": rows, "head": [[[3, 4, 5], 1, "DDetect", ["nc"]]]}).eval()
    assert model.stride == [8, 16, 32]
    image = torch.rand(1, 3, 64, 96)
    torch.testing.assert_close(model.deploy()(image), model(image), rtol=1e-4, atol=1e-3)
