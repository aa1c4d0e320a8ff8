"""Patches on the command line: a run's resolved yaml, and what `python -m models.yolo` shows of them."""

from pathlib import Path

import pytest
import torch
import yaml

from models.command import main
from models.config.composed import config_text
from models.yolo import Model
from tests.networks import tiny_config
from tests.saying import assert_says
from utils.errors import ModelConfigError
from utils.training.options import TrainOptions
from utils.training.starting_network import starting_network
from utils.weights.own_file import network_entry, save_checkpoint


def test_the_network_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_config(2)))
    options = TrainOptions(cfg=str(tmp_path / "tiny.yaml"), patch=["insert GatherExcite before head"])
    model, _ = starting_network(options, ["a", "b"], None)
    assert [row.name for row in model.rows].count("GatherExcite") == 3
    (tmp_path / "resolved.yaml").write_text(config_text(model.config))
    assert Model(tmp_path / "resolved.yaml").state_dict().keys() == model.state_dict().keys()


def test_the_network_of_weights_is_edited(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = Model(tiny_config(2))
    save_checkpoint(tmp_path / "old.pt", {"network": network_entry(old), "model": old.state_dict()})
    options = TrainOptions(
        weights=str(tmp_path / "old.pt"), patch=["insert FocalModulation [{residual: true, start: identity}] after 2"]
    )
    model, report = starting_network(options, ["a", "b", "c"], None)
    assert report is not None
    assert (report.used, list(report.new_layers.values())) == (1.0, ["FocalModulation"])
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(model.eval()(images), old.eval()(images))
    assert "FocalModulation" in capsys.readouterr().out + str(report.new_layers)


def test_a_patch_that_does_not_fit(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_config(2)))
    with pytest.raises(ModelConfigError) as caught:
        starting_network(TrainOptions(cfg=str(tmp_path / "tiny.yaml"), patch=["remove p9"]), ["a", "b"], None)
    assert_says(caught.value, "--patch", "remove p9", "'p9'")


DIFFERENCE = [
    "@@ -14,2 +14,3 @@",
    "   - [-1, 1, RepNCSPELAN4, [128, 128, 64, 3], p5]",
    "+  - [-1, 1, GatherExcite, []]",
    " head:",
]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["gelan-t", "--patch", "insert GatherExcite after p5", "--diff"], ["--- gelan-t", "+++ gelan-t and patches"]),
        (["{folder}/mine.yaml", "--diff"], ["--- gelan-t.yaml", "+++ {folder}/mine.yaml"]),
        (["{folder}/mine.yaml", "--diff", "gelan-t"], ["--- gelan-t", "+++ {folder}/mine.yaml"]),
    ],
)
def test_difference(arguments: list[str], names: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").write_text("base: gelan-t.yaml\nedits: [insert GatherExcite after p5]\n")
    assert main([argument.format(folder=tmp_path) for argument in arguments]) == 0
    assert (
        capsys.readouterr().out.rstrip("\n").split("\n")
        == [name.format(folder=tmp_path) for name in names] + DIFFERENCE
    )


def test_no_difference_and_no_base(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gelan-t", "--diff", "gelan-t.yaml"]) == 0
    assert_says(capsys.readouterr().out, "gelan-t", "no difference", "gelan-t.yaml")
    assert main(["gelan-t", "--diff"]) == 2
    assert_says(capsys.readouterr().err, "error: gelan-t", "no base", "--diff OTHER.yaml", "--patch")
