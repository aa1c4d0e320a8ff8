"""Weights of every kind: the content that is read, and messages about files without weights."""

import io
import json
import os
import re
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import models.common
from models.yolo import Model
from tests import hostile_files as hostile
from tests.foreign_files import (
    Family,
    foreign_tensors,
    save_whole,
    write_ultralytics_checkpoint,
    write_yolov9_checkpoint,
)
from tests.networks import randomise, tiny_config, tiny_model
from tests.saying import assert_says
from utils.errors import CheckpointError
from utils.weights.own_file import VERSION, network_entry, save_checkpoint
from utils.weights.reading import Weights, read_weights


def named_model(branches: int = 1, seed: int = 0) -> Model:
    model = randomise(tiny_model(branches, seed=seed), seed)
    model.names = ["a", "б", "红"]
    return model


def assert_same(held: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(held) == list(expected)
    for name, tensor in expected.items():
        assert held[name].dtype == tensor.dtype, name
        assert torch.equal(held[name], tensor), name


def halved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_weights(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text.removeprefix(f"{path}: ")


# --- ours


def test_a_checkpoint_of_ours(tmp_path: Path) -> None:
    model, averaged = named_model(), named_model(seed=1)
    content = {
        "network": network_entry(model),
        "model": model.state_dict(),
        "ema": averaged.state_dict(),
        "epoch": 4,
        "args": {"img": 64},
    }
    save_checkpoint(tmp_path / "best.pt", content)
    weights = read_weights(tmp_path / "best.pt")
    assert_same(weights.tensors, averaged.state_dict())
    assert (weights.kind, weights.config, weights.nc, weights.ch) == ("checkpoint", model.config, 3, 3)
    assert (weights.names, weights.stride, weights.path) == (["a", "б", "红"], [8, 16, 32], tmp_path / "best.pt")
    assert weights.training == {"epoch": 4, "args": {"img": 64}}
    assert weights.layer_files["Conv"].startswith("models/common.py (sha256 ")
    assert weights.notes == []


def test_without_averaged_weights_the_raw_ones(tmp_path: Path) -> None:
    model = named_model()
    save_checkpoint(tmp_path / "best.pt", {"network": network_entry(model), "model": model.state_dict()})
    assert_same(read_weights(tmp_path / "best.pt").tensors, model.state_dict())


def test_a_newer_version(tmp_path: Path) -> None:
    model = tiny_model()
    content = {"network": network_entry(model), "model": model.state_dict(), "version": VERSION + 1}
    save_checkpoint(tmp_path / "best.pt", content)
    assert_says(refusal(tmp_path / "best.pt"), f"version {VERSION + 1}", f"up to {VERSION}")


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"version": "x"}, ("version x", "integer")),
        ({"network": None}, ("network", "NoneType", "mapping")),
        ({"model": None}, ("'model'", "mapping")),
        ({"model": {"w": 1}}, ("'model'", "mapping")),
    ],
)
def test_a_checkpoint_of_ours_with_parts_missing(
    tmp_path: Path, change: dict[str, Any], facts: tuple[str, ...]
) -> None:
    model = tiny_model()
    torch.save(
        {"version": VERSION, "network": network_entry(model), "model": model.state_dict()} | change,
        tmp_path / "best.pt",
    )
    assert_says(refusal(tmp_path / "best.pt"), *facts)


# --- state dicts


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model.", "_orig_mod."])
def test_a_state_dict(tmp_path: Path, prefix: str, legacy: bool) -> None:
    expected = named_model().state_dict()
    torch.save(
        {prefix + name: value for name, value in expected.items()},
        tmp_path / "w.pt",
        _use_new_zipfile_serialization=not legacy,
    )
    weights = read_weights(tmp_path / "w.pt")
    assert_same(weights.tensors, expected)
    assert (weights.kind, weights.config, weights.nc, weights.names, weights.stride) == (
        "state dict",
        None,
        None,
        None,
        None,
    )


def test_a_state_dict_of_bare_indices(tmp_path: Path) -> None:
    model = named_model()
    torch.save(model.model.state_dict(), tmp_path / "w.pt")
    assert_same(read_weights(tmp_path / "w.pt").tensors, model.state_dict())


