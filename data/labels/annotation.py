"""Annotations of one image, and the report on reading a split."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.images.pixels import DeepImage
from utils.geometry.region import Polygon

Id = int | str
"""Number or text by which a data set names an image or a class."""
IMAGE, ROW, OUTLINE, DUPLICATE = "image", "row", "outline", "duplicate"
PROBLEM_TITLES = {
    IMAGE: "images skipped",
    ROW: "label rows skipped",
    OUTLINE: "outlines left out (the box is kept)",
    DUPLICATE: "duplicate label rows dropped",
}
MIN_OUTLINE_AREA = 1e-3
"""Minimum area of an outline, in square pixels."""


def outline_area(points: NDArray[np.floating]) -> float:
    """Return the area that (K, 2) points enclose (shoelace formula)."""
    x, y = points[:, 0], points[:, 1]
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


@dataclass(slots=True)
class Annotation:
    """The objects of one image, in pixels of the image as it decodes (EXIF orientation applied).

    Attributes:
        path: image file.
        file_hw: height and width of the image file; the network may see another size.
        image_id: id of the image in COCO results, a number or a text; unique in its split.
        classes: (N,) int64, 0 to number of names - 1.
        boxes_xyxy: (N, 4) float32 corners.
        polygons: for each object its parts, each (K, 2) float32 x, y; no parts for an object with only a box.
        crowd: (N,) bool, True for a region that is ignored (COCO's iscrowd).
        areas: (N,) float64, COCO's area: the object's if known, else the box's.
        annotation_ids: (N,) int64, from 1, unique in the split.
        run_lengths: COCO's run lengths by object index, for crowd regions, which have no polygon.
        file_id: the same for all paths that lead to the same file; None if unknown.
        file_name: name of the image in its COCO file, "" if it is from no COCO file.
    """

    path: Path
    file_hw: tuple[int, int]
    image_id: Id
    classes: NDArray[np.int64]
    boxes_xyxy: NDArray[np.float32]
    polygons: list[Polygon]
    crowd: NDArray[np.bool_]
    areas: NDArray[np.float64]
    annotation_ids: NDArray[np.int64]
    run_lengths: dict[int, NDArray[np.int64]] = field(default_factory=dict)
    file_id: tuple[int, ...] | None = None
    file_name: str = ""

    def __len__(self) -> int:
        return len(self.classes)


@dataclass(frozen=True, slots=True)
class Problem:
    """One skipped image, row or outline: its kind (a key of PROBLEM_TITLES), file (and line), and reason."""

    kind: str
    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


@dataclass(slots=True)
class Objects:
    """The objects of one image while its labels are read: lists with one entry for each object, as in `Annotation`."""

    classes: list[int] = field(default_factory=list)
    boxes_xyxy: list[NDArray[np.float64]] = field(default_factory=list)
    polygons: list[Polygon] = field(default_factory=list)
    crowd: list[bool] = field(default_factory=list)
    areas: list[float] = field(default_factory=list)
    annotation_ids: list[int] = field(default_factory=list)
    run_lengths: dict[int, NDArray[np.int64]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    clipped: int = 0

    def add(
        self,
        class_index: int,
        box_xyxy: NDArray[np.float64],
        polygon: Polygon,
        *,
        area: float,
        crowd: bool = False,
        annotation_id: int = 0,
    ) -> None:
        """Append one object; `annotation_id` 0 means that the format has none."""
        self.classes.append(class_index)
        self.boxes_xyxy.append(box_xyxy)
        self.polygons.append(polygon)
        self.crowd.append(crowd)
        self.areas.append(area)
        self.annotation_ids.append(annotation_id)

    def keep(self, rows: list[int]) -> None:
        """Keep these objects only, in this order."""
        self.classes = [self.classes[row] for row in rows]
        self.boxes_xyxy = [self.boxes_xyxy[row] for row in rows]
        self.polygons = [self.polygons[row] for row in rows]
        self.crowd = [self.crowd[row] for row in rows]
        self.areas = [self.areas[row] for row in rows]
        self.annotation_ids = [self.annotation_ids[row] for row in rows]
        self.run_lengths = {new: self.run_lengths[old] for new, old in enumerate(rows) if old in self.run_lengths}

    def annotation(self, path: Path, file_hw: tuple[int, int], image_id: Id = 0, file_name: str = "") -> Annotation:
        """Return the objects as arrays."""
        return Annotation(
            path,
            file_hw,
            image_id,
            np.array(self.classes, np.int64),
            np.array(self.boxes_xyxy, np.float32).reshape(-1, 4),
            list(self.polygons),
            np.array(self.crowd, np.bool_),
            np.array(self.areas, np.float64),
            np.array(self.annotation_ids, np.int64),
            dict(self.run_lengths),
            file_name=file_name,
        )


@dataclass
class ScanReport:
    """Counts of one split, and its problems.

    Attributes:
        categories: the data set's category id of each class (the class index for YOLO txt).
        file_categories: category id of each class in each COCO file, None for a class that it lacks.
        images: usable images.
        backgrounds: usable images without any object; `unlabelled` of them have no label file.
        objects: boxes kept, `polygons` of them with an outline and `crowds` of them crowd regions.
        clipped: boxes clipped at the image's border.
        sources: a line for each folder, list or COCO file that was read, with the number of its images.
        deep: the values of the images that are not 8 bits deep.
        problems: skipped images, rows and outlines, in the order of the images.
        notes: other lines to print, such as where the cache is.
    """

    split: str
    categories: list[Id] = field(default_factory=list)
    file_categories: list[list[Id | None]] = field(default_factory=list)
    images: int = 0
    backgrounds: int = 0
    unlabelled: int = 0
    objects: int = 0
    polygons: int = 0
    crowds: int = 0
    clipped: int = 0
    from_cache: int = 0
    sources: list[str] = field(default_factory=list)
    deep: list[DeepImage] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def count(self, kind: str) -> int:
        """Return the number of problems of one kind."""
        return sum(problem.kind == kind for problem in self.problems)
