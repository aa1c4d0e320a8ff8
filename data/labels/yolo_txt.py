"""YOLO label files: one object per row, `class cx cy w h` or `class x1 y1 x2 y2 …`, divided by the image's size."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from data.labels.annotation import DUPLICATE, MIN_OUTLINE_AREA, OUTLINE, ROW, Objects, Polygon, Problem, outline_area
from data.labels.yolo_rows import Keypoints, foreign_kind
from utils.errors import DataError
from utils.geometry.outlines import outline_norm
from utils.geometry.region import Region

BOX_COLUMNS = 5
TOLERANCE = 1e-3  # rounding may put a number this far outside [0, 1]; it is then moved to the border


def label_path(image: Path) -> Path:
    """Return an image's label file: in `labels` instead of the last folder `images` (any case), else beside it."""
    parts = image.parts
    for index in range(len(parts) - 2, -1, -1):
        if parts[index].lower() == "images":
            spellings = [Path(*parts[:index], name) for name in ("labels", "Labels", "LABELS")]
            folder = next((spelling for spelling in spellings if spelling.is_dir()), spellings[0])
            return folder.joinpath(*parts[index + 1 :]).with_suffix(".txt")
    return image.with_suffix(".txt")


def read_label_file(
    path: Path, num_classes: int, file_hw: tuple[int, int], keypoints: Keypoints | None = None
) -> Objects:
    """Parse a label file row by row; skip and report bad rows.

    A row is skipped where
    - it has neither 5 columns nor an odd number from 7, or one of them is no number;
    - its class is negative or not a whole number;
    - a coordinate lies more than `TOLERANCE` outside [0, 1], or the box has no area inside the image;
    - an earlier row of the file says the same.
    A polygon without an area loses its outline and keeps its box. Blank rows do not count.

    Args:
        file_hw: height and width of the image, in pixels.
        keypoints: the key points after the boxes, if the data set states them; they are left out.
    Raises:
        DataError: a class index is not below `num_classes`, or most rows are of another kind (`foreign_kind`).
        OSError: the file is missing or cannot be read.
    """
    objects, seen = Objects(), set()
    stated = keypoints.columns if keypoints else 0
    rows = _rows(path, stated)
    if any(len(words) != BOX_COLUMNS for words in rows.values()):
        _refuse_other_kinds(path, rows, keypoints)
    for number, words in rows.items():
        where = f"{path}:{number}"
        try:
            values = _numbers(words, stated)
        except ValueError as error:
            objects.problems.append(Problem(ROW, where, str(error)))
            continue
        if values[0] >= num_classes:
            raise DataError(
                f"{where}: class {int(values[0])}: expected 0 to {num_classes - 1}: "
                f"the data yaml has {num_classes} names"
            )
        if values in seen:
            objects.problems.append(Problem(DUPLICATE, where, "same as an earlier row"))
            continue
        seen.add(values)
        _add_row(objects, values, file_hw, where)
    bad = [problem for problem in objects.problems if problem.kind == ROW]
    if 2 * len(bad) > len(rows):
        _refuse_other_kinds(path, rows, keypoints)
        if stated:
            raise DataError(f"{bad[0]}; {len(bad)} of {len(rows)} rows do not fit")
    return objects


def _rows(path: Path, keypoint_columns: int) -> dict[int, list[str]]:
    """Return the words of each row that is not blank, by line number; rows with key points without these."""
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    rows = {number: words for number, line in enumerate(lines, 1) if (words := line.split())}
    return {number: words[:BOX_COLUMNS] if len(words) == keypoint_columns else words for number, words in rows.items()}


def _refuse_other_kinds(path: Path, rows: Mapping[int, list[str]], keypoints: Keypoints | None) -> None:
    if found := foreign_kind(list(rows.values()), keypoints):
        raise DataError(f"{path}: {found}")


