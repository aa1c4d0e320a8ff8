"""Parameter groups, schedules and the warm-up, in literal numbers."""

import itertools
import math

import pytest
import torch
from torch import nn

from tests.networks import tiny_model
from utils.errors import SettingsError
from utils.hyperparameters import Hyperparameters
from utils.optim.optimizer import (
    BIAS,
    DECAYED,
    OPTIMIZERS,
    OTHER,
    SCHEDULES,
    Schedule,
    build_optimizer,
    parameter_groups,
)


class Attention(nn.Module):
    """Parameters that a search by the names weight and bias would miss."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(8))
        self.temperature = nn.Parameter(torch.tensor(1.0))
        self.pos = nn.Parameter(torch.zeros(1, 4, 8))
        self.sweight = nn.Parameter(torch.zeros(8))
        self.mha = nn.MultiheadAttention(8, 2)
        self.norm = nn.LayerNorm([4, 8])
        self.plain = nn.LayerNorm(8, elementwise_affine=False)
        self.batch_norm = nn.BatchNorm2d(8)
        self.group_norm = nn.GroupNorm(2, 8)
        self.conv = nn.Conv2d(8, 8, 1)
        self.twin = self.conv  # one module under two names
        self.linear = nn.Linear(8, 8)
        self.linear.weight = self.mha.out_proj.weight  # one parameter in two modules
        self.frozen = nn.Parameter(torch.zeros(3), requires_grad=False)


def test_groups_of_unusual_parameters() -> None:
    module = Attention()
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    groups = [{names[id(parameter)] for parameter in group} for group in parameter_groups(module)]
    biases = {"mha.in_proj_bias", "mha.out_proj.bias", "batch_norm.bias", "group_norm.bias", "conv.bias", "linear.bias"}
    assert groups[BIAS] == biases
    assert groups[DECAYED] == {"mha.in_proj_weight", "mha.out_proj.weight", "conv.weight", "pos"}
    assert groups[OTHER] == {
        "gamma",
        "temperature",
        "sweight",
        "norm.weight",
        "norm.bias",
        "batch_norm.weight",
        "group_norm.weight",
    }


def test_every_trainable_parameter_exactly_once() -> None:
    for module in (Attention(), tiny_model(3)):
        grouped = [id(parameter) for group in parameter_groups(module) for parameter in group]
        assert len(grouped) == len(set(grouped))
        assert set(grouped) == {id(parameter) for parameter in module.parameters() if parameter.requires_grad}


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
