"""Adaptively spatial fusion against plain formulations in float64, and which rows it refuses."""

from typing import Any

import pytest
import torch
from torch.nn import functional

from models.necks.asff import ASFF, AdaptiveSum
from models.registry import Scale, find_layer
from tests.models.necks.neck_rows import pyramid, refusal
from tests.networks import randomise
from tests.saying import assert_says


@torch.no_grad()
def test_shares_of_an_adaptive_sum() -> None:
    layer = randomise(AdaptiveSum(3, 4, 5)).double().eval()
    maps = [
        x[:, :4]
        for x in (torch.randn(2, 12, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3).split(
            4, 1
        )
    ]
    expected = torch.zeros(2, 4, 3, 5, dtype=torch.float64)
    shares = layer.shares(maps)
    for b in range(2):
        for y in range(3):
            for x in range(5):
                cells = [m[b : b + 1, :, y : y + 1, x : x + 1] for m in maps]
                features = torch.cat(
                    [unit(cell) for unit, cell in zip(layer.compress, cells, strict=True)], 1
                ).flatten()
                logits = layer.weigh.weight.flatten(1) @ features + layer.weigh.bias
                exponentials = (logits - logits.max()).exp()
                share = exponentials / exponentials.sum()
                torch.testing.assert_close(shares[b, :, y, x], share)
                expected[b, :, y, x] = sum(part * cell.flatten() for part, cell in zip(share, cells, strict=True))
    torch.testing.assert_close(layer(maps), expected)


@torch.no_grad()
@pytest.mark.parametrize("size", [8, 9, 5, 1])
def test_levels_resized_to_the_middle_one(size: int) -> None:
    layer = randomise(ASFF(1, [4, 6, 6])).double().eval()
    fine, own, coarse = maps = pyramid(4, 6, 6, size=size)
    shrunk, kept, enlarged = layer.resized(maps)
    torch.testing.assert_close(shrunk, layer.resize[0][0](fine), msg="one 3 x 3 convolution of stride 2")
    assert layer.resize[0][0].conv.stride == (2, 2)
    assert torch.equal(kept, own)
    side = own.shape[-1]
    for y in range(side):
        for x in range(side):
            scale = coarse.shape[-1] / side
            assert torch.equal(enlarged[..., y, x], coarse[..., int(y * scale), int(x * scale)])
    torch.testing.assert_close(layer(maps), layer.expand(layer.fuse([shrunk, kept, enlarged])))


@torch.no_grad()
def test_levels_resized_to_the_ends() -> None:
    coarsest = randomise(ASFF(2, [4, 6, 8])).double().eval()
    maps = pyramid(4, 6, 8)
    shrunk = coarsest.resized(maps)[0]
    conv = coarsest.resize[0][1]
    torch.testing.assert_close(shrunk, conv(functional.max_pool2d(maps[0], 3, 2, 1)))
    assert [tuple(x.shape) for x in coarsest.resized(maps)] == [(1, 8, 2, 2)] * 3
    finest = randomise(ASFF(0, [4, 6, 8], out_channels=16)).double().eval()
    assert [tuple(x.shape) for x in finest.resized(maps)] == [(1, 4, 8, 8)] * 3
    assert finest(maps).shape == (1, 16, 8, 8)


def test_asff_shares_are_explained() -> None:
    shares = ASFF(0, [4, 4]).eval().double().explain(pyramid(4, 4))["shares"]
    assert shares.shape == (1, 2, 8, 8)
    torch.testing.assert_close(shares.sum(1), torch.ones(1, 8, 8, dtype=torch.float64))


def test_asff_widths() -> None:
    rule = find_layer("ASFF").rule
    assert rule.apply([8, 16, 24], {"level": 2}, Scale(width=0.5)) == 24, "that of its level, which is scaled already"
    assert rule.apply([8, 16, 24], {"level": 2, "out_channels": 32}, Scale(width=0.5)) == 16


@pytest.mark.parametrize(
    ("row", "facts"),
    [
        ([[2, 3, 4], 1, "ASFF", [3]], ("level is 3", "3 inputs")),
        ([[2, 3, 4], 1, "ASFF", [-1]], ("level is -1", "3 inputs")),
        ([4, 1, "ASFF", [0]], ("'from' names 1 layer", "[15, 18, 21]")),
        ([[2, 3, 4], 1, "ASFF", [0, 0]], ("out_channels is 0", "1 to 16384")),
        ([[2, 3, 4], 1, "ASFF", [0, {"weight_channels": 0}]], ("weight_channels is 0", "1 to 16384")),
        (
            [[4, 3, 2], 1, "ASFF", [0]],
            ("input 1 is 16 x 16", "8 x 8", "ascending stride"),
        ),
    ],
)
def test_asff_refuses(row: list[Any], facts: tuple[str, ...]) -> None:
    assert_says(refusal(row), *facts)
