"""A detection run from flags to files, with a stand-in network that always sees the same two objects."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import detect
from tests.deep_images import png, tiff
from tests.saying import assert_says
from utils import cli
from utils.errors import DataError, SettingsError
from utils.runs import detect as detect_run
from utils.runs import detect_files
from utils.runs.detect import DetectOptions
from utils.runs.run_folder import RECORD


class FixedNetwork(nn.Module):
    """Sees a 'red/cell' of 16 x 8 and a 'cat' of 8 x 8 in every image."""

    def __init__(self) -> None:
        super().__init__()
        self.names, self.nc, self.stride, self.multiple = ["red/cell", "cat"], 2, [8, 16, 32], 32
        self.channels, self.trained_size, self.static_hw, self.pixel_range = 3, None, None, None
        self.category_ids = None
        self.model = nn.ModuleList([nn.Conv2d(3, 2, 3)])

    def deploy(self) -> nn.Module:
        """Return itself."""
        return self

    def forward(self, images: Tensor, raw: bool = False) -> Tensor:
        self.model[0](images.float())
        rows = torch.tensor([[16, 16, 16, 8, 0.9, 0], [24, 24, 8, 8, 0, 0.6]])
        return rows.T[None].expand(len(images), -1, -1)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return `run(source, **options)`, which detects with the stand-in at 32 pixels and returns the run's folder."""
    monkeypatch.setattr(detect_run, "load_network", lambda *_: FixedNetwork())

    def start(source: Path | str, **options: object) -> Path:
        fixed = {"weights": "w.pt", "img": (32,), "device": "cpu", "amp": "off", "project": str(tmp_path / "runs")}
        return detect_run.detect(DetectOptions(source=str(source), **(fixed | options)))

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
    """Return the files below a folder, by relative path, without the record of a run."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.name != RECORD}


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


def test_category_ids_of_the_weights_go_into_the_results(
    tmp_path: Path, write_image, run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("7.jpg", "007.jpg", "8/7.jpg", f"{'1' * 30}.jpg"):
        write_image(tmp_path / "in" / name, (32, 32))
    run(tmp_path / "in", save_json=True, nosave=True)
    assert_says(capsys.readouterr().out, "--save-json", "class number", "red/cell", "w.pt")
    network = FixedNetwork()
    network.category_ids = [90, "x"]
    monkeypatch.setattr(detect_run, "load_network", lambda *_: network)
    folder = run(tmp_path / "in", save_json=True, nosave=True)
    assert "class number" not in capsys.readouterr().out
    rows = json.loads((folder / "predictions.json").read_text())
    assert [row["category_id"] for row in rows] == [90, "x"] * 4
    assert {row["file_name"]: row["image_id"] for row in rows} == {
        "007.jpg": 7,
        "7.jpg": "7",
        "8/7.jpg": "8/7",
        f"{'1' * 30}.jpg": "1" * 30,
    }


def test_annotated_image_differs_and_nosave_writes_none(tmp_path: Path, write_image, run) -> None:
    path = write_image(tmp_path / "a.png", (32, 32))
    assert not np.array_equal(cv2.imread(str(run(path) / "a.png")), cv2.imread(str(path)))
    assert names_below(run(path, nosave=True)) == set()


def test_batches_write_what_single_images_write(tmp_path: Path, write_image, run, video: Path) -> None:
    for number, size_hw in enumerate([(32, 32), (64, 32), (32, 32), (32, 64), (32, 32)]):
        write_image(tmp_path / "in" / f"{number}.png", size_hw)
    (tmp_path / "in" / "1b.jpg").write_bytes(b"no image")
    video.rename(tmp_path / "in" / "2b.avi")
    everything = {"save_txt": True, "save_conf": True, "save_json": True, "save_crop": True}
    folders = [run(tmp_path / "in", batch=batch, **everything) for batch in (1, 4, 100)]
    names = names_below(folders[0])
    assert len(names) == 1 + 6 + 11 + 22
    for other in folders[1:]:
        assert names_below(other) == names
        for name in names - {"2b.mp4"}:
            assert (folders[0] / name).read_bytes() == (other / name).read_bytes()


def test_thresholds_by_class(tmp_path: Path, write_image, run) -> None:
    path = write_image(tmp_path / "a.png", (32, 32))
    for words, classes in (
        (["red/cell=0.95"], "1"),
        (["cat=0.7", "0.1"], "0"),
        (["1=0.5", "0.95"], "1"),
        (["0.25"], "01"),
    ):
        options = detect.parse_options(["--weights", "w", "--source", "x", "--conf-thres", *words])
        rows = (run(path, save_txt=True, conf_thres=options.conf_thres) / "labels" / "a.txt").read_text().splitlines()
        assert "".join(row[0] for row in rows) == classes


def test_thresholds_on_the_command_line() -> None:
    given = ["--weights", "w", "--source", "x"]
    assert detect.parse_options([*given, "--conf", "0.3"]).conf_thres == 0.3
    assert detect.parse_options([*given, "--conf-thres=0.3"]).conf_thres == 0.3
    for words in (["--conf", "a b=0.6", "0.3"], ["--conf-thres=a b=0.6", "--conf", "0.3"]):
        assert detect.parse_options([*given, *words]).conf_thres == ["a b=0.6", "0.3"]
    with pytest.raises(SettingsError) as caught:
        detect.parse_options([*given, "--conf", "0.3", "0.4"])
    assert_says(caught.value, "--conf-thres 0.3 0.4")


def test_subfolders_stay_apart(tmp_path: Path, write_image, run, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("x.jpg", "a/x.jpg", "b/x.jpg", "b/X.png"):
        write_image(tmp_path / "in" / name, (32, 32))
    folder = run(tmp_path / "in", save_txt=True, save_crop=True, save_json=True, visualize=[])
    stems = {"x": ".jpg", "a/x": ".jpg", "b/X": ".png", "b/x_2": ".jpg"}
    assert names_below(folder) == {
        "predictions.json",
        *(f"{stem}{suffix}" for stem, suffix in stems.items()),
        *(f"labels/{stem}.txt" for stem in stems),
        *(f"crops/{kind}/{stem}.jpg" for stem in stems for kind in ("cat", "red_cell")),
        *(f"visualize/{stem}/00_Conv2d.png" for stem in stems),
    }
    rows = json.loads((folder / "predictions.json").read_text())
    assert {row["file_name"] for row in rows} == {"x.jpg", "a/x.jpg", "b/x.jpg", "b/X.png"}
    assert len({row["image_id"] for row in rows}) == 4
    assert_says(capsys.readouterr().out, "1 renamed", tmp_path / "in" / "b" / "x.jpg", "b/x_2")


def test_pictures_in_a_folder_named_as_one_of_the_runs(tmp_path: Path, write_image, run) -> None:
    for name in ("a.jpg", "crops/cat/a.jpg", "labels/a.jpg"):
        write_image(tmp_path / "in" / name, (32, 32))
    found = names_below(run(tmp_path / "in", save_txt=True, save_crop=True))
    assert len(found) == 3 * 4
    assert {"crops/cat/a_2.jpg", "labels/a.jpg", "labels/a.txt", "labels/labels/a.txt"} <= found


def test_a_video_in_a_subfolder(video: Path, run, tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    video.rename(tmp_path / "in" / "deep" / video.name)
    found = names_below(run(tmp_path / "in", save_txt=True, vid_stride=5))
    assert found == {"deep/clip.mp4", "labels/deep/clip_1.txt", "labels/deep/clip_6.txt"}


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


def test_files_of_an_earlier_run_do_not_stay(
    tmp_path: Path, write_image, run, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("in/a.jpg", "in/deep/b.jpg", "other/c.jpg"):
        write_image(tmp_path / name, (32, 32))
    kinds = {"save_txt": True, "save_crop": True, "save_json": True, "visualize": [], "exist_ok": True}
    folder = run(tmp_path / "in", **kinds)
    (folder / "notes.txt").write_text("mine")
    assert len(names_below(folder)) == 2 * 5 + 2
    capsys.readouterr()
    assert run(tmp_path / "other", nosave=True, save_txt=True, exist_ok=True) == folder
    assert names_below(folder) == {"labels/c.txt", "notes.txt"}
    assert not (folder / "crops").exists()
    assert_says(capsys.readouterr().out, folder, "removed 11 files")
    before = names_below(run(tmp_path / "in", **kinds))
    assert names_below(run(tmp_path / "in", **kinds)) == before


def test_links_in_the_run_folder_are_replaced_not_followed(tmp_path: Path, write_image, run) -> None:
    photo = write_image(tmp_path / "photos" / "a.png", (32, 32))
    write_image(tmp_path / "photos" / "b.png", (32, 32))
    before = photo.read_bytes()
    folder = tmp_path / "runs" / "exp"
    folder.mkdir(parents=True)
    (folder / "a.png").hardlink_to(photo)
    (folder / "b.png").symlink_to(photo)
    (folder / RECORD).symlink_to(photo)
    assert run(tmp_path / "photos", exist_ok=True) == folder
    assert photo.read_bytes() == before
    assert (folder / "a.png").read_bytes() != before
    assert not (folder / "b.png").is_symlink()


def test_addresses_of_local_files(tmp_path: Path, write_image, run) -> None:
    path = write_image(tmp_path / "in 1" / "街.jpg", (32, 32))
    assert names_below(run(path.as_uri())) == {"街.jpg"}
    assert names_below(run(path.parent.as_uri())) == {"街.jpg"}
    with pytest.raises(DataError) as caught:
        run("file://server/a.jpg")
    assert_says(caught.value, "file://server/a.jpg")


def test_a_run_without_a_readable_image_removes_nothing(tmp_path: Path, write_image, run) -> None:
    folder = run(write_image(tmp_path / "a.jpg", (32, 32)), save_txt=True, save_json=True)
    before = {name: (folder / name).read_bytes() for name in names_below(folder)}
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    with pytest.raises(DataError):
        run(tmp_path / "bad.jpg", save_json=True, exist_ok=True)
    assert {name: (folder / name).read_bytes() for name in names_below(folder)} == before


@pytest.mark.parametrize("source", ["photos", "photos/a.jpg", "photos/*.jpg", "list.txt", "clip.mp4", "photos/**/*"])
def test_nothing_is_written_over_the_source(
    tmp_path: Path, write_image, run, video: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "photos" / "a.jpg", (32, 32))
    (tmp_path / "list.txt").write_text("photos/a.jpg\n")
    video.rename(tmp_path / "photos" / "clip.mp4")
    (tmp_path / "clip.mp4").symlink_to("photos/clip.mp4")
    (tmp_path / "alias").symlink_to("photos")
    before = {path: path.read_bytes() for path in (tmp_path / "photos").iterdir()}
    monkeypatch.setattr(detect_run, "load_network", lambda *_: pytest.fail("the network was loaded"))
    for name in ("photos", "alias", "./photos/../alias"):
        with pytest.raises(SettingsError) as caught:
            run(source, project=".", name=name, exist_ok=True)
        assert_says(caught.value, Path(name), "--project")
    assert {path: path.read_bytes() for path in (tmp_path / "photos").iterdir()} == before


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
    options = detect.parse_options(
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
    assert (options.img, options.amp, options.classes, options.visualize, options.explain) == (
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


def test_deep_images_are_scaled_by_one_range_and_said_once(
    tmp_path: Path, run, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        image = tmp_path / "in" / f"{number}.png"
        image.parent.mkdir(exist_ok=True)
        image.write_bytes(png(np.full((32, 32), 1000 * number, np.uint16)))
    (tmp_path / "in" / "float.tif").write_bytes(tiff(np.zeros((32, 32), np.float32)))
    run(tmp_path / "in", nosave=True)
    said = capsys.readouterr().out
    assert_says(said, "3 of 3 images", "0 to 2000", "0 to 65535", "--pixel-range")
    assert_says(said, "1 skipped", "float.tif", "float32")
    run(tmp_path / "in", nosave=True, pixel_range=["0", "1.5e3"])
    said = capsys.readouterr().out
    assert_says(said, "4 of 4 images", "0 to 1500", "1 of them")
    with pytest.raises(DataError) as caught:
        run(tmp_path / "in", pixel_range=["12"])
    assert_says(caught.value, "--pixel-range", "12", "4095")
