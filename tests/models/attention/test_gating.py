"""What gates share: their settings' checks, and their use in a network as one row and inside a block."""

from typing import Any

import pytest
import torch

from models.attention.gating import GroupNorm, squeezed
from models.blocks.csp import C2f
from models.parts import require_divisor, require_odd, require_positive
from models.yolo import Model
from tests.networks import tiny_config
from tests.saying import assert_says
from utils.errors import ModelConfigError

LAYERS = ["SE", "ECA", "MLCA", "CBAM", "CoordAtt", "MSCA", "LSK", "LSKA", "SimAM", "EMAttention", "SCSA", "AIFI"]


@pytest.mark.parametrize(
    ("channels", "reduction", "hidden"),
    [(512, 16, 32), (256, 16, 16), (128, 16, 8), (64, 16, 8), (64, 4, 16), (8, 16, 8), (3, 16, 3), (1, 2, 1)],
)
def test_bottleneck_has_a_share_but_not_a_handful(channels: int, reduction: int, hidden: int) -> None:
    assert squeezed(channels, reduction) == hidden


def test_one_value_a_group_becomes_the_bias() -> None:
    norm = GroupNorm(2, 2).double()
    norm.bias.data.copy_(torch.tensor([3.0, -1.0]))
    assert norm(torch.tensor([5.0, 7.0], dtype=torch.float64).view(1, 2, 1, 1)).flatten().tolist() == pytest.approx(
        [3, -1]
    )
    with pytest.raises(ValueError, match="more than 1 value"):
        torch.nn.GroupNorm(2, 2)(torch.ones(1, 2, 1, 1))


@pytest.mark.parametrize(
    ("check", "arguments", "message"),
    [
        (require_positive, ("window", 0), "window is 0: expected a positive number"),
        (require_positive, ("gamma", -0.5), "gamma is -0.5: expected a positive number"),
        (require_odd, ("kernel_size", 4), "kernel_size is 4: expected an odd positive number such as 5"),
        (require_odd, ("kernel_size", -1), "kernel_size is -1: expected an odd positive number such as 3"),
        (require_divisor, ("groups", 8, 12), "groups is 8: does not divide 12 channels; try one of 1, 2, 3, 4, 6, 12"),
        (require_divisor, ("groups", 0, 4), "groups is 0: does not divide 4 channels; try one of 1, 2, 4"),
        (require_divisor, ("heads", 8, 8, 2), "heads is 8: leaves fewer than 2 of 8 channels each; try one of 1, 2, 4"),
        (
            require_divisor,
            ("heads", 1, 1, 2),
            "heads is 1: leaves fewer than 2 of 1 channels each; use another layer at this width",
        ),
    ],
)
def test_settings_that_cannot_be(check: Any, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ModelConfigError) as caught:
        check(*arguments)
    assert str(caught.value) == message


def test_settings_that_can_be() -> None:
    require_positive("regularizer", 1e-9)
    require_odd("kernel_size", 1)
    require_divisor("groups", 12, 12)
    require_divisor("heads", 4, 8, least=2)


@pytest.mark.parametrize("name", LAYERS)
def test_one_row_of_a_network_without_arguments(name: str) -> None:
    config = tiny_config(width=32)
    config["backbone"].append([-1, 1, name, []])
    config["head"][0][0] = [2, 3, 5]
    torch.manual_seed(0)
    model = Model(config)
    assert type(model.model[5]).__name__ == name
    outputs = model.train()(torch.rand(2, 3, 64, 96))
    sum(tensor.square().mean() for tensor in outputs["main"]).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.model[5].parameters())


@pytest.mark.parametrize("name", LAYERS)
def test_attention_of_a_block(name: str) -> None:
    block = C2f(16, 32, repeats=2, attention=name)
    assert [type(unit.attention).__name__ for unit in block.m] == [name, name]
    assert block.eval()(torch.rand(1, 16, 5, 3)).shape == (1, 32, 5, 3)


def test_width_that_does_not_divide_names_the_row_and_what_to_write() -> None:
    config = tiny_config(width=24)
    config["backbone"].append([-1, 1, "SCSA", [16]])
    with pytest.raises(ModelConfigError) as caught:
        Model(config)
    assert_says(
        caught.value,
        "backbone[5] (layer 5)",
        "[-1, 1, SCSA, [16]]",
        "heads is 16",
        "24 channels",
        "1, 2, 3, 4, 6, 8, 12",
    )
