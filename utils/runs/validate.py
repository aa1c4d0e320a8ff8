"""A validation run: a network is evaluated on one split of a data set; metrics, plots and results are written."""

from collections import Counter
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data.config import SPLITS, load_data_config, print_notes
from data.dataset import DetectionDataset
from data.labels.annotation import ScanReport
from data.labels.yolo_txt import label_rows
from data.loader import build_loader
from data.scan import load_annotations, print_report, settle_pixel_range
from models.plugins.held import loaded_plugins
from models.plugins.loading import install_plugins, load_plugins
from models.plugins.record import print_plugins
from models.yolo import Model
from utils.cli import REQUIRED, SHARED, check_values, option
from utils.errors import DataError, SettingsError
from utils.files import next_run_dir, write_csv, write_json, write_text
from utils.geometry.rle import decode_region
from utils.image_size import choose_image_size
from utils.inference.evaluate import EvalResult, evaluate
from utils.inference.exported import ExportedNetwork
from utils.inference.network import load_network, network_precision
from utils.losses.detection import build_loss
from utils.metrics.coco_eval import DEFAULT_MAX_DET, coco_ground_truth, coco_results, evaluate_coco, write_results
from utils.metrics.detection import DetectionResult
from utils.precision import AMP_CHOICES, Precision, worker_count
from utils.wording import listed

MANY_CLASSES = 50
TABLE_HEADER = ("class", "images", "instances", "P", "R", "mAP50", "mAP50-95")


@dataclass
class ValOptions:
    """Options of val.py, each with its flag."""

    weights: str = option(REQUIRED, "best.pt of a run, or an .onnx or .torchscript file of export.py", metavar="FILE")
    data: str = option("data/shapes.yaml", "data yaml", metavar="YAML")
    batch: int = option(32, "images at a time", least=1, **SHARED["batch"])
    img: int | None = option(None, "longer side; as in training if not given", least=1, **SHARED["img"])
    conf_thres: float = option(0.001, "least confidence of a detection")
    iou_thres: float = option(0.7, "overlap above which the less confident of two boxes is dropped")
    max_det: int = option(300, "most detections of an image", least=1, metavar="N")
    task: str = option("val", "split of the data set", choices=SPLITS)
    device: str = option("", **SHARED["device"])
    amp: str = option(
        "auto", "number format", choices=AMP_CHOICES, switches={"--half": ("fp16", "the same as --amp fp16")}
    )
    workers: int = option(8, "processes that load images, at most one a core", least=0, metavar="N")
    single_cls: bool = option(False, "take all classes for one")
    rect: bool = option(True, "batches of similar aspect ratio with little padding, not squares")
    min_items: int = option(0, "leave out images with fewer objects", least=0, metavar="N")
    deploy: bool = option(True, "lead branch only and folded; the whole network gives the training loss")
    verbose: bool = option(False, "print every class, also of more than 50")
    save_txt: bool = option(False, "write labels/NAME.txt: class cx cy w h (of a mask: x1 y1 x2 y2 …), normalised")
    save_conf: bool = option(False, "append the confidence to each line of --save-txt")
    save_json: bool = option(False, "write predictions.json in COCO's result form, and evaluate it with pycocotools")
    noplots: bool = option(False, "draw nothing")
    project: str = option("runs/val", **SHARED["project"])
    name: str = option("exp", **SHARED["name"])
    exist_ok: bool = option(False, **SHARED["exist_ok"])
    plugin: list[str] = option([], **SHARED["plugin"])
    cfg: str | None = option(None, **SHARED["cfg"])
    patch: list[str] = option([], **SHARED["patch"])


def validate(settings: ValOptions) -> EvalResult:
    """Evaluate a checkpoint, print the table, and write the run's folder.

    Raises:
        UserError: settings, data or weights that cannot be used.
    """
    check_settings(settings)
    plugins = load_plugins(settings.plugin)
    network = load_network(settings.weights, settings.cfg, settings.patch)
    print_plugins(network, plugins)
    precision = network_precision(network, settings.device, settings.amp)
    size_hw = choose_image_size(settings.img, network)
    dataset, report = open_split(settings, network, size_hw)
    network = network.deploy() if settings.deploy else network
    network = precision.place_for_inference(network.eval())
    exported = isinstance(network, ExportedNetwork)
    loss = build_loss(network) if network.nc == len(dataset.names) and not exported else None
    print(
        f"{precision.describe()}; {settings.weights}: {describe_form(network, settings.deploy)}; "
        f"{describe_images(dataset, size_hw)}"
    )
    folder = next_run_dir(settings.project, settings.name, settings.exist_ok)
    result = evaluate(
        network,
        build_loader(
            dataset,
            settings.batch,
            worker_count(settings.workers),
            on_worker_start=partial(install_plugins, loaded_plugins()),
        ),
        precision,
        conf_thres=settings.conf_thres,
        iou_thres=settings.iou_thres,
        max_det=settings.max_det,
        loss=loss,
        single_cls=settings.single_cls,
        keep_detections=settings.save_txt or settings.save_json,
        plots_dir=None if settings.noplots else folder,
    )
    print_table(result, dataset.names, settings.verbose)
    if network.task == "segment" and result.masks is None:
        print("masks are not measured: no object of this split has an outline")
    write_metrics(folder, result, dataset.names, settings, precision, size_hw)
    if settings.save_txt:
        write_labels(folder / "labels", dataset, result, settings.save_conf)
    if settings.save_json:
        compare_with_coco(folder, dataset, result, [0] if settings.single_cls else report.categories, settings.max_det)
    print(f"saved to {folder}")
    return result


