"""Hyperparameters (utils/hyperparameters.py): where they come from, what is refused, and that each of them is read."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from data.config import load_data_config
from tests.networks import tiny_segment_config
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
    text = (REPOSITORY / "utils" / "hyperparameters.py").read_text().splitlines()
    for name in NAMES:
        line = next(number for number, content in enumerate(text) if content.startswith(f"    {name}: "))
        assert text[line + 1].strip().startswith('"""'), name


def test_mapping_over_defaults() -> None:
    hyp = load_hyperparameters({"box": 5, "tal_topk": 13})
    assert (hyp.box, hyp.tal_topk, hyp.cls) == (5.0, 13, 0.5)
    assert isinstance(hyp.box, float)
    assert load_hyperparameters(None) == load_hyperparameters({}) == Hyperparameters()
    assert load_hyperparameters(hyp) is hyp


def test_round_trip_through_a_file(tmp_path: Path) -> None:
    hyp = Hyperparameters(lr0=0.02, fliplr=0.0)
    (tmp_path / "hyp.yaml").write_text(yaml.safe_dump(hyp.as_dict()))
    assert load_hyperparameters(tmp_path / "hyp.yaml") == hyp
    assert load_hyperparameters(str(tmp_path / "hyp.yaml")) == hyp


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": 0.1}, r"hyperparameters: unknown hyperparameter 'lr'\. Did you mean 'lr[0f]'\?"),
        ({"warmup_epoch": 3}, r"Did you mean 'warmup_epochs'\?"),
        ({3: 3}, r"unknown hyperparameter '3'"),
        ({"box": "high"}, r"hyperparameter box: 'high': expected a number such as 7\.5"),
        ({"box": None}, r"hyperparameter box: None: expected a number"),
        ({"box": True}, r"hyperparameter box: True: expected a number"),
        ({"box": [1]}, r"hyperparameter box: \[1\]: expected a number"),
        ({"lr0": "1e-3"}, r"hyperparameter lr0: '1e-3': expected a number"),
        ({"lr0": -0.1}, r"hyperparameter lr0: -0\.1: expected a finite number that is not negative"),
        ({"lr0": float("nan")}, r"hyperparameter lr0: nan: expected a finite number"),
        ({"weight_decay": float("inf")}, r"hyperparameter weight_decay: inf: expected a finite number"),
        ({"momentum": 1.0}, r"momentum 1\.0, warmup_momentum 0\.8: expected less than 1"),
        ({"tal_topk": 0}, r"tal_topk 0.*expected at least 1"),
        ({"nominal_batch": 0}, r"nominal_batch 0.*expected at least 1"),
        ({"fl_gamma": 1.5}, r"fl_gamma is 1\.5: only 0\.0 \(no effect\) is supported"),
        ({"cls_pw": 2.0}, r"cls_pw is 2\.0: only 1\.0 \(no effect\) is supported"),
        ([1, 2], r"holds list: expected a mapping"),
    ],
)
def test_refused(values: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load_hyperparameters(values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"box: [1\n", r"line 2, column 1: not valid yaml"),
        (b"- 1\n", r"holds list: expected a mapping"),
        (b"\xff\xfe", r"not valid yaml"),
        (b"boxx: 1", r"unknown"),
    ],
)
def test_broken_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=rf"mine\.yaml: .*{message}"):
        load_hyperparameters(path)


def test_missing_and_empty_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no\.yaml: cannot be read: No such file"):
        load_hyperparameters(tmp_path / "no.yaml")
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert load_hyperparameters(tmp_path / "empty.yaml") == Hyperparameters()


def test_keys_of_the_original_without_effect_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    old = dict.fromkeys(WITHOUT_EFFECT, 1.0) | NEUTRAL_ONLY
    assert load_hyperparameters(old | {"box": 7.0}).box == 7.0
    said = capsys.readouterr().out.splitlines()
    assert said == [f"hyperparameters: '{key}' has no effect on this loss and is left out" for key in old]


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
