"""Run by torchrun in test_ranks.py: one epoch with frozen statistics in float64; the first rank saves the weights.

usage: rank_steps.py OUT BRANCHES BATCH
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from data.dataset import DetectionDataset
from data.labels.annotation import Annotation
from data.loader import Share, build_loader
from tests.networks import tiny_model
from utils import ranks
from utils.cli import run
from utils.drawing.draw import write_image
from utils.hyperparameters import Hyperparameters
from utils.losses.detection import build_loss
from utils.optim.ema import ModelEMA
from utils.optim.optimizer import Schedule, build_optimizer
from utils.precision import choose_precision
from utils.training.epoch import Training, train_one_epoch
from utils.training.set_up import among_ranks

IMAGES = 9
HYP = Hyperparameters(warmup_epochs=0.0, nominal_batch=8, min_steps_per_epoch=0, mosaic=0.0)


class Double(nn.Module):
    """A network that takes its images in float64."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: torch.Tensor) -> object:
        return self.inner(images.double())


def dataset(folder: Path) -> DetectionDataset:
    """Nine images: many objects in the first ones, none in the last ones."""
    rng, annotations = np.random.default_rng(0), []
    for number in range(IMAGES):
        path = folder / f"{number}.png"
        count, pixels = max(0, 5 - number), rng.integers(0, 255, (64, 64, 3), np.uint8)
        if not path.exists():
            write_image(path, pixels)
        low = rng.uniform(2, 30, (count, 2))
        boxes = np.concatenate((low, low + rng.uniform(10, 30, (count, 2))), 1).astype(np.float32)
        ids, crowd = np.arange(count) + 10 * number, np.zeros(count, bool)
        classes, areas = np.arange(count) % 3, np.ones(count)
        annotations.append(Annotation(path, (64, 64), number + 1, classes, boxes, [[]] * count, crowd, areas, ids))
    return DetectionDataset(annotations, ["a", "b", "c"], 64, HYP, augment=True, cache="off", batch_size=4)


def main() -> None:
    """Train one epoch, and save what came out."""
    out, branches, batch_size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    with ranks.joined(torch.device("cpu")) as launch:
        model = tiny_model(branches).double()
        with ranks.first_goes_first():
            data = dataset(out)
        loader = build_loader(data, batch_size, shuffle=True, share=Share(launch.rank, launch.size))
        schedule = Schedule(HYP, "linear", 1, len(loader), batch_size)
        training = Training(
            model=model,
            ema=ModelEMA(model),
            optimizer=build_optimizer(model, "SGD", HYP, schedule.weight_decay),
            scaler=torch.amp.GradScaler("cpu", enabled=False),
            loss=build_loss(model, HYP),
            schedule=schedule,
            precision=choose_precision("cpu", "off"),
            frozen=[module for module in model.modules() if isinstance(module, nn.BatchNorm2d)],
        )
        training.parallel = among_ranks(Double(model), training.precision)
        if training.parallel is None:
            training.run = Double(model)
        result = train_one_epoch(training, loader, 0, progress=False)
        if ranks.is_first():
            content = {"model": model.state_dict(), "items": result.items, "accumulate": schedule.accumulate}
            torch.save(content, out / f"{launch.size}ranks.pt")


if __name__ == "__main__":
    sys.exit(run(main))
