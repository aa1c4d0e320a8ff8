"""Parameter groups, schedules and the warm-up, in literal numbers."""

import itertools
import math

import pytest

from tests.networks import tiny_model
from utils.errors import SettingsError
from utils.hyperparameters import Hyperparameters
from utils.optim.optimizer import (
    OPTIMIZERS,
    SCHEDULES,
    Schedule,
    build_optimizer,
)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer(name: str) -> None:
    model = tiny_model()
    optimizer = build_optimizer(model, name, Hyperparameters(), weight_decay=0.001)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.001, 0.0]
    assert {group["lr"] for group in optimizer.param_groups} == {0.01}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == sum(
        parameter.requires_grad for parameter in model.parameters()
    )
    group = optimizer.param_groups[0]
    if name == "SGD":
        assert (group["momentum"], group["nesterov"]) == (0.937, True)
    else:
        assert group["betas"] == (0.937, 0.999)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_without_momentum(name: str) -> None:
    group = build_optimizer(tiny_model(), name, Hyperparameters(momentum=0.0), 0.0).param_groups[0]
    assert (group["momentum"] if name == "SGD" else group["betas"][0]) == 0


def test_optimizer_refuses() -> None:
    with pytest.raises(SettingsError, match=r"--optimizer Adam: expected one of SGD, AdamW"):
        build_optimizer(tiny_model(), "Adam", Hyperparameters(), 0.0)
    with pytest.raises(SettingsError, match=r"--freeze: leaves no parameter to train"):
        build_optimizer(tiny_model().requires_grad_(False), "SGD", Hyperparameters(), 0.0)


@pytest.mark.parametrize(
    ("kind", "factors"),
    [
        ("linear", {0: 1.0, 1: 0.901, 5: 0.505, 9: 0.109}),
        ("cosine", {0: 1.0, 5: 0.505, 9: (1 + math.cos(0.9 * math.pi)) / 2 * 0.99 + 0.01}),
        ("flat-cosine", {0: 1.0, 4: 1.0, 5: 1.0, 8: (1 + math.cos(0.6 * math.pi)) / 2 * 0.99 + 0.01}),
        ("fixed", {0: 1.0, 9: 1.0}),
    ],
)
def test_factor(kind: str, factors: dict[int, float]) -> None:
    schedule = Schedule(Hyperparameters(lrf=0.01), kind, epochs=10, batches_per_epoch=7, batch_size=16)
    for epoch, factor in factors.items():
        assert schedule.factor(epoch) == pytest.approx(factor)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_schedules_start_at_one_and_never_rise(kind: str) -> None:
    factors = [SCHEDULES[kind](share / 100, 0.01) for share in range(100)]
    assert factors[0] == 1
    assert all(later <= earlier for earlier, later in itertools.pairwise(factors))
    assert min(factors) >= 0.01


@pytest.mark.parametrize(
    ("batches", "batch_size", "accumulate"),
    [
        (1000, 16, 4),
        (1000, 64, 1),
        (1000, 100, 1),
        (1000, 1, 10),
        (250, 16, 2),
        (100, 16, 1),
        (18, 16, 1),
        (1, 2, 1),
        (1000, 48, 1),
        (1000, 40, 2),
    ],
)
def test_accumulation(batches: int, batch_size: int, accumulate: int) -> None:
    schedule = Schedule(Hyperparameters(), "linear", 10, batches, batch_size)
    assert schedule.accumulate == accumulate
    assert schedule.weight_decay == pytest.approx(0.0005 * batch_size * accumulate / 64)


@pytest.mark.parametrize(
    ("epochs", "batches", "warmup", "expected"),
    [(100, 20, 3.0, 60), (10, 20, 3.0, 20), (1, 5, 3.0, 0), (100, 20, 0.0, 0), (3, 100, 0.1, 10)],
)
def test_warmup_is_capped_at_a_tenth_of_the_run(epochs: int, batches: int, warmup: float, expected: int) -> None:
    assert Schedule(Hyperparameters(warmup_epochs=warmup), "linear", epochs, batches, 16).warmup_batches == expected


def applied(schedule: Schedule, name: str, epoch: int, batch: int) -> tuple[list[float], float, int]:
    """Return the learning rates, the momentum and the accumulation of one batch."""
    optimizer = build_optimizer(tiny_model(), name, schedule.hyp, 0.0)
    accumulate = schedule.apply(optimizer, epoch, batch)
    group = optimizer.param_groups[1]
    return (
        [each["lr"] for each in optimizer.param_groups],
        group["momentum"] if name == "SGD" else group["betas"][0],
        accumulate,
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_warmup(name: str) -> None:
    # 1000 batches an epoch, 100 epochs: 3000 batches of warm-up, 4 batches a step afterwards
    schedule = Schedule(Hyperparameters(), "linear", epochs=100, batches_per_epoch=1000, batch_size=16)
    rates, momentum, accumulate = applied(schedule, name, 0, 0)
    assert (rates, momentum, accumulate) == ([0.1, 0.0, 0.0], 0.8, 1)
    rates, momentum, accumulate = applied(schedule, name, 1, 500)
    base = 0.01 * (0.99 * 0.99 + 0.01)
    assert rates == pytest.approx([0.05 + base / 2, base / 2, base / 2])
    assert momentum == pytest.approx((0.8 + 0.937) / 2)
    assert accumulate == 2
    rates, momentum, accumulate = applied(schedule, name, 3, 0)
    assert rates == pytest.approx([0.01 * (0.97 * 0.99 + 0.01)] * 3)
    assert (momentum, accumulate) == (pytest.approx(0.937), 4)


def test_without_warmup_the_first_batch_has_the_full_rate() -> None:
    schedule = Schedule(Hyperparameters(warmup_epochs=0.0), "linear", 10, 5, 16)
    rates, momentum, _ = applied(schedule, "SGD", 0, 0)
    assert rates == pytest.approx([0.01] * 3)
    assert momentum == pytest.approx(0.937)
