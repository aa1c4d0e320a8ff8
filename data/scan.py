"""Read a split's annotations in any format: check images, parse labels, cache the results, report problems."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.config import DataConfig
from data.folders import labels_left_at_targets, source_images
from data.images.finding import image_format, is_image
from data.images.paths import printable, suffix_of
from data.images.pixels import DeepImage, PixelRange, choose_pixel_range, describe_scaling
from data.images.reading import examine_image
from data.labels.annotation import IMAGE, PROBLEM_TITLES, Annotation, Id, Objects, Problem, ScanReport
from data.labels.cache import Entry, Job, cache_places, file_id, load_entries, save_entries, stamp
from data.labels.coco_categories import merged_categories
from data.labels.coco_json import CocoImage, fit_to_image, read_coco_file
from data.labels.yolo_rows import Keypoints, corners_note, keypoint_outlines
from data.labels.yolo_txt import label_path, read_label_file
from utils.errors import DataError
from utils.wording import listed

MAX_THREADS = 8


def load_annotations(
    config: DataConfig, split: str, *, require_labels: bool | None = None
) -> tuple[list[Annotation], ScanReport]:
    """Read a split: decode every image once and check every label row; skip and report bad ones.

    Args:
        require_labels: raise an error if the split has no objects; None does so for "train" only.

    Returns:
        One annotation per usable image, in the order of the sources and by path within a folder; and the report.

    Raises:
        DataError: no such split or source, no usable image, a class index without a name, or no labels.
    """
    report = ScanReport(split, categories=list(range(len(config.names))))
    entries: list[Entry] = []
    for source in config.sources(split):
        if suffix_of(source) == ".json":
            entries += _read_coco(config, split, source, report)
        else:
            entries += _read_yolo(config, source, report)
    if report.file_categories:
        report.categories, note = merged_categories(report.file_categories, config.names)
        report.notes += [note] if note else []
    annotations = _without_aliases(entries, report)
    if not annotations:
        raise DataError(f"{config.path}: {split}: none of the images can be used: {_first(report.problems)}")
    _count(report, annotations)
    if not report.objects and (split == "train" if require_labels is None else require_labels):
        place = config.splits[split][0] if config.kind == "coco" else label_path(annotations[0].path)
        reason = _first(report.problems) or f"looked for {place} and the like"
        reason = "; ".join((reason, *report.notes[:3]))
        raise DataError(f"{config.path}: {split}: no labels at all for {len(annotations)} images: {reason}")
    return _number(annotations, report), report


def print_report(report: ScanReport, limit: int = 20) -> None:
    """Print the counts of a split and its problems, at most `limit` lines of each kind."""
    print("\n".join(map(printable, report_lines(report, limit))))


def report_lines(report: ScanReport, limit: int | None = None) -> list[str]:
    """Return the lines of `print_report`; with `limit` None all of them."""
    lines = [
        f"{report.split}: {report.images} images "
        f"({report.backgrounds} without objects, {report.unlabelled} without a label file), "
        f"{report.objects} objects ({report.polygons} with outlines, {report.crowds} crowd regions); "
        f"{report.from_cache} from the cache"
    ]
    lines += [f"  {source}" for source in report.sources]
    if report.clipped:
        lines.append(f"  {report.clipped} boxes cut at the border of their image")
    lines += [f"  {note}" for note in report.notes]
    for kind, title in PROBLEM_TITLES.items():
        problems = [problem for problem in report.problems if problem.kind == kind]
        if problems:
            lines += [f"  {len(problems)} {title}:", *(f"    {problem}" for problem in problems[:limit])]
        if limit is not None and len(problems) > limit:
            lines.append(f"    … and {len(problems) - limit} more")
    return lines


def check_outlines(annotations: Sequence[Annotation], config: DataConfig, split: str) -> str | None:
    """Check that a split has masks for training or evaluation.

    Returns:
        A note for the user if some objects have no outline, else None.
    Raises:
        DataError: there are objects, but none has an outline.
    """
    lacking = [
        sum(not polygon and not crowd for polygon, crowd in zip(one.polygons, one.crowd, strict=True))
        for one in annotations
    ]
    total = sum(int(np.count_nonzero(~one.crowd)) for one in annotations)
    if not sum(lacking):
        return None
    paths = [
        one.path if config.kind == "coco" else label_path(one.path)
        for one, count in zip(annotations, lacking, strict=True)
        if count
    ]
    first = listed(paths, 3)
    if sum(lacking) == total:
        raise DataError(
            f"{config.path}: {split}: boxes only: none of the {total} objects in {len(paths)} files "
            f"has an outline ({first}): a segmentation network needs rows 'class x1 y1 x2 y2 x3 y3 …' or COCO "
            "polygons; for boxes use a detection network such as yolo11n.yaml"
        )
    return (
        f"{split}: {sum(lacking)} of {total} objects have a box but no outline, in {len(paths)} files ({first}): "
        "they count for boxes and classes, not for masks"
    )


def print_shared(train: Sequence[Annotation], val: Sequence[Annotation]) -> None:
    """Say it where training and validation have files in common, under whatever paths."""
    files = {one.file_id for one in train if one.file_id is not None}
    shared = [one.path for one in val if one.file_id in files]
    if shared:
        print(
            f"train and val have files in common: {len(shared)} of {len(val)} validation images, such as {shared[0]}: "
            "figures on val do not show how well the network does on new images"
        )


def settle_pixel_range(
    config: DataConfig, report: ScanReport, known: PixelRange | None = None, origin: str = ""
) -> PixelRange | None:
    """Return the range of pixel values that becomes 0 to 255 in a split's deep images, and print a line about it.

    The data yaml's `pixel_range` comes first, then a range that is known already, then that of the split's own values.

    Args:
        known: the range of the training images, or of the network; None if there is none.
        origin: who gives the known range, for the line.
    Returns:
        None if no image is deep and no range is given.
    Raises:
        DataError: no range is given for an image of another type than uint16.
    """
    where, chosen = f"{config.path}: {report.split}", known
    if config.pixel_range is not None:
        chosen = config.pixel_range
        other = f" (other than {known[0]:g} to {known[1]:g}, {origin})" if known and known != chosen else ""
        origin = f"as pixel_range in {config.path} says{other}"
    elif known is None:
        chosen = choose_pixel_range(report.deep, where)
        origin = "since its bits hold the highest value; pixel_range in the data yaml sets another range"
    if report.deep and chosen is not None:
        print(f"{report.split}: {describe_scaling(report.deep, report.images, chosen, origin)}")
    elif config.pixel_range is not None:
        print(f"{where}: all images are 8 bits deep: pixel_range does not apply")
    return chosen


def _read_yolo(config: DataConfig, source: Path, report: ScanReport) -> list[Entry]:
    found = source_images(source, config)
    images, num_classes = found.images, len(config.names)

    def read(position: int) -> Entry:
        return _yolo_entry(images[position], num_classes, config.keypoints)

    key = f"yolo {num_classes}" + (f" {config.keypoints}" if config.keypoints else "")
    entries = _cached(images, found.labels, read, found.beside, key, report)
    read_ones = [one.annotation for one in entries if one.annotation is not None]
    if config.keypoints is None and (reason := keypoint_outlines(read_ones)):
        raise DataError(f"{source}: {reason}")
    if note := corners_note(read_ones):
        report.notes.append(f"{source}: {note}")
    if config.keypoints and config.keypoints.columns:
        report.notes.append(
            f"{source}: rows of {config.keypoints.columns} columns are boxes with {config.keypoints.number} key "
            "points (kpt_shape): the boxes are read, the key points are left out"
        )
    folders = {found.beside} if found.beside != source else {label.parent for label in found.labels}
    report.sources.append(f"{source}: {len(images)} images, labels in {listed(sorted(folders), 3)}")
    report.notes += found.notes
    return _usable(entries, report)


def _yolo_entry(image: Path, num_classes: int, keypoints: Keypoints | None) -> Entry:
    examined = _examine(image)
    if isinstance(examined, Problem):
        return Entry(None, [examined], False)
    file_hw, deep = examined
    label = label_path(image)
    try:
        objects = read_label_file(label, num_classes, file_hw, keypoints)
    except FileNotFoundError:
        if not label.is_symlink():
            return Entry(Objects().annotation(image, file_hw), [], False, deep=deep)
        reason = f"the label file is a link that leads nowhere ({os.readlink(label)})"
        return Entry(None, [Problem(IMAGE, str(label), reason)], False)
    except OSError as error:
        return Entry(None, [Problem(IMAGE, str(label), f"label file cannot be read: {error.strerror}")], False)
    return Entry(objects.annotation(image, file_hw), objects.problems, True, objects.clipped, deep)


def _examine(image: Path) -> tuple[tuple[int, int], DeepImage | None] | Problem:
    try:
        return examine_image(image)
    except DataError as error:
        reason = str(error)
        if image.is_symlink() and not image.exists():
            reason = f"a link that leads nowhere ({os.readlink(image)})"
        elif (form := image_format(image)) and not is_image(image):
            reason += f" (it is {form}: convert it to JPEG or PNG)"
        return Problem(IMAGE, str(image), reason)


def _read_coco(config: DataConfig, split: str, source: Path, report: ScanReport) -> list[Entry]:
    content = read_coco_file(source, config.names, config.image_dirs.get(split), config.root)
    report.file_categories.append(content.categories)
    report.problems += content.problems
    report.notes += content.notes

    def read(position: int) -> Entry:
        path = content.images[position].path
        examined = _examine(path)
        if isinstance(examined, Problem):
            return Entry(None, [examined], False)
        file_hw, deep = examined
        return Entry(Objects().annotation(path, file_hw), [], True, deep=deep)

    paths = [image.path for image in content.images]
    checked = _cached(paths, [None] * len(paths), read, source, "coco", report)
    folders = sorted({str(path.parent) for path in paths})
    report.sources.append(f"{source}: {len(paths)} images in {listed(folders, 3)}")
    return _usable([_coco_entry(image, entry) for image, entry in zip(content.images, checked, strict=True)], report)


def _coco_entry(image: CocoImage, checked: Entry) -> Entry:
    """Return an image's objects after checks that the image is intact and has the size stated in its COCO file."""
    if checked.annotation is None:
        return checked
    height, width = checked.annotation.file_hw
    if image.stated_hw not in (None, (height, width)):
        stated = "{1} x {0}".format(*image.stated_hw)
        return Entry(
            None,
            [Problem(IMAGE, str(image.path), f"{width} x {height} pixels, but its COCO file says {stated}")],
            False,
        )
    fit_to_image(image.objects, image.path, (height, width))
    annotation = image.objects.annotation(image.path, (height, width), image.image_id, image.file_name)
    annotation.file_id = checked.annotation.file_id
    return Entry(annotation, image.objects.problems, True, image.objects.clipped, checked.deep)


