"""A validation run: a network is evaluated on one split of a data set; metrics, plots and results are written."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.config import SPLITS, load_data_config, print_notes
from data.dataset import DetectionDataset
from data.labels.annotation import Id
from data.labels.class_names import advice, are_numbers, difference, positions
from data.loader import Share, build_loader
from data.scan import load_annotations, print_report, settle_pixel_range
from models.plugins.held import loaded_plugins
from models.plugins.loading import install_plugins, load_plugins
from models.plugins.record import print_plugins
from models.yolo import Model
from utils.cli import REQUIRED, SHARED, check_values, option
from utils.errors import DataError, SettingsError
from utils.files import next_run_dir
from utils.image_size import choose_image_size
from utils.inference.class_choice import one_threshold
from utils.inference.evaluate import EvalResult, evaluate
from utils.inference.exported import ExportedNetwork
from utils.inference.network import check_channels, load_network, network_precision
from utils.losses.detection import build_loss
from utils.precision import AMP_CHOICES, Precision, worker_count
from utils.ranks import check_same, first_goes_first, is_first, joined, launch, size
from utils.runs.run_folder import check_labels_are_apart
from utils.runs.val_files import compare_with_coco, print_table, traceable_names, write_labels, write_metrics
from utils.training.options import OF_ONE_MACHINE
from utils.wording import listed


@dataclass
class ValOptions:
    """Options of val.py, each with its flag."""

    weights: str = option(REQUIRED, "best.pt of a run, or an .onnx or .torchscript file of export.py", metavar="FILE")
    data: str = option("data/shapes.yaml", "data yaml", metavar="YAML")
    batch: int = option(32, "images at a time", least=1, **SHARED["batch"])
    img: int | None = option(None, "longer side; as in training if not given", least=1, **SHARED["img"])
    conf_thres: float = option(0.001, "least confidence of a detection of any class", type=one_threshold)
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
    save_json: bool = option(
        False, "write predictions.json and ground_truth.json as COCO has them, and compare them with pycocotools"
    )
    noplots: bool = option(False, "draw nothing")
    project: str = option("runs/val", **SHARED["project"])
    name: str = option("exp", **SHARED["name"])
    exist_ok: bool = option(False, **SHARED["exist_ok"])
    plugin: list[str] = option([], **SHARED["plugin"])
    cfg: str | None = option(None, **SHARED["cfg"])
    patch: list[str] = option([], **SHARED["patch"])


@dataclass
class Split:
    """The split that is evaluated.

    Attributes:
        categories: the data set's category id of each class.
        file_names: name of each image for result files, by image id.
        class_order: the data set's class of each class of the network; None where both have the same number.
    """

    dataset: DetectionDataset
    categories: list[Id]
    file_names: dict[Id, str]
    class_order: NDArray[np.int64] | None


def validate(options: ValOptions) -> EvalResult:
    """Evaluate a checkpoint, print the table, and write the run's folder.

    Several ranks share the images; the first one writes.

    Raises:
        UserError: options, data or weights that cannot be used.
    """
    check_options(options)
    plugins = load_plugins(options.plugin)
    network = load_network(options.weights, options.cfg, options.patch)
    print_plugins(network, plugins)
    precision = network_precision(network, options.device, options.amp)
    check_channels(network.channels, options.weights)
    size_hw = choose_image_size(options.img, network)
    with joined(precision.device):
        flags = {name: value for name, value in asdict(options).items() if name not in OF_ONE_MACHINE}
        check_same("flags", flags, "start all processes with the same flags")
        with first_goes_first():  # the first rank writes the label cache that the others read
            split = open_split(options, network, size_hw)
        check_same(f"images of {options.data}", describe_data(split.dataset), "every machine needs the same files")
        network = network.deploy() if options.deploy else network
        network = precision.place_for_inference(network.eval())
        print(
            f"{precision.describe()}; {options.weights}: {describe_form(network, options.deploy)}; "
            f"{describe_images(split.dataset, size_hw)}"
        )
        if options.save_txt and options.exist_ok:
            images = (one.path for one in split.dataset.annotations)
            check_labels_are_apart(images, Path(options.project) / options.name)
        folder = next_run_dir(options.project, options.name, options.exist_ok) if is_first() else None
        result = evaluate_split(options, network, precision, split, None if options.noplots else folder)
        if folder is not None:
            write_results(options, network, precision, split, result, folder)
    return result


def evaluate_split(
    options: ValOptions, network: Model | ExportedNetwork, precision: Precision, split: Split, plots_dir: Path | None
) -> EvalResult:
    """Evaluate a network on a split; of several ranks, each reads a share of the batches."""
    dataset, exported = split.dataset, isinstance(network, ExportedNetwork)
    return evaluate(
        network,
        build_loader(
            dataset,
            options.batch,
            worker_count(options.workers),
            on_worker_start=partial(install_plugins, loaded_plugins()),
            share=Share(launch().rank, size(), whole=True),
        ),
        precision,
        conf_thres=options.conf_thres,
        iou_thres=options.iou_thres,
        max_det=options.max_det,
        loss=build_loss(network) if network.nc == len(dataset.names) and not exported else None,
        single_cls=options.single_cls,
        class_order=split.class_order,
        keep_detections=options.save_txt or options.save_json,
        plots_dir=plots_dir,
        progress=is_first(),
    )


def write_results(
    options: ValOptions,
    network: Model | ExportedNetwork,
    precision: Precision,
    split: Split,
    result: EvalResult,
    folder: Path,
) -> None:
    """Print the table, and write the files that the options ask for."""
    dataset = split.dataset
    print_table(result, dataset.names, options.verbose)
    if network.task == "segment" and result.masks is None:
        print("masks are not measured: no object of this split has an outline")
    write_metrics(folder, result, dataset.names, asdict(options), precision, choose_image_size(options.img, network))
    if options.save_txt:
        write_labels(folder / "labels", dataset, result, options.save_conf)
    if options.save_json:
        compare_with_coco(folder, dataset, result, split.categories, split.file_names, options.max_det)
    print(f"saved to {folder}")


def describe_data(dataset: DetectionDataset) -> tuple[int, int]:
    """Return the number of images and of their objects."""
    return len(dataset), sum(map(len, dataset.annotations))


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


def check_options(options: ValOptions) -> None:
    """Reject numbers out of range before any file is read.

    Raises:
        SettingsError: a number is out of range.
    """
    check_values(options)
    if not (0 <= options.conf_thres < 1 and 0 <= options.iou_thres <= 1):
        raise SettingsError(
            f"--conf-thres {options.conf_thres} --iou-thres {options.iou_thres}: expected numbers from 0 to 1"
        )


def open_split(options: ValOptions, model: Model | ExportedNetwork, size_hw: tuple[int, int]) -> Split:
    """Read a split and print the report.

    Args:
        size_hw: input size; its longer side is that of the images. A static exported file takes only this size.
    Raises:
        DataError: the split cannot be read, or its classes are not the network's.
    """
    config = load_data_config(options.data)
    print_notes(config)
    class_order = match_classes(options, model.names, config.names)
    annotations, report = load_annotations(config, options.task, require_labels=False)
    print_report(report)
    pixel_range = settle_pixel_range(config, report, model.pixel_range, f"as {options.weights} was trained")
    dataset = DetectionDataset(
        annotations,
        config.names,
        max(size_hw),
        rect=options.rect and model.static_hw is None,
        batch_size=options.batch,
        multiple=model.multiple,
        masks=model.task == "segment",
        cache="off",  # every image is read once
        min_items=options.min_items,
        single_cls=options.single_cls,
        pixel_range=pixel_range,
    )
    if size_hw[0] != size_hw[1]:
        dataset.shapes_hw = np.tile(np.array(size_hw), (len(dataset), 1))
    if dataset.num_filtered:
        print(f"--min-items {options.min_items}: {dataset.num_filtered} images with fewer objects left out")
    categories: list[Id] = [0] if options.single_cls else report.categories
    return Split(dataset, categories, traceable_names(dataset.annotations, config.root), class_order)


def match_classes(options: ValOptions, theirs: Sequence[str], ours: Sequence[str]) -> NDArray[np.int64] | None:
    """Match the classes of the network and of the data set by name, and print how, unless the lists are equal.

    Args:
        theirs: class names of the network.
        ours: class names of the data set.
    Returns:
        The data set's class of each class of the network; None where both have the same number.
    Raises:
        DataError: a name is unknown to one side.
    """
    if options.single_cls or list(theirs) == list(ours):
        return None
    order = positions(theirs, ours)
    if order is not None:
        print(
            f"classes are matched by name: {options.weights} has them in another order ({listed(theirs)}) "
            f"than {options.data} ({listed(ours)}); tables and files use the order of the data"
        )
        return np.array(order, np.int64)
    nameless = [side for side, names in ((options.weights, theirs), (options.data, ours)) if are_numbers(names)]
    if nameless and len(theirs) == len(ours):
        print(
            f"{' and '.join(nameless)}: numbers in place of class names: classes are matched by position: "
            f"{listed(f'{name} is {other}' for name, other in zip(theirs, ours, strict=True))}"
        )
        return None
    raise DataError(
        f"{options.data}: its classes are not those of the weights: "
        f"{difference(theirs, ours, str(options.weights), str(options.data))}: expected the same names on both sides; "
        f"write them alike in the data yaml, or use --single-cls to ignore classes. {advice(theirs, ours)}".rstrip()
    )
