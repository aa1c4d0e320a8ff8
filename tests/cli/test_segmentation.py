"""Instance segmentation from end to end: train, resume, validate, export, detect, and labels that do not do for it."""

import json
import math
from pathlib import Path

import cv2
import pytest
import yaml

from models.yolo import load
from tests.cli.command_line import SHORT, CommandLine, read_table, write_data
from tests.networks import tiny_segment_config
from tests.saying import assert_says
from utils.geometry.rle import decode_region
from utils.precision import choose_precision

MASK_COLUMNS = [
    *(
        "train/mask_loss",
        "metrics/precision(mask)",
        "metrics/recall(mask)",
        "metrics/mAP_0.5(mask)",
        "metrics/mAP_0.5:0.95(mask)",
    ),
    "val/mask_loss",
]


def outline(row: str) -> str:
    """Return a box row as the row of its four corners."""
    number, x, y, width, height = map(float, row.split())
    left, top, right, bottom = x - width / 2, y - height / 2, x + width / 2, y + height / 2
    return f"{number:.0f} {left} {top} {right} {top} {right} {bottom} {left} {bottom}"


@pytest.fixture(scope="module")
def outlined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set of tests/cli with outlines; the first object of the first image of a split is known by its box."""
    path = write_data(tmp_path_factory.mktemp("outlined"))
    for file in (path.parent / "labels").rglob("*.txt"):
        rows = file.read_text().splitlines()
        first = file.stem in ("train0", "val0")
        file.write_text("\n".join(row if first and number == 0 else outline(row) for number, row in enumerate(rows)))
    return path


def write_segmenter(folder: Path, branches: int = 1) -> Path:
    path = folder / f"segment{branches}.yaml"
    path.write_text(yaml.safe_dump(tiny_segment_config(branches)))
    return path


@pytest.mark.parametrize("branches", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_train_resume_validate_detect_and_load(cli: CommandLine, outlined: Path, tmp_path: Path, branches: int) -> None:
    network, run, plots = (
        write_segmenter(tmp_path, branches),
        tmp_path / "runs" / "exp",
        [] if branches == 1 else ["--noplots"],
    )
    best = run / "weights" / "best.pt"
    out = cli("train.py", "--cfg", network, "--data", outlined, *SHORT, *plots, "--project", tmp_path / "runs").done()
    assert_says(out, "train", "1 of 24 objects", "no outline", "1 files")
    assert_says(out, "mAP50(m)", "masks: P")
    cli("train.py", "--resume", run, "--epochs", 2, "--noplots").done()
    header, rows = read_table(run / "results.csv")
    assert header[:4] == ["epoch", "train/box_loss", "train/cls_loss", "train/dfl_loss"]
    assert header[-6:] == MASK_COLUMNS
    assert len(rows) == 2
    assert all(math.isfinite(float(value)) for row in rows for value in row)
    assert min(float(rows[0][header.index(name)]) for name in ("train/mask_loss", "val/mask_loss")) > 0

    shared = ("--weights", best, "--img", 64, "--device", "cpu", "--amp", "off")
    out = cli(
        "val.py",
        *shared,
        "--data",
        outlined,
        "--workers",
        0,
        "--save-json",
        "--save-txt",
        *plots,
        "--project",
        tmp_path / "val",
    ).done()
    folder = tmp_path / "val" / "exp"
    metrics, numbers = (json.loads((folder / name).read_text()) for name in ("metrics.json", "coco_eval.json"))
    assert (metrics["instances"], [row["instances"] for row in metrics["classes(mask)"]]) == (12, [3, 4, 4])
    assert "pycocotools, masks" in out
    assert set(metrics) >= {*MASK_COLUMNS[1:5], "val/mask_loss"}
    assert metrics["fitness"] == pytest.approx(
        sum(
            0.1 * metrics[f"metrics/mAP_0.5{kind}"] + 0.9 * metrics[f"metrics/mAP_0.5:0.95{kind}"]
            for kind in ("", "(mask)")
        )
    )
    assert max(abs(gap) for gap in numbers["masks"]["max_det_300"]["gap"].values()) < 1e-6
    assert (folder / "classes_mask.csv").is_file()
    with_mask = sum(
        decode_region(entry["segmentation"]).area > 0 for entry in json.loads((folder / "predictions.json").read_text())
    )
    assert (
        sum(len(row.split()) > 5 for file in (folder / "labels").iterdir() for row in file.read_text().splitlines())
        == with_mask
    )
    if not plots:
        for path in (
            *(run / f"{name}.png" for name in ("results", "train_batch0", "mask_PR_curve")),
            folder / "val_batch0_pred.png",
        ):
            assert cv2.imread(str(path)) is not None, path

    check_detections(cli, shared, outlined.parent / "images" / "val", tmp_path / "found")


def check_detections(cli: CommandLine, shared: tuple, images: Path, project: Path) -> None:
    """What detect.py writes is what prediction from Python gives, with and without --retina-masks."""
    for number, flags in enumerate(([], ["--retina-masks"])):
        saved = ("--conf-thres", 0.0001, "--save-txt", "--save-json", "--save-crop", "--project", project)
        cli("detect.py", *shared, "--source", images, *saved, *flags).done()
        folder = project / ("exp2" if number else "exp")
        entries = json.loads((folder / "predictions.json").read_text())
        precision = choose_precision("cpu", "off")
        predict = load(
            shared[1], image_size=64, conf_thres=0.0001, max_det=1000, precision=precision, retina_masks=bool(number)
        )
        for image in sorted(images.iterdir()):
            (result,) = predict(image)
            assert result.masks.shape == (len(result), 64, 64)
            assert len(result) > 0
            assert (folder / "labels" / f"{image.stem}.txt").read_text().splitlines() == result.txt_rows()
            own = [entry["segmentation"] for entry in entries if entry["file_name"] == image.name]
            assert [decode_region(rle).area for rle in own] == result.masks.sum((1, 2)).tolist()


def test_an_exported_segmenter_gives_the_same(cli: CommandLine, outlined: Path, tmp_path: Path) -> None:
    network, weights = write_segmenter(tmp_path), tmp_path / "exp/weights/best.pt"
    cli("train.py", "--cfg", network, "--data", outlined, *SHORT, "--noplots", "--project", tmp_path).done()
    cli("export.py", "--weights", weights, "--include", "torchscript", "--img", 64).done()
    source = outlined.parent / "images" / "val"
    found = {}
    for path in (weights, weights.with_suffix(".torchscript")):
        flags = (
            "--img",
            64,
            "--device",
            "cpu",
            "--amp",
            "off",
            "--no-rect",
            "--conf-thres",
            0.0001,
            "--save-json",
            "--nosave",
        )
        cli("detect.py", "--weights", path, "--source", source, *flags, "--project", tmp_path / path.suffix[1:]).done()
        found[path.suffix] = json.loads((tmp_path / path.suffix[1:] / "exp" / "predictions.json").read_text())
    assert len(found[".pt"]) == len(found[".torchscript"]) > 0
    differing = 0
    order = [
        sorted(entries, key=lambda entry: (entry["file_name"], *map(round, entry["bbox"])))
        for entries in found.values()
    ]
    for ours, exported in zip(*order, strict=True):
        areas = [decode_region(entry["segmentation"]).area for entry in (ours, exported)]
        differing += abs(areas[0] - areas[1])
        assert ours["bbox"] == pytest.approx(exported["bbox"], abs=0.05)
    assert differing <= len(found[".pt"])
    out = cli(
        "val.py",
        "--weights",
        weights.with_suffix(".torchscript"),
        "--data",
        outlined,
        "--workers",
        0,
        "--noplots",
        "--project",
        tmp_path,
    ).done()
    assert "masks" in out


def test_boxes_alone_do_not_train_masks(cli: CommandLine, data: Path, tmp_path: Path) -> None:
    network = write_segmenter(tmp_path)
    run = cli("train.py", "--cfg", network, "--data", data, *SHORT, "--project", tmp_path)
    run.refused("data.yaml: train", "24 objects", "8 files", "labels/train/train0.txt", "yolo11n.yaml")
    assert not (tmp_path / "exp").exists()


def test_masks_are_not_measured_on_boxes(cli: CommandLine, outlined: Path, data: Path, tmp_path: Path) -> None:
    cli(
        "train.py", "--cfg", write_segmenter(tmp_path), "--data", outlined, *SHORT, "--noplots", "--project", tmp_path
    ).done()
    out = cli(
        "val.py",
        "--weights",
        tmp_path / "exp/weights/best.pt",
        "--data",
        data,
        "--workers",
        0,
        "--noplots",
        "--project",
        tmp_path / "v",
    ).done()
    assert_says(out, "masks", "not measured", "outline")
    assert "metrics/mAP_0.5(mask)" not in json.loads((tmp_path / "v/exp/metrics.json").read_text())


def test_retina_masks_of_a_detection_network(cli: CommandLine, trained: Path, data: Path, tmp_path: Path) -> None:
    weights, source = trained / "weights" / "best.pt", data.parent / "images" / "val" / "val0.jpg"
    out = cli(
        "detect.py",
        "--weights",
        weights,
        "--source",
        source,
        "--retina-masks",
        "--nosave",
        "--device",
        "cpu",
        "--project",
        tmp_path,
    ).done()
    assert_says(out, "--retina-masks", "not apply")
