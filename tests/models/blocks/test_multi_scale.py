"""MSBlock, DWR and PPA: formulas against plain ones, parameters by hand, and the pitfalls of their originals."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.blocks.multi_scale import DWR, PPA, MSBlock, PatchAttention
from models.common import set_activation
from models.deploy import fold_modules
from tests.networks import randomise
from tests.saying import assert_says
from utils.errors import ModelConfigError


def maps(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def prepared(module: nn.Module) -> nn.Module:
    return randomise(module).double().eval()


def test_msblock_formula() -> None:
    torch.manual_seed(0)
    block, x = prepared(MSBlock(4, 6, (1, 3, 5), depth=2)), maps(2, 4, 7, 5)
    first, second, third = block.widen(x)[:, :4], block.widen(x)[:, 4:8], block.widen(x)[:, 8:]
    second = block.branches[1](first + second)
    third = block.branches[2](second + third)
    torch.testing.assert_close(block(x), block.fuse(torch.cat((first, second, third), 1)))
    inside = block.branches[2][1]
    assert [tuple(conv.conv.weight.shape) for conv in inside] == [(8, 4, 1, 1), (8, 1, 5, 5), (4, 8, 1, 1)]
    assert all(isinstance(conv.act, nn.SiLU) for conv in inside)


def test_msblock_parameters() -> None:
    # 16 -> 48; a branch of kernel k: three times 16 -> 32, k x k for each of 32, 32 -> 16; 48 -> 24; each normalised
    branch = sum(3 * ((16 * 32 + 64) + (k * k * 32 + 64) + (32 * 16 + 32)) for k in (3, 9))
    assert count(MSBlock(16, 24, (1, 3, 9))) == (16 * 48 + 96) + branch + (48 * 24 + 48)
    assert isinstance(MSBlock(8, 8).branches[0], nn.Identity), "a kernel of 1 is no convolution"


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        ((8, 8, (1, 3, 4)), ("kernel_sizes is 4", "odd")),
        ((8, 8, ()), ("kernel_sizes is empty", "[1, 3, 3]")),
        ((8, 8, (1, 3), 1.4), ("widening 1.4", "11 channels of 8", "2 branches", "widening 2", "kernel_sizes")),
        ((8, 8, (1, 3, 3, 3, 3)), ("widening 3.0", "24 channels of 8", "5 branches", "widening 5")),
        ((8, 8, (1, 3, 3), 3.0, 2.0, 0), ("depth is 0", "positive")),
    ],
)
def test_msblock_refuses(arguments: tuple[Any, ...], facts: tuple[str, ...]) -> None:
    with pytest.raises(ModelConfigError) as caught:
        MSBlock(*arguments)
    assert_says(caught.value, *facts)


@pytest.mark.parametrize("depthwise", [True, False])
def test_dwr_formula(depthwise: bool) -> None:
    torch.manual_seed(0)
    block, x = prepared(DWR(8, depthwise=depthwise)), maps(2, 8, 9, 7)
    region = functional.relu(block.narrow.bn(functional.conv2d(x, block.narrow.conv.weight, padding=1)))
    groups = 4 if depthwise else 1
    seen = [
        functional.conv2d(region, conv.weight, None, 1, d, d, groups)
        for conv, d in zip(block.around, (1, 3, 5), strict=True)
    ]
    assert [y.shape[1] for y in seen] == [8, 4, 4]
    y = functional.conv2d(block.norm(torch.cat(seen, 1)), block.fuse.weight, block.fuse.bias)
    torch.testing.assert_close(block(x), x + y, rtol=1e-12, atol=1e-12)


def test_dwr_parameters() -> None:
    ends = (9 * 16 * 8 + 16) + 64 + (32 * 16 + 16)
    assert count(DWR(16)) == ends + 9 * 32
    assert count(DWR(16, depthwise=False)) == ends + 9 * 32 * 8, (
        "full convolutions have half the width times the weights"
    )


def test_dwr_folds_into_its_last_convolution() -> None:
    torch.manual_seed(0)
    block, x = prepared(DWR(8)), maps(2, 8, 5, 4)
    expected = block(x)
    for _ in range(2):
        fold_modules(nn.Sequential(block))
    assert not any(isinstance(part, nn.BatchNorm2d) for part in block.modules())
    torch.testing.assert_close(block(x), expected, rtol=1e-11, atol=1e-12)


def test_dwr_refuses() -> None:
    with pytest.raises(ModelConfigError) as caught:
        DWR(7)
    assert_says(caught.value, "the width is 7", "even", "8")
    with pytest.raises(ModelConfigError) as caught:
        DWR(8, activation="Rely")
    assert_says(caught.value, "activation 'Rely'", "SiLU, ReLU")


@pytest.mark.parametrize("kind", [DWR, PPA])
def test_activation_is_its_own_or_the_networks(kind: type[nn.Module]) -> None:
    def inner(block: nn.Module) -> set[type]:
        set_activation(block, "Mish")
        return {type(part) for part in block.modules()} & {nn.ReLU, nn.Mish, nn.SiLU}

    assert inner(kind(8, 8)) == {nn.ReLU}
    assert inner(kind(8, 8, activation="SiLU")) == {nn.SiLU}
    assert inner(kind(8, 8, activation=None)) - {nn.ReLU} == {nn.Mish}


def plain_patch_attention(block: PatchAttention, x: Tensor) -> Tensor:
    """Patch by patch, as the paper says it, on a map that the patches tile; the projections after the interpolation."""
    size, (batch, channels, height, width) = block.patch_size, x.shape
    tokens = torch.empty(batch, channels, height // size, width // size, dtype=x.dtype)
    for image in range(batch):
        for row in range(height // size):
            for column in range(width // size):
                patch = x[image, :, row * size : (row + 1) * size, column * size : (column + 1) * size]
                hidden = block.fc1.weight.flatten(1) @ patch.mean(0).flatten() + block.fc1.bias
                hidden = functional.layer_norm(hidden, hidden.shape, block.norm.weight, block.norm.bias)
                token = block.fc2.weight.flatten(1) @ hidden + block.fc2.bias
                token = token * token.softmax(0)
                alike = functional.cosine_similarity(token, block.prompt, dim=0).clamp(0, 1)
                tokens[image, :, row, column] = block.transform.weight.flatten(1) @ (token * alike)
    return functional.conv2d(
        functional.interpolate(tokens, (height, width), mode="bilinear"), block.proj.weight, block.proj.bias
    )


@pytest.mark.parametrize(("patch_size", "size_hw"), [(2, (6, 4)), (4, (8, 4)), (3, (3, 9))])
def test_patch_attention_against_patch_by_patch(patch_size: int, size_hw: tuple[int, int]) -> None:
    torch.manual_seed(0)
    block = PatchAttention(6, patch_size).double()
    block.transform.weight.data += 0.1 * torch.randn(6, 6, 1, 1)
    block.prompt.data = torch.randn(6, dtype=torch.float64)
    x = maps(2, 6, *size_hw)
    expected = plain_patch_attention(block, x)
    torch.testing.assert_close(block(x), expected, rtol=1e-10, atol=1e-12)
    for _ in range(2):
        block.fold()
    torch.testing.assert_close(block(x), expected, rtol=1e-10, atol=1e-12)


def test_patch_mean_keeps_channels_and_cells_apart() -> None:
    """What each linear map sees: the mean over channels of one cell, in the order of the cells."""
    block = PatchAttention(3, 2)
    seen: list[Tensor] = []
    block.fc1.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    block(torch.arange(12.0).view(1, 3, 2, 2))  # cell k of channel c holds 4c + k
    assert seen[0].flatten().tolist() == [4, 5, 6, 7]


def test_maps_that_patches_do_not_tile_are_filled_up_by_zeros() -> None:
    torch.manual_seed(0)
    block, x = PatchAttention(6, 4).double(), maps(1, 6, 5, 3)
    whole = block(functional.pad(x, (0, 1, 0, 3)))
    torch.testing.assert_close(block(x), whole[:, :, :5, :3], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("seed", range(10))
def test_every_start_reaches_the_learned_direction(seed: int) -> None:
    torch.manual_seed(seed)
    block = PatchAttention(16, 2)
    block(torch.randn(1, 16, 8, 8)).sum().backward()
    assert block.prompt.grad.abs().sum() > 0


def test_ppa_formula() -> None:
    torch.manual_seed(0)
    block, x = prepared(PPA(4, 6)), maps(2, 4, 8, 12)
    skipped = block.skip.bn(functional.conv2d(x, block.skip.conv.weight))
    first = block.chain[0](x)
    second = block.chain[1](first)
    total = first + second + block.chain[2](second) + skipped + block.patches[0](skipped) + block.patches[1](skipped)
    assert [branch.patch_size for branch in block.patches] == [2, 4]
    means = total.mean((2, 3))
    across = block.gate[0].conv.weight.flatten()  # channels' neighbours: 6 channels make a kernel of 1
    assert across.numel() == 1
    total = total * (means * across).sigmoid()[..., None, None]
    both = torch.stack((total.mean(1), total.amax(1)), 1)
    total = total * functional.conv2d(both, block.gate[1].conv.weight, padding=3).sigmoid()
    torch.testing.assert_close(block(x), functional.relu(block.norm(total)), rtol=1e-12, atol=1e-12)


def test_ppa_parameters() -> None:
    def attention(
        size: int,
    ) -> int:  # two linear maps around a normalisation of 8, a direction, a square and a biased square
        return (size * size * 8 + 8) + 16 + (8 * 16 + 16) + 16 + 256 + (256 + 16)

    chain = (9 * 8 * 16 + 32) + 2 * (9 * 16 * 16 + 32)
    assert count(PPA(8, 16)) == (8 * 16 + 32) + chain + attention(2) + attention(4) + 3 + 2 * 49 + 32


def test_ppa_drops_channels_only_in_training() -> None:
    torch.manual_seed(0)
    block, x = PPA(8, 16, drop=0.5), torch.randn(1, 8, 8, 8)
    assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))


def test_ppa_refuses() -> None:
    with pytest.raises(ModelConfigError) as caught:
        PPA(8, 8, (2, 0))
    assert_says(caught.value, "patch_sizes is 0", "positive")
