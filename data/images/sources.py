"""Sources of images: an image or video file, a folder, a pattern, a text list or a camera."""

import glob
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from data.images.finding import IMAGE_SUFFIXES, image_format
from data.images.paths import find_listed, named_path, read_list, readings
from data.images.reading import read_image
from utils.errors import DataError

VIDEO_SUFFIXES = (".asf", ".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv")
KNOWN_SUFFIXES = (*sorted(IMAGE_SUFFIXES), *VIDEO_SUFFIXES)
DEFAULT_FPS = 30.0


@dataclass(frozen=True)
class Frame:
    """One image of a source.

    Attributes:
        path: the image or video file, or `camera<index>`.
        image: (H, W, 3) uint8 RGB.
        number: 1-based position in a video or camera stream, None for an image file.
        is_video: whether it is a frame of a video or camera, so that more frames of the same path may follow.
        fps: frames per second of the stream after `vid_stride`, 0 for an image file.
    """

    path: Path
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


class Source:
    """The frames of a list of files or of one camera, in order; can be iterated over once.

    Attributes:
        name: the source as the user named it.
        files: image and video files in reading order.
        skipped: (path, reason) of each unusable file; grows while frames are read.
    """

    def __init__(self, name: str, files: list[Path], camera: int | None = None, vid_stride: int = 1) -> None:
        self.name = name
        self.camera = camera
        self.vid_stride = vid_stride
        self.skipped: list[tuple[str, str]] = []
        self.files: list[Path] = []
        for path in files:
            if is_readable(path):
                self.files.append(path)
            else:
                self.skipped.append((str(path), "neither its suffix nor its content is that of an image or video"))

    def __iter__(self) -> Iterator[Frame]:
        if self.camera is not None:
            yield from self._stream(Path(f"camera{self.camera}"), self.camera)
        for path in self.files:
            if is_video(path):
                yield from self._stream(path, str(path))
                continue
            try:
                image = read_image(path)
            except DataError as error:
                self.skipped.append((str(path), str(error).removeprefix(f"{path}: ")))
                continue
            yield Frame(path, image)

    def _stream(self, path: Path, address: str | int) -> Iterator[Frame]:
        capture, number = open_capture(address), 0
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
                    yield Frame(path, cv2.cvtColor(image, cv2.COLOR_BGR2RGB), number, True, fps)
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
    folders = (path.parent, Path.cwd())
    found = [find_listed(line, folders) for line in lines]
    files = [
        place[0] if place else named_path(path.parent, list(readings(line))[-1])
        for line, place in zip(lines, found, strict=True)
    ]
    return list(dict.fromkeys(files))


def _find_files(source: str) -> list[Path]:
    path = Path(source).expanduser()
    if path.is_dir():
        files = sorted(child for child in path.iterdir() if child.is_file() and not child.name.startswith("."))
        if not any(map(is_readable, files)):
            inside = f" ({len(files)} other files)" if files else ""
            raise DataError(
                f"no image at {source}: the folder itself holds none{inside}: "
                f"expected one of {' '.join(KNOWN_SUFFIXES)}; "
                f"for its subfolders write '{path / '**' / '*'}'"
            )
        return files
    if path.is_file():
        if path.suffix.lower() == ".txt":
            return _from_list(path)
        if not is_readable(path):
            expected = " ".join(KNOWN_SUFFIXES)
            raise DataError(
                f"no image at {source}: the file has the suffix '{path.suffix}': "
                f"expected one of {expected}, or a .txt list of images"
            )
        return [path]
    if glob.has_magic(source):
        files = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if os.path.isfile(name))
        if not any(map(is_readable, files)):
            raise DataError(
                f"no image at {source}: no image or video file matches the pattern: "
                "put it in quotes so that the shell does not expand it"
            )
        return files
    raise DataError(
        f"no image at {source}: there is no such file or folder: "
        "expected an image, video, folder, pattern, .txt list or camera index"
    )


def open_source(source: str | Path, vid_stride: int = 1) -> Source:
    """Find the images that a --source names.

    Args:
        source: image or video file, folder (without subfolders), pattern (`**` for all subfolders), .txt list of files,
            or camera index.
        vid_stride: use every n-th frame of a video.

    Raises:
        DataError: the source does not exist, has no file of a known kind, or is a network address.
    """
    source = str(source)
    if vid_stride < 1:
        raise DataError(f"--vid-stride {vid_stride}: expected 1 or more")
    if "://" in source:
        raise DataError(f"--source {source}: network addresses are not read: download the file first and name it here")
    if source.isdigit() and not os.path.exists(source):
        return Source(source, [], camera=int(source), vid_stride=vid_stride)
    return Source(source, _find_files(source), vid_stride=vid_stride)
