"""Towers of the heads: widths by family, and layers that replace their second unit."""

import pytest
import torch

import models.catalogue  # noqa: F401 registers MBConv
from models.attention.dynamic_conv import DynamicConv
from models.common import Conv
from models.heads.detect import DDetect, Detect, DetectionHead, DualDDetect, V9Detect
from models.heads.towers import DFL
from tests.models.heads.test_detect import logits_at
from tests.saying import assert_says
from utils.errors import ModelConfigError


def test_dfl_is_the_expected_bin() -> None:
    dfl = DFL()
    assert dfl(logits_at([2.25, 0.5, 15.0, 7.0]).flatten(2))[0, :, 0].tolist() == pytest.approx([2.25, 0.5, 15.0, 7.0])
    assert dfl(torch.zeros(1, 64, 1))[0, :, 0].tolist() == pytest.approx([7.5] * 4)
    assert not dfl.conv.weight.requires_grad


def test_tower_widths() -> None:
    branch = DDetect(80, [256, 512, 512]).lead
    assert [tower[0].conv.out_channels for tower in branch.box] == [64, 64, 64]
    assert [tower[0].conv.out_channels for tower in branch.cls] == [256, 256, 256]
    assert [tower[0].conv.in_channels for tower in branch.cls] == [256, 512, 512]
    assert (branch.box[0][1].conv.groups, branch.box[0][2].groups, branch.cls[0][1].conv.groups) == (4, 4, 1)
    assert DDetect(80, [64, 96]).lead.cls[0][0].conv.out_channels == 128
    assert DDetect(3, [16]).lead.cls[0][0].conv.out_channels == 16
    assert DDetect(3, [4]).lead.cls[0][0].conv.out_channels == 6
    assert DDetect(3, [512]).lead.box[0][0].conv.out_channels == 128
    assert DDetect(3, [300]).lead.box[0][0].conv.out_channels == 76
    assert DDetect(3, [16], box_groups=1).lead.box[0][1].conv.groups == 1


def class_widths(head: DetectionHead) -> list[int]:
    return [tower[-1].in_channels for tower in head.lead.cls]


@pytest.mark.parametrize(
    ("cls", "classes", "first", "width"),
    [
        (Detect, 80, 64, 80),  # YOLOv8: as many as classes, up to 100
        (Detect, 64, 64, 64),
        (Detect, 3, 64, 64),
        (Detect, 365, 64, 100),
        (Detect, 365, 128, 128),
        (V9Detect, 80, 64, 128),  # YOLOv9: twice as many as classes, up to 128
        (V9Detect, 40, 64, 80),
        (V9Detect, 32, 64, 64),
        (DDetect, 40, 64, 80),
    ],
)
def test_class_tower_width_by_family(cls: type[DetectionHead], classes: int, first: int, width: int) -> None:
    assert class_widths(cls(classes, [first, 2 * first])) == [width, width]
    assert class_widths(cls(classes, [first, 2 * first], class_width=48)) == [48, 48]


def test_class_width_holds_in_every_branch() -> None:
    head = DualDDetect(3, [16, 32, 64, 128], branches=2, class_width=24)
    assert class_widths(head) == [24, 24]
    assert [tower[-1].in_channels for tower in head.aux[0].cls] == [24, 24]


def test_widths_of_the_branches() -> None:
    """A setting has one width, or one for each branch; of more, the last are taken: a lead branch keeps its own."""
    given = {"class_width": [24, 12], "box_width": [72, 80]}
    head = DualDDetect(3, [16, 32, 64, 128], branches=2, **given)
    assert [[tower[-1].in_channels for tower in branch.cls] for branch in (head.aux[0], head.lead)] == [
        [24] * 2,
        [12] * 2,
    ]
    assert [[tower[0].conv.out_channels for tower in branch.box] for branch in (head.aux[0], head.lead)] == [
        [72, 72],
        [80, 80],
    ]
    single = DDetect(3, [16, 32], **given)
    assert (class_widths(single), single.lead.box[0][0].conv.out_channels) == ([12, 12], 80)


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        ({"class_width": [24]}, ("class_width is [24]", "2 numbers", "each branch")),
        ({"class_width": [24, 0]}, ("class_width is [24, 0]", "positive")),
        ({"box_width": [64, 66]}, ("box_width is [64, 66]", "multiple", "box_groups, 4")),
        ({"mask_width": 8}, ("mask_width is 8", "no mask towers")),
    ],
)
def test_widths_refused(arguments: dict, facts: tuple[str, ...]) -> None:
    with pytest.raises(ModelConfigError) as caught:
        DualDDetect(3, [16, 32, 64, 128], branches=2, **arguments)
    assert_says(caught.value, *facts)


@pytest.mark.parametrize(("cls", "groups"), [(Detect, 1), (V9Detect, 1), (DDetect, 4), (DualDDetect, 4)])
def test_box_groups_by_family(cls: type[DetectionHead], groups: int) -> None:
    tower = cls(3, [16], branches=1).lead.box[0]
    assert [tower[1].conv.groups, tower[2].groups] == [groups, groups]


