"""Layers named by a block's argument: built at its inner width, refused in one line that names the row."""

from typing import Any

import pytest
import torch
from torch import nn

from models.attention.acmix import ACmix
from models.attention.gather_excite import GatherExcite
from models.blocks.csp import C3, Bottleneck, C2f, C3k, C3k2
from models.building import LAYER_ERRORS, build_inner
from models.common import ELAN1, Conv, RepBottleneck, RepCSP, RepNCSPELAN4
from models.registry import Channels, Scale, layer, rule, same, temporary_layers
from models.yolo import Model
from tests.networks import tiny_config
from tests.saying import assert_says
from utils.errors import ModelConfigError


def row_error(name: str, arguments: list[Any]) -> str:
    """What building a network says whose layer 5 is this row, without the place."""
    config = tiny_config()
    config["backbone"].append([-1, 2, name, arguments])
    with pytest.raises(ModelConfigError) as caught:
        Model(config)
    where, message = str(caught.value).split("]]: " if "]]: " in str(caught.value) else "]: ", 1)
    assert where.startswith(f"network: backbone[5] (layer 5): [-1, 2, {name}, [")
    assert "\n" not in message
    return message


def test_name_alone_and_with_arguments() -> None:
    assert isinstance(build_inner("GatherExcite", 12, "unit"), GatherExcite)
    built = build_inner(["ACmix", 3, {"heads": 2, "residual": True}], 12, "unit")
    assert (built.kernel_att, built.heads, built.depth, built.residual) == (3, 2, 6, True)


def test_width_is_not_scaled_again_nor_rounded() -> None:
    conv = build_inner(["Conv", 3], 12, "unit")
    assert isinstance(conv, Conv)
    assert conv.conv.weight.shape == (12, 12, 3, 3)


def test_inner_width_of_a_scaled_network() -> None:
    config = tiny_config(width=48) | {"width_multiple": 0.5}
    config["backbone"].append([-1, 1, "C2f", [48, {"attention": ["ACmix", {"heads": 3}]}]])
    assert Model(config).model[5].m[0].attention.depth == 4, (
        "48 channels, halved, of which C2f's chain has half: 12 in 3 heads"
    )


def test_nested_blocks() -> None:
    block = C2f(16, 32, repeats=2, unit=["C3", {"attention": "GatherExcite"}])
    assert [type(unit) for unit in block.m] == [C3, C3]
    assert isinstance(block.m[1].m[0].attention, GatherExcite)


@pytest.mark.parametrize(
    ("name", "arguments", "facts"),
    [
        ("C2f", [32, {"unit": "GatherExcit"}], ("unit GatherExcit at 16 channels", "Did you mean 'GatherExcite'?")),
        (
            "C2f",
            [32, {"attention": ["ACmix", {"heads": 5}]}],
            ("attention ACmix at 16 channels", "heads is 5", "1, 2, 4, 8, 16"),
        ),
        (
            "C3k2",
            [32, {"attention": ["ACmix", {"head": 5}]}],
            ("attention ACmix at 16 channels", "'head'", "ACmix"),
        ),
        ("C2f", [32, {"attention": [[]]}], ("attention is [[]]", "[ACmix, {heads: 8}]")),
        ("C2f", [32, {"attention": []}], ("attention is []", "[ACmix, {heads: 8}]")),
        ("C2f", [32, {"attention": {"ACmix": 1}}], ("'attention' is {'ACmix': 1}", "str | list | None", "C2f")),
        ("C3", [32, {"unit": ["ACmix", {"out_channels": 8}]}], ("unit ACmix at 16 channels", "out_channels is 8")),
        (
            "C3",
            [32, {"unit": ["RepNCSPELAN4", 8]}],
            ("unit RepNCSPELAN4 at 16 channels", "'branch_channels'", "RepNCSPELAN4"),
        ),
        ("C2f", [32, {"unit": "ADown"}], ("unit ADown at 16 channels", "changes the size")),
        ("C2f", [32, {"unit": ["Conv", 3, 2]}], ("unit Conv at 16 channels", "changes the size")),
        (
            "C2f",
            [32, {"attention": ["nn.MaxPool2d", 2]}],
            ("attention nn.MaxPool2d at 16 channels", "changes the size"),
        ),
        ("C2f", [32, {"unit": ["Detect", 3]}], ("unit Detect at 16 channels", "gives [] channels")),
        ("C2f", [32, True, {"unit": "ACmix"}], ("unit 'ACmix'", "shortcut True")),
        ("C2f", [32, False, 2, {"unit": "ACmix"}], ("unit 'ACmix'", "groups 2")),
        ("C3k2", [32, True, {"unit": "ACmix"}], ("unit 'ACmix'", "c3k True")),
        ("C3", [32, {"unit": "ACmix", "attention": "GatherExcite"}], ("unit 'ACmix'", "attention 'GatherExcite'")),
        ("RepNCSP", [32, {"unit": "ACmix", "attention": "GatherExcite"}], ("unit 'ACmix'", "attention 'GatherExcite'")),
        (
            "ELAN1",
            [32, 16, 8, {"unit": "ACmix", "attention": "GatherExcite"}],
            ("unit 'ACmix'", "attention 'GatherExcite'"),
        ),
        (
            "RepNCSPELAN4",
            [32, 16, 8, {"attention": "GatherExcit"}],
            ("attention GatherExcit at 4 channels", "Did you mean 'GatherExcite'?"),
        ),
        (
            "ELAN1",
            [32, 16, 8, {"unit": "GatherExcit"}],
            ("unit GatherExcit at 8 channels", "Did you mean 'GatherExcite'?"),
        ),
    ],
)
def test_refused(name: str, arguments: list[Any], facts: tuple[str, ...]) -> None:
    assert_says(row_error(name, arguments), *facts)


