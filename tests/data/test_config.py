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


def test_a_class_may_be_called_like_a_number(tmp_path: Path) -> None:
    config = load_data_config(write_yaml(tmp_path, "train: a\nnames: [1e3, 2E-1, 5]\n"))
    assert config.names == ["1e3", "2E-1", "5"]


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
        ("train: a\nnames: [x]\nnc: '1'\n", ("nc", "'1'")),
        ("train: 5\nnames: [x]\n", ("train", 5, "folder")),
        ("train: a\nnames: [x\n", ("line 3", "yaml")),
        ("- a\n", ("list", "mapping")),
        ("path: 3\ntrain: a\nnames: [x]\n", ("path", 3, "folder")),
        ("train: a.json\n", ("names", "a.json")),
        ("train: a\nnames: [x]\nimages: {trian: b}\n", ("images", "trian", "b", "folder")),
        ("train: a\nnames: [x]\nchannels: 1\n", ("channels", 1, 3, "RGB")),
        ("train: a\nvalid: b\nnames: [x]\n", ("valid", "mean 'val'")),
        ("train: a\nclasses: [x]\n", ("classes", "mean 'names'")),
        ("train: a\nnum-classes: 1\nnames: [x]\n", ("num-classes", "mean 'nc'")),
        ("train: a\nNames: [x]\n", ("Names", "mean 'names'")),
        ("train: a\nnames: [x]\nlabels: b\n", ("labels", "labels/train/a.txt")),
        ("train: a\nnames: [x]\nbatch: 8\n", ("batch", "command line")),
        ("path: ~no_such_user/x\ntrain: a\nnames: [x]\n", ("path", "~no_such_user")),
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


@pytest.mark.parametrize("key", ["stride", "yolo", "3"])
def test_an_unknown_key_without_a_near_one_suggests_nothing(tmp_path: Path, key: str) -> None:
    with pytest.raises(DataError) as caught:
        load_data_config(write_yaml(tmp_path, f"train: a\nnames: [x]\n{key}: a\n"))
    assert_says(caught.value, key)
    assert "mean" not in str(caught.value)


def test_keys_of_other_programs_are_accepted_and_named(tmp_path: Path) -> None:
    text = "train: a\nnames: {'0': x}\nnc: 1\nchannels: 3\nlicense: MIT\ncolors: [red]\nroboflow: {version: 1}\n"
    config = load_data_config(write_yaml(tmp_path, text))
    assert config.names == ["x"]
    assert len(config.notes) == 1
    assert_says(config.notes[0], "set.yaml", "colors", "license")


def folders(root: Path, *names: str) -> None:
    for name in names:
        (root / name).mkdir(parents=True)


ROBOFLOW = "train: ../train/images\nval: ../valid/images\nnames: [x]\n"


def test_roboflows_paths_are_found_beside_the_yaml_and_not_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders(tmp_path, "ds/train/images", "ds/valid/images", "other/train/images", "other/valid/images", "other/repo")
    write_yaml(tmp_path / "ds", ROBOFLOW)
    monkeypatch.chdir(tmp_path / "other" / "repo")
    config = load_data_config("../../ds/set.yaml")
    assert config.sources("train") == (tmp_path / "ds" / "train" / "images",)
    assert config.sources("val") == (tmp_path / "ds" / "valid" / "images",)
    assert_says(config.notes[0], "train", "../train/images", tmp_path / "ds/train/images", tmp_path / "train/images")
    (tmp_path / "ds" / "valid" / "images").rmdir()
    config = load_data_config("../../ds/set.yaml")
    with pytest.raises(DataError) as caught:
        config.sources("val")
    assert_says(caught.value, tmp_path / "valid" / "images", tmp_path / "other" / "valid" / "images")


@pytest.mark.parametrize(
    ("key", "taken", "other"), [("", "train", "ds/train"), ("roboflow: {version: 1}", "ds/train", "train")]
)
def test_where_both_places_exist_one_is_taken_and_the_other_named(
    tmp_path: Path, key: str, taken: str, other: str
) -> None:
    folders(tmp_path, "ds/train/images", "train/images")
    config = load_data_config(write_yaml(tmp_path / "ds", f"train: ../train/images\nnames: [x]\n{key}\n"))
    assert config.splits["train"] == (tmp_path / taken / "images",)
    assert_says(config.notes[0], "train", tmp_path / taken / "images", tmp_path / other / "images")


@pytest.mark.parametrize(
    ("text", "root"),
    [
        ("train: ds/train/images", "ds"),  # the name of the yaml's folder stands before the path
        ("path: /gone\ntrain: train/images", "/gone"),
        ("path: ..\ntrain: train/images", "."),
        ("train: .\\train\\images\\", "ds"),
        ("path: C:\\gone\\ds\ntrain: train\\images", "ds/C:/gone/ds"),
    ],
)
def test_other_ways_to_the_folder_beside_the_yaml(tmp_path: Path, text: str, root: str) -> None:
    folders(tmp_path, "ds/train/images")
    config = load_data_config(write_yaml(tmp_path / "ds", text + "\nnames: [x]\n"))
    assert config.sources("train") == (tmp_path / "ds" / "train" / "images",)
    assert Path(str(config.root).replace("\\", "/")) == tmp_path / root


