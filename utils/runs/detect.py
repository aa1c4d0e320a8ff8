"""A detection run: every frame of a source through the predictor, and what is written down about it."""

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import nn

from data.images.sources import Frame, Source, open_source
from models.plugins.loading import load_plugins
from models.plugins.record import print_plugins
from utils.cli import REQUIRED, SHARED, check_values, option
from utils.drawing.draw import write_image
from utils.errors import DataError
from utils.explain.feature_maps import Visualizer
from utils.explain.sheet import Explainer
from utils.files import next_run_dir, write_json, write_text
from utils.inference.exported import ExportedNetwork, load_network, network_precision
from utils.precision import AMP_CHOICES
from utils.inference.results import Predictor, Results

FORBIDDEN_IN_NAMES = frozenset('<>:"/\\|?*')
SKIPPED_SHOWN = 20
QUIT_KEYS = (ord("q"), 27)
WINDOW_PROBE = "import cv2; cv2.namedWindow('probe'); cv2.destroyAllWindows()"


@dataclass
class DetectOptions:
    """Options of detect.py, each with its flag."""

    weights: str = option(REQUIRED, "best.pt of a run, or an .onnx or .torchscript file of export.py", metavar="FILE")
    source: str = option(
        REQUIRED, "image, video, folder, 'pattern', list.txt with one path a line, or camera index (0)"
    )
    img: Sequence[int] | None = option(
        None, "longer side, or height and width; as in training if not given", **SHARED["img"]
    )
    rect: bool = option(True, "fill images up with grey only as far as the stride needs it, not to the whole size")
    conf_thres: float = option(0.25, "least confidence of a detection")
    iou_thres: float = option(0.45, "overlap above which the less confident of two boxes is dropped")
    max_det: int = option(1000, "most detections of an image", metavar="N")
    device: str = option("", **SHARED["device"])
    amp: str = option(
        "auto", "number format", choices=AMP_CHOICES, switches={"--half": ("fp16", "the same as --amp fp16")}
    )
    view_img: bool = option(False, "show the images in a window")
    save_txt: bool = option(False, "write labels/NAME.txt: class cx cy w h (of a mask: x1 y1 x2 y2 …), normalised")
    save_conf: bool = option(False, "append the confidence to each line of --save-txt")
    save_crop: bool = option(False, "write every object as crops/CLASS/NAME.jpg")
    save_json: bool = option(False, "write predictions.json in COCO's result form, masks as run lengths")
    nosave: bool = option(False, "write no annotated images and videos")
    classes: Sequence[str] | None = option(None, "keep these classes only, by number or name", metavar="CLASS")
    agnostic_nms: bool = option(False, "boxes of different classes suppress each other")
    retina_masks: bool = option(False, "masks with the image's resolution at their edges, not the network's")
    visualize: Sequence[str] | None = option(
        None,
        "write feature maps of all layers, or of those named by index, layer name or module path",
        nargs="*",
        metavar="LAYER",
    )
    explain: Sequence[str] | None = option(
        None,
        "write explain/NAME.png, one sheet an image (of a video: a frame): class-activation maps at the head's inputs"
        " and what attention layers look at, or those of the named layers only (see docs/explain.md)",
        nargs="*",
        metavar="LAYER",
    )
    project: str = option("runs/detect", **SHARED["project"])
    name: str = option("exp", **SHARED["name"])
    exist_ok: bool = option(False, **SHARED["exist_ok"])
    line_thickness: int | None = option(
        None, "width of box lines; chosen by image size if not given", least=1, metavar="PIXELS"
    )
    hide_labels: bool = option(False, "draw boxes only")
    hide_conf: bool = option(False, "leave confidences out of the labels")
    vid_stride: int = option(1, "use every N-th frame of a video", metavar="N")
    plugin: list[str] = option([], **SHARED["plugin"])


def file_name(text: str, fallback: str) -> str:
    """Return `text` with what file systems do not allow in a name replaced by `_`; `fallback` when nothing is left."""
    clean = "".join("_" if c in FORBIDDEN_IN_NAMES or not c.isprintable() else c for c in text).strip(" .")
    return clean or fallback


