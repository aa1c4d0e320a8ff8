"""The state of a run on its way into a checkpoint and back."""

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.networks import tiny_model
from tests.saying import assert_says
from utils.errors import CheckpointError
from utils.hyperparameters import Hyperparameters
from utils.losses.detection import build_loss
from utils.optim.ema import ModelEMA
from utils.optim.optimizer import Schedule, build_optimizer
from utils.precision import choose_precision
from utils.training.epoch import EpochState, Training
from utils.training.state import (
    ESSENTIAL,
    FURTHER,
    Progress,
    check_complete,
    halved,
    random_states,
    restore,
    restore_random_states,
)
from utils.weights.own_file import RUN_STATE


def make_training(batches: int = 4, seed: int = 0) -> Training:
    model, hyp = tiny_model(seed=seed), Hyperparameters()
    return Training(
        model=model,
        ema=ModelEMA(model),
        optimizer=build_optimizer(model, "SGD", hyp, 0.001),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        loss=build_loss(model, hyp),
        schedule=Schedule(hyp, "linear", epochs=9, batches_per_epoch=batches, batch_size=2),
        precision=choose_precision("cpu", "off"),
    )


def checkpoint_of(training: Training, **changes: Any) -> dict[str, Any]:
    """What save_last writes, as far as a restored run reads it."""
    return {
        "model": training.model.state_dict(),
        "ema": training.ema.model.state_dict(),
        "updates": 7,
        "optimizer": training.optimizer.state_dict(),
        "scaler": {},
        "bad_steps": 2,
        "rng": random_states(),
        "epoch": 3,
        "best_fitness": 0.25,
        "best_epoch": 1,
        "rows": [[1, 1.5]],
        "metrics": {"epoch": 2, "fitness": 0.125},
        "schedule": {"epochs": 9, "batches_per_epoch": training.schedule.batches_per_epoch},
        "partial": None,
        "hyp": {},
        "options": {},
    } | changes


