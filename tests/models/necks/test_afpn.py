"""Asymptotic pyramid: step by step in float64, its widths, and which rows it refuses."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from models.blocks.csp import Bottleneck
from models.necks.afpn import AFPN, StridedConv
from models.registry import Scale, find_layer
from models.yolo import Model
from tests.models.necks.neck_rows import network, pyramid, refusal
from tests.networks import randomise
from tests.saying import assert_says


@torch.no_grad()
@pytest.mark.parametrize("size", [8, 11, 1])
def test_strided_convolution_pads_at_the_end(size: int) -> None:
    conv = StridedConv(3, 2, 4).double().eval()
    x = torch.randn(1, 3, size, size, dtype=torch.float64)
    whole = -(-size // 4) * 4
    padded = torch.zeros(1, 3, whole, whole, dtype=torch.float64)
    padded[..., :size, :size] = x
    assert torch.equal(conv(x), conv.act(conv.bn(conv.conv(padded))))
    assert conv(x).shape == (1, 2, whole // 4, whole // 4)


@torch.no_grad()
def test_afpn_step_by_step() -> None:
    layer = randomise(AFPN([16, 24, 32], [8, 8, 12], reduction=4, repeats=1)).double().eval()
    maps = pyramid(16, 24, 32)
    fine, middle, coarse = (reduce(x) for reduce, x in zip(layer.reduce, maps, strict=True))

    def enlarge(x: Tensor, factor: int) -> Tensor:
        return functional.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)

    def finish(part: Any, given: list[Tensor]) -> Tensor:
        fusion, unit = part
        y = fusion.conv(fusion.fuse(given))
        return y + unit.cv2(unit.cv1(y))

    first, second = layer.steps
    to_fine, to_middle = (part[0].resize for part in first)
    fine, middle = (
        finish(first[0], [fine, enlarge(to_fine[1](middle), 2)]),
        finish(first[1], [to_middle[0](fine), middle]),
    )
    a, b, c = (part[0].resize for part in second)
    fused = [
        finish(second[0], [fine, enlarge(a[1](middle), 2), enlarge(a[2](coarse), 4)]),
        finish(second[1], [b[0](fine), middle, enlarge(b[2](coarse), 2)]),
        finish(second[2], [c[0](fine), c[1](middle), coarse]),
    ]
    for ours, expand, x in zip(layer(maps), layer.expand, fused, strict=True):
        torch.testing.assert_close(ours, expand(x))
    assert (c[0].conv.kernel_size, c[0].conv.stride) == ((4, 4), (4, 4))


def test_afpn_inner_widths_and_units() -> None:
    layer = AFPN([64, 128, 256], reduction=8)
    assert [part[0].conv.conv.out_channels for part in layer.steps[1]] == [8, 16, 32]
    assert [len(step) for step in layer.steps] == [2, 3]
    assert [type(unit) for unit in layer.steps[0][0]][1:] == [Bottleneck] * 4
    assert [unit.conv.out_channels for unit in layer.expand] == [64, 128, 256]
    chosen = AFPN([64, 128], repeats=1, unit="GatherExcite")
    assert type(chosen.steps[0][0][1]).__name__ == "GatherExcite"


def test_afpn_widths() -> None:
    rule = find_layer("AFPN").rule
    assert rule.apply([8, 16], {}, Scale(width=0.5)) == [8, 16]
    assert rule.apply([8, 16], {"out_channels": 64}, Scale(width=0.5)) == [32, 32]
    assert rule.apply([8, 16], {"out_channels": [64, 128]}, Scale(width=0.5)) == [32, 64]


def test_afpn_in_a_network() -> None:
    rows = [[2, 3, 4], 1, "AFPN", [16, 2, 1]], [5, 1, "Pick", [0]], [5, 1, "Pick", [1]], [5, 1, "Pick", [2]]
    model = Model(network(*rows) | {"head": [[[6, 7, 8], 1, "DDetect", ["nc"]]]})
    assert model.stride == [8, 16, 32]
    assert [row.out_channels for row in model.rows[5:9]] == [[16, 16, 16], 16, 16, 16]
    randomise(model.double().eval())
    images = torch.rand(1, 3, 64, 96, dtype=torch.float64)
    torch.testing.assert_close(model.deploy()(images), model(images))


@pytest.mark.parametrize(
    ("row", "facts"),
    [
        (
            [[2, 3, 4], 1, "AFPN", [{"reduction": 9}]],
            ("reduction is 9", "1 to 8"),
        ),
        (
            [[2, 3, 3], 1, "AFPN", [8, 1]],
            ("input 2 is 16 x 16", "32 x 32", "ascending stride"),
        ),
        ([4, 1, "AFPN", []], ("'from' names 1 layer", "several levels")),
        ([[2, 3, 4], 1, "AFPN", [[8, 8]]], ("out_channels is [8, 8]", "3 levels")),
        ([[2, 3, 4], 1, "AFPN", [0]], ("out_channels is 0", "1 to 16384")),
        ([[2, 3, 4], 1, "AFPN", [8, 1, -1]], ("repeats is -1", "0 to 48")),
        (
            [[2, 3, 4], 1, "AFPN", [8, 1, 1, {"unit": "ADow"}]],
            ("unit ADow at 8 channels", "Did you mean 'ADown'?"),
        ),
    ],
)
def test_afpn_refuses(row: list[Any], facts: tuple[str, ...]) -> None:
    assert_says(refusal(row), *facts)
