"""Weights into edited networks: the right values land in the right layers, and the report says so."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from models.yolo import Model
from tests.edits import inserted, removed, replaced
from tests.few import few
from tests.foreign_files import foreign_tensors, write_ultralytics_checkpoint
from tests.levels import ADDED, CASES, EDITS, edited
from tests.networks import meta_model, randomise, seeded_images, tiny_config, tiny_model, tiny_segment_config
from tests.saying import assert_says
from utils.checkpoint.head_width import keep_hidden_width
from utils.checkpoint.transfer import (
    DIFFERENT,
    LOADED,
    NEW,
    UNUSED,
    Source,
    TransferReport,
    transfer,
)
from utils.errors import CheckpointError, ModelConfigError
from utils.weights.own_file import network_entry, save_checkpoint
from utils.weights.reading import Weights, read_weights

BLOCK = [1, "FocalModulationBlock", []]
IDENTITY = [1, "FocalModulationBlock", [{"start": "identity"}]]


def weights_of(model: Model, config: bool = True, foreign: bool = False, **more: Any) -> Weights:
    """A network's weights as read from a file."""
    tensors = foreign_tensors(model) if foreign else dict(model.state_dict())
    described = {"config": model.config, "nc": model.nc, "ch": model.channels, "names": model.names} if config else {}
    return Weights(Path("old.pt"), "checkpoint", tensors, **(described | more))


def source_of(model: Model, *described: Any, **more: Any) -> Source:
    return Source.of(weights_of(model, *described, **more))


def shipped(name: str, nc: int | None = None, seed: int = 0) -> Model:
    torch.manual_seed(seed)
    return randomise(Model(meta_model(name).config, nc=nc)).eval()


def counts(report: TransferReport) -> dict[str, int]:
    return {status: len(report.names(status)) for status in (LOADED, NEW, DIFFERENT, UNUSED)}


def assert_moved(old: Model, new: Model, after: int) -> None:
    """Every tensor of the old network is where it belongs in the one with a row inserted."""
    state = new.state_dict()
    for name, value in old.state_dict().items():
        _, index, within = name.split(".", 2)
        assert torch.equal(state[f"model.{int(index) + (int(index) > after)}.{within}"], value), name


# --- insertion


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("gelan-t", (2,)),
        ("yolov8n", (9,)),
        *(
            pytest.param(name, (0, 2, 9, 15, 20), marks=pytest.mark.slow)
            for name in ("gelan-t", "yolov8n", "yolov9-t", "yolo11n-seg")
        ),
    ],
)
def test_every_old_parameter_is_found_after_an_insertion(name: str, places: tuple[int, ...]) -> None:
    old = shipped(name)
    for after in places:
        new = Model(inserted(old.config, after, BLOCK))
        report = transfer(new, source_of(old))
        assert counts(report) == {
            LOADED: len(old.state_dict()),
            NEW: len(new.model[after + 1].state_dict()),
            DIFFERENT: 0,
            UNUSED: 0,
        }
        assert report.used == 1.0
        assert report.new_layers == {after + 1: "FocalModulationBlock"}
        assert_moved(old, new, after)


def test_a_module_that_starts_as_the_identity_changes_nothing() -> None:
    old, images = randomise(tiny_model()).eval(), seeded_images(1, 3, 64, 96)
    with torch.inference_mode():
        before = old(images)
        for after in (1, 3, 4):
            new = Model(inserted(old.config, after, IDENTITY)).eval()
            transfer(new, source_of(old))
            assert torch.equal(new(images), before)
        changed = Model(inserted(old.config, 3, BLOCK)).eval()
        transfer(changed, source_of(old))
        assert not torch.equal(changed(images), before)


def test_a_file_without_a_network_description() -> None:
    old = shipped("gelan-t")
    new = Model(inserted(old.config, 9, BLOCK))
    report = transfer(new, source_of(old, config=False, foreign=True))
    assert (counts(report)[LOADED], report.used) == (len(old.state_dict()), 1.0)
    assert_moved(old, new, 9)


