"""The confusion matrix of a detector."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from utils.metrics.detection import Array, as_arrays, box_iou_crowd

CONF_THRES = 0.25
"""Confidence above which a detection counts."""
IOU_THRES = 0.45
"""IoU above which a detection and an object can be a pair."""


class ConfusionMatrix:
    """Counts of predicted class by true class.

    `matrix` is (nc + 1, nc + 1): rows predicted, columns true. The last row counts missed objects, the last column
    detections without an object.
    """

    def __init__(self, nc: int) -> None:
        self.nc = nc
        self.matrix = np.zeros((nc + 1, nc + 1), dtype=np.int64)

    def update(
        self, detections: ArrayLike, boxes_xyxy: ArrayLike, classes: ArrayLike, crowd: ArrayLike | None = None
    ) -> None:
        """Add one image; arguments as for `DetectionMetrics.update`. Pairs form by falling IoU, across classes."""
        detections, boxes_xyxy, classes, crowd = as_arrays(detections, boxes_xyxy, classes, crowd)
        detections = detections[detections[:, 4] > CONF_THRES]
        predicted, true = detections[:, 5].astype(np.int64), classes[~crowd]
        overlaps = box_iou_crowd(detections[:, :4], boxes_xyxy, crowd)
        pairs = _best_pairs(overlaps[:, ~crowd], IOU_THRES)
        np.add.at(self.matrix, (predicted[pairs[:, 0]], true[pairs[:, 1]]), 1)
        missed = np.delete(true, pairs[:, 1])
        np.add.at(self.matrix[self.nc], missed, 1)
        on_crowd = ((overlaps[:, crowd] > IOU_THRES) & (predicted[:, None] == classes[crowd][None])).any(1)
        unpaired = np.ones(len(predicted), dtype=bool)
        unpaired[pairs[:, 0]] = False
        np.add.at(self.matrix[:, self.nc], predicted[unpaired & ~on_crowd], 1)


def _best_pairs(overlaps: Array, threshold: float) -> NDArray[np.int64]:
    """Return (n, 2) row and column of pairs above `threshold`, largest first; each row and column is used once."""
    rows, columns = np.nonzero(overlaps > threshold)
    pairs: list[tuple[int, int]] = []
    used_rows: set[int] = set()
    used_columns: set[int] = set()
    for index in np.argsort(-overlaps[rows, columns], kind="mergesort"):
        row, column = int(rows[index]), int(columns[index])
        if row not in used_rows and column not in used_columns:
            pairs.append((row, column))
            used_rows.add(row)
            used_columns.add(column)
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)
