"""Find objects in images and videos: `python detect.py --weights best.pt --source street.jpg`."""

import argparse
import sys

from utils.cli import PLUGIN_FLAG, Parser, run
from utils.precision import AMP_CHOICES
from utils.runs.detect import DetectSettings, detect

RETIRED = {
    "--data": "class names come with the weights; leave it out",
    "--augment": "test-time augmentation is not supported; leave it out",
    "--update": "there is no such step; leave it out",
    "--dnn": "an .onnx file runs in onnxruntime by itself; leave it out",
}
"""Flags of the original that have no meaning here, and what to do instead."""


def parse_arguments(arguments: list[str] | None = None) -> DetectSettings:
    """Turn the command line into settings."""
    defaults = DetectSettings("", "")
    parser = Parser(
        retired=RETIRED, prog="detect.py", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add, flag = parser.add_argument, {"action": "store_true"}
    add(
        "--weights",
        required=True,
        metavar="FILE",
        help="best.pt of a run, or an .onnx or .torchscript file of export.py",
    )
    add(
        "--source",
        required=True,
        help="image, video, folder, 'pattern', list.txt with one path a line, or camera index (0)",
    )
    size = {
        "type": int,
        "nargs": "+",
        "metavar": "PIXELS",
        "help": "longer side, or height and width; as in training if not given",
    }
    add("--img", "--imgsz", "--img-size", dest="imgsz", **size)
    rect_help = "fill images up with grey only as far as the stride needs it, not to the whole size"
    add("--rect", action=argparse.BooleanOptionalAction, default=defaults.rect, help=rect_help)
    add("--conf-thres", type=float, default=defaults.conf_thres, help="least confidence of a detection")
    add(
        "--iou-thres",
        type=float,
        default=defaults.iou_thres,
        help="overlap above which the less confident of two boxes is dropped",
    )
    add("--max-det", type=int, default=defaults.max_det, help="most detections of an image")
    add("--device", default="", help="cpu, mps, or a CUDA number; empty for the best one present")
    add("--amp", choices=AMP_CHOICES, default=defaults.amp, help="number format")
    add(
        "--half",
        dest="amp",
        action="store_const",
        const="fp16",
        default=argparse.SUPPRESS,
        help="the same as --amp fp16",
    )
    add("--view-img", **flag, help="show the images in a window")
    add("--save-txt", **flag, help="write labels/NAME.txt: class cx cy w h (of a mask: x1 y1 x2 y2 …), normalised")
    add("--save-conf", **flag, help="append the confidence to each line of --save-txt")
    add("--save-crop", **flag, help="write every object as crops/CLASS/NAME.jpg")
    add("--save-json", **flag, help="write predictions.json in COCO's result form, masks as run lengths")
    add("--nosave", **flag, help="write no annotated images and videos")
    add("--classes", nargs="+", metavar="CLASS", help="keep these classes only, by number or name")
    add("--agnostic-nms", **flag, help="boxes of different classes suppress each other")
    add("--retina-masks", **flag, help="masks with the image's resolution at their edges, not the network's")
    add(
        "--visualize",
        nargs="*",
        metavar="LAYER",
        help="write feature maps of all layers, or of those named by index, layer name or module path",
    )
    add(
        "--explain",
        nargs="*",
        metavar="LAYER",
        help="write explain/NAME.png, one sheet an image (of a video: a frame): class-activation maps at the head's inputs and what attention "
        "layers look at, or those of the named layers only (see docs/explain.md)",
    )
    add("--project", default=defaults.project, help="folder of the runs")
    add("--name", default=defaults.name, help="folder of this run; numbered if it exists")
    add("--exist-ok", **flag, help="write into an existing folder of this name")
    add("--line-thickness", type=int, metavar="PIXELS", help="box lines; chosen by image size if not given")
    add("--hide-labels", **flag, help="draw boxes only")
    add("--hide-conf", **flag, help="leave confidences out of the labels")
    add("--plugin", default=[], **PLUGIN_FLAG)
    add("--vid-stride", type=int, default=defaults.vid_stride, metavar="N", help="use every N-th frame of a video")
    return DetectSettings(**vars(parser.parse_args(arguments)))


def main() -> None:
    """Run what the command line asks for."""
    detect(parse_arguments())


if __name__ == "__main__":
    sys.exit(run(main))
