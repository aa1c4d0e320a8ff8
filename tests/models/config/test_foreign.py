"""Network configurations of other frameworks: renamed heads and keys, printed notes, and what is left unchanged."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from models.config.foreign import translate_config
from models.config.reading import read_config
from models.heads.detect import Detect, V9Detect
from models.heads.segment import V9Segment
from models.parameters import count_parameters
from models.yolo import Model
from tests.networks import meta_model, tiny_config
from tests.saying import assert_says
from utils.errors import ModelConfigError
from utils.files import REPOSITORY

SHIPPED = REPOSITORY / "models"


def head_row(name: str, *arguments: Any) -> list[list[Any]]:
    return [[[2, 3, 4], 1, name, ["nc", *arguments]]]


def with_head(name: str, *arguments: Any) -> dict[str, Any]:
    return tiny_config() | {"head": head_row(name, *arguments)}


def as_published_elsewhere(name: str) -> dict[str, Any]:
    """One of our YOLO11 yamls as its own framework writes it: no kind of class tower, and C3k2 without letters."""
    config = yaml.safe_load((SHIPPED / name).read_text(encoding="utf-8"))
    for row in config["backbone"] + config["head"]:
        if row[2] == "C3k2" and row[3][1] == "mlx":
            row[3][1] = False
        row[3] = [argument for argument in row[3] if not isinstance(argument, dict)]
    return config


@pytest.mark.parametrize(
    ("theirs", "ours", "arguments"),
    [
        ("Detect", "V9Detect", ["nc"]),
        ("Segment", "V9Segment", ["nc"]),
        ("DualDetect", "DualDDetect", ["nc", {"box_groups": 1}]),
        ("DDetect", "DDetect", ["nc"]),
    ],
)
def test_heads_of_the_original_yolov9(theirs: str, ours: str, arguments: list[Any]) -> None:
    given = with_head(theirs)
    before = copy.deepcopy(given)
    config, notes = translate_config(given, "yolov9", "their.pt")
    assert config["head"] == [[[2, 3, 4], 1, ours, arguments]]
    assert len(notes) == (theirs != ours)
    assert all(theirs in note and ours in note for note in notes)
    assert given == before


def test_the_original_yolov9s_files_build() -> None:
    config = yaml.safe_load((SHIPPED / "segment" / "gelan-c-seg.yaml").read_text(encoding="utf-8"))
    config["head"][-1][2] = "Segment"
    with torch.device("meta"):
        model = Model(translate_config(config, "yolov9", "their.pt")[0])
    assert isinstance(model.head, V9Segment)
    assert count_parameters(model) == 27_634_720
    assert isinstance(Model(translate_config(with_head("Detect"), "yolov9", "their.pt")[0]).head, V9Detect)


@pytest.mark.parametrize(("name", "letters"), [("detect/yolo11.yaml", "nm"), ("segment/yolo11-seg.yaml", "nx")])
@pytest.mark.parametrize("family", ["ultralytics", None])
def test_yolo11_files_of_others(name: str, letters: str, family: Any) -> None:
    for letter in letters:
        config = as_published_elsewhere(name) | {"scale": letter}
        if family is None:
            notes = read_config(config).notes
        else:
            config, notes = translate_config(config, family, "their.yaml")
        with torch.device("meta"):
            model = Model(config)
        stem, dash, rest = Path(name).stem.partition("-")
        assert count_parameters(model) == count_parameters(meta_model(f"{stem}{letter}{dash}{rest}"))
        assert len(notes) == 1
        assert_says(notes[0], "C3k2", "Segment" if rest else "Detect", "YOLO11", "{cls: depthwise}", "False as 'mlx'")


def test_translating_twice_is_translating_once() -> None:
    config, _ = translate_config(as_published_elsewhere("detect/yolo11.yaml"), "ultralytics", "their.yaml")
    assert translate_config(config, "ultralytics", "their.yaml") == (config, [])
    assert read_config(config).notes == []
    assert read_config("yolo11n").notes == []


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ([64], [64, {"c3k": "mlx"}]),
        ([64, False], [64, "mlx"]),
        ([64, False, 0.25], [64, "mlx", 0.25]),
        ([64, True, 0.25], [64, True, 0.25]),
        ([64, {"expansion": 0.25}], [64, {"expansion": 0.25, "c3k": "mlx"}]),
        ([64, {"c3k": True}], [64, {"c3k": True}]),
    ],
)
def test_c3k2_rows(given: list[Any], read: list[Any]) -> None:
    config = with_head("Detect") | {"scales": {"m": [1.0, 1.0]}, "scale": "m"}
    config["backbone"] = [*config["backbone"], [-1, 1, "C3k2", given]]
    assert read_config(config).rows[5].arguments == read
    unscaled = {key: value for key, value in config.items() if key not in ("scales", "scale")}
    assert read_config(unscaled).rows[5].arguments == given, "the letters' rule needs letters"


def test_a_head_with_a_class_tower_argument_is_ours() -> None:
    config = with_head("Detect", {"cls": "dense"})
    config["backbone"] = [*config["backbone"], [-1, 1, "C3k2", [8]]]
    assert (read_config(config).as_yaml(), read_config(config).notes) == (config, [])
    grouped = with_head("DDetect")
    grouped["backbone"] = config["backbone"]
    assert (read_config(grouped).as_yaml(), read_config(grouped).notes) == (grouped, [])


def test_yolov8_files_are_left_alone() -> None:
    shipped = yaml.safe_load((SHIPPED / "detect" / "yolov8.yaml").read_text(encoding="utf-8"))
    assert translate_config(shipped | {"scale": "n"}, "ultralytics", "x") == (shipped | {"scale": "n"}, [])


def test_the_yolov9_port() -> None:
    """The body of YOLOv9 without Silence, under an ungrouped head of YOLOv8's widths: 2,128,720 parameters at t."""
    config = yaml.safe_load((SHIPPED / "detect" / "gelan-t.yaml").read_text(encoding="utf-8"))
    del config["anchors"], config["depth_multiple"], config["width_multiple"]
    config["head"][-1][2] = "Detect"
    config, notes = translate_config(config | {"scale": "", "yaml_file": "yolov9t.yaml"}, "ultralytics", "x")
    with torch.device("meta"):
        model = Model(config)
    assert type(model.head) is Detect
    assert count_parameters(model) == 2_128_720
    assert len(notes) == 1
    assert_says(notes[0], "'yaml_file'")


