"""The moving average of the weights."""

import pytest
import torch
from torch import nn

from utils.optim.ema import ModelEMA


class Single(nn.Module):
    """One weight, a floating and an integer buffer."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([value]))
        self.register_buffer("mean", torch.tensor([value]))
        self.register_buffer("count", torch.tensor(0))


@pytest.mark.parametrize(
    ("updates", "decay"), [(1, 0.1818), (10, 0.55), (100, 0.9182), (2000, 0.9955), (1_000_000, 0.9999)]
)
def test_decay_grows_with_the_updates(updates: int, decay: float) -> None:
    ema = ModelEMA(Single(1.0))
    ema.updates = updates - 1
    ema.update(Single(0.0))
    assert ema.model.weight.item() == pytest.approx(decay, abs=1e-4)
    assert ema.model.mean.item() == pytest.approx(decay, abs=1e-4)
    assert ema.updates == updates


def test_long_run_decay_and_warmup_are_settings() -> None:
    ema = ModelEMA(Single(1.0), decay=0.5)
    ema.updates = 1000
    ema.update(Single(0.0))
    assert ema.model.weight.item() == pytest.approx(0.5)
    ema = ModelEMA(Single(1.0), warmup=4.0)
    ema.update(Single(0.0))
    assert ema.model.weight.item() == pytest.approx(2 / 5)


def test_follows_and_leaves_the_network_alone() -> None:
    model = Single(1.0).train()
    ema = ModelEMA(model)
    assert not ema.model.training
    assert not ema.model.weight.requires_grad
    with torch.no_grad():
        model.weight.fill_(3.0)
        model.count.fill_(7)
    for _ in range(50):
        ema.update(model)
    assert ema.model.weight.item() == pytest.approx(3.0, abs=0.01)
    assert ema.model.count.item() == 7
    assert model.weight.item() == 3.0
    assert model.training
    assert model.weight.requires_grad


def test_the_average_of_many_steps_is_smoother_than_the_last_one() -> None:
    ema = ModelEMA(Single(0.0))
    ema.updates = 2000
    for number in range(100):
        ema.update(Single(1.0 if number % 2 else -1.0))
    assert abs(ema.model.weight.item()) < 0.02
