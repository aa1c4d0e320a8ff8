"""The folder of a run: nothing that is read is written over, and no files of an earlier detection run stay in it."""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from data.images.sources import Source, file_identity
from data.labels.yolo_txt import label_path
from utils.errors import SettingsError

RECORD = ".detect-files.jsonl"
"""The list, in a run's folder, of the files that the run wrote: [path, size, time of change in nanoseconds] a line."""
LABELS = "labels"
FOLDERS = (LABELS, "crops", "explain", "visualize")
RESULTS = "predictions.json"
CLOCK_STEP = 2 * 10**9
"""Nanoseconds that some file systems round times to."""
Identity = tuple[int, int]


@dataclass(frozen=True)
class Written:
    """A file that a run wrote, as the run's record has it."""

    path: Path
    size: int
    changed: int

    def is_unchanged(self) -> bool:
        """Tell whether the file is still as the run wrote it; a link in its place is not."""
        status = self.path.lstat()
        return status.st_size == self.size and abs(status.st_mtime_ns - self.changed) < CLOCK_STEP


def record_file(folder: Path, path: Path) -> None:
    """Add a file to the record of the run's folder; a later run in this folder may remove it."""
    status = path.stat()
    line = json.dumps([path.relative_to(folder).as_posix(), status.st_size, status.st_mtime_ns])
    with (folder / RECORD).open("a", encoding="ascii") as record:
        record.write(f"{line}\n")


def read_record(folder: Path) -> list[Written]:
    """Return the files of the folder's record that are still there; lines that make no sense are left out."""
    try:
        lines = (folder / RECORD).read_text(encoding="ascii", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    inside, found = folder.resolve(), {}
    for line in lines:
        try:
            name, size, changed = json.loads(line)
        except (ValueError, TypeError):  # such as the last line of a run that was killed
            continue
        if not (isinstance(name, str) and isinstance(size, int) and isinstance(changed, int)):
            continue
        parts = PurePosixPath(name).parts
        path = folder.joinpath(*parts)
        if ".." in parts or not path.parent.resolve().is_relative_to(inside) or not os.path.lexists(path):
            continue
        found[path] = Written(path, size, changed)
    return list(found.values())


def remove_earlier_files(folder: Path) -> None:
    """Remove the files that an earlier run wrote into a folder, and say how many; others stay.

    Raises:
        SettingsError: see `check_earlier_files`.
    """
    check_earlier_files(folder)
    written = read_record(folder)
    for one in written:
        one.path.unlink()
    (folder / RECORD).unlink(missing_ok=True)
    for place in sorted({parent for one in written for parent in one.path.relative_to(folder).parents}, reverse=True):
        if place != Path() and not any((folder / place).iterdir()):
            (folder / place).rmdir()
    if written:
        example = written[0].path.relative_to(folder)
        print(f"{folder}: removed {len(written)} files that an earlier run wrote ({example})")


def check_earlier_files(folder: Path) -> None:
    """Check that a later run could not be confused with what a folder holds.

    Raises:
        SettingsError: a file of an earlier run was changed since, or files stand where those of a run do but are in no
            record. Nothing is removed.
    """
    remedy = "choose another --name, or move them away"
    written = read_record(folder)
    changed = [one.path for one in written if not one.is_unchanged()]
    if changed:
        raise SettingsError(
            f"{folder}: {len(changed)} files of an earlier run were changed since ({changed[0]}): "
            f"expected files that may be removed; {remedy}"
        )
    known = {one.path for one in written}
    results = [folder / RESULTS] if os.path.lexists(folder / RESULTS) else []
    foreign = [path for path in (*results, *files_below(folder, FOLDERS)) if path not in known]
    if foreign:
        raise SettingsError(
            f"{folder}: holds {len(foreign)} files that look like a run's but are in no record of one "
            f"({foreign[0]}): expected no {', '.join(FOLDERS)} or {RESULTS} of other origin; {remedy}"
        )


def files_below(folder: Path, names: Iterable[str]) -> Iterator[Path]:
    """Yield the files in some subfolders of a folder, and in the subfolders of these."""
    for name in names:
        for parent, _, files in os.walk(folder / name):
            yield from (Path(parent, file) for file in sorted(files))


def check_source_is_apart(source: Source, folder: Path, exist_ok: bool, labels: bool) -> None:
    """Check that a run writes over nothing that it reads, before a picture is opened.

    Args:
        folder: where the run is to write; without `exist_ok` a folder beside it, if it exists.
        labels: whether the run writes label files.
    Raises:
        SettingsError: the folder is the source or lies inside it, by whatever links; or it holds pictures of the
            source, or their labels, where the run writes.
    """
    expected = "expected a folder apart from the source, so that nothing is written over; choose another --project"
    read = {file_identity(place): place for place in source.folders}
    target = folder.resolve()
    for place in (target, *target.parents):
        if place.exists() and (exist_ok or place != target) and file_identity(place) in read:
            where = "is the source" if place == target else "lies inside the source"
            raise SettingsError(f"{folder}: {where} {read[file_identity(place)]}: {expected}")
    if not exist_ok or not folder.is_dir():
        return
    for path in endangered(source, folder, labels):
        raise SettingsError(f"{folder}: the run would write where {path} lies, which it reads: {expected}")


def endangered(source: Source, folder: Path, labels: bool) -> Iterator[Path]:
    """Yield the files read by a run that lie in a folder into which it writes, or that an earlier run wrote."""
    own = {place for name in FOLDERS for place in folders_below(folder / name)}
    written = own | {
        file_identity(folder / parent)
        for parent in {source.relative(path).parent for path in source.files}
        if (folder / parent).is_dir()
    }
    recorded = {file_identity(one.path) for one in read_record(folder) if one.path.exists()}
    for path in source.files:
        places = {path.parent, path.resolve().parent} if path.is_symlink() else {path.parent}
        if path.exists() and (
            file_identity(path) in recorded or any(file_identity(place) in written for place in places)
        ):
            yield path
    beside = labels_among(source.files, folder) if labels else ()
    for path in (*beside, *([source.listing] if source.listing else [])):
        if file_identity(path.parent) in own and file_identity(path) not in recorded:
            yield path


def labels_among(images: Iterable[Path], folder: Path) -> Iterator[Path]:
    """Yield the label files of images that lie where a run in a folder writes its own."""
    places = folders_below(folder / LABELS)
    for path in map(label_path, images if places else ()):
        if path.exists() and file_identity(path.parent) in places:
            yield path


def check_labels_are_apart(images: Iterable[Path], folder: Path) -> None:
    """Check that a run writes over no label file of its images, before it measures anything.

    Raises:
        SettingsError: a label file lies where the run in this folder writes its own.
    """
    for path in labels_among(images, folder):
        raise SettingsError(
            f"--save-txt: {folder} holds {path}, a label file of the data set: expected a folder apart from the data "
            "set, so that nothing is written over; choose another --project"
        )


def folders_below(folder: Path) -> set[Identity]:
    """Return a folder with its subfolders; links are followed."""
    found: set[Identity] = set()
    for parent, folders, _ in os.walk(folder, followlinks=True):
        found.add(file_identity(Path(parent)))
        folders[:] = [name for name in folders if file_identity(Path(parent, name)) not in found]
    return found
