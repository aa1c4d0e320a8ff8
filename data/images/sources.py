"""Where detect.py reads images: an image or video file, a folder, a pattern, a text list or a camera."""

import fnmatch
import glob
import itertools
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np

from data.images.finding import IMAGE_SUFFIXES, image_format, read_folder
from data.images.paths import find_listed, list_folders, named_path, read_list, readings
from data.images.reading import ImageReader
from utils.errors import DataError

VIDEO_SUFFIXES = (".asf", ".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv")
KNOWN_SUFFIXES = (*sorted(IMAGE_SUFFIXES), *VIDEO_SUFFIXES)
DEFAULT_FPS = 30.0


@dataclass(frozen=True)
class Frame:
    """One image of a source.

    Attributes:
        path: the image or video file, or `camera<index>`.
        relative: the same below the folder of the source; the files of a run keep this structure.
        image: (H, W, 3) uint8 RGB.
        number: 1-based position in a video or camera stream, None for an image file.
        is_video: whether it is a frame of a video or camera, so that more frames of the same path may follow.
        fps: frames per second of the stream after `vid_stride`, 0 for an image file.
    """

    path: Path
    relative: Path
    image: np.ndarray
    number: int | None = None
    is_video: bool = False
    fps: float = 0.0


def is_readable(path: Path) -> bool:
    """Tell whether a file is an image or a video, by its suffix or its first bytes."""
    return path.suffix.lower() in KNOWN_SUFFIXES or bool(image_format(path))


def is_video(path: Path) -> bool:
    """Tell whether a file is a video by its suffix, and no still image by its first bytes."""
    return path.suffix.lower() in VIDEO_SUFFIXES and image_format(path) in ("", "GIF")


