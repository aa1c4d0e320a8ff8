"""The head that a file's tensors show, whatever its yaml says: in every command, with and without `--cfg`."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from models.yolo import Model, load
from tests.few import few
from tests.foreign_files import foreign_tensors, write_ultralytics_checkpoint, write_yolov9_checkpoint
from tests.networks import randomise, seeded_images, tiny_config, tiny_model, tiny_segment_config
from tests.saying import assert_says
from utils.checkpoint.importing import load_model
from utils.checkpoint.transfer import FORM_SETTINGS
from utils.drawing.draw import write_image
from utils.errors import CheckpointError, SettingsError
from utils.runs.detect import DetectOptions, detect
from utils.runs.export import ExportOptions, export
from utils.runs.validate import ValOptions, validate
from utils.training.options import TrainOptions
from utils.training.starting_network import starting_network
from utils.weights.head_form import HeadForm, head_form, with_head_settings

DEPTHWISE, DENSE = {"cls": "depthwise"}, {"cls": "dense"}


def plain_config(head: str = "Detect", block: list[Any] | None = None) -> dict[str, Any]:
    """A tiny network as a yaml of others describes it; `block` takes the place of its last convolution."""
    config = tiny_segment_config() if head == "Segment" else tiny_config()
    config["head"][0][2] = head
    config["backbone"][4] = block or config["backbone"][4]
    return config


def built(config: dict[str, Any], settings: dict[str, Any]) -> Model:
    torch.manual_seed(0)
    model = randomise(Model(with_head_settings(config, settings))).eval()
    model.names = ["a", "b", "c"]
    return model


C3K2 = [-1, 1, "C3k2", [8, False]]
ELAN = [-1, 1, "RepNCSPELAN4", [8, 8, 4, 1]]
CASES = {
    "YOLOv8": (plain_config(), DEPTHWISE),
    "YOLOv8, segmentation": (plain_config("Segment"), DEPTHWISE),
    "YOLOv9 of Ultralytics": (plain_config(block=ELAN), DEPTHWISE),
    "YOLO11 with the towers of YOLOv8": (plain_config(block=C3K2), DENSE),
    "YOLO11, segmentation": (plain_config("Segment", C3K2), DENSE),
    "width by the rule of another version": (plain_config(), {"class_width": 24}),
}
cases = pytest.mark.parametrize("case", list(CASES))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def checkpoint_of(model: Model, folder: Path) -> Path:
    """A checkpoint whose yaml does not say how the towers of the head are built."""
    return write_ultralytics_checkpoint(folder / "theirs.pt", model, half=False)


def yaml_of(config: dict[str, Any], folder: Path) -> Path:
    (folder / "net.yaml").write_text(yaml.safe_dump(config))
    return folder / "net.yaml"


def output(model: Model) -> Tensor:
    with torch.inference_mode():
        found = model.eval()(seeded_images(1, 3, 64, 64))
    return found if isinstance(found, Tensor) else found[0]


# --- the form of a head


@pytest.mark.parametrize(
    ("settings", "form"),
    [
        ({}, HeadForm("dense", 1, {"lead": 8}, {"lead": 64}, {})),
        (DEPTHWISE, HeadForm("depthwise", 1, {"lead": 8}, {"lead": 64}, {})),
        ({"box_groups": 4, "class_width": 24}, HeadForm("dense", 4, {"lead": 24}, {"lead": 64}, {})),
        ({"box_width": 72}, HeadForm("dense", 1, {"lead": 8}, {"lead": 72}, {})),
    ],
)
def test_the_form_of_a_head(settings: dict[str, Any], form: HeadForm) -> None:
    assert head_form(built(plain_config(), settings).state_dict()) == form


def test_the_form_of_a_segmentation_head() -> None:
    config = plain_config("Segment")
    assert head_form(built(config, {}).state_dict()).mask_width == {"lead": 4}
    assert head_form(built(config, {"mask_width": 12}).state_dict()).mask_width == {"lead": 12}
    assert head_form(tiny_model(2).state_dict()) == HeadForm(
        "dense", 4, {"aux.0": 8, "lead": 8}, {"aux.0": 64, "lead": 64}, {}
    )
    assert head_form({}) == HeadForm(None, None, {}, {}, {})


# --- reading


@cases
def test_a_checkpoint_builds_the_head_of_its_tensors(
    folder: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config, settings = CASES[case]
    model = built(config, settings)
    loaded = load_model(checkpoint_of(model, folder))
    assert torch.equal(output(loaded), output(model))
    assert settings.items() <= loaded.config["head"][-1][3][-1].items()
    said = [line for line in capsys.readouterr().out.splitlines() if "its tensors show" in line]
    assert len(said) == 1
    assert_says(said[0], "theirs.pt", config["head"][0][2], *settings.values())


@pytest.mark.parametrize(
    ("kind", "case"),
    few(
        product(["state dict", "safetensors", "without DFL", "checkpoint"], CASES),
        *[("state dict", case) for case in CASES],
        *[(kind, "YOLO11, segmentation") for kind in ("safetensors", "without DFL", "checkpoint")],
    ),
)
def test_a_yaml_that_does_not_say_it(folder: Path, case: str, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    config, settings = CASES[case]
    model, path = built(config, settings), folder / "plain.pt"
    tensors = {name: value.contiguous() for name, value in foreign_tensors(model).items()}
    if kind == "safetensors":
        save_file(tensors, path)
    elif kind == "checkpoint":
        path = checkpoint_of(model, folder)
    else:
        torch.save(
            {name: value for name, value in tensors.items() if kind != "without DFL" or ".dfl" not in name}, path
        )
    loaded = load_model(path, cfg=yaml_of(config, folder))
    assert torch.equal(output(loaded), output(model))
    assert capsys.readouterr().out.count("its tensors show") == 1


def test_a_file_that_says_it_needs_no_note(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_model(checkpoint_of(built(plain_config(), {}), folder))
    load_model(checkpoint_of(built(plain_config(block=C3K2), DEPTHWISE), folder))
    load_model(write_yolov9_checkpoint(folder / "v9.pt", built(plain_config("DDetect"), {})))
    assert "its tensors show" not in capsys.readouterr().out


def test_a_stale_number_of_classes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_ultralytics_checkpoint(folder / "theirs.pt", built(plain_config(), {}), half=False, nc=80)
    assert load_model(path).nc == 3
    assert_says(capsys.readouterr().out, "80 classes", "3 are used")


# --- all commands


@pytest.fixture
def old_and_new(folder: Path) -> tuple[Path, Path, Path]:
    """A checkpoint with depthwise class towers, its tensors alone, and the plain yaml."""
    model = built(plain_config(), DEPTHWISE)
    torch.save(foreign_tensors(model), folder / "plain.pt")
    return checkpoint_of(model, folder), folder / "plain.pt", yaml_of(plain_config(), folder)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set of one picture with three classes."""
    write_image(tmp_path / "data" / "images" / "a.png", torch.zeros(64, 64, 3, dtype=torch.uint8).numpy())
    (tmp_path / "data" / "labels").mkdir()
    (tmp_path / "data" / "labels" / "a.txt").write_text("0 0.5 0.5 0.4 0.6\n")
    (tmp_path / "data" / "data.yaml").write_text("train: images\nval: images\nnames: [a, b, c]\n")
    return tmp_path / "data" / "data.yaml"


