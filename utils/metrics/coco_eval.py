"""COCO results files, and the official evaluation (pycocotools) on any data set."""

import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data.labels.annotation import Annotation, Id
from utils.errors import SettingsError
from utils.files import write_text
from utils.geometry.rle import encode_region
from utils.metrics.mask_overlap import coco_polygon, truth_masks

DEFAULT_MAX_DET = 100
PIXEL_DIGITS, SCORE_DIGITS = 4, 9
"""Decimals of a coordinate and significant digits of a score in result rows; nine digits keep a float32 exactly."""
AREA_RANGES = {"_small": 1, "_medium": 2, "_large": 3}


def coco_ground_truth(
    annotations: Sequence[Annotation],
    names: Sequence[str],
    categories: Sequence[Id],
    masks: bool = False,
    file_names: Mapping[Id, str] | None = None,
) -> dict[str, Any]:
    """Return the annotations of a data set as the content of a COCO instances file.

    Args:
        annotations: images with unique image ids, and annotation ids from 1 (pycocotools takes 0 for 'unmatched').
        names: class names by class index.
        categories: category id by class index.
        file_names: by image id, name of the image; None takes the name of its file without folders.
        masks: add the masks, polygons unchanged; an object without a mask becomes a crowd (see `truth_masks`).
    """
    images = [
        {
            "id": item.image_id,
            "file_name": item.path.name if file_names is None else file_names[item.image_id],
            "height": int(item.file_hw[0]),
            "width": int(item.file_hw[1]),
        }
        for item in annotations
    ]
    objects: list[dict[str, Any]] = []
    for item in annotations:
        first = len(objects)
        boxes_xywh = corners_to_xywh(item.boxes_xyxy)
        columns = zip(item.annotation_ids, item.classes, boxes_xywh, item.areas, item.crowd, strict=True)
        for annotation_id, label, box_xywh, area, crowd in columns:
            objects.append(
                {
                    "id": int(annotation_id),
                    "image_id": item.image_id,
                    "category_id": categories[label],
                    "bbox": box_xywh.tolist(),
                    "area": float(area),
                    "iscrowd": int(crowd),
                }
            )
        if masks:
            regions, ignored = truth_masks(item)
            for entry, polygon, region, crowd in zip(objects[first:], item.polygons, regions, ignored, strict=True):
                entry["iscrowd"] = int(crowd)
                outline = coco_polygon(polygon)
                entry["segmentation"] = encode_region(region, item.file_hw) if crowd or not outline else outline
    named = [{"id": number, "name": name} for number, name in zip(categories, names, strict=True)]
    return {"info": {}, "images": images, "annotations": objects, "categories": named}


def coco_results(
    detections: Mapping[Id, ArrayLike],
    categories: Sequence[Id],
    segmentations: Mapping[Id, Sequence[Mapping[str, object]]] | None = None,
    file_names: Mapping[Id, str] | None = None,
) -> list[dict[str, Any]]:
    """Return detections as the content of a COCO results file.

    Args:
        detections: by image id, (n, 6 or more) x1, y1, x2, y2 in original pixels, confidence, class index.
        categories: category id by class index.
        segmentations: by image id, the mask of each detection as COCO's run lengths.
        file_names: by image id, name of the image, for each of its rows.
    """
    results: list[dict[str, Any]] = []
    for image_id, rows in detections.items():
        rows = np.asarray(rows, dtype=np.float64)
        if len(rows):
            category_ids = [categories[label] for label in rows[:, 5].astype(int)]
            masks = segmentations[image_id] if segmentations else None
            name = file_names[image_id] if file_names else None
            results += result_rows(image_id, name, rows[:, :4], rows[:, 4], category_ids, masks)
    return results


