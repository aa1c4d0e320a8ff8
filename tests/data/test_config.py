"""The data yaml: what it may say, and what is said about mistakes in it."""

import json
from pathlib import Path

import pytest

from data.config import load_data_config
from tests.saying import assert_says
from utils.errors import DataError


def write_yaml(folder: Path, text: str) -> Path:
    """Write a data yaml and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "set.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_paths_are_relative_to_the_yaml_and_names_may_be_a_mapping(tmp_path: Path) -> None:
    (tmp_path / "set" / "images").mkdir(parents=True)
    config = load_data_config(
        write_yaml(tmp_path, "path: set\ntrain: images\nval: [images, more.txt]\nnames: {1: cat, 0: 犬}\n")
    )
    assert config.root == tmp_path / "set"
    assert config.splits == {
        "train": (tmp_path / "set/images",),
        "val": (tmp_path / "set/images", tmp_path / "set/more.txt"),
    }
    assert config.names == ["犬", "cat"]
    assert config.kind == "yolo"


def test_root_may_be_relative_to_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / "set").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    config = load_data_config(write_yaml(tmp_path / "elsewhere", "path: set\ntrain: a\nnames: [x]\n"))
    assert config.root == tmp_path / "here" / "set"


def test_root_defaults_to_the_folder_of_the_yaml(tmp_path: Path) -> None:
    assert load_data_config(write_yaml(tmp_path, "train: a\nnames: [x]\n")).root == tmp_path


def test_download_is_never_run(tmp_path: Path) -> None:
    config = load_data_config(write_yaml(tmp_path, "train: a\nnames: [x]\ndownload: |\n  open('ran', 'w')\n"))
    assert config.names == ["x"]
    assert [file.name for file in tmp_path.iterdir()] == ["set.yaml"]


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("trian: a\nnames: [x]\n", ("trian", "train")),
        ("train: a\n", ("names", "None", "list")),
        ("train: a\nnames: []\n", ("names", "[]", "list")),
        ("train: a\nnames: {1: x, 2: y}\n", ("names", "[1, 2]", "0 to 1")),
        ("train: a\nnames: [yes, no]\n", ("names[0]", "True", "quotes")),
        ("train: a\nnames: [x, y]\nnc: 3\n", ("nc", 3, "2 names")),
        ("names: [x]\n", ("train", "val", "test")),
        ("train: 5\nnames: [x]\n", ("train", 5, "folder")),
        ("train: a\nnames: [x\n", ("line 3", "yaml")),
        ("- a\n", ("list", "mapping")),
        ("path: 3\ntrain: a\nnames: [x]\n", ("path", 3, "folder")),
        ("train: a.json\n", ("names", "a.json")),
        ("train: a\nnames: [x]\nimages: {trian: b}\n", ("images", "trian", "b", "folder")),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, facts: tuple[object, ...]) -> None:
    with pytest.raises(DataError) as caught:
        load_data_config(write_yaml(tmp_path, text))
    assert_says(caught.value, "set.yaml", *facts)


def test_nc_that_equals_the_number_of_names_is_accepted(tmp_path: Path) -> None:
    assert load_data_config(write_yaml(tmp_path, "train: a\nnames: [x, 7]\nnc: 2\n")).names == ["x", "7"]


def test_missing_yaml_suggests_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_data_config("shape.yaml")
    assert_says(caught.value, "shape.yaml", "shapes.yaml")


def test_missing_split_and_missing_folder(tmp_path: Path) -> None:
    config = load_data_config(write_yaml(tmp_path, "path: nowhere\ntrain: images\nnames: [x]\n"))
    with pytest.raises(DataError) as caught:
        config.sources("val")
    assert_says(caught.value, "val", "train")
    with pytest.raises(DataError) as caught:
        config.sources("train")
    assert_says(caught.value, "train", tmp_path / "nowhere" / "images", f"root {tmp_path / 'nowhere'}", "path")


def test_names_of_a_coco_file_in_file_order(tmp_path: Path) -> None:
    categories = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]
    (tmp_path / "a.json").write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    config = load_data_config(write_yaml(tmp_path, "train: a.json\n"))
    assert config.names == ["cat", "dog"]
    assert config.kind == "coco"


def test_shipped_coco_yaml() -> None:
    config = load_data_config("coco.yaml")
    assert len(config.names) == 80
    assert (config.names[0], config.names[79]) == ("person", "toothbrush")
    assert config.image_dirs["val"] == config.root / "val2017"
