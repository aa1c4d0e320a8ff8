"""A control: the README's training with the assignment shuffled, which must fail.

Anchor points keep their scores, but each predicts an object drawn at random from the same batch, so the network learns
boxes and classes from the wrong objects. If it reached a high mAP all the same, the built-in data could not reveal a
broken assigner.

`python -m benchmarks.shuffled_assignment --cfg gelan-t-FocalModulationBlock.yaml --img 192 …` takes train.py's flags.
"""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from train import parse_options
from utils import cli
from utils.files import write_yaml
from utils.hyperparameters import load_hyperparameters
from utils.losses.assignment import Assignment, Overlap, Scene
from utils.losses.parts import part
from utils.losses.settings import PARTS
from utils.losses.task_aligned import task_aligned
from utils.training.run import train


@part(beside={"topk": "tal_topk", "alpha": "tal_alpha", "beta": "tal_beta"})
def shuffled(
    scene: Scene, overlap_of: Overlap | None = None, topk: int = 10, alpha: float = 0.5, beta: float = 6.0
) -> Assignment:
    """Assign as `task_aligned`, then permute the objects."""
    found = task_aligned(scene, overlap_of, topk, alpha, beta)
    order = torch.randperm(len(found.target), device=found.target.device)
    return replace(found, target=found.target[order])


@contextmanager
def shuffled_hyperparameters(hyp: str) -> Iterator[str]:
    """Make `shuffled` known as an assigner, and write hyperparameters like those of the file `hyp` that name it.

    Yields:
        The path of the new file.
    """
    values = load_hyperparameters(hyp).as_dict()
    loss = {key: value for key, value in values["loss"].items() if key.lower() != "assigner"}
    with PARTS["assigner"].with_part(shuffled), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "hyp.yaml"
        write_yaml(path, values | {"loss": loss | {"assigner": "shuffled"}})
        yield str(path)


def run(arguments: list[str] | None = None) -> Path:
    """Train as train.py with these flags would, with the assignment shuffled; return the run's folder."""
    options = parse_options(arguments)
    with shuffled_hyperparameters(options.hyp) as hyp:
        return train(replace(options, hyp=hyp))


if __name__ == "__main__":
    sys.exit(cli.run(run))
