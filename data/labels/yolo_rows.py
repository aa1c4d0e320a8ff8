"""Label files of other kinds: key points, rotated boxes, detector output, pixels; recognised by all rows together."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.labels.annotation import Annotation
from utils.errors import DataError
from utils.wording import is_count, shown

Row = Sequence[str]
ROWS = "rows 'class cx cy w h' or 'class x1 y1 x2 y2 x3 y3 …' in parts of the image's width and height"
KEYPOINT_REMEDY = (
    "for the boxes alone write kpt_shape: [{number}, {values}] into the data yaml; "
    "kpt_shape: [0, 2] there says that these are outlines"
)
OUTSIDE = 2.0
"""A coordinate above this is no part of the image's size, not even by mistake."""
MARGIN = 0.1
"""Share of a box by which its key points may lie outside it."""
MOST_EXAMINED = 500
"""Outlines of a split that are examined for crossing lines."""
MANY = 10


@dataclass(frozen=True, slots=True)
class Keypoints:
    """The key points of a row after its box: their number, and the values of each (2, or 3 with visibility)."""

    number: int
    values: int

    @property
    def columns(self) -> int:
        """Number of columns of a row, the class and the box included; 0 if there are no key points."""
        return 5 + self.number * self.values if self.number else 0


def parse_keypoints(value: object, where: str) -> Keypoints:
    """Check `kpt_shape` of a data yaml: [number of key points, 2 or 3 values of each].

    Raises:
        DataError: another value.
    """
    if not isinstance(value, list) or len(value) != 2 or not is_count(value[0], 0) or value[1] not in (2, 3):
        raise DataError(f"{where} is {value!r}: expected [number of key points, 2 or 3 values of each], as [17, 3]")
    return Keypoints(value[0], value[1])


def foreign_kind(rows: Sequence[Row], keypoints: Keypoints | None = None) -> str:
    """Say what the rows of a label file are, with a remedy, if most of them are of a known other kind; else "".

    Args:
        keypoints: the stated key points; rows are then not examined for them.
    """
    rows = [row for row in rows if row and not row[0].startswith(("imagesource:", "gsd:"))]
    if not rows:
        return ""
    columns, count = Counter(map(len, rows)).most_common(1)[0]
    alike = [row for row in rows if len(row) == columns]
    if 2 * count <= len(rows):
        return ""
    if found := _text_kind(alike):
        return f"{count} of {len(rows)} rows are {found}"
    values = _numbers(alike)
    if values is None or not np.isfinite(values).all():
        return ""
    kinds = NUMBER_KINDS if keypoints is None else NUMBER_KINDS[1:]
    found = next((text for kind in kinds if (text := kind(values))), "")
    return f"{count} of {len(rows)} rows are {found}" if found else ""


def _numbers(rows: Sequence[Row]) -> NDArray[np.float64] | None:
    try:
        return np.array([[float(word) for word in row] for row in rows])
    except ValueError:
        return None


def _is_number(word: str) -> bool:
    return _numbers([[word]]) is not None


def _text_kind(rows: Sequence[Row]) -> str:
    """Name the kind of rows that hold more than numbers between white space."""
    texts = [[not _is_number(word) for word in row] for row in rows]
    columns = len(rows[0])
    example = f"such as {shown(' '.join(rows[0]))!r}: expected {ROWS}"
    if all(word.count(",") + word.count(";") >= 4 for row in rows for word in [" ".join(row)]):
        return f"values with commas, {example}"
    if columns in (9, 10) and all(text[8] and not any(text[:8]) for text in texts):
        return f"four corners and a class name (DOTA), {example}; convert the corners and the names"
    if columns in (15, 16) and all(text[0] and not any(text[1:]) for text in texts):
        return f"KITTI labels, {example}"
    if columns >= 5 and all(text[0] and not any(text[-4:]) for text in texts):
        return f"rows with a class name, {example}; write the number of the class in the data yaml's names"
    return ""


def _box_rows(values: NDArray[np.float64]) -> bool:
    """Tell whether every row begins with a class and a box in parts of the image."""
    box = values[:, 1:5]
    return bool((values[:, 0] % 1 == 0).all() and (box >= -0.01).all() and (box <= 1.01).all())


def _visible_points(values: NDArray[np.float64]) -> str:
    """Key points with a visibility of 0, 1 or 2."""
    number, rest = divmod(values.shape[1] - 5, 3)
    if rest or number < 1 or not _box_rows(values) or (values[:, 3:5] <= 0).any():
        return ""
    visibility = values[:, 7::3]
    if not np.isin(visibility, (0, 1, 2)).all() or not visibility.any():
        return ""
    points = f"{number} key point{'s' if number > 1 else ''} with their visibility"
    return f"boxes with {points}: {KEYPOINT_REMEDY.format(number=number, values=3)}"


def _tracked(values: NDArray[np.float64]) -> str:
    """A confidence and the number of a track."""
    if values.shape[1] != 7 or not _box_rows(values):
        return ""
    pairs = ((values[:, 5], values[:, 6]), (values[:, 6], values[:, 5]))
    found = any(
        bool(((0 <= score) & (score <= 1)).all() and (track % 1 == 0).all() and (track > 1).any())
        for score, track in pairs
    )
    return f"boxes with a confidence and a track number (detector output): expected {ROWS}" if found else ""


