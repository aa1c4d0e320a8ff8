"""Changes of one image and its objects: letterbox, affine and perspective warp, colour, flips."""

import math
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from data.augment.sample import Sample, clip, map_points, mirror, outlined, scale_and_shift
from data.labels.annotation import Polygon
from utils.geometry.placement import Placement

GREY = 114
MIN_SIDE, MAX_ASPECT = 2.0, 100.0
MIN_AREA_RATIO_BOX, MIN_AREA_RATIO_POLYGON = 0.10, 0.01


class AugmentSettings(Protocol):
    """The hyperparameters that augmentation reads.

    Attributes:
        hsv_h, hsv_s, hsv_v: largest relative change of hue, saturation and value.
        degrees, shear: largest angles.
        translate: largest shift divided by the image's size; scale: largest relative change of size.
        perspective: largest perspective term, 0 to 0.001.
        flipud, fliplr, mosaic, mixup: probabilities.
        copy_paste: share of the outlined objects that are copied.
    """

    hsv_h: float
    hsv_s: float
    hsv_v: float
    degrees: float
    translate: float
    scale: float
    shear: float
    perspective: float
    flipud: float
    fliplr: float
    mosaic: float
    mixup: float
    copy_paste: float


def resized_hw(file_hw: tuple[int, int], image_size: int) -> tuple[int, int]:
    """Return the height and width of an image after resizing its long side to `image_size`."""
    height, width = file_hw
    ratio = image_size / max(file_hw)
    return max(round(height * ratio), 1), max(round(width * ratio), 1)


def resize(image: NDArray[np.uint8], size_hw: tuple[int, int], fast: bool) -> NDArray[np.uint8]:
    """Resize an image: linearly, or by area averaging if it shrinks and `fast` is False."""
    if image.shape[:2] == size_hw:
        return image
    shrinks = size_hw[0] * size_hw[1] < image.shape[0] * image.shape[1]
    interpolation = cv2.INTER_AREA if shrinks and not fast else cv2.INTER_LINEAR
    return cv2.resize(image, (size_hw[1], size_hw[0]), interpolation=interpolation)


def letterbox(
    image: NDArray[np.uint8], shape_hw: tuple[int, int], scaleup: bool = True
) -> tuple[NDArray[np.uint8], Placement]:
    """Fit an image into `shape_hw`, centred on grey.

    Args:
        image: (H, W, 3).
        scaleup: whether to enlarge a smaller image.
    Returns:
        The letterboxed image (the same array if it fits already), and the placement of the original image in it.
    """
    height, width = image.shape[:2]
    ratio = min(shape_hw[0] / height, shape_hw[1] / width)
    if not scaleup:
        ratio = min(ratio, 1.0)
    new_hw = max(round(height * ratio), 1), max(round(width * ratio), 1)
    image = resize(image, new_hw, fast=True)
    half_h, half_w = (shape_hw[0] - new_hw[0]) / 2, (shape_hw[1] - new_hw[1]) / 2
    top, left = round(half_h - 0.1), round(half_w - 0.1)
    bottom, right = round(half_h + 0.1), round(half_w + 0.1)
    if top or bottom or left or right:
        image = cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_CONSTANT, value=(GREY, GREY, GREY))
    return image, Placement((height, width), (new_hw[1] / width, new_hw[0] / height), (left, top))


def letterbox_sample(sample: Sample, shape_hw: tuple[int, int], scaleup: bool) -> tuple[Sample, Placement]:
    """Letterbox an image with its objects; see `letterbox`."""
    image, placement = letterbox(sample.image_rgb, shape_hw, scaleup)
    moved = scale_and_shift(sample.boxes_xyxy, sample.polygons, placement.ratio_wh, placement.pad_wh)
    return Sample(image, sample.classes, *moved), placement


def random_matrix(
    hyp: AugmentSettings, from_wh: tuple[int, int], to_wh: tuple[int, int], rng: np.random.Generator
) -> tuple[NDArray[np.float64], float]:
    """Draw the (3, 3) matrix of a random warp about the centre, and its scale."""
    centre = np.eye(3)
    centre[:2, 2] = -from_wh[0] / 2, -from_wh[1] / 2
    perspective = np.eye(3)
    perspective[2, :2] = rng.uniform(-hyp.perspective, hyp.perspective, 2)
    angle, scale = math.radians(rng.uniform(-hyp.degrees, hyp.degrees)), rng.uniform(1 - hyp.scale, 1 + hyp.scale)
    rotation = np.eye(3)
    rotation[0, :2] = scale * math.cos(angle), scale * math.sin(angle)
    rotation[1, :2] = -scale * math.sin(angle), scale * math.cos(angle)
    shear = np.eye(3)
    shear[0, 1], shear[1, 0] = np.tan(np.radians(rng.uniform(-hyp.shear, hyp.shear, 2)))
    translation = np.eye(3)
    translation[:2, 2] = rng.uniform(0.5 - hyp.translate, 0.5 + hyp.translate, 2) * to_wh
    return translation @ shear @ rotation @ perspective @ centre, scale


