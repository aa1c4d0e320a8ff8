"""COCO instance files, read directly: boxes, masks, areas and ids as in the file.

A mask is kept as polygons; run lengths are converted to an outline. Crowd regions, which only the evaluation uses, keep
their run lengths.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data.labels.annotation import IMAGE, OUTLINE, ROW, Objects, Polygon, Problem
from utils.errors import DataError, did_you_mean
from utils.geometry.outlines import join_outlines, trace
from utils.geometry.rle import Counts, counts_region, read_counts
from utils.wording import listed

PIXEL_DIGITS, SCORE_DIGITS = 4, 9
"""Decimals of a coordinate and significant digits of a score in result rows; nine digits keep a float32 exactly."""


@dataclass(slots=True)
class CocoImage:
    """One image of a COCO file with its objects; `stated_hw` is its size in that file, None if missing."""

    path: Path
    image_id: int
    stated_hw: tuple[int, int] | None
    objects: Objects


@dataclass(slots=True)
class CocoFile:
    """Content of one COCO file.

    Attributes:
        categories: category id by class index.
        problems: problems that belong to no image.
    """

    images: list[CocoImage]
    categories: list[int]
    problems: list[Problem]


def read_categories(path: Path) -> dict[int, str]:
    """Return a COCO file's category names by id, in file order, which is the order of class indices."""
    return _categories(path, _read_json(path))


def read_coco_file(path: Path, names: Sequence[str], image_dir: Path | None = None) -> CocoFile:
    """Read a whole COCO file.

    Args:
        names: class names by class index. Categories are matched by name, or in file order if the names differ but
            their number is the same.
        image_dir: folder of the images; None searches near the file (val2017/ for annotations/instances_val2017.json).
    Raises:
        DataError: no COCO file, categories that do not match `names`, or an unknown category id or image folder.
    """
    content = _read_json(path)
    class_of, categories = _match_categories(path, _categories(path, content), names)
    entries = [
        entry
        for entry in content["images"]
        if isinstance(entry, dict) and "id" in entry and isinstance(entry.get("file_name"), str)
    ]
    if not entries:
        raise DataError(f"{path}: images: no entry with id and file_name: expected a COCO instances file")
    folder = image_dir or find_image_dir(path, [entry["file_name"] for entry in entries])
    images = {
        entry["id"]: CocoImage(folder / entry["file_name"], entry["id"], _stated_hw(entry), Objects())
        for entry in entries
    }
    result = CocoFile(list(images.values()), categories, [])
    if len(images) < len(entries):
        twice = [str(image_id) for image_id, count in Counter(entry["id"] for entry in entries).items() if count > 1]
        result.problems.append(Problem(IMAGE, str(path), f"image id twice, the last one kept: {listed(twice, 20)}"))
    for position, annotation in enumerate(content["annotations"]):
        _add_annotation(result, images, annotation, class_of, f"{path}: annotations[{position}]")
    return result


def find_image_dir(path: Path, file_names: Sequence[str]) -> Path:
    """Return the folder near a COCO file that holds its images.

    Raises:
        DataError: none of the usual folders holds one of the first images.
    """
    split = path.stem.partition("_")[2] or path.stem
    above = path.parent.parent
    folders = [
        above / split,
        above / "images" / split,
        path.parent / split,
        path.parent / path.stem,
        above / "images",
        path.parent,
    ]
    for folder in folders:
        if any((folder / name).is_file() for name in file_names[:20]):
            return folder
    tried = ", ".join(str(folder) for folder in dict.fromkeys(folders))
    raise DataError(
        f"{path}: its images ({file_names[0]}, …) were not found in {tried}: "
        "set 'images' in the data yaml to their folder"
    )


def _read_json(path: Path) -> dict[str, list]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON: {error}") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError(
                f"{path}: no list '{key}': expected a COCO instances file with images, annotations and categories"
            )
    return content