def test_the_lead_towers_of_a_dual_head() -> None:
    old = shipped("yolov9-t")
    for config in (True, False):
        new = shipped("gelan-t", seed=1)
        report = transfer(new, source_of(old, config, foreign=True))
        assert (report.coverage, counts(report)[NEW]) == (1.0, 0)
        assert torch.equal(new.head.lead.box[0][0].conv.weight, old.head.lead.box[0][0].conv.weight)
        assert torch.equal(new.model[21].cv4.conv.weight, old.model[21].cv4.conv.weight)


# --- other edits


def test_removal() -> None:
    old = shipped("gelan-t")
    new = Model(removed(old.config, 9))
    report = transfer(new, source_of(old))
    assert (report.coverage, report.new_layers) == (1.0, {})
    assert len(report.names(UNUSED)) == len(old.model[9].state_dict())
    assert all(name.startswith("model.9.") for name in report.names(UNUSED))
    assert report.moved == {index: index + 1 for index in (11, 14, 15, 17, 18, 20, 21)}
    assert torch.equal(new.model[20].cv4.conv.weight, old.model[21].cv4.conv.weight)


def test_replacement() -> None:
    old = shipped("gelan-t")
    new = Model(replaced(old.config, 9, [1, "FocalModulation", [{"residual": True}]]))
    report = transfer(new, source_of(old))
    assert report.new_layers == {9: "FocalModulation"}
    assert len(report.names(LOADED)) == len(old.state_dict()) - len(old.model[9].state_dict())
    assert not report.moved


def test_what_a_changed_width_costs() -> None:
    """A wider layer loses its own kernels and the input side of what it feeds; its neighbours keep theirs."""
    old = tiny_model()
    config = tiny_config()
    config["backbone"][1][3][0] = 16
    new = Model(config)
    report = transfer(new, source_of(old))
    different = {record.name: record.reason for record in report.records if record.status == DIFFERENT}
    assert different["model.1.conv.weight"] == "outputs 16 here, 8 in the file"
    assert different["model.2.conv.weight"] == "inputs 16 here, 8 in the file"
    assert {name.split(".")[1] for name in different} == {"1", "2"}
    assert torch.equal(new.model[2].bn.weight, old.model[2].bn.weight)


# --- other classes


def test_other_classes_keep_the_hidden_width() -> None:
    source, new = source_of(tiny_model(nc=80)), tiny_model(nc=3, seed=1)
    kept, line = keep_hidden_width(new, source)
    assert_says(line, "128", "old.pt", "8", "3 classes")
    report, lost = transfer(kept, source), transfer(new, source)
    assert counts(report) == {LOADED: len(source.tensors) - 6, NEW: 0, DIFFERENT: 6, UNUSED: 0}
    assert {record.reason for record in report.records if record.status == DIFFERENT} == {
        "3 classes here, 80 in the file"
    }
    assert counts(lost)[DIFFERENT] == 36
    assert (kept.nc, kept.names, kept.config["head"][-1][3]) == (3, new.names, ["nc", {"class_width": 128}])
    assert Model(kept.config, nc=3).state_dict().keys() == kept.state_dict().keys()
    assert "3 classes here, 80 in the file" in report.describe()


def test_the_width_is_left_alone_where_it_does_not_come_from_the_classes() -> None:
    old = tiny_model(nc=80)
    same_classes = tiny_model(nc=80, seed=1)
    assert keep_hidden_width(same_classes, source_of(old)) == (same_classes, "")
    wider = Model(tiny_config(nc=2, width=136))
    assert keep_hidden_width(wider, source_of(old)) == (wider, "")
    unnamed, line = keep_hidden_width(tiny_model(nc=3), source_of(old, config=False, foreign=True))
    assert line
    assert unnamed.head.lead.cls[0][0].conv.out_channels == 128


# --- other levels


