"""Train a network on a data set: `python train.py --cfg gelan-t.yaml --data data/shapes.yaml --img 320`."""

import argparse
import sys

from utils import cli
from utils.training.options import TrainOptions
from utils.training.set_up import train

RETIRED = {
    "--label-smoothing": "it had no effect on this loss",
    "--noautoanchor": "these networks have no anchors",
    "--evolve": "it did not work; change data/hyp.yaml or pass --hyp FILE",
    "--bucket": "results stay in runs/",
    "--image-weights": "not supported",
    "--quad": "not supported",
    "--mask-ratio": "masks are compared at a quarter of the image's size, that of the prototypes",
    "--no-overlap": "objects on top hide those below in the masks, as in the images",
    "--sync-bn": "training on several devices is not supported yet",
    "--local_rank": "training on several devices is not supported yet",
    "--local-rank": "training on several devices is not supported yet",
    "--entity": "no logging service is contacted; see results.csv",
    "--upload_dataset": "no logging service is contacted",
    "--bbox_interval": "no logging service is contacted",
    "--artifact_alias": "no logging service is contacted",
}


def parse_options(arguments: list[str] | None = None) -> TrainOptions:
    """Return the options of a command line; what is not given keeps TrainOptions' default."""
    parser = cli.Parser(prog="train.py", description=__doc__, retired=RETIRED, argument_default=argparse.SUPPRESS)
    add = parser.add_argument
    add("--cfg", help="network yaml: a path or the name of a shipped one")
    add("--data", help="data yaml")
    add("--weights", help="checkpoint to start from; without --cfg also the network")
    add("--hyp", help="hyperparameter yaml; its loss: chooses losses and assigner by name (docs/losses.md)")
    add("--epochs", type=int, help="length of the run")
    add("--batch", "--batch-size", type=int, help="images a batch; -1 fills the GPU's memory")
    add("--img", "--imgsz", "--img-size", type=int, help="image size in pixels")
    add("--scale", help="letter of a family yaml's scales")
    add("--width", type=float, help="factor on channel counts, in place of the yaml's")
    add("--depth", type=float, help="factor on repeats, in place of the yaml's")
    add("--patch", **cli.PATCH_FLAG)
    add("--rect", action="store_true", help="rectangular training batches, no mosaics")
    add("--resume", nargs="?", const="", help="go on from a last.pt, or from the newest one")
    add("--force", action="store_true", help="resume although the data or a yaml changed since the run began")
    add("--nosave", action="store_true", help="save only the last epoch")
    add("--noval", action="store_true", help="validate only the last epoch")
    add("--noplots", action="store_true", help="draw no images")
    add("--cache", nargs="?", const="ram", help="keep resized images in memory: auto, ram or off")
    add("--device", help="cpu, mps, or a CUDA number")
    add("--amp", help="mixed precision: auto, off, bf16 or fp16")
    add("--multi-scale", action="store_true", help="vary the size of batches by ± 50 %%")
    add("--single-cls", action="store_true", help="take all classes for one")
    add("--optimizer", help="SGD or AdamW")
    schedule = parser.add_mutually_exclusive_group()
    for flag, kind in (("--cos-lr", "cosine"), ("--flat-cos-lr", "flat-cosine"), ("--fixed-lr", "fixed")):
        schedule.add_argument(
            flag, dest="schedule", action="store_const", const=kind, help=f"{kind} learning rate, not linear"
        )
    add("--workers", type=int, help="processes that load images")
    add("--project", help="folder of the runs")
    add("--name", help="name of the run; a number is added if it exists")
    add("--exist-ok", action="store_true", help="write into an existing run's folder")
    add("--patience", type=int, help="stop after so many epochs without improvement; 0 never")
    add(
        "--freeze",
        nargs="+",
        help="first n layers, indices, ranges (0-9), backbone, neck, head, layer names, or globs of parameter names",
    )
    add(
        "--lr-factor",
        nargs="+",
        metavar="WHAT=FACTOR",
        help="factors on the learning rate, such as backbone=0.1; WHAT as in --freeze",
    )
    add("--layer-decay", type=float, help="factor on the learning rate from each layer to the one before it")
    add(
        "--min-transfer", type=float, help="least share of the network's parameters that --weights has to bring, 0 to 1"
    )
    add("--allow-partial", action="store_true", help="go on with less than --min-transfer")
    add(
        "--head-hidden",
        help="hidden width of class towers when classes change: keep (that of --weights) or rule (the family's)",
    )
    add("--save-period", type=int, help="also save every so many epochs")
    add(
        "--save-steps",
        type=int,
        help="also save last.pt every so many batches within an epoch; 0 only after each epoch",
    )
    add(
        "--half",
        action="store_true",
        help="write best.pt and epoch*.pt in float16, half as large; last.pt stays float32",
    )
    add("--min-items", type=int, help="leave out images with fewer objects")
    add("--close-mosaic", type=int, help="no mosaics in the last so many epochs")
    add("--seed", type=int, help="seed of everything random")
    add("--plugin", **cli.PLUGIN_FLAG)
    given = vars(parser.parse_args(arguments))
    return TrainOptions(**given, given=frozenset(given))


if __name__ == "__main__":
    sys.exit(cli.run(lambda: train(parse_options())))
