"""ONNX files: the operators that they are made of, older opsets, and shapes that tools after us read."""

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from models.checks.layer_case import LayerCase
from models.checks.onnx_checks import onnx_by_tracing as layer_by_tracing
from models.registry import registered_layers
from models.yolo import Model
from tests.few import few
from tests.networks import randomise, tiny_config, tiny_segment_config
from utils.export.formats import onnx_by_tracing
from utils.inference.metadata import ExportMetadata

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

HEADS = ["DDetect", "DualDDetect", "TripleDDetect", "Detect", "V9Detect", "Segment", "DualDSegment"]


def network(head: str) -> Model:
    """A tiny network with a head of this name."""
    config = copy.deepcopy(tiny_segment_config(2 if head == "DualDSegment" else 1) if "Seg" in head else tiny_config())
    row = config["head"][0]
    row[2] = head
    if head in ("DualDDetect", "TripleDDetect"):
        row[0] = row[0] * (2 if head == "DualDDetect" else 3)
    if head == "Segment":
        config["backbone"][2][3][0] = 16
    torch.manual_seed(0)
    return randomise(Model(config)).eval().deploy().eval()


def written(model: Model, dynamic: bool = False, opset: int = 18) -> Any:
    """The ONNX model of a network, by tracing."""
    metadata = ExportMetadata(
        list(model.names), 3, 3, list(model.stride), model.task, [64, 64], 1, dynamic, model.multiple
    )
    content = onnx_by_tracing(model, torch.zeros(2, 3, 64, 64), metadata, opset)
    return onnx.load_model_from_string(content)


def operators(graph: Any) -> Counter[str]:
    return Counter(node.op_type for node in graph.graph.node)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("head", few(HEADS, "TripleDDetect", "Detect", "DualDSegment"))
def test_no_remainder_in_any_head(head: str, dynamic: bool) -> None:
    found = operators(written(network(head), dynamic))
    assert found["Conv"] > 5
    assert found["Mod"] == 0


@pytest.mark.parametrize("name", ["ACmix", "AFPN", "AIFI", "CARAFE", "DySample", "EMAttention", "SCSA", "iRMB"])
def test_no_remainder_in_a_layer(name: str) -> None:
    case = LayerCase.of_example(registered_layers()[name])
    module, given = case.build().eval(), case.given((8, 8), 2)
    with torch.no_grad():
        outputs = module(given)
    outputs = list(outputs) if isinstance(outputs, list | tuple) else [outputs]
    found = operators(onnx.load_model_from_string(layer_by_tracing(module, given, outputs)))
    assert found["Reshape"] > 0
    assert found["Mod"] == 0


@pytest.mark.parametrize("opset", few([11, 12, 13, 17], 11, 17))
def test_older_opsets(opset: int) -> None:
    for head in ("DDetect", "Segment"):
        found = written(network(head), opset=opset)
        onnx.checker.check_model(found)
        assert [entry.version for entry in found.opset_import if entry.domain == ""] == [opset]


@pytest.mark.parametrize("head", ["DDetect", "Segment"])
def test_a_dynamic_file_states_the_channels_of_its_outputs(head: str) -> None:
    shapes = {
        output.name: [size.dim_value or size.dim_param for size in output.type.tensor_type.shape.dim]
        for output in written(network(head), dynamic=True).graph.output
    }
    expected: dict[str, list[Any]] = {"output0": ["batch", 4 + 3 + (4 if head == "Segment" else 0), "anchors"]}
    if head == "Segment":
        expected["prototypes"] = ["batch", 4, "prototypes_height", "prototypes_width"]
    assert shapes == expected


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_quantisation_can_prepare_a_file(dynamic: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preprocess = pytest.importorskip("onnxruntime.quantization.shape_inference").quant_pre_process
    monkeypatch.chdir(tmp_path)  # it leaves a file in the working folder
    onnx.save(written(network("DDetect"), dynamic), tmp_path / "net.onnx")
    preprocess(tmp_path / "net.onnx", tmp_path / "prepared.onnx", auto_merge=dynamic)
    assert operators(onnx.load(tmp_path / "prepared.onnx"))["Conv"] > 5
