"""Outputs of class towers go from weights into a network by class name."""

import copy
from pathlib import Path

import pytest
import torch

from models.yolo import Model
from tests.networks import tiny_model
from tests.saying import assert_says
from utils.checkpoint.transfer import PARTLY, Source, TransferReport, transfer
from utils.weights.own_file import network_entry, save_checkpoint
from utils.weights.reading import read_weights


def moved(folder: Path, theirs: list[str], ours: list[str], branches: int = 1) -> tuple[Model, Model, TransferReport]:
    """Return a network of classes `theirs`, one of classes `ours` with its weights, and the report."""
    old, new = tiny_model(branches, nc=len(theirs)), tiny_model(branches, seed=1, nc=len(ours))
    for tower in old.head.lead.cls:
        torch.nn.init.normal_(tower[-1].bias)
    old.names, new.names = list(theirs), list(ours)
    save_checkpoint(folder / "old.pt", {"network": network_entry(old), "model": old.state_dict()})
    return old, new, transfer(new, Source.of(read_weights(folder / "old.pt")))


def outputs(model: Model) -> list[list[torch.Tensor]]:
    """Return weight and bias of every class tower's last convolution."""
    branches = (*model.head.aux, model.head.lead)
    return [list(tower[-1].parameters()) for branch in branches for tower in branch.cls]


@pytest.mark.parametrize("branches", [1, 2])
def test_names_in_another_order_are_matched_by_name(tmp_path: Path, branches: int) -> None:
    old, new, report = moved(tmp_path, ["cat", "dog", "cow"], ["cow", "cat", "dog"], branches)
    for theirs, ours in zip(outputs(old), outputs(new), strict=True):
        for before, after in zip(theirs, ours, strict=True):
            assert torch.equal(after, before[[2, 0, 1]])
    assert report.coverage == 1.0
    assert_says(report.describe(), "by name", "3 of 3", "another order")


def test_classes_that_the_file_lacks_start_anew(tmp_path: Path) -> None:
    fresh = outputs(tiny_model(seed=1))
    old, new, report = moved(tmp_path, ["cat", "dog", "cow"], ["cow", "kite", "cat"])
    for theirs, ours, made in zip(outputs(old), outputs(new), fresh, strict=True):
        for before, after, untouched in zip(theirs, ours, made, strict=True):
            assert torch.equal(after[[0, 2]], before[[2, 0]])
            assert torch.equal(after[1], untouched[1])
    assert len(report.names(PARTLY)) == 6
    assert report.coverage < 1.0
    assert_says(report.describe(), "2 of 3", "kite")


@pytest.mark.parametrize(
    ("theirs", "ours", "said"),
    [
        (["cat", "dog", "cow"], ["cat", "dog", "cow"], False),
        (["0", "1", "2"], ["cat", "dog", "cow"], True),
        (["cat", "dog", "cow"], ["0", "1", "2"], False),
    ],
)
def test_without_names_the_position_counts_and_that_is_said(
    tmp_path: Path, theirs: list[str], ours: list[str], said: bool
) -> None:
    old, new, report = moved(tmp_path, theirs, ours)
    assert all(
        torch.equal(before, after)
        for one, other in zip(outputs(old), outputs(new), strict=True)
        for before, after in zip(one, other, strict=True)
    )
    assert ("position" in report.describe()) == said


def test_another_number_of_classes_leaves_the_outputs_new(tmp_path: Path) -> None:
    before = copy.deepcopy(outputs(tiny_model(seed=1, nc=2)))
    _, new, report = moved(tmp_path, ["cat", "dog", "cow"], ["dog", "cat"])
    assert all(
        torch.equal(one, other)
        for made, kept in zip(before, outputs(new), strict=True)
        for one, other in zip(made, kept, strict=True)
    )
    assert_says(report.describe(), "2 classes here, 3 in the file")
    assert "by name" not in report.describe()