def test_keys() -> None:
    given = with_head("Detect") | {
        "channels": 1,
        "yaml_file": "a.yaml",
        "kpt_shape": [17, 3],
        "scales": {"s": [1.0, 1.0], "m": [1.0, 2.0]},
        "scale": "",
    }
    config, notes = translate_config(given, "ultralytics", "x")
    assert (config["ch"], config["scale"]) == (1, "s")
    for note, facts in zip(notes, (["scale", "s", "first"], ["'yaml_file'"], ["'kpt_shape'"]), strict=True):
        assert_says(note, *facts)
    assert Model(config).channels == 1


@pytest.mark.parametrize(
    ("key", "value", "facts"),
    [
        ("reg_max", 1, ["their.pt", "reg_max is 1", 16]),
        ("end2end", True, ["their.pt", "end2end is True", "non-maximum suppression"]),
    ],
)
def test_heads_that_do_not_exist_here(key: str, value: Any, facts: list[object]) -> None:
    with pytest.raises(ModelConfigError) as caught:
        translate_config(with_head("Detect") | {key: value}, "ultralytics", "their.pt")
    assert_says(caught.value, *facts)
    harmless = {"reg_max": 16, "end2end": False}[key]
    assert key not in translate_config(with_head("Detect") | {key: harmless}, "ultralytics", "their.pt")[0]


def test_unknown_layers_and_broken_rows_are_left_to_the_parser() -> None:
    config = with_head("Pose", [17, 3])
    config["backbone"] = [*config["backbone"], "no row"]
    assert translate_config(config, "ultralytics", "x") == (config, [])
    with pytest.raises(ModelConfigError, match="unknown layer 'Pose'"):
        Model(translate_config(with_head("Pose", [17, 3]), "ultralytics", "x")[0])


def test_a_users_yaml_is_read_so_and_that_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "yolo11.yaml"
    path.write_text(yaml.safe_dump(as_published_elsewhere("detect/yolo11.yaml")), encoding="utf-8")
    with torch.device("meta"):
        models = [Model(tmp_path / "yolo11n.yaml") for _ in range(2)]
    assert [count_parameters(model) for model in models] == [2_624_080] * 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert_says(said.err, f"{tmp_path / 'yolo11n.yaml'}", "C3k2", "Detect", "YOLO11")
