"""Image sources: files, folders, patterns, lists, videos, and what is skipped."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.images.finding import read_folder
from data.images.sources import open_source
from tests.saying import assert_says
from utils.errors import DataError


def write_video(path: Path, frames: int = 5, fps: float = 10.0) -> Path:
    """Write a video whose frames get brighter by 40 grey levels each."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), fps, (64, 48))
    for number in range(frames):
        writer.write(np.full((48, 64, 3), 40 * number, np.uint8))
    writer.release()
    return path


@pytest.fixture
def mixed(tmp_path: Path, write_image) -> Path:
    """A folder with two good images, a video, three broken files, a text, hidden files and a subfolder."""
    folder = tmp_path / "mixed"
    write_image(folder / "b.jpg")
    write_image(folder / "图片 一.PNG", (20, 30))
    write_image(folder / "sub" / "deep.jpg")
    write_image(folder / ".hidden.jpg")
    write_image(folder / ".trash" / "old.jpg")
    write_video(folder / "видео.mp4")
    (folder / "corrupt.jpg").write_bytes(b"\xff\xd8\xff no jpeg" * 20)
    (folder / "empty.png").write_bytes(b"")
    (folder / "broken.avi").write_bytes(b"no video")
    (folder / "notes.md").write_text("x")
    return folder


def test_folder_yields_what_can_be_read_and_names_the_rest(mixed: Path) -> None:
    source = open_source(mixed)
    frames = list(source)
    images = [frame for frame in frames if not frame.is_video]
    assert [(frame.relative.as_posix(), frame.image.shape, frame.number) for frame in images] == [
        ("b.jpg", (40, 60, 3), None),
        ("sub/deep.jpg", (40, 60, 3), None),
        ("图片 一.PNG", (20, 30, 3), None),
    ]
    assert len(frames) == 3 + 5
    reasons = {Path(path).name: reason for path, reason in source.skipped}
    assert set(reasons) == {"corrupt.jpg", "empty.png", "broken.avi", "notes.md"}
    assert "empty" in reasons["empty.png"]
    assert "decoded" in reasons["corrupt.jpg"]
    assert reasons["broken.avi"] == "no frame could be decoded"
    assert not any(str(mixed) in reason for reason in reasons.values())


