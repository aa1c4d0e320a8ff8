"""Detections of one image: drawn, cropped, or as rows of label and results files."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.labels.annotation import Id
from data.labels.yolo_txt import label_rows
from utils.drawing.draw import draw_boxes, write_image
from utils.geometry.region import Region, dense_masks
from utils.geometry.rle import encode_region
from utils.metrics.coco_eval import result_rows


@dataclass
class Results:
    """Detections of one image.

    Attributes:
        path: the image file; `image0`, `image1`, … for arrays and other images without one.
        image: (H, W, 3) uint8 RGB.
        boxes_xyxy: (n, 4) float32, pixels of `image`, most confident first.
        scores: (n,) float32 confidences in [0, 1].
        classes: (n,) int64 class numbers.
        names: class names by number.
        regions: pixels of each object (utils/geometry/region.py) for a segmentation network, else None.
        speed: milliseconds by step: `preprocess`, `inference`, `nms`; `masks` for a segmentation network.
    """

    path: Path
    image: NDArray[np.uint8]
    boxes_xyxy: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]
    names: Sequence[str]
    regions: list[Region] | None = None
    speed: dict[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.boxes_xyxy)

    @property
    def masks(self) -> NDArray[np.bool_] | None:
        """(n, H, W) bool masks of a segmentation network, else None; built at each access."""
        return None if self.regions is None else dense_masks(self.regions, self.image.shape[:2])

    def plot(
        self, line_width: int | None = None, hide_labels: bool = False, hide_conf: bool = False
    ) -> NDArray[np.uint8]:
        """Return the image with its objects drawn, (H, W, 3) uint8 RGB."""
        return draw_boxes(
            self.image,
            self.boxes_xyxy,
            self.classes,
            self.names,
            self.scores,
            self.regions,
            line_width,
            hide_labels,
            hide_conf,
        )

    def save(self, path: str | Path) -> Path:
        """Write the image with its objects drawn; return the path (.jpg where the suffix cannot be written)."""
        return write_image(path, self.plot())

    def counts(self) -> dict[str, int]:
        """Count the objects by class name, in class order; classes without objects are left out."""
        numbers, counts = np.unique(self.classes, return_counts=True)
        return {self.names[number]: int(count) for number, count in zip(numbers, counts, strict=True)}

    def crop(self, index: int) -> NDArray[np.uint8]:
        """Cut one box out of the image: (h, w, 3), at least one pixel."""
        height, width = self.image.shape[:2]
        x1, y1, x2, y2 = self.boxes_xyxy[index].tolist()
        left, top = min(int(x1), width - 1), min(int(y1), height - 1)
        return self.image[top : max(int(np.ceil(y2)), top + 1), left : max(int(np.ceil(x2)), left + 1)]

    def txt_rows(self, with_conf: bool = False) -> list[str]:
        """Return rows of a YOLO label file; `with_conf` appends the confidence (see `label_rows`)."""
        scores = self.scores.tolist() if with_conf else None
        return label_rows(self.boxes_xyxy, self.classes.tolist(), self.image.shape[:2], self.regions, scores)

    def coco_rows(
        self, image_id: Id, file_name: str | None = None, categories: Sequence[Id] | None = None
    ) -> list[dict[str, Any]]:
        """Return rows of a COCO results file; masks are run lengths.

        Args:
            file_name: name of the image in the rows; None takes that of its file without folders.
            categories: category id of each class; None takes the class index.
        """
        file_hw = self.image.shape[:2]
        masks = None if self.regions is None else [encode_region(region, file_hw) for region in self.regions]
        classes: list[int] = self.classes.tolist()
        ids: Sequence[Id] = classes if categories is None else [categories[index] for index in classes]
        return result_rows(image_id, file_name or self.path.name, self.boxes_xyxy, self.scores, ids, masks)
