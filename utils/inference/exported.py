"""Exported networks: .onnx and .torchscript files of export.py, with the interface of a `Model` in evaluation.

A TorchScript file is a program. It cannot reach Python; still, run only files whose origin you trust.
"""

import json
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from utils.errors import CheckpointError, SettingsError
from utils.inference.metadata import INPUT_NAME, OUTPUT_NAMES, ExportMetadata, parse_metadata
from utils.onnx_graph.recording import INSTALL
from utils.onnx_graph.running import OnnxRuntimeError, OnnxSession, available_providers
from utils.wording import first_line

METADATA_FILE = "metadata.json"
MOST_METADATA = 1 << 22
"""Most bytes of metadata; larger ones are not read."""


class Runner(Protocol):
    """The runtime of an exported network."""

    metadata: ExportMetadata

    def to(self, device: torch.device) -> str:
        """Move to a device; return the name of the runtime for the user."""

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Compute the outputs of one batch of the size that the file accepts."""


class OnnxRunner:
    """An .onnx file in onnxruntime."""

    def __init__(self, path: Path) -> None:
        self._path, self._on_cuda = path, False
        self._session = self._open("CPUExecutionProvider")
        self.metadata = parse_metadata(self._session.metadata, str(path))
        self._outputs = list(OUTPUT_NAMES[self.metadata.task])
        self._check_signature()

    def _open(self, *providers: str) -> OnnxSession:
        try:
            return OnnxSession(str(self._path), providers)
        except ImportError as error:
            raise CheckpointError(
                f"{self._path}: onnxruntime is not installed: an .onnx file needs it; {INSTALL}"
            ) from error
        except OnnxRuntimeError as error:
            reason = str(error).removeprefix(f"Load model from {self._path} failed:")
            hint = " (but a zip archive, as .pt and .torchscript files are)" if zipfile.is_zipfile(self._path) else ""
            raise CheckpointError(
                f"{self._path}: no complete ONNX file{hint}: {reason}: expected a file that export.py wrote"
            ) from error

    def _check_signature(self) -> None:
        free = [None, self.metadata.ch, None, None]
        fixed = [self.metadata.batch, self.metadata.ch, *self.metadata.image_hw]
        expected = free if self.metadata.dynamic else fixed
        if self._session.inputs != [(INPUT_NAME, "tensor(float)", expected)] or self._session.outputs != self._outputs:
            raise CheckpointError(
                f"{self._path}: inputs or outputs differ from the metadata: expected '{INPUT_NAME}' {expected} "
                f"and {self._outputs}; export it again"
            )

    def to(self, device: torch.device) -> str:
        wanted = device.type == "cuda"
        if wanted and "CUDAExecutionProvider" not in available_providers():
            return "onnxruntime on the CPU (no CUDA provider; for the GPU: pip install onnxruntime-gpu)"
        if wanted and not self._on_cuda:
            self._session, self._on_cuda = self._open("CUDAExecutionProvider", "CPUExecutionProvider"), True
        return f"onnxruntime ({self._session.providers[0].removesuffix('ExecutionProvider')})"

    def __call__(self, images: Tensor) -> list[Tensor]:
        try:
            outputs = self._session.run({INPUT_NAME: images.cpu()}, self._outputs)
        except OnnxRuntimeError as error:
            raise CheckpointError(f"{self._path}: images {tuple(images.shape)}: onnxruntime stops: {error}") from error
        return [output.to(images.device) for output in outputs]


class TorchScriptRunner:
    """A .torchscript file."""

    def __init__(self, path: Path) -> None:
        self.metadata = parse_metadata(read_torchscript_metadata(path), str(path))
        self._path, self._device = path, torch.device("cpu")
        self._module = self._open()

    def _open(self) -> torch.jit.ScriptModule:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch.jit is deprecated, but these files need it
                module = torch.jit.load(str(self._path), map_location=self._device).eval()
        except (RuntimeError, ValueError) as error:
            reason = first_line(error)
            raise CheckpointError(
                f"{self._path}: no complete TorchScript file: {reason}: expected a file that export.py wrote"
            ) from error
        move_constants(module, self._device)
        return module

    def to(self, device: torch.device) -> str:
        if device != self._device:
            self._device = device
            self._module = self._open()
        return f"TorchScript ({device})"

    def __call__(self, images: Tensor) -> list[Tensor]:
        # with optimisation the second batch of every shape would wait for a compiler, and none runs faster
        with torch.jit.optimized_execution(False):
            outputs = self._module(images.contiguous())
        return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def move_constants(module: torch.jit.ScriptModule, device: torch.device) -> None:
    """Create a traced network's constants (anchor points) on `device`: tracing recorded the device of the export."""
    for part in module.modules():
        try:
            graph: Any = part.graph
        except RuntimeError:  # a container, which has no forward
            continue
        for node in graph.findAllNodes("prim::Constant"):
            if node.output().type().kind() == "DeviceObjType":
                node.s_("value", str(device))