def result_rows(
    image_id: Id,
    file_name: str | None,
    boxes_xyxy: ArrayLike,
    scores: ArrayLike,
    categories: Sequence[Id],
    masks: Sequence[Mapping[str, object]] | None = None,
) -> list[dict[str, Any]]:
    """Write one image's detections as rows of a COCO results file.

    Coordinates are rounded to PIXEL_DIGITS decimals, scores to SCORE_DIGITS significant digits, so that different
    scores stay different: pycocotools ranks detections by them.

    Args:
        file_name: the image file, so that a reader finds it without a list of ids; None leaves it out.
        boxes_xyxy: (n, 4) corners in pixels of the image file.
        scores: (n,) confidences.
        categories: category id of each detection.
        masks: COCO's run lengths of each detection; None for boxes only.
    """
    named = {} if file_name is None else {"file_name": file_name}
    boxes_xywh = corners_to_xywh(boxes_xyxy).round(PIXEL_DIGITS).tolist()
    values = np.asarray(scores, np.float64).tolist()
    segmentations: Sequence[dict[str, Any]] = (
        [{}] * len(values) if masks is None else [{"segmentation": mask} for mask in masks]
    )
    return [
        {
            "image_id": image_id,
            **named,
            "category_id": category,
            "bbox": box_xywh,
            "score": float(f"{score:.{SCORE_DIGITS}g}"),
            **segmentation,
        }
        for box_xywh, score, category, segmentation in zip(boxes_xywh, values, categories, segmentations, strict=True)
    ]


def corners_to_xywh(boxes_xyxy: ArrayLike) -> NDArray[np.float64]:
    """Turn (n, 4) corners into COCO's (n, 4) left, top, width, height, in float64."""
    boxes = np.asarray(boxes_xyxy, np.float64).reshape(-1, 4)
    return np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), axis=1)


def write_results(path: str | Path, content: object) -> None:
    """Write the content of a COCO file, compact and whole or not at all."""
    write_text(path, json.dumps(content, separators=(",", ":")) + "\n")


def evaluate_coco(
    ground_truth: Mapping[str, Any] | str | Path,
    results: list[dict[str, Any]],
    max_det: int = DEFAULT_MAX_DET,
    masks: bool = False,
) -> dict[str, float]:
    """Compute COCO's twelve numbers by pycocotools, for boxes or masks; -1 where no truth counts.

    Args:
        ground_truth: content or path of a COCO instances file.
        results: content of a COCO results file.
        max_det: most detections per class and image; COCO uses 100.
        masks: compare masks; both files must hold them.

    Returns:
        AP, AP50, AP75, AP_small, AP_medium, AP_large, AR1, AR10, AR<max_det>, AR_small, AR_medium, AR_large. AR1 and
        AR10 are left out where `max_det` is not above 1 or 10.

    Raises:
        SettingsError: pycocotools is not installed.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise SettingsError(
            f"pycocotools: cannot be imported ({error}): COCO's twelve numbers need it; pip install pycocotools"
        ) from error
    if isinstance(ground_truth, Mapping):
        content = ground_truth
    else:
        content = json.loads(Path(ground_truth).read_text(encoding="utf-8"))
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints every step
        truth = _indexed(COCO, content)
        if results:
            left_out = "bbox" if masks else "segmentation"  # with both, loadRes would take the area of the box
            # copies, since loadRes writes into them
            copies = [{key: value for key, value in result.items() if key != left_out} for result in results]
            found = truth.loadRes(copies)
        else:
            found = _indexed(COCO, {**content, "annotations": []})
        evaluation = COCOeval(truth, found, "segm" if masks else "bbox")
        evaluation.params.maxDets = limits = [limit for limit in (1, 10) if limit < max_det] + [max_det]
        evaluation.evaluate()
        evaluation.accumulate()
    return _twelve(evaluation.eval["precision"], evaluation.eval["recall"], limits)


def _indexed(coco_class: type, content: Mapping[str, Any]) -> Any:
    """Return a pycocotools COCO object of `content`; annotations are copied, since the evaluation changes them."""
    coco = coco_class()
    coco.dataset = {"info": {}, **content, "annotations": [dict(item) for item in content["annotations"]]}
    coco.createIndex()
    return coco


def _twelve(precision: np.ndarray, recall: np.ndarray, limits: list[int]) -> dict[str, float]:
    """Compute the twelve numbers from precision (T, R, K, areas, limits) and recall (T, K, areas, limits)."""

    def mean(values: np.ndarray) -> float:
        return float(values[values > -1].mean()) if (values > -1).any() else -1.0

    numbers = {
        "AP": mean(precision[..., 0, -1]),
        "AP50": mean(precision[0, ..., 0, -1]),
        "AP75": mean(precision[5, ..., 0, -1]),
    }
    numbers |= {f"AP{name}": mean(precision[..., area, -1]) for name, area in AREA_RANGES.items()}
    numbers |= {f"AR{limit}": mean(recall[..., 0, row]) for row, limit in enumerate(limits)}
    return numbers | {f"AR{name}": mean(recall[..., area, -1]) for name, area in AREA_RANGES.items()}
