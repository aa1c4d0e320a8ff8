"""Promises of all attention layers beyond the contracts: hard sizes, layouts, formats, compilation, export."""

from typing import Any

import pytest
import torch
from torch import nn

from models.attention.acmix import ACmix
from models.attention.attention import FocalModulation, FocalModulationBlock
from models.attention.channel_attention import ECA, MLCA, SE
from models.attention.dynamic_conv import DynamicConv
from models.attention.encoder import AIFI
from models.attention.gather_excite import GatherExcite
from models.attention.large_kernel import LSK, LSKA, MSCA
from models.attention.multi_scale_attention import EMAttention
from models.attention.scsa import SCSA
from models.attention.simam import SimAM
from models.attention.spatial_attention import CBAM, CoordAtt
from models.deploy import fold_modules
from models.parts import BatchNorm2d
from models.registry import registered_layers
from tests.models.layer_promises import (
    assert_any_size_trains,
    assert_exports,
    assert_half_precision_is_near,
    assert_layouts_agree,
    assert_onnx_agrees,
    maps,
)
from tests.networks import randomise

CASES: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "focal": (FocalModulation, {"channels": 8}),
    "focal, normalised, residual": (
        FocalModulation,
        {"channels": 8, "residual": True, "normalize_modulator": True, "use_postln_in_modulation": True},
    ),
    "focal block": (FocalModulationBlock, {"in_channels": 8, "focal_window": 3}),
    "gather-excite": (GatherExcite, {"channels": 8}),
    "gather-excite, extent 4, both pools": (GatherExcite, {"channels": 8, "extent": 4, "maxpool": True}),
    "gather-excite, theta": (GatherExcite, {"channels": 8, "extent": 8, "variant": "theta"}),
    "gather-excite, theta-plus": (
        GatherExcite,
        {"channels": 8, "extent": 2, "variant": "theta-plus", "mlp_ratio": 0.5},
    ),
    "gather-excite, mlp": (GatherExcite, {"channels": 8, "mlp": True, "mlp_ratio": 0.5}),
    "acmix": (ACmix, {"in_channels": 8}),
    "acmix, residual, 2 heads": (ACmix, {"in_channels": 8, "kernel_att": 3, "heads": 2, "residual": True}),
    "acmix, two linear steps, dilated": (ACmix, {"in_channels": 8, "kernel_att": 3, "kernel_conv": 1, "dilation": 2}),
    "dynamic conv": (DynamicConv, {"in_channels": 8, "out_channels": 8}),
    "dynamic conv, 3 x 3 in groups": (
        DynamicConv,
        {"in_channels": 8, "out_channels": 8, "kernel_size": 3, "groups": 2, "experts": 3},
    ),
    "dynamic conv, softmax": (
        DynamicConv,
        {"in_channels": 8, "out_channels": 8, "kernel_size": 3, "route": "mlp_softmax", "temperature": 4.0},
    ),
    "se": (SE, {"channels": 8, "reduction": 2}),
    "eca": (ECA, {"channels": 8}),
    "mlca": (MLCA, {"channels": 8}),
    "mlca, 3 x 3 cells": (MLCA, {"channels": 8, "cells": 3, "local_weight": 0.3, "kernel_size": 5}),
    "cbam": (CBAM, {"channels": 8}),
    "cbam, not normalised": (CBAM, {"channels": 8, "kernel_size": 3, "norm": False, "start": "identity"}),
    "coord": (CoordAtt, {"channels": 8}),
    "msca": (MSCA, {"channels": 8}),
    "msca, block": (MSCA, {"channels": 8, "kernel_sizes": (3, 9), "block": True}),
    "lsk": (LSK, {"channels": 8}),
    "lsk, block": (LSK, {"channels": 8, "kernel_size": 3, "block": True}),
    "lska": (LSKA, {"channels": 8}),
    "lska, block": (LSKA, {"channels": 8, "kernel_size": 7, "block": True}),
    "simam": (SimAM, {"channels": 8}),
    "simam, sliced": (SimAM, {"channels": 8, "slices": 3}),
    "ema attention": (EMAttention, {"channels": 8, "groups": 2}),
    "ema attention, a channel a group": (EMAttention, {"channels": 8}),
    "scsa": (SCSA, {"channels": 8, "heads": 2}),
    "scsa, other parts and window": (SCSA, {"channels": 8, "heads": 1, "window": 2, "kernel_sizes": (5, 3)}),
    "aifi": (AIFI, {"channels": 8, "ffn_channels": 16, "heads": 2}),
    "aifi, pre-norm": (AIFI, {"channels": 8, "ffn_channels": 16, "heads": 4, "pre_norm": True}),
}
"""Layers that keep the size, with their settings."""


