"""A run writes over nothing that it reads, and an earlier run's files do not stay as if they were its own."""

import os
import shutil
from pathlib import Path

import pytest

from data.images.sources import open_source
from tests.saying import assert_says
from utils.errors import SettingsError
from utils.runs.run_folder import RECORD, check_source_is_apart, read_record, record_file, remove_earlier_files


@pytest.fixture
def photos(tmp_path: Path, write_image, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of pictures, which is also below the working folder."""
    write_image(tmp_path / "photos" / "a.jpg")
    write_image(tmp_path / "photos" / "more" / "b.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


def link(path: str, target: str) -> None:
    Path(path).symlink_to(target)


def check(source: str, folder: str, exist_ok: bool = True, labels: bool = False) -> None:
    check_source_is_apart(open_source(source), Path(folder), exist_ok, labels)


@pytest.mark.parametrize(
    ("source", "folder"),
    [
        ("photos", "photos"),
        ("photos", "./photos/."),
        ("photos", "photos/more/../../photos"),
        ("photos", "alias"),
        ("alias", "photos"),
        ("photos", "photos/more"),
        ("photos", "photos/out/exp"),
        ("photos", "alias/out"),
        ("photos", "photos/.out"),
        ("photos/**/*.jpg", "photos/more"),
        ("photos/a.jpg", "photos"),
        ("photos/*.jpg", "alias"),
        ("picture.jpg", "photos"),
        ("list.txt", "photos"),
        ("photos/more/../a.jpg", "photos"),
        ("photos", "beside"),
        ("photos/a.jpg", "with-crops"),
    ],
)
def test_what_would_write_over_the_source(photos: Path, source: str, folder: str) -> None:
    link("alias", "photos")
    link("picture.jpg", "photos/a.jpg")
    Path("list.txt").write_text("photos/a.jpg\n")
    Path("beside").mkdir()
    link("beside/more", "../photos/more")
    Path("with-crops/crops").mkdir(parents=True)
    link("with-crops/crops/cat", str(photos))
    with pytest.raises(SettingsError) as caught:
        check(source, folder)
    assert_says(caught.value, folder.strip("/."), "--project")


@pytest.mark.parametrize(
    ("source", "folder", "exist_ok"),
    [
        ("photos", "out/exp", True),
        ("photos", ".", True),
        ("photos", "photos", False),
        ("photos", "photos-2", True),
        ("photos/a.jpg", "photos", False),
        ("photos/a.jpg", "photos/out", True),
        ("photos/*.jpg", "photos/more", True),
        ("list.txt", ".", True),
        ("0", ".", True),
    ],
)
def test_what_is_apart(photos: Path, source: str, folder: str, exist_ok: bool) -> None:
    Path("list.txt").write_text("photos/a.jpg\nphotos/more/b.jpg\n")
    check(source, folder, exist_ok)


def test_inside_the_source_without_exist_ok(photos: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        check("photos", "photos/exp", exist_ok=False)
    assert_says(caught.value, "photos/exp")


def test_labels_of_the_data_set_are_not_written_over(tmp_path: Path, write_image) -> None:
    write_image(tmp_path / "set" / "images" / "a.jpg")
    (tmp_path / "set" / "labels").mkdir()
    source = str(tmp_path / "set" / "images")
    check(source, str(tmp_path / "set"), labels=True)
    (tmp_path / "set" / "labels" / "a.txt").write_text("0 0.5 0.5 1 1\n")
    check(source, str(tmp_path / "set"), labels=False)
    with pytest.raises(SettingsError) as caught:
        check(source, str(tmp_path / "set"), labels=True)
    assert_says(caught.value, tmp_path / "set" / "labels" / "a.txt")


def test_pictures_of_an_earlier_run_as_source(tmp_path: Path, write_image) -> None:
    record_file(tmp_path / "exp", write_image(tmp_path / "exp" / "sub" / "a.jpg"))
    with pytest.raises(SettingsError) as caught:
        check(str(tmp_path / "exp" / "sub"), str(tmp_path / "exp"))
    assert_says(caught.value, tmp_path / "exp" / "sub" / "a.jpg")


# --- files of an earlier run


def written(folder: Path, *names: str) -> None:
    """Write files as a run does."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(name))
        record_file(folder, path)


def test_exactly_the_recorded_files_are_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path, "a.jpg", "labels/a.txt", "labels/deep/b.txt", "crops/cat/ü \udce4.jpg", "predictions.json")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "deep" / "empty").mkdir(parents=True)
    remove_earlier_files(tmp_path)
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")} == {
        "notes.txt",
        "deep",
        "deep/empty",
    }
    assert_says(capsys.readouterr().out, tmp_path, 5, "a.jpg")
    remove_earlier_files(tmp_path)
    assert capsys.readouterr().out == ""


