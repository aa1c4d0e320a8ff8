"""A normalisation never gets one value per channel in training: batches are joined, sizes kept, or the run refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from torch import nn

from data.dataset import batch_slices
from models.registry import layer, same, temporary_layers
from tests.networks import tiny_config
from tests.saying import assert_says
from utils.errors import SettingsError
from utils.training.epoch import resized
from utils.training.options import TrainOptions
from utils.training.run import train
from utils.weights.own_file import read_checkpoint


@pytest.fixture(autouse=True)
def _layers() -> Iterator[None]:
    with temporary_layers():

        @layer(same, "attention")
        class PooledNorm(nn.Module):
            """Weigh channels by the normalised mean of the whole map: one value of each channel in every image."""

            def __init__(self, channels: int) -> None:
                super().__init__()
                self.norm = nn.BatchNorm2d(channels)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x * self.norm(x.mean((2, 3), keepdim=True)).sigmoid()

        @layer(same, "attention")
        class EachImageNorm(nn.Module):
            """Normalise each image by itself."""

            def __init__(self, channels: int) -> None:
                super().__init__()
                self.norm = nn.InstanceNorm2d(channels)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.norm(x)

        yield


def with_layer(name: str, width: int = 8) -> dict[str, Any]:
    """The tiny network with a layer after its last convolution."""
    config = tiny_config(width=width)
    config["backbone"].append([-1, 1, name, []])
    config["head"][0][0] = [2, 3, 5]
    return config


@pytest.fixture
def options(tmp_path: Path) -> Any:
    """Make options of a short run on so many images; those of even number are wide, where the shapes are to differ."""

    def make(count: int, config: dict[str, Any] | None = None, wide: bool = False, **changes: Any) -> TrainOptions:
        for split, number in (("train", count), ("val", 2)):
            for kind in ("images", "labels"):
                (tmp_path / kind / split).mkdir(parents=True)
            for index in range(number):
                size = (16, 32, 3) if wide and index % 2 == 0 else (32, 32, 3)
                pixels = np.random.default_rng(index).integers(0, 255, size, np.uint8)
                cv2.imwrite(str(tmp_path / "images" / split / f"{index}.png"), pixels)
                (tmp_path / "labels" / split / f"{index}.txt").write_text(f"{index % 3} 0.5 0.5 0.6 0.6\n")
        (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [a, b, c]\n")
        (tmp_path / "net.yaml").write_text(yaml.safe_dump(config or tiny_config()))
        fixed = {"cfg": str(tmp_path / "net.yaml"), "data": str(tmp_path / "data.yaml"), "project": str(tmp_path)}
        small = {"img": 32, "epochs": 1, "workers": 0, "device": "cpu", "amp": "off", "noplots": True}
        return TrainOptions(**(fixed | small | changes))

    return make


@pytest.mark.parametrize(
    ("count", "size", "least", "lengths"),
    [
        (7, 3, 1, [3, 3, 1]),
        (7, 3, 2, [3, 4]),
        (8, 3, 2, [3, 3, 2]),
        (3, 2, 2, [3]),
        (1, 4, 2, [1]),
        (6, 3, 2, [3, 3]),
        (4, 1, 1, [1, 1, 1, 1]),
    ],
)
def test_batch_slices(count: int, size: int, least: int, lengths: list[int]) -> None:
    parts = batch_slices(count, size, least)
    assert [part.stop - part.start for part in parts] == lengths
    assert [index for part in parts for index in range(count)[part]] == list(range(count))


@pytest.mark.parametrize(
    ("config", "img", "rect"),
    [(tiny_config(), 32, False), (with_layer("PooledNorm"), 64, False), (with_layer("PooledNorm"), 64, True)],
    ids=["one cell", "pooled", "pooled, rectangles"],
)
def test_the_last_image_joins_the_batch_before(
    options: Any, config: dict, img: int, rect: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train(options(7, config, batch=3, img=img, rect=rect, wide=True, epochs=2))
    said = capsys.readouterr().out
    assert_says(said, "7 images in batches of 3", "joins the batch before", "net.yaml", "2 batches of 3")
    last = read_checkpoint(folder / "weights" / "last.pt")
    assert (last["epoch"], last["schedule"]["batches_per_epoch"]) == (2, 2)


def test_the_last_image_stays_alone_where_the_network_can_take_it(
    options: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train(options(7, batch=3, img=64))
    assert "joins" not in capsys.readouterr().out
    assert read_checkpoint(folder / "weights" / "last.pt")["schedule"]["batches_per_epoch"] == 3


def test_frozen_layers_need_no_second_value(options: Any, capsys: pytest.CaptureFixture[str]) -> None:
    train(options(4, batch=3, img=64, config=with_layer("PooledNorm"), freeze=["backbone"]))
    assert "joins" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("count", "config", "changes", "facts"),
    [
        (4, tiny_config(), {"batch": 1}, ["--batch 1", "--img 32", "layer 4", "--batch 2", "--img 64"]),
        (1, tiny_config(), {"batch": 2}, ["layer 4", "more than one training image", "--img 64"]),
        (4, with_layer("PooledNorm"), {"batch": 1, "img": 64}, ["layer 5", "--batch 2 or more"]),
        (4, with_layer("EachImageNorm"), {"batch": 2}, ["layer 5", "--img 64"]),
        (5, with_layer("EachImageNorm"), {"batch": 2, "multi_scale": True}, ["layer 5", "--img 64"]),
    ],
)
def test_a_run_that_cannot_work_is_refused(
    options: Any, count: int, config: dict, changes: dict, facts: list[str], tmp_path: Path
) -> None:
    with pytest.raises(SettingsError) as caught:
        train(options(count, config, **changes))
    assert_says(caught.value, tmp_path / "net.yaml", *facts)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "exp").exists()


def test_a_size_that_helps_nobody_is_not_offered(options: Any) -> None:
    with pytest.raises(SettingsError) as caught:
        train(options(4, with_layer("PooledNorm"), batch=1, img=64))
    assert "--img 96" not in str(caught.value)
    assert "--img 128" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "batch", "least"),
    [(with_layer("EachImageNorm"), 2, 64), (tiny_config(), 1, 64)],
    ids=["each image by itself", "batches of one"],
)
def test_multi_scale_stays_above_what_the_layers_need(
    options: Any, config: dict, batch: int, least: int, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train(options(4, config, batch=batch, img=64, multi_scale=True, epochs=6))
    assert_says(capsys.readouterr().out, "--multi-scale", f"{least} x {least}")
    assert read_checkpoint(folder / "weights" / "last.pt")["epoch"] == 6


def test_multi_scale_joins_the_last_image_too(options: Any, capsys: pytest.CaptureFixture[str]) -> None:
    train(options(5, batch=2, img=64, multi_scale=True, epochs=4))
    said = capsys.readouterr().out
    assert_says(said, "5 images in batches of 2", "joins the batch before")
    assert "no image is smaller" not in said


def test_no_side_is_below_the_least() -> None:
    images = torch.rand(1, 3, 64, 96)
    sizes = {tuple(resized(images, 0, number, seed=0, multiple=32, least=64).shape[2:]) for number in range(40)}
    assert len(sizes) > 2
    assert min(min(size) for size in sizes) == 64
    assert {side % 32 for size in sizes for side in size} == {0}


def test_finding_out_changes_nothing(options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = read_checkpoint(train(options(4, batch=2, img=64)) / "weights" / "last.pt")
    monkeypatch.setattr("utils.training.set_up.fit_batches", lambda *_: 32)
    second = read_checkpoint(train(TrainOptions(**first["options"])) / "weights" / "last.pt")
    assert all(torch.equal(value, second["model"][name]) for name, value in first["model"].items())