@pytest.mark.parametrize("key", ["model", "state_dict", "ema", "model_state_dict"])
def test_a_wrapped_state_dict(tmp_path: Path, key: str) -> None:
    expected = named_model().state_dict()
    torch.save({key: expected, "epoch": 3, "lr": [0.1, 0.2]}, tmp_path / "w.pt")
    weights = read_weights(tmp_path / "w.pt")
    assert_same(weights.tensors, expected)
    assert weights.training == {"epoch": 3, "lr": [0.1, 0.2]}


def test_averaged_weights_come_first(tmp_path: Path) -> None:
    raw, averaged = named_model().state_dict(), named_model(seed=1).state_dict()
    torch.save({"model": raw, "ema": {"module": averaged, "updates": 5}}, tmp_path / "w.pt")
    weights = read_weights(tmp_path / "w.pt")
    assert_same(weights.tensors, averaged)
    (note,) = weights.notes
    assert_says(note, "averaged (EMA", "raw")


def test_entries_that_are_not_tensors_are_noted(tmp_path: Path) -> None:
    torch.save({"model.0.w": torch.ones(2), "model.0.n": 3}, tmp_path / "w.pt")
    weights = read_weights(tmp_path / "w.pt")
    assert list(weights.tensors) == ["model.0.w"]
    (note,) = weights.notes
    assert_says(note, "1 entries", "model.0.n")


def test_two_names_that_become_one(tmp_path: Path) -> None:
    torch.save({"model.0.w": torch.ones(2), "module.model.0.w": torch.ones(2)}, tmp_path / "w.pt")
    assert_says(refusal(tmp_path / "w.pt"), "model.0.w", "twice", "module.model.0.w")


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        ({}, ("empty mapping",)),
        ({"epoch": 3, "lr": 0.1}, ("mapping", "epoch, lr")),
        ([torch.ones(2)], ("single list",)),
        (torch.ones(2), ("single tensor",)),
    ],
)
def test_files_of_torch_without_weights(tmp_path: Path, content: Any, facts: tuple[str, ...]) -> None:
    torch.save(content, tmp_path / "w.pt")
    assert_says(refusal(tmp_path / "w.pt"), *facts, "state dict")


# --- safetensors


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_safetensors(tmp_path: Path, name: str) -> None:
    model = named_model()
    entries = {"names": ["a", "б", "红"], "stride": [8, 16, 32], "nc": 3, "ch": 3, "config": model.config}
    metadata = {key: json.dumps(value) for key, value in entries.items()} | {"made": "by hand"}
    save_file({f"model.{name}": value for name, value in halved(model.state_dict()).items()}, tmp_path / name, metadata)
    weights = read_weights(tmp_path / name)
    assert_same(dict(sorted(weights.tensors.items())), dict(sorted(halved(model.state_dict()).items())))
    assert {key: getattr(weights, key) for key in entries} == entries
    assert (weights.kind, weights.training, weights.notes) == ("safetensors", {"made": "by hand"}, [])


def test_safetensors_without_metadata_or_with_another(tmp_path: Path) -> None:
    save_file({"model.0.w": torch.ones(2)}, tmp_path / "plain.safetensors")
    assert read_weights(tmp_path / "plain.safetensors").names is None
    save_file(
        {"model.0.w": torch.ones(2)},
        tmp_path / "w.safetensors",
        {"names": "[" * 100_000, "stride": "[8, true]", "nc": "3"},
    )
    weights = read_weights(tmp_path / "w.safetensors")
    assert (weights.names, weights.stride, weights.nc) == (None, None, 3)
    assert len(weights.notes) == 2
    for note, key in zip(weights.notes, ("names", "stride"), strict=True):
        assert_says(note, "metadata", key)


