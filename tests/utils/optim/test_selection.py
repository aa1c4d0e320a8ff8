"""Phrases that mean layers or parameters, for freezing and for learning rates of their own."""

import pytest
import torch
from torch import nn

from models.yolo import Model
from tests.networks import tiny_model
from tests.saying import assert_says
from utils.errors import SettingsError
from utils.hyperparameters import Hyperparameters
from utils.optim.optimizer import Schedule, build_optimizer
from utils.optim.selection import (
    check_frozen_were_loaded,
    describe_frozen,
    freeze,
    layers_of,
    learning_rate_factors,
    select_parameters,
    spans,
)
from utils.training.epoch import Training


def network() -> Model:
    """Layers 0 to 6: four Conv, MaxPool and Conv in the neck, the head."""
    return Model(
        {
            "nc": 2,
            "backbone": [[-1, 1, "Conv", [8, 3, 2]] for _ in range(4)],
            "head": [[-1, 1, "nn.MaxPool2d", [2]], [-1, 1, "Conv", [8, 3]], [[2, 3, 5], 1, "DDetect", ["nc"]]],
        }
    )


@pytest.mark.parametrize(
    ("phrase", "layers"),
    [
        ("0", {0}),
        ("1-3", {1, 2, 3}),
        ("backbone", {0, 1, 2, 3}),
        ("neck", {4, 5}),
        ("head", {6}),
        ("Conv", {0, 1, 2, 3, 5}),
        ("DDetect", {6}),
        ("model.0.*", None),
        ("9-12", {9, 10, 11, 12}),
    ],
)
def test_phrases(phrase: str, layers: set[int] | None) -> None:
    assert layers_of(network(), phrase) == layers


def test_parameters_come_in_the_network_s_order_and_once() -> None:
    names = select_parameters(network(), ["model.3.bn.*", "1", "model.1.conv.weight"], "--freeze")
    assert names == [
        "model.1.conv.weight",
        "model.1.bn.weight",
        "model.1.bn.bias",
        "model.3.bn.weight",
        "model.3.bn.bias",
    ]
    assert all(".cls." in name for name in select_parameters(network(), ["*.cls.*"], "--freeze"))


@pytest.mark.parametrize(
    ("phrase", "facts"),
    [
        ("9", ["no layer 9", 0, 6]),
        ("4-7", ["no layer 7", 0, 6]),
        ("5-2", ["no layer", "indices", "range", "backbone", "neck", "head", "label"]),
        ("backbon", ["no parameter", "indices", "range", "'backbone'"]),
        ("ADown", ["no layer", "no parameter"]),
        ("model.9.*", ["no layer", "no parameter"]),
    ],
)
def test_phrases_that_mean_nothing(phrase: str, facts: list[object]) -> None:
    with pytest.raises(SettingsError) as caught:
        select_parameters(network(), [phrase], "--freeze")
    assert_says(caught.value, f"--freeze {phrase}", *facts)


@pytest.mark.parametrize(
    ("phrases", "layers"),
    [(["2"], {0, 1}), (["0"], set()), (["2", "3"], {2, 3}), (["1-2"], {1, 2}), (["Conv", "head"], {0, 1, 2, 3, 5, 6})],
)
def test_freeze(phrases: list[str], layers: set[int]) -> None:
    """One number alone means so many first layers, as in the original; several mean themselves."""
    model = network()
    norms = freeze(model, phrases)
    fixed = {
        int(name.split(".")[1])
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad and ".dfl." not in name
    }
    assert fixed == layers
    inside = [
        module
        for index in sorted(layers)
        for module in model.model[index].modules()
        if isinstance(module, nn.BatchNorm2d)
    ]
    assert norms == inside


def test_too_many_first_layers() -> None:
    with pytest.raises(SettingsError) as caught:
        freeze(network(), ["8"])
    assert_says(caught.value, "--freeze 8", "7 layers")


