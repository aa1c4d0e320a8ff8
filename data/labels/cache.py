"""The label cache: annotations of a source, stored beside its labels, so that only changed files are read again.

The file is a numpy archive without pickled objects. An entry is valid while its image and its label file are the same
files as before, of the same size, and were not changed: by the modification time, which programs can set, and the
inode's change time, which they cannot.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.images.pixels import DeepImage
from data.labels.annotation import Annotation, Problem
from utils.files import atomic_write

VERSION = 5
SUFFIX = ".cache.npz"
FileStamp = tuple[int, int, int, int]
"""Size, mtime_ns, ctime_ns and inode of the file that a path leads to."""
Stamp = tuple[int, ...]
"""The `FileStamp` of the image, then of its label file."""
Job = tuple[str, Stamp]
"""Path of an image, and its stamp."""
MISSING: FileStamp = (-1, -1, -1, -1)


@dataclass(slots=True)
class Entry:
    """The result for one image: its annotation (None if it was skipped), its problems, and its values if it is deep."""

    annotation: Annotation | None
    problems: list[Problem]
    labelled: bool
    clipped: int = 0
    deep: DeepImage | None = None


def stamp(image: Path, label: Path | None) -> Stamp:
    """Return the state of an image and of its label file."""
    return *_file_stamp(image), *(_file_stamp(label) if label is not None else MISSING)


def file_id(stamp: Stamp) -> FileStamp | None:
    """Return what tells an image file from all others, whatever path leads to it; None if it has no inode."""
    size, modified, changed, inode = stamp[: len(MISSING)]
    return (size, modified, changed, inode) if inode > 0 else None


def _file_stamp(path: Path) -> FileStamp:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return MISSING
    inode = status.st_ino % (1 << 63)  # the cache keeps int64; some file systems use all 64 bits
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, inode


def cache_places(beside: Path) -> list[Path]:
    """Return the possible places of a source's cache: beside it and, if that is read-only, the user's cache folder."""
    first = beside.with_name(beside.name + SUFFIX)
    home = os.path.expanduser("~")
    folder = os.environ.get("XDG_CACHE_HOME") or (os.path.join(home, ".cache") if home != "~" else "")
    if not folder:  # the user has no home folder, as in some containers
        return [first]
    digest = hashlib.sha256(os.fsencode(beside.absolute())).hexdigest()[:16]
    return [first, Path(folder) / "yolo_loom" / f"{beside.name}-{digest}{SUFFIX}"]


def load_entries(places: Sequence[Path], key: str) -> dict[Job, Entry]:
    """Return the entries of the first cache with the same `key`; ignore damaged caches."""
    for place in places:
        try:
            with np.load(place, allow_pickle=False) as archive:
                header = json.loads(archive["header"].tobytes())
                if header["version"] == VERSION and header["key"] == key:
                    return _unpack(header, {name: archive[name] for name in archive.files if name != "header"})
        except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile, EOFError):
            continue
    return {}


def save_entries(places: Sequence[Path], key: str, entries: dict[Job, Entry]) -> Path | None:
    """Write a cache atomically to the first writable place; return the place, or None."""
    header, arrays = _pack(entries)
    packed = np.frombuffer(json.dumps({"version": VERSION, "key": key, **header}).encode(), np.uint8)
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            if not place.parent.stat().st_mode & 0o222:  # root could write there, but the folder is marked read-only
                continue
            with atomic_write(place) as file:
                np.savez(file, **{"header": packed, **arrays})  # type: ignore[arg-type] # its flag is no array
        except OSError:
            continue
        return place
    return None


def _pack(entries: dict[Job, Entry]) -> tuple[dict[str, object], dict[str, np.ndarray]]:
    """Return one flat array per field, and the counts that split them into images, objects and polygon parts."""
    kept = [entry.annotation for entry in entries.values() if entry.annotation is not None]
    parts = [part for annotation in kept for polygon in annotation.polygons for part in polygon]

    def joined(name: str, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
        return np.concatenate([np.zeros(shape, dtype), *(getattr(annotation, name) for annotation in kept)])

    arrays = {
        "stamps": np.array([stamp for _, stamp in entries], np.int64).reshape(-1, 2 * len(MISSING)),
        "usable": np.array([entry.annotation is not None for entry in entries.values()], np.bool_),
        "labelled": np.array([entry.labelled for entry in entries.values()], np.bool_),
        "clipped": np.array([entry.clipped for entry in entries.values()], np.int64),
        "image_hw": np.array([annotation.file_hw for annotation in kept], np.int64).reshape(-1, 2),
        "counts": np.array([len(annotation) for annotation in kept], np.int64),
        "classes": joined("classes", np.int64, (0,)),
        "boxes_xyxy": joined("boxes_xyxy", np.float32, (0, 4)),
        "areas": joined("areas", np.float64, (0,)),
        "num_parts": np.array([len(polygon) for annotation in kept for polygon in annotation.polygons], np.int64),
        "num_points": np.array([len(part) for part in parts], np.int64),
        "points": np.concatenate([np.zeros((0, 2), np.float32), *parts]),
    }
    problems = [
        [index, p.kind, p.where, p.reason] for index, entry in enumerate(entries.values()) for p in entry.problems
    ]
    deep = [[index, *entry.deep[1:]] for index, entry in enumerate(entries.values()) if entry.deep]
    return {"paths": [path for path, _ in entries], "problems": problems, "deep": deep}, arrays


def _unpack(header: dict[str, list], arrays: dict[str, np.ndarray]) -> dict[Job, Entry]:
    parts = (
        iter(np.split(arrays["points"], np.cumsum(arrays["num_points"])[:-1]))
        if len(arrays["num_points"])
        else iter(())
    )
    num_parts, starts = iter(arrays["num_parts"].tolist()), np.cumsum(arrays["counts"]) - arrays["counts"]
    spans = iter(zip(starts.tolist(), arrays["counts"].tolist(), arrays["image_hw"].tolist(), strict=True))
    entries = {}
    columns = (
        header["paths"],
        arrays["stamps"].tolist(),
        arrays["usable"].tolist(),
        arrays["labelled"].tolist(),
        arrays["clipped"].tolist(),
    )
    for path, stamp_numbers, usable, labelled, clipped in zip(*columns, strict=True):
        annotation = None
        if usable:
            start, count, file_hw = next(spans)
            span = slice(start, start + count)
            polygons = [[next(parts) for _ in range(next(num_parts))] for _ in range(count)]
            annotation = Annotation(
                Path(path),
                tuple(file_hw),
                0,
                arrays["classes"][span],
                arrays["boxes_xyxy"][span],
                polygons,
                np.zeros(count, np.bool_),
                arrays["areas"][span],
                np.zeros(count, np.int64),
            )
        entries[path, tuple(stamp_numbers)] = Entry(annotation, [], labelled, clipped)
    in_order = list(entries.values())
    for index, kind, where, reason in header["problems"]:
        in_order[index].problems.append(Problem(kind, where, reason))
    for index, *values in header["deep"]:
        in_order[index].deep = DeepImage(header["paths"][index], *values)
    return entries