@pytest.mark.parametrize("given", few(["checkpoint", "tensors and yaml", "patch"], "tensors and yaml", "patch"))
def test_every_command(old_and_new: tuple[Path, Path, Path], folder: Path, given: str, data: Path) -> None:
    theirs, plain, net = old_and_new
    weights = str(plain if given == "tensors and yaml" else theirs)
    described: dict[str, Any] = {"cfg": str(net)} if given == "tensors and yaml" else {}
    described |= {"patch": ["set head cls = depthwise"]} if given == "patch" else {}
    common = {"device": "cpu", "project": str(folder / "runs"), "amp": "off"} | described
    detect(DetectOptions(weights, str(data.parent / "images"), img=(64,), **common))
    validate(ValOptions(weights, str(data), img=64, workers=0, batch=2, noplots=True, **common))
    written = export(ExportOptions(weights, include=("weights",), out=str(folder), **described))
    assert torch.equal(output(load_model(written[0])), output(load_model(theirs)))
    predictor = load(weights, cfg=described.get("cfg"), patches=described.get("patch", ()))
    assert predictor.nc == 3


def started(**settings: Any) -> tuple[Model, Any]:
    return starting_network(TrainOptions(**settings), ["a", "b", "c"], None)


def test_training_from_the_file_alone(old_and_new: tuple[Path, Path, Path]) -> None:
    model, report = started(weights=str(old_and_new[0]))
    assert (report.coverage, report.advice) == (1.0, "")
    assert head_form(model.state_dict()).cls == "depthwise"


