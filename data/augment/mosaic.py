"""Images composed of several: mosaic of four images, copy-paste of outlined objects, mixup."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from data.augment.sample import SUBPIXEL_BITS, Sample, clip, join, mirror, outlined, scale_and_shift
from data.augment.transforms import GREY
from data.labels.annotation import Polygon

MAX_COVERED = 0.30
MIXUP_BETA = 32.0


def mosaic(tiles: Sequence[Sample], size: int, rng: np.random.Generator) -> Sample:
    """Put four images around a random centre of a grey canvas.

    Args:
        tiles: four images (top left, top right, bottom left, bottom right), no side over `size`.
        size: half the side of the canvas; the centre is uniform in its middle half.
    """
    side = 2 * size
    canvas = np.full((side, side, 3), GREY, np.uint8)
    centre_x, centre_y = (int(value) for value in rng.uniform(size / 2, side - size / 2, 2))
    placed = []
    for position, tile in enumerate(tiles):
        width, height = tile.size_wh
        left = centre_x if position % 2 else centre_x - width
        top = centre_y if position // 2 else centre_y - height
        x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + width, side), min(top + height, side)
        canvas[y1:y2, x1:x2] = tile.image_rgb[y1 - top : y2 - top, x1 - left : x2 - left]
        placed.append(
            Sample(canvas, tile.classes, *scale_and_shift(tile.boxes_xyxy, tile.polygons, (1, 1), (left, top)))
        )
    whole = join(canvas, placed)
    whole.boxes_xyxy, whole.polygons = clip(whole.boxes_xyxy, whole.polygons, (side, side))
    return whole.select(np.all(whole.boxes_xyxy[:, 2:] > whole.boxes_xyxy[:, :2], axis=1))


def covered_share(box_xyxy: NDArray[np.float32], others_xyxy: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the share (N,) of the area of each of `others_xyxy` (N, 4) that `box_xyxy` (4,) covers."""
    low, high = np.maximum(box_xyxy[:2], others_xyxy[:, :2]), np.minimum(box_xyxy[2:], others_xyxy[:, 2:])
    overlap = np.maximum(high - low, 0).prod(1)
    return overlap / np.maximum((others_xyxy[:, 2:] - others_xyxy[:, :2]).prod(1), 1e-9)


def copy_paste(sample: Sample, share: float, rng: np.random.Generator) -> Sample:
    """Paste mirror images of outlined objects where they cover less than 30 % of every box; changes the image in place.

    Args:
        share: share of the outlined objects to try, 0 to 1. Objects with only a box are never copied.
    """
    rows = np.flatnonzero(outlined(sample.polygons))
    count = round(share * len(rows))
    if count == 0:
        return sample
    width, _ = sample.size_wh
    mirrored_boxes, mirrored = mirror(sample.boxes_xyxy, sample.polygons, 0, width)
    taken, boxes_xyxy = [], sample.boxes_xyxy
    for row in rng.choice(rows, count, replace=False):
        if (covered_share(mirrored_boxes[row], boxes_xyxy) < MAX_COVERED).all():
            boxes_xyxy = np.concatenate((boxes_xyxy, mirrored_boxes[row : row + 1]))
            taken.append(row)
    if not taken:
        return sample
    polygons = [mirrored[row] for row in taken]
    _paste_mirrored(sample.image_rgb, boxes_xyxy[len(sample.boxes_xyxy) :], polygons)
    return Sample(
        sample.image_rgb,
        np.concatenate((sample.classes, sample.classes[taken])),
        boxes_xyxy,
        sample.polygons + polygons,
    )


def _paste_mirrored(image: NDArray[np.uint8], boxes_xyxy: NDArray[np.float32], polygons: list[Polygon]) -> None:
    """Replace the pixels inside `polygons` by those of the mirror image."""
    height, width = image.shape[:2]
    patches = []
    for box, polygon in zip(boxes_xyxy, polygons, strict=True):
        x1, y1 = (int(value) for value in np.maximum(np.floor(box[:2]), 0))
        x2, y2 = (int(value) for value in np.minimum(np.ceil(box[2:]), (width, height)))
        mask = np.zeros((y2 - y1, x2 - x1), np.uint8)
        points = [np.rint((part - (x1 + 0.5, y1 + 0.5)) * 2**SUBPIXEL_BITS).astype(np.int32) for part in polygon]
        cv2.fillPoly(mask, points, 1, shift=SUBPIXEL_BITS)
        patches.append((image[y1:y2, x1:x2], cv2.flip(image[y1:y2, width - x2 : width - x1], 1), mask))
    for place, patch, mask in patches:  # all patches are cut out before the first is pasted
        cv2.copyTo(patch, mask, place)


def mixup(first: Sample, second: Sample, rng: np.random.Generator) -> Sample:
    """Blend two images of one size by a share from Beta(32, 32); the objects of both count.

    Source: Zhang et al. 2018, arxiv.org/abs/1710.09412. Differs: labels are joined, not weighted.
    """
    share = rng.beta(MIXUP_BETA, MIXUP_BETA)
    return join(cv2.addWeighted(first.image_rgb, share, second.image_rgb, 1 - share, 0), (first, second))
