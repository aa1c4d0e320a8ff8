import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from data.dataset import DetectionDataset
from data.labels.annotation import Annotation
from data.loader import Share, build_loader
from utils.errors import DataError

Build = Callable[..., DetectionDataset]


def equal(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[key], second[key]) if isinstance(first[key], torch.Tensor) else first[key] == second[key]
        for key in first
    )


@pytest.mark.parametrize("rect", [False, True])
def test_batches_are_the_same_with_any_number_of_workers(
    annotations: list[Annotation], rect: bool, build: Build
) -> None:
    dataset = build(annotations, augment=True, masks=True, rect=rect, batch_size=2)
    here, there = (build_loader(dataset, 2, workers, shuffle=True, seed=5) for workers in (0, 2))
    for epoch, mosaic in ((0, True), (1, True), (2, False)):  # the workers live on when mosaics end
        here.set_epoch(epoch, mosaic)
        there.set_epoch(epoch, mosaic)
        batches = list(here)
        assert len(batches) == len(here) == 4
        assert all(equal(first, second) for first, second in zip(batches, there, strict=True))


def test_order_changes_with_the_epoch_and_resumes_within_it(annotations: list[Annotation], build: Build) -> None:
    loader = build_loader(build(annotations, augment=True), 2, shuffle=True)
    orders = []
    for epoch in (0, 1):
        loader.set_epoch(epoch)
        orders.append([batch["indices"] for batch in loader])
    assert orders[0] != orders[1]
    assert sorted(index for batch in orders[0] for index in batch) == list(range(7))
    loader.set_epoch(0, start_batch=2)
    assert [batch["indices"] for batch in loader] == orders[0][2:]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_vanished_image_is_named(annotations: list[Annotation], workers: int, build: Build) -> None:
    dataset = build(annotations, cache="off")
    annotations[4].path.unlink()
    with pytest.raises(DataError, match=r"4\.png") as caught:
        list(build_loader(dataset, 4, workers))
    assert "Traceback" not in str(caught.value)


def note_process(folder: Path) -> None:
    (folder / str(os.getpid())).touch()


def test_every_worker_is_started_once(annotations: list[Annotation], build: Build, tmp_path: Path) -> None:
    folder = tmp_path / "started"
    folder.mkdir()
    loader = build_loader(build(annotations), 2, workers=2, on_worker_start=partial(note_process, folder))
    for epoch in range(2):
        loader.set_epoch(epoch)
        list(loader)
    started = {file.name for file in folder.iterdir()}
    assert len(started) == 2
    assert str(os.getpid()) not in started


def test_batch_size_must_be_the_rectangles_own(annotations: list[Annotation], build: Build) -> None:
    with pytest.raises(ValueError, match=r"\b4\b.*\b3\b"):
        build_loader(build(annotations, rect=True, batch_size=3), 4)


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_share_the_batches_of_one_process(annotations: list[Annotation], build: Build, ranks: int) -> None:
    """The parts of a training batch, in the order of the ranks, are the batch; a rank without a part stands in."""
    dataset = build(annotations)
    whole = list(build_loader(dataset, 3, shuffle=True, seed=5))
    shares = [list(build_loader(dataset, 3, shuffle=True, seed=5, share=Share(rank, ranks))) for rank in range(ranks)]
    assert {len(batches) for batches in shares} == {len(whole)}
    stand_ins = 0
    for number, batch in enumerate(whole):
        parts = [batches[number] for batches in shares]
        counted = [part for part in parts if part["counts"]]
        assert [index for part in counted for index in part["indices"]] == batch["indices"]
        assert torch.equal(torch.cat([part["images"] for part in counted]), batch["images"])
        assert sum(len(part["targets"]) for part in parts) == len(batch["targets"])
        stand_ins += len(parts) - len(counted)
    assert (stand_ins > 0) == (ranks > 3 or len(dataset) % 3 in (1,))


def test_ranks_evaluate_whole_batches_each_once(annotations: list[Annotation], build: Build) -> None:
    dataset = build(annotations)
    whole = [batch["indices"] for batch in build_loader(dataset, 2)]
    loaders = [build_loader(dataset, 2, share=Share(rank, 3, whole=True)) for rank in range(3)]
    shares = [[batch["indices"] for batch in loader] for loader in loaders]
    assert [len(loader) for loader in loaders] == [len(share) for share in shares]
    assert sorted(batch for share in shares for batch in share) == sorted(whole)
