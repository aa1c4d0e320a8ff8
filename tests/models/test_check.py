"""That every check sees what it is for and nothing else, and the command line around the checks."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from models.check import check_layer, check_network, layer_checks, main
from models.checks import onnx_checks
from models.checks.checking import FAIL, NOT_APPLICABLE, PASS, SKIPPED, CheckFailedError, make, make_all
from models.checks.graph_checks import RECORDED_BATCH, recorded_size
from models.checks.layer_case import LayerCase
from models.checks.network_checks import NETWORK_CHECKS
from models.checks.onnx_checks import InsideNetwork, traced_freedom
from models.plugins.held import temporary_plugins
from models.registry import Layer, Rule, layer, registered_layers, same
from models.yolo import Model
from tests.models.broken_layers import (
    BROKEN,
    BranchesOnValues,
    FoldsWrongly,
    KeepsItsOutput,
    NoTracedOperation,
    ParameterInAList,
    RoundsOddSizesUp,
    Sound,
    WrongShapeForTheNext,
)
from tests.networks import tiny_config
from tests.saying import assert_says

SLOW = {check.name for check in layer_checks() if check.slow}


@pytest.fixture
def registry() -> Iterator[None]:
    with temporary_plugins():
        yield


def case_of(cls: type[nn.Module], rule: Rule = same) -> LayerCase:
    entry = Layer(
        name=cls.__name__,
        cls=cls,
        rule=rule,
        role="other",
        repeats=None,
        example=(),
        example_inputs=(8,),
        example_strides=(1,),
    )
    return LayerCase.of_example(entry)


def test_every_check_has_a_layer_that_it_catches() -> None:
    assert list(BROKEN) == [check.name for check in layer_checks()]


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in BROKEN])
def test_a_broken_layer_fails_exactly_one_check(name: str) -> None:
    cls, seen = BROKEN[name]
    lines: list[str] = []
    report = check_layer(case_of(cls), quick=name not in SLOW, say=lines.append)
    (failed,) = [result for result in report.results if result.outcome == FAIL]
    remedy = next(check.remedy for check in layer_checks() if check.name == name)
    assert failed.check == name
    assert failed.seen.startswith(seen), failed.seen
    assert any(line.strip().startswith("remedy") and remedy in line for line in lines)
    assert report.failed


def test_an_odd_size_that_is_not_kept() -> None:
    results = {result.check: result for result in check_layer(case_of(RoundsOddSizesUp), quick=True).results}
    assert results["sizes"].outcome == FAIL
    assert results["sizes"].seen.startswith("7 x 12: gives 8 x 12, and keeps the size of 8 x 8; 9 x 5: gives 10 x 6, ")


def test_a_sound_layer_fails_none() -> None:
    report = check_layer(case_of(Sound), quick=True)
    outcomes = {result.check: result.outcome for result in report.results}
    assert not report.failed
    assert outcomes == dict.fromkeys(outcomes, PASS) | dict.fromkeys(
        ("folding", "identity start"), NOT_APPLICABLE
    ) | dict.fromkeys(SLOW, SKIPPED)


@pytest.mark.slow
def test_a_sound_layer_can_be_recorded() -> None:
    seen = {result.check: result.seen for result in check_layer(case_of(Sound)).results}
    assert seen["compile"] == "one whole graph"
    assert seen["export"] == "any batch and size"
    assert seen["cost"].startswith("at 64 x 64: 584 parameters, 0.004719 GFLOPs, ")
    assert seen["onnx"].partition(";")[0] == "any batch and size"
    if importlib.util.find_spec("cv2") is not None:
        assert_says(seen["onnx"], "OpenCV", "reads it")


def test_a_shape_that_only_the_next_layer_sees() -> None:
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package)
    case = case_of(WrongShapeForTheNext)
    module, given = case.build().eval(), case.given(recorded_size(case), RECORDED_BATCH)
    assert traced_freedom(case, module, given).startswith("any batch")
    with pytest.raises(CheckFailedError) as caught:
        traced_freedom(case, InsideNetwork(module, given), given)
    assert_says(caught.value, "inside a network")


@pytest.mark.slow
@pytest.mark.parametrize(("cls", "fact"), [(WrongShapeForTheNext, "inside a network"), (NoTracedOperation, "sinc")])
def test_one_exporter_is_enough_and_the_other_one_is_named(cls: type[nn.Module], fact: str) -> None:
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    result = make(onnx_checks.ONNX_CHECKS.checks["onnx"], case_of(cls))
    assert result.outcome == PASS
    assert_says(result.seen, "any batch and size, by torch.export", fact, "by tracing")


@pytest.mark.slow
def test_a_network_is_written_as_onnx_too() -> None:
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    result = make(onnx_checks.NETWORK_ONNX_CHECKS.checks["onnx"], network())
    assert (result.outcome, result.seen) == (PASS, "any batch and size")


@pytest.mark.slow
def test_a_graph_that_breaks_is_said() -> None:
    results = {result.check: result for result in check_layer(case_of(BranchesOnValues)).results}
    assert results["compile"].outcome == PASS
    assert results["compile"].seen.startswith("in several graphs: ")


def test_what_stands_on_a_failed_check_is_skipped() -> None:
    results = check_layer(case_of(BROKEN["runs"][0])).results
    assert {result.outcome for result in results[1:]} == {SKIPPED}
    assert results[1].seen == "tells nothing while 'runs' fails"


def test_packages_of_onnx_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_checks, "EXPORT_PACKAGES", ("onnx_of_another_world",))
    result = make(onnx_checks.ONNX_CHECKS.checks["onnx"], case_of(Sound))
    assert (result.outcome, result.seen) == (
        SKIPPED,
        "needs onnx_of_another_world: pip install -r requirements-export.txt",
    )


def test_a_layer_of_one_size_is_checked_at_it() -> None:
    entry = registered_layers()["GatherExcite"]
    case = LayerCase.of_example(entry, ({"variant": "theta", "size_hw": [6, 5]},), (8,))
    results = {result.check: result for result in check_layer(case, quick=True).results}
    assert results["sizes"].outcome == NOT_APPLICABLE
    assert results["sizes"].seen == "the row fixes the size: 6 x 5"
    assert [result.check for result in results.values() if result.outcome == FAIL] == []


# --- networks


def network(*rows: list[Any]) -> Model:
    """The tiny network with further rows of its own width before the head."""
    config = tiny_config()
    return Model(
        config
        | {
            "backbone": [*config["backbone"][:3], *rows, *config["backbone"][3:]],
            "head": [[[2, -2, -1], 1, "DDetect", ["nc"]]],
        }
    )


def failures(model: Model) -> dict[str, str]:
    return {
        result.check: result.seen
        for result in make_all(NETWORK_CHECKS.checks.values(), model, quick=True)
        if result.outcome == FAIL
    }


def test_a_sound_network() -> None:
    lines: list[str] = []
    report = check_network(network(), "network", quick=True, say=lines.append)
    assert not report.failed
    assert [part.name for part in report.parts] == [
        "layer 0: Conv [8, 3, 2] on 3 channels",
        "layers 1, 2, 3, 4: Conv [8, 3, 2] on 8 channels",
        "layer 5: DDetect [nc] on 8, 8, 8 channels",
    ]
    assert report.verdict() == "8 checks: 6 passed, 2 skipped; 3 distinct layers, none of them with a failure"
    assert "  gradients         pass            63 of 63 parameters, at once" in lines


def test_a_row_that_reaches_no_head() -> None:
    model = network([2, 1, "Conv", [8, 3, 2]], [2, 1, "Conv", [8, 3, 1]], [2, 1, "nn.Identity", []])
    assert failures(model) == {
        "gradients": "6 of 69 parameters get none: layer 3 (Conv): conv.weight, bn.weight, bn.bias; "
        "layer 4 (Conv): conv.weight, bn.weight, bn.bias"
    }


@pytest.mark.parametrize(
    ("cls", "check", "seen"),
    [
        (FoldsWrongly, "deploy", "deployed: differs by up to "),
        (KeepsItsOutput, "copies", "RuntimeError: Only Tensors created explicitly by the user"),
        (ParameterInAList, "optimizer", "1 tensor that learns is no registered parameter"),
    ],
)
@pytest.mark.usefixtures("registry")
def test_a_broken_layer_in_a_network(cls: type[nn.Module], check: str, seen: str) -> None:
    layer(same, name="Mine")(cls)
    found = failures(network([-1, 1, "Mine", []]))
    assert list(found) == [check]
    assert found[check].startswith(seen)


@pytest.mark.usefixtures("registry")
def test_the_layer_that_fails_is_named() -> None:
    layer(same, name="Mine")(FoldsWrongly)
    lines: list[str] = []
    report = check_network(network([-1, 1, "Mine", []]), "network", quick=True, say=lines.append)
    assert [part.name for part in report.parts if part.failed] == ["layer 3: Mine [] on 8 channels"]
    after = lines[lines.index("  layer 3: Mine [] on 8 channels") + 1 :]
    assert [line.split()[:2] for line in after[1:3]] == [["folding", "FAIL"], ["remedy", "fold()"]]
    assert report.verdict().endswith("4 distinct layers, 1 of them with failures")


# --- command line

PLUGIN = '''
"""Layers of mine."""
import torch
from torch import nn

from models.registry import layer, same


@layer(same, "attention")
class MyGate(nn.Module):
    """Weigh every cell.

    Source: me, 2024
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.score = nn.Conv2d(channels, 1, 1)
        self.forgotten = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x * self.score(x).sigmoid()
