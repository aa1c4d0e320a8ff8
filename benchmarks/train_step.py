"""A training step (forward, loss, backward, optimizer, EMA): the default path against fp32 contiguous, timed in turn.

`python -m benchmarks.train_step [--cfg gelan-t.yaml] [--batch 16] [--img 320]`. Targets are random, 15 an image.
"""

import argparse
from collections.abc import Callable, Mapping

import torch

from benchmarks.timing import Clock, in_turn, machine, report
from models.yolo import Model
from utils.hyperparameters import Hyperparameters
from utils.losses.detection import build_loss
from utils.optim.ema import ModelEMA
from utils.optim.optimizer import build_optimizer
from utils.precision import choose_precision

OBJECTS_PER_IMAGE = 15


def step(cfg: str, amp: str, batch: int, size: int, num_classes: int) -> Callable[[], Mapping[str, float]]:
    """Return a function that runs one training step and returns the seconds of its parts."""
    torch.manual_seed(0)
    hyp, precision = Hyperparameters(), choose_precision("cpu", amp)
    model = precision.place(Model(cfg, nc=num_classes)).train()
    ema, loss = ModelEMA(model), build_loss(model, hyp)
    optimizer = build_optimizer(model, "SGD", hyp, hyp.weight_decay)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    pixels = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
    count = batch * OBJECTS_PER_IMAGE
    owner = torch.arange(batch).repeat_interleave(OBJECTS_PER_IMAGE)[:, None].float()
    classes = torch.randint(0, num_classes, (count, 1)).float()
    targets = torch.cat((owner, classes, 0.1 + 0.8 * torch.rand(count, 2), 0.03 + 0.2 * torch.rand(count, 2)), 1)

    def run() -> Mapping[str, float]:
        clock = Clock()
        images = precision.images(pixels)
        with precision.autocast():
            outputs = model(images)
        clock.lap("forward")
        total, _ = loss(outputs, {"images": images, "targets": targets})
        clock.lap("loss")
        total.backward()
        clock.lap("backward")
        torch.nn.utils.clip_grad_norm_(parameters, hyp.clip_norm, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.lap("optimizer")
        ema.update(model)
        clock.lap("ema")
        return clock.total()

    return run


def main() -> None:
    """Print the times of both paths, part by part, and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cfg", default="gelan-t.yaml")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--img", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    setting = f"{options.cfg}, batch {options.batch}, {options.img} x {options.img}"
    print(f"{machine()}; {setting}; default path: {choose_precision('cpu').describe()}")
    paths = {"fp32 contiguous": "off", "default": "auto"}
    variants = {name: step(options.cfg, amp, options.batch, options.img, 3) for name, amp in paths.items()}
    report(in_turn(variants, options.rounds), "fp32 contiguous")


if __name__ == "__main__":
    main()
