"""Picking one map of a list; the other connections are with the blocks that they serve, in test_common.py."""

from typing import Any

import pytest
import torch

from models.necks.connections import Pick
from models.yolo import Model
from tests.networks import tiny_config
from utils.errors import ModelConfigError


def network(*rows: list[Any]) -> dict[str, Any]:
    config = tiny_config()
    return config | {"backbone": [*config["backbone"], *rows]}


def test_pick_gives_the_map_itself() -> None:
    maps = tuple(torch.full((1, 2, 3, 3), float(value)) for value in range(3))
    assert Pick(2)(maps) is maps[2]


def test_pick_of_a_row() -> None:
    model = Model(network([4, 1, "CBLinear", [[4, 16]], "split"], ["split", 1, "Pick", [1]], [-1, 1, "Conv", [8]]))
    assert [row.out_channels for row in model.rows[5:8]] == [[4, 16], 16, 8]
    assert model.model[7].conv.in_channels == 16


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [[4, 1, "CBLinear", [[4, 16]]], [-1, 1, "Pick", [2]]],
            "index is 2: the list has 2 maps, 0 to 1, with [4, 16] channels",
        ),
        ([[4, 1, "CBLinear", [[4, 16]]], [-1, 1, "Pick", [-1]]], "index is -1: the list has 2 maps"),
        (
            [[4, 1, "Pick", [0]]],
            "'from' names no list of maps: Pick takes one map of the list that CBLinear, AFPN or TimmBackbone gives",
        ),
        ([[4, 1, "CBLinear", [[4, 16]]], [[5, 5], 1, "Pick", [0]]], "'from' names no list of maps"),
        (
            [[4, 1, "CBLinear", [[4, 16]]], [[5, 4], 1, "Concat", []]],
            "the input is a list of 2 maps: this layer takes one: pick one by a row",
        ),
    ],
)
def test_pick_refuses(rows: list[list[Any]], message: str) -> None:
    with pytest.raises(ModelConfigError) as caught:
        Model(network(*rows))
    assert message in str(caught.value)
