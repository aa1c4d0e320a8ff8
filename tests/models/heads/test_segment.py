"""Segmentation heads: what they return in each mode, whose inputs their prototypes take, and what deploying keeps."""

from typing import Any

import pytest
import torch
from torch import nn

from models.heads.segment import DSegment, DualDSegment, Prototypes, Segment, V9Segment
from models.yolo import Model
from tests.networks import meta_model, meta_pruned, randomise, seeded_images, tiny_config
from utils.precision import Precision
from utils.weights.foreign_names import foreign_head_names

BACKBONE = [[-1, 1, "Conv", [8, 3, 2]] for _ in range(5)]
HEADS: dict[str, list[list[Any]]] = {
    "Segment": [[[2, 3, 4], 1, "Segment", ["nc", 4, 8]]],
    "Segment of YOLO11": [[[2, 3, 4], 1, "Segment", ["nc", 4, 8, {"cls": "depthwise"}]]],
    "V9Segment": [[[2, 3, 4], 1, "V9Segment", ["nc", 4, 8]]],
    "DSegment": [[2, 1, "nn.Upsample", [None, 2, "nearest"]], [[2, 3, 4, 5], 1, "DSegment", ["nc", 4, 8]]],
    # Layers 5, 6 and, for prototypes, 1 feed the auxiliary branch alone; layer 8 the lead branch's prototypes.
    "DualDSegment": [
        [2, 1, "Conv", [16, 3]],
        [3, 1, "Conv", [16, 3]],
        [5, 1, "nn.Identity", []],
        [2, 1, "nn.Upsample", [None, 2, "nearest"]],
        [[7, 6, 4, 2, 3, 4, 1, 8], 1, "DualDSegment", ["nc", 4, 8]],
    ],
}


def tiny_segmenter(name: str = "Segment", seed: int = 0) -> Model:
    """A network of five convolutions with three classes and four masks."""
    torch.manual_seed(seed)
    return Model({"nc": 3, "backbone": BACKBONE, "head": HEADS[name]})


