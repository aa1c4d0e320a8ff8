"""Ranges of arguments: rows of the literature carry the width first, which our layers get from the program."""

import math
from typing import Annotated, Any

import pytest
import torch
from torch import nn

from models.building import build_layer
from models.limits import SHARE, SMALL, UP_TO_CHANNELS, Limits
from models.registry import Scale, find_layer, layer, registered_layers, same, temporary_layers
from models.yolo import Model
from tests.networks import tiny_config
from tests.saying import assert_says
from utils.errors import ModelConfigError

WIDTHS = (64, 128, 256, 512, 1024)
HIDDEN_WIDTH_FIRST = {"AIFI"}
"""Layers whose first argument is a width, but not that of the output."""


def refused(name: str, arguments: list[Any], inputs: list[Any], scale: Scale | None = None) -> str:
    """What building a layer says that refuses its arguments."""
    with torch.device("meta"), pytest.raises(ModelConfigError) as caught:
        build_layer(name, arguments, inputs, scale or Scale())
    return str(caught.value)


def layers_without_width() -> list[str]:
    Model(tiny_config())
    return [name for name, entry in registered_layers().items() if not entry.takes_width()]


@pytest.mark.parametrize("width", WIDTHS)
def test_no_layer_takes_the_width_of_its_input_for_another_argument(width: int) -> None:
    names = layers_without_width()
    assert len(names) > 25
    for name in names:
        inputs = [width] * len(find_layer(name).example_inputs)
        assert_says(refused(name, [width], inputs), str(width), "leave it out", name)


def test_every_layer_that_takes_a_width_first_says_so_in_its_signature() -> None:
    names = [name for name, entry in registered_layers().items() if entry.takes_width() and not entry.rule.branches]
    firsts = {name: next(iter(find_layer(name).parameters())) for name in names}
    assert {name for name, first in firsts.items() if first != "out_channels"} == HIDDEN_WIDTH_FIRST
    assert firsts["AIFI"] == "ffn_channels"


@pytest.mark.parametrize(
    ("name", "arguments", "inputs", "facts"),
    [
        ("CBAM", [1024], [1024], ("1024", "write []")),
        ("CBAM", [1024, 7], [1024], ("1024", "write [7]")),
        ("CBAM", [1024, 16, 7], [1024], ("1024", "write [16, 7]")),
        ("CoordAtt", [256, 32], [256], ("256", "write [32]", "{reduction: 256}")),
        ("SE", [128, {"start": "identity"}], [128], ("128", "write [{start: identity}]")),
        ("EMAttention", [256], [256], ("256", "{groups: 256}")),
        ("SimAM", [512, "1e-4"], [512], ("512", "write ['1e-4']")),
        ("BiFPNAdd", [256, 256], [256, 256], ("256", "write []")),
        ("BiFPNAdd", [512], [256, 256], ("512", "write []")),
        ("CARAFE", [256, 3, 2], [256], ("256", "write [3, 2]")),
        ("Silence", [64], [64], ("64", "write []")),
        ("C2f", [256, {"attention": ["SE", 128]}], [64], ("attention SE at 128 channels", "128")),
        ("Residual", [["CBAM", 256]], [256], ("layer CBAM", "256")),
    ],
)
def test_a_leading_width_is_answered_by_the_row_without_it(
    name: str, arguments: list[Any], inputs: list[int], facts: tuple[str, ...]
) -> None:
    assert_says(refused(name, arguments, inputs), *facts, "leave it out")


def test_a_leading_width_is_known_before_the_multiple() -> None:
    """A published row says 1024, which at this scale is 256."""
    assert_says(refused("CBAM", [1024], [256], Scale(width=0.25)), "1024", "write []")
    assert_says(refused("SE", [1024], [128], Scale(width=0.25, max_channels=512)), "1024", "write []")


def test_a_network_names_the_row() -> None:
    config = tiny_config(width=64)
    config["backbone"].append([-1, 1, "CBAM", [64, 7]])
    with pytest.raises(ModelConfigError) as caught:
        Model(config)
    assert_says(caught.value, "backbone[5] (layer 5)", "[-1, 1, CBAM, [64, 7]]", "write [7]")