def test_the_working_folder_comes_last_and_for_all_splits_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders(tmp_path, "here/train", "here/val", "ds")
    monkeypatch.chdir(tmp_path / "here")
    path = write_yaml(tmp_path / "ds", "train: train\nval: val\nnames: [x]\n")
    config = load_data_config(path)
    assert config.splits == {"train": (tmp_path / "here/train",), "val": (tmp_path / "here/val",)}
    assert_says(config.notes[0], "train", tmp_path / "here" / "train", tmp_path / "ds" / "train")
    (tmp_path / "ds" / "train").mkdir()
    config = load_data_config(path)
    assert config.splits == {"train": (tmp_path / "ds/train",), "val": (tmp_path / "ds/val",)}
    with pytest.raises(DataError) as caught:
        config.sources("val")
    assert_says(caught.value, tmp_path / "ds" / "val", tmp_path / "here" / "val")


def test_a_moved_absolute_path_names_what_lies_near(tmp_path: Path) -> None:
    folders(tmp_path, "ds/train/images")
    config = load_data_config(write_yaml(tmp_path / "ds", "train: /content/ds/train/images\nnames: [x]\n"))
    with pytest.raises(DataError) as caught:
        config.sources("train")
    assert_says(caught.value, "/content/ds/train/images", tmp_path / "ds" / "train" / "images")


def test_links_keep_the_names_that_the_yaml_gives(tmp_path: Path) -> None:
    folders(tmp_path, "store/images/train", "task")
    (tmp_path / "task" / "images").symlink_to("../store/images")
    (tmp_path / "link").symlink_to("task")
    write_yaml(tmp_path / "task", "train: images/train\nnames: [x]\n")
    for folder in ("task", "link"):
        config = load_data_config(tmp_path / folder / "set.yaml")
        assert config.splits["train"] == (tmp_path / folder / "images" / "train",)


def test_a_linked_yaml_looks_beside_the_link_and_then_beside_its_target(tmp_path: Path) -> None:
    folders(tmp_path, "a/images", "b")
    write_yaml(tmp_path / "a", "train: images\nnames: [x]\n")
    (tmp_path / "b" / "link.yaml").symlink_to("../a/set.yaml")
    config = load_data_config(tmp_path / "b" / "link.yaml")
    assert config.splits["train"] == (tmp_path / "a" / "images",)
    assert_says(config.notes[0], tmp_path / "a" / "images", tmp_path / "b" / "images")
    (tmp_path / "b" / "images").mkdir()
    assert load_data_config(tmp_path / "b" / "link.yaml").splits["train"] == (tmp_path / "b" / "images",)


@pytest.mark.parametrize("name", ["x" * 5000, '"a\\0b"', '"\\uD83D"', "~no_such_user/x"])
def test_names_that_no_file_has(tmp_path: Path, name: str) -> None:
    config = load_data_config(write_yaml(tmp_path, f"train: {name}\nnames: [x]\n"))
    with pytest.raises(DataError) as caught:
        config.sources("train")
    assert_says(caught.value, "set.yaml", "train")
    assert str(caught.value).isprintable()


def test_a_folder_named_twice_is_read_twice(tmp_path: Path) -> None:
    config = load_data_config(write_yaml(tmp_path, "train: [a, a]\nnames: [x]\n"))
    assert config.splits["train"] == (tmp_path / "a", tmp_path / "a")


def test_the_folder_of_coco_images_is_searched_like_a_split(tmp_path: Path) -> None:
    folders(tmp_path, "ds/pictures")
    (tmp_path / "ds" / "a.json").write_text("{}")
    config = load_data_config(
        write_yaml(tmp_path / "ds", "train: a.json\nval: a.json\nimages: ../pictures\nnames: [x]\n")
    )
    assert config.image_dirs == dict.fromkeys(("train", "val"), tmp_path / "ds" / "pictures")
    assert len(config.notes) == 1
    assert_says(config.notes[0], "images", "../pictures")


def test_the_range_of_pixel_values(tmp_path: Path) -> None:
    path = tmp_path / "data.yaml"
    path.write_text("train: images\nnames: [a]\n")
    assert load_data_config(path).pixel_range is None
    path.write_text("train: images\nnames: [a]\npixel_range: [-1000, 3e3]\n")
    assert load_data_config(path).pixel_range == (-1000, 3000)
    path.write_text("train: images\nnames: [a]\npixel_range: 12\n")
    with pytest.raises(DataError) as caught:
        load_data_config(path)
    assert_says(caught.value, path, "pixel_range", 12, "4095")


def test_a_source_that_is_a_dead_link_names_its_target(tmp_path: Path) -> None:
    (tmp_path / "images").symlink_to("/gone/images")
    config = load_data_config(write_yaml(tmp_path, "train: images\nnames: [x]\n"))
    with pytest.raises(DataError) as caught:
        config.sources("train")
    assert_says(caught.value, tmp_path / "images", "/gone/images")


@pytest.mark.parametrize("name", [r"\ud83d", r"a\0b"])
def test_names_that_cannot_be_written_stop(tmp_path: Path, name: str) -> None:
    (tmp_path / "set.yaml").write_text(f'train: images\nnames: [cat, "{name}"]\n')
    with pytest.raises(DataError) as caught:
        load_data_config(tmp_path / "set.yaml")
    assert_says(caught.value, tmp_path / "set.yaml", "names[1]")
    str(caught.value).encode()
