"""MSCA, LSK and LSKA: reach by the answer to a single pixel, numbers by hand, and dense kernels for strips."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.attention.large_kernel import LSK, LSKA, MSCA, LargeKernelLayer
from tests.saying import assert_says
from utils.errors import ModelConfigError


def maps(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def without_biases(layer: nn.Module) -> Any:
    for name, parameter in layer.named_parameters():
        if name.endswith("bias"):
            parameter.data.zero_()
    return layer.double()


def of_ones(layer: LargeKernelLayer) -> Any:
    for parameter in layer.parameters():
        parameter.data.fill_(1)
    return without_biases(layer)


def pixel(size: int) -> Tensor:
    """A map of one channel, a one in the middle of zeros."""
    x = torch.zeros(1, 1, size, size, dtype=torch.float64)
    x[..., size // 2, size // 2] = 1
    return x


def test_msca_answers_to_a_pixel() -> None:
    row = of_ones(MSCA(1)).context(pixel(31))[0, 0, 15]
    # a box of 5 over one of k overlaps in min(5, (5 + k) / 2 - distance) columns, and in 5 rows
    assert row[15].item() == 1 + 3 * 25
    assert row[15 + 4].item() == 0 + 5 * 2 + 5 * 4 + 5 * 5
    assert row[15 + 7].item() == 5 * 1 + 5 * 5
    assert row[15 + 12].item() == 5 * 1
    assert row[15 + 13].item() == 0


def dense(strips: Any) -> Tensor:
    """Return the kernel (C, 1, k, k) that two strips make, zeros between dilated taps."""
    across, down = (strip.weight.detach() for strip in strips)
    kernel = torch.einsum("ci,cj->cij", down.flatten(1), across.flatten(1))
    step = strips[0].dilation[1]
    spread = kernel.new_zeros(len(kernel), 1, *((side - 1) * step + 1 for side in kernel.shape[1:]))
    spread[:, 0, ::step, ::step] = kernel
    return spread


def depthwise(x: Tensor, kernel: Tensor) -> Tensor:
    return functional.conv2d(x, kernel, padding=kernel.shape[-1] // 2, groups=x.shape[1])


@pytest.mark.parametrize("size_hw", [(12, 9), (3, 2), (1, 1)], ids=str)
def test_msca_by_dense_kernels(size_hw: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer, x = without_biases(MSCA(6, (3, 9))), maps(2, 6, *size_hw)
    near = depthwise(x, layer.near.weight)
    context = near + sum(depthwise(near, dense(strips)) for strips in layer.strips)
    torch.testing.assert_close(layer(x), x * functional.conv2d(context, layer.mix.weight), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("size_hw", [(12, 9), (3, 2), (1, 1)], ids=str)
@pytest.mark.parametrize("kernel_size", [7, 23])
def test_lska_by_dense_kernels(size_hw: tuple[int, int], kernel_size: int) -> None:
    torch.manual_seed(0)
    layer, x = without_biases(LSKA(6, kernel_size)), maps(2, 6, *size_hw)
    context = depthwise(depthwise(x, dense(layer.near)), dense(layer.far))
    torch.testing.assert_close(layer(x), x * functional.conv2d(context, layer.mix.weight), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("kernel_size", "near", "far", "dilation"),
    [(7, 3, 3, 2), (11, 3, 5, 2), (17, 5, 5, 3), (23, 5, 7, 3), (35, 5, 11, 3), (41, 5, 13, 3), (53, 5, 17, 3)],
)
def test_lska_reaches_as_far_as_it_says(kernel_size: int, near: int, far: int, dilation: int) -> None:
    layer = of_ones(LSKA(1, kernel_size))
    assert [conv.kernel_size for conv in (*layer.near, *layer.far)] == [(1, near), (near, 1), (1, far), (far, 1)]
    assert {conv.dilation for conv in layer.far} == {(dilation, dilation)}
    seen = layer.context(pixel(61))[0, 0, 30] > 0
    assert seen.nonzero().flatten().tolist() == list(range(30 - kernel_size // 2, 30 + kernel_size // 2 + 1))


def test_lsk_by_hand() -> None:
    layer = without_biases(LSK(2, kernel_size=3))
    middle = {
        layer.near: [[2.0], [2.0]],
        layer.far: [[3.0], [3.0]],
        layer.near_half: [[1.0, 1.0]],
        layer.far_half: [[1.0, -1.0]],
    }
    for conv, weight in (middle | {layer.select: [[1.0, 0.5], [0.0, -0.5]], layer.mix: [[1.0], [2.0]]}).items():
        conv.weight.data[:, :, conv.weight.shape[2] // 2, conv.weight.shape[3] // 2] = torch.tensor(
            weight, dtype=torch.float64
        )
    x = torch.tensor([1.0, 2.0], dtype=torch.float64).view(1, 2, 1, 1)
    # near 2, 4, far 6, 12; halves 6 and -6; mean 0 and maximum 6 select with 3 and -3
    context = 6 * sigmoid(3.0) - 6 * sigmoid(-3.0)
    assert layer(x).flatten().tolist() == pytest.approx([context, 2 * 2 * context], rel=1e-14)
    assert layer.explain(x)["selection"].flatten().tolist() == pytest.approx([sigmoid(3.0), sigmoid(-3.0)], rel=1e-14)


@pytest.mark.parametrize("channels", [6, 5, 1])
def test_lsk_against_a_plain_formulation(channels: int) -> None:
    torch.manual_seed(0)
    layer, x = LSK(channels).double(), maps(2, channels, 4, 5)
    near = functional.conv2d(x, layer.near.weight, layer.near.bias, padding=2, groups=channels)
    far = functional.conv2d(near, layer.far.weight, layer.far.bias, padding=9, dilation=3, groups=channels)
    halves = [
        functional.conv2d(maps, part.weight, part.bias)
        for maps, part in ((near, layer.near_half), (far, layer.far_half))
    ]
    both = torch.cat(halves, 1)
    pooled = torch.cat((both.sum(1, keepdim=True) / both.shape[1], both.max(1, keepdim=True)[0]), 1)
    weights = torch.sigmoid(functional.conv2d(pooled, layer.select.weight, layer.select.bias, padding=3)).unsqueeze(2)
    mixed = (torch.stack(halves, 1) * weights).sum(1)
    torch.testing.assert_close(
        layer(x), x * functional.conv2d(mixed, layer.mix.weight, layer.mix.bias), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("kind", [MSCA, LSK, LSKA])
def test_block_is_the_product_between_convolutions_plus_the_input(kind: Any) -> None:
    torch.manual_seed(0)
    layer, x = kind(6, block=True).double(), maps(2, 6, 5, 7)
    bare = kind(6).double()
    bare.load_state_dict({key: value for key, value in layer.state_dict().items() if not key.startswith("proj")})
    entered = functional.conv2d(x, layer.proj_in.weight, layer.proj_in.bias)
    entered = entered * 0.5 * (1 + torch.erf(entered / 2**0.5))
    expected = x + functional.conv2d(bare(entered), layer.proj_out.weight, layer.proj_out.bias)
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("block", [False, True])
@pytest.mark.parametrize("kind", [MSCA, LSK, LSKA])
def test_identity_start(kind: Any, block: bool) -> None:
    x = maps(2, 8, 5, 7).float()
    assert torch.equal(kind(8, block=block, start="identity")(x), x)
    assert not torch.allclose(kind(8, block=block)(x), x)


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        (MSCA, 64 * (25 + 2 * (7 + 11 + 21) + 7) + 64 * 65),
        (LSK, 64 * (25 + 1 + 49 + 1) + 2 * (64 * 32 + 32) + 2 * 2 * 49 + 2 + 32 * 64 + 64),
        (LSKA, 64 * (2 * 6 + 2 * 8) + 64 * 65),
    ],
)
def test_parameters(kind: Any, count: int) -> None:
    assert sum(parameter.numel() for parameter in kind(64).parameters()) == count
    assert sum(parameter.numel() for parameter in kind(64, block=True).parameters()) == count + 2 * 64 * 65


@pytest.mark.parametrize(
    ("kind", "settings", "facts"),
    [
        (MSCA, {"kernel_sizes": (7, 10)}, ("kernel_sizes is 10", "odd", "11")),
        (MSCA, {"kernel_sizes": ()}, ("kernel_sizes is []", "[7, 11, 21]")),
        (LSK, {"kernel_size": 2}, ("kernel_size is 2", "odd", "3")),
        (LSKA, {"kernel_size": 5}, ("kernel_size is 5", "7, 11, 17, 23, 29, 35, 41", "try 7")),
        (LSKA, {"kernel_size": 9}, ("kernel_size is 9", "try 11")),
        (LSKA, {"kernel_size": 13}, ("kernel_size is 13", "try 11")),
        (LSKA, {"kernel_size": 21}, ("kernel_size is 21", "try 23")),
        (LSKA, {"kernel_size": 33}, ("kernel_size is 33", "try 35")),
    ],
)
def test_settings_that_cannot_be(kind: Any, settings: dict[str, Any], facts: tuple[str, ...]) -> None:
    with pytest.raises(ModelConfigError) as caught:
        kind(8, **settings)
    assert_says(caught.value, *facts)
