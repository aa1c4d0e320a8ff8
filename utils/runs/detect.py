"""A detection run: every frame of a source goes through the predictor; its files are written by detect_files.py."""

import itertools
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.images.sources import Frame, Source, open_source
from models.plugins.loading import load_plugins
from models.plugins.record import print_plugins
from models.yolo import Model
from utils.cli import REQUIRED, SHARED, check_values, option
from utils.errors import DataError
from utils.explain.feature_maps import Visualizer
from utils.explain.sheet import Explainer
from utils.files import next_run_dir
from utils.inference.class_choice import CONFIDENCE, split_thresholds
from utils.inference.exported import ExportedNetwork
from utils.inference.inputs import local_path
from utils.inference.network import check_channels, load_network, network_precision
from utils.inference.predictor import Predictor
from utils.inference.results import Results
from utils.precision import AMP_CHOICES
from utils.runs.detect_files import RunWriter, Viewer
from utils.runs.run_folder import check_earlier_files, check_source_is_apart

MOST_LISTED = 20
"""Lines of each kind in the summary."""


@dataclass
class DetectOptions:
    """Options of detect.py, each with its flag."""

    weights: str = option(REQUIRED, "best.pt of a run, or an .onnx or .torchscript file of export.py", metavar="FILE")
    source: str = option(
        REQUIRED,
        "image, video, folder with its subfolders, 'pattern', list.txt with one path a line, or camera index (0)",
    )
    img: Sequence[int] | None = option(
        None, "longer side, or height and width; as in training if not given", **SHARED["img"]
    )
    rect: bool = option(True, "fill images up with grey only as far as the stride needs it, not to the whole size")
    batch: int = option(1, "images at a time, if they have one size after resizing", least=1, **SHARED["batch"])
    conf_thres: Sequence[str] | float = option(
        CONFIDENCE,
        "least confidence of a detection; CLASS=NUMBER for a class with its own, such as person=0.6",
        action="extend",
        metavar="NUMBER",
    )
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
    exist_ok: bool = option(
        False, "write into an existing folder of this name; the files of an earlier run in it are removed"
    )
    line_thickness: int | None = option(
        None, "width of box lines; chosen by image size if not given", least=1, metavar="PIXELS"
    )
    hide_labels: bool = option(False, "draw boxes only")
    hide_conf: bool = option(False, "leave confidences out of the labels")
    vid_stride: int = option(1, "use every N-th frame of a video", metavar="N")
    pixel_range: Sequence[str] | None = option(
        None,
        "values that become black and white in images of more than 8 bits; as in training if not given",
        metavar="VALUE",
    )
    plugin: list[str] = option([], **SHARED["plugin"])
    cfg: str | None = option(None, **SHARED["cfg"])
    patch: list[str] = option([], **SHARED["patch"])

    def __post_init__(self) -> None:
        rest, by_class = split_thresholds(self.conf_thres)
        if not by_class:
            self.conf_thres = rest


def describe(frame: Frame, results: Results) -> str:
    """Describe one frame in a line: where it is from, the number of objects by class, the time in milliseconds."""
    where = f"{frame.path} frame {frame.number}" if frame.is_video else str(frame.path)
    counts = ", ".join(f"{count} {name}" for name, count in results.counts().items()) or "nothing found"
    return f"{where}: {counts}, {sum(results.speed.values()):.1f} ms"


def summarise(source: Source, writer: RunWriter, counts: Counter[str], speeds: list[dict[str, float]]) -> str:
    """Summarise a run: numbers of images and objects, mean times, skipped and renamed files, the run's folder."""
    by_class = "".join(f", {count} {name}" for name, count in counts.most_common())
    lines = [f"{len(speeds)} images, {sum(counts.values())} objects{by_class}"]
    if speeds:
        means = {step: sum(speed[step] for speed in speeds) / len(speeds) for step in speeds[0]}
        lines.append("mean time of an image: " + ", ".join(f"{step} {value:.1f} ms" for step, value in means.items()))
    for title, entries in (
        ("skipped", [f"{path}: {reason}" for path, reason in source.skipped]),
        ("renamed, since another file of this run has the same name", writer.renamed),
    ):
        if entries:
            lines.append(f"{len(entries)} {title}:")
            lines += [f"  {entry}" for entry in entries[:MOST_LISTED]]
            lines += [f"  and {len(entries) - MOST_LISTED} more"] if len(entries) > MOST_LISTED else []
    lines += [line] if (line := source.reader.describe()) else []
    lines.append(f"saved to {writer.folder}")
    return "\n".join(lines)


