"""Make files for other runtimes of trained weights, or of a two-branch network the one that inference needs.

`python export.py --weights best.pt --include onnx torchscript weights`.
Every file is compared with the network before it is kept.
"""

import sys

from utils import cli
from utils.runs.export import ExportOptions, export

NO_FORMAT = "this format is not written here: --include onnx, which most runtimes read"
RETIRED = {
    "--data": "class names come with the weights; leave it out",
    "--inplace": "there is no such choice; leave it out",
    "--keras": NO_FORMAT,
    "--optimize": "the network is folded always; leave it out",
    "--int8": "quantisation is not supported; leave it out",
    "--verbose": "one line a file says what matters; leave it out",
    "--workspace": NO_FORMAT,
    "--mlmodel": NO_FORMAT,
    "--per-tensor": "quantisation is not supported; leave it out",
    "--cache": NO_FORMAT,
    "--dynamic-batch": "use --dynamic, which leaves height and width free too",
    "--grid": "the file gives decoded boxes always; leave it out",
    "--end2end": "the file gives all boxes; detect.py and val.py select among them",
    "--include-nms": "the file gives all boxes; detect.py and val.py select among them",
    "--nms": "the file gives all boxes; detect.py and val.py select among them",
    "--agnostic-nms": "the file gives all boxes; see detect.py --agnostic-nms",
    "--topk-per-class": "the file gives all boxes; see detect.py --max-det",
    "--topk-all": "the file gives all boxes; see detect.py --max-det",
    "--iou-thres": "the file gives all boxes; see detect.py --iou-thres",
    "--conf-thres": "the file gives all boxes; see detect.py --conf-thres",
}
"""Flags of the original and of YOLOv5 that have no meaning here, and what to do instead."""


def parse_options(arguments: list[str] | None = None) -> ExportOptions:
    """Return the options of a command line."""
    return ExportOptions(**cli.parse(ExportOptions, arguments, prog="export.py", description=__doc__, retired=RETIRED))


if __name__ == "__main__":
    sys.exit(cli.run(lambda: export(parse_options())))