@pytest.mark.parametrize("shell", [C2f, C3, C3k2])
def test_unit_takes_the_bottlenecks_place(shell: type[nn.Module]) -> None:
    block = shell(16, 32, repeats=2, unit=["GatherExcite", 2]).eval()
    assert [type(unit) for unit in block.m] == [GatherExcite, GatherExcite]
    assert block(torch.randn(1, 16, 5, 7)).shape == (1, 32, 5, 7)


@pytest.mark.parametrize(
    ("shell", "first"),
    [(C2f, "m.0"), (C3, "m.0"), (C3k, "m.0"), (C3k2, "m.0"), (lambda *a, **k: C3k2(*a, c3k=True, **k), "m.0.m.1")],
)
def test_attention_ends_every_bottleneck(shell: Any, first: str) -> None:
    block = shell(16, 32, attention=["ACmix", {"heads": 2}])
    bottlenecks = [module for module in block.modules() if isinstance(module, Bottleneck)]
    assert len(bottlenecks) == sum(isinstance(module, ACmix) for module in block.modules()) > 0
    assert isinstance(block.get_submodule(first).attention, ACmix)


@torch.no_grad()
@pytest.mark.parametrize("shortcut", [True, False])
def test_attention_comes_before_the_sum(shortcut: bool) -> None:
    block = Bottleneck(8, 8, shortcut, attention="GatherExcite").eval()
    x = torch.randn(1, 8, 4, 6)
    branch = block.cv2(block.cv1(x))
    weighed = branch * branch.mean((2, 3), keepdim=True).sigmoid()
    torch.testing.assert_close(block(x), x + weighed if shortcut else weighed)
    assert not any(key.startswith("attention") for key in block.state_dict()), "theta-minus has no parameters"


def test_units_of_the_gelan_block() -> None:
    block = RepNCSPELAN4(16, 32, 16, 12, repeats=2, unit=["GatherExcite", 2]).eval()
    for stage in (block.cv2, block.cv3):
        assert [type(unit) for unit in stage[0].m] == [GatherExcite, GatherExcite]
    assert not any(isinstance(module, RepBottleneck) for module in block.modules())
    assert block(torch.randn(1, 16, 5, 7)).shape == (1, 32, 5, 7)


def test_attention_of_the_gelan_block() -> None:
    block = RepNCSPELAN4(16, 32, 16, 12, repeats=2, attention=["ACmix", {"heads": 2}]).eval()
    assert [type(unit.attention) for stage in (block.cv2, block.cv3) for unit in stage[0].m] == [ACmix] * 4
    assert block.cv2[0].m[0].attention.depth == 3, "12 channels, of which the chain of RepCSP has half: 6 in 2 heads"


