"""Write a network as the bytes of an .onnx or .torchscript file, with torch's exporters.

Two exporters write ONNX. The tracing one takes a second and is tried first; torch will remove it, and it may record a
value as a constant that is none. The one on torch.export takes 8 to 25 seconds for gelan-t. utils/runs/export.py
compares every file with the network.
"""

import importlib.util
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from utils.errors import ExportError
from utils.inference.exported import METADATA_FILE
from utils.inference.metadata import INPUT_NAME, OUTPUT_NAMES, ExportMetadata
from utils.onnx_graph.recording import INSTALL, exported_onnx, simplified, traced_onnx
from utils.quiet import quiet

MOST_BATCH, MOST_CELLS = 4096, 4096
"""Upper bounds of a dynamic file: of the batch, and of height and width in steps of `multiple`."""
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
"""Errors that exporters raise for networks that they do not support; torch's own are kinds of `RuntimeError`."""

Writer = Callable[[nn.Module, Tensor, ExportMetadata, int], bytes]


class InferenceForm(nn.Module):
    """A network in evaluation, as a module with images as its only input."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.eval()

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.network(images)


def torchscript_by_tracing(network: nn.Module, images: Tensor, metadata: ExportMetadata, opset: int) -> bytes:
    """Return a network as a TorchScript archive, traced with `images`."""
    buffer = io.BytesIO()
    with quiet(), torch.no_grad():
        traced = torch.jit.trace(InferenceForm(network), (images,), check_trace=False)
        torch.jit.save(
            traced, buffer, _extra_files={METADATA_FILE: json.dumps(asdict(metadata), ensure_ascii=False).encode()}
        )
    return buffer.getvalue()


def onnx_by_tracing(network: nn.Module, images: Tensor, metadata: ExportMetadata, opset: int) -> bytes:
    """Return a network as an ONNX model, traced with `images`."""
    import onnx

    names = OUTPUT_NAMES[metadata.task]
    free: dict[str, dict[int, str]] = {
        INPUT_NAME: {0: "batch", 2: "height", 3: "width"},
        names[0]: {0: "batch", 2: "anchors"},
    }
    free |= {name: {0: "batch", 2: f"{name}_height", 3: f"{name}_width"} for name in names[1:]}
    axes = free if metadata.dynamic else {}
    written = traced_onnx(InferenceForm(network), (images,), [INPUT_NAME], names, axes, opset)
    return finished(onnx.load_model_from_string(written), metadata, opset, output_channels(network, images))


def onnx_by_dynamo(network: nn.Module, images: Tensor, metadata: ExportMetadata, opset: int) -> bytes:
    """Return a network as an ONNX model, made by torch.export."""
    shapes: dict[str, dict[int, Any]] | None = None
    if metadata.dynamic:
        dim, step = torch.export.Dim, metadata.multiple
        height, width = (step * dim(f"{side}_cells", min=1, max=MOST_CELLS) for side in ("height", "width"))
        shapes = {INPUT_NAME: {0: dim("batch", min=1, max=MOST_BATCH), 2: height, 3: width}}
    names = OUTPUT_NAMES[metadata.task]
    model = exported_onnx(InferenceForm(network), (images,), [INPUT_NAME], names, shapes, opset)
    return finished(model, metadata, opset, output_channels(network, images))


def output_channels(network: nn.Module, images: Tensor) -> list[int]:
    """Return the channels of each of the network's outputs."""
    with torch.no_grad():
        outputs = InferenceForm(network)(images)
    return [output.shape[1] for output in (outputs if isinstance(outputs, tuple) else (outputs,))]


def slimmed(content: bytes, metadata: ExportMetadata, opset: int) -> bytes:
    """Return an ONNX model as onnxslim simplifies it.

    Raises:
        ExportError: onnxslim is not installed, or changes the opset.
    """
    import onnx

    return finished(simplified(onnx.load_model_from_string(content)), metadata, opset)


def finished(model: Any, metadata: ExportMetadata, opset: int, channels: Sequence[int] = ()) -> bytes:
    """Return an `onnx.ModelProto` as bytes, with the metadata, without the exporter's notes, which name local files.

    Args:
        channels: of each output, which exporters may leave open in a dynamic file; empty to leave them as they are.
    Raises:
        ExportError: the model has another opset.
    """
    import onnx

    written = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if written != opset:
        raise ExportError(f"the exporter writes opset {written}, {opset} was asked for")
    onnx.helper.set_model_props(model, metadata.entries())
    for output, count in zip(model.graph.output, channels, strict=False):
        output.type.tensor_type.shape.dim[1].dim_value = count
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
"""Writers of each format, in the order in which they are tried."""
PACKAGES = {"onnx": ("onnx", "onnxruntime"), "torchscript": ()}
"""Packages that each format needs beside torch, to write a file and to run it for the comparison."""


def check_packages(formats: tuple[str, ...], simplify: bool = False) -> None:
    """Refuse formats whose packages are not installed.

    Raises:
        ExportError: names them and what to do.
    """
    wanted = [(f"--include {name}", PACKAGES.get(name, ())) for name in formats]
    for flag, packages in [*wanted, *([("--simplify", ("onnxslim",))] if simplify else [])]:
        missing = [package for package in packages if importlib.util.find_spec(package) is None]
        if missing:
            raise ExportError(f"{flag}: needs {' and '.join(missing)}, not installed here: {INSTALL}")
