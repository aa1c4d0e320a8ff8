"""Prediction from Python: takes images, returns boxes and masks in pixels of these images."""

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.augment.transforms import letterbox
from data.images.pixels import PixelRange, parse_pixel_range
from data.images.reading import ImageReader
from models.yolo import Model
from utils.errors import DataError, SettingsError
from utils.geometry.masks import as_array, instance_regions
from utils.geometry.nms import non_max_suppression, torchvision_nms
from utils.geometry.placement import Placement, unletterbox
from utils.image_size import choose_image_size
from utils.inference.class_choice import CONFIDENCE, Thresholds, class_numbers, class_thresholds
from utils.inference.exported import ExportedNetwork
from utils.inference.inputs import read_inputs
from utils.inference.network import check_channels
from utils.inference.results import Results
from utils.precision import Precision, choose_precision

FULL_16_BIT = "since neither the weights nor pixel_range (--pixel-range) give a range"


def image_reader(given: Sequence[float | str] | None, trained: PixelRange | None) -> ImageReader:
    """Return a reader that scales deep images by the range that the user gave, or by that of the training."""
    if given is not None:
        return ImageReader(parse_pixel_range(given, "pixel_range (--pixel-range)"), "as pixel_range says")
    return ImageReader(trained, "as in training" if trained else FULL_16_BIT)