def test_depthwise_class_tower() -> None:
    head = Detect(80, [64, 128], cls="depthwise")
    names = [(name, tuple(weight.shape)) for name, weight in head.lead.cls[1].named_parameters() if weight.ndim == 4]
    assert names == [
        ("0.0.conv.weight", (128, 1, 3, 3)),
        ("0.1.conv.weight", (80, 128, 1, 1)),
        ("1.0.conv.weight", (80, 1, 3, 3)),
        ("1.1.conv.weight", (80, 80, 1, 1)),
        ("2.weight", (80, 80, 1, 1)),
    ]
    assert isinstance(Detect(80, [64], cls="dense").lead.cls[0][0], Conv)
    assert head.lead.box[0][0].conv.groups == 1


def test_unit_is_the_second_of_every_tower() -> None:
    head = Detect(80, [64, 128], unit=["MBConv", {"expansion": 2}])
    for box, cls in zip(head.lead.box, head.lead.cls, strict=True):
        assert [type(part).__name__ for part in (*box, *cls)] == ["Conv", "MBConv", "OutputConv"] * 2
    assert (head.lead.box[1][0].conv.in_channels, head.lead.box[1][2].in_channels, head.lead.cls[1][2].in_channels) == (
        128,
        64,
        80,
    )


def test_unit_of_the_class_towers_alone() -> None:
    head = DDetect(3, [16, 16], unit={"cls": "GatherExcite"})
    assert type(head.lead.cls[0][1]).__name__ == "GatherExcite"
    assert isinstance(head.lead.box[0][1], Conv)
    assert head.lead.box[0][1].conv.groups == 4


def test_unit_takes_the_place_of_both_convolutions_of_a_depthwise_unit() -> None:
    tower = Detect(80, [64], cls="depthwise", unit="MBConv").lead.cls[0]
    assert [type(part).__name__ for part in tower] == ["Sequential", "MBConv", "OutputConv"]


def test_unit_beside_dynamic_convolutions() -> None:
    head = Detect(3, [16], dynamic=["box"], unit={"cls": "GatherExcite"})
    assert [type(tower[1]).__name__ for tower in (head.lead.box[0], head.lead.cls[0])] == [
        "DynamicConv",
        "GatherExcite",
    ]


def test_dynamic_is_a_unit_of_its_own_kind() -> None:
    """`dynamic: true` and the mapping of `unit` that it stands for build the same head."""
    settings = {"experts": 2, "route": "mlp_softmax"}
    torch.manual_seed(0)
    head = DDetect(3, [16, 24], dynamic=True, **settings)
    torch.manual_seed(0)
    same = DDetect(3, [16, 24], unit={"box": ["DynamicConv", 3, {"groups": 4, **settings}]})
    weights, expected = head.state_dict(), same.state_dict()
    assert list(weights) == list(expected)
    assert all(torch.equal(weights[name], expected[name]) for name in weights)
    assert any(".routing." in name for name in weights)


def test_dynamic_takes_the_pointwise_convolution_of_a_depthwise_unit() -> None:
    tower = Detect(80, [64], cls="depthwise", dynamic=["cls"]).lead.cls[0]
    depthwise, pointwise = tower[1]
    assert (type(depthwise), type(pointwise)) == (Conv, DynamicConv)
    assert (depthwise.conv.groups, pointwise.conv.cond_conv.kernel_size) == (80, 1)
    whole = Detect(80, [64], dynamic=["cls"]).lead.cls[0][1]
    assert isinstance(whole, DynamicConv)
    assert whole.conv.cond_conv.kernel_size == 3


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        ({"unit": {"mask": "MBConv"}}, ("towers mask", "box, cls")),
        ({"unit": {"box": "MBConv", 3: "MBConv"}}, ("towers 3", "box, cls")),
        ({"dynamic": ["mask"]}, ("dynamic", "towers mask", "box, cls")),
        ({"unit": "MBConv", "dynamic": True}, ("unit and dynamic", "towers box")),
        ({"unit": "MBConf"}, ("unit of the box tower MBConf at 64 channels", "Did you mean 'MBConv'?")),
        ({"unit": {"cls": []}}, ("unit of the cls tower is []", "[ACmix, {heads: 8}]")),
        ({"unit": ["MBConv", {"out_channels": 8}]}, ("unit of the box tower MBConv", "out_channels is 8")),
        ({"class_width": 0}, ("class_width is 0",)),
        ({"box_groups": -1}, ("box_groups is -1",)),
        ({"dynamic": True, "experts": 0}, ("box tower DynamicConv at 64 channels", "experts is 0")),
    ],
)
def test_settings_refused(arguments: dict, facts: tuple[str, ...]) -> None:
    with pytest.raises(ModelConfigError) as caught:
        Detect(3, [16], **arguments)
    assert_says(caught.value, *facts)
