"""Find objects in images and videos: `python detect.py --weights best.pt --source street.jpg`."""

import sys

from utils import cli
from utils.runs.detect import DetectOptions, detect

RETIRED = {
    "--data": "class names come with the weights; leave it out",
    "--augment": "test-time augmentation is not supported; leave it out",
    "--update": "there is no such step; leave it out",
    "--save-csv": "use --save-txt --save-conf, or --save-json",
    "--save-format": "--save-txt writes fractions of the image, --save-json pixels",
    "--no-trace": "nothing is traced; leave it out",
    "--dnn": "an .onnx file runs in onnxruntime by itself; leave it out",
}
"""Flags of the original and of YOLOv5 that have no meaning here, and what to do instead."""


def parse_options(arguments: list[str] | None = None) -> DetectOptions:
    """Return the options of a command line."""
    return DetectOptions(**cli.parse(DetectOptions, arguments, prog="detect.py", description=__doc__, retired=RETIRED))


if __name__ == "__main__":
    sys.exit(cli.run(lambda: detect(parse_options())))
