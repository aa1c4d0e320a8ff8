"""What a run was made from, and what of it has changed."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from data.dataset import DetectionDataset
from data.labels.annotation import Annotation, Objects
from tests.networks import tiny_config
from tests.saying import assert_says
from utils.errors import CheckpointError
from utils.training.options import TrainOptions
from utils.training.sources import (
    check_sources,
    compare_sources,
    describe_images,
    describe_sources,
    network_files,
    yaml_digest,
)


@pytest.fixture
def dataset(tmp_path: Path, write_image: Callable[..., Path]) -> DetectionDataset:
    """Two images with a box each, one of them with an outline."""
    annotations = []
    for number, polygon in enumerate(([], [np.array([[1, 1], [9, 1], [9, 9]], np.float32)])):
        objects = Objects()
        objects.add(number, np.array([1.0, 1.0, 9.0, 9.0]), polygon, area=64.0)
        annotations.append(objects.annotation(write_image(tmp_path / f"{number}.png"), (40, 60)))
    return DetectionDataset(annotations, ["a", "b"], 64, cache="off")


@pytest.fixture
def options(tmp_path: Path) -> TrainOptions:
    """Options with a network and a hyperparameter file."""
    (tmp_path / "net.yaml").write_text(yaml.safe_dump(tiny_config()))
    (tmp_path / "hyp.yaml").write_text("lr0: 0.02  # fast\n")
    return TrainOptions(cfg=str(tmp_path / "net.yaml"), hyp=str(tmp_path / "hyp.yaml"))


@pytest.fixture
def sources(options: TrainOptions, dataset: DetectionDataset) -> dict[str, Any]:
    """The description at the start of a run."""
    return describe_sources(options, {"train": dataset, "val": dataset}, {})


def test_nothing_changed(
    options: TrainOptions, dataset: DetectionDataset, sources: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    again = describe_sources(options, {"train": dataset, "val": dataset}, sources)
    assert again == sources
    assert yaml.safe_load(yaml.safe_dump(sources)) == sources, "plain data"
    check_sources(sources, again, "last.pt", force=False)
    assert capsys.readouterr().out == ""


def label(one: Annotation) -> None:
    one.boxes_xyxy[0, 0] += 0.5


def name_another_class(one: Annotation) -> None:
    one.classes[0] = 0


def move_the_outline(one: Annotation) -> None:
    one.polygons[0][0][0, 0] += 0.5


def resize(one: Annotation) -> None:
    one.file_hw = (40, 61)


def replace_the_file(one: Annotation) -> None:
    one.path.write_bytes(one.path.read_bytes() + b"\0")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (label, "labels of the validation images"),
        (name_another_class, "labels of the validation images"),
        (move_the_outline, "labels of the validation images"),
        (resize, "sizes of the validation images"),
        (replace_the_file, "files of the validation images"),
    ],
)
def test_changed_images(
    dataset: DetectionDataset, sources: dict[str, Any], change: Callable[[Annotation], None], expected: str
) -> None:
    change(dataset.annotations[1])
    assert compare_sources(sources, sources | {"val": describe_images(dataset)}).found == [expected]


def test_other_numbers_and_names(dataset: DetectionDataset, sources: dict[str, Any]) -> None:
    dataset.annotations = dataset.annotations[:1]
    now = sources | {"train": describe_images(dataset), "names": ["a", "c"]}
    assert compare_sources(sources, now).found == [
        "class names: 1 'b' is now 'c'",
        "number of training images: 2 are now 1",
    ]
    assert compare_sources(sources | {"names": ["a"]}, sources).found == ["class names: 1 are now 2"]


def test_a_yaml_counts_by_what_it_says(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    digests = []
    for text in ("lr0: 0.1\n", "# slow\nlr0:   0.1\n", "lr0: 0.2\n", "lr0: [0.2\n"):
        path.write_text(text)
        digests.append(yaml_digest(path))
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_changed_yaml_files(
    options: TrainOptions, dataset: DetectionDataset, sources: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "net.yaml").write_text(yaml.safe_dump(tiny_config(width=16)))
    (tmp_path / "hyp.yaml").write_text("lr0: 0.02\nmosaic: 0.5\n")
    now = describe_sources(options, {"train": dataset, "val": dataset}, sources)
    network, hyperparameters = compare_sources(sources, now).found
    assert_says(network, "network", tmp_path / "net.yaml", "checkpoint")
    assert_says(hyperparameters, "hyperparameter", tmp_path / "hyp.yaml", "mosaic 1.0 is now 0.5", "checkpoint")


@pytest.mark.parametrize("changed", ["middle.yaml", "net.yaml"])
def test_a_changed_base_is_a_changed_network(
    options: TrainOptions, dataset: DetectionDataset, tmp_path: Path, changed: str
) -> None:
    (tmp_path / "middle.yaml").write_text(yaml.safe_dump({"base": "net.yaml", "nc": 4}))
    (tmp_path / "derived.yaml").write_text(yaml.safe_dump({"base": "middle.yaml", "nc": 2}))
    options.cfg, datasets = str(tmp_path / "derived.yaml"), {"train": dataset, "val": dataset}
    before = describe_sources(options, datasets, {})
    assert [Path(base["path"]).name for base in before["cfg"]["bases"]] == ["middle.yaml", "net.yaml"]
    assert describe_sources(options, datasets, before) == before

    content = yaml.safe_load((tmp_path / changed).read_text())
    (tmp_path / changed).write_text(yaml.safe_dump(content | {"nc": 5}))
    now = describe_sources(options, datasets, before)
    [found] = compare_sources(before, now).found
    assert_says(found, "network", tmp_path / "derived.yaml", "base", tmp_path / changed)


def test_a_run_of_an_older_version_knows_no_base(
    options: TrainOptions, dataset: DetectionDataset, tmp_path: Path
) -> None:
    (tmp_path / "derived.yaml").write_text(yaml.safe_dump({"base": "net.yaml"}))
    options.cfg, datasets = str(tmp_path / "derived.yaml"), {"train": dataset, "val": dataset}
    now = describe_sources(options, datasets, {})
    before = copy.deepcopy(now)
    del before["cfg"]["bases"]
    changes = compare_sources(before, now)
    assert (changes.found, len(changes.unknown)) == ([], 1)
    assert_says(changes.unknown[0], "base", "network yaml")


def test_bases_that_are_gone_or_go_round_in_a_circle_end_the_search(tmp_path: Path) -> None:
    path = tmp_path / "net.yaml"
    for base in ("missing.yaml", "net.yaml", 7):
        path.write_text(yaml.safe_dump({"base": base}))
        assert network_files(path) == [path]


def test_a_yaml_that_is_gone_is_no_change(
    options: TrainOptions, dataset: DetectionDataset, sources: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "net.yaml").unlink()
    (tmp_path / "hyp.yaml").unlink()
    now = describe_sources(options, {"train": dataset, "val": dataset}, sources)
    assert (now["cfg"], now["hyp"]) == (None, None)
    assert compare_sources(sources, now).found == []


def test_refused_unless_forced(sources: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    now = copy.deepcopy(sources)
    now["train"]["labels"], now["val"]["images"] = "other", 5
    changes = ("runs/last.pt", "labels of the training images", "number of validation images: 2 are now 5", "--force")
    with pytest.raises(CheckpointError) as caught:
        check_sources(sources, now, "runs/last.pt", force=False)
    assert_says(caught.value, *changes, "--resume runs/last.pt")
    check_sources(sources, now, "runs/last.pt", force=True)
    assert_says(capsys.readouterr().out, *changes)


def test_a_checkpoint_of_an_older_version_says_what_it_cannot_tell(
    sources: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    check_sources({"names": ["a", "b"]}, sources, "last.pt", force=False)
    unknown = ("training images and labels", "validation images and labels", "network yaml", "hyperparameter yaml")
    assert_says(capsys.readouterr().out, "last.pt", "older version", *unknown)
    with pytest.raises(CheckpointError) as caught:
        check_sources({"names": ["x", "b"]}, sources, "last.pt", force=False)
    assert_says(caught.value, "last.pt", "class names", "0 'x' is now 'a'")


def test_another_range_of_pixel_values_is_a_change(sources: dict[str, Any]) -> None:
    assert sources["pixel_range"] is None
    now = sources | {"pixel_range": [0.0, 4095.0]}
    assert_says(compare_sources(sources, now).found, "None", "[0.0, 4095.0]")
    older = {key: value for key, value in sources.items() if key != "pixel_range"}
    assert compare_sources(older, now).found == []