def detect(options: DetectOptions) -> Path:
    """Find the objects in every frame of a source and write the files that the options ask for.

    Returns:
        The run's folder.

    Raises:
        UserError: options, weights or a source that cannot be used, or a source without a readable image.
    """
    check_values(options)
    address = options.source.lower().startswith("file:")
    source = open_source(local_path(options.source) if address else options.source, options.vid_stride)
    folder = Path(options.project) / options.name
    check_source_is_apart(source, folder, options.exist_ok, options.save_txt)
    if options.exist_ok:
        check_earlier_files(folder)
    plugins = load_plugins(options.plugin)
    model = load_network(options.weights, options.cfg, options.patch)
    print_plugins(model, plugins)
    if options.retina_masks and model.task != "segment":
        print(f"--retina-masks: does not apply: {options.weights} finds boxes, no masks")
    check_channels(model.channels, options.weights)
    precision = network_precision(model, options.device, options.amp)
    predictor = Predictor(
        model,
        image_size=options.img,
        conf_thres=options.conf_thres,
        iou_thres=options.iou_thres,
        max_det=options.max_det,
        classes=options.classes,
        agnostic=options.agnostic_nms,
        precision=precision,
        rect=options.rect,
        retina_masks=options.retina_masks,
        batch=options.batch,
        pixel_range=options.pixel_range,
    )
    source.reader = predictor.reader
    visualizer, explainer = layer_writers(model, predictor, options)
    print(f"{precision.describe()}; {predictor.nc} classes")
    writer = RunWriter(
        next_run_dir(options.project, options.name, options.exist_ok),
        save_txt=options.save_txt,
        save_conf=options.save_conf,
        save_crop=options.save_crop,
        save_json=options.save_json,
        category_ids=model.category_ids,
    )
    if options.save_json and model.category_ids is None:
        print(
            f"--save-json: category_id is the class number, 0 for {model.names[0]}: "
            f"{options.weights} has no category ids of a COCO file"
        )
    try:
        counts, speeds = process(source, predictor, visualizer, explainer, writer, options)
    finally:
        writer.close()
    if explainer is not None:
        print(f"{explainer.written} contact sheets: {writer.folder / 'explain'}")
    print(summarise(source, writer, counts, speeds))
    if not speeds:
        raise DataError(
            f"{options.source}: none of the {len(source.skipped)} files could be read: expected images or videos"
        )
    return writer.folder


def layer_writers(
    model: Model | ExportedNetwork, predictor: Predictor, options: DetectOptions
) -> tuple[Visualizer | None, Explainer | None]:
    """Return the writers of feature maps and of explanations, each None unless its flag is given.

    An exported file has no layers: a line says that the flag does not apply.

    Raises:
        SettingsError: an unknown layer.
    """
    if not isinstance(model, ExportedNetwork):
        visualizer = None if options.visualize is None else Visualizer(model, options.visualize)
        explainer = None if options.explain is None else Explainer(model, options.explain, predictor)
        if explainer is not None:
            print(explainer.describe())
        return visualizer, explainer
    print(f"{options.weights}: {model.describe()}")
    for flag, wanted in (("--visualize", options.visualize), ("--explain", options.explain)):
        if wanted is not None:
            print(
                f"{flag}: does not apply to {options.weights}: an exported file has no layers to look into; "
                "use the .pt file that it was made from"
            )
    return None, None


def process(
    source: Source,
    predictor: Predictor,
    visualizer: Visualizer | None,
    explainer: Explainer | None,
    writer: RunWriter,
    options: DetectOptions,
) -> tuple[Counter[str], list[dict[str, float]]]:
    """Predict, print, write and show each frame.

    Returns:
        Number of objects by class name, and each frame's milliseconds by step.
    """
    viewer = Viewer(options.view_img)
    counts: Counter[str] = Counter()
    speeds: list[dict[str, float]] = []
    for frames in batches(source, options.batch):
        found = predictor.predict_batch([frame.image for frame in frames], [frame.path for frame in frames])
        writer.begin()
        for frame, results in zip(frames, found, strict=True):
            print(describe(frame, results), flush=True)
            counts.update(results.counts())
            speeds.append(results.speed)
            annotated = None
            if viewer.on or not options.nosave:
                annotated = results.plot(options.line_thickness, options.hide_labels, options.hide_conf)
            stem = writer.stem(frame)
            writer.write(frame, results, stem, None if options.nosave else annotated)
            if visualizer is not None:
                writer.record(*visualizer.write(predictor.prepare(frame.image)[0], writer.place("visualize", stem)))
            if explainer is not None:
                start = time.perf_counter()
                path = explainer.write(frame.image, writer.place("explain", stem, ".png"))
                writer.record(path)
                print(f"  explained in {time.perf_counter() - start:.1f} s: {path}", flush=True)
            if annotated is not None and not viewer.show(frame, annotated):
                return counts, speeds
    return counts, speeds


def batches(frames: Iterable[Frame], size: int) -> Iterator[list[Frame]]:
    """Yield the frames in order, `size` at a time; the last batch may be smaller."""
    rest = iter(frames)
    while batch := list(itertools.islice(rest, size)):
        yield batch