def test_a_file_that_was_changed_since_stops_the_run(tmp_path: Path) -> None:
    written(tmp_path, "labels/a.txt", "labels/b.txt")
    (tmp_path / "labels" / "b.txt").write_text("corrected by hand")
    with pytest.raises(SettingsError) as caught:
        remove_earlier_files(tmp_path)
    assert_says(caught.value, 1, tmp_path / "labels" / "b.txt", "--name")
    assert (tmp_path / "labels" / "a.txt").exists()


def test_a_link_in_place_of_a_file_stops_the_run(tmp_path: Path) -> None:
    written(tmp_path / "exp", "labels/a.txt")
    (tmp_path / "mine").write_text("labels/a.txt")
    (tmp_path / "exp" / "labels" / "a.txt").unlink()
    (tmp_path / "exp" / "labels" / "a.txt").symlink_to(tmp_path / "mine")
    with pytest.raises(SettingsError):
        remove_earlier_files(tmp_path / "exp")
    assert (tmp_path / "mine").read_text() == "labels/a.txt"


@pytest.mark.parametrize(
    "name", ["labels/a.txt", "crops/cat/a.jpg", "explain/deep/a.png", "visualize/a/b.png", "predictions.json"]
)
def test_files_of_unknown_origin_stop_the_run(tmp_path: Path, name: str) -> None:
    written(tmp_path, "labels/own.txt")
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("x")
    with pytest.raises(SettingsError) as caught:
        remove_earlier_files(tmp_path)
    assert_says(caught.value, tmp_path, tmp_path / name, "--name")
    assert (tmp_path / "labels" / "own.txt").exists()


def test_files_that_the_user_removed_are_no_matter(tmp_path: Path) -> None:
    written(tmp_path, "labels/a.txt", "crops/cat/a.jpg")
    shutil.rmtree(tmp_path / "crops")
    remove_earlier_files(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../mine.txt", "/mine.txt", "out/mine.txt", "labels/../../mine.txt"])
def test_a_record_reaches_nothing_outside(tmp_path: Path, name: str) -> None:
    mine, folder = tmp_path / "mine.txt", tmp_path / "exp"
    mine.write_text("mine")
    (folder / "labels").mkdir(parents=True)
    (folder / "out").symlink_to(tmp_path)
    status = mine.stat()
    line = f'["{name.replace("/mine", f"{tmp_path}/mine") if name[0] == "/" else name}", {status.st_size}, '
    (folder / RECORD).write_text(f'{line}{status.st_mtime_ns}]\n["labels/a.txt", 1\nnonsense\n["a", "b", "c"]\n7\n')
    assert read_record(folder) == []
    remove_earlier_files(folder)
    assert mine.read_text() == "mine"


def test_times_may_be_rounded(tmp_path: Path) -> None:
    written(tmp_path, "labels/a.txt")
    path = tmp_path / "labels" / "a.txt"
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns // 10**9 * 10**9))
    remove_earlier_files(tmp_path)
    assert not path.exists()