@torch.no_grad()
@pytest.mark.parametrize("shortcut", [True, False])
def test_attention_of_a_rep_bottleneck_comes_before_the_sum(shortcut: bool) -> None:
    block = RepCSP(8, 16, shortcut=shortcut, attention="GatherExcite").m[0].eval()
    x = torch.randn(1, 8, 4, 6)
    branch = block.cv2(block.cv1(x))
    weighed = branch * branch.mean((2, 3), keepdim=True).sigmoid()
    torch.testing.assert_close(block(x), x + weighed if shortcut else weighed)


@torch.no_grad()
def test_attention_of_elan_follows_each_convolution() -> None:
    block = ELAN1(8, 16, 8, 4, attention="GatherExcite").eval()
    x = torch.randn(1, 8, 4, 6)
    stages = list(block.cv1(x).chunk(2, 1))
    for conv, _ in (block.cv2, block.cv3):
        y = conv(stages[-1])
        stages.append(y * y.mean((2, 3), keepdim=True).sigmoid())
    torch.testing.assert_close(block(x), block.cv4(torch.cat(stages, 1)))


def test_units_of_elan() -> None:
    block = ELAN1(8, 16, 8, 4, unit=["GatherExcite", 2])
    assert [type(stage) for stage in (block.cv2, block.cv3)] == [GatherExcite, GatherExcite]
    wider = ELAN1(8, 16, 8, 6, unit=["ACmix", {"heads": 2}])
    conv, unit = wider.cv2
    assert (conv.conv.in_channels, conv.conv.out_channels, conv.conv.kernel_size) == (4, 6, (1, 1)), (
        "the unit keeps its width"
    )
    assert isinstance(unit, ACmix)
    assert isinstance(wider.cv3, ACmix)


@pytest.mark.parametrize(
    ("block", "arguments"),
    [(ELAN1, (8, 16, 8, 4)), (RepNCSPELAN4, (8, 16, 8, 4, 1)), (RepCSP, (8, 16)), (RepBottleneck, (8, 8))],
)
def test_names_of_weights_are_the_published_ones_without_inner_layers(
    block: type[nn.Module], arguments: tuple[int, ...]
) -> None:
    names = {key.rpartition(".conv.")[0] for key in block(*arguments).state_dict() if key.endswith(".conv.weight")}
    bottleneck = {"cv1.conv1", "cv1.conv2", "cv2"}
    csp = {"cv1", "cv2", "cv3"} | {f"m.0.{name}" for name in bottleneck}
    elan = {"cv1", "cv2.1", "cv3.1", "cv4"} | {f"{stage}.0.{name}" for stage in ("cv2", "cv3") for name in csp}
    assert (
        names
        == {ELAN1: {"cv1", "cv2", "cv3", "cv4"}, RepNCSPELAN4: elan, RepCSP: csp, RepBottleneck: bottleneck}[block]
    )


class Faulty(nn.Module):
    """A layer whose constructor fails with an error that a user's code may raise."""

    raises: type[Exception] = AttributeError

    def __init__(self, channels: int) -> None:
        super().__init__()
        raise self.raises("no such thing as missing_part")


@pytest.mark.parametrize("kind", LAYER_ERRORS)
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("Faulty", []),
        ("Residual", ["Faulty"]),
        ("C2f", [32, {"attention": "Faulty"}]),
        ("C2f", [32, {"unit": ["Faulty"]}]),
    ],
    ids=["row", "wrapped", "attention", "unit"],
)
def test_same_fault_is_answered_alike(
    kind: type[Exception], name: str, arguments: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Faulty, "raises", kind)
    with temporary_layers():
        layer(same)(Faulty)
        message = row_error(name, arguments)
    assert_says(message, "missing_part", "Faulty()", "cannot be built with")


def test_same_fault_of_a_rule_is_answered_alike() -> None:
    @rule()
    def broken(inputs: list[Channels], arguments: dict[str, Any], scale: Scale) -> Channels:
        return inputs[0] + arguments["absent"]

    with temporary_layers():
        layer(broken, name="Ruleless")(nn.Identity)
        messages = [
            row_error("Ruleless", []),
            row_error("Residual", ["Ruleless"]),
            row_error("C2f", [32, {"attention": "Ruleless"}]),
        ]
    for message in messages:
        assert_says(message, "'absent'", "Ruleless()", "cannot be built with")
