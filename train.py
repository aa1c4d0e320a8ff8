"""Train a network on a data set: `python train.py --cfg gelan-t.yaml --data data/shapes.yaml --img 320`.

It serves networks with one, two and three detection branches (elsewhere train.py, train_dual.py and train_triple.py).
"""

import sys
from dataclasses import fields

from utils import cli
from utils.hyperparameters import Hyperparameters
from utils.training.options import TrainOptions
from utils.training.run import train

NO_EVOLUTION = "it did not work; change data/hyp.yaml or pass --hyp FILE"
RETIRED = {
    "--label-smoothing": "it had no effect on this loss",
    "--noautoanchor": "these networks have no anchors",
    "--evolve": NO_EVOLUTION,
    "--evolve_population": NO_EVOLUTION,
    "--resume_evolve": NO_EVOLUTION,
    "--adam": "use --optimizer Adam",
    "--linear-lr": "it is the default; leave it out",
    "--poly-lr": "use --cos-lr, --flat-cos-lr or --fixed-lr",
    "--notest": "use --noval",
    "--bucket": "results stay in runs/",
    "--image-weights": "not supported",
    "--quad": "not supported",
    "--mask-ratio": "masks are compared at a quarter of the image's size, that of the prototypes",
    "--no-overlap": "objects on top hide those below in the masks, as in the images",
    "--local_rank": "start several processes with torchrun, which needs no such flag",
    "--local-rank": "start several processes with torchrun, which needs no such flag",
    "--entity": "no logging service is contacted; see results.csv",
    "--upload_dataset": "no logging service is contacted",
    "--bbox_interval": "no logging service is contacted",
    "--artifact_alias": "no logging service is contacted",
    "--ndjson-console": "the figures stand in results.csv",
    "--ndjson-file": "the figures stand in results.csv",
}
"""Flags of the original and of YOLOv5 that have no meaning here, and what to do instead."""
ADVICE = {
    cli.flag_of(field.name): f"it is a hyperparameter: write {field.name} into a yaml, and name it with --hyp"
    for field in fields(Hyperparameters)
}


def parse_options(arguments: list[str] | None = None) -> TrainOptions:
    """Return the options of a command line; `given` names those that it gives."""
    given = cli.parse(TrainOptions, arguments, prog="train.py", description=__doc__, retired=RETIRED, advice=ADVICE)
    return TrainOptions(**given, given=frozenset(given))


if __name__ == "__main__":
    sys.exit(cli.run(lambda: train(parse_options())))
