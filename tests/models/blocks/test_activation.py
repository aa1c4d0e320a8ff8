"""ARelu by hand: as a row, as a network's activation, and in the optimizer."""

import pytest
import torch
from torch import nn

from models.blocks.activation import ARelu
from models.common import Conv, set_activation
from models.parameters import OTHER, parameter_groups
from models.yolo import Model
from tests.networks import tiny_config


def sigmoid(value: float) -> float:
    return torch.tensor(value, dtype=torch.float64).sigmoid().item()


def test_slopes_by_hand() -> None:
    y = ARelu().double()(torch.tensor([-2.0, 0.0, 3.0], dtype=torch.float64))
    assert y.tolist() == pytest.approx([-1.8, 0, 3 * (1 + sigmoid(2.0))], abs=1e-7)
    assert ARelu(alpha=0.5, beta=0.0)(torch.tensor([-2.0, 4.0])).tolist() == [-1.0, 6.0]


@pytest.mark.parametrize(("alpha", "slope"), [(-3.0, 0.01), (0.3, 0.3), (2.0, 0.99)])
def test_negative_slope_is_bounded(alpha: float, slope: float) -> None:
    assert ARelu(alpha)(torch.tensor([-1.0])).item() == pytest.approx(-slope)


def test_gradients_by_hand() -> None:
    layer, x = ARelu(0.25, 0.0).double(), torch.tensor([-2.0, 3.0], dtype=torch.float64, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.tolist() == [0.25, 1.5]
    assert layer.alpha.grad.item() == -2
    assert layer.beta.grad.item() == 3 * 0.25  # the sigmoid's slope at zero


def test_its_scalars_do_not_decay() -> None:
    layer = ARelu()
    groups = parameter_groups(layer)
    assert [len(group) for group in groups] == [0, 0, 2]
    assert {id(parameter) for parameter in groups[OTHER]} == {id(layer.alpha), id(layer.beta)}


def test_as_the_activation_of_a_network() -> None:
    model = Model(tiny_config() | {"activation": "ARelu"})
    own = [unit.act for unit in model.modules() if isinstance(unit, Conv)]
    assert own
    assert all(isinstance(act, ARelu) for act in own)
    assert len({id(act.alpha) for act in own}) == len(own), "one pair a layer"


def test_unit_without_activation_stays_without() -> None:
    unit = Conv(2, 2, activate=False)
    set_activation(unit, "ARelu")
    assert isinstance(unit.act, nn.Identity)