def _numbers(words: list[str], keypoint_columns: int = 0) -> tuple[float, ...]:
    """Return the numbers of a row, the class first; coordinates within TOLERANCE of [0, 1] are moved into it.

    Args:
        keypoint_columns: columns of rows with key points, of which the box is left here; 0 where outlines are allowed.
    Raises:
        ValueError: says what is wrong.
    """
    columns = len(words)
    if keypoint_columns and columns != BOX_COLUMNS:
        raise ValueError(f"{columns} columns: expected 5 (a box) or {keypoint_columns} (with key points, kpt_shape)")
    if columns < BOX_COLUMNS or (columns > BOX_COLUMNS and (columns % 2 == 0 or columns < 7)):
        raise ValueError(
            f"{columns} columns: expected 5 (class cx cy w h) or an odd number from 7 (class x1 y1 x2 y2 x3 y3 …)"
        )
    values = [_number(word) for word in words]
    if values[0] < 0 or not values[0].is_integer():
        raise ValueError(f"class {words[0]}: expected a whole number from 0")
    for word, value in zip(words[1:], values[1:], strict=True):
        if not -TOLERANCE <= value <= 1 + TOLERANCE:
            raise ValueError(f"{word} is outside 0..1: coordinates are parts of the image's width and height")
    return values[0], *(min(max(value, 0.0), 1.0) for value in values[1:])


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise ValueError(f"{word!r} is no number") from None


def _add_row(objects: Objects, values: tuple[float, ...], file_hw: tuple[int, int], where: str) -> None:
    height, width = file_hw
    size = np.array((width, height), np.float64)
    coordinates = np.array(values[1:], np.float64).reshape(-1, 2) * size
    polygon: Polygon = []
    if len(values) == BOX_COLUMNS:
        centre, extent = coordinates
        box = np.concatenate((centre - extent / 2, centre + extent / 2))
    else:
        box = np.concatenate((coordinates.min(0), coordinates.max(0)))
        polygon = [coordinates.astype(np.float32)]
    clipped = np.clip(box.reshape(2, 2), 0, size).reshape(-1)
    if (clipped[2:] <= clipped[:2]).any():
        objects.problems.append(Problem(ROW, where, "the box has no area"))
        return
    objects.clipped += bool((np.abs(clipped - box) > TOLERANCE * size.max()).any())
    area = outline_area(coordinates) if polygon else float(np.prod(clipped[2:] - clipped[:2]))
    if polygon and area < MIN_OUTLINE_AREA:
        objects.problems.append(Problem(OUTLINE, where, "it encloses no area"))
        polygon, area = [], float(np.prod(clipped[2:] - clipped[:2]))
    objects.add(int(values[0]), clipped, polygon, area=area)


def label_rows(
    boxes_xyxy: ArrayLike,
    classes: Sequence[int],
    file_hw: tuple[int, int],
    regions: Sequence[Region] | None = None,
    scores: Iterable[float] | None = None,
) -> list[str]:
    """Write the objects of one image as label rows `class cx cy w h`, divided by the image's size.

    An object with a mask gets its outline `x1 y1 x2 y2 …` instead of centre and size. The outline is one closed line;
    seams join its parts and holes.

    Args:
        boxes_xyxy: (n, 4) corners in pixels of the image file.
        classes: class index of each object.
        file_hw: height and width of the image file.
        regions: mask of each object in pixels of the image file; None for boxes only.
        scores: confidences, added as the last column; None leaves that column out.
    """
    height, width = file_hw
    corners = np.asarray(boxes_xyxy, np.float64).reshape(-1, 4) / (width, height, width, height)
    centres, sizes = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
    coordinates = np.concatenate((centres, sizes), 1).tolist()
    for index, region in enumerate(regions or ()):
        outline = outline_norm(region, file_hw)
        coordinates[index] = outline.reshape(-1).tolist() if len(outline) else coordinates[index]
    if scores is not None:
        coordinates = [[*row, score] for row, score in zip(coordinates, scores, strict=True)]
    return [row_text(index, row) for index, row in zip(classes, coordinates, strict=True)]


def row_text(class_index: int, values: Iterable[float], spec: str = ".6g") -> str:
    """Write one row: the class index, then the values in the format `spec`."""
    return " ".join((str(class_index), *(f"{value:{spec}}" for value in values)))
