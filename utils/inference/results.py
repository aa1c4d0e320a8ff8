"""Prediction from Python: images in, boxes and masks in the images' own pixels out."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.augment.transforms import letterbox
from data.images.reading import read_image
from data.labels.coco_json import result_rows
from data.labels.yolo_txt import label_rows
from models.yolo import Model
from utils.drawing.draw import draw_boxes, write_image
from utils.errors import DataError, SettingsError, did_you_mean
from utils.geometry.masks import as_array, instance_regions
from utils.geometry.nms import non_max_suppression, torchvision_nms
from utils.geometry.placement import Placement, unletterbox
from utils.geometry.region import Region, dense_masks
from utils.geometry.rle import encode_region
from utils.image_size import choose_image_size, static_size
from utils.inference.exported import ExportedNetwork
from utils.precision import Precision, choose_precision

Image = str | Path | NDArray[np.uint8]


@dataclass
class Results:
    """What the network found in one image.

    Attributes:
        path: the file it came from; a made-up name such as `image0` for an array.
        image: (H, W, 3) uint8 RGB, the image itself.
        boxes_xyxy: (n, 4) float32, pixels of `image`, most confident first.
        scores: (n,) float32 confidences in [0, 1].
        classes: (n,) int64 class numbers.
        names: class names by number.
        regions: pixels of each object (`mask` with its place, see utils/geometry/region.py) for a segmentation network, else None.
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
        """(n, H, W) bool masks at the image's size for a segmentation network, else None; made anew whenever it is asked for."""
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
        """Write the annotated image and return where (as .jpg if the suffix is one that cannot be written)."""
        return write_image(path, self.plot())

    def counts(self) -> dict[str, int]:
        """Return the number of objects by class name, in class order, classes without objects left out."""
        numbers, counts = np.unique(self.classes, return_counts=True)
        return {self.names[number]: int(count) for number, count in zip(numbers, counts, strict=True)}

    def crop(self, index: int) -> NDArray[np.uint8]:
        """Return the (h, w, 3) part of the image inside one box, at least one pixel."""
        height, width = self.image.shape[:2]
        x1, y1, x2, y2 = self.boxes_xyxy[index].tolist()
        left, top = min(int(x1), width - 1), min(int(y1), height - 1)
        return self.image[top : max(int(np.ceil(y2)), top + 1), left : max(int(np.ceil(x2)), left + 1)]

    def txt_rows(self, with_conf: bool = False) -> list[str]:
        """Return rows of a YOLO label file, `with_conf` with the confidence at the end (see `label_rows`)."""
        scores = self.scores.tolist() if with_conf else None
        return label_rows(self.boxes_xyxy, self.classes.tolist(), self.image.shape[:2], self.regions, scores)

    def coco_rows(self, image_id: int | str, file_name: str | None = None) -> list[dict[str, Any]]:
        """Return rows of a COCO results file; `category_id` is the class index, masks are run lengths."""
        file_hw = self.image.shape[:2]
        masks = None if self.regions is None else [encode_region(region, file_hw) for region in self.regions]
        rows = result_rows(image_id, self.boxes_xyxy, self.scores, self.classes.tolist(), masks)
        return [{"image_id": image_id, "file_name": file_name or self.path.name} | row for row in rows]


def class_numbers(wanted: Sequence[int | str] | None, names: Sequence[str]) -> list[int] | None:
    """Turn class names or numbers into numbers; None stays None (all classes).

    Raises:
        SettingsError: a class that the network does not have.
    """
    if wanted is None:
        return None
    numbers = []
    for entry in wanted:
        if str(entry) in names:
            numbers.append(list(names).index(str(entry)))
        elif str(entry).isdigit() and int(entry) < len(names):
            numbers.append(int(entry))
        else:
            known = f"the network knows 0..{len(names) - 1}: {', '.join(names[:10])}{', …' if len(names) > 10 else ''}"
            raise SettingsError(f"--classes {entry}: no such class: {known}.{did_you_mean(str(entry), names)}")
    return numbers


