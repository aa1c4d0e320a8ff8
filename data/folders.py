"""The images of a YOLO source, a folder or a list, and one line for each kind of file that is left out."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data.config import DataConfig
from data.images.finding import FolderContent, image_format, is_image, read_folder
from data.images.paths import find_listed, list_folders, named_path, printable, read_list, readings, suffix_of
from data.labels.yolo_txt import label_path
from utils.errors import DataError

NO_PICTURES = frozenset(
    (
        *(".cache", ".csv", ".db", ".htm", ".html", ".ini", ".json", ".log", ".md", ".npy", ".npz", ".py", ".txt"),
        *(".xml", ".yaml", ".yml", ".zip"),
    )
)
"""Suffixes of files that are not opened to see whether they are pictures."""
OWN_FILES = (".cache", ".npz", ".txt", ".db", ".ini", ".yaml")
"""Suffixes that are usual beside images and not worth a line: caches, labels, settings."""
NO_LABELS = frozenset(("classes", "labels", "notes", "obj", "predefined_classes", "readme", "readme.dataset"))
"""Names, without `.txt`, of files beside labels that are none."""


@dataclass
class SourceImages:
    """The images of a source.

    Attributes:
        images: in the order of the list, or sorted by path.
        labels: label file of each image, existing or not.
        beside: folder of the labels, or the list; the label cache is put beside it.
        notes: lines about what was left out.
    """

    images: list[Path]
    labels: list[Path]
    beside: Path
    notes: list[str] = field(default_factory=list)


def source_images(source: Path, config: DataConfig) -> SourceImages:
    """Return the images of a folder or of a .txt list.

    Raises:
        DataError: the source is neither, has no image, or a line of the list is no image.
    """
    if source.is_dir():
        found = _from_folder(source)
    elif suffix_of(source) == ".txt":
        found = _from_list(source, config)
    else:
        raise DataError(f"{source}: expected an image folder, a .txt list of images or a COCO .json")
    if not found.images:
        remarks = "; ".join(found.notes)
        raise DataError(f"{source}: no images: expected files such as .jpg or .png" + (remarks and f"; {remarks}"))
    return found


def _from_folder(source: Path) -> SourceImages:
    labels = label_path(source / "any.jpg").parent
    if labels.is_symlink() and not labels.exists():
        raise DataError(
            f"{labels}: a link that leads nowhere ({os.readlink(labels)}): "
            f"expected the folder of the labels of {source}"
        )
    content = read_folder(source)
    label_of = {image: label_path(image) for image in content.images}
    labelled, pictures, others = _sort_others(content.others, set(label_of.values()))
    label_of |= labelled
    images = sorted(label_of, key=str)
    notes = [
        *_line(content.loops, "links not followed, because they lead to a folder that contains them"),
        *_line(content.dead, "links that lead nowhere"),
        *_line(content.closed, "folders and files that cannot be read"),
        *_line(list(labelled), "pictures read, because they have labels, though they are not named as images"),
        *_line(pictures, "pictures left out, because they are not named as images and have no label file"),
        *_line(others, "files left out, because they are no images"),
        *_line(
            _labels_without_image(source, labels, content, set(label_of.values())),
            "label files left out, for want of an image",
        ),
    ]
    return SourceImages(images, [label_of[image] for image in images], labels, notes)


def _sort_others(others: Iterable[Path], taken: set[Path]) -> tuple[dict[Path, Path], list[Path], list[Path]]:
    """Sort files that are not named as images: pictures, by their label file, pictures without one, and the rest.

    Args:
        taken: label files of other images.
    """
    labelled: dict[Path, Path] = {}
    pictures: list[Path] = []
    rest: list[Path] = []
    for file in others:
        suffix = file.suffix.lower()
        if suffix in NO_PICTURES or not image_format(file):
            if suffix not in OWN_FILES:
                rest.append(file)
            continue
        label = label_path(file)
        if label in taken or not label.is_file():
            pictures.append(file)
        else:
            labelled[file] = label
    return labelled, pictures, rest


def _labels_without_image(source: Path, labels: Path, content: FolderContent, expected: set[Path]) -> list[Path]:
    """Return the label files beside the images, and in the folder of their labels, that belong to none of them."""
    apart = labels != source and labels.is_dir()
    files = [*content.others, *(read_folder(labels).others if apart else ())]
    return [
        file
        for file in files
        if file.suffix.lower() == ".txt"
        and file not in expected
        and file.stem.lower() not in NO_LABELS
        and _has_label_row(file)
    ]


def _has_label_row(path: Path) -> bool:
    """Tell whether the first row of a file is one of a label: a class and four or more numbers."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            words = next((line.split() for line in file if line.strip()), [])
        return len([float(word) for word in words]) > 4
    except (OSError, ValueError):
        return False


def _from_list(source: Path, config: DataConfig) -> SourceImages:
    """Read a list of images.

    Relative paths start at the list's folder, the root or the data yaml's folder; at the working folder only if no
    line is found in these.
    """
    lines = read_list(source)
    texts = [line for _, line in lines]
    beside, *elsewhere = list_folders(source)
    folders = tuple(dict.fromkeys((beside, config.root, named_path(config.path.parent, ""), *elsewhere)))
    found = [find_listed(text, folders) for text in texts]
    if not any(found):
        folders = (beside, Path.cwd())
        found = [find_listed(text, folders) for text in texts]
    images = [
        place[0] if place else named_path(beside, list(readings(text))[-1])
        for text, place in zip(texts, found, strict=True)
    ]
    for (number, line), image in zip(lines, images, strict=True):
        if not is_image(image) and not image_format(image):
            raise DataError(
                f"{source}:{number}: {printable(line)!r} is no image: expected one path per line, such as images/a.jpg"
            )
    notes = []
    for folder in folders[1:]:
        away = [text for text, place in zip(texts, found, strict=True) if place and place[1] == folder]
        notes += _line(away, f"lines that start at {folder}, not at the list's folder")
    return SourceImages(images, list(map(label_path, images)), source, notes)


def labels_left_at_targets(images: Iterable[Path]) -> list[str]:
    """Return a line about images without labels that are links, or lie behind links, to images with labels."""
    left = []
    for image in images:
        target = Path(os.path.realpath(image))
        if target != image and (label := label_path(target)).is_file():
            left.append(label)
    return _line(left, "label files of the targets of links, not read because labels belong to the path of the link")


def _line(items: Sequence[object], what: str) -> list[str]:
    """Return one line with the number of items and the first of them; none for no items."""
    return [f"{what}: {len(items)}, such as {printable(items[0])}"] if items else []