def test_broken_safetensors(tmp_path: Path) -> None:
    save_file({"model.0.w": torch.ones(1000)}, tmp_path / "w.safetensors")
    content = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(content[:-10])
    assert "damaged or truncated safetensors file" in refusal(tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", 90 * 2**20) + b'{"a":')
    assert "damaged or truncated safetensors file" in refusal(tmp_path / "w.safetensors")
    save_file({}, tmp_path / "none.safetensors")
    assert "without tensors" in refusal(tmp_path / "none.safetensors")


# --- the original YOLOv9


@pytest.mark.parametrize("branches", [1, 2, 3])
@pytest.mark.parametrize("half", [False, True])
def test_yolov9(tmp_path: Path, branches: int, half: bool) -> None:
    model = named_model(branches)
    write_yolov9_checkpoint(tmp_path / "best.pt", model, half=half)
    weights = read_weights(tmp_path / "best.pt")
    expected = foreign_tensors(model)
    assert_same(weights.tensors, halved(expected) if half else expected)
    assert (weights.kind, weights.nc, weights.ch, weights.names) == ("YOLOv9 checkpoint", 3, 3, ["a", "б", "红"])
    assert weights.stride == [8, 16, 32]
    assert weights.config == tiny_config(branches) | {"ch": 3}
    assert weights.training["opt"] == {
        "epochs": 300,
        "batch_size": 16,
        "weights": "",
        "save_dir": "runs/train/exp",
        "close_mosaic": 15,
    }
    assert weights.training["hyp"] == {"lr0": 0.01, "momentum": 0.937, "anchor_t": 5.0}
    assert (weights.training["epoch"], weights.training["best_fitness"], weights.training["date"][:4]) == (
        -1,
        0.5,
        "2024",
    )
    assert "without running anything" in weights.notes[0]


@pytest.mark.parametrize("root", ["last", "best", "archive", "yolov9-c"])
def test_yolov9_unstripped(tmp_path: Path, root: str) -> None:
    """Averaged and raw weights, optimizer, names as a mapping; a root folder of any name."""
    model, averaged = named_model(2), named_model(2, seed=1)
    write_yolov9_checkpoint(
        tmp_path / "w.pt", model, ema=averaged, half=True, root=root, optimizer=True, names_as_dict=True
    )
    assert f"{root}/data.pkl" in zipfile.ZipFile(tmp_path / "w.pt").namelist()
    weights = read_weights(tmp_path / "w.pt")
    assert_same(weights.tensors, halved(foreign_tensors(averaged)))
    assert weights.names == ["a", "б", "红"]
    assert (weights.training["epoch"], weights.training["best_fitness"], weights.training["updates"]) == (
        7,
        [0.25],
        100,
    )
    assert "optimizer" not in weights.training
    assert any("averaged (EMA)" in note for note in weights.notes)


def test_ultralytics(tmp_path: Path) -> None:
    model = named_model()
    write_ultralytics_checkpoint(tmp_path / "best.pt", model)
    weights = read_weights(tmp_path / "best.pt")
    assert_same(weights.tensors, halved(foreign_tensors(model)))
    assert (weights.kind, weights.nc, weights.names, weights.stride) == (
        "Ultralytics checkpoint",
        3,
        ["a", "б", "红"],
        [8, 16, 32],
    )
    assert weights.training["train_args"]["imgsz"] == 640
    assert weights.training["args"] == weights.training["train_args"] | {"box": 7.5}
    assert weights.training["train_metrics"] == {"metrics/mAP50(B)": 0.5, "fitness": 0.25}
    assert weights.training["version"] == "8.1.0"


def test_ultralytics_while_training(tmp_path: Path) -> None:
    """There `model` is None and the weights are under `ema`."""
    model = named_model()
    write_ultralytics_checkpoint(tmp_path / "last.pt", tiny_model(), ema=model, root="last")
    assert_same(read_weights(tmp_path / "last.pt").tensors, halved(foreign_tensors(model)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "write"),
    [
        *(
            (name, write_yolov9_checkpoint)
            for name in (
                "gelan-t",
                "yolov9-t",
                "gelan-s",
                "yolov9-s",
                "yolov9-m",
                "yolov9-c",
                "yolov9-e",
                "gelan-c-seg",
            )
        ),
        *(
            (name, write_ultralytics_checkpoint)
            for name in ("yolov8n", "yolo11n", "yolov8n-seg", "yolo11n-seg", "yolo11m")
        ),
    ],
)
def test_every_shipped_network(tmp_path: Path, name: str, write: Any) -> None:
    model = Model(name)
    write(tmp_path / "w.pt", model, half=True)
    weights = read_weights(tmp_path / "w.pt")
    assert_same(weights.tensors, halved(foreign_tensors(model)))
    with torch.device("meta"):
        again = Model(weights.config, nc=weights.nc, ch=weights.ch)
    assert {key: value.shape for key, value in again.state_dict().items()} == {
        key: value.shape for key, value in model.state_dict().items()
    }


def test_our_own_layers_stay_what_they_are(tmp_path: Path) -> None:
    """Neither writing nor reading stand-ins under `models.common` and `models.yolo` touches ours."""
    ours = sys.modules["models.common"], models.common.Conv, sys.modules["models.yolo"]
    write_yolov9_checkpoint(tmp_path / "w.pt", tiny_model())
    read_weights(tmp_path / "w.pt")
    assert (sys.modules["models.common"], models.common.Conv, sys.modules["models.yolo"]) == ours
    assert not [name for name in sys.modules if name.startswith("ultralytics")]


def test_buffers_that_are_not_saved_are_left_out(tmp_path: Path) -> None:
    write_yolov9_checkpoint(tmp_path / "w.pt", tiny_model())
    assert b"cached_points" in (tmp_path / "w.pt").read_bytes()
    assert not [name for name in read_weights(tmp_path / "w.pt").tensors if "cached_points" in name]


def test_folded_files_are_noted(tmp_path: Path) -> None:
    model = named_model()
    folded = model.deploy()
    write_yolov9_checkpoint(tmp_path / "w.pt", model, tensors=foreign_tensors(folded))
    weights = read_weights(tmp_path / "w.pt")
    assert_same(weights.tensors, foreign_tensors(folded))
    assert_says(next(note for note in weights.notes if "folded" in note), "17")
    assert weights.config["folded"] is True
    write_yolov9_checkpoint(tmp_path / "w.pt", model)
    assert not any("folded" in note for note in read_weights(tmp_path / "w.pt").notes)


def test_attributes_that_do_not_fit_are_noted(tmp_path: Path) -> None:
    write_yolov9_checkpoint(
        tmp_path / "w.pt", tiny_model(), stride=torch.tensor([8.5, 16.0]), names_as_dict=True, hyp={"x": np.zeros(5000)}
    )
    weights = read_weights(tmp_path / "w.pt")
    assert weights.stride is None
    assert weights.training["hyp"] == {"x": None}
    assert sum("strides" in note for note in weights.notes) == 1
    assert_says(weights.notes, "1 settings", "StoredArray (1")
    write_yolov9_checkpoint(tmp_path / "w.pt", tiny_model(), names=["a"], yaml=None)
    weights = read_weights(tmp_path / "w.pt")
    assert (weights.names, weights.config) == (None, None)
    assert_says(weights.notes, "class names (1", "3 classes", "--cfg")


def test_modules_that_are_not_detection_networks(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Conv2d(3, 4, 1)), tmp_path / "w.pt")
    assert_says(refusal(tmp_path / "w.pt"), "torch.nn.modules.container.Sequential", "DetectionModel")
    family = Family("yolov9")
    root = family.make("DetectionModel")
    root.model = nn.Sequential(nn.Identity())
    save_whole(tmp_path / "w.pt", {"model": root}, family, "w")
    assert_says(refusal(tmp_path / "w.pt"), "no layers", "model.0.conv.weight")


