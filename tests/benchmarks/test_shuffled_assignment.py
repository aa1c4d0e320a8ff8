"""The control with a shuffled assignment (benchmarks/shuffled_assignment.py): it really shuffles, also in training."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from benchmarks import shuffled_assignment
from benchmarks.shuffled_assignment import shuffled_hyperparameters
from tests.networks import tiny_model
from tests.utils.training.test_run import workplace  # noqa: F401 a fixture
from utils.errors import SettingsError
from utils.geometry.anchors import anchor_points
from utils.losses.assignment import Assignment, Scene
from utils.losses.detection import build_loss
from utils.losses.task_aligned import task_aligned


def scene_of(objects: int = 16) -> Scene:
    """One image with objects on a grid, of which each has a predicted box of its own size at its centre."""
    points, strides = anchor_points([(4, 4)], [8], torch.zeros(1))
    corners = torch.cat((points - 4, points + 4), 1)[:objects]
    boxes = torch.cat((points - 3, points + 3), 1)[None]
    logits = torch.zeros(1, objects, len(points))
    return Scene(logits, boxes, points, strides, [16], torch.zeros(objects).long(), torch.arange(objects), corners)


def test_objects_are_permuted_and_scores_stay(tmp_path: Path) -> None:
    (tmp_path / "hyp.yaml").write_text("loss: {Assigner: atss, box: siou, assigner_iou: ciou}\ntal_topk: 7\n")
    torch.manual_seed(0)
    with shuffled_hyperparameters(str(tmp_path / "hyp.yaml")) as hyp:
        control = build_loss(tiny_model(), hyp)
    assert control.settings.as_dict() | {"box": "siou(theta=4.0)"} == control.settings.as_dict()
    assert control.hyp.tal_topk == 7
    usual = build_loss(tiny_model()).assigner(scene_of(), None)
    shuffled = control.assigner(scene_of(), None)
    assert usual.target.tolist() == list(range(16))
    assert shuffled.target.tolist() != usual.target.tolist()
    assert sorted(shuffled.target.tolist()) == usual.target.tolist()
    assert torch.equal(shuffled.anchor, usual.anchor)
    assert torch.equal(shuffled.score, usual.score)


def test_only_the_control_knows_it(tmp_path: Path) -> None:
    with shuffled_hyperparameters("data/hyp.yaml") as hyp:
        text = Path(hyp).read_text()
    (tmp_path / "hyp.yaml").write_text(text)
    with pytest.raises(SettingsError, match="'shuffled'"):
        build_loss(tiny_model(), tmp_path / "hyp.yaml")


def test_training_calls_it(
    workplace: Path,  # noqa: F811 the fixture
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []

    def counted(*arguments: Any) -> Assignment:
        calls.append(arguments)
        return task_aligned(*arguments)

    monkeypatch.setattr(shuffled_assignment, "task_aligned", counted)
    files = ["--cfg", f"{workplace}/net.yaml", "--data", f"{workplace}/data.yaml", "--project", str(tmp_path)]
    sizes = ["--epochs", "1", "--batch", "2", "--img", "64", "--workers", "0", "--device", "cpu", "--amp", "off"]
    folder = shuffled_assignment.run([*files, *sizes, "--noplots"])
    assert yaml.safe_load((folder / "hyp.yaml").read_text())["loss"]["assigner"] == "shuffled"
    assert len(calls) >= 4, "two branches, two batches"