def test_images_are_rgb(tmp_path: Path) -> None:
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 2] = 255
    path = tmp_path / "red.png"
    path.write_bytes(cv2.imencode(".png", red)[1].tobytes())
    (frame,) = open_source(path)
    assert frame.image[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(("stride", "numbers"), [(1, [1, 2, 3, 4, 5]), (2, [1, 3, 5]), (4, [1, 5])])
def test_video_stride(tmp_path: Path, stride: int, numbers: list[int]) -> None:
    frames = list(open_source(write_video(tmp_path / "v.mp4"), vid_stride=stride))
    assert [frame.number for frame in frames] == numbers
    assert all(frame.is_video and frame.fps == pytest.approx(10 / stride) for frame in frames)
    assert [round(float(frame.image.mean()) / 40) for frame in frames] == [number - 1 for number in numbers]


def test_patterns(mixed: Path) -> None:
    assert [frame.path.name for frame in open_source(str(mixed / "b*.jpg"))] == ["b.jpg"]
    assert {frame.path.name for frame in open_source(str(mixed / "**" / "*.jpg"))} == {"b.jpg", "deep.jpg"}


def relative_names(source: Path | str) -> list[str]:
    """Return the frames of a source by their path below it."""
    return [frame.relative.as_posix() for frame in open_source(source)]


def test_names_are_relative_to_the_source(mixed: Path, write_image, tmp_path: Path) -> None:
    write_image(mixed / "sub" / "b.jpg")
    assert relative_names(str(mixed / "*" / "b.jpg")) == ["sub/b.jpg"]
    assert relative_names(str(mixed / "**" / "b.jpg")) == ["b.jpg", "sub/b.jpg"]
    assert relative_names(mixed / "sub" / "b.jpg") == ["b.jpg"]
    listing = tmp_path / "list.txt"
    listing.write_text("mixed/b.jpg\nmixed/sub/b.jpg\n/nowhere/c.jpg\n")
    assert relative_names(listing) == ["b.jpg", "sub/b.jpg"]


def test_pattern_is_relative_to_the_working_folder(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(mixed)
    assert relative_names("**/*.jpg") == ["b.jpg", "sub/deep.jpg"]
    assert relative_names(".") == ["b.jpg", "sub/deep.jpg", *["видео.mp4"] * 5, "图片 一.PNG"]


@pytest.mark.parametrize("source", ["in", "in/**/*.jpg"])
def test_links_are_followed_as_in_training(tmp_path: Path, write_image, source: str) -> None:
    for name in ("in/a.jpg", "in/b/c.jpg", "elsewhere/d.jpg", "e.jpg"):
        write_image(tmp_path / name)
    for link, target in (
        ("self", "."),
        ("other", "."),
        ("up", ".."),
        ("a-again", "b"),
        ("linked", "../elsewhere"),
        ("linked-2", "../elsewhere"),
        ("b/back", ".."),
        ("gone.jpg", "nowhere.jpg"),
        ("file.jpg", "../e.jpg"),
    ):
        (tmp_path / "in" / link).symlink_to(target)
    opened = open_source(str(tmp_path / source))
    names = [frame.relative.as_posix() for frame in opened]
    assert names == ["a-again/c.jpg", "a.jpg", "b/c.jpg", "file.jpg", "linked-2/d.jpg", "linked/d.jpg"]
    assert len(read_folder(tmp_path / "in").images) == len(names) + 1, "training names the link gone.jpg too"
    reasons = {Path(path).relative_to(tmp_path / "in").as_posix(): reason for path, reason in opened.skipped}
    assert {"self", "other", "up", "b/back", "gone.jpg"} <= set(reasons)


def test_a_link_as_source_keeps_its_name(tmp_path: Path, write_image) -> None:
    path = write_image(tmp_path / "real" / "sub" / "a.jpg")
    (tmp_path / "link").symlink_to("real")
    (frame,) = open_source(tmp_path / "link")
    assert (frame.path, frame.relative) == (tmp_path / "link" / "sub" / "a.jpg", Path("sub/a.jpg"))
    assert path.samefile(frame.path)


def test_a_name_with_brackets_is_a_file_first(tmp_path: Path, write_image) -> None:
    path = write_image(tmp_path / "a[1].jpg")
    assert [frame.path for frame in open_source(path)] == [path]


def test_text_list(mixed: Path, tmp_path: Path) -> None:
    listing = tmp_path / "list.txt"
    listing.write_text(
        f"\ufeffmixed/b.jpg\n\n{mixed / 'sub' / 'deep.jpg'}\n./mixed/b.jpg\nmissing.jpg\n", encoding="utf-8"
    )
    source = open_source(listing)
    assert [frame.path.name for frame in source] == ["b.jpg", "deep.jpg"]
    assert len(source.skipped) == 1
    assert source.skipped[0][0].endswith("missing.jpg")
    assert "No such file" in source.skipped[0][1]


def test_comments_and_paths_of_windows_in_a_list(mixed: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("# mine\nmixed\\b.jpg # first\n  # none\n'mixed/sub/deep.jpg'\n")
    source = open_source(tmp_path / "list.txt")
    assert [frame.path for frame in source] == [mixed / "b.jpg", mixed / "sub" / "deep.jpg"]
    assert source.skipped == []
    (tmp_path / "list.txt").write_text("# nothing else\n")
    with pytest.raises(DataError) as caught:
        open_source(tmp_path / "list.txt")
    assert_says(caught.value, "list.txt")


def test_images_are_told_by_their_first_bytes(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    jpeg = write_image(tmp_path / "in" / "a.jpg").read_bytes()
    for name in ("b.jfif", "c", "d.heic", "e.gif"):
        (tmp_path / "in" / name).write_bytes(jpeg)
    (tmp_path / "in" / "f.heic").write_bytes(b"\0\0\0\x1cftypheic" + b"\0" * 40)
    source = open_source(tmp_path / "in")
    assert [(frame.path.name, frame.is_video) for frame in source] == [
        (name, False) for name in ("a.jpg", "b.jfif", "c", "d.heic", "e.gif")
    ]
    assert [Path(path).name for path, _ in source.skipped] == ["f.heic"]
    assert [frame.path.name for frame in open_source(tmp_path / "in" / "c")] == ["c"]


@pytest.mark.parametrize("name", ["~no_such_user/x", "x" * 5000])
def test_names_that_no_file_has(name: str) -> None:
    with pytest.raises(DataError) as caught:
        open_source(name)
    assert_says(caught.value, name)


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("nothing_here", ("nothing_here", ".txt", "camera")),
        ("empty", ("empty", 1, ".jpg", ".mp4")),
        ("empty/*.jpg", ("empty/*.jpg",)),
        ("empty/readme.md", ("empty/readme.md", ".md", ".jpg", ".txt")),
        ("empty.txt", ("empty.txt",)),
    ],
)
def test_nothing_found(tmp_path: Path, name: str, facts: tuple[object, ...]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "readme.md").write_text("x")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DataError) as caught:
        open_source(str(tmp_path / name))
    assert_says(caught.value, *facts)


@pytest.mark.parametrize("source", ["", " "])
def test_an_empty_source_is_not_the_working_folder(source: str, mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(mixed)
    with pytest.raises(DataError) as caught:
        open_source(source)
    assert_says(caught.value, "--source")


def test_network_addresses_are_refused() -> None:
    with pytest.raises(DataError) as caught:
        open_source("rtsp://camera/stream")
    assert_says(caught.value, "rtsp://camera/stream")


def test_stride_below_one_is_refused(tmp_path: Path, write_image) -> None:
    with pytest.raises(DataError) as caught:
        open_source(write_image(tmp_path / "a.jpg"), vid_stride=0)
    assert_says(caught.value, "--vid-stride 0")


def test_no_camera() -> None:
    with pytest.raises(DataError) as caught:
        next(iter(open_source("97")))
    assert_says(caught.value, 97, 0)
