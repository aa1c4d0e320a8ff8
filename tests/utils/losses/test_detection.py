"""The detection loss: literal numbers, empty and degenerate batches, and every gain and setting."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from models.yolo import Model
from tests.networks import seeded_images, tiny_model, tiny_segment_config
from tests.saying import assert_says
from utils.errors import SettingsError
from utils.geometry.anchors import NUM_BINS
from utils.hyperparameters import Hyperparameters
from utils.losses.detection import DetectionLoss, SegmentationLoss, build_loss, decode, distribution_focal

LN2 = math.log(2)


def one_cell(box_logits: Tensor, class_logit: float = 0.0, classes: int = 1, batch: int = 1) -> list[Tensor]:
    """Return maps of a single cell at stride 8: its point is (4, 4) in an image of 8 x 8."""
    cell = torch.cat((box_logits, torch.full((classes,), class_logit))).view(1, -1, 1, 1)
    return [cell.repeat(batch, 1, 1, 1).requires_grad_()]


def halfway() -> Tensor:
    """Return logits that put all four sides half a cell away: the box is the whole 8 x 8 image."""
    sides = torch.full((4, NUM_BINS), -1e4)
    sides[:, :2] = 0
    return sides.flatten()


WHOLE = torch.tensor([[0, 0, 0.5, 0.5, 1.0, 1.0]])


def score(
    maps: list[Tensor], targets: Tensor, aux: list[list[Tensor]] | None = None, **hyp: float
) -> tuple[Tensor, dict[str, Tensor]]:
    loss = DetectionLoss([8, 16, 32][: len(maps)], Hyperparameters(**hyp))
    side = maps[0].shape[2] * 8
    return loss({"main": maps, "aux": aux or []}, {"targets": targets, "image_hw": (side, maps[0].shape[3] * 8)})


def random_maps(seed: int = 0, batch: int = 3, classes: int = 4) -> list[Tensor]:
    """Return maps of the three levels of a 64 x 64 image."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, 64 + classes, side, side, generator=generator).requires_grad_() for side in (8, 4, 2)]


TARGETS = torch.tensor(
    [[0, 0, 0.5, 0.5, 0.6, 0.7], [0, 3, 0.25, 0.3, 0.3, 0.2], [2, 2, 0.55, 0.45, 0.9, 0.9], [2, 1, 0.3, 0.7, 0.2, 0.2]]
)


# --- literal numbers


def test_flat_distributions_by_hand() -> None:
    # every side is expected 7.5 cells away: a box of 120 x 120 around the 8 x 8 object, overlap 64 / 14400
    overlap = 64 / 14400
    total, items = score(one_cell(torch.zeros(64)), WHOLE, tal_beta=1.0)
    assert items["box"].item() == pytest.approx(7.5 * (1 - overlap) * overlap, rel=1e-4)
    assert items["cls"].item() == pytest.approx(0.5 * LN2, rel=1e-6)
    assert items["dfl"].item() == pytest.approx(1.5 * math.log(16) * overlap, rel=1e-4)
    assert total.item() == pytest.approx(sum(item.item() for item in items.values()), rel=1e-6)


def test_a_perfect_box_by_hand() -> None:
    total, items = score(one_cell(halfway(), class_logit=2.0), WHOLE)
    assert items["box"].item() == pytest.approx(0, abs=1e-5)
    assert items["cls"].item() == pytest.approx(0.5 * (math.log(1 + math.exp(2)) - 2), rel=1e-5)
    assert items["dfl"].item() == pytest.approx(1.5 * LN2, rel=1e-5)
    assert total.requires_grad
    assert not any(item.requires_grad for item in items.values())


def test_total_is_batch_size_times_items() -> None:
    targets = torch.cat((WHOLE, WHOLE + torch.tensor([[1, 0, 0, 0, 0, 0]])))
    single, _ = score(one_cell(halfway()), WHOLE)
    total, items = score(one_cell(halfway(), batch=2), targets)
    # two positives of score 1: the sums double, and so does what they are divided by
    assert items["cls"].item() == pytest.approx(0.5 * LN2, rel=1e-5)
    assert total.item() == pytest.approx(2 * single.item(), rel=1e-5)


def test_classes_without_an_object_count_as_background() -> None:
    _, items = score(one_cell(halfway(), classes=5), WHOLE)
    assert items["cls"].item() == pytest.approx(0.5 * 5 * LN2, rel=1e-5)


