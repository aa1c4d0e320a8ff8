"""A training run in one process: set-up, freezing, epochs, checkpoints, resuming, and an early end."""

import errno
import json
import math
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml

from tests.networks import deep_config, tiny_config
from tests.saying import assert_says
from utils import cli
from utils.checkpoint.importing import load_model
from utils.errors import CheckpointError, DataError, SettingsError, TrainingStoppedError
from utils.hyperparameters import Hyperparameters
from utils.losses.settings import DEFAULTS
from utils.training import run as training
from utils.training.log import LOSS_ITEMS, results_header
from utils.training.options import TrainOptions
from utils.training.run import plotted, seed_everything, train, uninterrupted
from utils.training.state import Progress
from utils.weights.own_file import read_checkpoint

HEADER = (
    "epoch,train/box_loss,train/cls_loss,train/dfl_loss,metrics/precision,metrics/recall,metrics/mAP_0.5,metrics/mAP_0.5:0.95,"
    "val/box_loss,val/cls_loss,val/dfl_loss,x/lr0,x/lr1,x/lr2"
)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with six images of squares, a data yaml and a dual-branch network."""
    folder = tmp_path_factory.mktemp("workplace")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for number in range(3):
            pixels = rng.integers(0, 80, (64, 64, 3), np.uint8)
            x, y = rng.integers(4, 30, 2)
            pixels[y : y + 28, x : x + 28] = 230
            (folder / "images" / split).mkdir(parents=True, exist_ok=True)
            (folder / "labels" / split).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / "images" / split / f"{number}.png"), pixels)
            label = f"{number % 2} {(x + 14) / 64} {(y + 14) / 64} {28 / 64} {28 / 64}\n"
            (folder / "labels" / split / f"{number}.txt").write_text(label)
    (folder / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [dark, 亮]\n")
    config = tiny_config(branches=2)
    config["backbone"][4] = [
        -1,
        1,
        "FocalModulationBlock",
        [{"focal_window": 3, "drop": 0.2}],
    ]  # draws random numbers while training
    config["backbone"].append([-1, 1, "Conv", [8, 3, 2]])
    config["head"][0][0] = [2, 3, 5] * 2
    (folder / "net.yaml").write_text(yaml.safe_dump(config))
    return folder


def options_for(workplace: Path, project: Path, **changes: Any) -> TrainOptions:
    settings = {
        "epochs": 2,
        "batch": 2,
        "img": 64,
        "workers": 0,
        "device": "cpu",
        "amp": "off",
        "noplots": True,
        "project": str(project),
    } | changes
    return TrainOptions(
        **{"cfg": str(workplace / "net.yaml"), "data": str(workplace / "data.yaml")} | settings,
        given=frozenset(changes),
    )


@pytest.fixture(scope="module")
def finished(workplace: Path) -> Path:
    """The folder of a run of two epochs."""
    return train(options_for(workplace, workplace / "runs"))


# --- a whole run


def test_what_a_run_writes(finished: Path, workplace: Path) -> None:
    assert finished == workplace / "runs" / "exp"
    assert {path.name for path in finished.iterdir()} >= {
        "args.yaml",
        "hyp.yaml",
        "model.yaml",
        "results.csv",
        "weights",
    }
    assert {path.name for path in (finished / "weights").iterdir()} == {"last.pt", "best.pt"}
    lines = (finished / "results.csv").read_text().splitlines()
    assert lines[0].startswith(HEADER)
    assert [line.split(",")[0] for line in lines[1:]] == ["1", "2"]
    assert all(len(line.split(",")) == len(results_header(3)) for line in lines)
    assert yaml.safe_load((finished / "args.yaml").read_text())["batch"] == 2
    assert yaml.safe_load((finished / "hyp.yaml").read_text()) == Hyperparameters(loss=DEFAULTS).as_dict()
    assert yaml.safe_load((finished / "model.yaml").read_text())["head"] == [
        [[2, 3, 5, 2, 3, 5], 1, "DualDDetect", ["nc"]]
    ]


def test_what_a_checkpoint_holds(finished: Path) -> None:
    last, best = (read_checkpoint(finished / "weights" / name) for name in ("last.pt", "best.pt"))
    assert (last["epoch"], len(last["rows"]), last["network"]["names"]) == (2, 2, ["dark", "亮"])
    assert {
        "model",
        "ema",
        "optimizer",
        "updates",
        "rng",
        "hyp",
        "options",
        "sources",
        "bad_steps",
        "schedule",
        "compute",
    } <= set(last)
    assert (last["partial"], last["metrics"]["epoch"], last["sources"]["train"]["images"]) == (None, 1, 3)
    assert all(tensor.dtype is not torch.float16 for part in ("model", "ema") for tensor in last[part].values())
    assert set(best) == {"version", "network", "model", "epoch", "metrics", "hyp", "options"}
    assert best["metrics"]["epoch"] + 1 == best["epoch"]
    assert {"fitness", "precision", "recall", "map50", "map", "box_loss"} <= set(best["metrics"])
    model = load_model(finished / "weights" / "best.pt")
    assert (model.names, model.nc, model.head.branches) == (["dark", "亮"], 2, 2)


def test_a_run_names_rows_that_lead_nowhere(
    workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config()
    config["backbone"].append([-1, 1, "Conv", [8]])
    (tmp_path / "idle.yaml").write_text(yaml.safe_dump(config))
    train(options_for(workplace, tmp_path, cfg=str(tmp_path / "idle.yaml"), epochs=1, noval=True))
    said = capsys.readouterr().out
    assert_says(said, "idle.yaml", "(layer 5)", "no row reads it", "80 parameters", "edits")


def test_the_next_run_gets_its_own_folder_and_fine_tunes(
    finished: Path, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = options_for(
        workplace, workplace / "runs", cfg="", weights=str(finished / "weights" / "best.pt"), epochs=1
    )
    folder = train(options)
    said = capsys.readouterr().out
    assert folder == workplace / "runs" / "exp2"
    assert "best.pt: " in said
    assert "100.0% of the network's parameters" in said
    assert (folder / "transfer.txt").read_text().splitlines()[0] in said
    assert "fp32, contiguous" in said


def test_one_seed_gives_one_result(finished: Path, workplace: Path, tmp_path: Path) -> None:
    again = train(options_for(workplace, tmp_path))
    first, second = (read_checkpoint(folder / "weights" / "last.pt")["model"] for folder in (finished, again))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    other = train(options_for(workplace, tmp_path, seed=1, epochs=1))
    assert not torch.equal(
        first["model.0.conv.weight"], read_checkpoint(other / "weights" / "last.pt")["model"]["model.0.conv.weight"]
    )


def stop_after(monkeypatch: pytest.MonkeyPatch, epochs: int, error: BaseException) -> None:
    """Raise in the epoch after that many."""
    real = training.train_one_epoch

    def limited(run: Any, batches: Any, epoch: int, **settings: Any) -> Any:
        if epoch >= epochs:
            raise error
        return real(run, batches, epoch, **settings)

    monkeypatch.setattr(training, "train_one_epoch", limited)


def test_an_interrupted_run_is_resumed_to_the_same_result(
    finished: Path, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_after(monkeypatch, 1, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        train(options_for(workplace, tmp_path))
    last = tmp_path / "exp" / "weights" / "last.pt"
    assert_says(capsys.readouterr().out, "epoch 1", f"python train.py --resume {last}")
    monkeypatch.undo()
    folder = train(TrainOptions(resume=str(last), given=frozenset({"resume"})))
    assert folder.resolve() == (tmp_path / "exp").resolve()
    assert len((folder / "results.csv").read_text().splitlines()) == 3
    resumed, straight = (read_checkpoint(path / "weights" / "last.pt") for path in (folder, finished))
    for key in ("model", "ema"):
        assert all(torch.equal(value, straight[key][name]) for name, value in resumed[key].items()), key
    assert resumed["updates"] == straight["updates"]


def test_a_run_that_stops_keeps_its_last_epoch(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_after(monkeypatch, 1, TrainingStoppedError("epoch 2, batch 1: the loss is nan"))
    assert cli.run(lambda: train(options_for(workplace, tmp_path))) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert_says(said, "epoch 2, batch 1: the loss is nan", "epoch 1 is saved", "python train.py --resume")
    weights = read_checkpoint(tmp_path / "exp" / "weights" / "last.pt")["model"]
    assert all(value.isfinite().all() for value in weights.values())


def test_a_full_disk_keeps_the_last_epoch(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, calls = os.replace, []

    def replace(source: str, target: str | Path) -> None:
        if Path(target).name == "last.pt":
            calls.append(1)
            if len(calls) == 4:  # each epoch writes it before and after its validation
                raise OSError(errno.ENOSPC, "No space left on device", str(target))
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    assert cli.run(lambda: train(options_for(workplace, tmp_path))) == 1
    said = capsys.readouterr()
    assert_says(said.err, "disk full", "last.pt")
    assert_says(said.out, "epoch 2, not validated yet", "--resume")
    last = read_checkpoint(tmp_path / "exp" / "weights" / "last.pt")
    assert (last["epoch"], last["partial"]["batch"]) == (1, 2)
    assert sorted(path.name for path in (tmp_path / "exp" / "weights").iterdir()) == ["best.pt", "last.pt"]


def test_half(workplace: Path, tmp_path: Path, finished: Path) -> None:
    folder = train(options_for(workplace, tmp_path, half=True, save_period=2))
    last, best, second, whole = (
        read_checkpoint(path / "weights" / name)["model"]
        for path, name in ((folder, "last.pt"), (folder, "best.pt"), (folder, "epoch2.pt"), (finished, "best.pt"))
    )
    for weights in (best, second):
        assert {tensor.dtype for tensor in weights.values()} == {torch.float16, torch.int64}
    assert {tensor.dtype for tensor in last.values()} == {torch.float32, torch.int64}
    assert all(torch.equal(best[name], value.to(best[name].dtype)) for name, value in whole.items())
    assert all(tensor.dtype is torch.float32 for tensor in load_model(folder / "weights" / "best.pt").parameters())


def test_steps_within_an_epoch_are_saved_and_gone_on_from(
    finished: Path, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, saved = training.save_last, []

    def stop_at_the_second(run: Any) -> None:
        real(run)
        saved.append((run.progress.epoch, run.progress.partial.batch))
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "save_last", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        train(options_for(workplace, tmp_path, save_steps=1))
    assert saved == [(0, 1), (1, 1)], "an epoch of two batches: the second is saved with the epoch"
    last = tmp_path / "exp" / "weights" / "last.pt"
    assert_says(capsys.readouterr().out, "epoch 1 and 1 batches", f"python train.py --resume {last}")
    monkeypatch.undo()
    train(TrainOptions(resume=str(last), given=frozenset({"resume"})))
    resumed, straight = (read_checkpoint(path / "weights" / "last.pt") for path in (tmp_path / "exp", finished))
    for key in ("model", "ema"):
        assert all(torch.equal(value, straight[key][name]) for name, value in resumed[key].items()), key
    assert [row[:-2] for row in resumed["rows"]] == [row[:-2] for row in straight["rows"]]


def test_a_finished_run_is_extended(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(finished, tmp_path / "exp")
    (tmp_path / "exp" / "weights" / ".last.pt.ab12cd_3.tmp").write_bytes(b"half a checkpoint")
    (tmp_path / "exp" / ".results.jsonl.ab12cd_4.tmp").write_bytes(b"half a line")
    (tmp_path / "exp" / ".mine.tmp").write_bytes(b"not ours")
    train(TrainOptions(resume=str(tmp_path / "exp"), epochs=3, given=frozenset({"resume", "epochs"})))
    said = capsys.readouterr().out
    assert_says(said, "last.pt", "3 epochs", "learning-rate schedule", "2 unfinished files")
    assert_says(said, ".last.pt.ab12cd_3.tmp")
    assert [path.name for path in (tmp_path / "exp").glob("**/*.tmp")] == [".mine.tmp"]
    last = read_checkpoint(tmp_path / "exp" / "weights" / "last.pt")
    assert (last["epoch"], len(last["rows"]), last["schedule"]["epochs"]) == (3, 3, 3)
    assert last["rows"][:2] == read_checkpoint(finished / "weights" / "last.pt")["rows"]


def test_patience_ends_a_run_early_and_it_is_finished(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Progress, "improved_by", lambda self, found: self.best_epoch < 0)
    folder = train(options_for(workplace, tmp_path, epochs=9, patience=2))
    best = (folder / "weights" / "best.pt").read_bytes()
    assert read_checkpoint(folder / "weights" / "last.pt")["epoch"] == 3
    assert_says(capsys.readouterr().out, "stopped early", "epoch 1 in 2 epochs")
    with pytest.raises(CheckpointError) as caught:
        train(TrainOptions(resume=str(folder), given=frozenset({"resume"})))
    assert_says(caught.value, "last.pt", "stopped early", "3 epochs", "epoch 1 in 2", "--patience 0")
    train(TrainOptions(resume=str(folder), patience=3, given=frozenset({"resume", "patience"})))
    assert_says(capsys.readouterr().out, "stopped early", "epoch 1 in 3 epochs")
    assert read_checkpoint(folder / "weights" / "last.pt")["epoch"] == 4
    assert (folder / "weights" / "best.pt").read_bytes() == best


def test_best_is_written_before_last(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, written = os.replace, []

    def replace(source: str, target: str | Path) -> None:
        written.append(Path(target).name)
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(Progress, "improved_by", lambda self, found: True)
    train(options_for(workplace, tmp_path, epochs=1, save_period=1))
    assert [name for name in written if name.endswith((".pt", ".csv"))] == [
        "last.pt",  # before the validation
        "results.csv",
        "best.pt",
        "epoch1.pt",
        "last.pt",
    ]


def test_an_older_checkpoint_is_resumed(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(finished, tmp_path / "exp")
    last = tmp_path / "exp" / "weights" / "last.pt"
    content = read_checkpoint(last)
    for name in ("sources", "partial", "bad_steps", "schedule", "compute", "metrics"):
        del content[name]
    for name in ("save_steps", "half", "force"):
        del content["options"][name]
    torch.save(content | {"rng": content["rng"]["torch"]}, last)
    train(TrainOptions(resume=str(last), epochs=3, given=frozenset({"resume", "epochs"})))
    said = capsys.readouterr().out
    assert_says(said, "older version", "training images and labels", "random state")
    assert read_checkpoint(last)["epoch"] == 3


# --- validation: what dies there costs nothing, and what it cannot measure chooses no best epoch


@pytest.mark.parametrize("error", [RuntimeError("sizes of tensors must match"), KeyboardInterrupt(), MemoryError()])
def test_an_epoch_is_saved_before_its_validation(
    error: BaseException, finished: Path, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(training, "evaluate", fail)
    with pytest.raises(type(error)):
        train(options_for(workplace, tmp_path))
    last = tmp_path / "exp" / "weights" / "last.pt"
    assert_says(capsys.readouterr().out, "epoch 1, not validated yet", f"python train.py --resume {last}")
    assert not (tmp_path / "exp" / "results.csv").exists(), "an epoch has its row once it is validated"
    saved = read_checkpoint(last)
    assert (saved["epoch"], saved["partial"]["batch"]) == (0, 2)
    monkeypatch.undo()
    train(TrainOptions(resume=str(last), given=frozenset({"resume"})))
    resumed, straight = (read_checkpoint(path / "weights" / "last.pt") for path in (tmp_path / "exp", finished))
    for key in ("model", "ema"):
        assert all(torch.equal(value, straight[key][name]) for name, value in resumed[key].items()), key
    assert [row[:-2] for row in resumed["rows"]] == [row[:-2] for row in straight["rows"]]


def test_weights_that_are_not_finite_do_not_replace_the_last_epochs(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = training.train_one_epoch

    def spoil(run: Any, batches: Any, epoch: int, **settings: Any) -> Any:
        trained = real(run, batches, epoch, **settings)
        if epoch == 1:
            next(run.ema.model.buffers()).fill_(float("inf"))
        return trained

    monkeypatch.setattr(training, "train_one_epoch", spoil)
    with pytest.raises(TrainingStoppedError) as caught:
        train(options_for(workplace, tmp_path))
    assert_says(caught.value, "epoch 2", "validation loss", "epoch 1 is saved")
    assert read_checkpoint(tmp_path / "exp" / "weights" / "last.pt")["epoch"] == 1


@pytest.mark.parametrize("linked", [True, False])
@pytest.mark.parametrize("epoch", [0, 1])
def test_a_lost_validation_loss_leaves_the_last_pt_of_the_epoch_before(
    epoch: int, linked: bool, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = training.evaluate, []

    def lose(*parts: Any, **settings: Any) -> Any:
        found = real(*parts, **settings)
        calls.append(1)
        return replace(found, losses={"box": math.nan}) if len(calls) > epoch else found

    def no_links(*_: Any) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(training, "evaluate", lose)
    if not linked:
        monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(TrainingStoppedError) as caught:
        train(options_for(workplace, tmp_path))
    weights = tmp_path / "exp" / "weights"
    assert_says(caught.value, f"epoch {epoch + 1}", "no epoch was saved" if epoch == 0 else "epoch 1 is saved")
    assert {path.name for path in weights.iterdir()} == (set() if epoch == 0 else {"last.pt", "best.pt"})
    if epoch:
        last = read_checkpoint(weights / "last.pt")
        assert (last["epoch"], last["partial"]) == (1, None)


def without_labels(workplace: Path, folder: Path, kind: str) -> Path:
    """Copy the data, with a val split that has no object to measure against; return the data yaml."""
    shutil.copytree(workplace / "images", folder / "images")
    shutil.copytree(workplace / "labels", folder / "labels")
    (folder / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [dark, 亮]\n")
    if kind == "no folder":
        shutil.rmtree(folder / "labels" / "val")
    elif kind == "no files":
        for path in (folder / "labels" / "val").iterdir():
            path.unlink()
    elif kind == "empty files":
        for path in (folder / "labels" / "val").iterdir():
            path.write_text("\n")
    else:
        truth = {
            "images": [{"id": 1, "file_name": "0.png", "width": 64, "height": 64}],
            "annotations": [
                {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 20, 20], "area": 400, "iscrowd": 1}
            ],
            "categories": [{"id": 1, "name": "dark"}, {"id": 2, "name": "亮"}],
        }
        (folder / "val.json").write_text(json.dumps(truth))
        content = "train: images/train\nval: val.json\nimages: {val: images/val}\nnames: [dark, 亮]\n"
        (folder / "data.yaml").write_text(content)
    return folder / "data.yaml"


@pytest.mark.parametrize("kind", ["no folder", "no files", "empty files", "crowds only"])
def test_a_val_split_without_objects_chooses_no_best(
    kind: str, workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = without_labels(workplace, tmp_path / "data", kind)
    folder = train(options_for(workplace, tmp_path, data=str(data), epochs=3, patience=1))
    said = capsys.readouterr().out
    before, _, after = said.partition("mAP50-95")
    assert_says(before, "val", "best.pt is the last epoch", "--patience")
    assert ("0.txt" in before) == (kind in ("no folder", "no files")), "where a label was looked for"
    assert_says(after, "last epoch 3", "not measured")
    assert "best epoch" not in said
    header, *rows = (line.split(",") for line in (folder / "results.csv").read_text().splitlines())
    measured = [row[header.index(name)] for row in rows for name in ("metrics/precision", "metrics/mAP_0.5:0.95")]
    assert measured == ["nan"] * 6
    last, best = (read_checkpoint(folder / "weights" / name) for name in ("last.pt", "best.pt"))
    assert (last["epoch"], best["epoch"]) == (3, 3)
    assert all(torch.equal(value, best["model"][name]) for name, value in last["ema"].items())


def test_noval_needs_no_val_split(workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data.yaml"
    data.write_text(f"path: {workplace}\ntrain: images/train\nnames: [dark, 亮]\n")
    with pytest.raises(DataError) as caught:
        train(options_for(workplace, tmp_path, data=str(data)))
    assert_says(caught.value, data, "'val'", "--noval")
    assert not (tmp_path / "exp").exists()
    folder = train(options_for(workplace, tmp_path, data=str(data), noval=True, noplots=False))
    assert_says(capsys.readouterr().out, "val", "best.pt is the last epoch")
    last, best = (read_checkpoint(folder / "weights" / name) for name in ("last.pt", "best.pt"))
    assert (last["epoch"], best["epoch"], len(last["rows"])) == (2, 2, 2)
    assert all(torch.equal(value, best["model"][name]) for name, value in last["ema"].items())
    train(TrainOptions(resume=str(folder), epochs=3, noval=True, given=frozenset({"resume", "epochs", "noval"})))
    assert read_checkpoint(folder / "weights" / "last.pt")["epoch"] == 3
    data.write_text(f"path: {workplace}\ntrain: images/train\nval: images/val\nnames: [dark, 亮]\n")
    with pytest.raises(CheckpointError) as caught:
        train(TrainOptions(resume=str(folder), epochs=4, given=frozenset({"resume", "epochs"})))
    assert_says(caught.value, "validation images")


def test_a_missing_val_folder_is_an_error_with_noval_too(workplace: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.yaml"
    data.write_text(f"path: {workplace}\ntrain: images/train\nval: images/gone\nnames: [dark, 亮]\n")
    with pytest.raises(DataError) as caught:
        train(options_for(workplace, tmp_path, data=str(data), noval=True))
    assert_says(caught.value, "images/gone")


def test_rows_of_an_older_run_count_from_one_after_resuming(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "exp")
    last = tmp_path / "exp" / "weights" / "last.pt"
    content = read_checkpoint(last)
    torch.save(content | {"rows": [[row[0] - 1, *row[1:]] for row in content["rows"]]}, last)
    folder = train(TrainOptions(resume=str(last), epochs=3, given=frozenset({"resume", "epochs"})))
    lines = (folder / "results.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == ["1", "2", "3"]


@pytest.mark.parametrize("deepest", [32, 64])
def test_a_body_deeper_than_the_deepest_level_trains(deepest: int, workplace: Path, tmp_path: Path) -> None:
    (tmp_path / "deep.yaml").write_text(yaml.safe_dump(deep_config(deepest)))
    folder = train(options_for(workplace, tmp_path, cfg=str(tmp_path / "deep.yaml"), epochs=1, img=80, rect=True))
    assert yaml.safe_load((folder / "args.yaml").read_text())["img"] == {32: 96, 64: 128}[deepest]
    assert (folder / "weights" / "best.pt").exists()


# --- refused


def test_a_run_without_a_checkpoint_says_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp" / "args.yaml").write_text("")
    for path in (tmp_path / "exp", tmp_path / "exp" / "weights" / "last.pt"):
        with pytest.raises(CheckpointError) as caught:
            train(TrainOptions(resume=str(path), given=frozenset({"resume"})))
        assert_says(caught.value, f"{tmp_path}/exp/weights/last.pt", "args.yaml")


def test_nothing_to_resume(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for resume, facts in (
        (finished, ["last.pt", "2 epochs", "--epochs N"]),
        (finished / "weights" / "best.pt", ["best.pt", "optimizer", "--weights"]),
    ):
        with pytest.raises(CheckpointError) as caught:
            train(TrainOptions(resume=str(resume)))
        assert_says(caught.value, *facts)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        train(TrainOptions(resume=""))
    assert_says(caught.value, "--resume", "weights/last.pt")


@pytest.mark.parametrize(
    ("changes", "error", "facts"),
    [
        ({"epochs": 0}, SettingsError, ["--epochs 0", 1]),
        ({"img": 8}, SettingsError, ["--img 8", 32]),
        ({"batch": 0}, SettingsError, ["--batch 0", -1]),
        ({"batch": -1}, SettingsError, ["--batch -1", "GPU", "CPU", "--batch 16"]),
        ({"optimizer": "Adam"}, SettingsError, ["--optimizer Adam", "SGD", "AdamW"]),
        ({"schedule": "poly"}, SettingsError, ["--schedule poly", "linear", "cosine"]),
        ({"amp": "fp16"}, SettingsError, ["--amp fp16", "GPU"]),
        ({"save_steps": -1}, SettingsError, ["--save-steps -1", 0]),
        ({"save_steps": 2, "nosave": True}, SettingsError, ["--nosave", "--save-steps 2"]),
        ({"force": True}, SettingsError, ["--force", "--resume"]),
        ({"close_mosaic": -1}, SettingsError, ["--close-mosaic -1", 0]),
        ({"cfg": ""}, SettingsError, ["--cfg", "gelan-t.yaml", "--weights"]),
        ({"freeze": ["model.77.*"]}, SettingsError, ["--freeze model.77.*", "no parameter"]),
        ({"weights": "none.pt"}, CheckpointError, ["none.pt"]),
        ({"hyp": "none.yaml"}, SettingsError, ["none.yaml"]),
    ],
)
def test_refused(
    workplace: Path, tmp_path: Path, changes: dict[str, Any], error: type[Exception], facts: list[object]
) -> None:
    with pytest.raises(error) as caught:
        train(options_for(workplace, tmp_path, **changes))
    assert_says(caught.value, *facts)
    assert not list(tmp_path.glob("exp*")), "no folder is left behind"


# --- parts


def test_seed_everything() -> None:
    import random

    drawn = []
    for _ in range(2):
        seed_everything(3)
        drawn.append((random.random(), float(np.random.rand()), torch.rand(1).item()))
    assert drawn[0] == drawn[1]


def test_interrupts_wait_for_the_end_of_the_record() -> None:
    done, before = [], signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), uninterrupted():  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        done.append(1)
    assert done == [1]
    assert signal.getsignal(signal.SIGINT) is before
    with uninterrupted():
        pass


def test_an_error_in_the_record_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError), uninterrupted():
        raise ZeroDivisionError


def test_first_batches_are_drawn(tmp_path: Path) -> None:
    batch = {
        "images": torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
        "targets": torch.tensor([[0, 0, 0.5, 0.5, 0.4, 0.4]]),
    }
    assert len(list(plotted([batch] * 5, tmp_path, ["a"]))) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "train_batch0.png",
        "train_batch1.png",
        "train_batch2.png",
    ]


def test_results_header_is_unpadded() -> None:
    header = results_header(3)
    assert ",".join(header).startswith(HEADER)
    assert all(name == name.strip() for name in header)
    assert LOSS_ITEMS == ("box", "cls", "dfl")