def open_capture(address: str | int) -> cv2.VideoCapture:
    """Open a video or camera, without OpenCV's and FFmpeg's own messages on stderr."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # FFmpeg's AV_LOG_QUIET
    log = cv2.utils.logging
    level = log.setLogLevel(log.LOG_LEVEL_SILENT)
    try:
        return cv2.VideoCapture(address)
    finally:
        log.setLogLevel(level)


@dataclass(frozen=True)
class Found:
    """The files that a --source names.

    Attributes:
        files: all files, in reading order.
        root: the folder that their relative names start at; None: the name of a file alone.
        folders: the folders that were read, with their subfolders.
        skipped: (path, reason) of each folder that was not read.
        listing: the .txt list that names the files.
    """

    files: list[Path]
    root: Path | None = None
    folders: list[Path] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    listing: Path | None = None


def file_identity(path: Path) -> tuple[int, int]:
    """Return what all paths of one file or folder have in common, whatever links lead there."""
    status = path.stat()
    return status.st_dev, status.st_ino


class Source:
    """The frames of some files or of one camera, in order; can be iterated over once.

    Attributes:
        name: the source as the user named it.
        files: image and video files in reading order.
        folders: the folders that were read for files, with their subfolders.
        listing: the .txt list that names the files; None for another source.
        skipped: (path, reason) of each file or folder that cannot be used; grows while frames are read.
        reader: reads the images; set it before the first frame to scale deep images by another range.
    """

    def __init__(self, name: str, found: Found, camera: int | None = None, vid_stride: int = 1) -> None:
        self.name = name
        self.camera = camera
        self.vid_stride = vid_stride
        self.reader = ImageReader()
        self.folders, self.listing = found.folders, found.listing
        self.skipped: list[tuple[str, str]] = list(found.skipped)
        self.files: list[Path] = []
        self._root = found.root
        for path in found.files:
            if is_readable(path):
                self.files.append(path)
            else:
                self.skipped.append((str(path), "neither its suffix nor its content is that of an image or video"))

    def relative(self, path: Path) -> Path:
        """Return the path of one of the files below the folder of the source."""
        return Path(path.name) if self._root is None else Path(os.path.relpath(path, self._root))

    def __iter__(self) -> Iterator[Frame]:
        if self.camera is not None:
            yield from self._stream(Path(f"camera{self.camera}"), self.camera)
        for path in self.files:
            if is_video(path):
                yield from self._stream(path, str(path))
                continue
            try:
                image = self.reader.read(path)
            except DataError as error:
                self.skipped.append((str(path), str(error).removeprefix(f"{path}: ")))
                continue
            yield Frame(path, self.relative(path), image)

    def _stream(self, path: Path, address: str | int) -> Iterator[Frame]:
        capture, number = open_capture(address), 0
        relative = path if self.camera is not None else self.relative(path)
        try:
            if not capture.isOpened() and self.camera is not None:
                raise DataError(
                    f"--source {address}: no camera answers at this index: "
                    "expected 0 for the first camera, or a file or folder"
                )
            fps = capture.get(cv2.CAP_PROP_FPS) or DEFAULT_FPS
            fps = (fps if math.isfinite(fps) and 0 < fps <= 1000 else DEFAULT_FPS) / self.vid_stride
            while capture.isOpened() and capture.grab():
                number += 1
                if (number - 1) % self.vid_stride:
                    continue
                decoded, image = capture.retrieve()
                if decoded:
                    yield Frame(path, relative, cv2.cvtColor(image, cv2.COLOR_BGR2RGB), number, True, fps)
                else:
                    self.skipped.append((f"{path} frame {number}", "not decoded"))
        finally:
            capture.release()
        if number == 0:
            reason = "no frame could be decoded" if os.path.exists(path) else "No such file or directory"
            self.skipped.append((str(path), reason))


def _from_list(path: Path) -> list[Path]:
    lines = [line for _, line in read_list(path)]
    if not lines:
        raise DataError(f"no image at {path}: the list is empty: expected one image path per line")
    folders = (*list_folders(path), Path.cwd())
    found = [find_listed(line, folders) for line in lines]
    files = [
        place[0] if place else named_path(path.parent, list(readings(line))[-1])
        for line, place in zip(lines, found, strict=True)
    ]
    return list(dict.fromkeys(files))


def _walk(folder: Path) -> Found:
    """Return the files of a folder and its subfolders, read as `read_folder` does for training, sorted by path."""
    content = read_folder(folder)
    skipped = [(str(path), "a link to a folder that holds the link") for path in content.loops]
    skipped += [(str(path), "a link that leads nowhere") for path in content.dead]
    skipped += [(place, reason) for place, _, reason in (line.rpartition(": ") for line in content.closed)]
    files = sorted((*content.images, *content.others), key=str)
    folders = {folder, *(parent for path in files for parent in path.parents if parent.is_relative_to(folder))}
    return Found(files, folder, sorted(folders), skipped)


def _from_pattern(pattern: Path) -> Found:
    """Return the files that match a pattern; `**` stands for any number of subfolders, read as `_walk` reads them."""
    fixed = list(itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts[:-1]))
    root, wanted = Path(*fixed), pattern.parts[len(fixed) :]
    if "**" not in wanted:
        return Found(sorted(Path(name) for name in glob.glob(str(pattern)) if os.path.isfile(name)), root)
    found = _walk(root)
    return replace(found, files=[path for path in found.files if _matches(path.relative_to(root).parts, wanted)])


def _matches(parts: Sequence[str], wanted: Sequence[str]) -> bool:
    """Tell whether the parts of a path match those of a pattern."""
    if not wanted:
        return not parts
    if wanted[0] == "**":
        return any(_matches(parts[start:], wanted[1:]) for start in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatch(parts[0], wanted[0]) and _matches(parts[1:], wanted[1:])


def _find_files(source: str) -> Found:
    path = Path(os.path.expanduser(source))
    if os.path.isdir(path):
        found = _walk(path)
        if not any(map(is_readable, found.files)):
            inside = f" ({len(found.files)} other files)" if found.files else ""
            raise DataError(
                f"no image at {source}: the folder and its subfolders hold none{inside}: "
                f"expected one of {' '.join(KNOWN_SUFFIXES)}"
            )
        return found
    if os.path.isfile(path):
        if path.suffix.lower() == ".txt":
            files = _from_list(path)
            return Found(files, _common_folder(files), listing=path)
        if not is_readable(path):
            expected = " ".join(KNOWN_SUFFIXES)
            raise DataError(
                f"no image at {source}: the file has the suffix '{path.suffix}': "
                f"expected one of {expected}, or a .txt list of images"
            )
        return Found([path])
    if glob.has_magic(source):
        found = _from_pattern(path)
        if not any(map(is_readable, found.files)):
            raise DataError(
                f"no image at {source}: no image or video file matches the pattern: "
                "put it in quotes so that the shell does not expand it"
            )
        return found
    raise DataError(
        f"no image at {source}: there is no such file or folder: "
        "expected an image, video, folder, pattern, .txt list or camera index"
    )


def _common_folder(files: Sequence[Path]) -> Path | None:
    """Return the folder that holds all files, in it or in subfolders; None if there is none."""
    try:
        return Path(os.path.commonpath([os.path.abspath(path.parent) for path in files if path.exists()]))
    except ValueError:  # several drives, or no file at all
        return None


def open_source(source: str | Path, vid_stride: int = 1) -> Source:
    """Find the images that a --source names.

    Args:
        source: image or video file, folder (with its subfolders), pattern (`**` for all subfolders), .txt list of
            files, or camera index.
        vid_stride: use every n-th frame of a video.

    Raises:
        DataError: the source is empty, does not exist, has no file of a known kind, or is a network address.
    """
    source = str(source)
    if not source.strip():
        raise DataError("--source: is empty: expected a file, folder, pattern, .txt list or camera index")
    if vid_stride < 1:
        raise DataError(f"--vid-stride {vid_stride}: expected 1 or more")
    if "://" in source:
        raise DataError(f"--source {source}: network addresses are not read: download the file first and name it here")
    if source.isdigit() and not os.path.exists(source):
        return Source(source, Found([]), camera=int(source), vid_stride=vid_stride)
    return Source(source, _find_files(source), vid_stride=vid_stride)
