"""ONNX graphs in onnxruntime: its errors are one class of ours, and their text is one line."""

import pytest
import torch

from tests.utils.onnx_graph.test_readers import graph
from utils.onnx_graph.running import OnnxRuntimeError, OnnxSession

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")


def test_a_graph_runs() -> None:
    session = OnnxSession(graph())
    assert session.inputs == [("x", "tensor(float)", [1, 1, 3, 4])]
    assert session.outputs == ["y"]
    x = torch.linspace(-1, 1, 12).view(1, 1, 3, 4)
    (found,) = session.run({"x": x, "unknown": x})
    assert torch.equal(found, x.relu())


@pytest.mark.parametrize("content", [b"", b"<html>", graph("NoSuchOperator")])
def test_what_is_no_graph(content: bytes) -> None:
    with pytest.raises(OnnxRuntimeError) as caught:
        OnnxSession(content)
    assert "\n" not in str(caught.value)
    assert "[ONNXRuntimeError]" not in str(caught.value)


@pytest.mark.parametrize("given", [{}, {"x": torch.zeros(1, 1, 3, 5)}, {"x": torch.zeros(1, 1, 3, 4).long()}])
def test_inputs_that_do_not_fit(given: dict[str, torch.Tensor]) -> None:
    with pytest.raises(OnnxRuntimeError) as caught:
        OnnxSession(graph()).run(given)
    assert "\n" not in str(caught.value)
