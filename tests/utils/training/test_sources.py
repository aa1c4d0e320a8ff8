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
from utils.errors import CheckpointError
from utils.training.options import TrainOptions
from utils.training.sources import check_sources, compare_sources, describe_images, describe_sources, yaml_digest


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
    assert compare_sources(sources, now).found == [
        f"network yaml {tmp_path / 'net.yaml'} (the run keeps the network of its checkpoint)",
        f"hyperparameter yaml {tmp_path / 'hyp.yaml'}: mosaic 1.0 is now 0.5 (the run keeps the hyperparameters of its checkpoint)",
    ]


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
    said = r"^runs/last\.pt: changed since the run began: labels of the training images; number of validation images: 2 are now 5"
    with pytest.raises(CheckpointError, match=said + r": expected .*; --resume runs/last\.pt --force goes on"):
        check_sources(sources, now, "runs/last.pt", force=False)
    check_sources(sources, now, "runs/last.pt", force=True)
    assert "2 are now 5; goes on all the same (--force)" in capsys.readouterr().out


def test_a_checkpoint_of_an_older_version_says_what_it_cannot_tell(
    sources: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    check_sources({"names": ["a", "b"]}, sources, "last.pt", force=False)
    said = capsys.readouterr().out
    assert said == (
        "last.pt: from an older version, cannot be checked for changes: the training images and labels, "
        "the validation images and labels, the network yaml, the hyperparameter yaml\n"
    )
    with pytest.raises(CheckpointError, match=r"class names: 0 'x' is now 'a'"):
        check_sources({"names": ["x", "b"]}, sources, "last.pt", force=False)
