"""Whether other readers of ONNX files compute what the network computes: OpenCV's dnn, and OpenVINO.

A reader runs in a process of its own (reader_process.py), because a graph that it does not expect may end it.
"""

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from utils.onnx_graph import reader_process

PACKAGES = {"OpenCV": "cv2", "OpenVINO": "openvino"}
"""The readers, each with the package that it needs."""
OPENVINO_LACKS = ("DFT",)
"""Operators that OpenVINO does not take from our graphs, for machines where it is not installed."""
MOST_SECONDS = 120
MOST_LETTERS = 160


@dataclass(frozen=True)
class Reading:
    """What a reader makes of a graph.

    Attributes:
        reader: its name and version.
        problem: why it cannot be used for this graph; None if it computes the same.
    """

    reader: str
    problem: str | None

    def describe(self) -> str:
        """One clause for the user."""
        return f"{self.reader} reads it" if self.problem is None else f"{self.reader} cannot read it: {self.problem}"


def readings(graph: bytes, given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[Reading]:
    """Try the readers that are installed.

    Args:
        graph: the content of an .onnx file.
        given: values of its inputs, by name; exporters leave out those that are not used.
        expected: values of its outputs, by name.
    """
    import onnx

    content = onnx.load_model_from_string(graph).graph
    named = {entry.name for entry in content.input}
    given = {name: tensor for name, tensor in given.items() if name in named}
    found = [
        read(reader, graph, given, expected)
        for reader, package in PACKAGES.items()
        if importlib.util.find_spec(package) is not None
    ]
    operators = {node.op_type for node in content.node}
    lacking = sorted(operators.intersection(OPENVINO_LACKS))
    if lacking and importlib.util.find_spec(PACKAGES["OpenVINO"]) is None:
        found.append(Reading("OpenVINO", f"it lacks {', '.join(lacking)} (by its list of operators)"))
    return found


def read(reader: str, graph: bytes, given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Reading:
    """Let one reader run a graph in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        model, values = Path(folder) / "graph.onnx", Path(folder) / "values.npz"
        model.write_bytes(graph)
        arrays: dict[str, Any] = {reader_process.INPUT + name: array_of(tensor) for name, tensor in given.items()}
        arrays |= {reader_process.OUTPUT + name: array_of(tensor) for name, tensor in expected.items()}
        np.savez(values, **arrays)
        command = [sys.executable, reader_process.__file__, PACKAGES[reader], str(model), str(values)]
        try:
            done = subprocess.run(command, capture_output=True, timeout=MOST_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            return Reading(reader, f"it takes more than {MOST_SECONDS} s")
    said: dict[str, str | None] = {"version": ""}
    for line in done.stdout.decode(errors="replace").splitlines():
        if line.startswith("{"):
            said |= json.loads(line)
    name = f"{reader} {said['version']}".strip()
    if not done.returncode:
        return Reading(name, said["problem"])
    return Reading(name, summary(done.stderr.decode(errors="replace"), done.returncode))


def array_of(tensor: Tensor) -> np.ndarray:
    """Return a tensor's values as an array."""
    return tensor.detach().cpu().numpy()


def summary(text: str, status: int) -> str:
    """Return what the last error of a process says, on one line, without the files of the reader's own source."""
    _, found, message = text.rpartition("Traceback (most recent call last):")
    error = re.search(r"^[\w.]+: (.*)", message, re.MULTILINE | re.DOTALL)
    if not found or error is None:
        return f"its process ends with status {status}"
    line = re.sub(r"OpenCV\([^)]*\) \S+:\d+: error: ", "", " ".join(error[1].split()))
    line = re.sub(r"(Exception|Check .*?) (failed )?(at|from) \S+:\d+:?\s*", "", line)
    return line if len(line) <= MOST_LETTERS else line[: MOST_LETTERS - 1] + "…"
