"""The user's mistakes: exit status 2 and one message without a traceback, which says where, what was there and what was expected."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from tests.cli.command_line import SHORT, CommandLine, Finished, write_data, write_network
from tests.networks import tiny_config

Train = Callable[..., Finished]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--nonsense"], ["unrecognized arguments: --nonsense", "train.py --help"]),
        (["--batc", "4"], ["unrecognized arguments: --batc 4"]),
        (["--epochs", "many"], ["--epochs", "invalid int value: 'many'"]),
        (["--cos-lr", "--fixed-lr"], ["--fixed-lr", "not allowed with argument --cos-lr"]),
        (["--label-smoothing", "0.1"], ["--label-smoothing: does not exist here", "no effect"]),
        (["--noautoanchor"], ["--noautoanchor: does not exist here", "no anchors"]),
        (["--evolve"], ["--evolve: does not exist here"]),
        (["--epochs", "0"], ["--epochs 0: expected at least 1"]),
        (["--img", "0"], ["--img 0: expected at least 32"]),
        (["--batch", "0"], ["--batch 0: expected a positive number"]),
        (["--batch", "-1"], ["--batch -1", "GPU", "on the CPU", "--batch 16"]),
        (["--workers", "-1"], ["--workers -1: expected at least 0"]),
        (["--amp", "fp16"], ["--amp fp16: needs a GPU"]),
        (["--amp", "int8"], ["--amp int8: expected one of auto, off, bf16, fp16"]),
        (["--device", "gpu"], ["--device gpu: unknown: expected cpu"]),
        (["--device", "99"], ["--device 99: not present"]),
        (["--optimizer", "LION"], ["--optimizer LION: expected one of SGD, AdamW"]),
        (["--cache", "disk"], ["--cache disk: expected one of auto, ram, off"]),
        (["--hyp", "none.yaml"], ["none.yaml: cannot be read: No such file"]),
        (["--data", "none.yaml"], ["none.yaml: no such data yaml"]),
        (["--cfg", "gelan-x"], ["gelan-x: no such network yaml", "Did you mean 'gelan-"]),
        (["--scale", "m"], ["scale 'm'", "no 'scales'"]),
        (["--weights", "none.pt"], ["none.pt: no such file"]),
        (["--resume", "none.pt"], ["none.pt: no such file"]),
        (["--freeze", "7"], ["--freeze 7: the network has 6 layers"]),
        (["--freeze", "1", "6"], ["--freeze 6: there is no layer 6: the network has layers 0 to 5"]),
        (["--freeze", "neck"], ["--freeze neck: means no layer of this network"]),
        (["--freeze", "6"], ["--freeze: leaves no parameter to train"]),
        (["--freeze", "backbon"], ["--freeze backbon: matches no layer and no parameter", "Did you mean 'backbone'?"]),
        (["--lr-factor", "backbone"], ["--lr-factor backbone: expected PHRASE=FACTOR"]),
        (["--lr-factor", "stem=0.1"], ["--lr-factor stem: matches no layer"]),
        (["--layer-decay", "2"], ["--layer-decay 2.0: expected a factor above 0"]),
        (["--weights", "none.pt", "--head-hidden", "wide"], ["--head-hidden wide: expected one of keep, rule"]),
        (["--allow-partial"], ["--allow-partial: is about --weights, and none are given"]),
        (["--weights", "none.pt", "--min-transfer", "50"], ["--min-transfer 50.0: expected a share from 0 to 1"]),
        (["--min-items", "4"], ["8 images, none with 4 or more objects"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("--") else "",
)
def test_flags_of_train(train: Train, flags: list[str], expected: list[str]) -> None:
    train(*flags).refused(*expected)


def test_train_needs_a_network(cli: CommandLine, data: Path) -> None:
    cli("train.py", "--data", data, *SHORT).refused("--cfg: none given: expected a network yaml such as gelan-t.yaml")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            [-1, 1, "Convv", [8, 3, 2]],
            "backbone[4] (layer 4): [-1, 1, Convv, [8, 3, 2]]: unknown layer 'Convv'. Did you mean 'Conv'?",
        ),
        ([-1, 1, "Conv", [8, 3, 2, 1, 1, 1, True, 9]], "too many positional arguments: the layer is Conv(out_channels"),
        ([-1, 1, "Conv", []], "missing argument 'out_channels': the layer is Conv(out_channels"),
        ([-1, 1, "Conv", [8, 3, "tow"]], "'tow'"),
        ([9, 1, "Conv", [8]], "'from' asks for layer 9, but only layers 0..3 exist yet"),
        ([[-1, 0], 1, "Concat", [1]], "layer 3 (Conv) gives 8 x 16 x 16, layer 0 (Conv) gives 8 x 128 x 128"),
    ],
)
def test_networks(cli: CommandLine, train: Train, tmp_path: Path, row: list, expected: str) -> None:
    config = tiny_config()
    config["backbone"][4] = row
    path = tmp_path / "broken.yaml"
    path.write_text(yaml.safe_dump(config))
    named = f"{path}:"  # and the row's line
    assert train("--cfg", path).refused(named, expected) == cli("-m", "models.yolo", path).refused(named, expected)


@pytest.mark.parametrize("flag", ["--cfg", "--data", "--hyp"])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"lr0: 0.1\nlrf: [0.1\ncls: 1\n", "line 3, column 4: not valid yaml"),
        (b"lr0: \xff\xfe\n", "not valid yaml: expected text in UTF-8"),
        (b"- 3\n", "list: expected "),
        (b"lr00: 3\n", "unknown "),
    ],
)
def test_yaml_files(train: Train, tmp_path: Path, flag: str, content: bytes, expected: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    train(flag, path).refused(f"error: {path}: ", expected)


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
        (remove_images, ["data.yaml: train: ", "images/train does not exist: expected a folder"]),
        (remove_validation_images, ["data.yaml: val: ", "images/val does not exist: expected a folder"]),
        (remove_labels, ["data.yaml: train: no labels at all for 8 images: looked for ", "labels/train/train0.txt"]),
        (name_an_unknown_class, ["labels/train/train3.txt:2: class 3: expected 0 to 2"]),
        (count_classes_wrongly, ["data.yaml: nc is 4 but there are 3 names"]),
        (break_every_image, ["data.yaml: train: none of the images can be used", "train0.jpg: cannot be decoded"]),
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
        "expected at least 50% of the network's parameters", "--allow-partial goes on"
    )
    assert f"{weights}: 54 of 115 tensors loaded, 12.8% of the network's parameters" in message
    assert "different shape: 5 in layer 0 (outputs 40 here, 8 in the file)" in message
    assert not (tmp_path / "exp").exists()
    assert train("--cfg", other, "--weights", weights, "--allow-partial").done()


@pytest.mark.parametrize("script", ["train.py", "val.py", "detect.py"])
def test_files_that_are_no_weights(cli: CommandLine, data: Path, trained: Path, tmp_path: Path, script: str) -> None:
    part, foreign, module = (tmp_path / name for name in ("part.pt", "foreign.pt", "module.pt"))
    part.write_bytes((trained / "weights" / "best.pt").read_bytes()[:9999])
    torch.save({"weight": torch.zeros(1)}, foreign)
    torch.save(torch.nn.Conv2d(1, 1, 1), module)
    flags = ("--source", data.parent / "images" / "val") if script == "detect.py" else ("--data", data)
    cli(script, "--weights", part, *flags).refused(
        f"{part}: truncated: the end of the zip archive is missing: expected a whole checkpoint"
    )
    cli(script, "--weights", foreign, *flags).refused(f"{foreign}: a state dict says nothing of its network")
    cli(script, "--weights", module, *flags).refused(f"{module}: ")
    cli(script, "--weights", data, *flags).refused(f"{data}: ", "expected")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--nonsense"], ["unrecognized arguments: --nonsense", "val.py --help"]),
        (["--augment"], ["--augment: does not exist here"]),
        (["--batch", "0"], ["--batch 0: expected 1 or more"]),
        (["--img", "0"], ["--img 0: expected 1 or more"]),
        (["--workers", "-1"], ["--workers -1: expected 0 or more"]),
        (["--conf-thres", "2"], ["--conf-thres 2.0", "from 0 to 1"]),
        (["--half"], ["--amp fp16: needs a GPU"]),
        (["--task", "test"], ["no 'test' split: expected one of train, val"]),
        (["--task", "speed"], ["--task", "invalid choice: 'speed'"]),
    ],
)
def test_flags_of_val(cli: CommandLine, data: Path, trained: Path, flags: list[str], expected: list[str]) -> None:
    cli("val.py", "--weights", trained / "weights" / "best.pt", "--data", data, "--device", "cpu", *flags).refused(
        *expected
    )


def test_val_with_other_classes(cli: CommandLine, trained: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", names=("red", "green", "blue", "black"))
    cli("val.py", "--weights", trained / "weights" / "best.pt", "--data", data).refused(
        "4 classes", "knows 3 (red, green, blue)", "--single-cls"
    )


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--nonsense"], ["unrecognized arguments: --nonsense", "detect.py --help"]),
        (["--update"], ["--update: does not exist here"]),
        (["--source", "none.jpg"], ["no image at none.jpg: there is no such file"]),
        (["--source", "*.jpg"], ["no image at *.jpg: the pattern fits no image"]),
        (["--source", "."], ["no image at .: the folder itself holds none"]),
        (["--source", "https://localhost/a.jpg"], ["network addresses are not read"]),
        (["--source", "999"], ["--source 999: no camera answers"]),
        (["--img", "0"], ["--img 0: expected one size"]),
        (["--img", "64", "64", "64"], ["--img 64 64 64: expected one size, or height and width"]),
        (["--conf-thres", "-1"], ["--conf-thres -1.0: expected a number from 0 to 1"]),
        (["--max-det", "0"], ["--max-det 0: expected 1 or more"]),
        (["--vid-stride", "0"], ["--vid-stride 0: expected 1 or more"]),
        (["--line-thickness", "0"], ["--line-thickness 0: expected 1 or more"]),
        (["--classes", "gren"], ["--classes gren: no such class", "Did you mean 'green'?"]),
        (["--visualize", "99"], ["--visualize 99: no such layer"]),
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
    for name in ("a.jpg", "b.png", "c.mp4"):
        (tmp_path / name).write_bytes(b"no image")
    command = (
        "detect.py",
        "--weights",
        trained / "weights" / "best.pt",
        "--source",
        tmp_path,
        "--device",
        "cpu",
        "--project",
        tmp_path / "runs",
    )
    finished = cli(*command)
    finished.refused("none of the 3 files there could be read")
    assert f"3 skipped:\n  {tmp_path / 'a.jpg'}: " in finished.out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["gelan-x"], ["gelan-x: no such network yaml", "Did you mean 'gelan-"]),
        (["gelan-t", "--nc", "0"], ["gelan-t: nc is 0: expected a positive integer"]),
        (["gelan-t", "--jsn"], ["unrecognized arguments: --jsn", "python -m models.yolo --help"]),
        ([], ["required: cfg"]),
    ],
)
def test_layer_table(cli: CommandLine, arguments: list[str], expected: list[str]) -> None:
    cli("-m", "models.yolo", *arguments).refused(*expected)


def test_a_folder_that_cannot_be_written(train: Train, data: Path) -> None:
    train("--project", data).refused(f"{data}", "Not a directory")
