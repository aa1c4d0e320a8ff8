"""Evaluation of a network on a data set, used by training and by val.py."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from data.labels.annotation import Annotation
from data.loader import Loader
from models.yolo import Model
from utils.drawing.plots import plot_batch, plot_confusion, plot_curves
from utils.geometry.boxes import xyxy_to_cxcywh
from utils.geometry.masks import as_array, numbered_region, prototype_map
from utils.geometry.nms import non_max_suppression, torchvision_nms
from utils.geometry.placement import unletterbox
from utils.geometry.rle import encode_region
from utils.inference.exported import ExportedNetwork
from utils.metrics.confusion import ConfusionMatrix
from utils.metrics.detection import DetectionMetrics, DetectionResult
from utils.metrics.mask_overlap import mask_overlaps, truth_masks
from utils.precision import Precision
from utils.ranks import gathered

NUM_PLOTTED_BATCHES = 3
PLOT_CONF_THRES = 0.25
STAGES = ("preprocess", "inference", "NMS")

Batch = Mapping[str, Any]
Loss = Callable[[Any, Batch], tuple[Tensor, dict[str, Tensor]]]


@dataclass
class EvalResult:
    """Results of an evaluation.

    Attributes:
        metrics: precision, recall, mAP and curves.
        losses: mean of each loss item over the images; empty without a loss.
        speed_ms: milliseconds per image by stage, without the loader and the loss.
        confusion: (nc + 1, nc + 1), rows predicted, columns true, background last.
        detections: by data set index, (n, 6) x1, y1, x2, y2 in original pixels, confidence, class index; empty unless
            `keep_detections`.
        masks: the same metrics by the overlap of masks; None unless the network segments and the data set has outlines.
        segmentations: by data set index, the mask of each detection as COCO's run lengths; empty unless
            `keep_detections`.
    """

    metrics: DetectionResult
    losses: dict[str, float]
    speed_ms: dict[str, float]
    confusion: np.ndarray
    detections: dict[int, np.ndarray] = field(default_factory=dict)
    masks: DetectionResult | None = None
    segmentations: dict[int, list[dict[str, object]]] = field(default_factory=dict)

    @property
    def fitness(self) -> float:
        """The number that chooses the best epoch: the boxes' fitness plus the masks'."""
        return self.metrics.fitness + (self.masks.fitness if self.masks else 0.0)


class Stopwatch:
    """Total seconds spent in named stages; each stage starts and ends when the device has finished its work."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = dict.fromkeys(STAGES, 0.0)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the body of the with statement as stage `name`."""
        self._wait()
        start = time.perf_counter()
        yield
        self._wait()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type != "cpu":
            getattr(torch, self.device.type).synchronize()  # torch.cuda or torch.mps


class LossMean:
    """Mean of the loss items over images; empty without a loss.

    Args:
        class_order: as for `evaluate`.
    Attributes:
        parts: number of the batch in the data set, its images, and its items times its images.
    """

    def __init__(self, loss: Loss | None, class_order: NDArray[np.int64] | None = None) -> None:
        self.loss = loss
        self.network_class = None if class_order is None else torch.from_numpy(np.argsort(class_order))
        self.parts: list[tuple[int, int, dict[str, Tensor]]] = []

    def update(self, outputs: Any, batch: Batch, number: int) -> None:
        """Add one batch, the data set's `number`-th."""
        if self.loss is None:
            return
        if self.network_class is not None:
            targets = batch["targets"].clone()
            targets[:, 1] = self.network_class[targets[:, 1].long().cpu()].to(targets)
            batch = {**batch, "targets": targets}
        _, items = self.loss(outputs, batch)
        images = len(batch["images"])
        self.parts.append((number, images, {name: (value * images).cpu() for name, value in items.items()}))

    def compute(self) -> dict[str, float]:
        """Return the means by item name."""
        sums: dict[str, Tensor] = {}
        for _, _, items in sorted(self.parts, key=lambda part: part[0]):
            for name, value in items.items():
                sums[name] = sums[name] + value if name in sums else value
        images = sum(part[1] for part in self.parts)
        return {name: float(total) / images for name, total in sums.items()}


