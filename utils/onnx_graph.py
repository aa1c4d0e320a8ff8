"""ONNX graphs of modules, by tracing: for export.py and for the checks of layers."""

import io
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from utils.quiet import quiet

ONNX_OPSET = 18
"""Default version of ONNX's operators."""


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