def test_what_is_said_of_frozen_layers() -> None:
    model = network()
    line = describe_frozen(model, freeze(model, ["0-2", "5"]))
    assert line.startswith("frozen: 12 parameters, ")
    assert_says(line, "layers 0-2, 5", "4 normalisations")
    assert spans([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"


def test_what_was_not_loaded_cannot_be_frozen() -> None:
    model = network()
    freeze(model, ["backbone"])
    check_frozen_were_loaded(model, ["model.5.conv.weight", "model.6.lead.cls.0.2.weight"])
    with pytest.raises(SettingsError) as caught:
        check_frozen_were_loaded(model, ["model.2.conv.weight"])
    assert_says(caught.value, "layer 2 (Conv)", "--weights")
    assert str(caught.value).endswith(" --freeze 0-1 3")


def test_factors() -> None:
    model = network()
    factors = learning_rate_factors(model, ["backbone=0.1", "model.3.*=0.5", "head=2"])
    assert factors["model.0.conv.weight"] == 0.1
    assert factors["model.3.bn.bias"] == 0.5
    assert {value for name, value in factors.items() if name.startswith("model.6.")} == {2.0}
    assert not any(name.startswith("model.5.") for name in factors)


def test_layer_decay() -> None:
    factors = learning_rate_factors(network(), [], layer_decay=0.5)
    assert (factors["model.5.conv.weight"], factors["model.3.conv.weight"], factors["model.0.conv.weight"]) == (
        0.5,
        0.125,
        0.5**6,
    )
    assert not any(name.startswith("model.6.") for name in factors)


@pytest.mark.parametrize(
    "rule", ["backbone", "backbone=", "backbone=x", "backbone=0", "backbone=-1", "=0.1", "backbone=nan"]
)
def test_factors_that_cannot_be_read(rule: str) -> None:
    with pytest.raises(SettingsError, match=r"--lr-factor "):
        learning_rate_factors(network(), [rule])


@pytest.mark.parametrize("decay", [0.0, 1.5, -0.1])
def test_decay_out_of_range(decay: float) -> None:
    with pytest.raises(SettingsError) as caught:
        learning_rate_factors(network(), [], decay)
    assert_says(caught.value, f"--layer-decay {decay}", 0, 1)


@pytest.mark.parametrize("optimizer_name", ["SGD", "AdamW"])
def test_every_parameter_is_in_one_group_with_its_factor(optimizer_name: str) -> None:
    model, hyp = network(), Hyperparameters(warmup_epochs=0)
    factors = learning_rate_factors(model, ["backbone=0.1", "neck=0.5"])
    optimizer = build_optimizer(model, optimizer_name, hyp, 5e-4, factors)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [
        (names[id(parameter)], group["factor"]) for group in optimizer.param_groups for parameter in group["params"]
    ]
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(found) == len(trainable)
    assert dict(found) == {name: factors.get(name, 1.0) for name in trainable}
    Schedule(hyp, "fixed", 10, 4, 16).apply(optimizer, 5, 0)
    assert {(group["factor"], round(group["lr"], 12)) for group in optimizer.param_groups} == {
        (1.0, 0.01),
        (0.1, 0.001),
        (0.5, 0.005),
    }
    decayed = {
        names[id(parameter)]
        for group in optimizer.param_groups
        if group["weight_decay"] > 0
        for parameter in group["params"]
    }
    assert decayed == {name for name in trainable if model.get_parameter(name).ndim > 1}


def test_frozen_layers_do_not_change_in_training() -> None:
    from utils.losses.detection import build_loss
    from utils.optim.ema import ModelEMA
    from utils.precision import choose_precision
    from utils.training.epoch import train_one_epoch

    model, hyp = tiny_model(), Hyperparameters()
    norms = freeze(model, ["0-2"])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    schedule = Schedule(hyp, "fixed", 1, 2, 2)
    optimizer = build_optimizer(model, "SGD", hyp, 0.0)
    training = Training(
        model,
        ModelEMA(model),
        optimizer,
        torch.amp.GradScaler("cpu", enabled=False),
        build_loss(model, hyp),
        schedule,
        choose_precision("cpu", "off"),
        norms,
    )
    images = torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = {"images": images, "targets": torch.tensor([[0, 1, 0.5, 0.5, 0.4, 0.4], [1, 0, 0.4, 0.6, 0.3, 0.5]])}
    train_one_epoch(training, [batch, batch], 0, progress=False)
    changed = {
        int(name.split(".")[1]) for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == {3, 4, 5}
