"""Heads: towers, decoding by hand, biases, and how inputs split into branches."""

import math

import pytest
import torch

import models.blocks  # noqa: F401 registers MBConv
from models.common import Conv
from models.heads.detect import (
    DFL,
    NUM_BINS,
    DDetect,
    Detect,
    DetectionHead,
    DualDDetect,
    TripleDDetect,
    V9Detect,
    anchor_points,
)
from utils.errors import ModelConfigError


def logits_at(distances: list[float], height: int = 1, width: int = 1) -> torch.Tensor:
    """(1, 64, h, w) logits whose distributions sit on two neighbouring bins with these expectations, for l, t, r, b."""
    sides = torch.full((4, NUM_BINS), -1e4)
    for side, distance in enumerate(distances):
        low = int(distance)
        sides[side, low] = math.log(1 - (distance - low))
        if distance > low:
            sides[side, low + 1] = math.log(distance - low)
    return sides.view(1, 64, 1, 1).expand(1, 64, height, width)


def test_anchor_points_row_by_row_level_by_level() -> None:
    points, strides = anchor_points([(2, 3), (1, 1)], [8, 16], torch.zeros(1))
    assert points.tolist() == [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12], [8, 8]]
    assert strides.flatten().tolist() == [8] * 6 + [16]
    assert anchor_points([(1, 1)], [8], torch.zeros(1, dtype=torch.float64))[0].dtype is torch.float64


def test_dfl_is_the_expected_bin() -> None:
    dfl = DFL()
    assert dfl(logits_at([2.25, 0.5, 15.0, 7.0]).flatten(2))[0, :, 0].tolist() == pytest.approx([2.25, 0.5, 15.0, 7.0])
    assert dfl(torch.zeros(1, 64, 1))[0, :, 0].tolist() == pytest.approx([7.5] * 4)
    assert not dfl.conv.weight.requires_grad


def test_decode_by_hand() -> None:
    head = DDetect(2, [8, 8])
    head.attach([8, 16])
    fine = torch.cat(
        (logits_at([1, 2, 3, 4], 1, 2), torch.tensor([0.0, math.log(3)]).view(1, 2, 1, 1).expand(1, 2, 1, 2)), 1
    )
    coarse = torch.cat((logits_at([0.5, 0.5, 0.5, 0.5]), torch.full((1, 2, 1, 1), -100.0)), 1)
    decoded = head.decode([fine, coarse])
    assert decoded.shape == (1, 6, 3)
    # points (4, 4), (12, 4) at stride 8: left 8, top 16, right 24, bottom 32 pixels away
    assert decoded[0, :, 0].tolist() == pytest.approx([12, 12, 32, 48, 0.5, 0.75])
    assert decoded[0, :, 1].tolist() == pytest.approx([20, 12, 32, 48, 0.5, 0.75])
    assert decoded[0, :, 2].tolist() == pytest.approx([8, 8, 16, 16, 0, 0])


def test_sides_stand_one_after_the_other() -> None:
    head = DDetect(1, [8])
    head.attach([1])
    only_left = torch.zeros(1, 65, 1, 1)
    only_left[0, :64] = -1e4
    only_left[0, [0 + 9, 16, 32, 48]] = 1e4  # 9 cells to the left, 0 elsewhere
    assert head.decode([only_left])[0, :4, 0].tolist() == pytest.approx([0.5 - 4.5, 0.5, 9, 0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_maps_are_decoded_in_float32(dtype: torch.dtype) -> None:
    head = DDetect(1, [8])
    head.attach([8])
    decoded = head.decode([torch.zeros(1, 65, 1, 200, dtype=dtype)])
    assert decoded.dtype is torch.float32
    assert decoded[0, 0, -1].item() == 1596


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


def test_inputs_of_the_lead_branch() -> None:
    assert Detect(3, [8, 8, 8]).lead_inputs() == [0, 1, 2]
    assert DualDDetect(3, [8] * 6, branches=2).lead_inputs() == [3, 4, 5]
    head = TripleDDetect(3, [8] * 6, branches=3)
    assert head.lead_inputs() == [4, 5]
    head.keep_lead()
    assert head.lead_inputs() == [0, 1]


def test_biases_start_at_the_class_prior() -> None:
    head = DualDDetect(80, [16, 16, 16, 16], branches=2)
    head.attach([8, 32])
    for branch in (*head.aux, head.lead):
        assert branch.box[1][-1].bias.unique().tolist() == [1.0]
        assert branch.cls[0][-1].bias.unique().tolist() == pytest.approx([math.log(5 / 80 / 6400)])
        assert branch.cls[1][-1].bias.unique().tolist() == pytest.approx([math.log(5 / 80 / 400)])


@pytest.mark.parametrize(("cls", "branches"), [(DDetect, 1), (DualDDetect, 2), (TripleDDetect, 3)])
def test_inputs_split_into_branches_the_lead_last(cls: type[DetectionHead], branches: int) -> None:
    widths = [8 * (number + 1) for number in range(2 * branches)]
    head = cls(3, widths, branches=branches).eval()
    assert (head.branches, head.levels) == (branches, 2)
    assert [tower[0].conv.in_channels for tower in head.lead.box] == widths[-2:]
    maps = [torch.zeros(1, width, 4 // (1 + number % 2), 4 // (1 + number % 2)) for number, width in enumerate(widths)]
    outputs = head(maps)
    assert len(outputs["aux"]) == branches - 1
    assert [tuple(level.shape) for level in outputs["main"]] == [(1, 67, 4, 4), (1, 67, 2, 2)]
    alone = head([None] * (2 * branches - 2) + maps[-2:], lead_only=True)
    assert alone["aux"] == []
    assert torch.equal(alone["main"][0], outputs["main"][0])
    head.keep_lead()
    assert head.branches == 1
    assert torch.equal(head(maps[-2:])["main"][1], outputs["main"][1])


@pytest.mark.parametrize(("count", "branches"), [(3, 2), (4, 3), (0, 1)])
def test_inputs_that_do_not_split(count: int, branches: int) -> None:
    with pytest.raises(
        ModelConfigError,
        match=rf"'from' names {count} layers: a head of {branches} branches takes a multiple of {branches}",
    ):
        DetectionHead(3, [8] * count, branches)


def test_presets_share_one_implementation() -> None:
    for cls in (Detect, V9Detect, DDetect, DualDDetect, TripleDDetect):
        assert set(vars(cls)) <= {
            "__module__",
            "__doc__",
            "__firstlineno__",
            "__static_attributes__",
            "single",
            "style",
        }


# a registered layer as the towers' second unit


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"unit": {"mask": "MBConv"}}, "unit names the towers mask: expected some of box, cls"),
        ({"unit": {"box": "MBConv", 3: "MBConv"}}, "unit names the towers 3: expected some of box, cls"),
        (
            {"unit": "MBConv", "dynamic": True},
            "unit and dynamic both name the second unit of the towers box: leave one of them out",
        ),
        (
            {"unit": "MBConf"},
            "unit of the box tower MBConf at 64 channels: unknown layer 'MBConf'. Did you mean 'MBConv'?",
        ),
        ({"unit": {"cls": []}}, "unit of the cls tower is []: expected a layer's name"),
        (
            {"unit": ["MBConv", {"out_channels": 8}]},
            "unit of the box tower MBConv at 64 channels: out_channels is 8: the block's inner width is taken",
        ),
    ],
)
def test_unit_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ModelConfigError) as caught:
        Detect(3, [16], **arguments)
    assert str(caught.value).startswith(message)
