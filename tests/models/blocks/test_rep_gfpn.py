"""CSPStage: its formula, its parameters, and what folding leaves."""

import pytest
import torch
from torch import nn

from models.attention.gather_excite import GatherExcite
from models.blocks.mobile import MBConv
from models.blocks.rep_gfpn import CSPStage
from models.common import RepBottleneck
from models.deploy import fold_modules
from tests.networks import randomise
from tests.saying import assert_says
from utils.errors import ModelConfigError


def maps(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_formula() -> None:
    block, x = randomise(CSPStage(6, 9, repeats=2, expansion=0.5)).double().eval(), maps(2, 6, 5, 4)
    past, first = block.past(x), block.into(x)
    assert (past.shape[1], first.shape[1]) == (4, 5), "of an odd width the chain has the larger half"
    second = first + block.m[0].cv2(block.m[0].cv1(first))
    third = second + block.m[1].cv2(block.m[1].cv1(second))
    torch.testing.assert_close(block(x), block.fuse(torch.cat((past, second, third), 1)))
    assert block.m[0].cv1(first).shape[1] == 2


def test_parameters_as_trained_and_folded() -> None:
    block = CSPStage(16, 32, repeats=2)
    halves, rep, square = 2 * (16 * 16 + 32), (9 + 1) * 16 * 16 + 64, 9 * 16 * 16 + 32
    assert sum(p.numel() for p in block.parameters()) == halves + 2 * (rep + square) + (48 * 32 + 64)
    fold_modules(nn.Sequential(block))
    assert sum(p.numel() for p in block.parameters()) == 2 * (16 * 16 + 16) + 4 * (9 * 16 * 16 + 16) + 48 * 32 + 32
    assert not any(isinstance(part, nn.BatchNorm2d) for part in block.modules())


def test_other_units_and_attention() -> None:
    assert [type(unit) for unit in CSPStage(8, 16, repeats=2, unit=["MBConv", 5]).m] == [MBConv, MBConv]
    attended = CSPStage(8, 16, attention="GatherExcite")
    assert isinstance(attended.m[0], RepBottleneck)
    assert isinstance(attended.m[0].attention, GatherExcite)


def test_refused() -> None:
    with pytest.raises(ModelConfigError) as caught:
        CSPStage(8, 1)
    assert_says(caught.value, "half of out_channels is 0", "positive")
    with pytest.raises(ModelConfigError) as caught:
        CSPStage(8, 8, unit="MBConv", attention="GatherExcite")
    assert_says(caught.value, "unit 'MBConv'", "attention 'GatherExcite'")
