"""The user's mistakes: exit status 2 and one message without a traceback: the place, the value, what was expected."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from tests.cli.command_line import SHORT, CommandLine, Finished, write_data, write_network
from tests.networks import tiny_config
from tests.saying import assert_says

Train = Callable[..., Finished]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--nonsense"], ["--nonsense", "train.py --help"]),
        (["--sav", "4"], ["--sav", "--save-period", "--save-steps"]),
        (["--epochs", "many"], ["--epochs", "'many'"]),
        (["--cos-lr", "--fixed-lr"], ["--fixed-lr", "--cos-lr"]),
        (["--label-smoothing", "0.1"], ["--label-smoothing", "no effect"]),
        (["--noautoanchor"], ["--noautoanchor", "no anchors"]),
        (["--evolve"], ["--evolve"]),
        (["--epochs", "0"], ["--epochs 0", "1"]),
        (["--img", "0"], ["--img 0", "32"]),
        (["--batch", "0"], ["--batch 0", "positive"]),
        (["--batch", "-1"], ["--batch -1", "GPU", "CPU", "--batch 16"]),
        (["--workers", "-1"], ["--workers -1", "0"]),
        (["--amp", "fp16"], ["--amp fp16", "GPU"]),
        (["--amp", "int8"], ["--amp", "int8", "auto", "off", "bf16", "fp16"]),
        (["--device", "gpu"], ["--device gpu", "cpu"]),
        (["--device", "99"], ["--device 99"]),
        (["--optimizer", "LION"], ["--optimizer", "LION", "SGD", "AdamW"]),
        (["--cache", "disk"], ["--cache", "disk", "auto", "ram", "off"]),
        (["--hyp", "none.yaml"], ["none.yaml", "No such file"]),
        (["--data", "none.yaml"], ["none.yaml", "data yaml"]),
        (["--cfg", "gelan-x"], ["gelan-x", "network yaml", "gelan-t"]),
        (["--scale", "m"], ["scale", "'m'", "'scales'"]),
        (["--weights", "none.pt"], ["none.pt", "no such file"]),
        (["--resume", "none.pt"], ["none.pt", "no such file"]),
        (["--freeze", "7"], ["--freeze 7", "6 layers"]),
        (["--freeze", "1", "6"], ["--freeze 6", "0 to 5"]),
        (["--freeze", "neck"], ["--freeze neck", "no layer"]),
        (["--freeze", "6"], ["--freeze", "no parameter"]),
        (["--freeze", "backbon"], ["--freeze backbon", "'backbone'"]),
        (["--lr-factor", "backbone"], ["--lr-factor backbone", "PHRASE=FACTOR"]),
        (["--lr-factor", "stem=0.1"], ["--lr-factor stem", "no layer"]),
        (["--layer-decay", "2"], ["--layer-decay 2.0", "0"]),
        (["--weights", "none.pt", "--head-hidden", "wide"], ["--head-hidden", "wide", "keep", "rule"]),
        (["--allow-partial"], ["--allow-partial", "--weights"]),
        (["--weights", "none.pt", "--min-transfer", "50"], ["--min-transfer 50.0", "0 to 1"]),
        (["--min-items", "4"], ["8 images", "4 or more objects"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("--") else "",
)
def test_flags_of_train(train: Train, flags: list[str], expected: list[str]) -> None:
    train(*flags).refused(*expected)


def test_train_needs_a_network(cli: CommandLine, data: Path) -> None:
    cli("train.py", "--data", data, *SHORT).refused("--cfg", "network yaml", "gelan-t.yaml")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            [-1, 1, "Convv", [8, 3, 2]],
            ["backbone[4] (layer 4)", "[-1, 1, Convv, [8, 3, 2]]", "'Convv'", "'Conv'"],
        ),
        (
            [-1, 1, "Conv", [8, 3, 2, 1, 1, 1, True, 9]],
            ["positional", "Conv(out_channels", "[8, 3, 2, 1, 1, 1, True, 9]"],
        ),
        ([-1, 1, "Conv", []], ["'out_channels'", "Conv(out_channels"]),
        ([-1, 1, "Conv", [8, 3, "tow"]], ["'tow'"]),
        ([9, 1, "Conv", [8]], ["'from'", "layer 9", "0..3"]),
        ([[-1, 0], 1, "Concat", [1]], ["layer 3 (Conv)", "8 x 16 x 16", "layer 0 (Conv)", "8 x 128 x 128"]),
    ],
)
def test_networks(cli: CommandLine, train: Train, tmp_path: Path, row: list, expected: list[str]) -> None:
    config = tiny_config()
    config["backbone"][4] = row
    path = tmp_path / "broken.yaml"
    path.write_text(yaml.safe_dump(config))
    message = train("--cfg", path).refused(path, *expected)
    assert message == cli("-m", "models.yolo", path).refused()


@pytest.mark.parametrize("flag", ["--cfg", "--data", "--hyp"])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"lr0: 0.1\nlrf: [0.1\ncls: 1\n", ["line 3, column 4"]),
        (b"lr0: \xff\xfe\n", ["UTF-8"]),
        (b"- 3\n", ["list"]),
        (b"lr00: 3\n", ["unknown", "lr00"]),
    ],
)
def test_yaml_files(train: Train, tmp_path: Path, flag: str, content: bytes, expected: list[str]) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    train(flag, path).refused(f"error: {path}", *expected)


def remove_images(folder: Path) -> None:
    shutil.rmtree(folder / "images" / "train")


def remove_validation_images(folder: Path) -> None:
    shutil.rmtree(folder / "images" / "val")


def remove_labels(folder: Path) -> None:
    shutil.rmtree(folder / "labels")


def name_an_unknown_class(folder: Path) -> None:
    (folder / "labels" / "train" / "train3.txt").write_text("0 .5 .5 .2 .2\n3 .5 .5 .1 .1\n")


def count_classes_wrongly(folder: Path) -> None:
    (folder / "data.yaml").write_text("nc: 4\n" + (folder / "data.yaml").read_text())


def break_every_image(folder: Path) -> None:
    for image in (folder / "images" / "train").iterdir():
        image.write_bytes(b"no image")


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (remove_images, ["data.yaml: train", "images/train", "not exist"]),
        (remove_validation_images, ["data.yaml: val", "images/val", "not exist"]),
        (remove_labels, ["data.yaml: train", "8 images", "labels/train/train0.txt"]),
        (name_an_unknown_class, ["labels/train/train3.txt:2", "class 3", "0 to 2"]),
        (count_classes_wrongly, ["data.yaml", "nc", "4", "3 names"]),
        (break_every_image, ["data.yaml: train", "train0.jpg", "decoded"]),
    ],
)
def test_data_sets(train: Train, tmp_path: Path, damage: Callable[[Path], None], expected: list[str]) -> None:
    data = write_data(tmp_path / "data")
    damage(data.parent)
    train("--data", data).refused(*expected)


def test_weights_of_another_network(train: Train, trained: Path, tmp_path: Path) -> None:
    other = write_network(tmp_path, width=40)
    weights = trained / "weights" / "best.pt"
    message = train("--cfg", other, "--weights", weights).refused(
        weights, "54 of 115 tensors", "12.8%", "50%", "--allow-partial"
    )
    assert_says(message, "5 in layer 0", "40 here", "8 in the file")
    assert not (tmp_path / "exp").exists()
    assert train("--cfg", other, "--weights", weights, "--allow-partial").done()


@pytest.mark.parametrize("script", ["train.py", "val.py", "detect.py"])
def test_files_that_are_no_weights(cli: CommandLine, data: Path, trained: Path, tmp_path: Path, script: str) -> None:
    part, foreign, module = (tmp_path / name for name in ("part.pt", "foreign.pt", "module.pt"))
    part.write_bytes((trained / "weights" / "best.pt").read_bytes()[:9999])
    torch.save({"weight": torch.zeros(1)}, foreign)
    torch.save(torch.nn.Conv2d(1, 1, 1), module)
    flags = ("--source", data.parent / "images" / "val") if script == "detect.py" else ("--data", data)
    cli(script, "--weights", part, *flags).refused(part, "truncated")
    cli(script, "--weights", foreign, *flags).refused(foreign, "state dict")
    cli(script, "--weights", module, *flags).refused(module)
    cli(script, "--weights", data, *flags).refused(data, "expected")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--nonsense"], ["--nonsense", "val.py --help"]),
        (["--augment"], ["--augment"]),
        (["--batch", "0"], ["--batch 0", "1"]),
        (["--img", "0"], ["--img 0", "1"]),
        (["--workers", "-1"], ["--workers -1", "0"]),
        (["--conf-thres", "2"], ["--conf-thres 2.0", "0 to 1"]),
        (["--half"], ["--amp fp16", "GPU"]),
        (["--task", "test"], ["'test'", "train, val"]),
        (["--task", "speed"], ["--task speed", "train", "val"]),
    ],
)
def test_flags_of_val(cli: CommandLine, data: Path, trained: Path, flags: list[str], expected: list[str]) -> None:
    cli("val.py", "--weights", trained / "weights" / "best.pt", "--data", data, "--device", "cpu", *flags).refused(
        *expected
    )


def test_val_with_other_classes(cli: CommandLine, trained: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", names=("red", "green", "blue", "black"))
    weights = trained / "weights" / "best.pt"
    cli("val.py", "--weights", weights, "--data", data).refused(
        f"{weights} (3)", f"{data} (4)", "'red', 'green', 'blue'", "'black'", "--single-cls"
    )


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--nonsense"], ["--nonsense", "detect.py --help"]),
        (["--update"], ["--update"]),
        (["--source", "none.jpg"], ["none.jpg", "no such file"]),
        (["--source", "*.jpg"], ["*.jpg", "pattern"]),
        (["--source", "."], ["no image", "folder"]),
        (["--source", "https://localhost/a.jpg"], ["https://localhost/a.jpg", "addresses"]),
        (["--source", "999"], ["--source 999", "camera"]),
        (["--img", "0"], ["--img 0", "one size"]),
        (["--img", "64", "64", "64"], ["--img 64 64 64", "one size", "height and width"]),
        (["--conf-thres", "-1"], ["--conf-thres -1.0", "0 to 1"]),
        (["--max-det", "0"], ["--max-det 0", "1"]),
        (["--vid-stride", "0"], ["--vid-stride 0", "1"]),
        (["--line-thickness", "0"], ["--line-thickness 0", "1"]),
        (["--classes", "gren"], ["--classes gren", "'green'"]),
        (["--visualize", "99"], ["--visualize 99", "layer"]),
    ],
)
def test_flags_of_detect(
    cli: CommandLine, data: Path, trained: Path, tmp_path: Path, flags: list[str], expected: list[str]
) -> None:
    images = data.parent / "images" / "val"
    command = (
        "detect.py",
        "--weights",
        trained / "weights" / "best.pt",
        "--source",
        images,
        "--device",
        "cpu",
        "--project",
        tmp_path / "runs",
    )
    cli(*command, *flags, cwd=tmp_path).refused(*expected)


def test_detect_names_the_files_that_cannot_be_read(cli: CommandLine, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.jpg", "b.png", "c.mp4"):
        (tmp_path / "in" / name).write_bytes(b"no image")
    command = (
        "detect.py",
        "--weights",
        trained / "weights" / "best.pt",
        "--source",
        tmp_path / "in",
        "--device",
        "cpu",
        "--project",
        tmp_path / "runs",
    )
    finished = cli(*command)
    finished.refused("3 files")
    assert_says(finished.out, "3 skipped", tmp_path / "in" / "a.jpg")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["gelan-x"], ["gelan-x", "network yaml", "gelan-t"]),
        (["gelan-t", "--nc", "0"], ["gelan-t", "nc", "0", "positive"]),
        (["gelan-t", "--jsn"], ["--jsn", "python -m models.yolo --help"]),
        ([], ["required", "cfg"]),
    ],
)
def test_layer_table(cli: CommandLine, arguments: list[str], expected: list[str]) -> None:
    cli("-m", "models.yolo", *arguments).refused(*expected)


def test_a_folder_that_cannot_be_written(train: Train, data: Path) -> None:
    train("--project", data).refused(data, "Not a directory")
