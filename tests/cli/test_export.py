"""export.py, and val.py and detect.py on the files it writes: the same boxes and figures as of the weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.cli.command_line import NAMES, CommandLine
from tests.saying import assert_says
from utils.checkpoint.importing import load_model
from utils.weights.own_file import read_checkpoint, save_checkpoint

SHARED = ("--device", "cpu", "--amp", "off")
FIGURES = ("metrics/precision", "metrics/recall", "metrics/mAP_0.5", "metrics/mAP_0.5:0.95")


@pytest.fixture(scope="module")
def best(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's best.pt, made to see more than one epoch has taught it; not to be changed."""
    content, path = read_checkpoint(trained / "weights" / "best.pt"), tmp_path_factory.mktemp("best") / "best.pt"
    for name, tensor in content["model"].items():
        if ".cls." in name and name.endswith(".2.bias"):
            tensor += 4
    save_checkpoint(path, {key: value for key, value in content.items() if key != "version"})
    return path


@pytest.fixture(scope="module", params=["static", "dynamic"])
def exported(
    request: pytest.FixtureRequest, cli: CommandLine, best: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with what export.py makes of a run's best.pt, for 64 x 64 or for any size; not to be changed."""
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp(request.param)
    flags = ["--dynamic"] if request.param == "dynamic" else ["--batch", 3]
    done = cli("export.py", "--weights", best, "--include", "weights", "onnx", "torchscript", *flags, "--out", folder)
    lines = done.done().splitlines()
    assert_says(lines[0], "image size 64", "trained", "--img")
    written = ["best-deploy.pt", "best-deploy.yaml", "best.onnx", "best.torchscript"]
    assert [line.partition(": ")[0] for line in lines[1:]] == [str(folder / name) for name in written]
    assert done.messages == []
    assert sorted(path.name for path in folder.iterdir()) == written
    return folder


def read_rows(folder: Path) -> dict[str, np.ndarray]:
    """Return (n, 6) rows by image: class, centre, size, confidence, pixels of a 64 x 64 image."""
    scale = np.array((1, 64, 64, 64, 64, 1))
    return {
        path.stem: np.loadtxt(path, ndmin=2).reshape(-1, 6) * scale for path in sorted((folder / "labels").iterdir())
    }


def assert_same_boxes(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    assert all(len(rows) and rows[:, 5].max() > 0.1 for rows in expected.values()), (
        "a network that sees nothing shows nothing"
    )
    for name, rows in expected.items():
        assert len(found[name]) == len(rows), name
        for row in rows:
            gaps = np.abs(found[name] - row)
            assert ((gaps[:, 0] == 0) & (gaps[:, 1:5].max(1) < 0.5) & (gaps[:, 5] < 1e-3)).any(), (name, row)


def test_val_and_detect_give_the_same(cli: CommandLine, data: Path, best: Path, exported: Path, tmp_path: Path) -> None:
    rows, figures = {}, {}
    static = exported.name.startswith("static")
    images = data.parent / "images" / "val"
    for weights in (best, exported / "best-deploy.pt", exported / "best.onnx", exported / "best.torchscript"):
        name = weights.name
        rect = ["--no-rect"] if static and weights.suffix == ".pt" else []
        places = ("--weights", weights, *SHARED, *rect, "--project", tmp_path, "--exist-ok")
        out = cli("val.py", *places, "--data", data, "--workers", 0, "--noplots", "--name", f"val {name}").done()
        figures[name] = json.loads((tmp_path / f"val {name}" / "metrics.json").read_text())
        found = cli(
            "detect.py",
            *places,
            "--source",
            images,
            "--nosave",
            "--save-txt",
            "--save-conf",
            "--conf-thres",
            0.05,
            "--name",
            name,
        ).done()
        rows[name] = read_rows(tmp_path / name)
        for said in (out, found):
            if weights.suffix != ".pt":
                assert_says(said, *(("static", "batches of 3", "64 x 64") if static else ("any size",)))
            assert ("image size 64" in said) == (weights.suffix == ".pt" or not static)
    for name in list(rows)[1:]:
        assert_same_boxes(rows[name], rows["best.pt"])
        for figure in FIGURES:
            assert figures[name][figure] == pytest.approx(figures["best.pt"][figure], abs=1e-3), (name, figure)
    assert ("val/box_loss" in figures["best.pt"], "val/box_loss" in figures["best.onnx"]) == (True, False)


def test_flags_without_meaning_are_said(cli: CommandLine, data: Path, exported: Path, tmp_path: Path) -> None:
    weights = exported / "best.torchscript"
    places = ("--weights", weights, "--device", "cpu", "--amp", "bf16", "--project", tmp_path)
    out = cli(
        "detect.py", *places, "--source", data.parent / "images" / "val", "--visualize", "--explain", "--nosave"
    ).done()
    assert_says(out, "--amp bf16", weights, "float32")
    for flag in ("--visualize", "--explain"):
        assert_says(next(line for line in out.splitlines() if flag in line), "not apply", weights)
    out = cli("val.py", *places, "--data", data, "--workers", 0, "--noplots", "--no-deploy", "--img", 96).done()
    assert_says(out, "no losses", "--no-deploy", "deployed already")
    assert ("--img 96" in out and "exactly 64 x 64" in out) == exported.name.startswith("static")


def test_oblong_static_file(cli: CommandLine, data: Path, best: Path, tmp_path: Path) -> None:
    cli("export.py", "--weights", best, "--include", "torchscript", "--img", 64, 96, "--out", tmp_path).done()
    places = ("--weights", tmp_path / "best.torchscript", *SHARED, "--project", tmp_path / "runs")
    out = cli("val.py", *places, "--data", data, "--workers", 0, "--noplots").done()
    assert_says(out, "4 images", "64 x 96")
    assert json.loads((tmp_path / "runs" / "exp" / "metrics.json").read_text())["image_size"] == [64, 96]
    cli("detect.py", *places, "--source", data.parent / "images" / "val", "--nosave").done()


def test_trained_on(cli: CommandLine, data: Path, exported: Path, tmp_path: Path) -> None:
    """What --include weights writes can be fine-tuned, by its yaml and by its checkpoint."""
    flags = (
        "--data",
        data,
        "--img",
        64,
        "--batch",
        4,
        "--epochs",
        1,
        "--workers",
        0,
        *SHARED,
        "--noplots",
        "--project",
        tmp_path,
    )
    cli("train.py", "--cfg", exported / "best-deploy.yaml", "--weights", exported / "best-deploy.pt", *flags).done()
    model = load_model(tmp_path / "exp" / "weights" / "best.pt")
    assert model.names == list(NAMES)
    assert not torch.equal(
        model.state_dict()["model.0.conv.weight"],
        load_model(exported / "best-deploy.pt").state_dict()["model.0.conv.weight"],
    )


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--include", "tflite"], ["--include", "tflite", "weights", "onnx", "torchscript"]),
        (["--include", "onnx", "--half"], ["--half", "--include weights"]),
        (["--batch", "0"], ["--batch 0", "1"]),
        (["--opset", "x"], ["--opset", "'x'"]),
        (["--keras"], ["--keras", "--include onnx"]),
        (["--nms"], ["--nms"]),
        (["--simplify"], ["--simplify"]),
        (["--cfg", "none.yaml"], ["none.yaml", "network yaml"]),
        (["--weights", "none.pt"], ["none.pt", "no such file"]),
        (["--weights", "best.onnx"], ["best.onnx", "exported"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("--") else "",
)
def test_mistakes(cli: CommandLine, best: Path, tmp_path: Path, flags: list[str], expected: list[str]) -> None:
    weights = () if "--weights" in flags else ("--weights", best)
    include = () if "--include" in flags else ("--include", "torchscript")
    cli("export.py", *weights, *include, "--out", tmp_path, *flags).refused(*expected)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", ["val.py", "detect.py"])
@pytest.mark.parametrize(
    ("name", "content"), [("a.onnx", b"<html>"), ("a.torchscript", b"PK\x03\x04"), ("none.onnx", None)]
)
def test_files_that_are_none(
    cli: CommandLine, data: Path, tmp_path: Path, script: str, name: str, content: bytes | None
) -> None:
    if name.endswith(".onnx"):
        pytest.importorskip("onnxruntime")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    what = ("--data", data) if script == "val.py" else ("--source", data.parent / "images" / "val")
    cli(script, "--weights", tmp_path / name, *what, *SHARED).refused(tmp_path / name, "expected")
