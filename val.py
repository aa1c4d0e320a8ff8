"""Measure trained weights on a data set: `python val.py --weights best.pt --data data/shapes.yaml`."""

import argparse
import sys

from data.config import SPLITS
from utils.cli import PLUGIN_FLAG, Parser, run
from utils.precision import AMP_CHOICES
from utils.runs.validate import ValSettings, validate

RETIRED = {
    "--augment": "test-time augmentation is not supported; leave it out",
    "--save-hybrid": "--save-txt writes the detections, the labels are in the data set",
    "--dnn": "an .onnx file runs in onnxruntime by itself; leave it out",
}
"""Flags of the original that did nothing or crashed there, and what to do instead."""


def parse_arguments(arguments: list[str] | None = None) -> ValSettings:
    """Turn the command line into settings."""
    defaults = ValSettings("")
    parser = Parser(
        retired=RETIRED, prog="val.py", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add, flag, switch = parser.add_argument, {"action": "store_true"}, argparse.BooleanOptionalAction
    add(
        "--weights",
        required=True,
        metavar="FILE",
        help="best.pt of a run, or an .onnx or .torchscript file of export.py",
    )
    add("--data", default=defaults.data, metavar="YAML", help="data set")
    add(
        "--batch",
        "--batch-size",
        dest="batch_size",
        type=int,
        default=defaults.batch_size,
        metavar="N",
        help="images at a time",
    )
    add(
        "--img",
        "--imgsz",
        "--img-size",
        dest="imgsz",
        type=int,
        metavar="PIXELS",
        help="longer side; as in training if not given",
    )
    add("--conf-thres", type=float, default=defaults.conf_thres, help="least confidence of a detection")
    add(
        "--iou-thres",
        type=float,
        default=defaults.iou_thres,
        help="overlap above which the less confident of two boxes is dropped",
    )
    add("--max-det", type=int, default=defaults.max_det, metavar="N", help="most detections of an image")
    add("--task", choices=SPLITS, default=defaults.task, help="split of the data set")
    add("--device", default=defaults.device, help="cpu, mps, or a CUDA number; empty for the best one present")
    add("--amp", choices=AMP_CHOICES, default=defaults.amp, help="number format")
    add(
        "--half",
        dest="amp",
        action="store_const",
        const="fp16",
        default=argparse.SUPPRESS,
        help="the same as --amp fp16",
    )
    add(
        "--workers",
        type=int,
        default=defaults.workers,
        metavar="N",
        help="processes that load images, at most one a core",
    )
    add("--single-cls", **flag, help="take all classes for one")
    add(
        "--rect",
        action=switch,
        default=defaults.rect,
        help="batches of similar aspect ratio with little padding, not squares",
    )
    add("--min-items", type=int, default=defaults.min_items, metavar="N", help="leave out images with fewer objects")
    add(
        "--deploy",
        action=switch,
        default=defaults.deploy,
        help="lead branch only and folded; the whole network gives the training loss",
    )
    add("--verbose", **flag, help="print every class, also of more than 50")
    add("--save-txt", **flag, help="write labels/NAME.txt: class cx cy w h (of a mask: x1 y1 x2 y2 …), normalised")
    add("--save-conf", **flag, help="append the confidence to each line of --save-txt")
    add("--save-json", **flag, help="write predictions.json in COCO's result form, and evaluate it with pycocotools")
    add("--noplots", **flag, help="draw nothing")
    add("--project", default=defaults.project, metavar="DIR", help="folder of the runs")
    add("--name", default=defaults.name, help="folder of this run; numbered if it exists")
    add("--exist-ok", **flag, help="write into an existing folder of this name")
    add("--plugin", default=[], **PLUGIN_FLAG)
    return ValSettings(**vars(parser.parse_args(arguments)))


def main() -> None:
    """Run what the command line asks for."""
    validate(parse_arguments())


if __name__ == "__main__":
    sys.exit(run(main))
