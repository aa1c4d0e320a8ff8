"""The main job from end to end, for one, two and three branches: train, resume, validate, detect, predict."""

import json
import math
from pathlib import Path

import cv2
import pytest
import yaml

from models.yolo import Model, load
from tests.cli.command_line import SHORT, CommandLine, read_table, write_network
from tests.saying import assert_says
from utils.checkpoint.importing import load_model
from utils.hyperparameters import Hyperparameters, load_hyperparameters
from utils.losses.settings import DEFAULTS
from utils.precision import choose_precision

CONTRACT = [
    *("epoch", "train/box_loss", "train/cls_loss", "train/dfl_loss"),
    *("metrics/precision", "metrics/recall", "metrics/mAP_0.5", "metrics/mAP_0.5:0.95"),
    *("val/box_loss", "val/cls_loss", "val/dfl_loss", "x/lr0", "x/lr1", "x/lr2"),
]
TRAIN_PLOTS = ("labels", "train_batch0", "train_batch1", "results")
VAL_PLOTS = ("PR_curve", "F1_curve", "P_curve", "R_curve", "confusion_matrix", "val_batch0_labels", "val_batch0_pred")


def check_images(folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        assert cv2.imread(str(folder / f"{name}.png")) is not None, name


@pytest.mark.parametrize("branches", [1, pytest.param(2, marks=pytest.mark.slow), 3])
def test_train_resume_validate_detect_and_load(cli: CommandLine, data: Path, tmp_path: Path, branches: int) -> None:
    network, plots = (
        write_network(tmp_path, branches),
        [] if branches == 1 else ["--noplots"],
    )  # drawing takes longer than training here
    run, best, last = (tmp_path / "runs" / "exp" / name for name in ("", "weights/best.pt", "weights/last.pt"))

    out = cli("train.py", "--cfg", network, "--data", data, *SHORT, *plots, "--project", tmp_path / "runs").done()
    assert "fp32" in out
    assert str(best) in out
    header, rows = read_table(run / "results.csv")
    assert header[: len(CONTRACT)] == CONTRACT
    assert len(rows) == 1
    assert all(math.isfinite(float(value)) for value in rows[0])
    arguments = yaml.safe_load((run / "args.yaml").read_text())
    assert (arguments["cfg"], arguments["data"], arguments["epochs"], arguments["img"]) == (
        str(network),
        str(data),
        1,
        64,
    )
    assert load_hyperparameters(run / "hyp.yaml") == Hyperparameters(loss=DEFAULTS)
    model = load_model(best)
    assert [name for name, _ in Model(run / "model.yaml").named_parameters()] == [
        name for name, _ in model.named_parameters()
    ]
    assert model.names == ["red", "green", "blue"]
    assert model.head.branches == branches

    cli("train.py", "--resume", last, "--epochs", 2, "--noplots").done()
    assert read_table(run / "results.csv")[1][0] == rows[0]
    assert len(read_table(run / "results.csv")[1]) == 2
    assert not (tmp_path / "runs" / "exp2").exists()

    shared = ("--weights", best, "--img", 64, "--device", "cpu", "--amp", "off")
    out = cli(
        "val.py", *shared, "--data", data, "--workers", 0, "--save-json", *plots, "--project", tmp_path / "val"
    ).done()
    metrics = json.loads((tmp_path / "val" / "exp" / "metrics.json").read_text())
    assert metrics["images"] == 4
    assert metrics["instances"] == 12
    assert [row["class"] for row in metrics["classes"]] == ["red", "green", "blue"]
    assert all(math.isfinite(metrics[name]) for name in CONTRACT[4:11])
    assert "AP_small" in out
    assert json.loads((tmp_path / "val" / "exp" / "predictions.json").read_text())
    if not plots:
        check_images(run, (*TRAIN_PLOTS, *VAL_PLOTS))
        check_images(tmp_path / "val" / "exp", VAL_PLOTS)

    images = data.parent / "images" / "val"
    cli(
        "detect.py",
        *shared,
        "--source",
        images,
        "--conf-thres",
        0.001,
        "--save-txt",
        "--save-conf",
        "--project",
        tmp_path / "found",
    ).done()
    predict = load(best, image_size=64, conf_thres=0.001, max_det=1000, precision=choose_precision("cpu", "off"))
    for image in sorted(images.iterdir()):
        assert cv2.imread(str(tmp_path / "found" / "exp" / image.name)).shape == (64, 64, 3)
        rows = (tmp_path / "found" / "exp" / "labels" / f"{image.stem}.txt").read_text().splitlines()
        (result,) = predict(image)
        assert result.txt_rows(with_conf=True) == rows
        assert all(0 <= float(value) <= 1 for row in rows for value in row.split()[1:])
        assert result.plot().shape == (64, 64, 3)


def test_image_size_is_rounded_to_the_stride_and_said(
    cli: CommandLine, data: Path, trained: Path, train, tmp_path: Path
) -> None:
    said = ("--img 70", "multiple of 32", "96 x 96")
    assert_says(train("--img", 70).done(), *said)
    assert yaml.safe_load((tmp_path / "exp" / "args.yaml").read_text())["img"] == 96
    shared = (
        "--weights",
        trained / "weights" / "best.pt",
        "--img",
        70,
        "--device",
        "cpu",
        "--project",
        tmp_path / "runs",
    )
    assert_says(cli("val.py", *shared, "--data", data, "--workers", 0, "--noplots").done(), *said)
    assert_says(cli("detect.py", *shared, "--source", data.parent / "images" / "val").done(), *said)


def test_layer_table(cli: CommandLine, network: Path) -> None:
    table, summary = (
        cli("-m", "models.yolo", network).done(),
        json.loads(cli("-m", "models.yolo", network, "--json").done()),
    )
    assert "as deployed" in table
    assert set(summary) == {"parameters", "gflops", "stride", "task", "nc", "layers", "deployed"}
    assert set(summary["layers"][0]) == {
        *("index", "name", "label", "role", "from", "module", "args", "output_shape", "parameters", "gflops")
    }
    assert sum(layer["parameters"] for layer in summary["layers"]) == summary["parameters"]
    assert set(summary["deployed"]) == {"parameters", "gflops"}


@pytest.mark.slow
@pytest.mark.parametrize("branches", [1, 2, 3])
def test_a_small_set_is_learned_and_its_objects_are_found(
    cli: CommandLine, data: Path, tmp_path: Path, branches: int
) -> None:
    images = data.parent / "images" / "train"
    same = tmp_path / "same.yaml"
    same.write_text(f"train: {images}\nval: {images}\nnames: [red, green, blue]\n")
    hyp = tmp_path / "hyp.yaml"
    hyp.write_text("{lr0: 0.005, mosaic: 0, mixup: 0, scale: 0, translate: 0, hsv_h: 0, fliplr: 0}\n")
    flags = (
        *SHORT,
        "--epochs",
        100,
        "--noval",
        "--noplots",
        "--optimizer",
        "AdamW",
        "--cos-lr",
        "--hyp",
        hyp,
        "--project",
        tmp_path,
    )
    cli("train.py", "--cfg", write_network(tmp_path, branches), "--data", same, *flags).done()
    header, rows = read_table(tmp_path / "exp" / "results.csv")
    trained = dict(zip(header, map(float, rows[-1]), strict=True))
    assert trained["metrics/mAP_0.5"] > 0.7

    best = tmp_path / "exp" / "weights" / "best.pt"
    shared = ("--weights", best, "--img", 64, "--device", "cpu", "--amp", "off")
    cli(
        "val.py",
        *shared,
        "--data",
        same,
        "--no-deploy",
        "--batch",
        8,
        "--workers",
        0,
        "--noplots",
        "--project",
        tmp_path / "val",
    ).done()
    measured = json.loads((tmp_path / "val" / "exp" / "metrics.json").read_text())
    for name in CONTRACT[4:11]:
        assert measured[name] == pytest.approx(trained[name], abs=2e-3), name

    out = cli("detect.py", *shared, "--source", images, "--save-txt", "--project", tmp_path / "found").done()
    assert_says(out, "8 images")
    labels = [
        (folder / f"train{number}.txt").read_text()
        for folder in (tmp_path / "found" / "exp" / "labels",)
        for number in range(8)
    ]
    assert 12 <= sum(text.count("\n") for text in labels) <= 36  # 24 objects


@pytest.mark.parametrize("command", [("train.py",), ("val.py",), ("detect.py",), ("-m", "models.yolo")])
def test_help_names_the_flags(cli: CommandLine, command: tuple[str, ...]) -> None:
    out = cli(*command, "--help").done()
    assert out.startswith("usage: ")
    assert ("--json" if command[0] == "-m" else "--weights") in out
    assert "--label-smoothing" not in out
