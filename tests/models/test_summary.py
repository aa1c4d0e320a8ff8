"""The layer table and its JSON form."""

import json

import pytest
import torch

from models import command, summary
from models.yolo import Model
from tests.networks import tiny_config
from tests.saying import assert_says


def test_hand_counted_network() -> None:
    with torch.device("meta"):
        model = Model(
            {
                "nc": 1,
                "backbone": [[-1, 1, "Conv", [8, 3, 2]], [-1, 2, "Conv", [16, 3, 2]]],
                "head": [[[1], 1, "DDetect", ["nc"]]],
            }
        )
    described = summary.summarize(model)
    # weights + normalisation: 3*8*9 + 16;  8*16*9 + 32 and 16*16*9 + 32
    assert [layer["parameters"] for layer in described["layers"][:2]] == [232, 3_520]
    # box 16*64*9 + 128, 64*16*9 + 128, 16*64 + 64;  class 16*16*9 + 32 twice, 16 + 1;  DFL 16
    assert described["layers"][2]["parameters"] == 9_344 + 9_344 + 1_088 + 2 * 2_336 + 17 + 16
    # multiply-accumulates at 640: the first row at 320 x 320, then 160 x 160, the head at 80 x 80
    # (the second row has two layers: /2 each)
    accumulated = 216 * 320**2 + 1_152 * 160**2 + (2_304 + 9_216 + 9_216 + 1_024 + 2 * 2_304 + 16) * 80**2
    assert described["gflops"] == pytest.approx(2 * accumulated / 1e9, rel=1e-12)
    assert described["deployed"]["gflops"] == described["gflops"]
    # folding leaves a bias where a normalisation's gain and shift were
    folded = 8 + 16 + 16 + 64 + 64 + 16 + 16
    assert described["deployed"]["parameters"] == described["parameters"] - folded
    assert described["stride"] == [8]


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["gelan-t", "--nc", "3", "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert set(described) == {"parameters", "gflops", "stride", "task", "nc", "layers", "deployed"}
    assert set(described["deployed"]) == {"parameters", "gflops"}
    assert (described["nc"], described["task"], described["stride"]) == (3, "detect", [8, 16, 32])
    assert described["parameters"] == sum(layer["parameters"] for layer in described["layers"])
    first, joined, head = described["layers"][0], described["layers"][11], described["layers"][-1]
    assert first == {
        "index": 0, "name": "model.0", "label": None, "role": "convolution", "from": -1, "module": "Conv",
        "args": [16, 3, 2], "output_shape": [1, 16, 320, 320], "parameters": 464, "gflops": 0.0884736,
    }  # fmt: skip
    assert (joined["from"], joined["module"], joined["output_shape"]) == ([-1, 6], "Concat", [1, 224, 40, 40])
    assert (head["index"], head["from"], head["args"]) == (22, [15, 18, 21], ["nc"])
    assert head["output_shape"]["main"] == [[1, 67, 80, 80], [1, 67, 40, 40], [1, 67, 20, 20]]


def test_table() -> None:
    with torch.device("meta"):
        text = command.format_table(summary.summarize(Model(tiny_config(branches=2))))
    lines = text.splitlines()
    assert lines[1].split() == ["0", "-1", "232", "Conv", "[8,", "3,", "2]", "8x320x320"]
    assert "DualDDetect" in lines[6]
    assert lines[6].endswith("67x80x80 + 67x40x40 + 67x20x20")
    assert lines[7] == "6 layers, task detect, 3 classes, stride [8, 16, 32]"
    assert lines[8].startswith("as trained ")
    assert lines[9].endswith("GFLOPs  (lead branch, folded)")


def test_segmentation_network(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["yolo11n-seg", "--nc", "3", "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["task"] == "segment"
    assert described["layers"][-1]["output_shape"] == {
        "main": {
            "maps": [[1, 67, 80, 80], [1, 67, 40, 40], [1, 67, 20, 20]],
            "coefficients": [1, 32, 8400],
            "prototypes": [1, 32, 160, 160],
        },
        "aux": [],
    }
    assert described["layers"][2]["args"] == [256, "mlx", 0.25]
    assert command.main(["yolo11-seg", "--scale", "n"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[24].endswith("  144x80x80 + 144x40x40 + 144x20x20, coefficients 32x8400, prototypes 32x160x160")
    assert lines[24].index("144x80x80") == lines[0].index("output at 640 x 640")
    assert lines[-2].split() == ["as", "trained", "2,876,848", "parameters", "9.80", "GFLOPs"]
    assert command.main(["yolo11-seg"]) == 2
    message = capsys.readouterr().err
    assert_says(message, "yolo11-seg", "scale None", "n, s, m, l, x", "--scale")
    assert message.startswith("error: ")
    assert message.count("\n") == 1


def test_unknown_network_is_the_users_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["gelan-tt"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert_says(captured.err, "error: gelan-tt", "network yaml", "Did you mean 'gelan-t.yaml'")
    assert captured.err.count("\n") == 1