def test_decode_by_hand() -> None:
    boxes = decode(halfway().view(1, 64, 1), torch.tensor([[4.0, 4.0]]), torch.tensor([[8.0]]))
    assert boxes[0, 0].tolist() == pytest.approx([0, 0, 8, 8], abs=1e-5)


@pytest.mark.parametrize(
    ("distance", "bins"),
    [
        (0.0, {0: 1.0}),
        (2.25, {2: 0.75, 3: 0.25}),
        (7.0, {7: 1.0}),
        (14.99, {14: 0.01, 15: 0.99}),
        (99.0, {14: 0.01, 15: 0.99}),
        (-3.0, {0: 1.0}),
    ],
)
def test_distribution_focal_by_hand(distance: float, bins: dict[int, float]) -> None:
    logits = torch.linspace(-1, 1, NUM_BINS).repeat(4)
    log_probabilities = logits[:NUM_BINS].log_softmax(0)
    point, stride = torch.tensor([[80.0, 80.0]]), torch.tensor([[8.0]])
    goal = torch.tensor([[80 - 8 * distance, 80 - 8 * distance, 80 + 8 * distance, 80 + 8 * distance]])
    expected = -sum(share * log_probabilities[index].item() for index, share in bins.items())
    assert distribution_focal(logits[None], point, goal, stride).item() == pytest.approx(expected, abs=1e-4)


# --- empty and degenerate batches


def finite(maps: list[Tensor], total: Tensor) -> bool:
    total.backward()
    return bool(total.isfinite()) and all(
        level.grad is not None and bool(level.grad.isfinite().all()) for level in maps
    )


def test_no_objects_in_the_batch() -> None:
    maps = random_maps()
    total, items = score(maps, torch.zeros(0, 6))
    assert items["box"].item() == items["dfl"].item() == 0
    background = sum(torch.nn.functional.softplus(level[:, 64:]).sum().item() for level in maps)
    assert items["cls"].item() == pytest.approx(0.5 * background, rel=1e-5)
    assert finite(maps, total)


def test_an_image_without_objects_is_background() -> None:
    maps = random_maps()
    total, _ = score(maps, TARGETS)
    assert finite(maps, total)
    for level in maps:
        assert level.grad[1, :64].abs().max() == 0
        assert level.grad[1, 64:].min() > 0


@pytest.mark.parametrize(
    "box",
    [
        (0.5, 0.5, 0, 0),
        (0.5, 0.5, 0, 0.5),
        (0.5, 0.5, 1e-9, 1e-9),
        (0.0, 0.0, 0.001, 0.001),
        (1.5, 1.5, 0.2, 0.2),
        (0.5, 0.5, 4.0, 4.0),
    ],
)
def test_degenerate_objects(box: tuple) -> None:
    maps = random_maps()
    targets = torch.cat((TARGETS, torch.tensor([[1, 0, *box]])))
    total, _ = score(maps, targets)
    assert finite(maps, total)


@pytest.mark.parametrize("value", [-1e4, 1e4])
def test_saturated_logits(value: float) -> None:
    maps = [torch.full((3, 68, side, side), value).requires_grad_() for side in (8, 4, 2)]
    total, _ = score(maps, TARGETS)
    assert finite(maps, total)