class NameBook:
    """Hands out names that no other file of the run has: `street`, then `street_2`, whatever the upper and lower case."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}

    def claim(self, name: str) -> str:
        """Return `name`, with a number appended if it has been handed out before."""
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
    """Tell whether OpenCV can open a window here; asked in another process, since some builds abort where there is no display."""
    try:
        probe = subprocess.run([sys.executable, "-c", WINDOW_PROBE], capture_output=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return False
    return probe.returncode == 0


class VideoFile:
    """An annotated video; it gets its name only when it is closed, so an interrupted run leaves no broken file under it."""

    def __init__(self, path: Path, fps: float, size_hw: tuple[int, int]) -> None:
        self.path = path
        self.size_hw = size_hw
        self._partial = path.with_name(f".{path.stem}.partial.mp4")
        self._writer = cv2.VideoWriter(str(self._partial), cv2.VideoWriter_fourcc(*"mp4v"), fps, size_hw[::-1])
        if not self._writer.isOpened():
            raise DataError(
                f"{path}: OpenCV cannot write mp4 video here: expected a build with FFmpeg; use --nosave --save-txt"
            )

    def write(self, image: NDArray[np.uint8]) -> None:
        """Append an (H, W, 3) uint8 RGB frame, resized to the video's size where it differs."""
        if image.shape[:2] != self.size_hw:
            image = cv2.resize(image, self.size_hw[::-1])
        self._writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        """Finish the file."""
        self._writer.release()
        if self._partial.exists():
            self._partial.replace(self.path)


class RunWriter:
    """Writes what a run found into its folder.

    Attributes:
        folder: the run's folder.
        renamed: files that did not get their own name because another file of the run has it.
    """

    def __init__(self, folder: Path, settings: DetectOptions) -> None:
        self.folder = folder
        self.settings = settings
        self.renamed: list[str] = []
        self._coco: list[dict[str, object]] = []
        self._names = NameBook()
        self._stems: dict[Path, str] = {}
        self._video: VideoFile | None = None
        self._video_source: Path | None = None

    def stem(self, frame: Frame) -> str:
        """Return a name without suffix for what is written about a frame: the file's own, then the frame number in a video."""
        if frame.path not in self._stems:
            self._stems[frame.path] = self._names.claim(frame.path.stem)
            if self._stems[frame.path] != frame.path.stem:
                self.renamed.append(f"{frame.path} -> {self._stems[frame.path]}")
        stem = self._stems[frame.path]
        return self._names.claim(f"{stem}_{frame.number}") if frame.is_video else stem

    def write(self, frame: Frame, results: Results, stem: str, annotated: NDArray[np.uint8] | None) -> None:
        """Write what the settings ask for about one frame; `annotated` is its drawn image, None for none."""
        if annotated is not None:
            self._write_annotated(frame, stem, annotated)
        if self.settings.save_txt:
            rows = results.txt_rows(self.settings.save_conf)
            write_text(self.folder / "labels" / f"{stem}.txt", "".join(f"{row}\n" for row in rows))
        if self.settings.save_crop:
            for index, number in enumerate(results.classes.tolist()):
                kind = file_name(results.names[number], str(number))
                write_image(self.folder / f"{self._names.claim(f'crops/{kind}/{stem}')}.jpg", results.crop(index))
        if self.settings.save_json:
            suffix = "" if frame.is_video else frame.path.suffix
            self._coco += results.coco_rows(int(stem) if stem.isdecimal() else stem, f"{stem}{suffix}")

    def _write_annotated(self, frame: Frame, stem: str, annotated: NDArray[np.uint8]) -> None:
        if not frame.is_video:
            write_image(self.folder / f"{stem}{frame.path.suffix}", annotated)
            return
        if self._video is None or self._video_source != frame.path:
            self._close_video()
            path = self.folder / f"{self._stems[frame.path]}.mp4"
            self._video, self._video_source = VideoFile(path, frame.fps, annotated.shape[:2]), frame.path
        self._video.write(annotated)

    def _close_video(self) -> None:
        if self._video is not None:
            self._video.close()
            self._video = None

    def close(self) -> None:
        """Finish the video that is being written, and predictions.json if it is asked for."""
        self._close_video()
        if self.settings.save_json:
            write_json(self.folder / "predictions.json", self._coco)


class Viewer:
    """Shows annotated images in a window; where none can be opened it says so once and shows nothing."""

    def __init__(self, wanted: bool) -> None:
        self.on = wanted and can_show_windows()
        if wanted and not self.on:
            print(
                "--view-img: no window can be opened here (no display, or a headless OpenCV): going on without",
                file=sys.stderr,
            )

    def show(self, frame: Frame, annotated: NDArray[np.uint8]) -> bool:
        """Show an image until a key is pressed, a video frame for a moment; return False when q or Escape asks to stop."""
        if not self.on:
            return True
        cv2.imshow("YOLO Loom: any key for the next image, q to stop", cv2.cvtColor(annotated, cv2.COLOR_RGB2BGR))
        return cv2.waitKey(1 if frame.is_video else 0) & 0xFF not in QUIT_KEYS


def describe(frame: Frame, results: Results) -> str:
    """Return the line that is printed about one frame: where, how many of what, and the milliseconds it took."""
    where = f"{frame.path} frame {frame.number}" if frame.is_video else str(frame.path)
    counts = ", ".join(f"{count} {name}" for name, count in results.counts().items()) or "nothing found"
    return f"{where}: {counts}, {sum(results.speed.values()):.1f} ms"