def _one_more(values: NDArray[np.float64]) -> str:
    """A sixth column."""
    if values.shape[1] != 6 or not _box_rows(values):
        return ""
    last = values[:, 5]
    what = "a confidence (detector output; write it without --save-conf) or an angle"
    if (last < 0).any() or (last > 1).any():
        what = "a track number or an angle" if (last % 1 == 0).all() else "an angle (rotated boxes)"
    return f"boxes with a sixth column, {what}: expected {ROWS}"


def _no_class(values: NDArray[np.float64]) -> str:
    """Four coordinates."""
    inside = values.shape[1] == 4 and (values % 1 != 0).any() and (values >= 0).all()
    return f"boxes without a class number: expected {ROWS}" if inside else ""


def _half_point(values: NDArray[np.float64]) -> str:
    """Coordinates of which one is alone."""
    columns = values.shape[1]
    if columns < 8 or columns % 2 or not _box_rows(values) or values[:, 1:].max() > OUTSIDE:
        return ""
    points, rest = divmod(columns - 5, 3)
    remedy = "" if rest else f"; if they are key points: {KEYPOINT_REMEDY.format(number=points, values=3)}"
    return f"{columns} columns, an outline and one number more, such as a confidence: expected {ROWS}{remedy}"


def _pixels(values: NDArray[np.float64]) -> str:
    """Coordinates beyond 1."""
    coordinates = values[:, 1:]
    odd = values.shape[1] >= 5 and values.shape[1] % 2 == 1
    in_pixels = odd and (values[:, 0] % 1 == 0).all() and (coordinates > OUTSIDE).any(1).all()
    return f"coordinates in pixels (up to {coordinates.max():g}): expected {ROWS}" if in_pixels else ""


NUMBER_KINDS: tuple[Callable[[NDArray[np.float64]], str], ...] = (
    _visible_points,
    _tracked,
    _one_more,
    _no_class,
    _half_point,
    _pixels,
)
"""Each says what numbers are, or "". The first that knows them decides."""


def keypoint_outlines(annotations: Sequence[Annotation]) -> str:
    """Say that the outlines of a split are boxes with key points, if they are; else "".

    A box with an even number of further values can also be read as an outline. It is no outline if all rows of the
    split have the same number of values, the points lie in the boxes, and as outlines many would cross themselves.
    """
    parts = [
        (part, one.file_hw) for one in annotations if not one.file_name for polygon in one.polygons for part in polygon
    ]
    lengths = {len(part) for part, _ in parts}
    if len(lengths) != 1 or (num_points := lengths.pop()) < 4:
        return ""
    scale = np.array([(width, height) for _, (height, width) in parts], np.float64)[:, None]
    points = np.stack([part for part, _ in parts]).astype(np.float64) / scale
    step = max(1, len(points) // MOST_EXAMINED)
    crossing = float(np.mean([crosses_itself(outline) for outline in points[::step]]))
    least = 0.2 if len(points) >= MANY else 0.5
    for values in (2, 3):
        number, rest = divmod(2 * num_points - 4, values)
        if not rest and crossing >= least and _points_in_boxes(points.reshape(len(points), -1), values) >= 0.95:
            return (
                f"all {len(points)} outlines have {num_points} points and look like boxes with {number} key points: "
                + KEYPOINT_REMEDY.format(number=number, values=values)
            )
    return ""


def corners_note(annotations: Sequence[Annotation]) -> str:
    """Return a note on how rotated boxes are read, if all outlines of a split have four corners; else ""."""
    parts = [part for one in annotations for polygon in one.polygons for part in polygon]
    upright = [all(len(np.unique(part[:, axis])) == 2 for axis in (0, 1)) for part in parts]
    if not parts or any(len(part) != 4 for part in parts) or all(upright):
        return ""
    return (
        f"all {len(parts)} outlines have four corners, as rotated boxes have: "
        "the box of an object is the upright one around its corners"
    )


def _points_in_boxes(rows: NDArray[np.float64], values: int) -> float:
    """Return the share of rows (cx, cy, w, h, then points) with a box in the image and all points in the box.

    Points at 0, 0 are not labelled and do not count.
    """
    centre, size = rows[:, None, :2], rows[:, None, 2:4]
    points = rows[:, 4:].reshape(len(rows), -1, values)[:, :, :2]
    labelled = np.any(points > 1e-6, axis=2)
    near = np.all(np.abs(points - centre) <= (0.5 + MARGIN) * size, axis=2)
    inside = np.all((centre - size / 2 >= -0.01) & (centre + size / 2 <= 1.01) & (size > 0), axis=(1, 2))
    return float(np.mean(inside & np.any(labelled, axis=1) & np.all(near | ~labelled, axis=1)))


def crosses_itself(outline: NDArray[np.float64]) -> bool:
    """Tell whether two sides of a closed outline (K, 2) that are no neighbours cross."""
    start, end = outline, np.roll(outline, -1, axis=0)
    first, second = np.triu_indices(len(outline), 2)
    apart = ~((first == 0) & (second == len(outline) - 1))
    first, second = first[apart], second[apart]

    def side(a: NDArray[np.float64], b: NDArray[np.float64], c: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.sign((b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0]))

    a, b, c, d = start[first], end[first], start[second], end[second]
    return bool(((side(a, b, c) * side(a, b, d) < 0) & (side(c, d, a) * side(c, d, b) < 0)).any())