def evaluate(
    model: Model | ExportedNetwork,
    loader: Loader,
    precision: Precision,
    *,
    conf_thres: float = 0.001,
    iou_thres: float = 0.7,
    max_det: int = 300,
    loss: Loss | None = None,
    single_cls: bool = False,
    class_order: NDArray[np.int64] | None = None,
    keep_detections: bool = False,
    plots_dir: Path | None = None,
    progress: bool = True,
) -> EvalResult:
    """Run `model` on the letterboxed images of `loader` and compare its boxes and masks with the annotations.

    Args:
        model: network on the precision's device. Float32 parameters run under autocast where `precision` has a dtype;
            others run in their own dtype. Its training mode is restored at the end.
        loader: batches of a data set without augmentation. Several ranks each read whole batches of their own, and
            all of them return the result for all images.
        precision: device, dtype and memory layout of the run.
        conf_thres: confidence threshold; an anchor point gives one box for every class above it.
        iou_thres: IoU above which the less confident of two boxes of a class is dropped.
        max_det: most boxes of an image.
        loss: from `build_loss(model)`; None leaves `losses` empty.
        single_cls: treat all classes of the network as the data set's only one.
        class_order: the data set's class of each class of the network; None where both have the same number.
        keep_detections: return boxes and masks too.
        plots_dir: folder for curves, the confusion matrix and the first batches; None draws nothing.
        progress: show a progress bar.
    """
    torchvision_nms(precision.device.type)  # imported now, so that no stage's time includes the import
    dataset, share = loader.dataset, loader.share
    metrics, confusion = DetectionMetrics(max_det), ConfusionMatrix(len(dataset.names))
    stopwatch, losses = Stopwatch(precision.device), LossMean(loss, class_order)
    result = EvalResult(DetectionResult(), {}, {}, confusion.matrix)
    masks = (
        MaskEvaluation(max_det, result.segmentations if keep_detections else None)
        if has_masks(model, dataset.annotations)
        else None
    )
    bar = tqdm(loader, desc="validating", unit="batch", disable=not progress, dynamic_ncols=True)
    with evaluation_mode(model), torch.inference_mode():
        for number, batch in enumerate(bar):
            prediction, outputs = _predict(model, batch["images"], precision, stopwatch, raw=loss is not None)
            losses.update(outputs, batch, number * share.ranks + share.rank)
            with stopwatch.stage("NMS"):
                rows = non_max_suppression(
                    prediction[0], model.nc, conf_thres, iou_thres, max_det, agnostic=single_cls, multi_label=True
                )
                rows = [image.cpu() for image in rows]
            _number_classes_as_the_data(rows, single_cls, class_order)
            found = list(_in_original_pixels(rows, batch))
            for index, detections in zip(batch["indices"], found, strict=True):
                item = dataset.annotations[int(index)]
                truths = item.boxes_xyxy, item.classes, item.crowd
                metrics.update(detections, *truths, image_id=item.image_id)
                confusion.update(detections, *truths)
                if keep_detections:
                    result.detections[int(index)] = detections
            if masks is not None:
                with stopwatch.stage("masks"):
                    masks.update(dataset.annotations, batch, found, rows, prediction[1])
            if plots_dir is not None and number < NUM_PLOTTED_BATCHES:
                _plot_batch(
                    number, batch, rows, dataset.names, plots_dir, prediction[1] if len(prediction) > 1 else None
                )
    if share.ranks > 1:
        join_ranks(metrics, confusion, losses, masks, stopwatch, result)
    result.detections = dict(sorted(result.detections.items()))
    result.segmentations = dict(sorted(result.segmentations.items()))
    result.metrics, result.losses = metrics.compute(), losses.compute()
    result.masks = masks.metrics.compute() if masks is not None else None
    result.speed_ms = {
        stage: 1000 * seconds / max(result.metrics.num_images, 1) for stage, seconds in stopwatch.seconds.items()
    }
    if plots_dir is not None:
        _plot_result(result, dataset.names, plots_dir)
    return result


def join_ranks(
    metrics: DetectionMetrics,
    confusion: ConfusionMatrix,
    losses: LossMean,
    masks: "MaskEvaluation | None",
    stopwatch: Stopwatch,
    result: EvalResult,
) -> None:
    """Replace what this rank has found by what all ranks have found together; they have read different images."""
    of_masks = masks.metrics.images if masks is not None else []
    own = (metrics.images, of_masks, confusion.matrix, losses.parts, stopwatch.seconds)
    found = gathered((*own, result.detections, result.segmentations))
    metrics.images = [image for rank in found for image in rank[0]]
    if masks is not None:
        masks.metrics.images = [image for rank in found for image in rank[1]]
    confusion.matrix[...] = np.sum([rank[2] for rank in found], axis=0)
    losses.parts = [part for rank in found for part in rank[3]]
    stopwatch.seconds = {stage: sum(rank[4].get(stage, 0.0) for rank in found) for stage in stopwatch.seconds}
    for rank in found:
        result.detections |= rank[5]
        result.segmentations |= rank[6]


def has_masks(model: nn.Module, annotations: Iterable[Annotation]) -> bool:
    """Tell whether masks can be evaluated: the network segments, and an object has an outline."""
    return getattr(model, "task", "detect") == "segment" and any(any(item.polygons) for item in annotations)


