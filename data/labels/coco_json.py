"""COCO instance files, read directly: boxes, masks, areas and ids as in the file.

A mask is kept as polygons; run lengths are converted to an outline. Crowd regions, which only the evaluation uses, keep
their run lengths.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data.labels.annotation import IMAGE, OUTLINE, ROW, Id, Objects, Problem
from data.labels.coco_categories import categories_of, distinct, id_key, in_message, is_writable, match_categories
from data.labels.coco_images import folder_of_images, image_places
from data.labels.coco_masks import is_number, read_mask
from utils.errors import DataError
from utils.wording import listed, shown

BORDER_TOLERANCE = 1e-3
"""Share of the image's longer side by which a box may pass the border without being counted as clipped."""
CROWD_VALUES = {"0": False, "1": True, "False": False, "True": True, "None": False, "0.0": False, "1.0": True}


@dataclass(slots=True)
class CocoImage:
    """One image of a COCO file with its objects.

    Attributes:
        file_name: its name in that file.
        stated_hw: its height and width in that file, None if missing.
    """

    path: Path
    image_id: Id
    file_name: str
    stated_hw: tuple[int, int] | None
    objects: Objects


@dataclass(slots=True)
class CocoFile:
    """Content of one COCO file.

    Attributes:
        categories: category id of each class; None for a class without a category in this file.
        problems: problems that belong to no image.
        notes: lines to print: which categories were reordered or left out, how file names were read.
    """

    images: list[CocoImage]
    categories: list[Id | None]
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_categories(path: Path) -> dict[Id, str]:
    """Return a COCO file's category names by id, in file order, which is the order of class indices.

    Of categories with the same name, those without objects are left out.

    Raises:
        DataError: no COCO file, or two categories with objects have one name.
    """
    return {one.category_id: one.name for one in distinct(path, categories_of(path, _read_json(path)))}


def read_coco_file(
    path: Path, names: Sequence[str], image_dir: Path | None = None, root: Path | None = None
) -> CocoFile:
    """Read a whole COCO file.

    Args:
        names: class names by class index. Categories are matched by name. Those without objects may lack a name.
        image_dir: folder of the images; None searches near the file (val2017/ for annotations/instances_val2017.json).
        root: folder that is searched too, the data set's root.
    Raises:
        DataError: no COCO file, a category with objects that is not in `names`, an unknown category id, or the images
            are not found.
    """
    content = _read_json(path)
    class_of, categories, notes = match_categories(path, categories_of(path, content), names)
    result = CocoFile([], categories, [], notes)
    entries = _image_entries(path, content["images"], result.problems)
    folder = folder_of_images(path, [name for _, name, _ in entries], image_dir, root)
    places = image_places(path, folder, [name for _, name, _ in entries], result.notes)
    images = {
        id_key(image_id): CocoImage(place, image_id, name, stated_hw, Objects())
        for (image_id, name, stated_hw), place in zip(entries, places, strict=True)
    }
    result.images = list(images.values())
    _report_twice(path, entries, result)
    for position, annotation in enumerate(content["annotations"]):
        _add_annotation(result, images, annotation, class_of, f"{path}: annotations[{position}]")
    return result


def _read_json(path: Path) -> dict[str, list]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except RecursionError as error:
        raise DataError(f"{path}: lists nested too deeply: expected a COCO instances file") from error
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON: {error}") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError(
                f"{path}: no list '{key}': expected a COCO instances file with images, annotations and categories"
            )
    return content


def _image_entries(
    path: Path, images: list[object], problems: list[Problem]
) -> list[tuple[Id, str, tuple[int, int] | None]]:
    """Return id, file name and stated size of each image; report the entries that have none.

    Raises:
        DataError: no entry has both.
    """
    entries: list[tuple[Id, str, tuple[int, int] | None]] = []
    for position, entry in enumerate(images):
        where = f"{path}: images[{position}]"
        image_id, name = (entry.get("id"), entry.get("file_name")) if isinstance(entry, dict) else (None, None)
        key = id_key(image_id)
        if key is None or not isinstance(name, str) or not name or not is_writable(name):
            reason = (
                f"id {in_message(image_id)}, file_name {in_message(name)}: expected a number or text, and a file name"
            )
            problems.append(Problem(IMAGE, where, reason))
            continue
        assert isinstance(entry, dict)
        entries.append((key if isinstance(image_id, str) else int(key), name, _stated_hw(entry)))
    if not entries:
        first = f": {problems[0]}" if problems else ""
        raise DataError(f"{path}: images: no entry with id and file_name{first}: expected a COCO instances file")
    return entries


def _report_twice(path: Path, entries: Sequence[tuple[Id, str, tuple[int, int] | None]], result: CocoFile) -> None:
    """Report ids that stand twice, and files that stand under several ids."""
    ids = Counter(id_key(image_id) for image_id, _, _ in entries)
    if repeated := [str(key) for key, count in ids.items() if count > 1]:
        result.problems.append(Problem(IMAGE, str(path), f"image id twice, the last one kept: {listed(repeated, 20)}"))
    files = Counter(image.path for image in result.images)
    if repeated := [shown(str(file)) for file, count in files.items() if count > 1]:
        result.notes.append(
            f"{path}: {len(repeated)} files stand under more than one image id, each time with other objects: "
            f"{listed(repeated, 3)}"
        )


