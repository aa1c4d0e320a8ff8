"""Other readers of ONNX: what OpenCV and OpenVINO make of a graph is one clause, and none of them ends our process."""

from pathlib import Path

import pytest
import torch

from utils.onnx_graph import reader_process, readers
from utils.onnx_graph.readers import Reading, read, readings, summary

onnx = pytest.importorskip("onnx")
IMAGES = {"x": torch.linspace(-1, 1, 12).view(1, 1, 3, 4)}


def graph(operator: str = "Relu", **attributes: object) -> bytes:
    """A graph of one node, from x to y."""
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 1, 3, 4]) for name in "xy"]
    nodes = [onnx.helper.make_node(operator, ["x"], ["y"], **attributes)]
    made = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:])
    opset = onnx.helper.make_opsetid("", 13)
    return onnx.helper.make_model(made, opset_imports=[opset], ir_version=8).SerializeToString()


class TestOpenCV:
    def test_reads_and_computes_the_same(self) -> None:
        pytest.importorskip("cv2")
        found = read("OpenCV", graph(), IMAGES, {"y": IMAGES["x"].relu()})
        assert found.reader.startswith("OpenCV ")
        assert found.problem is None
        assert found.describe() == f"{found.reader} reads it"

    def test_an_input_that_the_graph_leaves_out(self) -> None:
        pytest.importorskip("cv2")
        found = readings(graph(), IMAGES | {"unused": torch.zeros(1)}, {"y": IMAGES["x"].relu()})
        assert found[0].problem is None

    def test_other_values_and_other_shapes(self) -> None:
        pytest.importorskip("cv2")
        assert "differs" in str(read("OpenCV", graph(), IMAGES, {"y": IMAGES["x"].relu() + 1}).problem)
        assert "(1, 1, 4, 3)" in str(read("OpenCV", graph(), IMAGES, {"y": torch.zeros(1, 1, 4, 3)}).problem)

    @pytest.mark.parametrize("content", [graph("Bernoulli"), graph("DFT"), b"<html>", b""])
    def test_what_it_cannot_read_is_one_short_line(self, content: bytes, capfd: pytest.CaptureFixture[str]) -> None:
        pytest.importorskip("cv2")
        found = read("OpenCV", content, IMAGES, {"y": IMAGES["x"]})
        assert found.problem
        assert len(found.problem) <= readers.MOST_LETTERS
        assert "\n" not in found.problem
        assert ".cpp" not in found.problem
        assert capfd.readouterr() == ("", "")


def test_a_process_that_dies_or_never_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MOST_SECONDS", 5)
    script = tmp_path / "reader.py"
    monkeypatch.setattr(reader_process, "__file__", str(script))
    script.write_text('import os\nprint(\'{"version": "7"}\', flush=True)\nos.abort()')
    found = read("OpenCV", graph(), IMAGES, IMAGES)
    assert found.reader == "OpenCV 7"
    assert "status" in str(found.problem)
    monkeypatch.setattr(readers, "MOST_SECONDS", 0.2)
    script.write_text("import time\ntime.sleep(60)")
    assert "0.2 s" in str(read("OpenCV", graph(), IMAGES, IMAGES).problem)


def test_operators_that_openvino_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers.importlib.util, "find_spec", lambda name: None)
    assert readings(graph(), {}, {}) == []
    (found,) = readings(graph("DFT"), {}, {})
    assert (found.reader, "DFT" in str(found.problem)) == ("OpenVINO", True)


def test_summary_of_a_traceback() -> None:
    text = (
        '[ WARN:0] noise\nTraceback (most recent call last):\n  File "x.py", line 1, in <module>\ncv2.error: '
        "OpenCV(5.0.0) /io/opencv/modules/dnn/src/a.cpp:95: error: (-215:Assertion failed) a == b in function 'f'\n\n"
    )
    assert summary(text, 1) == "(-215:Assertion failed) a == b in function 'f'"
    assert summary("Segmentation fault", -11).endswith("-11")
    assert Reading("OpenCV 5", "bad").describe() == "OpenCV 5 cannot read it: bad"
