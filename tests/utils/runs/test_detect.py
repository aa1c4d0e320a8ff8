"""A detection run from flags to files, with a stand-in network that always sees the same two objects."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import detect
from tests.saying import assert_says
from utils import cli
from utils.errors import DataError
from utils.runs import detect as detect_run
from utils.runs import detect_files
from utils.runs.detect import DetectOptions


class FixedNetwork(nn.Module):
    """Sees a 'red/cell' of 16 x 8 and a 'cat' of 8 x 8 in every image."""

    def __init__(self) -> None:
        super().__init__()
        self.names, self.nc, self.stride, self.multiple = ["red/cell", "cat"], 2, [8, 16, 32], 32
        self.channels, self.trained_size, self.static_hw = 3, None, None
        self.model = nn.ModuleList([nn.Conv2d(3, 2, 3)])

    def deploy(self) -> nn.Module:
        """Return itself."""
        return self

    def forward(self, images: Tensor, raw: bool = False) -> Tensor:
        self.model[0](images.float())
        return torch.tensor([[16, 16, 16, 8, 0.9, 0], [24, 24, 8, 8, 0, 0.6]]).T[None]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return `run(source, **settings)`, which detects with the stand-in at 32 pixels and returns the run's folder."""
    monkeypatch.setattr(detect_run, "load_network", lambda *_: FixedNetwork())

    def start(source: Path | str, **settings: object) -> Path:
        fixed = {"weights": "w.pt", "img": (32,), "device": "cpu", "amp": "off", "project": str(tmp_path / "runs")}
        return detect_run.detect(DetectOptions(source=str(source), **(fixed | settings)))

    return start


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """A video of 6 frames of 64 x 48 at 12 frames a second."""
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 12, (64, 48))
    for number in range(6):
        writer.write(np.full((48, 64, 3), number * 30, np.uint8))
    writer.release()
    return path


