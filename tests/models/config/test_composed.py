"""Networks written as edits of another, and how they are shown."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from models.config.composed import show_difference
from models.config.reading import CONFIG_FOLDERS, read_config
from models.yolo import Model
from tests.few import few
from tests.saying import assert_says
from utils.errors import ModelConfigError
from utils.files import REPOSITORY

DERIVED = [
    path
    for folder in CONFIG_FOLDERS
    for path in sorted((REPOSITORY / folder).glob("*.yaml"))
    if "\nbase:" in path.read_text(encoding="utf-8")
]


def content(model: Model) -> list[object]:
    rows = [(row.sources, row.repeats, row.name, row.arguments, row.out_channels) for row in model.rows]
    return [rows, {name: tensor.shape for name, tensor in model.state_dict().items()}, model.nc, model.stride]


@pytest.mark.parametrize(
    "path",
    few(DERIVED, "yolov9-t-ACmix", "yolov8-C2f-GatherExcite", "yolo11-seg-DynamicConv"),
    ids=lambda path: path.stem,
)
def test_the_resolved_yaml_gives_the_same_network(path: Path, tmp_path: Path) -> None:
    config = read_config(path, "s" if re.match("yolo(v8|11)", path.stem) else None).as_yaml()
    assert not {"base", "edits"} & set(config)
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(config))
    with torch.device("meta"):
        assert content(Model(tmp_path / "model.yaml")) == content(Model(config))


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_keys_beside_the_edits_take_the_place_of_the_bases(tmp_path: Path) -> None:
    path = write(
        tmp_path, "mine.yaml", "base: gelan-t.yaml\nnc: 3\nnames: [a, b, c]\nedits:\n  - insert GatherExcite after p5\n"
    )
    model = Model(path)
    assert (model.nc, model.names, model.rows[9].name) == (3, ["a", "b", "c"], "GatherExcite")


def test_a_base_beside_the_file_and_a_base_of_a_base(tmp_path: Path) -> None:
    write(tmp_path, "first.yaml", "base: yolov8n.yaml\nedits:\n  - insert GatherExcite after p5 as gate\n")
    path = write(
        tmp_path, "second.yaml", "base: first.yaml\nedits: ['remove gate', 'insert GatherExcite [8, theta] after p4']\n"
    )
    config = read_config(path).as_yaml()
    assert config["scale"] == "n"
    assert [row[2:4] for row in config["backbone"] if row[2] == "GatherExcite"] == [["GatherExcite", [8, "theta"]]]


def test_scaled_names_and_no_edits(tmp_path: Path) -> None:
    path = write(tmp_path, "same.yaml", "base: yolov8.yaml\n")
    assert content(Model(path, scale="n")) == content(Model("yolov8n"))
    assert read_config("yolov8m-ACmix").keys["scale"] == "m"


MISTAKES: dict[str, tuple[str, list[str]]] = {
    "rows beside a base": (
        "base: gelan-t.yaml\nbackbone: []\n",
        ["'backbone'", "'base'"],
    ),
    "edits without a base": ("nc: 3\nedits: []\n", ["'edits'", "'base'"]),
    "edits that are no list": (
        "base: gelan-t.yaml\nedits: insert SE after p5\n",
        ["edits is 'insert SE after p5'", "list"],
    ),
    "a base that is no name": ("base: 5\n", ["base is 5", "name", "path"]),
    "a base that is nowhere": (
        "base: gelan-tt.yaml\n",
        ["base: gelan-tt.yaml", "'gelan-t.yaml'"],
    ),
    "its own base": ("base: x.yaml\n", ["own base", "through x.yaml"]),
    "an edit that is none": (
        "base: gelan-t.yaml\nnc: 3\nedits:\n  - remove n3\n  - ad SE\n",
        ["x.yaml:5: edits[1]: ad SE", "edit 'ad'"],
    ),
    "an edit that cannot be made": (
        "base: gelan-t.yaml\nedits:\n  - remove p9\n",
        ["x.yaml:3: edits[0]: remove p9", "row 'p9'"],
    ),
    "a row that cannot be built": (
        "base: gelan-t.yaml\nedits:\n\n  - insert Conv [0] after p5\n",
        [
            "x.yaml:4: edits[0]: insert Conv [0] after p5: backbone[9] (layer 9): [-1, 1, Conv, [0]]",
            "out_channels is 0",
        ],
    ),
    "a row of the base that no longer fits": (
        "base: gelan-t.yaml\nedits:\n  - set p4 out_channels = 0\n",
        ["x.yaml:3: edits[0]: set p4 out_channels = 0: backbone[6] (layer 6)"],
    ),
    "a loss that is none": (
        "base: gelan-t.yaml\nnc: 3\nloss: {box: shapiou}\n",
        ["x.yaml:3", "loss", "box", "'shapiou'", "Did you mean"],
    ),
    "an unknown key": ("base: gelan-t.yaml\nedit: []\n", ["key 'edit'", "'edits'"]),
}


@pytest.mark.parametrize(("text", "facts"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(text: str, facts: list[str], tmp_path: Path) -> None:
    path = write(tmp_path, "x.yaml", text)
    with pytest.raises(ModelConfigError) as caught:
        Model(path)
    assert_says(caught.value, *facts)
    assert "\n" not in str(caught.value)


def test_a_row_names_its_file_and_line(tmp_path: Path) -> None:
    text = (
        (REPOSITORY / "models/detect/gelan-t.yaml")
        .read_text()
        .replace("[-1, 1, nn.Upsample, [None, 2, nearest]]", "[-1, 1, nn.Upsmaple, []]", 1)
    )
    line = 1 + text[: text.index("nn.Upsmaple")].count("\n")
    path = write(tmp_path, "mine.yaml", text)
    with pytest.raises(ModelConfigError) as caught:
        Model(path)
    assert_says(caught.value, f"mine.yaml:{line}: head[1] (layer 10)", "layer 'nn.Upsmaple'")


def test_difference() -> None:
    base, config = (
        read_config("gelan-t").as_yaml(),
        read_config("gelan-t", patches=["insert GatherExcite after p5"]).as_yaml(),
    )
    assert show_difference(base, "gelan-t.yaml", config, "patched").split("\n") == [
        "--- gelan-t.yaml",
        "+++ patched",
        "@@ -14,2 +14,3 @@",
        "   - [-1, 1, RepNCSPELAN4, [128, 128, 64, 3], p5]",
        "+  - [-1, 1, GatherExcite, []]",
        " head:",
    ]
    assert show_difference(base, "a", base, "b") == ""