@pytest.mark.parametrize(
    ("name", "arguments", "channels", "facts"),
    [
        ("CBAM", [1024], 256, ("reduction is 1024", "1 to 256", "width")),
        ("SE", [128], 64, ("reduction is 128", "1 to 64")),
        ("SE", [{"reduction": 65}], 64, ("reduction is 65", "1 to 64")),
        ("CoordAtt", [0], 64, ("reduction is 0", "1 to 64")),
        ("SimAM", [512], 256, ("regularizer is 512", "width")),
        ("SimAM", [1.5], 64, ("regularizer is 1.5",)),
        ("SimAM", [math.nan], 64, ("regularizer is nan",)),
        ("SimAM", [math.inf], 64, ("regularizer is inf",)),
        ("SimAM", [{"slices": 64}], 64, ("slices is 64", "1 to 32")),
        ("MLCA", [1024], 256, ("cells is 1024", "1 to 32", "width")),
        ("MLCA", [5, 2.0], 64, ("local_weight is 2.0", "0 to 1")),
        ("MLCA", [{"gamma": 0}], 64, ("gamma is 0",)),
        ("ECA", [65], 128, ("kernel_size is 65", "1 to 63")),
        ("EMAttention", [128], 64, ("groups is 128", "1 to 64")),
        ("GatherExcite", [128], 64, ("extent is 128", "0 to 64")),
        ("GatherExcite", [{"mlp_ratio": 16}], 64, ("mlp_ratio is 16",)),
        ("SCSA", [{"kernel_sizes": [3, 99]}], 64, ("kernel_sizes is (3, 99)", "1 to 63")),
        ("FocalModulationBlock", [{"drop_path": 1.0}], 64, ("drop_path is 1.0", "less than 1")),
        ("AIFI", [256, 8, 1], 64, ("drop is 1", "less than 1")),
        ("Conv", [64, 64, 3, 2], 64, ("kernel_size is 64", "1 to 31")),
        ("Conv", [64, 3, 64], 32, ("stride is 64", "1 to 32")),
        ("Conv", [64, 3, 1, None, 512], 256, ("groups is 512", "1 to 256")),
        ("RepNCSP", [64, 64], 64, ("repeats is 64", "0 to 48")),
        ("SPPF", [64, 64], 64, ("kernel_size is 64", "1 to 31")),
        ("MBConv", [64, 3, 64], 64, ("expansion is 64",)),
        ("CARAFE", [512], 64, ("scale is 512", "1 to 16")),
        ("DySample", [2, "lp", 128], 64, ("groups is 128", "1 to 64")),
        ("ARelu", [5], 64, ("alpha is 5", "0.01 to 0.99")),
    ],
)
def test_a_value_out_of_range_is_refused(
    name: str, arguments: list[Any], channels: int, facts: tuple[str, ...]
) -> None:
    assert_says(refused(name, arguments, [channels]), *facts)


@pytest.mark.parametrize(
    ("name", "arguments", "channels"),
    [
        ("CBAM", [16], 16),
        ("CBAM", [16], 8),
        ("SE", [], 8),
        ("CoordAtt", [32], 32),
        ("SE", [8], 8),
        ("SE", [{"reduction": 64}], 64),
        ("EMAttention", [{"groups": 64}], 64),
        ("AIFI", [256], 256),
        ("LSKA", [35], 16),
        ("MLCA", [7], 64),
        ("SimAM", [1.0e-4, 2], 64),
    ],
)
def test_a_value_in_range_is_not_a_width(name: str, arguments: list[Any], channels: int) -> None:
    with torch.device("meta"):
        build_layer(name, arguments, [channels], Scale(width=0.25))
        build_layer(name, arguments, [channels], Scale())


