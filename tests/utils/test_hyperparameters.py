"""Hyperparameters (utils/hyperparameters.py): where they come from, what is refused, and that each of them is read."""

import inspect
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from data.config import load_data_config
from tests.networks import tiny_segment_config
from tests.saying import assert_says
from utils.errors import SettingsError
from utils.hyperparameters import NEUTRAL_ONLY, WITHOUT_EFFECT, Hyperparameters, load_hyperparameters
from utils.precision import choose_precision
from utils.training.epoch import train_one_epoch
from utils.training.options import TrainOptions
from utils.training.set_up import set_up

REPOSITORY = Path(__file__).parent.parent.parent
NAMES = {field.name for field in fields(Hyperparameters)}


def test_the_shipped_file_is_the_defaults() -> None:
    assert load_hyperparameters(REPOSITORY / "data" / "hyp.yaml") == Hyperparameters()
    assert set(yaml.safe_load((REPOSITORY / "data" / "hyp.yaml").read_text())) == NAMES


def test_published_values() -> None:
    hyp = Hyperparameters()
    assert (hyp.lr0, hyp.lrf, hyp.momentum, hyp.weight_decay, hyp.nominal_batch) == (0.01, 0.01, 0.937, 0.0005, 64)
    assert (hyp.box, hyp.cls, hyp.dfl, hyp.mask, hyp.aux) == (7.5, 0.5, 1.5, 7.5, 0.25)
    assert (hyp.tal_topk, hyp.tal_alpha, hyp.tal_beta) == (10, 0.5, 6.0)


def test_every_field_is_documented() -> None:
    text = inspect.getsource(Hyperparameters).splitlines()
    for name in NAMES:
        line = next(number for number, content in enumerate(text) if content.startswith(f"    {name}: "))
        assert text[line + 1].strip().startswith('"""'), name


def test_mapping_over_defaults() -> None:
    hyp = load_hyperparameters({"box": 5, "tal_topk": 13})
    assert (hyp.box, hyp.tal_topk, hyp.cls) == (5.0, 13, 0.5)
    assert isinstance(hyp.box, float)
    assert load_hyperparameters(None) == load_hyperparameters({}) == Hyperparameters()
    assert load_hyperparameters(hyp) is hyp


def test_exponents_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "hyp.yaml").write_text("lr0: 1e-3\nweight_decay: 5E-4\nnominal_batch: 1e2\nloss: {box: {name: ciou}}\n")
    hyp = load_hyperparameters(tmp_path / "hyp.yaml")
    assert (hyp.lr0, hyp.weight_decay, hyp.nominal_batch) == (0.001, 0.0005, 100)


def test_round_trip_through_a_file(tmp_path: Path) -> None:
    hyp = Hyperparameters(lr0=0.02, fliplr=0.0)
    (tmp_path / "hyp.yaml").write_text(yaml.safe_dump(hyp.as_dict()))
    assert load_hyperparameters(tmp_path / "hyp.yaml") == hyp
    assert load_hyperparameters(str(tmp_path / "hyp.yaml")) == hyp


@pytest.mark.parametrize(
    ("values", "facts"),
    [
        ({"lrr": 0.1}, ["'lrr'", "'lrf'"]),
        ({"warmup_epoch": 3}, ["'warmup_epoch'", "'warmup_epochs'"]),
        ({3: 3}, ["'3'"]),
        ({"box": "high"}, ["box", "'high'", "7.5"]),
        ({"lr0": "1e-3"}, ["lr0", "'1e-3'", "without quotes"]),
        ({"lr0": "0,01"}, ["lr0", "'0,01'"]),
        ({"tal_topk": 10.5}, ["tal_topk", "10.5", "whole number"]),
        ({"box": None}, ["box", None]),
        ({"box": True}, ["box", True]),
        ({"box": [1]}, ["box", "[1]"]),
        ({"lr0": "1e-3"}, ["lr0", "'1e-3'"]),
        ({"lr0": -0.1}, ["lr0", -0.1, 0]),
        ({"lr0": float("nan")}, ["lr0", "nan", "finite"]),
        ({"weight_decay": float("inf")}, ["weight_decay", "inf", "finite"]),
        ({"momentum": 1.0}, ["momentum 1.0", "warmup_momentum 0.8", 1]),
        ({"tal_topk": 0}, ["tal_topk 0", 1]),
        ({"nominal_batch": 0}, ["nominal_batch 0", 1]),
        ({"fl_gamma": 1.5}, ["fl_gamma", 1.5, 0.0]),
        ({"cls_pw": 2.0}, ["cls_pw", 2.0, 1.0]),
        ([1, 2], ["list", "mapping"]),
    ],
)
def test_refused(values: Any, facts: list[object]) -> None:
    with pytest.raises(SettingsError) as error:
        load_hyperparameters(values)
    assert_says(error.value, *facts)


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        (b"box: [1\n", ["line 2", "column 1", "yaml"]),
        (b"- 1\n", ["list", "mapping"]),
        (b"\xff\xfe", ["UTF-8"]),
        (b"boxx: 1", ["'boxx'", "'box'"]),
    ],
)
def test_broken_file(tmp_path: Path, content: bytes, facts: list[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(SettingsError) as error:
        load_hyperparameters(path)
    assert_says(error.value, "mine.yaml", *facts)


def test_missing_and_empty_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as error:
        load_hyperparameters(tmp_path / "no.yaml")
    assert_says(error.value, "no.yaml", "No such file")
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert load_hyperparameters(tmp_path / "empty.yaml") == Hyperparameters()


def test_keys_of_the_original_without_effect_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    old = dict.fromkeys(WITHOUT_EFFECT, 1.0) | NEUTRAL_ONLY
    assert load_hyperparameters(old | {"box": 7.0}).box == 7.0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == len(old)
    for line, key in zip(said, old, strict=True):
        assert_says(line, "hyperparameters", f"'{key}'")


class Recording(Hyperparameters):
    """Hyperparameters that remember which of them were read."""

    read: set[str] = set()  # noqa: RUF012

    def __getattribute__(self, name: str) -> Any:
        if name in NAMES:
            type(self).read.add(name)
        return super().__getattribute__(name)


def test_no_dead_knobs(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    for number in range(2):
        write_image(tmp_path / "images" / f"{number}.png", (48, 64))
        (tmp_path / "labels").mkdir(exist_ok=True)
        (tmp_path / "labels" / f"{number}.txt").write_text("0 0.2 0.2 0.6 0.2 0.6 0.7 0.2 0.7\n")
    (tmp_path / "data.yaml").write_text("train: images\nval: images\nnames: [a]\n")
    (tmp_path / "net.yaml").write_text(yaml.safe_dump(tiny_segment_config(branches=2)))
    files = {"cfg": str(tmp_path / "net.yaml"), "data": str(tmp_path / "data.yaml"), "project": str(tmp_path)}
    options = TrainOptions(epochs=2, batch=2, img=64, workers=0, **files)
    hyp = Recording()
    Recording.read = set()
    torch.manual_seed(0)
    run = set_up(options, hyp, load_data_config(options.data), choose_precision("cpu", "off"), None)
    for epoch in range(6):  # what mixes images does so at random
        run.train_loader.set_epoch(epoch, mosaic=epoch < 3)
        train_one_epoch(run.training, run.train_loader, min(epoch, 1), progress=False)
    assert NAMES - Recording.read == set()
