"""Network files of other frameworks in our terms: what is renamed, what is said, and what is left to the ordinary messages."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from models.config import reading as network_config
from models.config.foreign import translate_config
from models.heads.detect import Detect, V9Detect
from models.heads.segment import V9Segment
from models.parameters import count_parameters
from models.yolo import Model
from tests.networks import meta_model, tiny_config
from utils.errors import ModelConfigError

SHIPPED = Path(network_config.__file__).parent.parent


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
        config, notes = translate_config(as_published_elsewhere(name) | {"scale": letter}, family, "their.yaml")
        with torch.device("meta"):
            model = Model(config)
        stem, _, rest = Path(name).stem.partition("-")
        assert count_parameters(model) == count_parameters(meta_model(f"{stem}{letter}{'-' * bool(rest)}{rest}"))
        assert len(notes) == 1
        assert notes[0].startswith(
            f"it uses C3k2: {'Segment' if rest else 'Detect'} is read as YOLO11's, {{cls: depthwise}}; "
        )
        assert "C3k2 False as 'mlx'" in notes[0]


def test_translating_twice_is_translating_once() -> None:
    config, _ = translate_config(as_published_elsewhere("detect/yolo11.yaml"), None, "their.yaml")
    assert translate_config(config, None, "their.yaml") == (config, [])
    shipped = yaml.safe_load((SHIPPED / "detect" / "yolo11.yaml").read_text(encoding="utf-8"))
    assert translate_config(shipped, None, "yolo11.yaml") == (shipped, [])


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
    config = with_head("Detect") | {"scales": {"m": [1.0, 1.0]}}
    config["backbone"] = [*config["backbone"], [-1, 1, "C3k2", given]]
    assert translate_config(config, None, "x")[0]["backbone"][5][3] == read
    unscaled = {key: value for key, value in config.items() if key != "scales"}
    assert translate_config(unscaled, None, "x")[0]["backbone"][5][3] == given, "the letters' rule needs letters"


def test_a_head_that_says_its_class_towers_is_ours() -> None:
    config = with_head("Detect", {"cls": "dense"})
    config["backbone"] = [*config["backbone"], [-1, 1, "C3k2", [8]]]
    assert translate_config(config, None, "x") == (config, [])
    grouped = with_head("DDetect")
    grouped["backbone"] = config["backbone"]
    assert translate_config(grouped, None, "x") == (grouped, [])


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
    assert notes == ["key 'yaml_file' is left out: it has no meaning here"]


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
    assert notes == [
        "no scale is chosen: s, the first, is taken, as its own framework does",
        "key 'yaml_file' is left out: it has no meaning here",
        "key 'kpt_shape' is left out: it has no meaning here",
    ]
    assert Model(config).channels == 1


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("reg_max", 1, r"their\.pt: reg_max is 1: heads of 16 bins a side are built here"),
        ("end2end", True, r"their\.pt: end2end is True: heads without non-maximum suppression"),
    ],
)
def test_what_our_heads_are_not(key: str, value: Any, message: str) -> None:
    with pytest.raises(ModelConfigError, match=message):
        translate_config(with_head("Detect") | {key: value}, "ultralytics", "their.pt")
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
    assert said.err.startswith(f"{tmp_path / 'yolo11n.yaml'}: it uses C3k2: Detect is read as YOLO11's")