def warp_image(image: NDArray[np.uint8], matrix: NDArray[np.float64], size_wh: tuple[int, int]) -> NDArray[np.uint8]:
    """Warp an image by a (3, 3) matrix on continuous coordinates (OpenCV's coordinates are 0.5 less)."""
    to_corner, to_centre = np.eye(3), np.eye(3)
    to_corner[:2, 2], to_centre[:2, 2] = 0.5, -0.5
    matrix = to_centre @ matrix @ to_corner
    border: dict[str, Any] = {"borderMode": cv2.BORDER_CONSTANT, "borderValue": (GREY, GREY, GREY)}
    if matrix[2, 0] == 0 and matrix[2, 1] == 0:
        return cv2.warpAffine(image, matrix[:2], size_wh, flags=cv2.INTER_LINEAR, **border)
    return cv2.warpPerspective(image, matrix, size_wh, flags=cv2.INTER_LINEAR, **border)


def _map_by(matrix: NDArray[np.float64], points: NDArray) -> NDArray[np.float64]:
    mapped = points @ matrix[:, :2].T + matrix[:, 2]
    return mapped[:, :2] / mapped[:, 2:]


def warp_objects(
    boxes_xyxy: NDArray[np.float32], polygons: list[Polygon], matrix: NDArray[np.float64], size_wh: tuple[int, int]
) -> tuple[NDArray[np.float32], list[Polygon]]:
    """Transform objects by a (3, 3) matrix and clip them at the border of the new image; row i remains object i.

    Returns:
        Boxes, around the outline of an object or else around its transformed corners; and outlines.
    """
    if len(boxes_xyxy) == 0:
        return boxes_xyxy, polygons
    corners = _map_by(matrix, boxes_xyxy[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 2)).reshape(-1, 4, 2)
    boxes_xyxy = np.concatenate((corners.min(1), corners.max(1)), 1).astype(np.float32)
    return clip(boxes_xyxy, map_points(polygons, lambda points: _map_by(matrix, points)), size_wh, refit=True)


def worth_keeping(
    before_xyxy: NDArray[np.float32], after_xyxy: NDArray[np.float32], has_outline: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Return (N,), True for boxes of which a warp left enough; `before_xyxy` is in the scale of `after_xyxy`."""
    before_wh, after_wh = before_xyxy[:, 2:] - before_xyxy[:, :2], after_xyxy[:, 2:] - after_xyxy[:, :2]
    short, long = after_wh.min(1), after_wh.max(1)
    ratio = after_wh.prod(1) / np.maximum(before_wh.prod(1), 1e-9)
    return (
        (short > MIN_SIDE)
        & (long < MAX_ASPECT * short)
        & (ratio > np.where(has_outline, MIN_AREA_RATIO_POLYGON, MIN_AREA_RATIO_BOX))
    )


def random_warp(sample: Sample, hyp: AugmentSettings, size_wh: tuple[int, int], rng: np.random.Generator) -> Sample:
    """Warp an image and its objects at random into `size_wh`; drop objects of which too little is left."""
    matrix, scale = random_matrix(hyp, sample.size_wh, size_wh, rng)
    boxes_xyxy, polygons = warp_objects(sample.boxes_xyxy, sample.polygons, matrix, size_wh)
    keep = worth_keeping(sample.boxes_xyxy * scale, boxes_xyxy, outlined(sample.polygons))
    image = sample.image_rgb
    if size_wh != sample.size_wh or not np.array_equal(matrix, np.eye(3)):
        image = warp_image(image, matrix, size_wh)
    return Sample(image, sample.classes, boxes_xyxy, polygons).select(keep)


def random_hsv(image_rgb: NDArray[np.uint8], hyp: AugmentSettings, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Multiply hue, saturation and value by random gains."""
    if not (hyp.hsv_h or hyp.hsv_s or hyp.hsv_v):
        return image_rgb
    gains = 1 + rng.uniform(-1, 1, 3) * (hyp.hsv_h, hyp.hsv_s, hyp.hsv_v)
    table = np.arange(256)[:, None] * gains
    table[:, 0] %= 180  # OpenCV's hue is in units of two degrees
    lookup = np.clip(table, 0, 255).astype(np.uint8).reshape(256, 1, 3)
    hsv = cv2.cvtColor(image_rgb, cv2.COLOR_RGB2HSV)
    return cv2.cvtColor(cv2.LUT(hsv, lookup), cv2.COLOR_HSV2RGB)


def flip(sample: Sample, axis: int) -> Sample:
    """Mirror an image with its objects along `axis`: 0 swaps left and right, 1 top and bottom."""
    boxes_xyxy, polygons = mirror(sample.boxes_xyxy, sample.polygons, axis, sample.size_wh[axis])
    return Sample(cv2.flip(sample.image_rgb, 1 - axis), sample.classes, boxes_xyxy, polygons)


def random_flips(sample: Sample, hyp: AugmentSettings, rng: np.random.Generator) -> Sample:
    """Mirror an image with probabilities `flipud` and `fliplr`."""
    chance_ud, chance_lr = rng.random(2)
    if chance_ud < hyp.flipud:
        sample = flip(sample, 1)
    return flip(sample, 0) if chance_lr < hyp.fliplr else sample