class Predictor:
    """Detect objects in images: call it with one image or several; docs/detect.md lists what is taken as an image.

    Args:
        model: a network from `utils.inference.network.load_network`; it is not changed.
        image_size: longer side in pixels, or (height, width), that images are resized to fit; rounded up to the stride.
            None: the size that the network was trained at, or 640 if unknown. A static exported file has its own size.
        conf_thres: confidence threshold; or thresholds of single classes, such as `{"person": 0.6, None: 0.25}` or
            `["person=0.6", 0.25]`. A detection is of the class with the highest probability.
        iou_thres: IoU above which the less confident of two boxes of a class is dropped.
        max_det: most detections of an image.
        classes: class numbers or names to keep; None keeps all.
        agnostic: let boxes of different classes suppress each other too.
        precision: device and dtype; None chooses the best available.
        rect: pad images only to multiples of the stride; False, and a static exported file: to the whole size.
        retina_masks: compute masks at the image's resolution, not the network's (utils/geometry/masks.py).
        batch: images that the network gets at once, if they have the same size after letterboxing.
        pixel_range: the values that become black and white in images of another type than uint8; None takes the range
            that the network was trained with, or else 0 to 65535 for uint16 and none for other types.

    Raises:
        SettingsError: a value is out of range, or a class is unknown.
        DataError: `pixel_range` is no pair of numbers.
    """

    def __init__(
        self,
        model: Model | ExportedNetwork,
        image_size: int | Sequence[int] | None = None,
        conf_thres: Thresholds = CONFIDENCE,
        iou_thres: float = 0.45,
        max_det: int = 300,
        classes: Sequence[int | str] | None = None,
        agnostic: bool = False,
        precision: Precision | None = None,
        rect: bool = True,
        retina_masks: bool = False,
        batch: int = 1,
        pixel_range: Sequence[float | str] | None = None,
    ) -> None:
        if not 0 <= iou_thres <= 1:
            raise SettingsError(f"--iou-thres {iou_thres}: expected a number from 0 to 1")
        for flag, number in (("--max-det", max_det), ("--batch", batch)):
            if number < 1:
                raise SettingsError(f"{flag} {number}: expected 1 or more")
        check_channels(model.channels, "the network")
        self.names = list(model.names)
        self.nc = model.nc
        self.multiple = model.multiple
        self.size_hw = choose_image_size(image_size, model)
        self.rect = rect and model.static_hw is None
        self.retina_masks = retina_masks
        self.conf_thres = class_thresholds(conf_thres, self.names)
        self.iou_thres, self.max_det, self.agnostic, self.batch = iou_thres, max_det, agnostic, batch
        self.classes = class_numbers(classes, self.names)
        self.reader = image_reader(pixel_range, model.pixel_range)
        self.scaling_was_said = False
        self.precision = precision or choose_precision()
        self.net = self.precision.place_for_inference(model.deploy().eval())
        torchvision_nms(self.precision.device.type)  # imported now, so that the first image's time excludes the import

    def __call__(self, images: object) -> list[Results]:
        """Return one `Results` for each image, in order.

        The first image of more than 8 bits prints the range of values by which it is scaled.

        Args:
            images: one image, or any iterable of images; see `utils.inference.inputs.TAKEN`.
        Raises:
            DataError: an image cannot be read, or something is no image.
        """
        results: list[Results] = []
        inputs = read_inputs(images, self.reader)
        while batch := list(islice(inputs, self.batch)):
            if line := self.reader.describe():
                if not self.scaling_was_said:
                    print(line)
                self.scaling_was_said = True
                self.reader.deep.clear()  # a service may call for years
            results += self.predict_batch([pixels for pixels, _ in batch], [path for _, path in batch])
        return results

    def prepare(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], Placement]:
        """Letterbox an image; with `rect` each side is the smallest multiple of the network's that holds it."""
        if not self.rect:
            return letterbox(image, self.size_hw)
        sides = image.shape[:2]
        ratio = min(full / side for full, side in zip(self.size_hw, sides, strict=True))
        shape_hw = [math.ceil(max(round(side * ratio), 1) / self.multiple) * self.multiple for side in sides]
        return letterbox(image, (shape_hw[0], shape_hw[1]))

    def predict(self, image: NDArray[np.uint8], path: Path) -> Results:
        """Detect the objects in one (H, W, 3) uint8 RGB image; see `predict_batch`."""
        return self.predict_batch([image], [path])[0]

    def predict_batch(self, images: Sequence[NDArray[np.uint8]], paths: Sequence[Path]) -> list[Results]:
        """Detect the objects in (H, W, 3) uint8 RGB images; those of one size after letterboxing run at once.

        Returns:
            One `Results` for each image, in order; its times are its share of those of its batch.

        Raises:
            DataError: an image has another shape or dtype.
        """
        for image, path in zip(images, paths, strict=True):
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
                raise DataError(f"{path}: array {image.shape} {image.dtype}: expected (height, width, 3) uint8, RGB")
        prepared, by_shape = [], defaultdict[tuple[int, ...], list[int]](list)
        for index, image in enumerate(images):
            start = self._now()
            letterboxed, placement = self.prepare(image)
            prepared.append((letterboxed, placement, self._now() - start))
            by_shape[letterboxed.shape].append(index)
        found: dict[int, Results] = {}
        for indices in by_shape.values():
            results = self._predict_one_shape(
                [images[index] for index in indices],
                [paths[index] for index in indices],
                [prepared[i] for i in indices],
            )
            found |= dict(zip(indices, results, strict=True))
        return [found[index] for index in range(len(images))]

    @torch.inference_mode()
    def _predict_one_shape(
        self,
        images: Sequence[NDArray[np.uint8]],
        paths: Sequence[Path],
        prepared: Sequence[tuple[NDArray[np.uint8], Placement, float]],
    ) -> Iterator[Results]:
        """Yield the results of images that have one size after letterboxing.

        Args:
            prepared: what `prepare` gives for each image, and the seconds that it took.
        """
        times = [self._now()]
        stacked = np.stack([letterboxed.transpose(2, 0, 1) for letterboxed, _, _ in prepared])
        batch = self.precision.images(torch.from_numpy(stacked), dtype=self.precision.dtype or torch.float32)
        times.append(self._now())
        output = self.net(batch)
        prediction, prototypes = (output, None) if isinstance(output, Tensor) else output
        times.append(self._now())
        detections = non_max_suppression(
            prediction, self.nc, self.conf_thres, self.iou_thres, self.max_det, self.classes, self.agnostic
        )
        detections = [rows.float().cpu() for rows in detections]
        times.append(self._now())
        preparing, inference, nms = (np.diff(times) * 1000 / len(images)).tolist()
        for index, (rows, (_, placement, seconds)) in enumerate(zip(detections, prepared, strict=True)):
            speed = {"preprocess": seconds * 1000 + preparing, "inference": inference, "nms": nms}
            boxes = unletterbox(rows[:, :4], placement).numpy()
            regions = None
            if prototypes is not None:
                start = self._now()
                regions = instance_regions(
                    as_array(rows[:, 6:]), as_array(prototypes[index]), boxes, placement, self.retina_masks
                )
                speed["masks"] = (self._now() - start) * 1000
            classes = rows[:, 5].long().numpy()
            yield Results(paths[index], images[index], boxes, rows[:, 4].numpy(), classes, self.names, regions, speed)

    def _now(self) -> float:
        if self.precision.device.type == "cuda":
            torch.cuda.synchronize(self.precision.device)
        return time.perf_counter()