@pytest.fixture(params=HEADS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_training_output(name: str) -> None:
    model = tiny_segmenter(name)
    outputs = model.train()(seeded_images(2, 3, 64, 96))
    assert set(outputs) == {"main", "aux"}
    assert len(outputs["aux"]) == (1 if name == "DualDSegment" else 0)
    for output in (outputs["main"], *outputs["aux"]):
        assert set(output) == {"maps", "coefficients", "prototypes"}
        assert [tuple(level.shape) for level in output["maps"]] == [(2, 67, 8, 12), (2, 67, 4, 6), (2, 67, 2, 3)]
        assert output["coefficients"].shape == (2, 4, 96 + 24 + 6)
        assert output["prototypes"].shape == (2, 4, 16, 24)
    assert (model.task, model.stride, model.head.num_masks) == ("segment", [8, 16, 32], 4)


def test_evaluation_output(name: str) -> None:
    model = randomise(tiny_segmenter(name)).eval()
    images = seeded_images(2, 3, 64, 96)
    with torch.inference_mode():
        predictions, prototypes = model(images)
        (again, same_prototypes), outputs = model(images, raw=True)
    assert predictions.shape == (2, 4 + 3 + 4, 126)
    assert prototypes.shape == (2, 4, 16, 24)
    torch.testing.assert_close(again, predictions)
    torch.testing.assert_close(same_prototypes, prototypes)
    torch.testing.assert_close(predictions[:, 7:], outputs["main"]["coefficients"])
    torch.testing.assert_close(prototypes, outputs["main"]["prototypes"])
    assert all(model.decode(output).shape == predictions.shape for output in (outputs["main"], *outputs["aux"]))
    torch.testing.assert_close(model.decode(outputs["main"]), predictions)


def test_coefficients_run_level_by_level_row_by_row() -> None:
    model = tiny_segmenter().eval()
    with torch.inference_mode():
        _, outputs = model(seeded_images(1, 3, 64, 64), raw=True)
        features = [output for row, _, output in model.run_rows(seeded_images(1, 3, 64, 64)) if row.index in (2, 3, 4)]
        for level, start, width in ((0, 0, 8), (1, 64, 4), (2, 80, 2)):
            cell = outputs["main"]["coefficients"][0, :, start + width + 1]  # second row, second column
            torch.testing.assert_close(cell, model.head.lead.masks[level](features[level])[0, :, 1, 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_deployed_network_computes_the_same(name: str, dtype: torch.dtype) -> None:
    model = randomise(tiny_segmenter(name)).to(dtype).eval()
    images = seeded_images(1, 3, 64, 96, dtype=dtype)
    tolerance = 1e-10 if dtype is torch.float64 else 1e-5
    with torch.inference_mode():
        expected = model(images)
        for fold in (True, False):
            deployed = model.deploy(fold=fold)
            for ours, theirs in zip(deployed(images), expected, strict=True):
                assert ours.sub(theirs).abs().max() < tolerance * theirs.abs().max()
            assert not deployed.head.aux
            rebuilt = Model(deployed.config).to(dtype).eval()
            rebuilt.load_state_dict(deployed.state_dict())
            assert torch.equal(rebuilt(images)[0], deployed(images)[0])
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.deploy().modules())


def test_deploying_drops_the_rows_of_the_auxiliary_branch_only() -> None:
    model = tiny_segmenter("DualDSegment")
    deployed = model.deploy(fold=False)
    assert [row.index for row, _, _ in model.eval().run_rows(seeded_images(1, 3, 32, 32), lead_only=True)] == [
        0,
        1,
        2,
        3,
        4,
        8,
        9,
    ]
    assert [row.name for row in deployed.rows] == ["Conv"] * 5 + ["nn.Upsample", "DSegment"]
    assert deployed.rows[-1].sources == [2, 3, 4, 5]
    assert deployed.rows[-1].arguments == ["nc", 4, 8]
    assert deployed.config["head"] == [
        [2, 1, "nn.Upsample", [None, 2, "nearest"]],
        [[2, 3, 4, 5], 1, "DSegment", ["nc", 4, 8]],
    ]


def test_evaluation_computes_the_lead_branch_alone() -> None:
    model, ran = tiny_segmenter("DualDSegment").eval(), []
    for branch in (*model.head.aux, model.head.lead):
        for part in (branch.prototypes, branch.masks[0]):
            part.register_forward_hook(lambda module, *_, lead=branch is model.head.lead: ran.append(lead))
    with torch.inference_mode():
        model(seeded_images(1, 3, 32, 32))
        assert ran == [True, True]
        model(seeded_images(1, 3, 32, 32), raw=True)
    assert sorted(ran[2:]) == [False, False, True, True]


def test_prototypes_take_their_own_branchs_input() -> None:
    head = DualDSegment(3, [8, 16, 24, 32, 40, 48], branches=2, num_masks=4)
    assert (head.levels, head.lead_inputs()) == (2, [2, 3, 5])
    assert [branch.prototypes.conv.in_channels for branch in (*head.aux, head.lead)] == [40, 48]
    assert [branch.masks[0][0].conv.in_channels for branch in (*head.aux, head.lead)] == [8, 24]
    head.keep_lead()
    assert head.lead_inputs() == [0, 1, 2]


def test_tower_widths() -> None:
    for first, masks, width in ((64, 32, 32), (128, 32, 32), (192, 32, 48), (320, 32, 80), (64, 40, 40)):
        assert (
            Segment(80, [first, 2 * first], num_masks=masks, prototype_width=8).lead.masks[1][0].conv.out_channels
            == width
        )
    assert DSegment(80, [64, 128, 256], num_masks=32).lead.masks[0][1].conv.groups == 1
    assert DSegment(80, [64, 128, 256]).lead.box[0][1].conv.groups == 4
    assert V9Segment(80, [64, 128], prototype_width=8).lead.box[0][1].conv.groups == 1
    assert V9Segment(80, [64, 128], prototype_width=8).lead.cls[0][2].in_channels == 128
    assert Segment(80, [64, 128], prototype_width=8).lead.cls[0][2].in_channels == 80
    assert Segment(80, [64, 128], prototype_width=8, class_width=24).lead.cls[0][2].in_channels == 24
    assert Segment(80, [64, 128], prototype_width=8, mask_width=24).lead.masks[0][2].in_channels == 24


def test_unit_reaches_the_mask_towers() -> None:
    branch = Segment(3, [16, 32], num_masks=8, unit="GatherExcite").lead
    assert {type(tower[1]).__name__ for towers in (branch.box, branch.cls, branch.masks) for tower in towers} == {
        "GatherExcite"
    }
    alone = Segment(3, [16, 32], num_masks=8, unit={"mask": "GatherExcite"}).lead
    assert [type(towers[0][1]).__name__ for towers in (alone.box, alone.cls, alone.masks)] == [
        "Conv",
        "Conv",
        "GatherExcite",
    ]


def test_width_multiple_reaches_the_prototypes() -> None:
    config = tiny_config(width=64) | {
        "head": [[[2, 3, 4], 1, "Segment", ["nc", 32, 256]]],
        "scales": {"n": [0.33, 0.25, 1024], "x": [1.0, 1.25, 512]},
    }
    assert Model(config, scale="n").head.lead.prototypes.cv1.conv.out_channels == 64
    assert Model(config, scale="x").head.lead.prototypes.cv1.conv.out_channels == 320
    config["head"][0][3] = ["nc"]
    assert Model(config, scale="n").head.lead.prototypes.cv2.conv.out_channels == 64, "and the default"


def test_upsampling_of_the_prototypes() -> None:
    nearest = randomise(Prototypes(4, 6, 2, "nearest")).eval()
    x = torch.randn(1, 4, 3, 3)
    doubled = nearest.cv1(x).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(nearest(x), nearest.cv3(nearest.cv2(doubled)))
    transposed = Prototypes(4, 6, 2, "transposed")
    assert transposed.upsample.weight.shape == (6, 6, 2, 2)
    assert transposed.upsample.bias.shape == (6,)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_last_layers_and_what_is_returned_in_float32(name: str, dtype: torch.dtype) -> None:
    model = randomise(tiny_segmenter(name)).eval().deploy()
    images = seeded_images(1, 3, 64, 64)
    with torch.inference_mode():
        precise = model(images)
        placed = Precision(torch.device("cpu"), dtype, channels_last=False).place_for_inference(model)
        returned = placed(images.to(dtype))
    lead = placed.head.lead
    last = lead.prototypes.cv3 if hasattr(lead.prototypes, "cv3") else lead.prototypes
    assert last.conv.weight.dtype is lead.masks[0][-1].weight.dtype is torch.float32
    assert lead.masks[0][0].conv.weight.dtype is dtype
    for ours, theirs in zip(returned, precise, strict=True):
        assert ours.dtype is torch.float32
        assert ours.sub(theirs).abs().max() < 0.05 * theirs.abs().max()


def test_autocast_returns_float32() -> None:
    model = tiny_segmenter().eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        predictions, prototypes = model(seeded_images(1, 3, 64, 64))
    assert (predictions.dtype, prototypes.dtype) == (torch.float32, torch.float32)


def test_foreign_names_of_segmentation_heads() -> None:
    single = {"lead.box": "cv2", "lead.cls": "cv3", "lead.dfl": "dfl", "lead.masks": "cv4", "lead.prototypes": "proto"}
    for shipped in ("yolov8n-seg", "yolo11n-seg", "gelan-c-seg", "gelan-c-dseg"):
        assert foreign_head_names(meta_model(shipped).head) == single
    assert foreign_head_names(meta_model("yolov9-c-dseg").head) == {
        **{
            "aux.0.box": "cv2",
            "aux.0.cls": "cv3",
            "aux.0.dfl": "dfl",
            "aux.0.masks": "cv6",
            "aux.0.prototypes": "proto",
        },
        **{"lead.box": "cv4", "lead.cls": "cv5", "lead.dfl": "dfl2", "lead.masks": "cv7", "lead.prototypes": "proto2"},
    }
    assert foreign_head_names(meta_pruned("yolov9-c-dseg").head) == single
