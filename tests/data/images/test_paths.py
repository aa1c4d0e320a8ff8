"""Paths as users write them, and lists of images."""

from collections.abc import Callable
from pathlib import Path

import pytest

from data.images.paths import exists, find_listed, missing_home, named_path, read_list
from tests.saying import assert_says
from utils.errors import DataError


def test_links_keep_their_names(tmp_path: Path) -> None:
    (tmp_path / "store" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("store/deep")
    assert named_path(tmp_path, "link/a.jpg") == tmp_path / "link" / "a.jpg"
    assert named_path(tmp_path / "link", "./a/../b.jpg") == tmp_path / "link" / "b.jpg"
    assert named_path(tmp_path, "link/../a.jpg") == tmp_path / "store" / "a.jpg"  # as the system reads it
    assert named_path(tmp_path, "/x/../y") == Path("/y")


def test_home_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert named_path(Path("/x"), "~/a") == tmp_path / "a"
    assert named_path(Path("/x"), "~no such user/a") == Path("/x/~no such user/a")
    assert missing_home("~/a") == ""
    assert_says(missing_home("~no such user/a"), "~no such user")


def test_names_that_no_file_can_have_do_not_exist(tmp_path: Path) -> None:
    for name in ("x" * 5000, "a\0b", "\ud800"):
        assert not exists(tmp_path / name)


def test_comments_blank_lines_and_marks_of_encodings(tmp_path: Path) -> None:
    text = "# one\n\n  a.jpg \n\t# two\n猫.jpg\n"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "list.txt").write_text(text, encoding=encoding)
        assert read_list(tmp_path / "list.txt") == [(3, "a.jpg"), (5, "猫.jpg")]
    (tmp_path / "list.txt").write_bytes(b"a.jpg\n\xff\xff\n")
    with pytest.raises(DataError) as caught:
        read_list(tmp_path / "list.txt")
    assert_says(caught.value, "list.txt", "UTF-8", 6)


@pytest.mark.parametrize(
    "line", ["in/a b.jpg", "in\\a b.jpg", ".\\in\\a b.jpg", '"in/a b.jpg"', "in/a b.jpg # night", "'in\\a b.jpg'\t# x"]
)
def test_spellings_of_a_line(tmp_path: Path, write_image: Callable[..., Path], line: str) -> None:
    image = write_image(tmp_path / "in" / "a b.jpg")
    assert find_listed(line, [tmp_path / "elsewhere", tmp_path]) == (image, tmp_path)


def test_a_file_of_exactly_that_name_comes_first(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    for name in ("in\\a.jpg", "a # b.jpg"):
        image = write_image(tmp_path / name)
        assert find_listed(name, [tmp_path]) == (image, tmp_path)
    assert find_listed("missing.jpg", [tmp_path]) is None
