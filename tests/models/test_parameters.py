"""Parameters: groups of the optimizer by what a parameter is, and what names tell."""

import pytest
import torch
from torch import nn

from models.parameters import BIAS, DECAYED, OTHER, count_parameters, is_constant, layer_index, parameter_groups
from tests.networks import meta_model, tiny_model


def test_names() -> None:
    assert layer_index("model.12.cv1.0.conv.weight") == 12
    assert is_constant("model.5.lead.dfl.conv.weight")
    assert not is_constant("model.5.lead.box.0.conv.weight")
    assert count_parameters(nn.Linear(3, 2).requires_grad_(False)) == 8


class Attention(nn.Module):
    """Parameters of many kinds, shared and frozen ones among them."""

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


class Gate(nn.Module):
    """A vector that is multiplied, whatever it is called; a bias under torch's name and under another."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.register_parameter(name, nn.Parameter(torch.ones(4)))
        self.linear = nn.Linear(4, 4)
        self.attention = nn.MultiheadAttention(4, 1)


@pytest.mark.parametrize("name", ["gain", "bias", "query_bias", "weight"])
def test_names_have_no_effect_on_groups(name: str) -> None:
    module = Gate(name)
    groups = parameter_groups(module)
    assert [id(parameter) for parameter in groups[OTHER]] == [id(getattr(module, name))]
    assert {id(parameter) for parameter in groups[BIAS]} == {
        id(bias) for bias in (module.linear.bias, module.attention.in_proj_bias, module.attention.out_proj.bias)
    }
    assert [parameter.ndim for parameter in groups[DECAYED]] == [2, 2, 2]


def test_subclasses_of_torchs_modules_have_biases() -> None:
    class Scaled(nn.Conv2d):
        pass

    groups = parameter_groups(nn.Sequential(Scaled(4, 4, 1), nn.Conv2d(4, 4, 1, bias=False)))
    assert [len(group) for group in groups] == [1, 2, 0]


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("gelan-c", [160, 160, 154]),
        ("gelan-t-ACmix", [236, 245, 227]),
        ("yolov9-t-FocalModulationBlock", [310, 310, 293]),
        ("yolov9-e", [373, 373, 356]),
        ("yolov9-c-dseg", [319, 319, 298]),
        ("yolov8n-ASFF", [84, 84, 75]),
        ("yolov8n-GatherExcite-theta", [75, 75, 69]),
        ("yolo11n-FocalModulation", [88, 90, 79]),
        ("yolo11n-seg-DynamicConv", [109, 109, 90]),
    ],
)
def test_groups_of_shipped_networks(name: str, counts: list[int]) -> None:
    assert [len(group) for group in parameter_groups(meta_model(name))] == counts
