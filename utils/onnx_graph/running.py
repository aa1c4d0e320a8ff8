"""ONNX graphs in onnxruntime."""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from utils.wording import first_line

FATAL_ONLY = 4
"""onnxruntime's log level; its errors are raised anyway, and its warnings concern the machine, not the file."""


STATUS = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
"""What stands before the text of onnxruntime's errors."""


class OnnxRuntimeError(RuntimeError):
    """onnxruntime refuses a graph, or stops in it; the text is one line."""


class OnnxSession:
    """A graph in onnxruntime.

    Args:
        graph: the content of an .onnx file, or its path.
        providers: of onnxruntime, the preferred one first.
    Attributes:
        metadata: the file's own entries.
        inputs: name, element type and shape of each input; a free dimension is None.
        outputs: names.
        providers: those in use.
    Raises:
        ImportError: onnxruntime is not installed.
        OnnxRuntimeError: onnxruntime refuses the graph.
    """

    def __init__(self, graph: bytes | str, providers: Sequence[str] = ("CPUExecutionProvider",)) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = FATAL_ONLY
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self._session = onnxruntime.InferenceSession(graph, options, providers=list(providers))
        except failures() as error:
            raise OnnxRuntimeError(reason(error)) from error
        self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        self.inputs = [
            (entry.name, entry.type, [size if isinstance(size, int) else None for size in entry.shape])
            for entry in self._session.get_inputs()
        ]
        self.outputs: list[str] = [entry.name for entry in self._session.get_outputs()]
        self.providers: list[str] = self._session.get_providers()

    def run(self, given: Mapping[str, Tensor], outputs: Sequence[str] | None = None) -> list[Tensor]:
        """Return the outputs, all or those that are named; inputs that the graph does not have are ignored.

        Raises:
            OnnxRuntimeError: a node of the graph cannot be computed with these inputs.
        """
        names = {name for name, _, _ in self.inputs}
        arrays = {name: tensor.contiguous().numpy() for name, tensor in given.items() if name in names}
        try:
            found = self._session.run(list(outputs) if outputs else None, arrays)
        except failures() as error:
            raise OnnxRuntimeError(reason(error)) from error
        return [torch.from_numpy(value) for value in found]


def available_providers() -> list[str]:
    """Return the names of the providers of the installed onnxruntime."""
    import onnxruntime

    return onnxruntime.get_available_providers()


def failures() -> tuple[type[Exception], ...]:
    """Return the errors that onnxruntime raises; its own have no common class of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as states

    own = (kind for kind in vars(states).values() if isinstance(kind, type) and issubclass(kind, Exception))
    return (*own, ValueError, RuntimeError)


def reason(error: Exception) -> str:
    """Return an error's first line without its status codes."""
    return STATUS.sub("", first_line(error)) or type(error).__name__
