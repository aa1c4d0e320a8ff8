"""Detection metrics by the COCO protocol, from boxes in original pixels: precision, recall, mAP and the curves behind them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from utils.geometry.groups import rank_in_group

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_POINTS = np.linspace(0, 1, 101)
CONFIDENCE_POINTS = np.linspace(0, 1, 1000)
FITNESS_WEIGHTS = {"map50": 0.1, "map": 0.9}

Array = NDArray[np.float64]


def box_iou_crowd(detections_xyxy: Array, truths_xyxy: Array, crowd: NDArray[np.bool_]) -> Array:
    """Return (D, G) overlaps: intersection over union, but over the detection's own area where the truth is a crowd."""
    detections_wh = detections_xyxy[:, 2:4] - detections_xyxy[:, :2]
    truths_wh = truths_xyxy[:, 2:4] - truths_xyxy[:, :2]
    low = np.maximum(detections_xyxy[:, None, :2], truths_xyxy[None, :, :2])
    high = np.minimum(detections_xyxy[:, None, 2:4], truths_xyxy[None, :, 2:4])
    intersection = (high - low).clip(min=0).prod(-1)
    detection_area, truth_area = detections_wh.prod(-1)[:, None], truths_wh.prod(-1)[None]
    union = np.where(crowd[None], detection_area, detection_area + truth_area - intersection)
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def match_detections(
    overlaps: Array, crowd: NDArray[np.bool_], thresholds: Array = IOU_THRESHOLDS
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Match each detection, in row order, to its best truth still free, at every threshold at once.

    Args:
        overlaps: (D, G), detections by falling confidence; negative where the two can never match (different classes).
        crowd: (G) truths that may be matched any number of times; a detection goes there only when no other truth takes it.
        thresholds: (T) smallest overlap of a match.

    Returns:
        (T, D) matched to a truth that counts, and (T, D) matched to a crowd and therefore ignored. Of equal overlaps the last truth wins,
        as in pycocotools.
    """
    least = np.minimum(thresholds, 1 - 1e-10)
    ordinary, crowds = (
        overlaps[:, ~crowd][:, ::-1],
        overlaps[:, crowd],
    )  # reversed: argmax then finds the last of equals
    matched = np.zeros((len(least), len(overlaps)), dtype=bool)
    if ordinary.size:
        taken = np.zeros((len(least), ordinary.shape[1]), dtype=bool)
        for row in np.flatnonzero(ordinary.max(1) >= least.min()):
            free = np.where(taken, -1.0, ordinary[row])
            best = free.argmax(1)
            hit = np.flatnonzero(free[np.arange(len(least)), best] >= least)
            matched[hit, row] = True
            taken[hit, best[hit]] = True
    ignored = np.zeros_like(matched)
    if crowds.size:
        ignored = (crowds.max(1)[None] >= least[:, None]) & ~matched
    return matched, ignored


def average_precision(scores: Array, matched: NDArray[np.bool_], ignored: NDArray[np.bool_], num_truths: int) -> Array:
    """Return (T, 101) interpolated precision at `RECALL_POINTS` of one class, all images together.

    Args:
        scores: (N) confidences, in any order; equal ones keep their order.
        matched: (T, N) from `match_detections`.
        ignored: (T, N) likewise.
        num_truths: truths that count; at least 1.
    """
    order = np.argsort(-scores, kind="mergesort")
    true = np.cumsum(matched[:, order], axis=1, dtype=np.float64)
    false = np.cumsum(~matched[:, order] & ~ignored[:, order], axis=1, dtype=np.float64)
    recall = true / num_truths
    precision = true / (true + false + np.spacing(1))
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    envelope = np.concatenate(
        (envelope, np.zeros((len(envelope), 1))), axis=1
    )  # a recall never reached has precision 0
    return np.stack(
        [row[np.searchsorted(reached, RECALL_POINTS)] for row, reached in zip(envelope, recall, strict=True)]
    )


def confidence_curves(
    scores: Array, matched: NDArray[np.bool_], ignored: NDArray[np.bool_], num_truths: int
) -> tuple[Array, Array]:
    """Return precision and recall of one class against the confidence that a detection needs, at `CONFIDENCE_POINTS`.

    Args:
        scores: (N) confidences.
        matched: (N) at one overlap threshold.
        ignored: (N) likewise.
        num_truths: truths that count; at least 1.

    Returns:
        (1000,) and (1000,); precision is 1 above the most confident detection, and 0 throughout where there is none.
    """
    counted = ~ignored
    order = np.argsort(scores[counted], kind="mergesort")
    rising, true = scores[counted][order], matched[counted][order]
    if not len(rising):
        return np.zeros_like(CONFIDENCE_POINTS), np.zeros_like(CONFIDENCE_POINTS)
    first = np.searchsorted(rising, CONFIDENCE_POINTS)  # detections from here on are confident enough
    num_detections = len(rising) - first
    num_true = np.append(np.cumsum(true[::-1])[::-1], 0)[first]
    precision = np.where(num_detections > 0, num_true / np.maximum(num_detections, 1), 1.0)
    return precision, num_true / num_truths


def smooth(values: Array, fraction: float = 0.1) -> Array:
    """Return the moving mean over `fraction` of the length, the ends continued by their last value."""
    half = round(len(values) * fraction)
    window = 2 * (half // 2) + 1
    return np.convolve(np.pad(values, window // 2, mode="edge"), np.full(window, 1 / window), mode="valid")


@dataclass
class DetectionResult:
    """Metrics over a data set. K counts the classes with at least one truth that is no crowd; means run over those, as COCO's do.

    `precision`, `recall` and `f1` belong to IoU 0.5 and to the one `confidence` that maximises the smoothed mean F1.
    """

    precision: float = 0.0
    recall: float = 0.0
    f1: float = 0.0
    confidence: float = 0.0
    map50: float = 0.0
    map75: float = 0.0
    map: float = 0.0
    num_images: int = 0
    num_instances: int = 0
    classes: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """(K,) class indices; the arrays below follow this order."""
    class_images: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """(K,) images that hold the class."""
    class_instances: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    class_precision: Array = field(default_factory=lambda: np.zeros(0))
    class_recall: Array = field(default_factory=lambda: np.zeros(0))
    class_ap: Array = field(default_factory=lambda: np.zeros((0, len(IOU_THRESHOLDS))))
    """(K, 10) average precision at IoU 0.5, 0.55, … 0.95."""
    confidence_points: Array = field(default_factory=lambda: CONFIDENCE_POINTS)
    """(1000,) x axis of the next three."""
    precision_curve: Array = field(default_factory=lambda: np.zeros((0, len(CONFIDENCE_POINTS))))
    """(K, 1000)"""
    recall_curve: Array = field(default_factory=lambda: np.zeros((0, len(CONFIDENCE_POINTS))))
    """(K, 1000)"""
    f1_curve: Array = field(default_factory=lambda: np.zeros((0, len(CONFIDENCE_POINTS))))
    """(K, 1000)"""
    recall_points: Array = field(default_factory=lambda: RECALL_POINTS)
    """(101,) x axis of the next one."""
    pr_curve: Array = field(default_factory=lambda: np.zeros((0, len(RECALL_POINTS))))
    """(K, 101) interpolated precision at IoU 0.5."""

    @property
    def fitness(self) -> float:
        """The one number by which the best epoch is chosen."""
        return sum(weight * getattr(self, name) for name, weight in FITNESS_WEIGHTS.items())

    def table(self, names: Sequence[str]) -> list[tuple[str, int, int, float, float, float, float]]:
        """Return rows of class, images, instances, P, R, mAP50, mAP50-95: first 'all', then every class with a truth."""
        rows = [("all", self.num_images, self.num_instances, self.precision, self.recall, self.map50, self.map)]
        for row, label in enumerate(self.classes):
            counts = int(self.class_images[row]), int(self.class_instances[row])
            rates = float(self.class_precision[row]), float(self.class_recall[row])
            rows.append((names[label], *counts, *rates, float(self.class_ap[row, 0]), float(self.class_ap[row].mean())))
        return rows

    def summary(self, suffix: str = "") -> dict[str, float]:
        """Return the single numbers under the names that results.csv and metrics.json use, those of masks with `suffix` "(mask)"."""
        return {
            f"metrics/precision{suffix}": self.precision,
            f"metrics/recall{suffix}": self.recall,
            f"metrics/mAP_0.5{suffix}": self.map50,
            f"metrics/mAP_0.5:0.95{suffix}": self.map,
        }


@dataclass
class _Image:
    """What one image adds: its detections with their matches, and its truths."""

    key: int
    scores: Array
    labels: NDArray[np.int64]
    matched: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    truth_labels: NDArray[np.int64]


class DetectionMetrics:
    """Collects images one by one and computes a `DetectionResult` at the end.

    Args:
        max_det: most detections a class and image that count, the most confident first (COCO's `maxDets`).
    """

    def __init__(self, max_det: int = 300) -> None:
        self.max_det = max_det
        self._images: list[_Image] = []

    def update(
        self,
        detections: ArrayLike,
        boxes_xyxy: ArrayLike,
        classes: ArrayLike,
        crowd: ArrayLike | None = None,
        image_id: int | None = None,
        overlaps: Array | None = None,
    ) -> None:
        """Add one image.

        Args:
            detections: (n, 6 or more) x1, y1, x2, y2 in original pixels, confidence, class index; any order.
            boxes_xyxy: (m, 4) truths in original pixels.
            classes: (m) class indices.
            crowd: (m) which truths are crowds, to be ignored; None: none.
            image_id: decides the order of equal scores between images, rising as in pycocotools; None: order of the calls.
            overlaps: (n, m) of the masks, where these are to be compared; None compares the boxes.
        """
        detections, boxes_xyxy, classes, crowd = as_arrays(detections, boxes_xyxy, classes, crowd)
        order = np.argsort(-detections[:, 4], kind="mergesort")
        order = order[rank_in_group(torch.from_numpy(detections[order, 5].astype(np.int64))).numpy() < self.max_det]
        detections = detections[order]
        labels = detections[:, 5].astype(np.int64)
        overlaps = box_iou_crowd(detections[:, :4], boxes_xyxy, crowd) if overlaps is None else overlaps[order]
        overlaps = np.where(labels[:, None] == classes[None], overlaps, -1.0)
        matched, ignored = match_detections(overlaps, crowd)
        key = len(self._images) if image_id is None else image_id
        self._images.append(_Image(key, detections[:, 4], labels, matched, ignored, classes[~crowd]))

    def compute(self) -> DetectionResult:
        """Return the metrics over all images so far; all zero where no class has a truth."""
        images = sorted(self._images, key=lambda image: image.key)
        result = DetectionResult(num_images=len(images))
        if not images:
            return result
        truth_labels = np.concatenate([image.truth_labels for image in images])
        result.classes, result.class_instances = np.unique(truth_labels, return_counts=True)
        result.num_instances = len(truth_labels)
        present = np.concatenate([np.unique(image.truth_labels) for image in images])
        result.class_images = np.unique(present, return_counts=True)[1]
        if len(result.classes):
            self._fill(result, images)
        return result

    @staticmethod
    def _fill(result: DetectionResult, images: list[_Image]) -> None:
        """Compute average precisions and curves class by class, then the means."""
        scores = np.concatenate([image.scores for image in images])
        labels = np.concatenate([image.labels for image in images])
        matched = np.concatenate([image.matched for image in images], axis=1)
        ignored = np.concatenate([image.ignored for image in images], axis=1)
        by_class = np.argsort(labels, kind="stable")
        bounds = np.searchsorted(labels[by_class], np.stack((result.classes, result.classes + 1), 1))
        interpolated, precision, recall = [], [], []
        for (start, stop), num_truths in zip(bounds, result.class_instances, strict=True):
            rows = by_class[start:stop]
            interpolated.append(average_precision(scores[rows], matched[:, rows], ignored[:, rows], int(num_truths)))
            curves = confidence_curves(scores[rows], matched[0, rows], ignored[0, rows], int(num_truths))
            precision.append(curves[0])
            recall.append(curves[1])
        result.class_ap = np.stack(interpolated).mean(2)
        result.pr_curve = np.stack(interpolated)[:, 0]
        result.map50, result.map75, result.map = (
            float(result.class_ap[:, part].mean()) for part in (0, 5, slice(None))
        )
        result.precision_curve, result.recall_curve = np.stack(precision), np.stack(recall)
        result.f1_curve = f1_score(result.precision_curve, result.recall_curve)
        best = int(smooth(result.f1_curve.mean(0)).argmax())
        result.confidence = float(CONFIDENCE_POINTS[best])
        result.class_precision, result.class_recall = result.precision_curve[:, best], result.recall_curve[:, best]
        result.precision, result.recall = float(result.class_precision.mean()), float(result.class_recall.mean())
        result.f1 = float(result.f1_curve[:, best].mean())


def as_arrays(
    detections: ArrayLike, boxes_xyxy: ArrayLike, classes: ArrayLike, crowd: ArrayLike | None
) -> tuple[Array, Array, NDArray[np.int64], NDArray[np.bool_]]:
    """Bring one image's detections and truths (tensors, arrays, lists; empty ones too) to (n, 6 or more), (m, 4), (m) and (m)."""
    detections = np.asarray(detections, dtype=np.float64)
    detections = detections if len(detections) else np.zeros((0, 6))
    classes = np.asarray(classes, dtype=np.int64).reshape(-1)
    crowd = np.zeros(len(classes), dtype=bool) if crowd is None else np.asarray(crowd, dtype=bool).reshape(-1)
    return detections, np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4), classes, crowd


def f1_score(precision: Array, recall: Array) -> Array:
    """Return the harmonic mean of precision and recall, 0 where both are 0."""
    return 2 * precision * recall / np.maximum(precision + recall, 1e-16)
