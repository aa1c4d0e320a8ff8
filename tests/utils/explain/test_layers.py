"""Layers picked by index, name and path; what a recorder keeps."""

import pytest
import torch
from torch import nn

from models.attention.dynamic_conv import DynamicConv
from tests.saying import assert_says
from tests.utils.explain.small_network import SmallNetwork
from utils.errors import SettingsError
from utils.explain.layers import LayerRecorder, pick_layers


def test_layers_are_picked_by_index_name_and_path() -> None:
    network = SmallNetwork()
    assert list(pick_layers(network, [])) == ["00_Conv2d", "01_Sequential", "02_Pair", "03_Head"]
    assert list(pick_layers(network, ["2", 0])) == ["02_Pair", "00_Conv2d"]
    assert list(pick_layers(network, ["focalmodulation"])) == ["01.0_FocalModulation"]
    assert list(pick_layers(network, ["1.0", "model.1.0"])) == ["01.0_FocalModulation"]


@pytest.mark.parametrize(
    ("wanted", "facts"),
    [("9", ("--visualize 9", "0..3")), ("FocalModulatio", ("--visualize FocalModulatio", "'FocalModulation'"))],
)
def test_unknown_layers_are_named(wanted: str, facts: tuple[str, ...]) -> None:
    with pytest.raises(SettingsError) as caught:
        pick_layers(SmallNetwork(), [wanted])
    assert_says(caught.value, *facts)


def test_nothing_stays_on_the_network() -> None:
    network = SmallNetwork()
    with LayerRecorder(pick_layers(network, [])):
        network(torch.zeros(1, 3, 32, 32), raw=True)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_an_explaining_layer_is_explained_once() -> None:
    network = SmallNetwork()
    with LayerRecorder(pick_layers(network, ["1", "FocalModulation"])) as recorder:
        network(torch.zeros(1, 3, 32, 32), raw=True)
    assert list(recorder.inputs) == ["01_Sequential.0"]


def test_maps_are_those_before_a_step_in_place() -> None:
    network = SmallNetwork()
    network.model[0] = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(inplace=True))
    with LayerRecorder(pick_layers(network, ["0.0", "0"])) as recorder:
        network(torch.rand(1, 3, 32, 32), raw=True)
    before, after = recorder.outputs["00.0_Conv2d"], recorder.outputs["00_Sequential"]
    assert before.min() < 0
    assert torch.equal(before.relu(), after)


def test_of_modules_within_each_other_the_outermost_explains() -> None:
    network = SmallNetwork()
    network.model[1] = nn.Sequential(DynamicConv(4, 4))
    with LayerRecorder(pick_layers(network, ["1"])) as recorder:
        network(torch.rand(1, 3, 32, 32), raw=True)
    assert list(recorder.inputs) == ["01_Sequential.0"]
