"""The files of a detection run (images, videos, labels, crops, COCO results) and the window of --view-img."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from data.images.sources import Frame
from data.labels.annotation import Id
from utils.drawing.draw import write_image
from utils.errors import DataError
from utils.files import write_json, write_text
from utils.inference.results import Results
from utils.runs.run_folder import LABELS, RESULTS, record_file, remove_earlier_files

FORBIDDEN_IN_NAMES = frozenset('<>:"/\\|?*')
MOST_DIGITS = 15
"""Longest name that is taken for the number of an image; longer numbers are not exact in every reader of JSON."""
QUIT_KEYS = (ord("q"), 27)
WINDOW_PROBE = "import cv2; cv2.namedWindow('probe'); cv2.destroyAllWindows()"


def file_name(text: str, fallback: str) -> str:
    """Replace the characters of `text` that a file name must not have by `_`; return `fallback` if nothing is left."""
    clean = "".join("_" if c in FORBIDDEN_IN_NAMES or not c.isprintable() else c for c in text).strip(" .")
    return clean or fallback


class NameBook:
    """Gives each file of a run a name of its own: `street`, then `street_2`; upper and lower case count as equal."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}

    def claim(self, name: str) -> str:
        """Return `name`, with a number appended if it is taken."""
        free, number = name, self._last.get(name.casefold(), 0)
        while number or free.casefold() in self._last:
            number = max(number, 1) + 1
            free = f"{name}_{number}"
            if free.casefold() not in self._last:
                break
        self._last[name.casefold()] = max(number, 1)
        self._last.setdefault(free.casefold(), 1)
        return free