def names_below(folder: Path) -> set[str]:
    """Return the files below a folder, by relative path."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_everything_an_image_can_give(tmp_path: Path, write_image, run, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run(
        write_image(tmp_path / "街 1.jpg", (32, 32)),
        save_txt=True,
        save_conf=True,
        save_crop=True,
        save_json=True,
        visualize=[],
    )
    assert names_below(folder) == {
        "街 1.jpg",
        "labels/街 1.txt",
        "crops/red_cell/街 1.jpg",
        "crops/cat/街 1.jpg",
        "predictions.json",
        "visualize/街 1/00_Conv2d.png",
    }
    assert (folder / "labels" / "街 1.txt").read_text() == "0 0.5 0.5 0.5 0.25 0.9\n1 0.75 0.75 0.25 0.25 0.6\n"
    rows = json.loads((folder / "predictions.json").read_text())
    assert rows[0] == {
        "image_id": "街 1",
        "file_name": "街 1.jpg",
        "category_id": 0,
        "bbox": [8, 12, 16, 8],
        "score": 0.899999976,
    }  # float32
    said = capsys.readouterr().out
    assert "街 1.jpg: 1 red/cell, 1 cat, " in said
    assert "1 images, 2 objects, 1 red/cell, 1 cat" in said
    assert f"saved to {folder}" in said


def test_annotated_image_differs_and_nosave_writes_none(tmp_path: Path, write_image, run) -> None:
    path = write_image(tmp_path / "a.png", (32, 32))
    assert not np.array_equal(cv2.imread(str(run(path) / "a.png")), cv2.imread(str(path)))
    assert names_below(run(path, nosave=True)) == set()


def test_same_name_twice_overwrites_nothing(
    tmp_path: Path, write_image, run, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a/x.jpg", "b/x.jpg", "b/X.png"):
        write_image(tmp_path / "in" / name, (32, 32))
    folder = run(tmp_path / "in" / "**" / "*", save_txt=True)
    assert names_below(folder) == {"x.jpg", "X_2.png", "x_3.jpg", "labels/x.txt", "labels/X_2.txt", "labels/x_3.txt"}
    assert "2 renamed" in capsys.readouterr().out


def test_video(video: Path, run) -> None:
    folder = run(video, save_txt=True, save_json=True, vid_stride=2)
    assert names_below(folder) == {
        "clip.mp4",
        "labels/clip_1.txt",
        "labels/clip_3.txt",
        "labels/clip_5.txt",
        "predictions.json",
    }
    capture = cv2.VideoCapture(str(folder / "clip.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 3
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(6)
    assert capture.read()[1].shape == (48, 64, 3)
    assert {row["file_name"] for row in json.loads((folder / "predictions.json").read_text())} == {
        "clip_1",
        "clip_3",
        "clip_5",
    }


def test_a_broken_image_is_named_and_the_rest_done(
    tmp_path: Path, write_image, run, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(tmp_path / "in" / "good.jpg", (32, 32))
    (tmp_path / "in" / "bad.jpg").write_bytes(b"\xff\xd8\xff")
    assert names_below(run(tmp_path / "in")) == {"good.jpg"}
    said = capsys.readouterr().out
    assert "1 skipped:" in said
    assert "bad.jpg: " in said


def test_no_readable_image_at_all(tmp_path: Path, run) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(DataError) as caught:
        run(tmp_path / "bad.jpg")
    assert_says(caught.value, tmp_path / "bad.jpg", 1)


def test_interrupted_video_is_finished(video: Path, run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = []

    def describe(*_: object) -> str:
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return ""

    monkeypatch.setattr(detect_run, "describe", describe)
    with pytest.raises(KeyboardInterrupt):
        run(video, save_json=True)
    assert names_below(tmp_path / "runs") == {"exp/clip.mp4", "exp/predictions.json"}


def test_runs_are_numbered(tmp_path: Path, write_image, run) -> None:
    path = write_image(tmp_path / "a.png", (32, 32))
    assert [run(path).name, run(path).name, run(path, exist_ok=True).name] == ["exp", "exp2", "exp"]


def test_no_window_is_said_once(
    tmp_path: Path, write_image, run, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(detect_files, "can_show_windows", lambda: False)
    for name in ("a.jpg", "b.jpg"):
        write_image(tmp_path / "in" / name, (32, 32))
    folder = run(tmp_path / "in", view_img=True)
    assert names_below(folder) == {"a.jpg", "b.jpg"}
    assert capsys.readouterr().err.count("--view-img") == 1


def test_flags() -> None:
    settings = detect.parse_options(
        [
            "--weights",
            "w.pt",
            "--source",
            "x",
            "--img-size",
            "320",
            "640",
            "--half",
            "--classes",
            "1",
            "cat",
            "--visualize",
            "--explain",
            "9",
        ]
    )
    assert (settings.img, settings.amp, settings.classes, settings.visualize, settings.explain) == (
        [320, 640],
        "fp16",
        ["1", "cat"],
        [],
        ["9"],
    )
    assert detect.parse_options(["--weights", "w.pt", "--source", "x"]) == DetectOptions("w.pt", "x")


@pytest.mark.parametrize(
    "arguments", [["--weights", "w.pt"], ["--source", "x"], ["--weights", "w", "--source", "x", "--save"]]
)
def test_missing_and_ambiguous_flags_exit_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        detect.parse_options(arguments)
    assert stopped.value.code == 2


@pytest.mark.parametrize("flag", list(detect.RETIRED))
def test_retired_flags_say_what_to_use(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        detect.parse_options(["--weights", "w.pt", "--source", "x", flag])
    assert stopped.value.code == 2
    assert flag in capsys.readouterr().err


def test_no_source_is_the_users_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(lambda: detect_run.detect(DetectOptions("w.pt", "nothing/here"))) == cli.EXIT_USER
    assert_says(capsys.readouterr().err, "nothing/here")
