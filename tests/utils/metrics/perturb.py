"""Detections made from ground truth by a seeded amount of damage, and a synthetic data set to make them from."""

from pathlib import Path

import cv2
import numpy as np

from data.labels.annotation import Annotation, outline_area
from utils.geometry.region import Region, box_region, dense_masks, polygon_region
from utils.geometry.rle import counts_region, cropped


def synthetic_annotations(num_images: int = 40, nc: int = 8, seed: int = 0) -> list[Annotation]:
    """Images of 640 x 480 with 0 to 14 boxes of all sizes, one in ten a crowd; image ids in no order."""
    rng = np.random.default_rng(seed)
    annotations, next_id = [], 1
    for image_id in rng.permutation(np.arange(1, num_images + 1) * 7):
        count = int(rng.integers(0, 15))
        size = np.exp(rng.uniform(np.log(6), np.log(300), (count, 2)))
        corner = rng.uniform(0, 1, (count, 2)) * (np.array((640, 480)) - size)
        boxes = np.concatenate((corner, corner + size), 1).astype(np.float32)
        annotations.append(
            Annotation(
                path=Path(f"{image_id}.jpg"),
                file_hw=(480, 640),
                image_id=int(image_id),
                classes=rng.integers(0, nc, count),
                boxes_xyxy=boxes,
                polygons=[[] for _ in range(count)],
                crowd=rng.random(count) < 0.1,
                areas=size.prod(1),
                annotation_ids=np.arange(next_id, next_id + count),
            )
        )
        next_id += count
    return annotations


def perturbed(
    annotation: Annotation, noise: float, nc: int, rng: np.random.Generator, false_alarms: int = 6
) -> np.ndarray:
    """Make (n, 6) float32 detections of one image: jittered, dropped, doubled, mislabelled, spurious; equal scores.

    Crowds get several boxes inside, as a detector gives them.
    """
    rows = []
    for box, label, crowd in zip(annotation.boxes_xyxy, annotation.classes, annotation.crowd, strict=True):
        size = np.maximum(box[2:] - box[:2], 1)
        if crowd:
            for _ in range(4):
                corner = box[:2] + rng.uniform(-0.1, 0.7, 2) * size
                rows.append([*corner, *(corner + 0.3 * size), rng.uniform(0.1, 0.9), label])
            continue
        copies = 0 if rng.random() < noise else 1 + int(rng.random() < noise) + int(rng.random() < noise / 2)
        for _ in range(copies):
            shift, stretch = rng.normal(0, noise / 4, 2) * size, np.exp(rng.normal(0, noise / 3, 2))
            centre = (box[:2] + box[2:]) / 2 + shift
            wrong = rng.random() < noise / 4
            half = size * stretch / 2
            rows.append([*(centre - half), *(centre + half), rng.beta(4, 2), rng.integers(nc) if wrong else label])
    height, width = annotation.file_hw
    for _ in range(rng.poisson(false_alarms)):
        size, corner = rng.uniform(10, 150, 2), rng.uniform(0, 0.8, 2) * (width, height)
        rows.append(
            [
                *corner,
                *(corner + size),
                rng.beta(2, 4),
                rng.choice(annotation.classes) if len(annotation) else rng.integers(nc),
            ]
        )
    detections = np.array(rows, dtype=np.float32).reshape(-1, 6)
    detections[:, 4] = detections[:, 4].round(2)  # ties, within images and between them
    return detections


def outlined_annotations(num_images: int = 40, nc: int = 8, seed: int = 0) -> list[Annotation]:
    """Make `synthetic_annotations` with crooked outlines of one or two parts; one object in twelve has only a box."""
    annotations, rng = synthetic_annotations(num_images, nc, seed), np.random.default_rng(seed + 1)
    for item in annotations:
        for row, box in enumerate(item.boxes_xyxy.astype(np.float64)):
            if item.crowd[row]:
                column = box_region(box, item.file_hw)
                if column.area:
                    mask = dense_masks([column], item.file_hw)[0]
                    item.run_lengths[row] = np.diff(
                        np.flatnonzero(np.diff(mask.T.reshape(-1), prepend=~mask[0, 0], append=~mask[-1, -1]))
                    )
                    if mask[0, 0]:
                        item.run_lengths[row] = np.concatenate(([0], item.run_lengths[row]))
                continue
            if rng.random() < 1 / 12:
                continue
            angles = np.sort(rng.uniform(0, 2 * np.pi, 12))
            circle = np.stack((np.cos(angles), np.sin(angles)), 1) * rng.uniform(0.5, 1, (12, 1))
            part = (circle + 1) / 2 * (box[2:] - box[:2]) + box[:2]
            item.polygons[row] = (
                [part.astype(np.float32)]
                if rng.random() < 0.7
                else [part[:7].astype(np.float32), part[6:].astype(np.float32)]
            )
            item.areas[row] = sum(outline_area(one) for one in item.polygons[row])
    return annotations


def perturbed_masks(
    annotation: Annotation, noise: float, nc: int, rng: np.random.Generator
) -> tuple[np.ndarray, list[Region]]:
    """Make detections (n, 6) of one image with masks: grown, shrunk, shifted; some dropped, doubled, mislabelled."""
    rows, regions = [], []
    height, width = annotation.file_hw
    for row, label in enumerate(annotation.classes):
        if annotation.polygons[row]:
            truth = polygon_region(annotation.polygons[row], annotation.file_hw)
        elif row in annotation.run_lengths:
            truth = counts_region(annotation.run_lengths[row], annotation.file_hw)
        else:
            truth = box_region(annotation.boxes_xyxy[row], annotation.file_hw)
        for _ in range(int(rng.random() > noise) + int(rng.random() < noise)):
            mask = dense_masks([truth], annotation.file_hw)[0].astype(np.uint8)
            amount = round(noise * rng.normal(0, 0.5) * np.sqrt(max(truth.area, 1)))
            change = cv2.dilate if amount > 0 else cv2.erode
            mask = change(mask, np.ones((abs(amount) + 1, abs(amount) + 1), np.uint8))
            region = cropped(np.roll(mask, tuple(int(step) for step in rng.integers(-1, 2, 2)), (0, 1)).astype(bool))
            if region.area:
                (top, bottom), (left, right) = ((part.start, part.stop) for part in region.window)
                rows.append(
                    [
                        left,
                        top,
                        right,
                        bottom,
                        round(rng.beta(4, 2), 2),
                        rng.integers(nc) if rng.random() < noise / 4 else label,
                    ]
                )
                regions.append(region)
    for _ in range(rng.poisson(4)):
        corner, size = rng.uniform(0, 0.7, 2) * (width, height), rng.uniform(8, 120, 2)
        region = box_region(np.concatenate((corner, corner + size)), annotation.file_hw)
        if region.area:
            rows.append([*corner, *(corner + size), round(rng.beta(2, 4), 2), rng.integers(nc)])
            regions.append(region)
    return np.array(rows, np.float32).reshape(-1, 6), regions
