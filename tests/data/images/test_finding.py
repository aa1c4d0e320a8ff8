"""The images of a folder: suffixes, first bytes, and links."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from data.images.finding import image_format, is_image, read_folder


def test_endings_in_any_case() -> None:
    assert all(map(is_image, ("a.jpg", "a.JPEG", "b/c.Png", "a.webp", "a.TIF", "a.mpo", "a.dng", "a.bmp")))
    assert not any(map(is_image, ("a.txt", "jpg", "a.gif", "a.jpg.bak")))


def test_subfolders_are_read_and_paths_sorted(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    for name in ("b.png", "sub/a.JPG", "a.jpg", ".hidden.jpg", ".cache/c.jpg"):
        write_image(tmp_path / name)
    (tmp_path / "note.txt").write_text("")
    assert [path.relative_to(tmp_path).as_posix() for path in read_folder(tmp_path).images] == [
        "a.jpg",
        "b.png",
        "sub/a.JPG",
    ]


def test_a_link_to_a_folder_above_is_not_followed(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    image = write_image(tmp_path / "images" / "train" / "a.jpg")
    write_image(tmp_path / "images" / "val" / "b.jpg")
    links = [tmp_path / "images" / "train" / name for name in ("again", "self", "up")]
    for link, target in zip(links, (tmp_path / "images" / "train", ".", ".."), strict=True):
        link.symlink_to(target)
    content = read_folder(tmp_path / "images" / "train")
    assert (content.images, content.loops) == ([image], links)


def test_a_loop_through_another_folder_ends(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    image = write_image(tmp_path / "store" / "a.jpg")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "train").symlink_to(tmp_path / "store")
    (tmp_path / "store" / "back").symlink_to(tmp_path / "images")
    content = read_folder(tmp_path / "images" / "train")
    assert content.images == [tmp_path / "images" / "train" / "a.jpg"]
    assert content.loops == [tmp_path / "images" / "train" / "back"]
    assert image.is_file()


def test_each_link_is_followed_once_under_its_name(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    for name in "ab":
        write_image(tmp_path / "images" / name / f"{name}.jpg")
    for name, other in ("ab", "ba"):
        (tmp_path / "images" / name / f"to_{other}").symlink_to(f"../{other}")
    write_image(tmp_path / "far" / "c.jpg")
    (tmp_path / "images" / "0").symlink_to("../far")
    found = [path.relative_to(tmp_path / "images").as_posix() for path in read_folder(tmp_path / "images").images]
    assert found == ["0/c.jpg", "a/a.jpg", "a/to_b/b.jpg", "b/b.jpg", "b/to_a/a.jpg"]


def test_links_that_lead_nowhere_and_pipes(tmp_path: Path) -> None:
    for name in ("x.jpg", "folder"):
        (tmp_path / name).symlink_to("missing")
    (tmp_path / "round").symlink_to("round")
    os.mkfifo(tmp_path / "pipe.jpg")
    content = read_folder(tmp_path)
    assert content.images == [tmp_path / "x.jpg"]
    assert content.dead == [tmp_path / "folder", tmp_path / "round"]
    assert len(content.closed) == 1
    assert content.closed[0].startswith(str(tmp_path / "pipe.jpg"))


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (b"\xff\xd8\xff\xe0", "JPEG"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"GIF89a", "GIF"),
        (b"\0\0\0\x1cftypheic", "HEIC"),
        (b"\0\0\0\x1cftypavif", "AVIF"),
        (b"\0\0\0\x1cftypisom", ""),
        (b"RIFF\0\0\0\0WEBP", "WebP"),
        (b"RIFF\0\0\0\0AVI ", ""),
        (b"II*\0", "TIFF"),
        (b"P6\n4 4", "PNM"),
        (b"Price list", ""),
        (b"BMW", ""),
        (b"", ""),
    ],
)
def test_format_by_the_first_bytes(tmp_path: Path, start: bytes, expected: str) -> None:
    (tmp_path / "file").write_bytes(start.ljust(40, b"\0") if start else b"")
    assert image_format(tmp_path / "file") == expected