def _stated_hw(entry: dict[str, object]) -> tuple[int, int] | None:
    height, width = entry.get("height"), entry.get("width")
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def _add_annotation(
    result: CocoFile,
    images: dict[str | None, CocoImage],
    annotation: object,
    class_of: dict[str | None, int],
    where: str,
) -> None:
    """Add one annotation to its image, or report why it is skipped."""
    if not isinstance(annotation, dict):
        result.problems.append(Problem(ROW, where, "no mapping"))
        return
    number = annotation.get("id")
    where += f" (id {in_message(number)})"
    image = images.get(id_key(annotation.get("image_id")))
    if image is None:
        reason = f"image_id {in_message(annotation.get('image_id'))} is not among the images"
        result.problems.append(Problem(ROW, where, reason))
        return
    category = id_key(annotation.get("category_id"))
    if category not in class_of:
        value = in_message(annotation.get("category_id"))
        raise DataError(f"{where}: category_id {value}: expected an id from the file's categories")
    box = _box(annotation.get("bbox"))
    crowd = CROWD_VALUES.get(str(annotation.get("iscrowd", 0)))
    if box is None or (box[2:] <= box[:2]).any() or crowd is None:
        reason = f"bbox {in_message(annotation.get('bbox'))}: "
        reason += "expected four numbers x, y, width, height" if box is None else "the box has no area"
        if crowd is None:
            reason = f"iscrowd {in_message(annotation.get('iscrowd'))}: expected 0 or 1"
        image.objects.problems.append(Problem(ROW, where, reason))
        return
    area = annotation.get("area")
    polygon, counts, reason = read_mask(annotation.get("segmentation"), crowd, image.stated_hw)
    if reason:
        image.objects.problems.append(Problem(OUTLINE, where, reason))
    if counts is not None:
        image.objects.run_lengths[len(image.objects.classes)] = counts
    image.objects.add(
        class_of[category],
        box,
        polygon,
        area=float(area) if is_number(area) else float(np.prod(box[2:] - box[:2])),
        crowd=crowd,
        annotation_id=number if type(number) is int and 0 < number < 1 << 63 else 0,
    )


def _box(value: object) -> np.ndarray | None:
    """Return x, y, width, height as float64 corners, or None."""
    if not isinstance(value, list) or len(value) != 4 or not all(map(is_number, value)):
        return None
    x, y, width, height = map(float, value)
    return np.array((x, y, x + width, y + height), np.float64)


def fit_to_image(objects: Objects, path: Path, file_hw: tuple[int, int]) -> None:
    """Clip boxes at the border of their image, drop objects and parts of masks outside it, and report them."""
    height, width = file_hw
    size, keep = np.array((width, height), np.float64), []
    for row, box in enumerate(objects.boxes_xyxy):
        clipped = np.clip(box.reshape(2, 2), 0, size).reshape(-1)
        if (clipped[2:] <= clipped[:2]).any():
            reason = f"its box {box.round(2).tolist()} (x1, y1, x2, y2) lies outside the image of {width} x {height}"
            objects.problems.append(Problem(ROW, _object(path, objects, row), reason))
            continue
        keep.append(row)
        if (np.abs(clipped - box) > BORDER_TOLERANCE * size.max()).any():
            objects.clipped += 1
            objects.areas[row] = min(objects.areas[row], float(np.prod(clipped[2:] - clipped[:2])))
        objects.boxes_xyxy[row] = clipped
    _fit_masks(objects, keep, path, file_hw)
    if len(keep) < len(objects.classes):
        objects.keep(keep)


def _fit_masks(objects: Objects, rows: list[int], path: Path, file_hw: tuple[int, int]) -> None:
    """Drop the parts of masks that lie outside their image, and report them."""
    height, width = file_hw
    for row in rows:
        polygon = objects.polygons[row]
        inside = [bool((part.max(0) > 0).all() and (part.min(0) < (width, height)).all()) for part in polygon]
        if not all(inside):
            reason = (
                f"{len(inside) - sum(inside)} of {len(inside)} parts lie outside the image of {width} x {height} pixels"
            )
            objects.problems.append(Problem(OUTLINE, _object(path, objects, row), reason))
            objects.polygons[row] = [part for part, right in zip(polygon, inside, strict=True) if right]
    for row in [row for row in rows if row in objects.run_lengths]:
        if (pixels := objects.run_lengths[row].sum()) != height * width:
            del objects.run_lengths[row]
            reason = f"run lengths of {pixels} pixels: the image has {width} x {height}"
            objects.problems.append(Problem(OUTLINE, _object(path, objects, row), reason))


def _object(path: Path, objects: Objects, row: int) -> str:
    number = objects.annotation_ids[row]
    return f"{path}: object {row + 1}" + (f" (id {number})" if number else "")
