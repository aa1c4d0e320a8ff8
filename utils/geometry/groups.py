"""Ranks within groups, such as the objects of an image or the objects that claim an anchor point."""

import torch
from torch import Tensor


def rank_in_group(group: Tensor) -> Tensor:
    """Count, for each row, the earlier rows of the same group.

    Args:
        group: (n,) int64, not negative, in any order.
    Returns:
        (n,) int64.
    """
    order = group.argsort(stable=True)
    sizes = torch.bincount(group)
    starts = sizes.cumsum(0) - sizes
    ranks = torch.empty_like(group)
    ranks[order] = torch.arange(len(group), device=group.device) - starts[group[order]]
    return ranks


def rank_by_value(group: Tensor, value: Tensor) -> Tensor:
    """Rank the rows of each group by descending value, from 0; ties go to the earlier row.

    Args:
        group: (n,) int64, not negative, in any order.
        value: (n,)
    Returns:
        (n,) int64; 0 is the best row of its group.
    """
    order = value.argsort(descending=True, stable=True)
    ranks = torch.empty_like(group)
    ranks[order] = rank_in_group(group[order])
    return ranks
