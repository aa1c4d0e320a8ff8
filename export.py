"""Make files for other runtimes of trained weights, or of a two-branch network the one that inference needs.

`python export.py --weights best.pt --include onnx torchscript weights`. Every file is compared with the network before it is kept.
"""

import argparse
import sys

from utils.cli import PLUGIN_FLAG, Parser, run
from utils.runs.export import FORMATS, ExportSettings, export

NO_FORMAT = "this format is not written here: --include onnx, which most runtimes read"
RETIRED = {
    "--data": "class names come with the weights; leave it out",
    "--inplace": "there is no such choice; leave it out",
    "--keras": NO_FORMAT,
    "--optimize": "the network is folded always; leave it out",
    "--int8": "quantisation is not supported; leave it out",
    "--simplify": "the graph is folded before it is written; leave it out",
    "--verbose": "one line a file says what matters; leave it out",
    "--workspace": NO_FORMAT,
    "--nms": "the file gives all boxes; detect.py and val.py select among them",
    "--agnostic-nms": "the file gives all boxes; see detect.py --agnostic-nms",
    "--topk-per-class": "the file gives all boxes; see detect.py --max-det",
    "--topk-all": "the file gives all boxes; see detect.py --max-det",
    "--iou-thres": "the file gives all boxes; see detect.py --iou-thres",
    "--conf-thres": "the file gives all boxes; see detect.py --conf-thres",
}
"""Flags of the original that have no meaning here, and what to do instead."""


def parse_arguments(arguments: list[str] | None = None) -> ExportSettings:
    """Turn the command line into settings."""
    defaults = ExportSettings("")
    parser = Parser(
        retired=RETIRED, prog="export.py", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add, flag = parser.add_argument, {"action": "store_true"}
    add("--weights", required=True, metavar="FILE", help="trained weights, such as runs/train/exp/weights/best.pt")
    add("--cfg", metavar="YAML", help="the network of a plain state dict, which does not say it itself")
    include_help = (
        f"some of {', '.join(FORMATS)}; weights: the lead branch as STEM-deploy.pt and .yaml, which can be trained"
    )
    add("--include", nargs="+", default=list(defaults.include), metavar="FORMAT", help=include_help)
    add("--fold", **flag, help="weights: merge normalisation into convolutions, as STEM-folded.pt and .yaml")
    add("--half", **flag, help="weights: in fp16")
    size_help = "longer side, or height and width; as in training if not given"
    add("--img", "--imgsz", "--img-size", dest="imgsz", type=int, nargs="+", metavar="PIXELS", help=size_help)
    add(
        "--batch",
        "--batch-size",
        dest="batch_size",
        type=int,
        default=defaults.batch_size,
        metavar="N",
        help="images at a time of a static file",
    )
    add("--dynamic", **flag, help="leave batch, height and width of onnx and torchscript free")
    add("--opset", type=int, default=defaults.opset, metavar="N", help="version of ONNX's operators")
    add(
        "--device", default=defaults.device, help="where the network is traced and compared: cpu, mps, or a CUDA number"
    )
    add("--plugin", default=[], **PLUGIN_FLAG)
    add("--out", metavar="DIR", help="folder of the files; that of the weights if not given")
    return ExportSettings(**vars(parser.parse_args(arguments)))


def main() -> None:
    """Run what the command line asks for."""
    export(parse_arguments())


if __name__ == "__main__":
    sys.exit(run(main))
