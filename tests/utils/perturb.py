"""Detections made from ground truth by a seeded amount of damage, and a synthetic data set to make them from."""

from pathlib import Path

import numpy as np

from data.annotation import Annotation


def synthetic_annotations(num_images: int = 40, nc: int = 8, seed: int = 0) -> list[Annotation]:
    """Pictures of 640 x 480 with 0 to 14 boxes of all sizes, one in ten a crowd; image ids in no order."""
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
                image_hw=(480, 640),
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


def perturbed(annotation: Annotation, noise: float, nc: int, rng: np.random.Generator, false_alarms: int = 6) -> np.ndarray:
    """(n, 6) float32 detections of one picture: jittered, some dropped, doubled or mislabelled, others on nothing; many equal scores.

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
    height, width = annotation.image_hw
    for _ in range(rng.poisson(false_alarms)):
        size, corner = rng.uniform(10, 150, 2), rng.uniform(0, 0.8, 2) * (width, height)
        rows.append([*corner, *(corner + size), rng.beta(2, 4), rng.choice(annotation.classes) if len(annotation) else rng.integers(nc)])
    detections = np.array(rows, dtype=np.float32).reshape(-1, 6)
    detections[:, 4] = detections[:, 4].round(2)  # ties, within pictures and between them
    return detections
