"""The steps before the first epoch."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.config import load_data_config
from tests.deep_images import png, ramp, tiff, write_data_yaml, write_split
from tests.networks import tiny_config, tiny_model
from tests.saying import assert_says
from utils.errors import DataError, SettingsError
from utils.hyperparameters import Hyperparameters
from utils.precision import choose_precision
from utils.training.options import TrainOptions
from utils.training.set_up import build_loaders, fitting_batch, run_loss, set_up, with_sizes


def test_batch_size_of_a_cpu_is_the_users() -> None:
    with pytest.raises(SettingsError) as caught:
        fitting_batch(tiny_model(), choose_precision("cpu", "off"), 64, Hyperparameters())
    assert_says(caught.value, "--batch -1", "GPU", "CPU", "--batch 16")


def test_sizes_are_settled_in_a_copy_of_the_options() -> None:
    model, options = tiny_model(), TrainOptions(img=max(tiny_model().stride) * 2 + 1, batch=3)
    settled = with_sizes(options, model, choose_precision("cpu", "off"), Hyperparameters())
    assert (settled.img, settled.batch) == (max(model.stride) * 3, 3)
    assert options.img == max(model.stride) * 2 + 1


def test_settling_the_loss_leaves_the_given_hyperparameters_alone() -> None:
    hyp, model = Hyperparameters(), tiny_model()
    loss, settled = run_loss(hyp, model, TrainOptions(), quiet=True)
    assert hyp == Hyperparameters()
    assert settled.loss == loss.settings.as_dict()
    assert settled.loss != hyp.loss


def loaders(data: Path) -> tuple[tuple[float, float] | None, ...]:
    """Return the ranges of pixel values of the training and the validation images of a data yaml."""
    options = TrainOptions(data=str(data), img=64, batch=2, workers=0, cache="off")
    both = build_loaders(options, Hyperparameters(), load_data_config(data), 32)
    return both[0].dataset.pixel_range, both[1].dataset.pixel_range


def test_validation_images_are_scaled_as_the_training_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = ramp("u2", hw=(8, 8))
    write_split(tmp_path, "train", [pixels * 20], png, ".png")
    write_split(tmp_path, "val", [pixels * 4, pixels * 30], png, ".png")
    data = write_data_yaml(tmp_path)
    assert loaders(data) == ((0, 4095), (0, 4095))
    (val,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("val: 2 of 2 images")]
    assert_says(val, "as in training", "1 of them", "1.png", "5730")  # clipped
    write_data_yaml(tmp_path, "pixel_range: [0, 9000]\n")
    assert loaders(data) == ((0, 9000), (0, 9000))


def test_a_range_from_integers_is_not_taken_for_validation_images_of_another_type(tmp_path: Path) -> None:
    write_split(tmp_path, "train", [ramp("u2", hw=(8, 8)) * 20], png, ".png")
    write_split(tmp_path, "val", [ramp("f4", hw=(8, 8))], tiff, ".tif")
    with pytest.raises(DataError) as caught:
        loaders(write_data_yaml(tmp_path))
    assert_says(caught.value, "val", "float32", "pixel_range")


def test_8_bit_training_images_leave_the_range_to_the_validation_images(tmp_path: Path) -> None:
    write_split(tmp_path, "train", [np.full((8, 8), 9, np.uint8)], png, ".png")
    write_split(tmp_path, "val", [ramp("u2", hw=(8, 8)) * 20], png, ".png")
    assert loaders(write_data_yaml(tmp_path)) == (None, (0, 4095))


@pytest.mark.parametrize(("single_cls", "expected"), [(False, [7, 90]), (True, None)])
def test_category_ids_of_a_coco_file_are_kept(tmp_path: Path, single_cls: bool, expected: list[int] | None) -> None:
    (tmp_path / "a.png").write_bytes(png(np.full((8, 8), 9, np.uint8)))
    content = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "categories": [{"id": 7, "name": "cat"}, {"id": 90, "name": "dog"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 90, "bbox": [1, 1, 4, 4]}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    (tmp_path / "data.yaml").write_text("train: a.json\nval: a.json\n")
    (tmp_path / "net.yaml").write_text(json.dumps(tiny_config()))
    options = TrainOptions(cfg=str(tmp_path / "net.yaml"), data=str(tmp_path / "data.yaml"), img=64, batch=2)
    options = replace(options, workers=0, device="cpu", single_cls=single_cls, project=str(tmp_path / "runs"))
    config = load_data_config(tmp_path / "data.yaml")
    run = set_up(options, Hyperparameters(), config, choose_precision("cpu", "off"), None)
    assert run.training.model.category_ids == run.training.ema.model.category_ids == expected