def _cached(
    images: Sequence[Path],
    labels: Sequence[Path | None],
    read: Callable[[int], Entry],
    beside: Path,
    key: str,
    report: ScanReport,
) -> list[Entry]:
    """Return the entry of each image: from the cache if image and label are unchanged, else from `read(position)`."""
    jobs: list[Job] = [(str(image), stamp(image, label)) for image, label in zip(images, labels, strict=True)]
    places = cache_places(beside)
    known = load_entries(places, key)
    todo = [position for position, job in enumerate(jobs) if job not in known]
    report.from_cache += len(jobs) - len(todo)
    for position, entry in zip(todo, _in_threads(read, todo, report.split), strict=True):
        known[jobs[position]] = entry
    if todo:
        written = save_entries(places, key, {job: known[job] for job in jobs})
        if written != places[0]:
            where = (
                f"the label cache is {written}"
                if written
                else "the label cache could not be written, so the next run checks all images again"
            )
            report.notes.append(f"{places[0].parent} is read-only: {where}")
    for job in jobs:
        if (annotation := known[job].annotation) is not None:
            annotation.file_id = file_id(job[1])
    return [known[job] for job in jobs]


def _in_threads(read: Callable[[int], Entry], todo: Sequence[int], title: str) -> Iterable[Entry]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    executor = ThreadPoolExecutor(min(MAX_THREADS, cores))
    try:
        yield from tqdm(
            executor.map(read, todo),
            f"{title}: checking images and labels",
            len(todo),
            disable=None,  # on a terminal only
        )
    finally:
        executor.shutdown(cancel_futures=True)