class MaskEvaluation:
    """Metrics of the masks, image by image; masks are made by the full rule of utils/geometry/masks.py.

    Args:
        max_det: as for `DetectionMetrics`.
        segmentations: receives the masks by data set index, as COCO's run lengths; None drops them.
    """

    def __init__(self, max_det: int, segmentations: dict[int, list[dict[str, object]]] | None) -> None:
        self.metrics, self.segmentations = DetectionMetrics(max_det), segmentations

    def update(
        self,
        annotations: list[Annotation],
        batch: Batch,
        found: list[np.ndarray],
        rows: list[Tensor],
        prototypes: Tensor,
    ) -> None:
        """Add one batch.

        Args:
            found: (n, 6) detections of each image in original pixels.
            rows: (n, 6 + M) the same detections in pixels of the network's input, with mask coefficients.
            prototypes: (B, M, h, w).
        """
        images = zip(batch["indices"], found, rows, prototypes, batch["placements"], strict=True)
        for index, detections, image, own, placement in images:
            item, own = annotations[int(index)], as_array(own)
            region_of = partial(numbered_region, as_array(image[:, 6:]), own, detections[:, :4], placement)
            truths, ignored = truth_masks(item)
            overlaps = mask_overlaps(detections, region_of, truths, item.classes, ignored)
            self.metrics.update(detections, item.boxes_xyxy, item.classes, ignored, item.image_id, overlaps)
            if self.segmentations is not None:
                self.segmentations[int(index)] = [
                    encode_region(region_of(row), item.file_hw) for row in range(len(detections))
                ]


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put `model` into evaluation mode; at the end, modules that were in training mode return to it."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _predict(
    model: nn.Module, pixels: Tensor, precision: Precision, stopwatch: Stopwatch, raw: bool
) -> tuple[tuple[Tensor, ...], Any]:
    """Run the network on one batch.

    Returns:
        The decoded prediction (B, 4 + nc (+ nm), A) with the prototypes of a segmentation network, and the network's
        raw outputs (None unless `raw`).
    """
    # an exported network has no parameters
    dtype = next((parameter.dtype for parameter in model.parameters()), torch.float32)
    with stopwatch.stage("preprocess"):
        images = precision.images(pixels, dtype)
    with stopwatch.stage("inference"), precision.autocast() if dtype is torch.float32 else contextlib.nullcontext():
        prediction, outputs = model(images, raw=True) if raw else (model(images), None)
    return prediction if isinstance(prediction, tuple) else (prediction,), outputs


def _in_original_pixels(rows: Iterable[Tensor], batch: Batch) -> Iterator[np.ndarray]:
    """Yield each image's (n, 6) detections mapped back from the letterboxed image."""
    for image, placement in zip(rows, batch["placements"], strict=True):
        yield torch.cat((unletterbox(image[:, :4], placement), image[:, 4:6]), 1).numpy()


def _number_classes_as_the_data(
    rows: Iterable[Tensor], single_cls: bool, class_order: NDArray[np.int64] | None
) -> None:
    """Replace the network's class numbers in detections (n, 6) by the data set's, in place."""
    for image in rows:
        if single_cls:
            image[:, 5] = 0
        elif class_order is not None:
            image[:, 5] = torch.from_numpy(class_order)[image[:, 5].long()].to(image)


def _plot_result(result: EvalResult, names: list[str], folder: Path) -> None:
    """Draw the curves and the confusion matrix."""
    plot_curves(result.metrics, names, folder)
    if result.masks is not None:
        plot_curves(result.masks, names, folder, "mask_")
    plot_confusion(result.confusion, names, folder / "confusion_matrix.png")


def _plot_batch(
    number: int, batch: Batch, rows: list[Tensor], names: list[str], folder: Path, prototypes: Tensor | None = None
) -> None:
    """Draw a batch twice: with its labels, and with its detections above `PLOT_CONF_THRES`."""
    height, width = batch["images"].shape[2:]
    plot_batch(
        batch["images"], batch["targets"], names, folder / f"val_batch{number}_labels.png", masks=batch.get("masks")
    )
    found, masks = [], []
    for number_in_batch, found_rows in enumerate(rows):
        confident = found_rows[found_rows[:, 4] > PLOT_CONF_THRES]
        boxes_norm = xyxy_to_cxcywh(confident[:, :4]) / confident.new_tensor((width, height, width, height))
        found.append(
            torch.cat(
                (
                    torch.full((len(confident), 1), float(number_in_batch)),
                    confident[:, 5:6],
                    boxes_norm,
                    confident[:, 4:5],
                ),
                1,
            )
        )
        if prototypes is not None:
            masks.append(
                prototype_map(
                    as_array(confident[:, 6:]), as_array(prototypes[number_in_batch]), confident[:, :4].numpy()
                )
            )
    shown = np.stack(masks) if masks else None
    plot_batch(batch["images"], torch.cat(found), names, folder / f"val_batch{number}_pred.png", masks=shown)