def test_half_precision_maps_are_scored_in_float32() -> None:
    maps = [level.detach().bfloat16().requires_grad_() for level in random_maps()]
    total, _items = score(maps, TARGETS)
    assert total.dtype is torch.float32
    reference, _ = score([level.detach().float().requires_grad_() for level in maps], TARGETS)
    assert total.item() == pytest.approx(reference.item(), rel=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert score(maps, TARGETS)[0].item() == total.item()


def test_order_of_the_targets_does_not_matter() -> None:
    first, _ = score(random_maps(), TARGETS)
    second, _ = score(random_maps(), TARGETS.flip(0))
    assert first.item() == pytest.approx(second.item(), rel=1e-6)


# --- settings


@pytest.mark.parametrize("gain", ["box", "cls", "dfl"])
def test_every_gain_acts_on_its_item_alone(gain: str) -> None:
    _, plain = score(random_maps(), TARGETS)
    _, doubled = score(random_maps(), TARGETS, **{gain: 2 * getattr(Hyperparameters(), gain)})
    assert plain.keys() == {"box", "cls", "dfl"}
    for name, value in plain.items():
        assert doubled[name].item() == pytest.approx(value.item() * (2 if name == gain else 1), rel=1e-6)


@pytest.mark.parametrize("setting", [{"tal_topk": 2}, {"tal_alpha": 2.0}, {"tal_beta": 1.0}])
def test_every_assigner_setting_acts(setting: dict[str, float]) -> None:
    assert score(random_maps(), TARGETS)[0].item() != pytest.approx(
        score(random_maps(), TARGETS, **setting)[0].item(), rel=1e-4
    )


def test_auxiliary_branches_count_a_quarter_each() -> None:
    lead, first, second = (random_maps(seed) for seed in range(3))
    alone = [score(maps, TARGETS)[1] for maps in (lead, first, second)]
    _, items = score(lead, TARGETS, aux=[first, second])
    for name, value in items.items():
        assert value.item() == pytest.approx(
            alone[0][name].item() + 0.25 * (alone[1][name] + alone[2][name]).item(), rel=1e-5
        )


def test_the_auxiliary_weight_acts() -> None:
    lead, other = random_maps(0), random_maps(1)
    loss = DetectionLoss([8, 16, 32], Hyperparameters(aux=0.0))
    _, items = loss({"main": lead, "aux": [other]}, {"targets": TARGETS, "image_hw": (64, 64)})
    _, alone = score(random_maps(0), TARGETS)
    assert {name: value.item() for name, value in items.items()} == pytest.approx(
        {name: value.item() for name, value in alone.items()}
    )


# --- with a network


@pytest.mark.parametrize("branches", [1, 2, 3])
def test_one_loss_for_any_number_of_branches(branches: int) -> None:
    model = tiny_model(branches, nc=4).train()
    images = seeded_images(3, 3, 64, 64)
    total, items = build_loss(model)(model(images), {"images": images, "targets": TARGETS})
    total.backward()
    assert set(items) == {"box", "cls", "dfl"}
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    with torch.no_grad():
        _, raw = model.eval()(images, raw=True)
        assert build_loss(model)(raw, {"image_hw": (64, 64), "targets": TARGETS})[0].isfinite()


def test_image_size_from_either_key() -> None:
    loss, outputs = DetectionLoss([8, 16, 32], Hyperparameters()), {"main": random_maps(), "aux": []}
    by_size, _ = loss(outputs, {"targets": TARGETS, "image_hw": [64, 64]})
    by_images, _ = loss(outputs, {"targets": TARGETS, "images": torch.zeros(3, 3, 64, 64, dtype=torch.uint8)})
    assert by_size.item() == by_images.item()


def test_width_and_height_are_not_swapped() -> None:
    maps = [torch.zeros(1, 65, 4, 8).requires_grad_()]
    total, _ = score(maps, torch.tensor([[0, 0, 0.9375, 0.5, 0.125, 1.0]]))  # the last column of a 32 x 64 image
    total.backward()
    columns = maps[0].grad[0, :64].abs().sum((0, 1))
    assert columns[7] > 0
    assert columns[:7].sum() == 0


@pytest.mark.parametrize("source", [None, {}, {"box": 15.0}, Hyperparameters(box=15.0), "path"])
def test_build_loss_takes_mapping_path_or_nothing(source: Any, tmp_path: Path) -> None:
    if source == "path":
        source = tmp_path / "hyp.yaml"
        source.write_text("box: 15.0\n")
    assert build_loss(tiny_model(), source).hyp.box == (15.0 if source else 7.5)


def test_build_loss_refuses_unknown_keys() -> None:
    with pytest.raises(SettingsError) as error:
        build_loss(tiny_model(), {"boxx": 1.0})
    assert_says(error.value, "'boxx'", "'box'")


# --- instance segmentation


def segment_outputs(seed: int = 0, batch: int = 3) -> dict[str, Any]:
    """Return one branch's output for 64 x 64 images: three levels, four masks."""
    generator = torch.Generator().manual_seed(100 + seed)
    return {
        "maps": random_maps(seed, batch),
        "coefficients": torch.randn(batch, 4, 84, generator=generator).requires_grad_(),
        "prototypes": torch.randn(batch, 4, 16, 16, generator=generator).requires_grad_(),
    }


def segment_batch(targets: Tensor = TARGETS, **extra: Any) -> dict[str, Any]:
    masks = torch.randint(0, 3, (3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.int16)
    return {"targets": targets, "masks": masks, "image_hw": (64, 64)} | extra


def segment_score(
    batch: dict[str, Any], aux: tuple[dict[str, Any], ...] = (), **hyp: float
) -> tuple[Tensor, dict[str, Tensor]]:
    return SegmentationLoss([8, 16, 32], Hyperparameters(**hyp))({"main": segment_outputs(), "aux": list(aux)}, batch)


def test_the_mask_item_comes_on_top_of_the_others() -> None:
    total, items = segment_score(segment_batch())
    _, boxes_alone = score(random_maps(), TARGETS)
    assert list(items) == ["box", "cls", "dfl", "mask"]
    assert {name: items[name].item() for name in boxes_alone} == {
        name: value.item() for name, value in boxes_alone.items()
    }
    assert items["mask"].item() > 0
    assert total.item() == pytest.approx(3 * sum(item.item() for item in items.values()), rel=1e-6)


def test_the_mask_gain_acts_on_its_item_alone() -> None:
    plain, doubled = segment_score(segment_batch())[1], segment_score(segment_batch(), mask=15.0)[1]
    assert {name: doubled[name].item() / value.item() for name, value in plain.items()} == pytest.approx(
        {"box": 1, "cls": 1, "dfl": 1, "mask": 2}
    )


def test_auxiliary_masks_count_a_quarter() -> None:
    alone = [
        SegmentationLoss([8, 16, 32], Hyperparameters())({"main": segment_outputs(seed), "aux": []}, segment_batch())[1]
        for seed in (0, 1)
    ]
    _, items = segment_score(segment_batch(), aux=(segment_outputs(1),))
    for name, value in items.items():
        assert value.item() == pytest.approx(alone[0][name].item() + 0.25 * alone[1][name].item(), rel=1e-5)


def test_masks_without_objects_are_zero_and_finite() -> None:
    outputs = segment_outputs()
    total, items = SegmentationLoss([8, 16, 32], Hyperparameters())(
        {"main": outputs, "aux": []}, segment_batch(torch.zeros(0, 6))
    )
    total.backward()
    assert items["mask"].item() == 0
    assert total.isfinite()
    assert outputs["prototypes"].grad.eq(0).all()


def test_objects_without_outline_have_no_mask_term() -> None:
    some = torch.tensor([True, False, True, False])
    whole, partly = segment_score(segment_batch())[1], segment_score(segment_batch(outlined=some))[1]
    assert partly["box"].item() == whole["box"].item()
    assert partly["mask"].item() != pytest.approx(whole["mask"].item(), rel=1e-3)
    changed = segment_batch(outlined=some)
    changed["masks"][0][changed["masks"][0] == 2] = 0  # the second object of the first image has no outline
    assert segment_score(changed)[1]["mask"].item() == partly["mask"].item()
    assert segment_score(segment_batch(outlined=torch.zeros(4, dtype=torch.bool)))[1]["mask"].item() == 0


def test_order_of_the_targets_between_images_does_not_matter() -> None:
    first, second = segment_score(segment_batch())[1], segment_score(segment_batch(TARGETS[[2, 0, 3, 1]]))[1]
    assert first["mask"].item() == pytest.approx(second["mask"].item(), rel=1e-6)


@pytest.mark.parametrize("branches", [1, 2])
def test_a_segmentation_network_learns_by_every_parameter(branches: int) -> None:
    torch.manual_seed(0)
    model = Model(tiny_segment_config(branches, nc=4)).train()
    images = seeded_images(3, 3, 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(images)
    total, items = build_loss(model)(outputs, segment_batch() | {"images": images})
    total.backward()
    assert items["mask"].item() > 0
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    with torch.no_grad():
        _, raw = model.eval()(images, raw=True)
        assert build_loss(model)(raw, segment_batch())[0].isfinite()


def test_maps_of_another_size_than_the_prototypes() -> None:
    """Multi-scale training: images and prototypes are resized, index maps are not."""
    batch = segment_batch()
    batch["masks"] = batch["masks"].repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert segment_score(batch)[1]["mask"].item() == pytest.approx(segment_score(segment_batch())[1]["mask"].item())


def test_a_task_without_a_loss_is_an_error() -> None:
    """A head of a new kind must not train with the loss of another."""
    with pytest.raises(SettingsError) as caught:
        build_loss(SimpleNamespace(task="pose", stride=[8], config={}))
    assert_says(caught.value, "'pose'", "detect", "segment")
