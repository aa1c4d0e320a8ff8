"""Evaluation with a network that knows the answer: boxes must find their way back to the original images."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from data.dataset import DetectionDataset
from data.labels.annotation import Annotation
from data.loader import Loader, Share, build_loader
from utils.drawing.draw import write_image
from utils.inference import evaluate as module
from utils.inference.evaluate import EvalResult, evaluate, evaluation_mode
from utils.precision import Precision

CPU = Precision(torch.device("cpu"), None, False)
SIZES_HW = [(90, 200), (128, 64), (300, 310), (64, 64), (41, 133)]
NAMES = ["cat", "dog", "kite"]


def make_dataset(folder: Path, rect: bool, crowd: bool = False, image_size: int = 128) -> DetectionDataset:
    """Five images of odd sizes with two objects each, the second a crowd if asked for."""
    annotations = []
    for number, (height, width) in enumerate(SIZES_HW):
        path = folder / f"{number}.png"
        write_image(path, np.full((height, width, 3), 40 * number, np.uint8))
        box = np.array([[0.1, 0.2, 0.45, 0.7], [0.5, 0.1, 0.97, 0.6]], np.float32) * np.array(
            [width, height, width, height], np.float32
        )
        classes, crowds = np.array([number % 3, 2]), np.array([False, crowd])
        areas, ids = np.ones(2), np.array([2 * number + 1, 2 * number + 2])
        annotations.append(Annotation(path, (height, width), number + 10, classes, box, [[], []], crowds, areas, ids))
    return DetectionDataset(annotations, NAMES, image_size, rect=rect, batch_size=2, cache="off")


class Oracle(nn.Module):
    """Answers with the targets of the batches that `loader` will give, and records what it was asked in."""

    def __init__(self, loader: Loader, nc: int = 3, confidence: float = 0.9) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.nc = nc
        self.answers = [self.answer(batch, confidence) for batch in loader]
        self.asked: list[tuple[torch.dtype, bool]] = []

    def answer(self, batch: dict[str, Any], confidence: float) -> Tensor:
        height, width = batch["images"].shape[2:]
        prediction = torch.zeros(len(batch["images"]), 4 + self.nc, 20)
        for anchor, (image, label, *box_norm) in enumerate(batch["targets"].tolist()):
            prediction[int(image), :4, anchor] = torch.tensor(box_norm) * torch.tensor([width, height, width, height])
            prediction[int(image), 4 + int(label), anchor] = confidence
        return prediction

    def forward(self, images: Tensor, raw: bool = False) -> Any:
        self.asked.append((images.dtype, torch.is_autocast_enabled("cpu")))
        answer = self.answers[len(self.asked) - 1]
        return (answer, {"main": [images], "aux": []}) if raw else answer


@pytest.mark.parametrize("rect", [True, False])
def test_known_answers_score_one_in_original_pixels(tmp_path: Path, rect: bool):
    dataset = make_dataset(tmp_path, rect)
    loader = build_loader(dataset, 2)
    result = evaluate(Oracle(loader), loader, CPU, keep_detections=True, progress=False)
    assert result.metrics.map == pytest.approx(1)
    assert result.fitness == pytest.approx(1)
    assert result.metrics.num_images == 5
    assert np.trace(result.confusion) == result.confusion.sum() == 10
    assert sorted(result.detections) == [0, 1, 2, 3, 4]
    for index, detections in result.detections.items():
        expected = dataset.annotations[index].boxes_xyxy
        np.testing.assert_allclose(np.sort(detections[:, :4], 0), np.sort(expected, 0), atol=0.02)


def test_crowds_are_ignored(tmp_path: Path):
    loader = build_loader(make_dataset(tmp_path, rect=True), 2)
    oracle = Oracle(loader)  # answers with both boxes
    (tmp_path / "crowd").mkdir()
    result = evaluate(
        oracle, build_loader(make_dataset(tmp_path / "crowd", rect=True, crowd=True), 2), CPU, progress=False
    )
    assert (result.metrics.num_instances, result.metrics.map, result.metrics.precision) == pytest.approx((5, 1, 1))
    assert result.confusion.sum() == 5


def test_every_class_above_the_threshold_gives_a_box(tmp_path: Path):
    loader = build_loader(make_dataset(tmp_path, rect=False), 2)
    oracle = Oracle(loader)
    for answer in oracle.answers:
        answer[:, 4:][answer[:, 4:].amax(1, keepdim=True).expand(-1, 3, -1) > 0.5] = 0.9
    result = evaluate(oracle, loader, CPU, keep_detections=True, progress=False)
    assert {len(rows) for rows in result.detections.values()} == {6}


def test_single_class_takes_all_for_one(tmp_path: Path):
    whole = make_dataset(tmp_path, rect=False)
    oracle = Oracle(build_loader(whole, 2))
    dataset = DetectionDataset(whole.annotations, NAMES, 128, batch_size=2, cache="off", single_cls=True)
    result = evaluate(oracle, build_loader(dataset, 2), CPU, single_cls=True, progress=False)
    assert result.metrics.map == pytest.approx(1)
    assert result.metrics.classes.tolist() == [0]
    assert result.confusion.tolist() == [[10, 0], [0, 0]]


def test_loss_is_the_mean_over_images(tmp_path: Path):
    loader = build_loader(make_dataset(tmp_path, rect=False), 2)

    def loss(outputs: dict[str, Any], batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.zeros(()), {"box": torch.tensor(float(len(outputs["main"][0])))}

    assert evaluate(Oracle(loader), loader, CPU, loss=loss, progress=False).losses == {
        "box": pytest.approx((2 * 2 + 2 * 2 + 1) / 5)
    }
    assert evaluate(Oracle(loader), loader, CPU, progress=False).losses == {}


@pytest.mark.parametrize(("parameters", "autocast"), [(torch.float32, True), (torch.bfloat16, False)])
def test_number_format_follows_the_parameters(tmp_path: Path, parameters: torch.dtype, autocast: bool):
    loader = build_loader(make_dataset(tmp_path, rect=False), 2)
    oracle = Oracle(loader).to(parameters)
    evaluate(oracle, loader, Precision(torch.device("cpu"), torch.bfloat16, True), progress=False)
    assert oracle.asked == [(parameters, autocast)] * 3


def test_training_mode_comes_back_module_by_module():
    model = nn.Sequential(nn.BatchNorm2d(1), nn.BatchNorm2d(1)).train()
    model[1].eval()
    with evaluation_mode(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == [True, True, False]


def test_nothing_found(tmp_path: Path):
    loader = build_loader(make_dataset(tmp_path, rect=False), 2)
    result = evaluate(Oracle(loader, confidence=0.0), loader, CPU, keep_detections=True, progress=False)
    assert result.metrics.map == 0
    assert all(rows.shape == (0, 6) for rows in result.detections.values())
    assert set(result.speed_ms) == {"preprocess", "inference", "NMS"}


def test_images_are_drawn(tmp_path: Path):
    loader = build_loader(make_dataset(tmp_path, rect=True), 2)
    folder = tmp_path / "plots"
    evaluate(Oracle(loader), loader, CPU, plots_dir=folder, progress=False)
    expected = {"confusion_matrix.png", "PR_curve.png", "F1_curve.png", "P_curve.png", "R_curve.png"}
    expected |= {f"val_batch{number}_{what}.png" for number in range(3) for what in ("labels", "pred")}
    assert {path.name for path in folder.iterdir()} == expected


class MaskOracle(Oracle):
    """Answers with the targets and with their masks, one prototype for each object of an image."""

    task = "segment"

    def answer(self, batch: dict[str, Any], confidence: float) -> Any:
        prediction = super().answer(batch, confidence)
        coefficients, numbers = torch.zeros(len(prediction), 2, 20), [0] * len(prediction)
        prototypes = torch.stack([batch["masks"] == 1, batch["masks"] == 2], 1).float() * 2 - 1
        for anchor, image in enumerate(batch["targets"][:, 0].int().tolist()):
            coefficients[image, numbers[image], anchor] = 5
            if not batch["outlined"][anchor]:
                prototypes[image, numbers[image]] = 1  # its whole box
            numbers[image] += 1
        return torch.cat((prediction, coefficients), 1), prototypes


def make_outlined(folder: Path, rect: bool = True) -> DetectionDataset:
    """The images of `make_dataset` with a diamond in each box as the outline; the very last object has a box only."""
    annotations = make_dataset(folder, rect).annotations
    for item in annotations:
        for row, box in enumerate(item.boxes_xyxy):
            x, y = (box[:2] + box[2:]) / 2
            item.polygons[row] = [np.array([[x, box[1]], [box[2], y], [x, box[3]], [box[0], y]], np.float32)]
    annotations[-1].polygons[1] = []
    return DetectionDataset(annotations, NAMES, 256, rect=rect, batch_size=2, cache="off", masks=True)


@pytest.mark.parametrize("rect", [True, False])
def test_known_masks_are_found_again(tmp_path: Path, rect: bool):
    dataset = make_outlined(tmp_path, rect)
    loader = build_loader(dataset, 2)
    result = evaluate(
        MaskOracle(loader), loader, CPU, keep_detections=True, plots_dir=tmp_path / "plots", progress=False
    )
    assert result.metrics.map == pytest.approx(1)
    assert result.masks.num_instances == 9
    assert (result.masks.map50, result.masks.precision, result.masks.recall) == pytest.approx((1, 1, 1))
    assert result.masks.map > 0.8  # edges of cells of four pixels
    assert result.fitness == pytest.approx(result.metrics.fitness + result.masks.fitness)
    assert set(result.speed_ms) == {"preprocess", "inference", "NMS", "masks"}
    for index, masks in result.segmentations.items():
        assert [mask["size"] for mask in masks] == [list(dataset.annotations[index].file_hw)] * 2
    assert (tmp_path / "plots" / "mask_PR_curve.png").is_file()


def test_wrong_masks_in_right_boxes_count_for_boxes_only(tmp_path: Path):
    loader = build_loader(make_outlined(tmp_path), 2)
    oracle = MaskOracle(loader)
    oracle.answers = [(prediction, -prototypes) for prediction, prototypes in oracle.answers]
    result = evaluate(oracle, loader, CPU, progress=False)
    assert result.metrics.map == pytest.approx(1)
    assert result.masks.map50 < 0.2
    assert result.segmentations == {}


def test_masks_without_outlines_are_not_measured(tmp_path: Path):
    whole = make_dataset(tmp_path, rect=True)
    dataset = DetectionDataset(whole.annotations, NAMES, 128, rect=True, batch_size=2, cache="off", masks=True)
    result = evaluate(
        MaskOracle(build_loader(dataset, 2)), build_loader(dataset, 2), CPU, keep_detections=True, progress=False
    )
    assert result.masks is None
    assert result.fitness == result.metrics.fitness
    assert result.segmentations == {}


class Noisy(nn.Module):
    """Answers with boxes that depend on the pixels only, so that every way to share the images gives the same."""

    def __init__(self, nc: int = 3) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.nc = nc

    def forward(self, images: Tensor, raw: bool = False) -> Any:
        height, width = images.shape[2:]
        rows = []
        for image in images:
            generator = torch.Generator().manual_seed(int(image.double().sum() * 1000))
            boxes = torch.rand(4, 30, generator=generator) * torch.tensor(
                [[width], [height], [width / 2], [height / 2]]
            )
            rows.append(torch.cat((boxes, torch.rand(self.nc, 30, generator=generator))))
        answer = torch.stack(rows)
        return (answer, {"main": [images], "aux": []}) if raw else answer


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_together_find_bit_for_bit_what_one_process_finds(tmp_path: Path, monkeypatch, ranks: int):
    """Five images in batches of two: with four ranks one has no image at all."""
    dataset = make_dataset(tmp_path, rect=True)

    def loss(outputs: Any, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        value = batch["images"].float().mean() / 7
        return value, {"box": value, "cls": value * 3}

    def run(share: Share) -> EvalResult:
        loader = build_loader(dataset, 2, share=share)
        return evaluate(Noisy(), loader, CPU, loss=loss, keep_detections=True, progress=False)

    alone, given = run(Share()), []
    monkeypatch.setattr(module, "gathered", lambda value: given.append(value) or [value])
    for rank in range(ranks):
        run(Share(rank, ranks, whole=True))
    assert len(given) == ranks
    monkeypatch.setattr(module, "gathered", lambda value: copy.deepcopy(given))
    for rank in range(ranks):
        found = run(Share(rank, ranks, whole=True))
        assert found.metrics.num_images == 5, "each image once"
        assert found.losses == alone.losses
        assert np.array_equal(found.confusion, alone.confusion)
        assert sorted(found.detections) == sorted(alone.detections) == [0, 1, 2, 3, 4]
        assert 0 < alone.metrics.map50 < 1
        for name, value in vars(alone.metrics).items():
            assert np.array_equal(getattr(found.metrics, name), value), name