def _categories(path: Path, content: dict[str, list]) -> dict[int, str]:
    categories = {
        entry["id"]: str(entry["name"])
        for entry in content["categories"]
        if isinstance(entry, dict) and {"id", "name"} <= entry.keys()
    }
    if not categories or len(categories) < len(content["categories"]):
        raise DataError(
            f"{path}: categories: {len(categories)} different ids in {len(content['categories'])} entries: "
            "expected id and name in each"
        )
    return categories


def _match_categories(path: Path, in_file: dict[int, str], names: Sequence[str]) -> tuple[dict[int, int], list[int]]:
    """Return the class index by category id, and the category id by class index (a free id if the file has none)."""
    index_of = {name: index for index, name in enumerate(names)}
    if (
        len(index_of) == len(names)
        and len(set(in_file.values())) == len(in_file)
        and set(in_file.values()) <= index_of.keys()
    ):
        class_of = {category: index_of[name] for category, name in in_file.items()}
    elif len(in_file) == len(names):
        class_of = {category: index for index, category in enumerate(in_file)}
    else:
        foreign = [name for name in in_file.values() if name not in index_of]
        raise DataError(
            f"{path}: {len(in_file)} categories but {len(names)} names in the data yaml, "
            f"which lacks {listed(map(repr, foreign))}: "
            f"leave 'names' out to take them from the file.{did_you_mean(foreign[0], names) if foreign else ''}"
        )
    unused = iter(range(max(in_file) + 1, max(in_file) + 1 + len(names)))
    category_of = {index: category for category, index in class_of.items()}
    return class_of, [category_of[index] if index in category_of else next(unused) for index in range(len(names))]


def _stated_hw(entry: dict[str, object]) -> tuple[int, int] | None:
    height, width = entry.get("height"), entry.get("width")
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def _add_annotation(
    result: CocoFile, images: dict[int, CocoImage], annotation: object, class_of: dict[int, int], where: str
) -> None:
    """Add one annotation to its image, or report why it is skipped."""
    if not isinstance(annotation, dict):
        result.problems.append(Problem(ROW, where, "no mapping"))
        return
    where += f" (id {annotation.get('id')})"
    image = images.get(annotation["image_id"]) if "image_id" in annotation else None
    if image is None:
        result.problems.append(Problem(ROW, where, f"image_id {annotation.get('image_id')} is not among the images"))
        return
    category = annotation.get("category_id")
    if category not in class_of:
        raise DataError(f"{where}: category_id {category!r}: expected an id from the file's categories")
    box = _box(annotation.get("bbox"))
    if box is None or (box[2:] <= box[:2]).any():
        reason = "expected four numbers x, y, width, height" if box is None else "the box has no area"
        image.objects.problems.append(Problem(ROW, where, f"bbox {annotation.get('bbox')}: {reason}"))
        return
    area, number, crowd = annotation.get("area"), annotation.get("id"), bool(annotation.get("iscrowd", 0))
    polygon, counts, reasons = _mask(annotation.get("segmentation"), crowd, image.stated_hw)
    image.objects.problems += [Problem(OUTLINE, where, reason) for reason in reasons]
    if counts is not None:
        image.objects.run_lengths[len(image.objects.classes)] = counts
    image.objects.add(
        class_of[category],
        box,
        polygon,
        area=float(area) if _is_number(area) else float(np.prod(box[2:] - box[:2])),
        crowd=crowd,
        annotation_id=number if isinstance(number, int) else 0,
    )


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and math.isfinite(value)


def _box(value: object) -> np.ndarray | None:
    """Return x, y, width, height as float64 corners, or None."""
    if not isinstance(value, list) or len(value) != 4 or not all(map(_is_number, value)):
        return None
    x, y, width, height = value
    return np.array((x, y, x + width, y + height), np.float64)


