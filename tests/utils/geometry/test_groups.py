"""Ranks within groups (utils/geometry/groups.py)."""

import torch

from utils.geometry.groups import rank_by_value, rank_in_group


def test_rank_in_group_counts_earlier_rows() -> None:
    assert rank_in_group(torch.tensor([2, 0, 2, 2, 0])).tolist() == [0, 0, 1, 2, 1]
    assert rank_in_group(torch.zeros(0, dtype=torch.int64)).tolist() == []


def test_rank_by_value_is_descending_and_ties_go_to_the_earlier_row() -> None:
    group = torch.tensor([0, 5, 0, 2, 0, 2])
    value = torch.tensor([1.0, 2.0, 3.0, 0.0, 3.0, 7.0])
    assert rank_by_value(group, value).tolist() == [2, 0, 0, 1, 1, 0]
    assert rank_by_value(group[:0], value[:0]).tolist() == []