class Predictor:
    """Finds objects in images: call it with a path, an array (H, W, 3) uint8 RGB, or a list of them.

    Args:
        model: a network in evaluation form (`utils.inference.exported.load_network`); it is not changed.
        image_size: pixels of the longer side that the network sees, or (height, width) to fit into; rounded up to the stride. By default
            the size that the network was trained at, 640 where it does not say. A static exported file takes its own size only.
        conf_thres: least confidence of a detection.
        iou_thres: overlap above which the less confident of two boxes of a class is dropped.
        max_det: most detections of an image.
        classes: class numbers or names to keep; None keeps all.
        agnostic: boxes of different classes suppress each other, too.
        precision: device and number format; None chooses the best present.
        rect: fill an image up with grey only as far as the stride needs it; else (and for static exported files) to the whole size.
        retina_masks: masks with the image's full resolution at their edges, not the network's (utils/geometry/masks.py).

    Raises:
        SettingsError: a value out of range, or an unknown class.
    """

    def __init__(
        self,
        model: Model | ExportedNetwork,
        image_size: int | Sequence[int] | None = None,
        conf_thres: float = 0.25,
        iou_thres: float = 0.45,
        max_det: int = 300,
        classes: Sequence[int | str] | None = None,
        agnostic: bool = False,
        precision: Precision | None = None,
        rect: bool = True,
        retina_masks: bool = False,
    ) -> None:
        for flag, value in (("--conf-thres", conf_thres), ("--iou-thres", iou_thres)):
            if not 0 <= value <= 1:
                raise SettingsError(f"{flag} {value}: expected a number from 0 to 1")
        if max_det < 1:
            raise SettingsError(f"--max-det {max_det}: expected 1 or more")
        if getattr(model, "channels", 3) != 3:
            raise SettingsError(
                f"the network takes {model.channels} channels: prediction from image files expects 3 (RGB)"
            )
        self.names = list(model.names)
        self.nc = model.nc
        self.stride = max(model.stride)
        self.size_hw = choose_image_size(image_size, model)
        self.rect = rect and static_size(model) is None
        self.retina_masks = retina_masks
        self.conf_thres, self.iou_thres, self.max_det, self.agnostic = conf_thres, iou_thres, max_det, agnostic
        self.classes = class_numbers(classes, self.names)
        self.precision = precision or choose_precision()
        self.net = self.precision.place_for_inference(model.deploy().eval())
        torchvision_nms(self.precision.device.type)  # imported now, so that the first image's time is its own

    def __call__(self, images: Image | Sequence[Image]) -> list[Results]:
        """Return one `Results` for each image, in order.

        Raises:
            DataError: a file that cannot be read, or an array that is no (H, W, 3) uint8 image.
        """
        if isinstance(images, (str, Path, np.ndarray)):
            images = [images]
        results = []
        for index, image in enumerate(images):
            if isinstance(image, np.ndarray):
                results.append(self.predict(image, Path(f"image{index}")))
            else:
                results.append(self.predict(read_image(image), Path(image)))
        return results

    def prepare(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], Placement]:
        """Letterbox an image; with `rect` each side is the smallest multiple of the stride that holds it."""
        if not self.rect:
            return letterbox(image, self.size_hw)
        sides = image.shape[:2]
        ratio = min(full / side for full, side in zip(self.size_hw, sides, strict=True))
        shape_hw = [math.ceil(max(round(side * ratio), 1) / self.stride) * self.stride for side in sides]
        return letterbox(image, (shape_hw[0], shape_hw[1]))

    @torch.inference_mode()
    def predict(self, image: NDArray[np.uint8], path: Path) -> Results:
        """Return what is in one (H, W, 3) uint8 RGB image.

        Raises:
            DataError: another shape or number format.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise DataError(f"{path}: array {image.shape} {image.dtype}: expected (height, width, 3) uint8, RGB")
        times = [time.perf_counter()]
        letterboxed, placement = self.prepare(image)
        batch = torch.from_numpy(np.ascontiguousarray(letterboxed.transpose(2, 0, 1)))[None]
        batch = self.precision.images(batch, dtype=self.precision.dtype or torch.float32)
        times.append(self._now())
        output = self.net(batch)
        prediction, prototypes = (output, None) if isinstance(output, Tensor) else output
        times.append(self._now())
        rows = non_max_suppression(
            prediction, self.nc, self.conf_thres, self.iou_thres, self.max_det, self.classes, self.agnostic
        )[0]
        rows = rows.float().cpu()
        boxes = unletterbox(rows[:, :4], placement)
        times.append(self._now())
        regions = None
        if prototypes is not None:
            regions = instance_regions(
                as_array(rows[:, 6:]), as_array(prototypes[0]), boxes.numpy(), placement, self.retina_masks
            )
            times.append(self._now())
        speed = dict(zip(("preprocess", "inference", "nms", "masks"), (np.diff(times) * 1000).tolist(), strict=False))
        classes = rows[:, 5].long().numpy()
        return Results(path, image, boxes.numpy(), rows[:, 4].numpy(), classes, self.names, regions, speed)

    def _now(self) -> float:
        if self.precision.device.type == "cuda":
            torch.cuda.synchronize(self.precision.device)
        return time.perf_counter()
