"""Prediction from Python: takes images, returns boxes and masks in pixels of these images."""

import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.augment.transforms import letterbox
from data.images.reading import read_image
from models.yolo import Model
from utils.errors import DataError, SettingsError, did_you_mean
from utils.geometry.masks import as_array, instance_regions
from utils.geometry.nms import non_max_suppression, torchvision_nms
from utils.geometry.placement import Placement, unletterbox
from utils.image_size import choose_image_size
from utils.inference.exported import ExportedNetwork
from utils.inference.results import Results
from utils.precision import Precision, choose_precision

Image = str | Path | NDArray[np.uint8]


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
    """Detect objects in images: call it with a path, an array (H, W, 3) uint8 RGB, or a list of these.

    Args:
        model: a network from `utils.inference.network.load_network`; it is not changed.
        image_size: longer side in pixels, or (height, width), that images are resized to fit; rounded up to the stride.
            None: the size that the network was trained at, or 640 if unknown. A static exported file has its own size.
        conf_thres: confidence threshold.
        iou_thres: IoU above which the less confident of two boxes of a class is dropped.
        max_det: most detections of an image.
        classes: class numbers or names to keep; None keeps all.
        agnostic: let boxes of different classes suppress each other too.
        precision: device and dtype; None chooses the best available.
        rect: pad images only to multiples of the stride; False, and a static exported file: to the whole size.
        retina_masks: compute masks at the image's resolution, not the network's (utils/geometry/masks.py).

    Raises:
        SettingsError: a value is out of range, or a class is unknown.
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
        if model.channels != 3:
            raise SettingsError(f"network of {model.channels} channels: expected 3 (RGB) for prediction from images")
        self.names = list(model.names)
        self.nc = model.nc
        self.multiple = model.multiple
        self.size_hw = choose_image_size(image_size, model)
        self.rect = rect and model.static_hw is None
        self.retina_masks = retina_masks
        self.conf_thres, self.iou_thres, self.max_det, self.agnostic = conf_thres, iou_thres, max_det, agnostic
        self.classes = class_numbers(classes, self.names)
        self.precision = precision or choose_precision()
        self.net = self.precision.place_for_inference(model.deploy().eval())
        torchvision_nms(self.precision.device.type)  # imported now, so that the first image's time excludes the import

    def __call__(self, images: Image | Sequence[Image]) -> list[Results]:
        """Return one `Results` for each image, in order.

        Raises:
            DataError: a file cannot be read, or an array is no (H, W, 3) uint8 image.
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
        """Letterbox an image; with `rect` each side is the smallest multiple of the network's that holds it."""
        if not self.rect:
            return letterbox(image, self.size_hw)
        sides = image.shape[:2]
        ratio = min(full / side for full, side in zip(self.size_hw, sides, strict=True))
        shape_hw = [math.ceil(max(round(side * ratio), 1) / self.multiple) * self.multiple for side in sides]
        return letterbox(image, (shape_hw[0], shape_hw[1]))

    @torch.inference_mode()
    def predict(self, image: NDArray[np.uint8], path: Path) -> Results:
        """Detect the objects in one (H, W, 3) uint8 RGB image.

        Raises:
            DataError: the image has another shape or dtype.
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
