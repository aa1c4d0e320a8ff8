"""ONNX graphs of modules, by torch's two exporters: for export.py and for the checks of layers."""

import importlib.util
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from utils.errors import ExportError
from utils.quiet import quiet
from utils.wording import first_line

COLOUR = re.compile("\x1b\\[[0-9;]*m")
ONNX_OPSET = 18
"""Default version of ONNX's operators."""
INSTALL = "pip install -r requirements-export.txt"
"""Remedy for a missing package that only exported files need."""


def traced_onnx(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    input_names: Sequence[str],
    output_names: Sequence[str],
    free: Mapping[str, Mapping[int, str]],
    opset: int = ONNX_OPSET,
) -> bytes:
    """Return a module as an ONNX model, traced with `inputs`.

    Args:
        free: names of the dimensions that stay open, by input or output name and index; empty for none.
    """
    buffer = io.BytesIO()
    with quiet(), torch.no_grad():
        torch.onnx.export(
            module,
            inputs,
            buffer,  # type: ignore[arg-type] # torch takes open files, and its annotation does not say so
            dynamo=False,
            opset_version=opset,
            input_names=list(input_names),
            output_names=list(output_names),
            dynamic_axes={name: dict(axes) for name, axes in free.items()},
        )
    return buffer.getvalue()


def exported_onnx(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    input_names: Sequence[str],
    output_names: Sequence[str],
    shapes: Any,
    opset: int = ONNX_OPSET,
) -> Any:
    """Return a module as an `onnx.ModelProto`, made by torch.export.

    Args:
        shapes: torch's `dynamic_shapes`, in the form of the module's arguments; None for fixed sizes.
    Raises:
        ExportError: onnxscript is not installed, or torch cannot export the module.
    """
    if importlib.util.find_spec("onnxscript") is None:
        raise ExportError(f"needs onnxscript: {INSTALL}")
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                inputs,
                dynamo=True,
                verbose=False,
                opset_version=opset,
                input_names=list(input_names),
                output_names=list(output_names),
                dynamic_shapes=shapes,
            )
            assert program is not None
            return program.model_proto
    except torch.onnx.OnnxExporterError as error:
        raise ExportError(innermost_reason(error)) from error


def innermost_reason(error: BaseException) -> str:
    """Return the first line of the error that caused the others, without the colours that exporters add."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(COLOUR.sub("", str(error))) if str(error) else type(error).__name__


def simplified(model: Any) -> Any:
    """Return an `onnx.ModelProto` with its constants computed and needless nodes removed, by onnxslim.

    Raises:
        ExportError: onnxslim is not installed.
    """
    if importlib.util.find_spec("onnxslim") is None:
        raise ExportError(f"--simplify: needs onnxslim, not installed here: {INSTALL}")
    import onnxslim

    with quiet():
        return onnxslim.slim(model)
