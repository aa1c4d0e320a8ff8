"""The label cache: what goes in comes out, and what changed does not count."""

from pathlib import Path

import numpy as np
import pytest

from data.labels.annotation import IMAGE, ROW, Objects, Problem
from data.labels.cache import Entry, Job, cache_places, load_entries, save_entries, stamp


def entries() -> dict[Job, Entry]:
    """Return three images: one with objects, one that was skipped, one without objects."""
    objects = Objects()
    objects.add(
        2,
        np.array((1.0, 2.0, 3.0, 4.5)),
        [np.array([(1, 2), (3, 2), (3, 4.5)], np.float32), np.ones((4, 2), np.float32)],
        area=2.5,
    )
    objects.add(0, np.array((0.0, 0.0, 9.0, 9.0)), [], area=81)
    return {
        ("a.jpg", (1, 2, 3, 4, 5, 6, 7, 8)): Entry(
            objects.annotation(Path("a.jpg"), (40, 60)), [Problem(ROW, "a.txt:3", "bad — 坏")], True, 1
        ),
        ("b.jpg", (1, 2, 3, 4, -1, -1, -1, -1)): Entry(None, [Problem(IMAGE, "b.jpg", "empty file")], False),
        ("c.jpg", (8, 7, 6, 5, 4, 3, 2, 1)): Entry(Objects().annotation(Path("c.jpg"), (10, 20)), [], False),
    }


def test_round_trip(tmp_path: Path) -> None:
    places = [tmp_path / "a.cache.npz"]
    assert save_entries(places, "key", entries()) == places[0]
    loaded = load_entries(places, "key")
    assert list(loaded) == list(entries())
    for entry, expected in zip(loaded.values(), entries().values(), strict=True):
        assert (entry.problems, entry.labelled, entry.clipped) == (
            expected.problems,
            expected.labelled,
            expected.clipped,
        )
        assert (entry.annotation is None) == (expected.annotation is None)
    first, third = (loaded[key].annotation for key in list(loaded)[::2])
    assert (first.path, first.file_hw, third.file_hw, len(third)) == (Path("a.jpg"), (40, 60), (10, 20), 0)
    np.testing.assert_array_equal(first.classes, [2, 0])
    np.testing.assert_array_equal(first.boxes_xyxy, np.array([(1, 2, 3, 4.5), (0, 0, 9, 9)], np.float32))
    np.testing.assert_array_equal(first.areas, [2.5, 81])
    assert [[part.shape for part in polygon] for polygon in first.polygons] == [[(3, 2), (4, 2)], []]
    np.testing.assert_array_equal(first.polygons[0][0], [(1, 2), (3, 2), (3, 4.5)])
    assert third.boxes_xyxy.shape == (0, 4)


def test_no_entries(tmp_path: Path) -> None:
    save_entries([tmp_path / "a.cache.npz"], "key", {})
    assert load_entries([tmp_path / "a.cache.npz"], "key") == {}


def test_no_pickle_inside(tmp_path: Path) -> None:
    save_entries([tmp_path / "a.cache.npz"], "key", entries())
    with np.load(tmp_path / "a.cache.npz", allow_pickle=False) as archive:
        assert archive.files
        assert all(archive[name].dtype != object for name in archive.files)


def test_another_key_counts_as_none(tmp_path: Path) -> None:
    save_entries([tmp_path / "a.cache.npz"], "key", entries())
    assert load_entries([tmp_path / "a.cache.npz"], "other key") == {}


@pytest.mark.parametrize("size", [0, 10, 300, -20])
def test_a_damaged_cache_counts_as_none(tmp_path: Path, size: int) -> None:
    place = tmp_path / "a.cache.npz"
    save_entries([place], "key", entries())
    place.write_bytes(place.read_bytes()[:size])
    assert load_entries([place], "key") == {}


def test_a_flipped_byte_counts_as_none(tmp_path: Path) -> None:
    place = tmp_path / "a.cache.npz"
    save_entries([place], "key", entries())
    content = bytearray(place.read_bytes())
    at = content.find(b'"paths"')
    content[at + 1] ^= 1
    place.write_bytes(content)
    assert load_entries([place], "key") == {}


def test_read_only_folder_is_left_alone_for_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    folder = tmp_path / "labels"
    folder.mkdir()
    places = cache_places(folder / "train")
    assert places[0] == folder / "train.cache.npz"
    assert places[1].parent == tmp_path / "own" / "yolo_loom"
    folder.chmod(0o555)
    try:
        assert save_entries(places, "key", entries()) == places[1]
    finally:
        folder.chmod(0o755)
    assert list(folder.iterdir()) == []
    assert len(load_entries(places, "key")) == 3


def test_nowhere_to_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert save_entries([tmp_path / "file" / "a.cache.npz"], "key", entries()) is None


def test_stamp_sees_size_time_and_absence(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("12")
    before = stamp(tmp_path / "a", tmp_path / "b")
    assert (before[0], before[4:]) == (2, (-1, -1, -1, -1))
    assert stamp(tmp_path / "a", None) == before
    (tmp_path / "b").write_text("")
    assert stamp(tmp_path / "a", tmp_path / "b") != before


def test_without_a_home_folder_there_is_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as for a user that the system does not know
    assert cache_places(tmp_path / "train") == [tmp_path / "train.cache.npz"]