def test_more_cells_than_the_map_has() -> None:
    for row, facts in (
        ([-1, 1, "MLCA", [{"cells": 32}]], ("cells is 32", "4 x 4")),
        ([-1, 1, "SimAM", [1.0e-4, 32]], ("slices is 32", "4 x 4")),
        ([-1, 1, "GatherExcite", [64]], ("extent is 64", "4 x 4")),
        ([-1, 1, "C2f", [8, {"attention": ["MLCA", {"cells": 20}]}]], ("cells is 20", "4 x 4")),
    ):
        config = tiny_config()
        config["backbone"] += [[-1, 1, "Conv", [8, 3, 2]], row]
        with pytest.raises(ModelConfigError) as caught:
            Model(config)
        assert_says(caught.value, "backbone[6] (layer 6)", *facts)


def test_every_numeric_argument_has_a_range() -> None:
    """Except heads, torch's layers, and arguments that have a check of their own."""
    own = {"level", "index", "dimension", "out_channels", "out_indices"}
    without = [
        f"{name}.{key}"
        for name, entry in registered_layers().items()
        for key, hint in entry.hints().items()
        if key in entry.parameters() and key not in own and not name.startswith("nn.") and not entry.rule.branches
        if any(word in str(hint) for word in ("int", "float")) and key not in entry.limits()
    ]
    assert not without


def test_limits() -> None:
    assert SHARE.allow(0, None)
    assert SHARE.allow(1, None)
    assert not SHARE.allow(1.01, None)
    assert not SMALL.allow(0, None)
    assert SMALL.describe(None) == "more than 0 to 1"
    assert UP_TO_CHANNELS.allow("global", 8)
    assert UP_TO_CHANNELS.allow(None, 8)
    assert not UP_TO_CHANNELS.allow([4, 9], 8)
    assert UP_TO_CHANNELS.describe(8) == "1 to 8, the channels of its input"
    assert UP_TO_CHANNELS.describe(None) == "1 to 4096"


def test_a_plug_in_declares_its_range() -> None:
    with temporary_layers():

        @layer(same)
        class Gate(nn.Module):
            def __init__(self, channels: int, strength: Annotated[float, Limits(0, 2)] = 1.0) -> None:
                super().__init__()

        @layer(same)
        class Squeeze(nn.Module):
            def __init__(self, channels: int, hidden_channels: int = 8) -> None:
                super().__init__()

        assert find_layer("Gate").signature() == "Gate(strength: float = 1.0)"
        assert_says(refused("Gate", [3], [16]), "strength is 3", "0 to 2")
        assert_says(refused("Gate", [64], [64]), "64", "leave it out")
        build_layer("Squeeze", [64], [64], Scale())


@pytest.mark.parametrize(
    ("name", "arguments", "facts"),
    [
        ("SimAM", ["1e-4"], ("'1e-4'", "text", "0.0001")),
        ("SimAM", ["1e-5"], ("'1e-5'", "text", "1.0e-5")),
        ("SimAM", [{"regularizer": "1E-7"}], ("'1E-7'", "text", "1.0e-7")),
        ("SE", ["16"], ("'16'", "text", "16")),
        ("AIFI", [256, 8, 0.0, "1e4"], ("'1e4'", "text", "10000")),
        ("Detect", ["nc", "anchors"], ("'anchors'", "no anchors", "[nc]")),
        ("DDetect", ["nc", [[10, 13, 16, 30], [33, 23, 30, 61]]], ("no anchors", "[nc]")),
        ("Segment", ["nc", 32, 256, "anchors"], ("'anchors'", "no anchors", "[nc]")),
        ("Detect", ["nc", [256, 512, 1024]], ("[256, 512, 1024]", "the program gives", "[nc]")),
        ("SE", [{"channels": 64}], ("'channels'", "the program gives")),
        ("CBAM", [{"c1": 64}], ("'c1'", "the program gives")),
    ],
)
def test_what_is_wrong_with_a_value(name: str, arguments: list[Any], facts: tuple[str, ...]) -> None:
    assert_says(refused(name, arguments, [64]), *facts)