def describe_form(network: Model | ExportedNetwork, deploy: bool) -> str:
    """Describe the form in which a network runs, and the flags that do not apply to it."""
    if not isinstance(network, ExportedNetwork):
        return "lead branch only, folded" if deploy else "with auxiliary branches, not folded"
    return f"{network.describe()}; no losses" + (
        "" if deploy else "; --no-deploy does not apply: it is deployed already"
    )


def describe_images(dataset: DetectionDataset, size_hw: tuple[int, int]) -> str:
    """Describe the number of images and how they are letterboxed."""
    if dataset.rect:
        shape = f"rectangles of at most {max(size_hw)} pixels plus a margin"
    else:
        square = size_hw[0] == size_hw[1]
        shape = f"squares of {size_hw[0]} pixels" if square else f"{size_hw[0]} x {size_hw[1]} (height x width)"
    return f"{len(dataset)} images letterboxed to {shape}"


def check_settings(settings: ValOptions) -> None:
    """Reject numbers out of range before any file is read.

    Raises:
        SettingsError: a number is out of range.
    """
    check_values(settings)
    if not (0 <= settings.conf_thres < 1 and 0 <= settings.iou_thres <= 1):
        raise SettingsError(
            f"--conf-thres {settings.conf_thres} --iou-thres {settings.iou_thres}: expected numbers from 0 to 1"
        )


def open_split(
    settings: ValOptions, model: Model | ExportedNetwork, size_hw: tuple[int, int]
) -> tuple[DetectionDataset, ScanReport]:
    """Read a split, print the report, and return the data set and the report.

    Args:
        size_hw: input size; its longer side is that of the images. A static exported file takes only this size.
    Raises:
        DataError: the split cannot be read, or its number of classes differs from the network's.
    """
    config = load_data_config(settings.data)
    print_notes(config)
    num_classes = len(config.names)
    if model.nc != num_classes and not settings.single_cls:
        raise DataError(
            f"{settings.data}: {num_classes} classes, but {settings.weights} knows {model.nc} ({listed(model.names)}): "
            "expected the same number; give the data that it was trained on, or --single-cls to ignore classes"
        )
    annotations, report = load_annotations(config, settings.task, require_labels=False)
    print_report(report)
    pixel_range = settle_pixel_range(config, report, model.pixel_range, f"as {settings.weights} was trained")
    dataset = DetectionDataset(
        annotations,
        config.names,
        max(size_hw),
        rect=settings.rect and model.static_hw is None,
        batch_size=settings.batch,
        multiple=model.multiple,
        masks=model.task == "segment",
        cache="off",  # every image is read once
        min_items=settings.min_items,
        single_cls=settings.single_cls,
        pixel_range=pixel_range,
    )
    if size_hw[0] != size_hw[1]:
        dataset.shapes_hw = np.tile(np.array(size_hw), (len(dataset), 1))
    if dataset.num_filtered:
        print(f"--min-items {settings.min_items}: {dataset.num_filtered} images with fewer objects left out")
    if not settings.single_cls and model.names != dataset.names:
        print(
            f"class names differ: the data set's are used ({listed(dataset.names)}), "
            f"not the network's ({listed(model.names)})"
        )
    return dataset, report


def print_table(result: EvalResult, names: list[str], verbose: bool = False) -> None:
    """Print metrics overall and, for up to 50 classes or when `verbose`, by class; then losses and speed."""
    for metrics, title in ((result.metrics, "class"), (result.masks, "masks")):
        if metrics is None:
            continue
        rows = metrics.table(names)
        if len(names) > MANY_CLASSES and not verbose:
            rows = rows[:1]
        width = max(len(title), *(len(row[0]) for row in rows))
        print(f"{title:<{width}}" + "".join(f"{column:>11}" for column in TABLE_HEADER[1:]))
        for name, images, instances, *rates in rows:
            print(f"{name:<{width}}{images:>11}{instances:>11}" + "".join(f"{rate:>11.4f}" for rate in rates))
    if not result.metrics.num_instances:
        print("all metrics are 0: the split has no labelled object")
    if result.losses:
        print("loss: " + ", ".join(f"{name} {value:.4f}" for name, value in result.losses.items()))
    print("time of an image: " + ", ".join(f"{stage} {value:.1f} ms" for stage, value in result.speed_ms.items()))


