"""The registry: scaling, channel rules, and how a row's arguments meet a constructor's signature."""

from collections.abc import Iterator
from typing import Any, Literal

import pytest
from torch import nn

from models import registry
from models.names import ALIASES, OTHER_NAMES, plain
from models.registry import (
    Scale,
    bind,
    citations,
    find_layer,
    keep,
    layer,
    maps,
    only,
    rule,
    same,
    temporary_layers,
    to,
    to_unscaled,
)
from models.yolo import Model  # noqa: F401 registers every layer
from tests.saying import assert_says
from utils.errors import ModelConfigError


@pytest.fixture
def scratch() -> Iterator[None]:
    """The registry, in which a test may register layers: they are taken back."""
    with temporary_layers():
        yield


@pytest.mark.parametrize(
    ("scale", "count", "expected"),
    [
        (Scale(), 64, 64),
        (Scale(), 60, 64),
        (Scale(width=0.25), 64, 16),
        (Scale(width=0.25), 100, 32),
        (Scale(width=0.5, max_channels=512), 1024, 256),
        (Scale(width=1.25, max_channels=512), 64, 80),
        (Scale(width=0.01), 64, 8),
    ],
)
def test_scaled_channels(scale: Scale, count: int, expected: int) -> None:
    assert scale.channels(count) == expected


@pytest.mark.parametrize(
    ("depth", "count", "expected"),
    [(1.0, 3, 3), (0.33, 3, 1), (0.33, 6, 2), (0.67, 3, 2), (0.1, 3, 1), (2.0, 1, 1), (0.5, 3, 2)],
)
def test_scaled_repeats(depth: float, count: int, expected: int) -> None:
    assert Scale(depth=depth).repeats(count) == expected


def test_rules_say_the_output_channels() -> None:
    arguments: dict[str, Any] = {"out_channels": 64}
    assert to.apply([16], arguments, Scale(width=0.5)) == 32
    assert arguments == {"in_channels": 16, "out_channels": 32}
    arguments = {}
    assert same.apply([24], arguments, Scale(width=0.5)) == 24
    assert arguments == {"channels": 24}
    assert keep.apply([24], arguments, Scale()) == 24
    assert find_layer("Concat").rule.apply([16, 24, 8], {}, Scale()) == 48
    assert find_layer("CBLinear").rule.apply([16], {"out_channels": [8, 4]}, Scale()) == [8, 4]
    assert find_layer("CBFuse").rule.apply([[8, 4], [16, 8, 4], 4], {"index": [1, 2]}, Scale()) == 4
    arguments = {}
    assert find_layer("DualDDetect").rule.apply([16, 24, 16, 24], arguments, Scale()) == []
    assert arguments == {"in_channels": [16, 24, 16, 24], "branches": 2}


def test_rules_refuse_what_they_cannot_take() -> None:
    with pytest.raises(ModelConfigError) as caught:
        only([8, 8])
    assert_says(caught.value, "'from' names 2 layers", "one input")
    with pytest.raises(ModelConfigError) as caught:
        maps([8, [8, 4]])
    assert_says(caught.value, "a list of 2 maps", "[-1, 1, Pick, [0]]")
    with pytest.raises(ModelConfigError) as caught:
        to_unscaled.apply([16], {"out_channels": 16}, Scale(width=0.5))
    assert_says(caught.value, "width_multiple 0.5", "width_multiple to 1.0")
    with pytest.raises(ModelConfigError) as caught:
        find_layer("CBFuse").rule.apply([[8], [8], 8], {"index": [0]}, Scale())
    assert_says(caught.value, "index [0]", "1 inputs", "'from' names 2")


def test_a_name_is_taken_once(scratch: None) -> None:
    with pytest.raises(ValueError, match=r"layer 'Conv' is registered already, by models\.common"):
        layer(keep, name="Conv")(nn.Identity)
    assert find_layer("Conv").cls.__module__ == "models.common"


