"""Measure trained weights on a data set: `python val.py --weights best.pt --data data/shapes.yaml`."""

import sys

from utils import cli
from utils.runs.validate import ValOptions, validate

RETIRED = {
    "--augment": "test-time augmentation is not supported; leave it out",
    "--save-hybrid": "--save-txt writes the detections, the labels are in the data set",
    "--dnn": "an .onnx file runs in onnxruntime by itself; leave it out",
}
"""Flags of the original that did nothing or crashed there, and what to do instead."""


def parse_options(arguments: list[str] | None = None) -> ValOptions:
    """Return the options of a command line."""
    return ValOptions(**cli.parse(ValOptions, arguments, prog="val.py", description=__doc__, retired=RETIRED))


if __name__ == "__main__":
    sys.exit(cli.run(lambda: validate(parse_options())))
