"""Promises of all blocks beyond the contracts: one value per channel, layouts, formats, export."""

from typing import Any

import pytest
import torch
from torch import nn

from models.building import build_inner
from models.common import Conv
from models.deploy import fold_modules
from models.registry import Scale, bind, find_layer, registered_layers
from models.yolo import Model
from tests.models.layer_promises import (
    assert_any_size_trains,
    assert_exports,
    assert_half_precision_is_near,
    assert_layouts_agree,
    assert_onnx_agrees,
    maps,
)
from tests.networks import randomise, tiny_config

CASES: dict[str, tuple[str, list[Any]]] = {
    "arelu": ("ARelu", []),
    "mbconv": ("MBConv", [8]),
    "mbconv, bare": ("MBConv", [12, 5, 1, 0]),
    "irmb": ("iRMB", [8]),
    "irmb, two heads": ("iRMB", [12, {"head_channels": 4, "window": 3, "squeeze": 0}]),
    "csp stage": ("CSPStage", [8]),
    "msblock": ("MSBlock", [8, [1, 3, 5], {"depth": 1}]),
    "dwr": ("DWR", [8]),
    "dwr, full convolutions": ("DWR", [{"depthwise": False, "activation": None}]),
    "gsconv": ("GSConv", [8, 3]),
    "gs bottleneck": ("GSBottleneck", [12]),
    "vov-gscsp": ("VoVGSCSP", [8]),
    "spdconv": ("SPDConv", [8]),
    "ppa": ("PPA", [8]),
}
"""Layers by their rows' arguments, for a map of 8 channels."""


def build(case: str) -> nn.Module:
    name, arguments = CASES[case]
    entry = find_layer(name)
    keywords = bind(entry, arguments, num_classes=0)
    entry.rule.apply([8], keywords, Scale())
    torch.manual_seed(0)
    return randomise(entry.cls(**keywords))


@pytest.fixture(params=CASES)
def layer(request: pytest.FixtureRequest) -> nn.Module:
    return build(request.param)


def test_every_layer_of_the_package_is_here() -> None:
    elsewhere = ("csp", "residual", "timm_backbone")
    modules = {name: entry.cls.__module__ for name, entry in registered_layers().items()}
    here = {
        name
        for name, module in modules.items()
        if module.startswith("models.blocks.") and not module.endswith(elsewhere)
    }
    assert here == {name for name, _ in CASES.values()}


def test_any_size_trains(layer: nn.Module) -> None:
    assert_any_size_trains(layer, keeps_size=False)


def test_layouts_agree(layer: nn.Module) -> None:
    assert_layouts_agree(layer, keeps_layout=False)


def test_half_precision_is_near(layer: nn.Module) -> None:
    assert_half_precision_is_near(layer)


@pytest.mark.slow
def test_compiled_graph_is_whole_and_takes_any_size(layer: nn.Module) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(layer.eval(), backend="aot_eager", fullgraph=True, dynamic=True)
    for shape in ((2, 8, 9, 7), (3, 8, 5, 20)):
        torch.testing.assert_close(compiled(maps(*shape)), layer(maps(*shape)), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("folded", [False, True], ids=["as trained", "folded"])
def test_exported_graph_takes_any_batch_and_size(layer: nn.Module, folded: bool) -> None:
    layer.eval()
    if folded:
        fold_modules(nn.Sequential(layer))
    assert_exports(layer, smallest=8)


@pytest.mark.slow
def test_onnx_by_tracing(layer: nn.Module) -> None:
    assert_onnx_agrees(layer)


@pytest.mark.parametrize("name", sorted({name for name, _ in CASES.values()} - {"SPDConv"}))
def test_as_the_unit_of_a_shell(name: str) -> None:
    arguments = [{"kernel_sizes": [1, 3], "widening": 2}] if name == "MSBlock" else []
    shell = build_inner(["C2f", {"unit": [name, *arguments]}], 16, "unit").eval()
    assert shell(maps(2, 16, 7, 5)).shape == (2, 16, 7, 5)
    assert type(shell.m[0]) is find_layer(name).cls
    assert not isinstance(shell.m[0], Conv)


def test_a_network_of_them_builds_folds_and_predicts_the_same() -> None:
    config = tiny_config()
    config["backbone"][3] = [-1, 1, "SPDConv", [16]]
    config["backbone"][4] = [-1, 1, "GSConv", [16, 3, 2]]
    rows = [
        ["MBConv", [16]],
        ["iRMB", [16]],
        ["CSPStage", [16]],
        ["MSBlock", [16]],
        ["DWR", [16]],
        ["VoVGSCSP", [16]],
        ["PPA", [16]],
        ["SimSPPF", [16]],
    ]
    config["backbone"] += [[-1, 1, *row] for row in [*rows, ["ARelu", []]]]
    config["head"] = [[[2, 3, 13], 1, "DDetect", ["nc"]]]
    config["activation"] = "ARelu"
    torch.manual_seed(0)
    model = randomise(Model(config)).double().eval()
    assert sum(type(part).__name__ == "ARelu" for part in model.modules()) > 20
    images = maps(1, 3, 96, 64, dtype=torch.float64).sigmoid()
    deployed = model.deploy()
    torch.testing.assert_close(deployed(images), model(images), rtol=1e-8, atol=1e-8)
    Model(deployed.config).load_state_dict(deployed.state_dict())
    Model(model.config).load_state_dict(model.state_dict())