def _usable(entries: Iterable[Entry], report: ScanReport) -> list[Entry]:
    usable = []
    for entry in entries:
        report.problems += entry.problems
        report.clipped += entry.clipped
        if entry.annotation is not None:
            usable.append(entry)
            report.deep += [entry.deep] if entry.deep else []
    return usable


def _without_aliases(entries: Sequence[Entry], report: ScanReport) -> list[Annotation]:
    """Return the annotations, without images that have no objects but are the same file as one that has some.

    Labels belong to paths. Where links give one file several paths, the path without labels would call its objects
    background. Files that stay in the split several times are counted in a note.
    """
    found = [(entry, entry.annotation) for entry in entries if entry.annotation is not None]
    labelled = {annotation.file_id for _, annotation in found if len(annotation)} - {None}
    kept: list[Annotation] = []
    aliases: list[Path] = []
    unlabelled: list[Path] = []
    for entry, annotation in found:
        if annotation.file_id in labelled and not len(annotation):
            aliases.append(annotation.path)
            continue
        kept.append(annotation)
        unlabelled += [] if entry.labelled else [annotation.path]
    report.unlabelled = len(unlabelled)
    report.notes += labels_left_at_targets(unlabelled)
    if aliases:
        report.notes.append(
            f"{len(aliases)} images left out: each is the same file as an image with labels: {listed(aliases, 1)}"
        )
    again = _repeated(kept)
    if again:
        report.notes.append(f"{len(again)} images are files that are in this split already: {listed(again, 1)}")
    return kept


