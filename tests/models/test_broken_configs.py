"""Broken network files: one message each that says where, what was there and what was expected; never a traceback."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from models.yolo import Model
from tests.networks import tiny_config
from utils.errors import ModelConfigError

CONV = r"the layer is Conv\(out_channels: int, kernel_size: int = 1, stride: int = 1, padding: int \| None = None"


def broken(**keys: Any) -> dict[str, Any]:
    """The tiny network with other keys."""
    return tiny_config() | keys


def row(*content: Any, **keys: Any) -> dict[str, Any]:
    """The tiny network with a sixth row in its backbone (layer 5)."""
    return broken(backbone=[*tiny_config()["backbone"], list(content)], **keys)


def rows(*content: list[Any]) -> dict[str, Any]:
    """The tiny network with further rows in its backbone, from layer 5 on."""
    return broken(backbone=[*tiny_config()["backbone"], *content])


def head(*content: Any) -> dict[str, Any]:
    """The tiny network with another head section."""
    return broken(head=list(content))


LAYER_5 = r"network: backbone\[5\] \(layer 5\): "
DETECT = [[2, 3, 4], 1, "DDetect", ["nc"]]
CASES: dict[str, tuple[dict[str, Any], str]] = {
    # layers and their arguments
    "unknown layer": (
        row(-1, 1, "Cnov", [8]),
        LAYER_5 + r"\[-1, 1, Cnov, \[8\]\]: unknown layer 'Cnov'\. Did you mean 'Conv'\?",
    ),
    "layer of another name": (row(-1, 1, "SEE", [16]), r"unknown layer 'SEE'"),
    "too few arguments": (row(-1, 1, "Conv", []), r"missing argument 'out_channels': " + CONV),
    "too many arguments": (
        row(-1, 1, "SPPELAN", [8, 4, 3]),
        r"too many .*the layer is SPPELAN\(out_channels: int, hidden_channels: int\) and got \[8, 4, 3\]",
    ),
    "string for a number": (
        row(-1, 1, "Conv", [64, 3, "tow"]),
        r"\[-1, 1, Conv, \[64, 3, tow\]\]: argument 'stride' is 'tow', expected int: " + CONV,
    ),
    "code for a number": (row(-1, 1, "Conv", [64, "1 + 2"]), r"argument 'kernel_size' is '1 \+ 2', expected int"),
    "None for a number": (row(-1, 1, "Conv", [8, "None"]), r"argument 'kernel_size' is None, expected int"),
    "list for a number": (row(-1, 1, "Conv", [8, [3, 3]]), r"argument 'kernel_size' is \[3, 3\], expected int"),
    "unknown keyword": (
        row(-1, 1, "Conv", [8, {"strides": 2}]),
        r"unknown argument 'strides': .* Did you mean 'stride'\?",
    ),
    "argument given twice": (row(-1, 1, "Conv", [8, {"out_channels": 8}]), r"argument 'out_channels' is given twice"),
    "argument of the rule": (
        row(-1, 1, "Conv", [{"in_channels": 8, "out_channels": 8}]),
        r"unknown argument 'in_channels'",
    ),
    "no channels": (row(-1, 1, "Conv", [0, 3]), r"out_channels is 0: expected a positive number"),
    "groups": (row(-1, 1, "Conv", [8, 3, 1, 1, 3]), r"cannot be built with .*'groups': 3.* divisible by groups"),
    "stride 0": (
        row(-1, 1, "Conv", [8, 3, 0]),
        LAYER_5 + r".*does not fit its input .*layer 4 \(Conv\) gives 8 x 8 x 8",
    ),
    "arguments to a layer without": (row(-1, 1, "Silence", [3]), r"the layer is Silence\(\) and got \[3\]"),
    "upsampling mode": (row(-1, 1, "nn.Upsample", [None, 2, "nearst"]), LAYER_5 + r".*does not fit its input"),
    "upsampling factor": (row(-1, 1, "nn.Upsample", [None, "two"]), r"argument 'scale_factor' is 'two', expected"),
    "more hidden width than fits": (row(-1, 1, "ELAN1", [8, 1, 1]), LAYER_5 + r".*does not fit its input"),
    "dropout": (row(-1, 1, "FocalModulationBlock", [{"drop": 2.0}]), r"cannot be built with .*'drop': 2\.0"),
    # rows
    "row of three": (row(-1, 1, "Conv"), LAYER_5 + r"\[-1, 1, Conv\]: expected \[from, repeats, layer, arguments\]"),
    "row that is a string": (rows("Conv"), LAYER_5 + r"Conv: expected \[from, repeats, layer, arguments\]"),
    "empty row": (rows(None), LAYER_5 + r"null: expected \[from, repeats, layer, arguments\]"),
    "from is a label of no row": (row("P3", 1, "Conv", [8]), r"'from' asks for 'P3': no row before it has a label"),
    "from is nearly a label": (
        rows([-1, 1, "Conv", [8], "stem"], ["stm", 1, "Conv", [8]]),
        r"\(layer 6\): .*: 'from' asks for 'stm': the labels of the rows before it are stem\. Did you mean 'stem'\?",
    ),
    "from is a later label": (
        rows(["late", 1, "Conv", [8], "early"], [-1, 1, "Conv", [8], "late"]),
        r"\(layer 5\): .*: 'from' asks for 'late': no row before it has a label",
    ),
    "from is its own label": (
        rows([["me", -1], 1, "Concat", [], "me"]),
        r"'from' asks for 'me': no row before it has a label",
    ),
    "from is a fraction": (
        row(0.5, 1, "Conv", [8]),
        r"'from' is 0\.5: expected a layer's index or label, or a list of them",
    ),
    "a label twice": (
        rows([-1, 1, "Conv", [8], "p3"], [-1, 1, "Conv", [8], "p3"]),
        r"label 'p3' is taken by layer 5: choose another",
    ),
    "a label that is a number": (
        rows([-1, 1, "Conv", [8], 3]),
        r"label is 3: expected a word of letters, digits and _, such as p4",
    ),
    "a label of two words": (rows([-1, 1, "Conv", [8], "p 3"]), r"label is 'p 3': expected a word"),
    "a label that means something": (
        rows([-1, 1, "Conv", [8], "head"]),
        r"label is 'head': this word means something else: choose another, such as head_row",
    ),
    "six items": (
        rows([-1, 1, "Conv", [8], "p3", 1]),
        r"expected \[from, repeats, layer, arguments\] or \[from, repeats, layer, arguments, label\]",
    ),
    "from is empty": (row([], 1, "Conv", [8]), r"'from' is \[\]: expected"),
    "from is a bool": (row(True, 1, "Conv", [8]), r"'from' is True: expected"),
    "repeats 0": (row(-1, 0, "Conv", [8]), r"repeats is 0: expected a positive integer"),
    "repeats fraction": (row(-1, 1.5, "Conv", [8]), r"repeats is 1\.5: expected a positive integer"),
    "layer is no name": (row(-1, 1, 3, [8]), r"layer is 3: expected a layer's name"),
    "arguments are no list": (row(-1, 1, "Conv", 8), r"arguments are 8: expected a list"),
    "arguments are a mapping": (
        row(-1, 1, "Conv", {"out_channels": 8}),
        r"arguments are \{'out_channels': 8\}: expected a list",
    ),
    # what rows are connected to
    "from ahead": (row(9, 1, "Conv", [8]), r"'from' asks for layer 9, but only layers 0\.\.4 exist yet"),
    "from itself": (row(5, 1, "Conv", [8]), r"'from' asks for layer 5, but only layers 0\.\.4 exist yet"),
    "from before the image": (row(-9, 1, "Conv", [8]), r"'from' asks for layer -9, but only layers 0\.\.4 exist yet"),
    "first row from itself": (
        broken(backbone=[[0, 1, "Conv", [8]]]),
        r"'from' asks for layer 0, but this is the first layer: its input is the image, -1",
    ),
    "two inputs for one": (row([3, 4], 1, "Conv", [8]), r"'from' names 2 layers: this layer takes one input"),
    "one input for several": (row(-1, 1, "Concat", [1]), LAYER_5 + r"\[-1, 1, Concat, \[1\]\]: does not fit its input"),
    "sizes at Concat": (
        row([-1, 3], 1, "Concat", [1]),
        r"\[\[-1, 3\], 1, Concat, \[1\]\]: does not fit .*: layer 4 \(Conv\) gives 8 x 8 x 8, layer 3 \(Conv\) gives 8 x 16 x 16: Sizes",
    ),
    "dimension of Concat": (
        row([3, 3], 1, "Concat", [2]),
        r"dimension 2: maps are concatenated along channels, dimension 1",
    ),
    "channels at CBFuse": (
        rows([4, 1, "CBLinear", [[4, 16]]], [[5, 4], 1, "CBFuse", [[1]]]),
        r"backbone\[6\] \(layer 6\): .*channels differ: element 1 of input 0 of 'from' has 16 of \[4, 16\], the last input has 8",
    ),
    "element at CBFuse": (
        rows([4, 1, "CBLinear", [[4, 8]]], [[5, 4], 1, "CBFuse", [[2]]]),
        r"input 0 of 'from' has channels \[4, 8\]: no element 2 to pick",
    ),
    "CBFuse of a map": (
        row([3, 4], 1, "CBFuse", [[0]]),
        r"input 0 of 'from' has channels 8: no element 0 to pick \(a CBLinear was expected\)",
    ),
    "CBFuse picks too few": (
        rows([4, 1, "CBLinear", [[8]]], [[5, 5, 4], 1, "CBFuse", [[0]]]),
        r"index \[0\] picks from 1 inputs, but 'from' names 2",
    ),
    "list of maps for a map": (
        rows([4, 1, "CBLinear", [[8]]], [-1, 1, "Conv", [8]]),
        r"the input is a list of 1 maps: this layer takes one: pick one by a row \[-1, 1, Pick, \[0\]\] before it",
    ),
    "focal block of another width": (
        row(-1, 1, "FocalModulationBlock", [16]),
        r"out_channels 16 after 8 channels: a residual block keeps its width; leave it out",
    ),
    "even focal window": (
        row(-1, 1, "FocalModulation", [4]),
        r"give kernels \[4, 6\]: each must be odd and positive; try focal_window 5",
    ),
    "even focal window in a block": (
        row(-1, 1, "FocalModulationBlock", [8, {"focal_window": 2}]),
        r"focal_window 2, .* try focal_window 3",
    ),
    # heads
    "no head": (
        head([-1, 1, "Conv", [8]]),
        r"head\[0\] \(layer 5\): .*: the last row must be a head, such as DDetect: \[nc\]",
    ),
    "row after the head": (
        head(DETECT, [4, 1, "Conv", [8]]),
        r"head\[1\] \(layer 6\): .*: the last row must be a head",
    ),
    "row on the head": (head(DETECT, [-1, 1, "Conv", [8]]), r"head\[1\] \(layer 6\)"),
    "dual head on three": (
        head([[2, 3, 4], 1, "DualDDetect", ["nc"]]),
        r"'from' names 3 layers: a head of 2 branches takes a multiple of 2",
    ),
    "triple head on four": (
        head([[2, 3, 4, 4], 1, "TripleDDetect", ["nc"]]),
        r"'from' names 4 layers: a head of 3 branches takes a multiple of 3",
    ),
    "head without nc": (
        head([[2, 3, 4], 1, "DDetect", []]),
        r"missing argument 'num_classes': the layer is DDetect\(num_classes: int, box_groups: int \| None = None, ",
    ),
    "head of other classes": (
        head([[2, 3, 4], 1, "DDetect", [7]]),
        r"the head has 7 classes, and nc is 3: write nc in the row",
    ),
    "head of no classes": (head([[2, 3, 4], 1, "DDetect", [0]]), r"the head has 0 classes, and nc is 3"),
    "head on a list of maps": (
        broken(
            backbone=[*tiny_config()["backbone"], [4, 1, "CBLinear", [[8]]]], head=[[[2, 3, 5], 1, "DDetect", ["nc"]]]
        ),
        r"the input is a list of 1 maps: this layer takes one: pick one by a row",
    ),
    "levels out of order": (
        head([[4, 3, 2], 1, "DDetect", ["nc"]]),
        r"its levels have strides 32, 16, 8: expected powers of 2, ascending",
    ),
    "branches at other strides": (
        head([[1, 2, 3, 2, 3, 4], 1, "DualDDetect", ["nc"]]),
        r"have strides 4, 8, 16; 8, 16, 32: expected .* alike in every branch",
    ),
    "a stride of three": (
        broken(backbone=[[-1, 1, "Conv", [8, 3, 3]], *tiny_config()["backbone"][1:]]),
        r"its levels have strides 11\.64, 23\.27, 42\.67",
    ),
    "prototypes without an input": (
        head([[2, 3, 4], 1, "DualDSegment", ["nc"]]),
        r"'from' names 3 layers: a head of 2 branches takes a multiple of 2, the last 2 of them for prototypes",
    ),
    "prototypes and no levels": (
        head([[4], 1, "DSegment", ["nc"]]),
        r"'from' names 1 layers: a head of 1 branches takes",
    ),
    "prototypes of another size": (
        head([[2, 3, 4, 3], 1, "DSegment", ["nc"]]),
        r"\(layer 5\): .*: its prototypes have stride 16: expected 4, a map of a quarter of the image",
    ),
    "prototypes above stride 8": (head([[3, 4], 1, "Segment", ["nc"]]), r"its prototypes have stride 8: expected 4"),
    "no masks": (head([[2, 3, 4], 1, "Segment", ["nc", 0]]), r"num_masks is 0: expected a positive number"),
    "no hidden width": (
        head([[2, 3, 4], 1, "DDetect", ["nc", {"class_width": 0}]]),
        r"class_width is 0: expected a positive number",
    ),
    "class towers of another kind": (
        head([[2, 3, 4], 1, "Detect", ["nc", {"cls": "wide"}]]),
        r"argument 'cls' is 'wide', expected",
    ),
    "letters that are no scales": (
        {**row(-1, 1, "C3k2", [8, "tow"]), "scales": {"n": [1.0, 1.0]}, "scale": "n"},
        r"c3k is 'tow': expected true, false",
    ),
    "letters without scales": (
        row(-1, 1, "C3k2", [8, "mlx"]),
        r"c3k 'mlx' names scales, and this network has none: write True or False",
    ),
    "attention of another width": (
        row(-1, 1, "C2PSA", [16]),
        r"out_channels 16 after 8 channels: this block keeps its width",
    ),
    "attention heads that do not split": (
        rows([-1, 1, "Conv", [400]], [-1, 1, "C2PSA", [400]]),
        r"\(layer 6\): .*: 200 channels do not split into 3 attention heads: choose a width that is a multiple of 3",
    ),
    # keys
    "folded": (broken(folded="yes"), r"network: folded is 'yes': expected true or false"),
    "unknown key": (
        broken(bakbone=[]),
        r"network: unknown key 'bakbone': expected one of nc, ch, .* Did you mean 'backbone'\?",
    ),
    "empty head": (
        broken(head=[]),
        r"network: 'head' is \[\]: expected a list of rows \[from, repeats, layer, arguments\]",
    ),
    "empty backbone": (broken(backbone=None), r"network: 'backbone' is None: expected a list of rows"),
    "head is a mapping": (broken(head={"a": 1}), r"'head' is \{'a': 1\}: expected a list of rows"),
    "nc missing": (
        {key: value for key, value in tiny_config().items() if key != "nc"},
        r"network: nc is None: expected a positive integer",
    ),
    "nc 0": (broken(nc=0), r"nc is 0: expected a positive integer"),
    "nc bool": (broken(nc=True), r"nc is True: expected a positive integer"),
    "nc string": (broken(nc="3"), r"nc is '3': expected a positive integer"),
    "ch 0": (broken(ch=0), r"ch is 0: expected a positive integer"),
    "too few names": (broken(names=["a", "b"]), r"names has 2 entries, nc is \d+: expected as many"),
    "names": (broken(names=4), r"names is 4: expected a list, or a mapping"),
    "activation": (broken(activation="Swish"), r"activation 'Swish': expected one of SiLU, ReLU, "),
    "activation is code": (broken(activation="nn.SiLU(exit())"), r"activation 'nn\.SiLU\(exit\(\)\)': expected one of"),
    "activation is no name": (broken(activation=3), r"activation '3': expected one of"),
    "scales without a choice": (
        broken(scales={"n": [0.3, 0.25, 1024], "s": [0.3, 0.5, 1024]}),
        r"scale None: choose one of n, s with --scale",
    ),
    "unknown scale": (broken(scales={"n": [0.3, 0.25, 1024]}, scale="q"), r"scale 'q': choose one of n with --scale"),
    "scale of a yaml without scales": (broken(scale="n"), r"scale 'n': this yaml has no 'scales' to choose from"),
    "scales are a list": (
        broken(scales=[0.3, 0.25]),
        r"scales are \[0\.3, 0\.25\]: expected a mapping of letters to \[depth, width, most channels\]",
    ),
    "scale is a number": (broken(scales={"n": 0.5}, scale="n"), r"scales are \{'n': 0\.5\}: expected a mapping"),
    "width is a string": (
        broken(width_multiple="half"),
        r"depth and width multiple are \[1\.0, 'half'\]: expected positive numbers",
    ),
    "width 0": (broken(width_multiple=0), r"depth and width multiple are \[1\.0, 0\]: expected positive numbers"),
    "width infinite": (broken(width_multiple=float("inf")), r"expected positive numbers"),
    "depth negative": (
        broken(depth_multiple=-1),
        r"depth and width multiple are \[-1, 1\.0\]: expected positive numbers",
    ),
    "cap on channels": (broken(max_channels="many"), r"max_channels is 'many': expected a positive integer"),
    "width of a GELAN block": (
        row(-1, 1, "RepNCSPELAN4", [8, 8, 4, 1], width_multiple=0.5),
        r"width_multiple 0\.5: this layer's hidden widths .*set width_multiple to 1\.0",
    ),
    "width of CBLinear": (row(-1, 1, "CBLinear", [[8]], width_multiple=0.5), r"width_multiple 0\.5"),
}


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(("config", "message"), CASES.values(), ids=CASES)
def test_mapping(config: dict[str, Any], message: str) -> None:
    before = copy.deepcopy(config)
    with torch.device("meta"), pytest.raises(ModelConfigError, match=message) as caught:
        Model(config)
    assert config == before, "the caller's mapping is left alone"
    assert "\n" not in str(caught.value)


FILES: dict[str, tuple[bytes, str]] = {
    "syntax": (b"nc: 3\nbackbone:\n  - [-1, 1, Conv, [8, 3, 2]\nhead: []\n", r"line 4, column 1: not valid yaml: "),
    "tab": (b"nc: 3\nbackbone:\n\t- [-1, 1, Conv, [8]]\n", r"line 3, column 1: not valid yaml: .*\\t"),
    "object": (
        b"nc: !!python/object/apply:os.getcwd []\n",
        r"line 1, column 5: not valid yaml: could not determine a constructor",
    ),
    "control character": (b"nc: \x00\n", r"not valid yaml"),
    "not text": (b"nc: \xff\xfe\n", r"not valid yaml: .*UTF-8"),
    "empty": (b"", r"holds NoneType: expected the keys nc, backbone and head"),
    "list": (b"- 1\n- 2\n", r"holds list: expected the keys nc, backbone and head"),
    "text": (b"<html>not found</html>", r"holds str: expected the keys"),
    "no rows": (b"nc: 3\nbackbone:\nhead:\n", r"'backbone' is None: expected a list of rows"),
}


@pytest.mark.parametrize(("content", "message"), FILES.values(), ids=FILES)
def test_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(ModelConfigError, match=re.escape(str(path)) + ": .*" + message):
        Model(path)


def test_message_of_a_file_names_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "nc: 3\nbackbone:\n  - [-1, 1, Conv, [8, 3, 2]]\n  - [-1, 1, Connv, [8, 3, 2]]\nhead:\n  - [[0, 1], 1, DDetect, [nc]]\n"
    )
    with pytest.raises(ModelConfigError) as caught:
        Model(path)
    assert (
        str(caught.value)
        == f"{path}:4: backbone[1] (layer 1): [-1, 1, Connv, [8, 3, 2]]: unknown layer 'Connv'. Did you mean 'Conv'?"
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("yolov9-q.yaml", r"yolov9-q\.yaml: no such network yaml: .*Did you mean 'yolov9-\w+\.yaml'\?"),
        (
            "gelan-x",
            r"gelan-x: no such network yaml: expected a path or the name of a shipped one\. Did you mean 'gelan-",
        ),
        ("", r"no such network yaml"),
        (".", r"no such network yaml"),
    ],
)
def test_no_such_file(name: str, message: str) -> None:
    with pytest.raises(ModelConfigError, match=message):
        Model(name)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "net.yaml").mkdir()
    with pytest.raises(ModelConfigError, match=r"net\.yaml: no such network yaml"):
        Model(tmp_path / "net.yaml")