def write_metrics(
    folder: Path,
    result: EvalResult,
    names: list[str],
    settings: ValOptions,
    precision: Precision,
    size_hw: tuple[int, int],
) -> None:
    """Write metrics.json and, by class, classes.csv; of masks, classes_mask.csv."""
    metrics, masks = result.metrics, result.masks
    rows = metrics.table(names)
    mask_rows = masks.table(names) if masks else []
    content: dict[str, Any] = {
        **metrics.summary(),
        "metrics/mAP_0.75": metrics.map75,
        "metrics/F1": metrics.f1,
        **(
            {**masks.summary("(mask)"), "metrics/mAP_0.75(mask)": masks.map75, "metrics/F1(mask)": masks.f1}
            if masks
            else {}
        ),
        "confidence": metrics.confidence,
        "fitness": result.fitness,
        **{f"val/{name}_loss": value for name, value in result.losses.items()},
        "images": metrics.num_images,
        "instances": metrics.num_instances,
        "speed_ms": result.speed_ms,
        "classes": [dict(zip(TABLE_HEADER, row, strict=True)) for row in rows[1:]],
        **({"classes(mask)": [dict(zip(TABLE_HEADER, row, strict=True)) for row in mask_rows[1:]]} if masks else {}),
        "precision": precision.describe(),
        "image_size": size_hw[0] if size_hw[0] == size_hw[1] else list(size_hw),
        "settings": asdict(settings),
    }
    write_json(folder / "metrics.json", content)
    write_csv(folder / "classes.csv", TABLE_HEADER, rows)
    if masks:
        write_csv(folder / "classes_mask.csv", TABLE_HEADER, mask_rows)


def write_labels(folder: Path, dataset: DetectionDataset, result: EvalResult, with_confidence: bool) -> None:
    """Write one label file for each image (see `label_rows`)."""
    uses = Counter(item.path.stem for item in dataset.annotations)
    for index, detections in result.detections.items():
        item = dataset.annotations[index]
        name = item.path.stem if uses[item.path.stem] == 1 else f"{item.path.stem}_{item.image_id}"
        regions = [decode_region(mask) for mask in result.segmentations.get(index, ())]
        scores = detections[:, 4].tolist() if with_confidence else None
        classes = detections[:, 5].astype(int).tolist()
        rows = label_rows(detections[:, :4], classes, item.file_hw, regions, scores)
        write_text(folder / f"{name}.txt", "".join(f"{row}\n" for row in rows))


def compare_with_coco(
    folder: Path, dataset: DetectionDataset, result: EvalResult, categories: list[int], max_det: int
) -> None:
    """Write predictions.json and coco_eval.json; print COCO's twelve numbers and how the in-loop metrics differ."""
    image_ids = [item.image_id for item in dataset.annotations]
    detections = {image_ids[index]: rows for index, rows in result.detections.items()}
    segmentations = {image_ids[index]: masks for index, masks in result.segmentations.items()}
    results = coco_results(detections, categories, segmentations)
    write_results(folder / "predictions.json", results)
    content: dict[str, Any] = {}
    for metrics, what in ((result.metrics, "boxes"), (result.masks, "masks")):
        if metrics is not None:
            truth = coco_ground_truth(dataset.annotations, dataset.names, categories, masks=what == "masks")
            by_limit = {
                limit: evaluate_coco(truth, results, limit, what == "masks")
                for limit in dict.fromkeys((DEFAULT_MAX_DET, max_det))
            }
            compared = compare_numbers(metrics, by_limit, max_det, what)
            content |= compared if what == "boxes" else {what: compared}
    write_json(folder / "coco_eval.json", content)


def compare_numbers(
    metrics: DetectionResult, by_limit: dict[int, dict[str, float]], max_det: int, what: str
) -> dict[str, Any]:
    """Print and return COCO's numbers at each limit of detections, and the in-loop metrics minus them."""
    print(f"pycocotools, {what}, at most {DEFAULT_MAX_DET} detections a class and image (-1: no such object):")
    for name, value in by_limit[DEFAULT_MAX_DET].items():
        print(f"  {name:<10}{value:>8.4f}")
    in_loop = {"AP": metrics.map, "AP50": metrics.map50, "AP75": metrics.map75}
    gaps = {
        limit: {name: value - numbers[name] for name, value in in_loop.items()} for limit, numbers in by_limit.items()
    }
    for limit, gap in gaps.items():
        differences = ", ".join(f"{name} {value:+.1e}" for name, value in gap.items())
        print(f"in-loop (at most {max_det}) minus pycocotools at {limit}: {differences}")
    return {
        "in_loop": in_loop,
        **{f"max_det_{limit}": numbers | {"gap": gaps[limit]} for limit, numbers in by_limit.items()},
    }
