"""Where the images of a COCO file are found."""

from collections.abc import Callable
from pathlib import Path

import pytest

from data.labels.coco_images import find_image_dir, folder_of_images, image_places
from tests.saying import assert_says
from utils.errors import DataError

Writer = Callable[..., Path]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The place of a COCO file."""
    return tmp_path / "annotations" / "instances_val2017.json"


@pytest.mark.parametrize("folder", ["val2017", "images/val2017", "annotations", "images", "annotations/images", "."])
def test_images_are_found_beside(path: Path, tmp_path: Path, write_image: Writer, folder: str) -> None:
    write_image(tmp_path / folder / "b.jpg")
    assert find_image_dir(path, ["missing.jpg", "b.jpg"]) == tmp_path / folder


def test_images_are_found_from_the_root(path: Path, tmp_path: Path, write_image: Writer) -> None:
    write_image(tmp_path / "images" / "train" / "b.jpg")
    assert find_image_dir(path, ["images/train/b.jpg"]) == tmp_path
    write_image(tmp_path / "set" / "x" / "b.jpg")
    assert find_image_dir(path, ["x/b.jpg"], tmp_path / "set") == tmp_path / "set"


def test_the_folder_with_the_most_images_is_taken(path: Path, tmp_path: Path, write_image: Writer) -> None:
    write_image(tmp_path / "val2017" / "0.jpg")
    for number in range(3):
        write_image(tmp_path / "images" / f"{number}.jpg")
    assert find_image_dir(path, ["0.jpg", "1.jpg", "2.jpg"]) == tmp_path / "images"


def test_images_that_are_nowhere(path: Path) -> None:
    with pytest.raises(DataError) as caught:
        find_image_dir(path, ["b.jpg"])
    assert_says(caught.value, "b.jpg", "val2017", "'images'")


@pytest.mark.parametrize("name", ["/home/me/set/b.jpg", r"C:\\set\\b.jpg", "https://host/b.jpg", "../else/b.jpg"])
def test_paths_of_another_computer_get_a_remedy(path: Path, tmp_path: Path, write_image: Writer, name: str) -> None:
    write_image(tmp_path / "images" / "b.jpg")
    with pytest.raises(DataError) as caught:
        find_image_dir(path, [name])
    assert_says(caught.value, tmp_path / "images", "file_name")


def test_a_given_folder_that_does_not_hold_them_is_answered_by_the_right_one(
    path: Path, tmp_path: Path, write_image: Writer
) -> None:
    write_image(tmp_path / "images" / "train" / "b.jpg")
    with pytest.raises(DataError) as caught:
        folder_of_images(path, ["images/train/b.jpg"], tmp_path / "images" / "train", tmp_path)
    assert_says(caught.value, "images/train/b.jpg", f"below {tmp_path}", "'images'")


def test_backslashes_are_folders_unless_a_file_has_them(path: Path, tmp_path: Path, write_image: Writer) -> None:
    write_image(tmp_path / "train" / "a.jpg")
    literal = write_image(tmp_path / r"train\b.jpg")
    assert find_image_dir(path, [r"train\a.jpg"]) == tmp_path
    notes: list[str] = []
    places = image_places(path, tmp_path, [r"train\a.jpg", r"train\b.jpg", "train/a.jpg"], notes)
    assert places == [tmp_path / "train" / "a.jpg", literal, tmp_path / "train" / "a.jpg"]
    assert len(notes) == 1
    assert_says(notes[0], "1 of 3", r"train\a.jpg")
