"""Detection heads: decoding by hand, biases, and how inputs split into branches."""

import math

import pytest
import torch

import models.catalogue  # noqa: F401 registers MBConv
from models.heads.detect import DDetect, Detect, DetectionHead, DualDDetect, TripleDDetect, V9Detect
from tests.saying import assert_says
from utils.errors import ModelConfigError
from utils.geometry.anchors import NUM_BINS, anchor_points


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
    with pytest.raises(ModelConfigError) as caught:
        DDetect(3, [8] * count, branches)
    assert_says(caught.value, f"{count} layers", f"{branches} branches", f"a multiple of {branches}")


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
