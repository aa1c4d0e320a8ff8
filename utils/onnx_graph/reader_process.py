"""A process that runs one ONNX graph in one other reader; see readers.py. It imports nothing of this framework.

`python reader_process.py cv2|openvino GRAPH.onnx VALUES.npz` prints the `version` of the reader, and then the
`problem`, which is null if the outputs are those of the file; each is a JSON object on a line. A reader's own error
ends the process with a traceback.
"""

import importlib.metadata
import json
import sys
from collections.abc import Callable

import numpy as np

INPUT, OUTPUT = "input ", "output "
"""What stands before a name in the file of values."""
MOST_RELATIVE = 1e-3
"""Largest difference of an output over its largest value."""
Arrays = dict[str, np.ndarray]


def by_cv2(path: str, given: Arrays, names: list[str]) -> list[np.ndarray]:
    """Return the outputs of a graph in OpenCV's dnn."""
    import cv2

    network = cv2.dnn.readNetFromONNX(path)
    for name, value in given.items():
        network.setInput(value, name)
    return list(network.forward(names))


def by_openvino(path: str, given: Arrays, names: list[str]) -> list[np.ndarray]:
    """Return the outputs of a graph in OpenVINO, on the CPU, in float32."""
    import openvino

    found = openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(given)
    return [found[name] for name in names]


READERS: dict[str, Callable[[str, Arrays, list[str]], list[np.ndarray]]] = {"cv2": by_cv2, "openvino": by_openvino}
DISTRIBUTIONS = {"cv2": ("opencv-python", "opencv-python-headless"), "openvino": ("openvino",)}


def version(package: str) -> str:
    """Return the version of a reader."""
    for name in DISTRIBUTIONS[package]:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def problem_of(package: str, path: str, values: Arrays) -> str | None:
    """Return why a reader cannot be used for a graph; None if it computes the outputs in `values`."""
    given = {key.removeprefix(INPUT): value for key, value in values.items() if key.startswith(INPUT)}
    expected = {key.removeprefix(OUTPUT): value for key, value in values.items() if key.startswith(OUTPUT)}
    found = READERS[package](path, given, list(expected))
    for name, value, other in zip(expected, expected.values(), found, strict=True):
        if value.shape != other.shape:
            return f"{name} has the shape {other.shape}, expected {value.shape}"
        gap = np.abs(other.astype(np.float64) - value).max(initial=0) / max(np.abs(value).max(initial=0), 1e-12)
        if not gap <= MOST_RELATIVE:
            return f"{name} differs by {gap:.1e} of its largest value"
    return None


def main(arguments: list[str]) -> None:
    """Run one graph in one reader, and print what is wrong."""
    package, path, values = arguments
    print(json.dumps({"version": version(package)}), flush=True)
    with np.load(values) as archive:
        print("\n" + json.dumps({"problem": problem_of(package, path, dict(archive))}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
