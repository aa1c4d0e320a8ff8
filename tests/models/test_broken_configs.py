"""Broken network files: one message each that says where, what was there and what was expected; never a traceback."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from models.yolo import Model
from tests.networks import tiny_config
from tests.saying import assert_says
from utils.errors import ModelConfigError


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


DETECT = [[2, 3, 4], 1, "DDetect", ["nc"]]
CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    # layers and their arguments
    "unknown layer": (
        row(-1, 1, "Cnov", [8]),
        ["network: backbone[5] (layer 5): [-1, 1, Cnov, [8]]", "'Cnov'", "'Conv'"],
    ),
    "layer of another name": (
        row(-1, 1, "SEE", [16]),
        ["network: backbone[5] (layer 5): [-1, 1, SEE, [16]]", "layer 'SEE'", "'SE'"],
    ),
    "too few arguments": (
        row(-1, 1, "Conv", []),
        ["'out_channels'", "Conv(out_channels: int, kernel_size: int = 1, stride: int = 1, padding: int | None = None"],
    ),
    "too many arguments": (
        row(-1, 1, "SPPELAN", [8, 4, 3]),
        ["SPPELAN(out_channels: int, hidden_channels: int)", "[8, 4, 3]", "too many"],
    ),
    "string for a number": (
        row(-1, 1, "Conv", [64, 3, "tow"]),
        ["[-1, 1, Conv, [64, 3, tow]]", "argument 'stride'", "expected int", "Conv(out_channels: int"],
    ),
    "code for a number": (row(-1, 1, "Conv", [64, "1 + 2"]), ["argument 'kernel_size'", "'1 + 2'", "expected int"]),
    "None for a number": (row(-1, 1, "Conv", [8, "None"]), ["argument 'kernel_size'", "is None", "expected int"]),
    "list for a number": (row(-1, 1, "Conv", [8, [3, 3]]), ["argument 'kernel_size'", "is [3, 3]", "expected int"]),
    "unknown keyword": (
        row(-1, 1, "Conv", [8, {"strides": 2}]),
        ["'strides'", "'stride'"],
    ),
    "argument given twice": (row(-1, 1, "Conv", [8, {"out_channels": 8}]), ["argument 'out_channels'", "twice"]),
    "argument of the rule": (
        row(-1, 1, "Conv", [{"in_channels": 8, "out_channels": 8}]),
        ["'in_channels'"],
    ),
    "no channels": (row(-1, 1, "Conv", [0, 3]), ["out_channels is 0", "1 to 16384"]),
    "groups": (row(-1, 1, "Conv", [8, 3, 1, 1, 3]), ["'groups': 3", "divisible"]),
    "stride 0": (
        row(-1, 1, "Conv", [8, 3, 0]),
        ["backbone[5] (layer 5)", "stride is 0", "1 to 32"],
    ),
    "arguments to a layer without": (row(-1, 1, "Silence", [3]), ["Silence()", "got [3]"]),
    "upsampling mode": (
        row(-1, 1, "nn.Upsample", [None, 2, "nearst"]),
        ["backbone[5] (layer 5)", "input", "256 x 256"],
    ),
    "upsampling factor": (row(-1, 1, "nn.Upsample", [None, "two"]), ["'scale_factor'", "'two'"]),
    "more hidden width than fits": (row(-1, 1, "ELAN1", [8, 1, 1]), ["backbone[5] (layer 5)", "input", "256 x 256"]),
    "dropout": (row(-1, 1, "FocalModulationBlock", [{"drop": 2.0}]), ["drop is 2.0", "less than 1"]),
    # rows
    "row of three": (row(-1, 1, "Conv"), ["backbone[5] (layer 5): [-1, 1, Conv]", "[from, repeats, layer, arguments]"]),
    "row that is a string": (rows("Conv"), ["backbone[5] (layer 5): Conv", "[from, repeats, layer, arguments]"]),
    "empty row": (rows(None), ["backbone[5] (layer 5): null", "[from, repeats, layer, arguments]"]),
    "from is a label of no row": (row("P3", 1, "Conv", [8]), ["'from'", "'P3'", "no row before it has a label"]),
    "from is nearly a label": (
        rows([-1, 1, "Conv", [8], "stem"], ["stm", 1, "Conv", [8]]),
        ["(layer 6)", "asks for 'stm'", "'stem'"],
    ),
    "from is a later label": (
        rows(["late", 1, "Conv", [8], "early"], [-1, 1, "Conv", [8], "late"]),
        ["(layer 5)", "asks for 'late'"],
    ),
    "from is its own label": (
        rows([["me", -1], 1, "Concat", [], "me"]),
        ["asks for 'me'"],
    ),
    "from is a fraction": (
        row(0.5, 1, "Conv", [8]),
        ["'from' is 0.5", "index", "label"],
    ),
    "a label twice": (
        rows([-1, 1, "Conv", [8], "p3"], [-1, 1, "Conv", [8], "p3"]),
        ["label 'p3'", "layer 5", "(layer 6)"],
    ),
    "a label that is a number": (
        rows([-1, 1, "Conv", [8], 3]),
        ["label is 3", "word"],
    ),
    "a label of two words": (rows([-1, 1, "Conv", [8], "p 3"]), ["label is 'p 3'", "word"]),
    "a label that means something": (
        rows([-1, 1, "Conv", [8], "head"]),
        ["label is 'head'", "head_row"],
    ),
    "six items": (
        rows([-1, 1, "Conv", [8], "p3", 1]),
        ["[from, repeats, layer, arguments]", "[from, repeats, layer, arguments, label]"],
    ),
    "from is empty": (row([], 1, "Conv", [8]), ["'from' is []"]),
    "from is a bool": (row(True, 1, "Conv", [8]), ["'from' is True"]),
    "repeats 0": (row(-1, 0, "Conv", [8]), ["repeats is 0", "positive integer"]),
    "repeats fraction": (row(-1, 1.5, "Conv", [8]), ["repeats is 1.5", "positive integer"]),
    "layer is no name": (row(-1, 1, 3, [8]), ["layer is 3", "name"]),
    "arguments are no list": (row(-1, 1, "Conv", 8), ["arguments are 8", "list"]),
    "arguments are a mapping": (
        row(-1, 1, "Conv", {"out_channels": 8}),
        ["arguments are {'out_channels': 8}", "list"],
    ),
    # what rows are connected to
    "from ahead": (row(9, 1, "Conv", [8]), ["asks for layer 9", "0..4"]),
    "from itself": (row(5, 1, "Conv", [8]), ["asks for layer 5", "0..4"]),
    "from before the image": (row(-9, 1, "Conv", [8]), ["asks for layer -9", "0..4"]),
    "first row from itself": (
        broken(backbone=[[0, 1, "Conv", [8]]]),
        ["asks for layer 0", "first layer", "image, -1"],
    ),
    "two inputs for one": (row([3, 4], 1, "Conv", [8]), ["'from'", "2 layers", "one input"]),
    "one input for several": (
        row(-1, 1, "Concat", [1]),
        ["backbone[5] (layer 5)", "input", "256 x 256", "layer 4 (Conv) gives 8 x 8 x 8"],
    ),
    "sizes at Concat": (
        row([-1, 3], 1, "Concat", [1]),
        ["[[-1, 3], 1, Concat, [1]]", "layer 4 (Conv) gives 8 x 8 x 8", "layer 3 (Conv) gives 8 x 16 x 16", "Sizes"],
    ),
    "dimension of Concat": (
        row([3, 3], 1, "Concat", [2]),
        ["dimension 2", "dimension 1"],
    ),
    "channels at CBFuse": (
        rows([4, 1, "CBLinear", [[4, 16]]], [[5, 4], 1, "CBFuse", [[1]]]),
        ["backbone[6] (layer 6)", "element 1 of input 0", "16 of [4, 16]", "has 8"],
    ),
    "element at CBFuse": (
        rows([4, 1, "CBLinear", [[4, 8]]], [[5, 4], 1, "CBFuse", [[2]]]),
        ["input 0", "channels [4, 8]", "no element 2"],
    ),
    "CBFuse of a map": (
        row([3, 4], 1, "CBFuse", [[0]]),
        ["input 0", "channels 8", "no element 0", "CBLinear"],
    ),
    "CBFuse picks too few": (
        rows([4, 1, "CBLinear", [[8]]], [[5, 5, 4], 1, "CBFuse", [[0]]]),
        ["index [0]", "1 inputs", "names 2"],
    ),
    "list of maps for a map": (
        rows([4, 1, "CBLinear", [[8]]], [-1, 1, "Conv", [8]]),
        ["list of 1 maps", "[-1, 1, Pick, [0]]"],
    ),
    "focal block of another width": (
        row(-1, 1, "FocalModulationBlock", [16]),
        ["out_channels 16", "8 channels"],
    ),
    "even focal window": (
        row(-1, 1, "FocalModulation", [4]),
        ["kernels [4, 6]", "focal_window 5"],
    ),
    "even focal window in a block": (
        row(-1, 1, "FocalModulationBlock", [8, {"focal_window": 2}]),
        ["focal_window 2", "focal_window 3"],
    ),
    # heads
    "no head": (
        head([-1, 1, "Conv", [8]]),
        ["head[0] (layer 5)", "head", "DDetect: [nc]"],
    ),
    "row after the head": (
        head(DETECT, [4, 1, "Conv", [8]]),
        ["head[1] (layer 6)", "last row", "head"],
    ),
    "row on the head": (head(DETECT, [-1, 1, "Conv", [8]]), ["head[1] (layer 6)"]),
    "dual head on three": (
        head([[2, 3, 4], 1, "DualDDetect", ["nc"]]),
        ["3 layers", "2 branches", "multiple of 2"],
    ),
    "triple head on four": (
        head([[2, 3, 4, 4], 1, "TripleDDetect", ["nc"]]),
        ["4 layers", "3 branches", "multiple of 3"],
    ),
    "head without nc": (
        head([[2, 3, 4], 1, "DDetect", []]),
        ["'num_classes'", "DDetect(num_classes: int, box_groups: int | None = None"],
    ),
    "head of other classes": (
        head([[2, 3, 4], 1, "DDetect", [7]]),
        ["7 classes", "nc is 3"],
    ),
    "head of no classes": (head([[2, 3, 4], 1, "DDetect", [0]]), ["0 classes", "nc is 3"]),
    "head on a list of maps": (
        broken(
            backbone=[*tiny_config()["backbone"], [4, 1, "CBLinear", [[8]]]], head=[[[2, 3, 5], 1, "DDetect", ["nc"]]]
        ),
        ["list of 1 maps", "[-1, 1, Pick, [0]]"],
    ),
    "levels out of order": (
        head([[4, 3, 2], 1, "DDetect", ["nc"]]),
        ["strides 32, 16, 8", "ascending"],
    ),
    "branches at other strides": (
        head([[1, 2, 3, 2, 3, 4], 1, "DualDDetect", ["nc"]]),
        ["4, 8, 16; 8, 16, 32"],
    ),
    "a stride of three": (
        broken(backbone=[[-1, 1, "Conv", [8, 3, 3]], *tiny_config()["backbone"][1:]]),
        ["11.64", "23.27", "42.67"],
    ),
    "prototypes without an input": (
        head([[2, 3, 4], 1, "DualDSegment", ["nc"]]),
        ["3 layers", "2 branches", "multiple of 2", "prototypes"],
    ),
    "prototypes and no levels": (
        head([[4], 1, "DSegment", ["nc"]]),
        ["1 layers", "1 branches"],
    ),
    "prototypes of another size": (
        head([[2, 3, 4, 3], 1, "DSegment", ["nc"]]),
        ["(layer 5)", "prototypes have stride 16", "expected 4"],
    ),
    "prototypes above stride 8": (head([[3, 4], 1, "Segment", ["nc"]]), ["prototypes have stride 8", "expected 4"]),
    "no masks": (head([[2, 3, 4], 1, "Segment", ["nc", 0]]), ["num_masks is 0", "positive number"]),
    "no hidden width": (
        head([[2, 3, 4], 1, "DDetect", ["nc", {"class_width": 0}]]),
        ["class_width is 0", "positive number"],
    ),
    "class towers of another kind": (
        head([[2, 3, 4], 1, "Detect", ["nc", {"cls": "wide"}]]),
        ["'cls'", "'wide'"],
    ),
    "letters that are no scales": (
        {**row(-1, 1, "C3k2", [8, "tow"]), "scales": {"n": [1.0, 1.0]}, "scale": "n"},
        ["c3k is 'tow'", "true", "false"],
    ),
    "letters without scales": (
        row(-1, 1, "C3k2", [8, "mlx"]),
        ["c3k 'mlx'", "True", "False"],
    ),
    "attention of another width": (
        row(-1, 1, "C2PSA", [16]),
        ["out_channels 16", "8 channels"],
    ),
    "attention heads that do not split": (
        rows([-1, 1, "Conv", [400]], [-1, 1, "C2PSA", [400]]),
        ["(layer 6)", "200 channels", "3 attention heads", "multiple of 3"],
    ),
    # keys
    "folded": (broken(folded="yes"), ["network: folded is 'yes'", "true", "false"]),
    "unknown key": (
        broken(bakbone=[]),
        ["network: unknown key 'bakbone'", "nc, ch", "'backbone'"],
    ),
    "empty head": (
        broken(head=[]),
        ["network: 'head' is []", "[from, repeats, layer, arguments]"],
    ),
    "empty backbone": (broken(backbone=None), ["network: 'backbone' is None", "[from, repeats, layer, arguments]"]),
    "head is a mapping": (broken(head={"a": 1}), ["'head' is {'a': 1}", "[from, repeats, layer, arguments]"]),
    "nc missing": (
        {key: value for key, value in tiny_config().items() if key != "nc"},
        ["network: nc is None", "positive integer"],
    ),
    "nc 0": (broken(nc=0), ["nc is 0", "positive integer"]),
    "nc bool": (broken(nc=True), ["nc is True", "positive integer"]),
    "nc string": (broken(nc="3"), ["nc is '3'", "positive integer"]),
    "ch 0": (broken(ch=0), ["ch is 0", "positive integer"]),
    "too few names": (broken(names=["a", "b"]), ["names has 2 entries", "nc is 3"]),
    "names": (broken(names=4), ["names is 4", "list", "mapping"]),
    "activation": (broken(activation="Swish"), ["activation 'Swish'", "SiLU, ReLU"]),
    "activation is code": (broken(activation="nn.SiLU(exit())"), ["activation 'nn.SiLU(exit())'", "SiLU, ReLU"]),
    "activation is no name": (broken(activation=3), ["activation '3'", "SiLU, ReLU"]),
    "scales without a choice": (
        broken(scales={"n": [0.3, 0.25, 1024], "s": [0.3, 0.5, 1024]}),
        ["scale None", "n, s", "--scale"],
    ),
    "unknown scale": (broken(scales={"n": [0.3, 0.25, 1024]}, scale="q"), ["scale 'q'", "one of n", "--scale"]),
    "scale of a yaml without scales": (broken(scale="n"), ["scale 'n'", "'scales'"]),
    "scales are a list": (
        broken(scales=[0.3, 0.25]),
        ["scales are [0.3, 0.25]", "[depth, width, most channels]"],
    ),
    "scale is a number": (
        broken(scales={"n": 0.5}, scale="n"),
        ["scales are {'n': 0.5}", "[depth, width, most channels]"],
    ),
    "width is a string": (
        broken(width_multiple="half"),
        ["depth and width multiple are [1.0, 'half']", "positive numbers"],
    ),
    "width 0": (broken(width_multiple=0), ["depth and width multiple are [1.0, 0]", "positive numbers"]),
    "width infinite": (
        broken(width_multiple=float("inf")),
        ["depth and width multiple are [1.0, inf]", "positive numbers"],
    ),
    "depth negative": (
        broken(depth_multiple=-1),
        ["depth and width multiple are [-1, 1.0]", "positive numbers"],
    ),
    "cap on channels": (broken(max_channels="many"), ["max_channels is 'many'", "positive integer"]),
    "width of a GELAN block": (
        row(-1, 1, "RepNCSPELAN4", [8, 8, 4, 1], width_multiple=0.5),
        ["width_multiple 0.5", "hidden widths", "width_multiple to 1.0"],
    ),
    "width of CBLinear": (row(-1, 1, "CBLinear", [[8]], width_multiple=0.5), ["width_multiple 0.5", "hidden widths"]),
}


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(("config", "facts"), CASES.values(), ids=CASES)
def test_mapping(config: dict[str, Any], facts: list[str]) -> None:
    before = copy.deepcopy(config)
    with torch.device("meta"), pytest.raises(ModelConfigError) as caught:
        Model(config)
    assert_says(caught.value, "network", *facts)
    assert config == before, "the caller's mapping is left alone"
    assert "\n" not in str(caught.value)


FILES: dict[str, tuple[bytes, list[str]]] = {
    "syntax": (b"nc: 3\nbackbone:\n  - [-1, 1, Conv, [8, 3, 2]\nhead: []\n", ["line 4, column 1", "yaml"]),
    "tab": (b"nc: 3\nbackbone:\n\t- [-1, 1, Conv, [8]]\n", ["line 3, column 1", "yaml"]),
    "object": (
        b"nc: !!python/object/apply:os.getcwd []\n",
        ["line 1, column 5", "yaml", "constructor"],
    ),
    "control character": (b"nc: \x00\n", ["yaml"]),
    "not text": (b"nc: \xff\xfe\n", ["yaml", "UTF-8"]),
    "empty": (b"", ["holds NoneType", "nc, backbone and head"]),
    "list": (b"- 1\n- 2\n", ["holds list", "nc, backbone and head"]),
    "text": (b"<html>not found</html>", ["holds str", "nc, backbone and head"]),
    "no rows": (b"nc: 3\nbackbone:\nhead:\n", ["'backbone' is None", "[from, repeats, layer, arguments]"]),
}


@pytest.mark.parametrize(("content", "facts"), FILES.values(), ids=FILES)
def test_file(tmp_path: Path, content: bytes, facts: list[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(ModelConfigError) as caught:
        Model(path)
    assert_says(caught.value, path, *facts)


def test_message_of_a_file_names_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "nc: 3\nbackbone:\n  - [-1, 1, Conv, [8, 3, 2]]\n  - [-1, 1, Connv, [8, 3, 2]]\n"
        "head:\n  - [[0, 1], 1, DDetect, [nc]]\n"
    )
    with pytest.raises(ModelConfigError) as caught:
        Model(path)
    assert_says(caught.value, f"{path}:4: backbone[1] (layer 1): [-1, 1, Connv, [8, 3, 2]]", "layer 'Connv'", "'Conv'")


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("yolov9-q.yaml", ["yolov9-q.yaml", "Did you mean"]),
        ("gelan-x", ["gelan-x", "path", "name", "Did you mean"]),
        ("", []),
        (".", []),
    ],
)
def test_no_such_file(name: str, facts: list[str]) -> None:
    with pytest.raises(ModelConfigError) as caught:
        Model(name)
    assert_says(caught.value, "network yaml", *facts)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "net.yaml").mkdir()
    with pytest.raises(ModelConfigError) as caught:
        Model(tmp_path / "net.yaml")
    assert_says(caught.value, tmp_path / "net.yaml", "no such network yaml")