def through_a_file(content: Any) -> Any:
    """Save and load as a checkpoint is."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def draw() -> list[float]:
    return [
        random.random(),
        random.gauss(0, 1),
        np.random.rand(),
        np.random.randn(),
        torch.rand(1).item(),
        torch.randn(1).item(),
    ]


def test_random_numbers_go_on_where_they_were() -> None:
    random.gauss(0, 1), np.random.randn()  # each leaves a second number for the next call
    stored = through_a_file(random_states())
    expected = draw()
    assert draw() != expected
    restore_random_states(stored, "last.pt")
    assert draw() == expected


def test_random_state_of_an_older_version(capsys: pytest.CaptureFixture[str]) -> None:
    stored = torch.get_rng_state()
    expected = torch.rand(3)
    restore_random_states(stored, "last.pt")
    assert torch.equal(torch.rand(3), expected)
    assert_says(capsys.readouterr().out, "last.pt", "torch's random state", "Python", "numpy")


def test_halved() -> None:
    assert halved(torch.tensor([1.5, -0.25])).dtype is torch.float16
    assert halved(torch.tensor([1.5, 70000.0])).dtype is torch.float32, "more than float16 can hold"
    assert halved(torch.tensor([3])).dtype is torch.int64


@pytest.mark.parametrize(
    ("epoch", "best_epoch", "validated", "patience", "expected"),
    [
        (5, 2, 4, 2, True),  # the best is the third epoch, the fourth and fifth are no better
        (5, 2, 4, 3, False),
        (5, 2, 4, 0, False),
        (5, 2, 1, 2, False),  # the last epoch was not validated
        (5, 4, 4, 1, False),
        (0, -1, None, 1, False),
    ],
)
def test_has_waited(epoch: int, best_epoch: int, validated: int | None, patience: int, expected: bool) -> None:
    validation = {} if validated is None else {"epoch": validated}
    assert Progress(epoch=epoch, best_epoch=best_epoch, validation=validation).has_waited(patience) == expected


def test_restore_puts_everything_back() -> None:
    trained, fresh = make_training(seed=1), make_training(seed=2)
    for parameter in trained.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    trained.optimizer.step()
    stored = through_a_file(checkpoint_of(trained))
    progress = restore(fresh, stored, "last.pt")
    assert (progress.epoch, progress.best_fitness, progress.best_epoch, progress.rows) == (3, 0.25, 1, [[1, 1.5]])
    assert (progress.validation, progress.partial) == ({"epoch": 2, "fitness": 0.125}, None)
    assert (fresh.ema.updates, fresh.bad_steps) == (7, 2)
    for ours, theirs in ((fresh.model, trained.model), (fresh.ema.model, trained.ema.model)):
        assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())
    ours, theirs = (training.optimizer.state_dict()["state"] for training in (fresh, trained))
    assert len(ours) > 10
    assert all(torch.equal(value["momentum_buffer"], theirs[key]["momentum_buffer"]) for key, value in ours.items())


def partial(batch: int) -> dict[str, Any]:
    return {
        "batch": batch, "sums": {"box": torch.tensor(2.5)}, "counted": 2,
        "skipped_steps": 1, "seconds": 3.0, "waited": 0.5, "mosaic": False,
    }  # fmt: skip


def test_restore_goes_on_within_an_epoch() -> None:
    training = make_training(batches=4)
    progress = restore(training, through_a_file(checkpoint_of(training, partial=partial(2))), "last.pt")
    assert progress.partial == EpochState(2, {"box": torch.tensor(2.5)}, 2, 1, 3.0, 0.5)
    assert not progress.mosaic


def test_an_epoch_of_other_batches_starts_again(capsys: pytest.CaptureFixture[str]) -> None:
    stored = checkpoint_of(make_training(batches=4), partial=partial(2))
    assert restore(make_training(batches=5), stored, "last.pt").partial is None
    assert_says(capsys.readouterr().out, "last.pt", "batch 2 of 4", "5 now", "epoch 4 starts again")


def test_other_hardware_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    training = make_training()
    restore(training, checkpoint_of(training, compute="H100, bf16 mixed precision, channels_last"), "last.pt")
    assert_says(capsys.readouterr().out, "last.pt", "H100, bf16 mixed precision, channels_last", "goes on with cpu")
    restore(training, checkpoint_of(training, compute=training.precision.describe()), "last.pt")
    assert capsys.readouterr().out == ""


def test_an_older_version_is_restored() -> None:
    training = make_training()
    stored = checkpoint_of(training, rng=torch.get_rng_state())
    for name in ("bad_steps", "metrics", "schedule", "partial"):
        del stored[name]
    for group in stored["optimizer"]["param_groups"]:
        del group["kind"], group["factor"]
    progress = restore(training, stored, "last.pt")
    assert (progress.epoch, progress.validation, progress.partial) == (3, {}, None)
    assert [(group["kind"], group["factor"]) for group in training.optimizer.param_groups] == [
        (0, 1.0),
        (1, 1.0),
        (2, 1.0),
    ]


@pytest.mark.parametrize("part", ["model", "ema", "optimizer"])
def test_a_state_of_another_network_is_refused(part: str) -> None:
    training = make_training()
    stored = checkpoint_of(training)
    stored[part] = (
        {"param_groups": [], "state": {}} if part == "optimizer" else {"model.0.conv.weight": torch.zeros(8, 3, 5, 5)}
    )
    with pytest.raises(CheckpointError) as caught:
        restore(training, stored, "last.pt")
    assert_says(caught.value, "last.pt", "does not fit its own network")
    assert "\n" not in str(caught.value)


def test_what_no_run_can_go_on_from(tmp_path: Path) -> None:
    whole = checkpoint_of(make_training())
    check_complete(whole, "last.pt")
    assert set(ESSENTIAL) <= set(whole)
    assert set(RUN_STATE) <= {*ESSENTIAL, *FURTHER}
    assert not ESSENTIAL.keys() & FURTHER.keys()
    with pytest.raises(CheckpointError) as caught:
        check_complete({"model": {}}, "x.pt")
    assert_says(caught.value, "x.pt", "no optimizer state", "last.pt", "--weights")
    with pytest.raises(CheckpointError) as caught:
        check_complete({key: value for key, value in whole.items() if key not in ("rng", "rows")}, "x.pt")
    assert_says(caught.value, "x.pt", "no rng, rows", "last.pt", "--weights")
    whole["ema"] = whole["ema"] | {"model.1.bn.running_var": torch.tensor([1.0, float("nan")])}
    with pytest.raises(CheckpointError) as caught:
        check_complete(whole, "last.pt")
    assert_says(caught.value, "last.pt", "ema", "model.1.bn.running_var", "not finite")
