"""Weighted sum: by hand, at its edges, and which rows it refuses."""

from typing import Any

import pytest
import torch

from models.necks.bifpn import BiFPNAdd
from models.parameters import DECAYED, OTHER, parameter_groups
from models.yolo import Model
from tests.models.necks.neck_rows import network, refusal


def test_weighted_sum_by_hand() -> None:
    layer = BiFPNAdd(3, epsilon=0.5)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, -2.0, 2.5]))
    maps = [torch.full((1, 1, 1, 2), value) for value in (4.0, 100.0, 8.0)]
    assert layer(maps).flatten().tolist() == [6.0, 6.0], "(1 * 4 + 0 * 100 + 2.5 * 8) / (1 + 0 + 2.5 + 0.5)"


def test_weighted_sum_starts_as_the_mean() -> None:
    maps = [torch.full((1, 2, 1, 1), value) for value in (3.0, 5.0)]
    assert BiFPNAdd(2)(maps).flatten().tolist() == pytest.approx([8 / 2.0001] * 2)


def test_no_weight_left_gives_zeros() -> None:
    layer = BiFPNAdd(2).half()
    with torch.no_grad():
        layer.weight.fill_(-1)
    assert layer([torch.ones(1, 1, 2, 2, dtype=torch.half)] * 2).abs().max() == 0


def test_weights_of_the_sum_do_not_decay() -> None:
    groups = parameter_groups(BiFPNAdd(2))
    assert (len(groups[DECAYED]), len(groups[OTHER])) == (0, 1)


def test_autocast_keeps_half_precision() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert BiFPNAdd(2)([torch.ones(1, 2, 3, 3, dtype=torch.bfloat16)] * 2).dtype is torch.bfloat16


def test_weighted_sum_as_a_row() -> None:
    model = Model(network([4, 1, "nn.Upsample", [None, 2, "nearest"]], [[-1, 3, 3], 1, "BiFPNAdd", []]))
    assert model.model[6].weight.shape == (3,)
    assert model.rows[6].out_channels == 8


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([-1, 1, "BiFPNAdd", []], "'from' names 1 layer: expected a list of several, such as [-1, 6]"),
        (
            [[5, 4], 1, "BiFPNAdd", []],
            "the inputs have 16, 8 channels: expected one width; put a Conv row before those that differ",
        ),
        (
            [[3, 4], 1, "BiFPNAdd", []],
            "does not fit its input for a 256 x 256 image: "
            "layer 3 (Conv) gives 8 x 16 x 16, layer 4 (Conv) gives 8 x 8 x 8",
        ),
    ],
)
def test_weighted_sum_refuses(row: list[Any], message: str) -> None:
    assert message in refusal([4, 1, "Conv", [16]], row)
