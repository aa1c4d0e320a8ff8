"""Detection metrics by the COCO protocol: precision, recall, mAP and their curves; boxes in original pixels."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from data.labels.annotation import Id
from utils.geometry.groups import rank_in_group

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_POINTS = np.linspace(0, 1, 101)
CONFIDENCE_POINTS = np.linspace(0, 1, 1000)
FITNESS_WEIGHTS = {"map50": 0.1, "map": 0.9}

Array = NDArray[np.float64]


def box_iou_crowd(detections_xyxy: Array, truths_xyxy: Array, crowd: NDArray[np.bool_]) -> Array:
    """Compute (D, G) overlaps: IoU, or intersection over the detection's own area where the truth is a crowd."""
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
        overlaps: (D, G), detections by falling confidence; negative where classes differ, which never match.
        crowd: (G) truths that may match any number of detections; a detection matches one only if no other truth does.
        thresholds: (T) smallest overlap of a match.

    Returns:
        (T, D) matched to an ordinary truth, and (T, D) matched to a crowd and therefore ignored. Of truths with equal
        overlaps the last one wins, as in pycocotools.
    """
    least = np.minimum(thresholds, 1 - 1e-10)
    # reversed, since argmax finds the first of equals and the last truth must win
    ordinary, crowds = overlaps[:, ~crowd][:, ::-1], overlaps[:, crowd]
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
    """Compute the (T, 101) interpolated precision of one class at `RECALL_POINTS`, over all images.

    Args:
        scores: (N) confidences, in any order; equal ones keep their order.
        matched: (T, N) from `match_detections`.
        ignored: (T, N), the same.
        num_truths: truths that are no crowds; at least 1.
    """
    order = np.argsort(-scores, kind="mergesort")
    true = np.cumsum(matched[:, order], axis=1, dtype=np.float64)
    false = np.cumsum(~matched[:, order] & ~ignored[:, order], axis=1, dtype=np.float64)
    recall = true / num_truths
    precision = true / (true + false + np.spacing(1))
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    envelope = np.pad(envelope, ((0, 0), (0, 1)))  # precision 0 at recalls that are never reached
    return np.stack(
        [row[np.searchsorted(reached, RECALL_POINTS)] for row, reached in zip(envelope, recall, strict=True)]
    )


def confidence_curves(
    scores: Array, matched: NDArray[np.bool_], ignored: NDArray[np.bool_], num_truths: int
) -> tuple[Array, Array]:
    """Compute precision and recall of one class at the confidence thresholds `CONFIDENCE_POINTS`.

    Args:
        scores: (N) confidences.
        matched: (N) at one overlap threshold.
        ignored: (N), the same.
        num_truths: truths that are no crowds; at least 1.

    Returns:
        (1000,) and (1000,). Both are 0 at thresholds that no detection reaches: precision is not defined there, and 1
        would lift the mean over the classes by one that is never found.
    """
    counted = ~ignored
    order = np.argsort(scores[counted], kind="mergesort")
    rising, true = scores[counted][order], matched[counted][order]
    first = np.searchsorted(rising, CONFIDENCE_POINTS)  # the first detection above each threshold
    num_detections = len(rising) - first
    num_true = np.append(np.cumsum(true[::-1])[::-1], 0)[first]
    return num_true / np.maximum(num_detections, 1), num_true / num_truths


def smooth(values: Array, fraction: float = 0.1) -> Array:
    """Compute the moving mean over `fraction` of the length; the end values are repeated beyond the ends."""
    half = round(len(values) * fraction)
    window = 2 * (half // 2) + 1
    return np.convolve(np.pad(values, window // 2, mode="edge"), np.full(window, 1 / window), mode="valid")


@dataclass
class DetectionResult:
    """Metrics over a data set.

    K is the number of classes with at least one truth that is no crowd. Means are taken over these, as in COCO.
    `precision`, `recall` and `f1` are those at IoU 0.5 and at `confidence`, which maximises the smoothed mean F1.
    A class without a detection at that confidence counts with a precision of 0.
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
        """The number that chooses the best epoch."""
        return sum(weight * getattr(self, name) for name, weight in FITNESS_WEIGHTS.items())

    def table(self, names: Sequence[str]) -> list[tuple[str, int, int, float, float, float, float]]:
        """Return rows of class, images, instances, P, R, mAP50, mAP50-95: 'all' first, then each class with a truth."""
        rows = [("all", self.num_images, self.num_instances, self.precision, self.recall, self.map50, self.map)]
        for row, label in enumerate(self.classes):
            counts = int(self.class_images[row]), int(self.class_instances[row])
            rates = float(self.class_precision[row]), float(self.class_recall[row])
            rows.append((names[label], *counts, *rates, float(self.class_ap[row, 0]), float(self.class_ap[row].mean())))
        return rows

    def summary(self, suffix: str = "") -> dict[str, float]:
        """Return the main numbers by their names in results.csv and metrics.json; `suffix` is "(mask)" for masks."""
        return {
            f"metrics/precision{suffix}": self.precision,
            f"metrics/recall{suffix}": self.recall,
            f"metrics/mAP_0.5{suffix}": self.map50,
            f"metrics/mAP_0.5:0.95{suffix}": self.map,
        }