@pytest.mark.parametrize("described", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_levels(name: str, described: bool) -> None:
    """Towers take the weights of their stride, all other layers keep theirs; only what is new is not loaded."""
    network, _, strides = EDITS[name]
    old = shipped(network)
    source = source_of(old, config=described, foreign=not described)
    new, _ = keep_hidden_width(edited(name), source)
    report = transfer(new, source)
    assert report.names(DIFFERENT) == []
    added = [row for row in new.rows if row.label in ADDED and new.model[row.index].state_dict()]
    assert report.new_layers == {row.index: row.name for row in added}
    for number, stride in enumerate(strides):
        for ours, theirs in zip((*new.head.aux, new.head.lead), (*old.head.aux, old.head.lead), strict=True):
            assert (stride in old.stride) == loaded_from(ours, number, theirs, old.stride, stride), stride
    by_label = {row.label: old.model[row.index].state_dict() for row in old.rows if row.label}
    for row in new.rows:
        for within, tensor in new.model[row.index].state_dict().items() if row.label in by_label else ():
            assert torch.equal(tensor, by_label[row.label][within]), f"{row.label}.{within}"
    lost = {stride for stride in old.stride if stride not in strides}
    assert ("left out" in report.levels) == bool(lost)
    assert report.describe().endswith(report.levels)


def loaded_from(ours: Any, number: int, theirs: Any, strides: list[int], stride: int) -> bool:
    """Whether the towers of a level have the weights of the other branch's towers at the same stride."""
    if stride not in strides:
        return False
    there = strides.index(stride)
    return all(
        torch.equal(tensor, getattr(theirs, kind)[there].state_dict()[within])
        for kind in ("box", "cls")
        for within, tensor in getattr(ours, kind)[number].state_dict().items()
    )


@pytest.mark.parametrize(("classes", "width"), [(80, 128), (3, 64)])
def test_class_towers_keep_their_width_under_a_finer_level(classes: int, width: int) -> None:
    source = source_of(shipped("gelan-t", nc=classes))
    new, line = keep_hidden_width(edited("GELAN with P2", nc=3), source)
    assert_says(line, "old.pt", f"class towers stay {width}", 32, "3 classes", "first level")
    assert new.config["head"][-1][3] == ["nc", {"class_width": width}]
    report = transfer(new, source)
    assert counts(report)[DIFFERENT] == (6 if classes == 80 else 0)
    assert_says(report.levels, "new", "stride 4")


def test_every_width_is_kept_branch_by_branch() -> None:
    """Two branches of other widths lose their first level; every tower but its stays as it was."""
    config = tiny_segment_config(2, nc=3, width=8, num_masks=4)
    widths = {2: 16, 3: 288, 4: 288}
    for row, wide in widths.items():
        config["backbone"][row][3][0] = wide
    config["backbone"] += [[place, 1, "Conv", [channels, 1]] for place, channels in ((2, 32), (3, 352), (4, 352))]
    config["head"] = [[[5, 6, 7, 2, 3, 4, 1, 1], 1, "DualDSegment", ["nc", 4, 8]]]
    old = Model(config)
    new = Model(config | {"head": [[[6, 7, 3, 4, 1, 1], 1, "DualDSegment", ["nc", 4, 8]]]})
    source = source_of(old)
    kept, line = keep_hidden_width(new, source)
    assert kept.config["head"][-1][3][-1] == {
        "class_width": [32, 16],
        "box_width": 64,
        "mask_width": [8, 4],
    }
    assert_says(line, "class towers stay 32, 16", "box towers stay 64", "88, 72", "mask towers stay 8, 4")
    report = transfer(kept, source)
    assert (report.coverage, counts(report)[DIFFERENT]) == (1.0, 0)
    lead = kept.deploy(fold=False)
    assert lead.config["head"][-1][2] == "DSegment"
    assert {name: value.shape for name, value in Model(lead.config).state_dict().items()} == {
        name: value.shape for name, value in lead.state_dict().items()
    }


@pytest.mark.parametrize("setting", ["class_width", "box_width"])
def test_a_width_that_the_row_gives_is_not_changed(setting: str) -> None:
    config = tiny_config(nc=3)
    config["head"][0][3] = ["nc", {setting: 96}]
    asked = Model(config)
    kept, _ = keep_hidden_width(asked, source_of(tiny_model(nc=80)))
    assert kept.config["head"][-1][3][-1][setting] == 96


def test_levels_in_another_order_are_refused() -> None:
    config = tiny_config()
    config["head"][0][0] = [4, 3, 2]
    with pytest.raises(ModelConfigError) as caught:
        Model(config)
    assert_says(caught.value, "32, 16, 8", "ascending")


def test_a_file_that_does_not_say_its_strides() -> None:
    """Levels of equal channels are those of published networks; a line says that this is assumed."""
    config = tiny_config()
    config["backbone"].insert(2, [-1, 1, "Conv", [8, 3, 1]])
    finer = Model(config | {"head": [[[2, 3, 4, 5], 1, "DDetect", ["nc"]]]})
    old = randomise(tiny_model())
    report = transfer(finer, source_of(old, config=False))
    assert finer.stride == [4, 8, 16, 32]
    assert_says(report.levels, "channels", "new", "stride 4")
    assert torch.equal(finer.head.lead.box[1][0].conv.weight, old.head.lead.box[0][0].conv.weight)
    back = transfer(old, source_of(finer, config=False))
    assert_says(back.levels, "left out", "number 3")
    known = transfer(old, source_of(finer, config=False, stride=[4, 8, 16, 32]))
    assert_says(known.levels, "left out", "stride 4")


# --- messages and reports


def test_the_line_and_the_report(tmp_path: Path) -> None:
    old = tiny_model(2)
    config = tiny_config(2, nc=2)
    config["backbone"].insert(2, [-1, *BLOCK])
    config["head"][0][0] = [3, 4, 5] * 2
    new = Model(config)
    report = transfer(new, source_of(old))
    line = report.describe()
    assert_says(line, "old.pt", f"{len(report.names(LOADED))} of {len(new.state_dict())}")
    assert_says(line, "layer 2 FocalModulationBlock", "12 in layer 6 (2 classes here, 3 in the file")
    assert "\n" not in line
    report.write(tmp_path)
    summary = (tmp_path / "transfer.txt").read_text().splitlines()
    assert summary[0] == line
    assert summary[1:5] == [f"layer {index} takes the weights of layer {index - 1}" for index in (3, 4, 5, 6)]
    with (tmp_path / "transfer.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["tensor"] for row in rows] == list(new.state_dict())
    moved = next(row for row in rows if row["tensor"] == "model.3.conv.weight")
    assert (moved["tensor in the file"], moved["status"], moved["shape"]) == (
        "model.2.conv.weight",
        "loaded",
        "8 x 8 x 3 x 3",
    )
    assert next(row for row in rows if row["tensor"].startswith("model.2."))["status"] == "new"


def test_through_a_file(tmp_path: Path) -> None:
    old = tiny_model()
    save_checkpoint(tmp_path / "old.pt", {"network": network_entry(old), "model": old.state_dict()})
    new = tiny_model(seed=1)
    assert transfer(new, Source.of(read_weights(tmp_path / "old.pt"))).coverage == 1.0
    assert all(
        torch.equal(ours, theirs)
        for ours, theirs in zip(new.state_dict().values(), old.state_dict().values(), strict=True)
    )


def test_no_weights_of_a_network() -> None:
    weights = Weights(Path("old.pt"), "state dict", {"a": torch.zeros(1), "b": torch.zeros(1)})
    with pytest.raises(CheckpointError) as caught:
        transfer(tiny_model(), Source.of(weights))
    assert_says(caught.value, "old.pt", "a, b", "model.0.conv.weight")


def test_dfl_weights_of_something_else() -> None:
    weights = weights_of(tiny_model())
    weights.tensors["model.5.lead.dfl.conv.weight"] = torch.zeros(1, 16, 1, 1)
    with pytest.raises(CheckpointError) as caught:
        transfer(tiny_model(), Source.of(weights))
    assert_says(caught.value, "model.5.lead.dfl.conv.weight", "0.0", "0 to 15")


# --- whole families


@pytest.mark.parametrize(
    "name",
    few(
        (
            *("gelan-t", "gelan-s", "gelan-c", "gelan-c-seg"),
            *("yolov9-t", "yolov9-s", "yolov9-c", "yolov9-cf", "yolov9-c-dseg"),
            *("yolov8n", "yolov8s", "yolov8n-seg", "yolo11n", "yolo11s", "yolo11m", "yolo11n-seg"),
        ),
        *("yolov9-t", "yolo11n-seg"),
    ),
)
def test_published_names_in_training_and_deployed_form(name: str, tmp_path: Path) -> None:
    """The original's tensors alone fill the network, in training form and deployed."""
    old = shipped(name)
    torch.save(foreign_tensors(old), tmp_path / "theirs.pt")
    weights = read_weights(tmp_path / "theirs.pt")
    deployed = old.deploy(fold=False)
    for target in (Model(old.config), Model(deployed.config)):
        report = transfer(target, Source.of(weights))
        assert (report.coverage, counts(report)[NEW], counts(report)[DIFFERENT]) == (1.0, 0, 0)
        with torch.inference_mode():
            found, expected = target.eval()(seeded_images(1, 3, 64, 64)), old(seeded_images(1, 3, 64, 64))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_ultralytics_yolov9_brings_its_body(tmp_path: Path) -> None:
    """Its box towers are not grouped: their second and last convolutions are not loaded, and the report says so."""
    config = meta_model("gelan-t").config
    theirs = randomise(Model(config | {"head": [*config["head"][:-1], [[15, 18, 21], 1, "Detect", ["nc"]]]})).eval()
    write_ultralytics_checkpoint(tmp_path / "yolov9t.pt", theirs)
    ours = shipped("yolov9-t", seed=1)
    report = transfer(ours, Source.of(read_weights(tmp_path / "yolov9t.pt")))
    reasons = {
        record.name.split(".", 2)[2].rsplit(".", 1)[0]: record.reason
        for record in report.records
        if record.status == DIFFERENT
    }
    assert reasons["lead.box.0.1.conv"] == "inputs 16 here, 64 in the file"
    assert {name.split(".")[1] for name in reasons} <= {"box", "cls"}
    body = [record for record in report.records if record.name and int(record.name.split(".")[1]) < 22]
    assert {record.status for record in body} == {LOADED}
    assert set(report.new_layers) == {22, 25, 28}


# --- what must not be loaded


@pytest.mark.parametrize(
    ("config", "place", "layer"), [(True, "model.0.conv", 0), (False, "model.5.lead.box.0.0.conv", 5)]
)
def test_folded_weights_are_refused(config: bool, place: str, layer: int) -> None:
    """Their shapes agree with those of the unfolded network, and their values do not."""
    folded = Model(tiny_config()).eval().deploy()
    with pytest.raises(CheckpointError) as caught:
        transfer(tiny_model(), source_of(folded, config))
    assert_says(caught.value, "old.pt", place, f"layer {layer}", "--fold")
    assert transfer(Model(folded.config), source_of(folded, config)).coverage == 1.0


def test_a_body_without_a_head() -> None:
    old, new = shipped("gelan-t"), shipped("gelan-t", seed=1)
    weights = weights_of(old, config=False)
    weights.tensors = {name: value for name, value in weights.tensors.items() if not name.startswith("model.22.")}
    report = transfer(new, Source.of(weights))
    assert (report.used, report.new_layers) == (1.0, {22: "DDetect"})
    assert torch.equal(new.model[21].cv4.conv.weight, old.model[21].cv4.conv.weight)
