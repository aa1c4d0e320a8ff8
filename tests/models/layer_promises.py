"""Promises that attention layers and blocks are tested for in each of their forms, on maps of 8 channels."""

import copy
import io
import warnings

import pytest
import torch
from torch import Tensor, nn

from utils.onnx_graph.recording import ONNX_OPSET

SIZES = ((1, (1, 1)), (1, (1, 5)), (1, (7, 9)), (2, (2, 2)), (2, (3, 11)))
"""Batch sizes, and heights and widths of maps, that are the hardest to train on; usual ones are in models/checks."""


def maps(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a seeded map of standard normal values."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_any_size_trains(layer: nn.Module, keeps_size: bool) -> None:
    """Training gives finite outputs and gradients for maps down to one cell of one image."""
    for batch, size_hw in SIZES:
        layer.zero_grad()
        x = maps(batch, 8, *size_hw).requires_grad_()
        y = layer.train()(x)
        y.backward(maps(*y.shape, seed=1))
        assert not keeps_size or y.shape == (batch, 8, *size_hw)
        assert y.isfinite().all()
        assert x.grad.isfinite().all()
        assert all(parameter.grad.isfinite().all() for parameter in layer.parameters() if parameter.requires_grad)


def assert_layouts_agree(layer: nn.Module, keeps_layout: bool) -> None:
    """Outputs and gradients are those of the other memory layout; a channels-last map may have to stay so."""
    layer.double().eval()
    seen = []
    for layout in (torch.contiguous_format, torch.channels_last):
        layer.to(memory_format=layout)
        x = maps(3, 8, 6, 7, dtype=torch.float64).to(memory_format=layout).requires_grad_()
        y = layer(x)
        assert not keeps_layout or layout is torch.contiguous_format or y.is_contiguous(memory_format=layout)
        learned = [parameter for parameter in layer.parameters() if parameter.requires_grad]
        seen.append([y, *torch.autograd.grad((y * maps(*y.shape, seed=1)).sum(), [x, *learned])])
    for ours, theirs in zip(*seen, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def assert_half_precision_is_near(layer: nn.Module) -> None:
    """Outputs in half precision are near those in float32; under autocast, too."""
    x = maps(2, 8, 7, 6)
    expected = layer.eval()(x)
    for dtype in (torch.bfloat16, torch.float16):
        y = copy.deepcopy(layer).to(dtype)(x.to(dtype))
        assert y.dtype is dtype
        torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer(x).float(), expected, rtol=0.1, atol=0.1)


def assert_exports(layer: nn.Module, smallest: int) -> torch.export.ExportedProgram:
    """torch.export takes any batch and any size from `smallest` on (a single cell would be recorded as fixed)."""
    dims = {
        0: torch.export.Dim("batch"),
        2: torch.export.Dim("height", min=smallest),
        3: torch.export.Dim("width", min=smallest),
    }
    program = torch.export.export(layer, (maps(2, 8, 9, 10),), dynamic_shapes=(dims,))
    for shape in ((2, 8, 9, 10), (3, 8, 20, 17), (5, 8, max(smallest, 2), max(smallest, 3))):
        torch.testing.assert_close(program.module()(maps(*shape)), layer(maps(*shape)), rtol=1e-4, atol=1e-5)
    return program


def assert_onnx_agrees(layer: nn.Module) -> None:
    """The traced ONNX graph takes any batch and size."""
    onnxruntime = pytest.importorskip("onnxruntime")
    file, axes = io.BytesIO(), {0: "batch", 2: "height", 3: "width"}
    settings = {
        "dynamo": False,
        "opset_version": ONNX_OPSET,
        "input_names": ["x"],
        "output_names": ["y"],
        "dynamic_axes": {"x": axes, "y": axes},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(layer.eval(), (maps(1, 8, 9, 10),), file, **settings)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    for shape in ((1, 8, 9, 10), (3, 8, 12, 7), (2, 8, 2, 3)):
        (y,) = session.run(None, {"x": maps(*shape).numpy()})
        torch.testing.assert_close(torch.from_numpy(y), layer(maps(*shape)), rtol=1e-4, atol=1e-5)
