"""The bytes of an .onnx or .torchscript file, from a network: what talks to the exporters of torch, and keeps them quiet.

Two exporters write ONNX. The one that traces takes a second and is tried first; torch means to remove it, and what it writes down
as a constant may not be one. The one on torch.export takes 8 to 25 seconds for a gelan-t. Neither is believed: export_run.py compares.
"""

import importlib.util
import io
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from utils.errors import UserError
from utils.inference.exported import METADATA_FILE
from utils.inference.metadata import INPUT_NAME, OUTPUT_NAMES, ExportMetadata
from utils.quiet import quiet

MOST_BATCH, MOST_CELLS = 4096, 4096
"""Bounds that torch.export is told for a dynamic batch, and for height and width in cells of the largest stride."""
FAILURES = (
    RuntimeError,
    TypeError,
    ValueError,
    AttributeError,
    LookupError,
    ArithmeticError,
    AssertionError,
    ImportError,
)
"""What exporters raise on a network that they cannot take; `RuntimeError` holds torch's own kinds."""

Writer = Callable[[nn.Module, Tensor, ExportMetadata, int], bytes]


class ExportError(UserError):
    """A network that cannot be exported, or whose exported file computes something else."""


class InferenceForm(nn.Module):
    """A network with one input and nothing to choose, in evaluation."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.eval()

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.network(images)


def torchscript_by_tracing(network: nn.Module, images: Tensor, metadata: ExportMetadata, opset: int) -> bytes:
    """Return a TorchScript archive that holds what the network did with `images`."""
    buffer = io.BytesIO()
    with quiet(), torch.no_grad():
        traced = torch.jit.trace(InferenceForm(network), (images,), check_trace=False)
        torch.jit.save(
            traced, buffer, _extra_files={METADATA_FILE: json.dumps(asdict(metadata), ensure_ascii=False).encode()}
        )
    return buffer.getvalue()


def onnx_by_tracing(network: nn.Module, images: Tensor, metadata: ExportMetadata, opset: int) -> bytes:
    """Return an ONNX model that holds what the network did with `images`."""
    import onnx

    names, buffer = OUTPUT_NAMES[metadata.task], io.BytesIO()
    free: dict[str, dict[int, str]] = {
        INPUT_NAME: {0: "batch", 2: "height", 3: "width"},
        names[0]: {0: "batch", 2: "anchors"},
    }
    free |= {name: {0: "batch", 2: f"{name}_height", 3: f"{name}_width"} for name in names[1:]}
    with quiet(), torch.no_grad():
        torch.onnx.export(
            InferenceForm(network),
            (images,),
            buffer,  # type: ignore[arg-type] # torch takes files that are open, and its annotation does not say so
            dynamo=False,
            opset_version=opset,
            input_names=[INPUT_NAME],
            output_names=list(names),
            dynamic_axes=free if metadata.dynamic else None,
        )
    return with_metadata(onnx.load_model_from_string(buffer.getvalue()), metadata, opset)


def onnx_by_dynamo(network: nn.Module, images: Tensor, metadata: ExportMetadata, opset: int) -> bytes:
    """Return an ONNX model made from the graph that torch.export finds."""
    if importlib.util.find_spec("onnxscript") is None:
        raise ExportError("needs onnxscript: pip install -r requirements-export.txt")
    shapes: dict[str, dict[int, Any]] | None = None
    if metadata.dynamic:
        dim, step = torch.export.Dim, max(metadata.stride)
        height, width = (step * dim(f"{side}_cells", min=1, max=MOST_CELLS) for side in ("height", "width"))
        shapes = {INPUT_NAME: {0: dim("batch", min=1, max=MOST_BATCH), 2: height, 3: width}}
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            InferenceForm(network),
            (images,),
            dynamo=True,
            verbose=False,
            opset_version=opset,
            input_names=[INPUT_NAME],
            output_names=list(OUTPUT_NAMES[metadata.task]),
            dynamic_shapes=shapes,
        )
        assert program is not None
        return with_metadata(program.model_proto, metadata, opset)


def with_metadata(model: Any, metadata: ExportMetadata, opset: int) -> bytes:
    """Return an `onnx.ModelProto` as bytes, with the metadata in it and without notes of the exporter, which name files of this machine.

    Raises:
        ExportError: it is of another opset than was asked for.
    """
    import onnx

    written = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if written != opset:
        raise ExportError(f"the exporter writes opset {written}, {opset} was asked for")
    onnx.helper.set_model_props(model, metadata.entries())
    for part in (
        *model.graph.node,
        *model.graph.value_info,
        *model.graph.initializer,
        *model.graph.input,
        *model.graph.output,
    ):
        part.doc_string = ""
        part.ClearField("metadata_props")
    model.graph.ClearField("metadata_props")
    return model.SerializeToString()


WRITERS: dict[str, tuple[Writer, ...]] = {
    "onnx": (onnx_by_tracing, onnx_by_dynamo),
    "torchscript": (torchscript_by_tracing,),
}
"""What can write each format, in the order in which they are tried."""
PACKAGES = {"onnx": ("onnx", "onnxruntime"), "torchscript": ()}
"""What each format needs beside torch: to write a file, and to run it for the comparison."""


def check_packages(formats: tuple[str, ...]) -> None:
    """Refuse formats whose packages are not installed.

    Raises:
        ExportError: names them and what to do.
    """
    for name in formats:
        missing = [package for package in PACKAGES.get(name, ()) if importlib.util.find_spec(package) is None]
        if missing:
            raise ExportError(
                f"--include {name}: needs {' and '.join(missing)}, not installed here: pip install -r requirements-export.txt"
            )