def _mask(
    segmentation: object, crowd: bool, stated_hw: tuple[int, int] | None
) -> tuple[Polygon, Counts | None, list[str]]:
    """Return an object's mask, as polygon or (crowd) run lengths, and a reason for each part left out."""
    if segmentation is None:
        return [], None, []
    if isinstance(segmentation, list):
        good = [
            isinstance(part, list) and len(part) >= 6 and len(part) % 2 == 0 and all(map(_is_number, part))
            for part in segmentation
        ]
        reasons = [
            _reason(number, part)
            for number, (part, right) in enumerate(zip(segmentation, good, strict=True))
            if not right
        ]
        parts = [
            np.array(part, np.float32).reshape(-1, 2) for part, right in zip(segmentation, good, strict=True) if right
        ]
        return parts, None, reasons
    if not isinstance(segmentation, dict):
        return (
            [],
            None,
            [f"segmentation is {type(segmentation).__name__}: expected a list of polygons, or size and counts"],
        )
    try:
        size_hw, counts = read_counts(segmentation)
    except ValueError as error:
        return [], None, [f"segmentation: {error}"]
    if stated_hw not in (None, size_hw):
        return (
            [],
            None,
            [
                f"segmentation of {size_hw[1]} x {size_hw[0]} pixels: "
                f"expected the image's {stated_hw[1]} x {stated_hw[0]}"
            ],
        )
    if crowd:
        return [], counts, []
    return [join_outlines([piece]).astype(np.float32) for piece in trace(counts_region(counts, size_hw))], None, []


def _reason(number: int, part: object) -> str:
    expected = "expected x, y of three points or more"
    if not isinstance(part, list) or not all(map(_is_number, part)):
        return f"segmentation[{number}]: no list of numbers: {expected}"
    return f"segmentation[{number}]: {len(part)} numbers: {expected}"


def fit_masks(objects: Objects, path: Path, file_hw: tuple[int, int]) -> None:
    """Drop the parts of masks that lie outside their image, and report them."""
    height, width = file_hw
    for row, polygon in enumerate(objects.polygons):
        inside = [bool((part.max(0) > 0).all() and (part.min(0) < (width, height)).all()) for part in polygon]
        if not all(inside):
            where = f"{path}: object {row + 1}" + (
                f" (id {objects.annotation_ids[row]})" if objects.annotation_ids[row] else ""
            )
            reason = (
                f"{len(inside) - sum(inside)} of {len(inside)} parts lie outside the image of {width} x {height} pixels"
            )
            objects.problems.append(Problem(OUTLINE, where, reason))
            objects.polygons[row] = [part for part, right in zip(polygon, inside, strict=True) if right]
    for row in [row for row, counts in objects.run_lengths.items() if counts.sum() != height * width]:
        reason = f"run lengths of {objects.run_lengths.pop(row).sum()} pixels: the image has {width} x {height}"
        objects.problems.append(Problem(OUTLINE, f"{path}: object {row + 1}", reason))


def result_rows(
    image_id: int | str,
    boxes_xyxy: ArrayLike,
    scores: ArrayLike,
    categories: Sequence[int],
    masks: Sequence[Mapping[str, object]] | None = None,
) -> list[dict[str, Any]]:
    """Write one image's detections as rows of a COCO results file.

    Coordinates are rounded to PIXEL_DIGITS decimals, scores to SCORE_DIGITS significant digits, so that different
    scores stay different: pycocotools ranks detections by them.

    Args:
        boxes_xyxy: (n, 4) corners in pixels of the image file.
        scores: (n,) confidences.
        categories: category id of each detection.
        masks: COCO's run lengths of each detection; None for boxes only.
    """
    boxes_xywh = corners_to_xywh(boxes_xyxy).round(PIXEL_DIGITS).tolist()
    values = np.asarray(scores, np.float64).tolist()
    segmentations: Sequence[dict[str, Any]] = (
        [{}] * len(values) if masks is None else [{"segmentation": mask} for mask in masks]
    )
    return [
        {
            "image_id": image_id,
            "category_id": int(category),
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
