"""Normalisation in blocks: merged by hand into the convolution behind it, and on one value per channel."""

import pytest
import torch
from torch import nn

from models.blocks.normalisation import allow_single_values, fold_batchnorm_ahead, merge_pointwise
from models.common import Conv, RepConv
from models.parts import BatchNorm2d


def test_fold_batchnorm_ahead_by_hand() -> None:
    norm, conv = nn.BatchNorm2d(2, eps=0.0).eval(), nn.Conv2d(2, 1, 1)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, 3.0]))
        norm.bias.copy_(torch.tensor([1.0, -1.0]))
        norm.running_mean.copy_(torch.tensor([4.0, 6.0]))
        norm.running_var.copy_(torch.tensor([16.0, 9.0]))
        conv.weight.copy_(torch.tensor([10.0, 100.0]).view(1, 2, 1, 1))
        conv.bias.fill_(7)
    folded = fold_batchnorm_ahead(norm, conv)
    assert folded.weight.flatten().tolist() == [10 * 2 / 4, 100 * 3 / 3]
    assert folded.bias.item() == 7 + 10 * (1 - 4 * 2 / 4) + 100 * (-1 - 6)


def test_a_padded_convolution_does_not_take_it() -> None:
    with pytest.raises(AssertionError, match="only 1 x 1"):
        fold_batchnorm_ahead(nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3, padding=1))


def test_merge_pointwise_by_hand() -> None:
    first, second = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)
    for conv, weight, bias in ((first, 2.0, 3.0), (second, 5.0, 7.0)):
        conv.weight.data.fill_(weight)
        conv.bias.data.fill_(bias)
    merged = merge_pointwise(first, second)
    assert (merged.weight.item(), merged.bias.item()) == (10, 5 * 3 + 7)


def test_single_values_train_and_names_stay() -> None:
    block = nn.Sequential(RepConv(2, 4), Conv(4, 2))
    names = list(block.state_dict())
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        block.train()(torch.ones(1, 2, 1, 1))
    allow_single_values(block)
    assert block(torch.ones(1, 2, 1, 1)).isfinite().all()
    assert list(block.state_dict()) == names
    norm = block[1].bn
    assert isinstance(norm, BatchNorm2d)
    assert (norm.eps, norm.momentum) == (1e-3, 0.03)