@dataclass
class ImageMatches:
    """The detections of one image with their matches, and its truths."""

    key: Id
    scores: Array
    labels: NDArray[np.int64]
    matched: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    truth_labels: NDArray[np.int64]


class DetectionMetrics:
    """Collect images one by one and compute a `DetectionResult` at the end.

    Args:
        max_det: most detections per class and image; the less confident ones are dropped (COCO's `maxDets`).
    Attributes:
        images: what was added, one entry an image, in any order.
    """

    def __init__(self, max_det: int = 300) -> None:
        self.max_det = max_det
        self.images: list[ImageMatches] = []

    def update(
        self,
        detections: ArrayLike,
        boxes_xyxy: ArrayLike,
        classes: ArrayLike,
        crowd: ArrayLike | None = None,
        image_id: Id | None = None,
        overlaps: Array | None = None,
    ) -> None:
        """Add one image.

        Args:
            detections: (n, 6 or more) x1, y1, x2, y2 in original pixels, confidence, class index; any order.
            boxes_xyxy: (m, 4) truths in original pixels.
            classes: (m) class indices.
            crowd: (m) True for crowds, which are ignored; None if there are none.
            image_id: orders equal scores of different images, ascending as in pycocotools; None orders them by call.
            overlaps: (n, m) overlaps of masks; None compares the boxes.
        """
        detections, boxes_xyxy, classes, crowd = as_arrays(detections, boxes_xyxy, classes, crowd)
        order = np.argsort(-detections[:, 4], kind="mergesort")
        order = order[rank_in_group(torch.from_numpy(detections[order, 5].astype(np.int64))).numpy() < self.max_det]
        detections = detections[order]
        labels = detections[:, 5].astype(np.int64)
        overlaps = box_iou_crowd(detections[:, :4], boxes_xyxy, crowd) if overlaps is None else overlaps[order]
        overlaps = np.where(labels[:, None] == classes[None], overlaps, -1.0)
        matched, ignored = match_detections(overlaps, crowd)
        key = len(self.images) if image_id is None else image_id
        self.images.append(ImageMatches(key, detections[:, 4], labels, matched, ignored, classes[~crowd]))

    def compute(self) -> DetectionResult:
        """Compute the metrics over all images so far; all are zero if no class has a truth."""
        images = sorted(self.images, key=lambda image: image.key)
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
    def _fill(result: DetectionResult, images: list[ImageMatches]) -> None:
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
    """Convert detections and truths, also empty ones, to arrays of shape (n, 6 or more), (m, 4), (m) and (m)."""
    detections = np.asarray(detections, dtype=np.float64)
    detections = detections if len(detections) else np.zeros((0, 6))
    classes = np.asarray(classes, dtype=np.int64).reshape(-1)
    crowd = np.zeros(len(classes), dtype=bool) if crowd is None else np.asarray(crowd, dtype=bool).reshape(-1)
    return detections, np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4), classes, crowd


def f1_score(precision: Array, recall: Array) -> Array:
    """Compute the harmonic mean of precision and recall; 0 where both are 0."""
    return 2 * precision * recall / np.maximum(precision + recall, 1e-16)
