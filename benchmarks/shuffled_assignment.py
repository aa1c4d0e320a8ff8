"""A control: the README's training with the assignment shuffled, which must fail.

Anchor points keep their scores but answer for an object drawn at random from the same batch, so boxes and classes are
learned from the wrong objects. If the built-in data still gave a high mAP, it could not tell a broken assigner.
`python -m benchmarks.shuffled_assignment --cfg gelan-t-FocalModulationBlock.yaml --img 192 --epochs 40 …` takes train.py's flags.
"""

import sys

import torch

import utils.losses.detection
from train import parse_options
from utils import cli
from utils.losses.task_aligned import Assignment, assign
from utils.training.set_up import train


def shuffled(*arguments: object) -> Assignment:
    """Return the assignment with its targets permuted."""
    found = assign(*arguments)
    found.target = found.target[torch.randperm(len(found.target), device=found.target.device)]
    return found


if __name__ == "__main__":
    utils.losses.assign = shuffled
    sys.exit(cli.run(lambda: train(parse_options())))
