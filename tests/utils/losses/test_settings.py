"""Losses by name: spellings, what is refused and how, which yaml wins, and that every name acts and is documented."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from tests.networks import tiny_config
from tests.utils.losses.test_detection import (
    TARGETS,
    WHOLE,
    halfway,
    one_cell,
    random_maps,
    segment_batch,
    segment_outputs,
)
from utils.errors import ModelConfigError, SettingsError
from utils.hyperparameters import Hyperparameters, load_hyperparameters
from utils.losses.detection import DetectionLoss, SegmentationLoss, build_loss
from utils.losses.parts import Range, part, registered_parts
from utils.losses.settings import DEFAULTS, build_settings, choose_loss, conflicts, read_loss

REPOSITORY = Path(__file__).parents[3]
KINDS = ("box", "wrap", "cls", "assigner")
EACH = [
    *({"box": name} for name in registered_parts("box") if name != "ciou"),
    *({"wrap": [name]} for name in registered_parts("wrap")),
    *({"cls": name} for name in registered_parts("cls") if name != "bce"),
    {"assigner": "atss"},
    {"assigner_iou": "nwd"},
]


def score(
    maps: list[Tensor], targets: Tensor, loss: dict[str, Any], aux: tuple = (), **hyp: float
) -> tuple[Tensor, dict[str, Tensor]]:
    built = DetectionLoss([8, 16, 32][: len(maps)], Hyperparameters(loss=loss, **hyp))
    return built(
        {"main": maps, "aux": list(aux)}, {"targets": targets, "image_hw": (maps[0].shape[2] * 8, maps[0].shape[3] * 8)}
    )


# --- spellings


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, {}),
        ({}, {}),
        ({"box": "ciou"}, {"box": "ciou"}),
        ({"box": "Shape-IoU"}, {"box": "shape_iou(scale=0.0)"}),
        ({"box": "shape_iou(0.5)"}, {"box": "shape_iou(scale=0.5)"}),
        ({"box": " shape-iou ( scale = 1 ) "}, {"box": "shape_iou(scale=1.0)"}),
        ({"box": {"shape_iou": {"scale": 0.5}}}, {"box": "shape_iou(scale=0.5)"}),
        ({"box": {"shape_iou": 0.5}}, {"box": "shape_iou(scale=0.5)"}),
        ({"box": {"shape_iou": None}}, {"box": "shape_iou(scale=0.0)"}),
        ({"box": {"nwd": [10, 0.5]}}, {"box": "nwd(c=10.0, share=0.5)"}),
        ({"box": "nwd(c=1e1)"}, {"box": "nwd(c=10.0, share=1.0)"}),
        ({"box": "WIoU-v3"}, {"box": "wiou(alpha=1.9, delta=3.0, momentum=0.01)"}),
        ({"box": "ciou()"}, {"box": "ciou"}),
        ({"cls": "VFL"}, {"cls": "varifocal(alpha=0.75, gamma=2.0)"}),
        ({"cls": "quality-focal"}, {"cls": "quality_focal(beta=2.0)"}),
        ({"assigner": "TAL"}, {"assigner": "task_aligned"}),
        ({"assigner": "atss(topk=7)"}, {"assigner": "atss(topk=7, anchor_scale=5.0)"}),
        ({"assigner-iou": "giou"}, {"assigner_iou": "giou"}),
        ({"assigner_iou": "same"}, {"assigner_iou": "same"}),
        ({"assigner_iou": None}, {"assigner_iou": "same"}),
        ({"wrap": None}, {"wrap": []}),
        ({"wrap": []}, {"wrap": []}),
        ({"wrap": "inner(0.8)"}, {"wrap": ["inner(ratio=0.8)"]}),
        ({"wrap": ["inner(0.8)", {"focaler": [0.1, 0.9]}]}, {"wrap": ["inner(ratio=0.8)", "focaler(d=0.1, u=0.9)"]}),
        ({"wrap": {"inner": 0.8, "focaler": {"u": 0.9}}}, {"wrap": ["inner(ratio=0.8)", "focaler(d=0.0, u=0.9)"]}),
    ],
)
def test_spellings(given: Any, expected: dict[str, Any]) -> None:
    assert read_loss(given, "hyp.yaml") == expected
    assert read_loss(expected, "again") == expected
    assert yaml.safe_load(yaml.safe_dump(expected)) == expected


def test_the_form_of_the_documents() -> None:
    text = "loss: {box: shape_iou, wrap: [inner(0.8), focaler(0, 0.95)], cls: varifocal, assigner: atss, assigner_iou: ciou}"
    assert text in (REPOSITORY / "docs" / "losses.md").read_text()
    assert str(build_settings(yaml.safe_load(text)["loss"])) == (
        "box shape_iou(scale=0.0) in inner(ratio=0.8), focaler(d=0.0, u=0.95), cls varifocal(alpha=0.75, gamma=2.0), "
        "assigner atss(topk=9, anchor_scale=5.0) by ciou"
    )
    assert str(build_settings({})) == "box ciou, cls bce, assigner task_aligned by ciou"


# --- what is refused


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("siou", "hyp.yaml: loss: 'siou': expected a mapping such as {box: ciou, cls: bce, assigner: task_aligned}"),
        (
            {"boxes": "ciou"},
            "hyp.yaml: loss: boxes: unknown key: expected box, wrap, cls, assigner, assigner_iou. Did you mean 'box'?",
        ),
        (
            {"box": "shap-iou"},
            "hyp.yaml: loss: box: 'shap-iou': unknown box loss: expected one of ciou, iou, giou, diou, eiou, siou, shape_iou, mpdiou, nwd, wiou. "
            "Did you mean 'shape_iou'?",
        ),
        (
            {"cls": "vfocal"},
            "hyp.yaml: loss: cls: 'vfocal': unknown class loss: expected one of bce, varifocal, quality_focal, slide. Did you mean 'varifocal'?",
        ),
        (
            {"assigner": "attss"},
            "hyp.yaml: loss: assigner: 'attss': unknown assigner: expected one of task_aligned, atss. Did you mean 'atss'?",
        ),
        (
            {"wrap": ["iner(1)"]},
            "hyp.yaml: loss: wrap: 'iner(1)': unknown wrapper: expected one of inner, focaler. Did you mean 'inner'?",
        ),
        ({"wrap": "inner(0)"}, "hyp.yaml: loss: wrap: 'inner(0)': ratio is 0: expected a number above 0 up to 10"),
        (
            {"wrap": "inner(-0.5)"},
            "hyp.yaml: loss: wrap: 'inner(-0.5)': ratio is -0.5: expected a number above 0 up to 10",
        ),
        (
            {"wrap": {"inner": float("nan")}},
            "hyp.yaml: loss: wrap: {'inner': nan}: ratio is nan: expected a number above 0 up to 10",
        ),
        (
            {"wrap": "focaler(0.95, 0.5)"},
            "hyp.yaml: loss: wrap: 'focaler(0.95, 0.5)': d is 0.95 and u is 0.5: expected d < u",
        ),
        (
            {"wrap": "focaler(0.5, 0.5)"},
            "hyp.yaml: loss: wrap: 'focaler(0.5, 0.5)': d is 0.5 and u is 0.5: expected d < u",
        ),
        ({"wrap": "focaler(u=1.5)"}, "hyp.yaml: loss: wrap: 'focaler(u=1.5)': u is 1.5: expected a number from 0 to 1"),
        (
            {"wrap": ["inner", "inner"]},
            "hyp.yaml: loss: wrap: ['inner', 'inner']: 'inner' is given twice: leave one out",
        ),
        ({"box": "inner(0.8)"}, "hyp.yaml: loss: box: 'inner(0.8)': unknown box loss: expected one of ciou, iou,"),
        ({"box": "nwd(c=0)"}, "hyp.yaml: loss: box: 'nwd(c=0)': c is 0: expected a number above 0 up to 10000"),
        ({"box": "ciou(1)"}, "hyp.yaml: loss: box: 'ciou(1)': ciou takes no numbers"),
        (
            {"assigner": "tal(13)"},
            "hyp.yaml: loss: assigner: 'tal(13)': task_aligned takes no numbers: tal_topk, tal_alpha and tal_beta are hyperparameters beside it",
        ),
        (
            {"box": "shape_iou(1, 2)"},
            "hyp.yaml: loss: box: 'shape_iou(1, 2)': 2 numbers: expected at most 1: shape_iou(scale=0.0)",
        ),
        (
            {"box": "shape_iou(scal=1)"},
            "hyp.yaml: loss: box: 'shape_iou(scal=1)': unknown parameter 'scal': expected shape_iou(scale=0.0). Did you mean 'scale'?",
        ),
        (
            {"box": "shape_iou(one)"},
            "hyp.yaml: loss: box: 'shape_iou(one)': 'one' is no number: expected one such as 0.5",
        ),
        (
            {"box": "wiou(alpha=2, 3)"},
            "hyp.yaml: loss: box: 'wiou(alpha=2, 3)': 3 follows a named number: expected numbers without names first",
        ),
        ({"box": "wiou(2, alpha=2)"}, "hyp.yaml: loss: box: 'wiou(2, alpha=2)': alpha is given twice"),
        ({"box": "wiou(delta=2, delta=2)"}, "hyp.yaml: loss: box: 'wiou(delta=2, delta=2)': delta is given twice"),
        ({"assigner": "atss(2.5)"}, "hyp.yaml: loss: assigner: 'atss(2.5)': topk is 2.5: expected a whole number"),
        ({"assigner": "atss(0)"}, "hyp.yaml: loss: assigner: 'atss(0)': topk is 0: expected a number from 1 to 1000"),
        (
            {"box": "wiou(1.9"},
            "hyp.yaml: loss: box: 'wiou(1.9': expected the name of a box loss, with numbers in brackets if any, such as ciou (within",
        ),
        ({"box": "__import__('os')"}, "hyp.yaml: loss: box: \"__import__('os')\": expected the name of a box loss"),
        ({"box": 3}, "hyp.yaml: loss: box: 3: expected the name of a box loss"),
        ({"box": None}, "hyp.yaml: loss: box: None: expected the name of a box loss"),
        ({"box": True}, "hyp.yaml: loss: box: True: expected the name of a box loss"),
        (
            {"box": {"siou": 4, "ciou": 1}},
            "hyp.yaml: loss: box: {'siou': 4, 'ciou': 1}: expected the name of a box loss",
        ),
        ({"box": {"siou": {"theta": "many"}}}, "hyp.yaml: loss: box: {'siou': {'theta': 'many'}}: 'many' is no number"),
        ({"box": ["siou"]}, "hyp.yaml: loss: box: ['siou']: expected the name of a box loss"),
        (
            {"wrap": 3},
            "hyp.yaml: loss: wrap: 3: expected the name of a wrapper, with numbers in brackets if any, such as inner(ratio=0.8)",
        ),
        ({"assigner_iou": "atss"}, "hyp.yaml: loss: assigner_iou: 'atss': unknown box loss"),
        (
            {"assigner-iou": "ciou", "assigner_iou": "ciou"},
            "hyp.yaml: loss: assigner_iou: is given twice: leave one out",
        ),
    ],
)
def test_refused(given: Any, message: str) -> None:
    with pytest.raises(SettingsError) as error:
        read_loss(given, "hyp.yaml")
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_comma_that_yaml_took() -> None:
    with pytest.raises(
        SettingsError, match=r"'wiou\(1\.9': .*within \{ \} or \[ \], a comma ends the text unless it is quoted"
    ):
        read_loss(yaml.safe_load("{box: wiou(1.9, 3), cls: bce}"), "hyp.yaml")


def test_the_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("loss:\n  box: cio\n")
    with pytest.raises(
        SettingsError, match=r"mine\.yaml: loss: box: 'cio': unknown box loss: .* Did you mean 'ciou'\?"
    ):
        load_hyperparameters(tmp_path / "mine.yaml")
    with pytest.raises(ModelConfigError, match=r"^net\.yaml: loss: cls: 'x'"):
        choose_loss({}, {"cls": "x"}, "net.yaml")


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match="box loss 'C-IoU' is registered already"):
        part("box", name="C-IoU", scale=Range(0, 1))(lambda pairs, scale=0.0: pairs)


# --- which yaml wins


def test_hyperparameters_go_before_the_network_key_by_key() -> None:
    network = {"box": "siou", "wrap": ["inner(0.7)"], "cls": "vfl"}
    assert choose_loss({}, None) == DEFAULTS
    assert choose_loss({}, network) == DEFAULTS | read_loss(network, "net")
    chosen = choose_loss({"box": "ciou", "assigner": "atss"}, network)
    assert (chosen["box"], chosen["wrap"], chosen["cls"][:9], chosen["assigner"][:4]) == (
        "ciou",
        ["inner(ratio=0.7)"],
        "varifocal",
        "atss",
    )
    said = conflicts({"box": "ciou", "assigner": "atss", "cls": "varifocal"}, network, "mine.yaml", "net.yaml")
    assert said == ["loss: box: ciou of mine.yaml goes before siou(theta=4.0) of net.yaml"]
    assert DEFAULTS == {"box": "ciou", "wrap": [], "cls": "bce", "assigner": "task_aligned", "assigner_iou": "same"}


def test_build_loss_takes_the_networks() -> None:
    from models.yolo import Model

    model = Model(tiny_config() | {"loss": {"box": "wiou(momentum=0.5)", "assigner": "atss"}})
    assert set(build_loss(model).state_dict()) == {"mean"}
    assert build_loss(model, {"loss": {"box": "ciou"}}).state_dict() == {}


# --- that they act


@pytest.mark.parametrize("loss", EACH, ids=str)
def test_every_name_acts(loss: dict[str, Any]) -> None:
    _, plain = score(random_maps(), TARGETS, {}, tal_beta=1.0)
    _, changed = score(random_maps(), TARGETS, loss, tal_beta=1.0)
    key = next(iter(loss))
    item = "cls" if key == "cls" else "box"
    assert changed[item].item() != pytest.approx(plain[item].item(), rel=1e-4)
    if key == "cls":
        assert (changed["box"].item(), changed["dfl"].item()) == (plain["box"].item(), plain["dfl"].item())
    _, apart = score(random_maps(), TARGETS, {"assigner_iou": "ciou"} | loss, tal_beta=1.0)
    if key in ("box", "wrap"):
        assert apart["dfl"].item() == plain["dfl"].item(), "with its own measure the assigner finds what it found"


def test_the_default_said_in_full_is_the_default() -> None:
    total, items = score(random_maps(), TARGETS, {})
    same, again = score(random_maps(), TARGETS, DEFAULTS | {"assigner_iou": "ciou"})
    assert total.item() == same.item()
    assert {name: value.item() for name, value in items.items()} == {
        name: value.item() for name, value in again.items()
    }


def test_the_assigner_follows_the_loss_by_hand() -> None:
    # the predicted box is 120 x 120 around the 8 x 8 object: CIoU 64 / 14400, and W = 56 sqrt(2) makes NWD e^(-79.196 / 12.7) = 0.0019578;
    # with tal_beta 1 that is the score of the one anchor point, and the weight of its dfl, 1.5 ln 16
    flat = 1.5 * 2.7725887
    for loss, expected in (
        ({}, 64 / 14400),
        ({"box": "nwd"}, 0.0019578),
        ({"box": "nwd", "assigner_iou": "ciou"}, 64 / 14400),
    ):
        _, items = score(one_cell(torch.zeros(64)), WHOLE, loss, tal_beta=1.0)
        assert items["dfl"].item() == pytest.approx(flat * expected, rel=1e-4)
    # focaler(0, 0.01) lifts the overlap to 0.444444 in both
    _, items = score(one_cell(torch.zeros(64)), WHOLE, {"wrap": ["focaler(0, 0.01)"]}, tal_beta=1.0)
    assert items["dfl"].item() == pytest.approx(flat * 64 / 144, rel=1e-4)
    assert items["box"].item() == pytest.approx(7.5 * (1 - 64 / 144) * 64 / 144, rel=1e-4)


def test_atss_scores_by_the_measure_too() -> None:
    for loss, expected in (({}, 64 / 14400), ({"box": "nwd"}, 0.0019578)):
        _, items = score(one_cell(torch.zeros(64)), WHOLE, {"assigner": "atss"} | loss)
        assert items["dfl"].item() == pytest.approx(1.5 * 2.7725887 * expected, rel=1e-4)


@pytest.mark.parametrize(
    "loss", [{"box": "eiou"}, {"box": "siou"}, {"box": "mpdiou"}, {"wrap": ["focaler(0.5, 0.9)"]}], ids=str
)
@pytest.mark.parametrize("assigner", ["task_aligned", "atss"])
def test_a_measure_below_0_everywhere_gives_way_to_iou(loss: dict[str, Any], assigner: str) -> None:
    # 120 x 120 around 8 x 8: every measure here is below 0 (EIoU by 2 (112 / 120)^2 = 1.74), and no point would answer
    _, items = score(one_cell(torch.zeros(64)), WHOLE, loss | {"assigner": assigner}, tal_beta=1.0)
    assert items["dfl"].item() == pytest.approx(1.5 * 2.7725887 * 64 / 14400, rel=1e-4)


def test_mpdiou_knows_the_images_size_and_nwd_counts_pixels() -> None:
    # centred on the object of 8 x 8 pixels, each corner 56 * sqrt(2) off: 2 * 2 * 56^2 / (8^2 + 8^2) = 98 less than IoU
    _, items = score(one_cell(torch.zeros(64)), WHOLE, {"box": "mpdiou", "assigner_iou": "ciou"}, tal_beta=1.0)
    assert items["box"].item() == pytest.approx(7.5 * (1 - 64 / 14400 + 98) * 64 / 14400, rel=1e-4)
    _, items = score(
        one_cell(torch.zeros(64)), WHOLE, {"box": "nwd(c=79.195959)", "assigner_iou": "ciou"}, tal_beta=1.0
    )
    assert items["box"].item() == pytest.approx(7.5 * (1 - 0.3678794) * 64 / 14400, rel=1e-4)


def test_perfect_boxes_cost_nothing_by_any_measure() -> None:
    for name in registered_parts("box"):
        _, items = score(one_cell(halfway(), class_logit=2.0), WHOLE, {"box": name, "wrap": ["inner(1.2)"]})
        assert items["box"].item() == pytest.approx(0, abs=1e-5), name


@pytest.mark.parametrize(
    "loss",
    [*EACH, {"box": "siou", "wrap": ["inner(0.7)", "focaler(0, 0.95)"], "cls": "slide", "assigner": "atss"}],
    ids=str,
)
def test_empty_and_degenerate_targets(loss: dict[str, Any]) -> None:
    odd = [(0.5, 0.5, 0, 0), (0.5, 0.5, 0, 0.5), (0.5, 0.5, 1e-9, 1e-9), (1.5, 1.5, 0.2, 0.2), (0.5, 0.5, 4.0, 4.0)]
    for targets in (torch.zeros(0, 6), TARGETS, torch.cat((TARGETS, torch.tensor([[1, 0, *box] for box in odd])))):
        maps = random_maps()
        total, _ = score(maps, targets, loss)
        total.backward()
        assert total.isfinite()
        assert all(level.grad.isfinite().all() for level in maps)


@pytest.mark.parametrize("loss", EACH, ids=str)
def test_segmentation_has_the_same_losses(loss: dict[str, Any]) -> None:
    built = SegmentationLoss([8, 16, 32], Hyperparameters(loss=loss))
    total, items = built({"main": segment_outputs(), "aux": [segment_outputs(1)]}, segment_batch())
    total.backward()
    _, boxes_alone = score(random_maps(), TARGETS, loss, aux=(random_maps(1),))
    assert total.isfinite()
    assert {name: items[name].item() for name in boxes_alone} == {
        name: value.item() for name, value in boxes_alone.items()
    }


# --- state


def test_the_running_mean_learns_from_the_lead_branch_in_training_only() -> None:
    batch = {"targets": WHOLE, "image_hw": (8, 8)}
    loss = DetectionLoss([8], Hyperparameters(loss={"box": "wiou(momentum=0.5)"}))
    with torch.no_grad():
        loss({"main": one_cell(torch.zeros(64)), "aux": []}, batch)
    with torch.inference_mode():
        loss({"main": [level.detach() for level in one_cell(torch.zeros(64))], "aux": []}, batch)
    assert loss.state_dict()["mean"].item() == 1
    loss({"main": one_cell(torch.zeros(64)), "aux": []}, batch)
    after = 1 - 0.5 * 64 / 14400
    assert loss.state_dict()["mean"].item() == pytest.approx(after, rel=1e-6)
    other = DetectionLoss([8], Hyperparameters(loss={"box": "wiou(momentum=0.5)"}))
    other(
        {"main": one_cell(torch.zeros(64)), "aux": [one_cell(halfway())]}, batch
    )  # the auxiliary branch's boxes are perfect
    assert other.state_dict()["mean"].item() == loss.state_dict()["mean"].item()


def test_the_state_after_evaluation_can_still_be_trained_with() -> None:
    loss = DetectionLoss([8], Hyperparameters(loss={"box": "wiou"}))
    batch = {"targets": WHOLE, "image_hw": (8, 8)}
    with torch.inference_mode():
        loss({"main": one_cell(torch.zeros(64)), "aux": []}, batch)
    loss({"main": one_cell(torch.zeros(64)), "aux": []}, batch)[0].backward()


# --- documents


@pytest.mark.parametrize("kind", KINDS)
def test_every_name_is_documented_and_has_its_source(kind: str) -> None:
    text = (REPOSITORY / "docs" / "losses.md").read_text()
    for entry in registered_parts(kind).values():
        assert f"`{entry.signature()}`" in text, entry.name
        assert "Source: " in entry.make.__doc__, entry.name
        for name, limits in entry.ranges.items():
            assert limits.holds(entry.defaults()[name]), (entry.name, name)
            assert f"{name} {limits}" in text, (entry.name, name)