def can_show_windows() -> bool:
    """Tell whether OpenCV can open a window; tried in another process, since some builds abort without a display."""
    try:
        probe = subprocess.run([sys.executable, "-c", WINDOW_PROBE], capture_output=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return False
    return probe.returncode == 0


class VideoFile:
    """An annotated video; it gets its name when it is closed, so that no unfinished file has that name."""

    def __init__(self, path: Path, fps: float, size_hw: tuple[int, int]) -> None:
        self.path = path
        self.size_hw = size_hw
        path.parent.mkdir(parents=True, exist_ok=True)
        self._partial = path.with_name(f".{path.stem}.partial.mp4")
        self._writer = cv2.VideoWriter(str(self._partial), cv2.VideoWriter.fourcc(*"mp4v"), fps, size_hw[::-1])
        if not self._writer.isOpened():
            raise DataError(
                f"{path}: OpenCV cannot write mp4 video here: expected a build with FFmpeg; use --nosave --save-txt"
            )

    def write(self, image: NDArray[np.uint8]) -> None:
        """Append an (H, W, 3) uint8 RGB frame, resized to the video's size if it has another."""
        if image.shape[:2] != self.size_hw:
            image = cv2.resize(image, self.size_hw[::-1])
        self._writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        """Finish the file."""
        self._writer.release()
        if self._partial.exists():
            self._partial.replace(self.path)


class RunWriter:
    """Writes the files of a run. Files of pictures in subfolders stand in subfolders of the same names.

    Args:
        folder: the run's folder; `begin` removes the files of an earlier run in it.
        save_txt: write a label file for each frame; `save_conf` adds the confidence.
        save_crop: write an image of each box.
        save_json: write all frames' COCO results when the run ends.
        category_ids: category id of each class in them; None takes the class index.

    Attributes:
        renamed: files that got another name because a file of the run had theirs.
    """

    def __init__(
        self,
        folder: Path,
        *,
        save_txt: bool,
        save_conf: bool,
        save_crop: bool,
        save_json: bool,
        category_ids: Sequence[Id] | None = None,
    ) -> None:
        self.folder, self.category_ids = folder, category_ids
        self._image_ids: set[Id] = set()
        self.save_txt, self.save_conf, self.save_crop, self.save_json = save_txt, save_conf, save_crop, save_json
        self.renamed: list[str] = []
        self._coco: list[dict[str, object]] = []
        self._names = NameBook()
        self._stems: dict[Path, str] = {}
        self._video: VideoFile | None = None
        self._video_source: Path | None = None
        self._begun = False

    def begin(self) -> None:
        """Remove the files of an earlier run; to be called with the first frame: a run without one removes nothing."""
        if not self._begun:
            remove_earlier_files(self.folder)
            self._begun = True

    def stem(self, frame: Frame) -> str:
        """Return the path, without suffix, of a frame's files below the folder of each kind.

        It is that of the picture below the source; for a frame of a video its number is added.
        """
        if frame.path not in self._stems:
            wanted = frame.relative.with_suffix("").as_posix()
            self._stems[frame.path] = self._names.claim(wanted)
            if self._stems[frame.path] != wanted:
                self.renamed.append(f"{frame.path} -> {self._stems[frame.path]}")
        stem = self._stems[frame.path]
        return self._names.claim(f"{stem}_{frame.number}") if frame.is_video else stem

    def place(self, kind: str, stem: str, suffix: str = "") -> Path:
        """Return a free path for a file (or folder) of a frame in the folder of its kind, such as `explain`."""
        return self.folder / f"{self._names.claim(f'{kind}/{stem}')}{suffix}"

    def record(self, *paths: Path) -> None:
        """Note files as written by this run, so that a later run in the same folder can remove them."""
        for path in paths:
            record_file(self.folder, path)

    def write(self, frame: Frame, results: Results, stem: str, annotated: NDArray[np.uint8] | None) -> None:
        """Write the files of one frame; `annotated` is the image with its objects drawn, None writes no image."""
        if annotated is not None:
            self._write_annotated(frame, stem, annotated)
        if self.save_txt:
            path = self.folder / LABELS / f"{stem}.txt"
            write_text(path, "".join(f"{row}\n" for row in results.txt_rows(self.save_conf)))
            self.record(path)
        if self.save_crop:
            for index, number in enumerate(results.classes.tolist()):
                kind = file_name(results.names[number], str(number))
                self.record(write_image(self.place(f"crops/{kind}", stem, ".jpg"), results.crop(index)))
        if self.save_json:
            name = stem if frame.is_video else frame.relative.as_posix()
            self._coco += results.coco_rows(self._image_id(stem), name, self.category_ids)

    def _image_id(self, stem: str) -> Id:
        """Return a frame's image id: its number if its name is one, as in COCO, else its name."""
        number = int(stem) if stem.isdecimal() and len(stem) <= MOST_DIGITS else stem
        image_id = stem if number in self._image_ids else number  # 7.jpg and 007.jpg are one number
        self._image_ids.add(image_id)
        return image_id

    def _write_annotated(self, frame: Frame, stem: str, annotated: NDArray[np.uint8]) -> None:
        if not frame.is_video:
            self.record(write_image(self.folder / f"{stem}{frame.path.suffix}", annotated))
            return
        if self._video is None or self._video_source != frame.path:
            self._close_video()
            path = self.folder / f"{self._stems[frame.path]}.mp4"
            self._video, self._video_source = VideoFile(path, frame.fps, annotated.shape[:2]), frame.path
        self._video.write(annotated)

    def _close_video(self) -> None:
        if self._video is not None:
            self._video.close()
            self.record(self._video.path)
            self._video = None

    def close(self) -> None:
        """Finish an open video, and write predictions.json if `save_json` and there was a frame."""
        self._close_video()
        if self.save_json and self._begun:
            write_json(self.folder / RESULTS, self._coco)
            self.record(self.folder / RESULTS)


class Viewer:
    """Shows annotated images in a window; if none can be opened, it says so once and shows nothing."""

    def __init__(self, wanted: bool) -> None:
        self.on = wanted and can_show_windows()
        if wanted and not self.on:
            print(
                "--view-img: no window can be opened here (no display, or a headless OpenCV): nothing is shown",
                file=sys.stderr,
            )

    def show(self, frame: Frame, annotated: NDArray[np.uint8]) -> bool:
        """Show an image until a key is pressed, or a video frame briefly; return False if q or Escape was pressed."""
        if not self.on:
            return True
        cv2.imshow("YOLO Loom: any key for the next image, q to stop", cv2.cvtColor(annotated, cv2.COLOR_RGB2BGR))
        return cv2.waitKey(1 if frame.is_video else 0) & 0xFF not in QUIT_KEYS