def _repeated(annotations: Iterable[Annotation]) -> list[Path]:
    """Return the images whose file an earlier image has too."""
    seen: set[tuple[int, ...]] = set()
    repeated = []
    for one in annotations:
        if one.file_id in seen:
            repeated.append(one.path)
        elif one.file_id is not None:
            seen.add(one.file_id)
    return repeated


def _count(report: ScanReport, annotations: Sequence[Annotation]) -> None:
    report.images = len(annotations)
    report.backgrounds = sum(not len(annotation) for annotation in annotations)
    report.objects = sum(map(len, annotations))
    report.polygons = sum(bool(polygon) for annotation in annotations for polygon in annotation.polygons)
    report.crowds = int(sum(annotation.crowd.sum() for annotation in annotations))


def _number(annotations: Sequence[Annotation], report: ScanReport) -> list[Annotation]:
    """Set unique image ids: those of the COCO files, else the numbers in image names, else a count from 1."""
    image_ids: list[Id] = [annotation.image_id for annotation in annotations]
    if not any(annotation.file_name for annotation in annotations):  # YOLO txt: COCO's images are named by their id
        stems = [annotation.path.stem for annotation in annotations]
        image_ids = [int(stem) if stem.isdecimal() else -1 for stem in stems]
    elif not _unique(image_ids):
        report.notes.append("image ids are not unique in this split: they are counted from 1 instead")
    if not _unique(image_ids):
        image_ids = list(range(1, len(annotations) + 1))
    own = np.concatenate([annotation.annotation_ids for annotation in annotations]).tolist()
    if len(set(own)) == len(own) and all(own):
        return [
            replace(annotation, image_id=image_id) for annotation, image_id in zip(annotations, image_ids, strict=True)
        ]
    counter = count(1)
    return [
        replace(
            annotation,
            image_id=image_id,
            annotation_ids=np.array([next(counter) for _ in range(len(annotation))], np.int64),
        )
        for annotation, image_id in zip(annotations, image_ids, strict=True)
    ]


def _unique(ids: Sequence[Id]) -> bool:
    """Tell whether ids are all texts, or all numbers from 0 that pycocotools can hold, and no two are equal."""
    texts = all(isinstance(one, str) for one in ids)
    numbers = all(isinstance(one, int) and 0 <= one < 1 << 53 for one in ids)
    return (texts or numbers) and len(set(ids)) == len(ids)


def _first(problems: Sequence[Problem], limit: int = 3) -> str:
    return "; ".join(str(problem) for problem in problems[:limit])