def test_a_row_cannot_give_what_the_rule_fills(scratch: None) -> None:
    @layer(same)
    class Gate(nn.Module):
        def __init__(self, channels: int, reduction: int = 16) -> None:
            super().__init__()

    assert find_layer("Gate").signature() == "Gate(reduction: int = 16)"
    with pytest.raises(ModelConfigError) as caught:
        bind(find_layer("Gate"), [{"channels": 8}], 3)
    assert_says(caught.value, "'channels'", "the program gives", "Gate(reduction: int = 16)")


def test_the_repeats_argument_is_not_in_the_signature(scratch: None) -> None:
    @layer(to, repeats="count")
    class Stack(nn.Module):
        def __init__(self, in_channels: int, out_channels: int, count: int = 1, slope: float = 0.1) -> None:
            super().__init__()

    assert find_layer("Stack").signature() == "Stack(out_channels: int, slope: float = 0.1)"
    assert bind(find_layer("Stack"), [8, 1], 3) == {"out_channels": 8, "slope": 1}


def test_find_layer_suggests_the_nearest_name() -> None:
    assert suggestion_for("FocalModulatonBlock") == " Did you mean 'FocalModulationBlock'?"
    assert suggestion_for("Convv") == suggestion_for("Cnov") == " Did you mean 'Conv'?"
    assert suggestion_for("zzzz") == ""


def suggestion_for(name: str) -> str:
    """What follows the name in the error about an unknown layer."""
    with pytest.raises(ModelConfigError) as caught:
        find_layer(name)
    assert_says(caught.value, f"unknown layer '{name}'")
    return str(caught.value).partition(f"'{name}'.")[2]


@pytest.mark.parametrize(
    ("name", "layer_name"),
    [
        ("EMA", "EMAttention"), ("EMA_Attention", "EMAttention"), ("CA", "CoordAtt"), ("CoordAttention", "CoordAtt"),
        ("SEAttention", "SE"), ("SE_Block", "SE"), ("ECAAttention", "ECA"), ("eca_layer", "ECA"),
        ("CBAMBlock", "CBAM"), ("Simam_module", "SimAM"), ("LSKblock", "LSK"), ("BiFPN_Add2", "BiFPNAdd"),
        ("Upsample", "nn.Upsample"), ("conv", "Conv"), ("C2F", "C2f"), ("SPD_Conv", "SPDConv"), ("CBMA", "CBAM"),
        ("DualDetect", "DualDDetect"), ("Concta", "Concat"), ("carafe", "CARAFE"), ("CondConv", "DynamicConv"),
    ],
)  # fmt: skip
def test_another_name_of_a_layer_is_answered_by_ours(name: str, layer_name: str) -> None:
    assert suggestion_for(name) == f" Did you mean '{layer_name}'?"


@pytest.mark.parametrize(
    "name",
    [
        "GAM_Attention", "Pose", "OBB", "Classify", "NAMAttention", "ShuffleAttention", "TripletAttention", "ODConv",
        "AKConv", "GhostConv", "PConv", "IDetect", "RTDETRDecoder", "BottleneckCSP", "Attention", "DoubleAttention",
        "nn.Linear", "", "Block", "CrissCrossAttention",
    ],
)  # fmt: skip
def test_a_name_of_another_layer_suggests_nothing(name: str) -> None:
    assert suggestion_for(name) == ""


def test_every_other_name_leads_to_a_layer() -> None:
    layers = registry.registered_layers()
    assert set(ALIASES) <= set(layers)
    assert not set(OTHER_NAMES) & {plain(name) for name in layers}


class Typed(nn.Module):
    """Every kind of annotation that a constructor may have."""

    def __init__(
        self,
        count: int,
        share: float = 0.5,
        flag: bool = True,
        mode: Literal["nearest", "bilinear"] = "nearest",
        word: str = "a",
        size: tuple[int, int] = (1, 1),
        widths: list[int] | None = None,
        anything: object = None,
        pads: tuple[int, ...] = (),
    ) -> None:
        super().__init__()


@pytest.fixture
def typed() -> registry.Layer:
    return registry.Layer("Typed", Typed, rule()(keep.apply), "other", None, (), (16,), (1,))