def test_a_module_of_other_software(tmp_path: Path) -> None:
    """An example are our own layers, pickled whole: models.registry is not in the table."""
    torch.save({"model": tiny_model()}, tmp_path / "w.pt")
    assert "names models." in refusal(tmp_path / "w.pt")


# --- values


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(tmp_path: Path, value: float, half: bool) -> None:
    model = named_model()
    with torch.no_grad():
        model.model[1].conv.weight[0, 0] = value
        model.model[2].bn.bias[3] = value
    write_yolov9_checkpoint(tmp_path / "w.pt", model, half=half)
    assert_says(refusal(tmp_path / "w.pt"), "model.1.conv.weight", "1 more", "9 of 576", "NaN or infinite")


# --- files without weights


def png() -> bytes:
    return b"\x89PNG\r\n\x1a\n" + bytes(100)


OTHER_FILES = {
    "web page": (
        b"<!DOCTYPE html>\n<html><body>Sign in</body></html>",
        "web page",
    ),
    "web page after a comment": (b"\xef\xbb\xbf\n <!-- x --> <HTML lang=en>", "web page"),
    "PNG": (png(), "is not a weights file"),
    "JPEG": (b"\xff\xd8\xff\xe0" + bytes(50), "is not a weights file"),
    "WebP": (b"RIFF\0\0\0\0WEBPVP8 ", "is not a weights file"),
    "text": ("epoch 1, größer\n".encode() * 100, "is not a weights file"),
    "yaml": (b"nc: 80\nbackbone:\n- [-1, 1, Conv, [64, 3, 2]]\n", "is not a weights file"),
    "json": (b'{"nc": 80}', "is not a weights file"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "is a Git LFS pointer"),
    "gzip": (b"\x1f\x8b\x08" + bytes(20), "is not a weights file"),
    "empty": (b"", "is empty: expected weights"),
    "numbers": (bytes(range(128, 256)), "is not a weights file"),
    "one byte": (b"\x00", "is not a weights file"),
    "start of a zip": (b"PK\x03\x04", "truncated: the end of the zip archive is missing"),
    "pickle": (b"\x80\x04}.", "is not a weights file"),
}