@pytest.fixture(params=CASES)
def layer(request: pytest.FixtureRequest) -> nn.Module:
    kind, settings = CASES[request.param]
    torch.manual_seed(0)
    return randomise(kind(**settings))


def test_every_layer_of_the_package_is_here() -> None:
    here = {entry.cls for entry in registered_layers().values() if entry.cls.__module__.startswith("models.attention.")}
    assert here == {kind for kind, _ in CASES.values()}


def test_any_size_trains(layer: nn.Module) -> None:
    assert_any_size_trains(layer, keeps_size=True)


def test_layouts_agree(layer: nn.Module) -> None:
    assert_layouts_agree(layer, keeps_layout=True)


def test_half_precision_is_near(layer: nn.Module) -> None:
    assert_half_precision_is_near(layer)


@pytest.mark.slow
def test_compiled_graph_is_whole_and_takes_any_size(layer: nn.Module) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    for shape in ((2, 8, 9, 7), (3, 8, 5, 20)):
        x, other = maps(*shape).requires_grad_(), maps(*shape).requires_grad_()
        ours, theirs = compiled(x), layer(other)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        ours.sum().backward()
        theirs.sum().backward()
        torch.testing.assert_close(x.grad, other.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("folded", [False, True], ids=["as trained", "folded"])
def test_exported_graph_takes_any_batch_and_size(layer: nn.Module, folded: bool) -> None:
    layer.eval()
    if folded:
        fold_modules(nn.Sequential(layer))
    program = assert_exports(layer, smallest=getattr(layer, "extent", getattr(layer, "window", 0)) + 1)
    assert not any("yolo_loom" in str(node.target) for node in program.graph.nodes)


@pytest.mark.slow
def test_traced_graph_takes_any_batch(layer: nn.Module) -> None:
    traced = torch.jit.trace(layer.eval(), (maps(1, 8, 9, 10),), check_trace=False)
    for shape in ((1, 8, 9, 10), (3, 8, 9, 10)):
        torch.testing.assert_close(traced(maps(*shape)), layer(maps(*shape)), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("folded", [False, True], ids=["as trained", "folded"])
def test_onnx_by_tracing(layer: nn.Module, folded: bool) -> None:
    layer.eval()
    if folded:
        fold_modules(nn.Sequential(layer))
    assert_onnx_agrees(layer)


@pytest.mark.slow
def test_compiled_by_the_default_backend(layer: nn.Module) -> None:
    torch._dynamo.reset()
    x = maps(2, 8, 9, 7)
    torch.testing.assert_close(torch.compile(layer.eval())(x), layer(x), rtol=1e-4, atol=1e-5)


def test_explained_tensors_are_one_a_image() -> None:
    for kind, settings in CASES.values():
        if hasattr(kind, "explain"):
            seen = kind(**settings).eval().explain(maps(3, 8, 9, 7))
            assert seen
            assert all(len(value) == 3 and value.isfinite().all() for value in seen.values())


def test_normalisation_of_one_value_uses_the_running_statistics() -> None:
    bn = BatchNorm2d(2).train()
    bn.running_mean.copy_(torch.tensor([1.0, -1.0]))
    bn.running_var.fill_(4.0 - 1e-5)
    y = bn(torch.tensor([5.0, -1.0]).view(1, 2, 1, 1))
    assert y.flatten().tolist() == pytest.approx([2, 0])
    assert bn.running_mean.tolist() == [1, -1]
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        nn.BatchNorm2d(2).train()(torch.ones(1, 2, 1, 1))