def summarise(source: Source, writer: RunWriter, found: Counter[str], speeds: list[dict[str, float]]) -> str:
    """Return the last lines of a run: frames, objects, times, what was skipped and why, what was renamed, where everything is."""
    lines = [
        f"{len(speeds)} images, {sum(found.values())} objects"
        + "".join(f", {count} {name}" for name, count in found.most_common())
    ]
    if speeds:
        means = {step: sum(speed[step] for speed in speeds) / len(speeds) for step in speeds[0]}
        lines.append("mean time of an image: " + ", ".join(f"{step} {value:.1f} ms" for step, value in means.items()))
    for title, entries in (
        ("skipped", [f"{path}: {reason}" for path, reason in source.skipped]),
        ("renamed, since another file of this run has the same name", writer.renamed),
    ):
        if entries:
            lines.append(f"{len(entries)} {title}:")
            lines += [f"  {entry}" for entry in entries[:SKIPPED_SHOWN]]
            lines += [f"  … and {len(entries) - SKIPPED_SHOWN} more"] if len(entries) > SKIPPED_SHOWN else []
    lines.append(f"saved to {writer.folder}")
    return "\n".join(lines)


def detect(settings: DetectOptions) -> Path:
    """Find objects in everything a source holds, and write down what the settings ask for.

    Returns:
        The run's folder.

    Raises:
        UserError: settings, weights or source that cannot be used, or a source without one readable image.
    """
    check_values(settings)
    source = open_source(settings.source, settings.vid_stride)
    plugins = load_plugins(settings.plugin)
    model = load_network(settings.weights)
    print_plugins(model, plugins)
    if settings.retina_masks and model.task != "segment":
        print(f"--retina-masks: does not apply: {settings.weights} finds boxes, no masks")
    precision = network_precision(model, settings.device, settings.amp)
    predictor = Predictor(
        model,
        image_size=settings.img,
        conf_thres=settings.conf_thres,
        iou_thres=settings.iou_thres,
        max_det=settings.max_det,
        classes=settings.classes,
        agnostic=settings.agnostic_nms,
        precision=precision,
        rect=settings.rect,
        retina_masks=settings.retina_masks,
    )
    visualizer, explainer = layer_writers(model, predictor, settings)
    print(f"{precision.describe()}; {predictor.nc} classes")
    writer = RunWriter(next_run_dir(settings.project, settings.name, settings.exist_ok), settings)
    try:
        found, speeds = _run(source, predictor, visualizer, explainer, writer)
    finally:
        writer.close()
    if explainer is not None:
        print(f"{explainer.written} contact sheets: {writer.folder / 'explain'}")
    print(summarise(source, writer, found, speeds))
    if not speeds:
        raise DataError(
            f"{settings.source}: none of the {len(source.skipped)} files there could be read: expected images or videos"
        )
    return writer.folder


def layer_writers(
    model: nn.Module, predictor: Predictor, settings: DetectOptions
) -> tuple[Visualizer | None, Explainer | None]:
    """Return what writes the layers' maps and explanations, if asked for; say it where an exported file has neither.

    Raises:
        SettingsError: an unknown layer.
    """
    if not isinstance(model, ExportedNetwork):
        visualizer = None if settings.visualize is None else Visualizer(model, settings.visualize)
        explainer = None if settings.explain is None else Explainer(model, settings.explain, predictor)
        if explainer is not None:
            print(explainer.describe())
        return visualizer, explainer
    print(f"{settings.weights}: {model.describe()}")
    for flag, wanted in (("--visualize", settings.visualize), ("--explain", settings.explain)):
        if wanted is not None:
            print(
                f"{flag}: does not apply to {settings.weights}: an exported file shows no layers; use the .pt it was made from"
            )
    return None, None


def _run(
    source: Source, predictor: Predictor, visualizer: Visualizer | None, explainer: Explainer | None, writer: RunWriter
) -> tuple[Counter[str], list[dict[str, float]]]:
    settings, viewer = writer.settings, Viewer(writer.settings.view_img)
    found: Counter[str] = Counter()
    speeds: list[dict[str, float]] = []
    for frame in source:
        results = predictor.predict(frame.image, frame.path)
        print(describe(frame, results), flush=True)
        found.update(results.counts())
        speeds.append(results.speed)
        annotated = None
        if viewer.on or not settings.nosave:
            annotated = results.plot(settings.line_thickness, settings.hide_labels, settings.hide_conf)
        stem = writer.stem(frame)
        writer.write(frame, results, stem, None if settings.nosave else annotated)
        if visualizer is not None:
            visualizer.write(predictor.prepare(frame.image)[0], writer.folder / "visualize" / stem)
        if explainer is not None:
            start = time.perf_counter()
            path = explainer.write(frame.image, writer.folder / "explain" / f"{stem}.png")
            print(f"  explained in {time.perf_counter() - start:.1f} s: {path}", flush=True)
        if annotated is not None and not viewer.show(frame, annotated):
            break
    return found, speeds