@pytest.mark.parametrize("name", OTHER_FILES)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_other_files(tmp_path: Path, name: str, suffix: str) -> None:
    content, message = OTHER_FILES[name]
    (tmp_path / f"w{suffix}").write_bytes(content)
    assert message in refusal(tmp_path / f"w{suffix}")


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    assert_says(refusal(tmp_path / "none.pt"), "no such file", "runs/train/exp/weights/best.pt")
    assert_says(refusal(tmp_path), "folder", "weights/best.pt")
    os.mkfifo(tmp_path / "pipe")
    assert_says(refusal(tmp_path / "pipe"), "pipe")


def test_an_ordinary_zip_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as file:
        file.writestr("best.pt", b"x" * 100)
    assert_says(refusal(tmp_path / "w.pt"), "zip archive", "0 checkpoints")
    with zipfile.ZipFile(tmp_path / "w.pt", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("best.pt", b"x" * 100)
    assert_says(refusal(tmp_path / "w.pt"), "zip archive", "compressed", "best.pt")


def test_exported_networks(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pt", "w", zipfile.ZIP_DEFLATED) as file:
        for name in ("data.pkl", "code/__torch__/torch/nn/modules/linear.py", "constants.pkl"):
            file.writestr(f"w/{name}", b"x" * 100)
    assert_says(refusal(tmp_path / "w.pt"), "TorchScript", "detect.py", "val.py")
    for name, kind in (("w.onnx", "ONNX"), ("w.torchscript", "TorchScript")):
        (tmp_path / name).write_bytes(b"\x08\x07")
        assert_says(refusal(tmp_path / name), kind, "detect.py", "val.py")


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("kind", ["zip", "legacy", "foreign"])
def test_truncated_files(tmp_path: Path, kind: str, share: float) -> None:
    path, model = tmp_path / "w.pt", tiny_model()
    if kind == "foreign":
        write_yolov9_checkpoint(path, model)
    else:
        torch.save(model.state_dict(), path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert re.search("truncated|damaged", refusal(path))


@pytest.mark.parametrize("seed", range(3))
def test_flipped_bytes_are_read_or_refused(tmp_path: Path, seed: int) -> None:
    """A flipped byte gives weights or one message, never another error."""
    stream = io.BytesIO()
    torch.save({"model": tiny_model().state_dict(), "names": ["a"], "x": np.float64(1)}, stream)
    good, random = stream.getvalue(), np.random.default_rng(seed)
    refused = 0
    for _ in range(60):
        content = bytearray(good)
        for place in random.integers(0, 30_000, 3):
            content[place] = random.integers(0, 256)
        (tmp_path / "w.pt").write_bytes(content)
        try:
            assert isinstance(read_weights(tmp_path / "w.pt"), Weights)
        except CheckpointError:
            refused += 1
    assert refused > 50


def test_flipped_bytes_of_the_pickle(tmp_path: Path) -> None:
    """The same where the checksum is right."""
    model, random = tiny_model(), np.random.default_rng(0)
    write_yolov9_checkpoint(tmp_path / "w.pt", model)
    with zipfile.ZipFile(tmp_path / "w.pt") as file:
        good = file.read("last/data.pkl")
    for _ in range(300):
        content = bytearray(good)
        for place in random.integers(0, len(good), 2):
            content[place] = random.integers(0, 256)
        (tmp_path / "w.pt").write_bytes(hostile.archive(bytes(content)))
        with pytest.raises(CheckpointError):
            read_weights(tmp_path / "w.pt")
