"""Batch normalisation in blocks: train on one value per channel, merge with the convolution after it."""

from torch import nn

from models.common import Conv, biased_conv
from models.parts import BatchNorm2d


def block_norm(channels: int) -> BatchNorm2d:
    """Return a batch normalisation with Conv's eps 1e-3 and momentum 0.03."""
    return BatchNorm2d(channels, eps=1e-3, momentum=0.03)


def allow_single_values(block: nn.Module) -> None:
    """Let every Conv of a block train on one value per channel (one image, 1 x 1 map) by running statistics."""
    for unit in block.modules():
        if isinstance(unit, Conv) and type(unit.bn) is nn.BatchNorm2d:
            unit.bn = BatchNorm2d(unit.bn.num_features, unit.bn.eps, unit.bn.momentum)


def fold_batchnorm_ahead(norm: nn.BatchNorm2d, conv: nn.Conv2d) -> nn.Conv2d:
    """Return one convolution that equals `conv(norm(x))` in evaluation; computed in float64.

    Args:
        conv: 1 x 1, without padding or groups: padded zeros are not normalised, so a padded one cannot be merged.
    """
    assert conv.kernel_size == (1, 1), "only 1 x 1 convolutions take the normalisation before them"
    assert conv.padding == (0, 0)
    assert conv.groups == 1
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.bias.double() - norm.running_mean.double() * scale
    weight = conv.weight.double()
    bias = weight.flatten(1) @ shift
    return biased_conv(conv, weight * scale[:, None, None], bias if conv.bias is None else bias + conv.bias.double())


def merge_pointwise(first: nn.Conv2d, second: nn.Conv2d) -> nn.Conv2d:
    """Merge two 1 x 1 convolutions into one; the first must keep its width. Computed in float64."""
    outer, inner = second.weight.double().flatten(1), first.weight.double().flatten(1)
    bias = outer.new_zeros(outer.shape[0]) if second.bias is None else second.bias.double()
    if first.bias is not None:
        bias = bias + outer @ first.bias.double()
    return biased_conv(second, (outer @ inner)[..., None, None], bias)