@pytest.mark.parametrize("number", [0, 1], ids=["checkpoint", "tensors"])
def test_training_a_plain_yaml_says_how_to_get_the_towers(
    old_and_new: tuple[Path, Path, Path], number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"weights": str(old_and_new[number]), "cfg": str(old_and_new[2])}
    _, report = started(**given)
    assert report.coverage < 1
    assert_says(report.advice, "cls", "depthwise in the file", "dense here")
    assert report.advice in capsys.readouterr().out
    edit = report.advice.split('--patch "')[1].split('"')[0]
    model, report = started(**given, patch=[edit])
    assert (report.coverage, report.advice, head_form(model.state_dict()).cls) == (1.0, "", "depthwise")


@pytest.mark.parametrize("setting", FORM_SETTINGS)
def test_every_form_has_an_edit(folder: Path, setting: str) -> None:
    settings = {"cls": "depthwise", "box_groups": 4}
    torch.save(foreign_tensors(built(plain_config(), {setting: settings[setting]})), folder / "plain.pt")
    given: dict[str, Any] = {"weights": str(folder / "plain.pt"), "cfg": str(yaml_of(plain_config(), folder))}
    _, report = started(**given, allow_partial=True)
    edit = report.advice.split('--patch "')[1].split('"')[0]
    assert edit == f"set head {setting} = {settings[setting]}"
    assert started(**given, patch=[edit])[1].coverage == 1.0


# --- what does not fit


def test_weights_that_fit_after_an_edit_only(folder: Path) -> None:
    model = built(plain_config(), {})
    config = plain_config()
    config["backbone"][3][3] = [8, 5, 2]
    torch.save(foreign_tensors(Model(config)), folder / "plain.pt")
    path = write_ultralytics_checkpoint(folder / "theirs.pt", model, tensors=foreign_tensors(Model(config)))
    with pytest.raises(CheckpointError) as caught:
        load_model(path)
    assert_says(
        caught.value, "theirs.pt", "own network", "1 of another shape", "model.3.conv.weight", "--cfg", "--patch"
    )
    assert load_model(path, patches=["set 3 kernel_size = 5"]).config["backbone"][3][3] == [8, 5, 2]
    assert load_model(path, cfg=yaml_of(config, folder)).nc == 3
    with pytest.raises(CheckpointError) as caught:
        load_model(path, patches=["set 3 kernel_size = 1"])
    assert_says(caught.value, "theirs.pt", "as edited", "model.3.conv.weight")
    with pytest.raises(CheckpointError) as caught:
        load_model(folder / "plain.pt", cfg=yaml_of(plain_config(), folder))
    assert_says(caught.value, "plain.pt", "net.yaml", "model.3.conv.weight", "--patch")
    with pytest.raises(CheckpointError) as caught:
        load_model(folder / "plain.pt", patches=["set 3 kernel_size = 5"])
    assert_says(caught.value, "plain.pt", "does not describe its network", "--cfg")
    with pytest.raises(CheckpointError, match="p9"):
        load_model(path, patches=["remove p9"])


@pytest.mark.parametrize(("name", "value"), [("cfg", "net.yaml"), ("patches", ["remove p5"])])
def test_an_exported_file_has_no_network_to_change(name: str, value: Any) -> None:
    with pytest.raises(SettingsError) as caught:
        load("best.onnx", **{name: value})
    assert_says(caught.value, "best.onnx", "--cfg" if name == "cfg" else "--patch", "best.pt")


def test_a_body_of_other_widths_is_not_given_another_head(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(foreign_tensors(built(plain_config(), DEPTHWISE)), folder / "plain.pt")
    config = tiny_config(width=16)
    config["head"][0][2] = "Detect"
    with pytest.raises(CheckpointError) as caught:
        load_model(folder / "plain.pt", cfg=yaml_of(config, folder))
    assert_says(caught.value, "plain.pt", "net.yaml", "model.0.conv.weight")
    assert "its tensors show" not in capsys.readouterr().out