def read_torchscript_metadata(path: Path) -> Mapping[str, str]:
    """Return the metadata's JSON texts by field; nothing of the file is run.

    Raises:
        CheckpointError: not a zip archive, or its metadata cannot be read.
    """
    expected = "expected a file that export.py wrote"
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path}: no complete TorchScript file: {expected}")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [
                one
                for one in archive.infolist()
                if one.filename.endswith(f"/extra/{METADATA_FILE}") and one.file_size <= MOST_METADATA
            ]
            content = json.loads(archive.read(entries[0]).decode()) if entries else {}
    except (
        zipfile.BadZipFile,
        zlib.error,
        ValueError,
        RecursionError,
        EOFError,
        NotImplementedError,
        OSError,
    ) as error:
        raise CheckpointError(f"{path}: metadata cannot be read: {error}: {expected}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: metadata is no JSON object: {expected}")
    return {key: json.dumps(value) for key, value in content.items()}


RUNNERS: dict[str, Callable[[Path], Runner]] = {".onnx": OnnxRunner, ".torchscript": TorchScriptRunner}


class ExportedNetwork(nn.Module):
    """An exported file with the interface of a network in evaluation: it returns what `Model` returns.

    Args:
        path: an .onnx or .torchscript file of export.py.
    Attributes:
        names, nc, stride, multiple, task, channels, pixel_range, category_ids: as for a `Model`.
        static_hw: the only height and width that a static file accepts; None for a dynamic one.
        batch: batch size of a static file; None for a dynamic one. Callers may pass any number of images.
        trained_size: the default image size of a dynamic file.
    Raises:
        CheckpointError: the file is missing, incomplete, or not from export.py.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        if self.path.suffix.lower() not in RUNNERS:
            raise CheckpointError(f"{path}: '{self.path.suffix}': expected an exported file: {' or '.join(RUNNERS)}")
        if not self.path.is_file():
            raise CheckpointError(f"{path}: no such file: expected a file that export.py wrote")
        self._runner: Runner = RUNNERS[self.path.suffix.lower()](self.path)
        metadata = self._runner.metadata
        self.names, self.nc, self.stride, self.multiple, self.task, self.channels = (
            metadata.names,
            metadata.nc,
            metadata.stride,
            metadata.multiple,
            metadata.task,
            metadata.ch,
        )
        self.category_ids = metadata.category_ids
        limits = metadata.pixel_range
        self.pixel_range = None if limits is None else (float(limits[0]), float(limits[1]))
        self.static_hw: tuple[int, int] | None = (
            None if metadata.dynamic else (metadata.image_hw[0], metadata.image_hw[1])
        )
        self.batch = None if metadata.dynamic else metadata.batch
        self.trained_size = max(metadata.image_hw)
        self.runtime = self._runner.to(torch.device("cpu"))
        self.eval()

    def to(self, device: torch.device | str) -> "ExportedNetwork":  # type: ignore[override]  # no other dtype or layout
        """Move to another device; the dtype stays float32."""
        self.runtime = self._runner.to(torch.device(device))
        return self

    def deploy(self, fold: bool = True) -> "ExportedNetwork":
        """Return itself: an exported network is already deployed."""
        return self

    def describe(self) -> str:
        """Describe runtime and size in one line for the start of a run."""
        if self.static_hw is None:
            size = "any size"
        else:
            height, width = self.static_hw
            size = f"static: batches of {self.batch}, padded to {height} x {width} (as a .pt with --no-rect)"
        return f"exported, {self.runtime}, {size}"

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Run the network on (B, ch, H, W) float32 images in [0, 1].

        Returns:
            (B, 4 + nc, A); for segmentation (B, 4 + nc + nm, A) and the prototypes (B, nm, H / 4, W / 4).
        Raises:
            SettingsError: a size that the file does not accept.
        """
        step, (channels, height, width) = self.multiple, images.shape[1:]
        if channels != self.channels or height % step or width % step or self.static_hw not in (None, (height, width)):
            sides = f"multiples of {step}" if self.static_hw is None else "{} x {}".format(*self.static_hw)
            expected = f"{self.channels} channels, height x width {sides}"
            raise SettingsError(f"{self.path}: images of {channels} channels, {height} x {width}: expected {expected}")
        images = images.float()
        outputs = self._runner(images) if self.batch in (None, len(images)) else self._in_batches(images)
        if outputs[0].ndim != 3 or outputs[0].shape[1] < 4 + self.nc:
            raise CheckpointError(
                f"{self.path}: output of shape {tuple(outputs[0].shape)}: expected (batch, {4 + self.nc} or more, "
                "anchor points); export it again"
            )
        return tuple(outputs) if len(outputs) > 1 else outputs[0]

    def _in_batches(self, images: Tensor) -> list[Tensor]:
        """Split images into batches of the fixed size; black images fill the last one."""
        assert self.batch is not None
        missing = -len(images) % self.batch
        filled = torch.cat((images, images.new_zeros(missing, *images.shape[1:])))
        parts = [self._runner(part) for part in filled.split(self.batch)]
        return [torch.cat(outputs)[: len(images)] for outputs in zip(*parts, strict=True)]