'''


@pytest.mark.usefixtures("registry")
def test_plugin_that_cannot_be_built(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "my_layers.py"
    file.write_text(PLUGIN.replace("import torch\n", ""))
    assert main([str(file), "--no-card"]) == 1
    out, error = capsys.readouterr()
    assert "runs              FAIL            NameError: name 'torch' is not defined" in out
    assert "MyGate: 23 checks: 1 failed, 22 skipped" in out
    assert error == ""


@pytest.mark.usefixtures("registry")
def test_plugin_with_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "my_layers.py"
    file.write_text(PLUGIN)
    assert main([str(file), "--quick", "--card", str(tmp_path / "cards")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "MyGate: Weigh every cell." in lines
    assert "  gradients         FAIL            1 of 3 parameters get none: forgotten" in lines
    assert sum(line.strip().startswith("remedy") for line in lines) == 1
    card = json.loads((tmp_path / "cards" / "MyGate.json").read_text())
    assert card["passed"] is False
    assert card["facts"]["source"] == "me, 2024"
    assert card["facts"]["plug-in"] == "my_layers.py"
    assert len(card["facts"]["sha256"]) == 64
    text = (tmp_path / "cards" / "MyGate.md").read_text()
    assert text.startswith("# Module card: MyGate\n")
    assert "| gradients | **FAIL** | 1 of 3 parameters get none: forgotten |" in text
    assert "What to do:" in text


def test_layer_with_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["GatherExcite", "--quick", "--arguments", "[{extent: 4}]", "--inputs", "32", "--card", str(tmp_path)])
        == 0
    )
    out = capsys.readouterr().out
    assert "GatherExcite [{extent: 4}] on 32 channels: 1x32x8x8" in out
    assert "GatherExcite: 23 checks: 18 passed, 4 skipped, 1 not applicable\n" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["GatherExcite.json", "GatherExcite.md"]


def test_network_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = tmp_path / "mine.yaml"
    cfg.write_text(json.dumps(tiny_config()))
    assert main([str(cfg), "--quick", "--card", str(tmp_path / "cards")]) == 0
    out = capsys.readouterr().out
    assert "mine: 8 checks: 6 passed, 2 skipped; 3 distinct layers, none of them with a failure" in out
    card = json.loads((tmp_path / "cards" / "mine.json").read_text())
    assert [part["passed"] for part in card["parts"]] == [True] * 3
    assert "### layer 5: DDetect [nc] on 8, 8, 8 channels" in (tmp_path / "cards" / "mine.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to check: name a layer, a network yaml or a Python file, or say --all"),
        (
            ["GatherExciter"],
            "GatherExciter: no such layer or network: expected a layer's name, a network yaml, or a Python file. "
            "Did you mean 'GatherExcite'?",
        ),
        (["none.yaml"], "none.yaml: no such network yaml"),
        (["none.py"], "none.py: no such file"),
        (["Conv", "nonesuch"], "nonesuch: no such layer or network"),
        (
            ["Conv", "--arguments", "16"],
            "--arguments '16': expected a list as in a yaml row, such as '[16, 3, {groups: 2}]'",
        ),
        (["Conv", "--nc", "3"], "--nc, --scale, --patch: Conv is no network: leave them out"),
        (["yolov9-t.yaml", "--inputs", "3"], "--arguments, --inputs: yolov9-t.yaml is a network, whose rows say them"),
        (["yolov8.yaml"], "scale None: choose one of n, s, m, l, x with --scale"),
    ],
)
def test_mistakes(arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, "--quick", "--card", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_arguments_that_the_layer_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["GatherExcite", "--arguments", "[{extent: 3}]", "--no-card"]) == 1
    assert (
        "runs              FAIL            ModelConfigError: extent is 3: expected a power of two"
        in capsys.readouterr().out
    )