def test_bind_converts_and_fills(typed: registry.Layer) -> None:
    assert bind(typed, [3], 7) == {"count": 3}
    assert bind(typed, ["nc", 1, {"widths": [8, "nc"], "size": [3, 5], "pads": [1, 2, 3]}], 7) == {
        "count": 7, "share": 1, "widths": [8, 7], "size": (3, 5), "pads": (1, 2, 3),
    }  # fmt: skip
    assert bind(typed, [1, {"widths": "None", "mode": "bilinear", "word": "sum"}], 7) == {
        "count": 1,
        "widths": None,
        "mode": "bilinear",
        "word": "sum",
    }
    assert bind(typed, [1, {"widths": None, "anything": 4}], 7) == {"count": 1, "widths": None, "anything": 4}


def test_an_argument_without_annotation_takes_anything_but_text(scratch: None) -> None:
    @layer(same)
    class Plain(nn.Module):
        def __init__(self, channels, reduction=16, other: Any = None):
            super().__init__()

    assert bind(find_layer("Plain"), [4, [1, 2]], 3) == {"reduction": 4, "other": [1, 2]}
    for arguments in (["tow"], [4, "tow"]):
        with pytest.raises(ModelConfigError) as caught:
            bind(find_layer("Plain"), arguments, 3)
        assert_says(caught.value, "is 'tow'", "Plain(reduction=16, other: Any = None)")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"missing argument 'count': the layer is Typed\(count: int, share: float = 0\.5"),
        ([1] * 10, r"too many positional arguments: the layer is Typed\(.*\) and got \[1, 1"),
        ([1, {"shar": 2}], r"unknown argument 'shar': .* Did you mean 'share'\?"),
        ([1, {"count": 2}], r"argument 'count' is given twice: the layer is Typed\("),
        (["tow"], r"argument 'count' is 'tow', expected int: the layer is Typed\("),
        ([True], r"argument 'count' is True, expected int"),
        ([1.5], r"argument 'count' is 1\.5, expected int"),
        ([1, True], r"argument 'share' is True, expected float"),
        ([1, "half"], r"argument 'share' is 'half', expected float"),
        ([1, {"flag": 1}], r"argument 'flag' is 1, expected bool"),
        ([1, {"mode": "cubic"}], r"argument 'mode' is 'cubic', expected Literal\['nearest', 'bilinear'\]"),
        ([1, {"word": 3}], r"argument 'word' is 3, expected str"),
        ([1, {"size": [1, 2, 3]}], r"argument 'size' is \[1, 2, 3\], expected tuple\[int, int\]"),
        ([1, {"size": 3}], r"argument 'size' is 3, expected tuple\[int, int\]"),
        ([1, {"widths": ["a"]}], r"argument 'widths' is \['a'\], expected list\[int\] \| None"),
        ([1, {"mode": ["nearest"]}], r"argument 'mode' is \['nearest'\], expected Literal"),
        ([1, {"anything": "text"}], r"argument 'anything' is 'text', expected"),
        ([1, {3: 4}], r"unknown argument '3'"),
    ],
)
def test_bind_refuses(typed: registry.Layer, arguments: list[Any], message: str) -> None:
    with pytest.raises(ModelConfigError, match=message):
        bind(typed, arguments, 7)


def test_strings_are_never_evaluated() -> None:
    conv = find_layer("Conv")
    for text in ("tow", "sum", "2", "1+1", "__import__('os')"):
        with pytest.raises(ModelConfigError) as caught:
            bind(conv, [64, 3, text], 80)
        assert_says(caught.value, f"'stride' is {text!r}", "expected int", "Conv(out_channels: int")


def test_citations() -> None:
    text = "Does it.\n\nSource: A et al. 2020,\nsection 3.\nDiffers: no bias.\nArgs:\n    x: y.\n\nSource: B."
    assert citations(text) == [("Source", "A et al. 2020, section 3."), ("Differs", "no bias."), ("Source", "B.")]
