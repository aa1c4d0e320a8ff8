"""Losses by name: spellings, what is refused and how, which yaml wins, and that every name acts and is documented."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from models.yolo import Model
from tests.networks import tiny_config, tiny_model
from tests.saying import assert_says
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
from utils.hyperparameters import Hyperparameters
from utils.losses.box import Measure, Pairs
from utils.losses.detection import DetectionLoss, SegmentationLoss, build_loss
from utils.losses.parts import Parts, Range, part
from utils.losses.settings import DEFAULTS, PARTS, read_loss, settle_loss

REPOSITORY = Path(__file__).parents[3]
EACH = [
    *({"box": entry.name} for entry in PARTS["box"] if entry.name != "ciou"),
    *({"wrap": [entry.name]} for entry in PARTS["wrap"]),
    *({"cls": entry.name} for entry in PARTS["cls"] if entry.name != "bce"),
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
        ({"wrap": "inner(0.8), focaler"}, {"wrap": ["inner(ratio=0.8)", "focaler(d=0.0, u=0.95)"]}),
        # as yaml cuts [inner(0.8), focaler(0, 0.95)] and [focaler(d=0.1, u=0.9), inner]
        ({"wrap": ["inner(0.8)", "focaler(0", "0.95)"]}, {"wrap": ["inner(ratio=0.8)", "focaler(d=0.0, u=0.95)"]}),
        ({"wrap": ["focaler(d=0.1", "u=0.9)", "inner"]}, {"wrap": ["focaler(d=0.1, u=0.9)", "inner(ratio=0.8)"]}),
        ({"box": {"nwd": {"c": "1e1"}}}, {"box": "nwd(c=10.0, share=1.0)"}),
        ({"box": "nwd(.5e1, 1.)"}, {"box": "nwd(c=5.0, share=1.0)"}),
        ({"box": "nwd(+8)"}, {"box": "nwd(c=8.0, share=1.0)"}),
    ],
)
def test_spellings(given: Any, expected: dict[str, Any]) -> None:
    written = settle_loss(given)[0].as_dict()
    assert written == DEFAULTS | expected
    assert read_loss(given, "hyp.yaml").keys() == expected.keys()
    assert settle_loss(yaml.safe_load(yaml.safe_dump(written)))[0].as_dict() == written


def test_the_form_of_the_documents() -> None:
    text = (
        "loss: {box: shape_iou, wrap: [inner(0.8), focaler(0, 0.95)], cls: varifocal, assigner: atss, "
        "assigner_iou: ciou}"
    )
    assert text in (REPOSITORY / "docs" / "losses.md").read_text()
    assert str(settle_loss(yaml.safe_load(text)["loss"])[0]) == (
        "box shape_iou(scale=0.0) in inner(ratio=0.8), focaler(d=0.0, u=0.95), cls varifocal(alpha=0.75, gamma=2.0), "
        "assigner atss(topk=9, anchor_scale=5.0) by ciou"
    )
    assert str(settle_loss({})[0]) == "box ciou, cls bce, assigner task_aligned by ciou"


# --- what is refused


@pytest.mark.parametrize(
    ("given", "facts"),
    [
        ("siou", ["loss", "'siou'", "{box: ciou, cls: bce, assigner: task_aligned}"]),
        ({"boxes": "ciou"}, ["loss: boxes", *DEFAULTS, "'box'"]),
        ({"box": "shap-iou"}, ["loss: box", "shap-iou", *(entry.name for entry in PARTS["box"]), "'shape_iou'"]),
        ({"cls": "vfocal"}, ["loss: cls", "vfocal", "bce", "varifocal", "quality_focal", "slide", "'varifocal'"]),
        ({"assigner": "attss"}, ["loss: assigner", "attss", "task_aligned", "'atss'"]),
        ({"wrap": ["iner(1)"]}, ["loss: wrap", "iner(1)", "focaler", "'inner'"]),
        ({"wrap": "inner(0)"}, ["loss: wrap", "ratio is 0", "above 0 up to 10"]),
        ({"wrap": "inner(-0.5)"}, ["loss: wrap", "ratio is -0.5", "above 0 up to 10"]),
        ({"wrap": {"inner": float("nan")}}, ["loss: wrap", "ratio is nan", "above 0 up to 10"]),
        ({"wrap": "focaler(0.95, 0.5)"}, ["loss: wrap", "focaler(0.95, 0.5)", "d is 0.95", "u is 0.5", "d < u"]),
        ({"wrap": "focaler(0.5, 0.5)"}, ["loss: wrap", "d is 0.5", "u is 0.5", "d < u"]),
        ({"wrap": "focaler(u=1.5)"}, ["loss: wrap", "u is 1.5", "from 0 to 1"]),
        ({"wrap": ["inner", "inner"]}, ["loss: wrap", "['inner', 'inner']", "twice"]),
        ({"wrap": ["focaler(0.9", "0.1)"]}, ["loss: wrap", "focaler(0.9, 0.1)", "d < u"]),
        ({"wrap": ["inner", "focaler("]}, ["loss: wrap", "inner, focaler(", "wrapper", "inner(ratio=0.8)"]),
        ({"wrap": [["inner"]]}, ["loss: wrap", "wrapper", "inner(ratio=0.8)"]),
        ({"box": "inner(0.8)"}, ["loss: box", "inner(0.8)", "ciou", "iou"]),
        ({"box": "nwd(c=0)"}, ["loss: box", "c is 0", "above 0 up to 10000"]),
        ({"box": "nwd(c=1e999)"}, ["loss: box", "c is inf", "above 0 up to 10000"]),
        ({"box": {"nwd": 10**400}}, ["loss: box", "0.5"]),
        ({"box": "ciou(1)"}, ["loss: box", "ciou takes no numbers"]),
        ({"assigner": "tal(13)"}, ["loss: assigner", "task_aligned", "tal_topk", "tal_alpha", "tal_beta"]),
        ({"box": "shape_iou(1, 2)"}, ["loss: box", "2 numbers", "at most 1", "shape_iou(scale=0.0)"]),
        ({"box": "shape_iou(scal=1)"}, ["loss: box", "'scal'", "shape_iou(scale=0.0)", "'scale'"]),
        ({"box": "shape_iou(one)"}, ["loss: box", "'one'", "number", "0.5"]),
        ({"box": "shape_iou(1j)"}, ["loss: box", "'1j'", "number"]),
        ({"box": "shape_iou(True)"}, ["loss: box", "'True'", "number"]),
        ({"box": "shape_iou('1')"}, ["loss: box", "number"]),
        ({"box": "shape_iou(*[1])"}, ["loss: box", "'*[1]'", "number"]),
        ({"box": "shape_iou(**{})"}, ["loss: box", "number"]),
        ({"box": "wiou(alpha=2, 3)"}, ["loss: box", "wiou(alpha=2, 3)", "positional argument follows keyword"]),
        ({"box": "wiou(2, alpha=2)"}, ["loss: box", "alpha is given twice"]),
        ({"box": "wiou(delta=2, delta=2)"}, ["loss: box", "delta is given twice"]),
        ({"assigner": "atss(2.5)"}, ["loss: assigner", "topk is 2.5", "whole"]),
        ({"assigner": "atss(0)"}, ["loss: assigner", "topk is 0", "from 1 to 1000"]),
        ({"box": "wiou(1.9"}, ["loss: box", "'wiou(1.9'", "box loss", "ciou", "comma", "quoted"]),
        ({"box": "__import__('os')"}, ["loss: box", "__import__('os')", "number"]),
        ({"box": "os.system(1)"}, ["loss: box", "box loss", "ciou"]),
        ({"box": "(lambda: 1)()"}, ["loss: box", "box loss", "ciou"]),
        ({"box": "siou, iou"}, ["loss: box", "2 names", "box loss"]),
        ({"box": "-" * 100000 + "1"}, ["loss: box", "500 characters"]),
        ({"box": "nwd(" + "-" * 400 + "x)"}, ["loss: box", "number"]),
        ({"box": "siou\0"}, ["loss: box", "box loss"]),
        ({"box": ""}, ["loss: box", "box loss"]),
        ({"box": 3}, ["loss: box", "3", "box loss"]),
        ({"box": None}, ["loss: box", "None", "box loss"]),
        ({"box": True}, ["loss: box", "True", "box loss"]),
        ({"box": {}}, ["loss: box", "box loss"]),
        ({"box": {"siou": 4, "ciou": 1}}, ["loss: box", "2 names", "box loss"]),
        ({"box": {"siou": {"theta": "many"}}}, ["loss: box", "'many'", "number"]),
        ({"box": ["siou"]}, ["loss: box", "['siou']", "box loss"]),
        ({"wrap": 3}, ["loss: wrap", "3", "wrapper", "inner(ratio=0.8)"]),
        ({"assigner_iou": "atss"}, ["loss: assigner_iou", "atss", "box loss"]),
        ({"assigner-iou": "ciou", "assigner_iou": "ciou"}, ["loss: assigner_iou", "twice"]),
    ],
)
def test_refused(given: Any, facts: list[str]) -> None:
    with pytest.raises(SettingsError) as error:
        read_loss(given, "hyp.yaml")
    assert str(error.value).startswith("hyp.yaml: loss: ")
    assert_says(error.value, *facts)
    assert "\n" not in str(error.value)


def test_a_comma_that_yaml_took() -> None:
    with pytest.raises(SettingsError) as error:
        read_loss(yaml.safe_load("{box: wiou(1.9, 3), cls: bce}"), "hyp.yaml")
    assert_says(error.value, "'wiou(1.9'", "comma", "quoted")


def test_the_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("loss:\n  box: cio\n")
    with pytest.raises(SettingsError) as error:
        build_loss(tiny_model(), tmp_path / "mine.yaml")
    assert_says(error.value, f"{tmp_path}/mine.yaml: loss: box", "'cio'", "'ciou'")
    with pytest.raises(ModelConfigError) as error:
        settle_loss({}, {"cls": "x"}, "mine.yaml", "net.yaml")
    assert_says(error.value, "net.yaml: loss: cls", "'x'")


def test_a_name_is_registered_once() -> None:
    @part(name="C-IoU", scale=Range(0, 1))
    def again(pairs: Pairs, scale: float = 0.0) -> Tensor:
        return pairs.iou

    with pytest.raises(ValueError, match="'C-IoU'"):
        PARTS["box"].add(again)
    with pytest.raises(ValueError, match="'C-IoU'"):
        Parts("box loss", again, again)


# --- which yaml wins


def test_hyperparameters_override_the_network_key_by_key() -> None:
    network = {"box": "siou", "wrap": ["inner(0.7)"], "cls": "vfl"}
    assert settle_loss({}, None) == settle_loss(DEFAULTS)
    assert settle_loss({}, network) == settle_loss(network)
    chosen = settle_loss({"box": "ciou", "assigner": "atss"}, network)[0].as_dict()
    assert (chosen["box"], chosen["wrap"], chosen["cls"][:9], chosen["assigner"][:4]) == (
        "ciou",
        ["inner(ratio=0.7)"],
        "varifocal",
        "atss",
    )
    ours = {"box": "ciou", "assigner": "atss", "cls": "varifocal"}
    overridden = settle_loss(ours, network, "mine.yaml", "net.yaml")[1]
    assert len(overridden) == 1, "cls is the same in both, assigner is in one of them"
    assert_says(overridden[0], "loss: box", "ciou of mine.yaml", "siou(theta=4.0) of net.yaml")
    assert settle_loss({})[0].as_dict() == DEFAULTS


def test_build_loss_takes_the_networks() -> None:
    model = Model(tiny_config() | {"loss": {"box": "wiou(momentum=0.5)", "assigner": "atss"}})
    assert set(build_loss(model).state_dict()) == {"mean"}
    assert build_loss(model, {"loss": {"box": "ciou"}}).state_dict() == {}


def test_importing_losses_imports_no_network() -> None:
    command = "import sys, utils.losses; print([name for name in sys.modules if name.startswith('models')])"
    done = subprocess.run([sys.executable, "-c", command], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- a part of one's own


@part(momentum=Range(0, 1))
class Smoothed(Measure):
    """IoU over its largest mean so far, as a plug-in could write it."""

    def __init__(self, momentum: float = 0.5) -> None:
        self.momentum, self.largest = momentum, torch.zeros(())

    def __call__(self, pairs: Pairs) -> Tensor:
        return pairs.iou

    def loss(self, pairs: Pairs) -> Tensor:
        return (1 - pairs.iou) * (1 + self.largest)

    def update(self, pairs: Pairs) -> None:
        self.largest = torch.maximum(self.largest, pairs.iou.detach().mean() * self.momentum)

    def state_dict(self) -> dict[str, Tensor]:
        return {"largest": self.largest.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.largest = state["largest"]


def test_a_measure_with_state_of_ones_own() -> None:
    with PARTS["box"].with_part(Smoothed):
        first, second = (
            DetectionLoss([8], Hyperparameters(loss={"box": "smoothed(0.25)", "assigner_iou": "ciou"}, tal_beta=1.0))
            for _ in range(2)
        )
    outputs, batch = {"main": one_cell(halfway()), "aux": []}, {"targets": WHOLE, "image_hw": (8, 8)}
    assert str(first.settings).startswith("box Smoothed(momentum=0.25)")
    first(outputs, batch)
    assert first.state_dict()["largest"].item() == pytest.approx(0.25, rel=1e-6), "the box is perfect"
    second.load_state_dict(first.state_dict())
    flat = {"main": one_cell(torch.zeros(64)), "aux": []}
    with torch.no_grad():
        before = DetectionLoss([8], Hyperparameters(loss={"box": "iou", "assigner_iou": "ciou"}, tal_beta=1.0))
        assert second(flat, batch)[1]["box"].item() == pytest.approx(1.25 * before(flat, batch)[1]["box"].item())
    assert second.state_dict()["largest"].item() == first.state_dict()["largest"].item()
    with pytest.raises(SettingsError):
        DetectionLoss([8], Hyperparameters(loss={"box": "smoothed"}))


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
        assert apart["dfl"].item() == plain["dfl"].item(), "with a measure of its own the assigner is unchanged"


def test_the_default_written_in_full_is_the_default() -> None:
    total, items = score(random_maps(), TARGETS, {})
    same, again = score(random_maps(), TARGETS, DEFAULTS | {"assigner_iou": "ciou"})
    assert total.item() == same.item()
    assert {name: value.item() for name, value in items.items()} == {
        name: value.item() for name, value in again.items()
    }


def test_the_assigner_follows_the_loss_by_hand() -> None:
    # the predicted box is 120 x 120 around the 8 x 8 object: CIoU is 64 / 14400; W is 56 sqrt(2), so that NWD is
    # e^(-79.196 / 12.7) = 0.0019578. With tal_beta 1 it is the score of the one anchor point, and its dfl's weight,
    # 1.5 ln 16
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
def test_an_object_without_a_measure_above_0_is_compared_by_iou(loss: dict[str, Any], assigner: str) -> None:
    # 120 x 120 around 8 x 8: every measure here is below 0 (EIoU by 2 (112 / 120)^2 = 1.74); else no positive
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
    for name in [entry.name for entry in PARTS["box"]]:
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


@pytest.mark.parametrize("kind", PARTS)
def test_every_name_is_documented_and_has_its_source(kind: str) -> None:
    text = (REPOSITORY / "docs" / "losses.md").read_text()
    for entry in PARTS[kind]:
        assert f"`{entry.signature()}`" in text, entry.name
        assert "Source: " in entry.make.__doc__, entry.name
        for name, limits in entry.ranges.items():
            assert limits.holds(entry.defaults()[name]), (entry.name, name)
            assert f"{name} {limits}" in text, (entry.name, name)
