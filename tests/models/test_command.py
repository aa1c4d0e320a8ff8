"""`python -m models.yolo` with a weights file: the network that a checkpoint describes."""

import json
from pathlib import Path

import pytest
import torch

from models import command
from models.yolo import Model
from tests.foreign_files import write_ultralytics_checkpoint
from tests.networks import tiny_config, tiny_model
from tests.saying import assert_says
from utils.weights.own_file import network_entry, save_checkpoint


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A checkpoint of the tiny network, at two inputs of another width."""
    model = tiny_model(width=16, nc=2)
    save_checkpoint(tmp_path / "best.pt", {"network": network_entry(model), "model": model.state_dict()})
    return tmp_path / "best.pt"


def described(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict:
    assert command.main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_checkpoint_shows_its_network(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = described([str(weights)], capsys)
    assert (found["nc"], [layer["module"] for layer in found["layers"]]) == (2, ["Conv"] * 5 + ["DDetect"])
    assert found["layers"][0]["output_shape"] == [1, 16, 320, 320]
    assert command.main([str(weights)]) == 0
    assert "16x320x320" in capsys.readouterr().out


def test_a_checkpoint_takes_patches_and_classes(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = described([str(weights), "--nc", "5", "--patch", "insert SE after 2"], capsys)
    assert (found["nc"], found["layers"][3]["module"]) == (5, "SE")


def test_a_deployed_checkpoint_shows_what_it_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model(branches=2).deploy()
    save_checkpoint(tmp_path / "small.pt", {"network": network_entry(model), "model": model.state_dict()})
    found = described([str(tmp_path / "small.pt")], capsys)
    assert found["parameters"] == found["deployed"]["parameters"] == sum(p.numel() for p in model.parameters())


def test_a_foreign_checkpoint_leaves_standard_output_to_the_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config()
    config["head"][0][2] = "Detect"
    write_ultralytics_checkpoint(tmp_path / "theirs.pt", Model(config).eval())
    found = described([str(tmp_path / "theirs.pt")], capsys)
    assert found["layers"][-1]["module"] == "Detect"


def test_a_diff_between_a_checkpoint_and_a_yaml(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([str(weights), "--diff", str(weights)]) == 0
    assert_says(capsys.readouterr().out, "no difference", "best.pt")
    assert command.main([str(weights), "--diff", "gelan-t.yaml"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "--- gelan-t.yaml" in lines
    assert any(line.startswith("+  - [") and "DDetect" in line for line in lines)
    assert command.main([str(weights), "--patch", "insert SE after 2", "--diff"]) == 0
    assert_says(capsys.readouterr().out, "SE")
    assert command.main([str(weights), "--diff"]) == 2


def test_a_drawing_of_a_checkpoint(weights: Path, tmp_path: Path) -> None:
    assert command.main([str(weights), "--graph", str(tmp_path / "net.svg")]) == 0
    assert "DDetect" in (tmp_path / "net.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["missing.pt", "plain.pt", "broken.safetensors"])
def test_a_file_without_a_network_is_one_message(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(tiny_model().state_dict(), tmp_path / "plain.pt")
    (tmp_path / "broken.safetensors").write_bytes(b"not tensors")
    assert command.main([str(tmp_path / name)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert_says(captured.err.splitlines()[-1], "error", name)
