"""One epoch of training, in the order of time."""

import math
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from utils.ema import ModelEMA
from utils.errors import TrainingStoppedError
from utils.optim import Schedule
from utils.precision import Precision

MAX_BAD_STEPS = 20
"""Optimizer steps in a row that may be left out for a non-finite gradient."""


@dataclass
class Training:
    """What training changes, and what it needs to do so."""

    model: nn.Module
    ema: ModelEMA
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    loss: Any
    schedule: Schedule
    precision: Precision
    frozen: list[nn.Module] = field(default_factory=list)
    multi_scale: bool = False
    seed: int = 0
    bad_steps: int = 0


@dataclass
class EpochResult:
    """Mean loss items of an epoch, how long it took, how long of that it waited for data, and steps left out."""

    items: dict[str, float]
    seconds: float
    waited: float
    skipped_steps: int


def resized(images: Tensor, epoch: int, number: int, seed: int, stride: int) -> Tensor:
    """Return a batch at a random size of 0.5 to 1.5 times its own, a multiple of the stride (multi-scale training)."""
    scale = random.Random(f"{seed}/{epoch}/{number}").uniform(0.5, 1.5)
    size = [max(stride, round(side * scale / stride) * stride) for side in images.shape[2:]]
    return functional.interpolate(images, size=size, mode="bilinear", align_corners=False) if size != list(images.shape[2:]) else images


def train_one_epoch(training: Training, batches: Iterable[dict[str, Any]], epoch: int, progress: bool = True) -> EpochResult:
    """Train on every batch once.

    Args:
        batches: dicts with "images" uint8 (B, ch, H, W) and "targets" (N, 6).
        epoch: number from 0; learning rates and multi-scale follow from it.
    Raises:
        TrainingStoppedError: the loss is not finite.
    """
    model, optimizer, precision, schedule = training.model, training.optimizer, training.precision, training.schedule
    model.train()
    for module in training.frozen:
        module.eval()
    sums: dict[str, Tensor] = {}
    pending = count = skipped = 0
    waited, start = 0.0, time.perf_counter()
    asked = start
    with tqdm(total=schedule.batches_per_epoch, desc=f"epoch {epoch + 1}/{schedule.epochs}", unit="batch", disable=not progress, leave=False) as bar:
        for number, batch in enumerate(batches):
            waited += time.perf_counter() - asked
            accumulate = schedule.apply(optimizer, epoch, number)
            images = precision.images(batch["images"])
            if training.multi_scale:
                images = resized(images, epoch, number, training.seed, max(model.stride))
            with precision.autocast():
                outputs = model(images)
            total, items = training.loss(outputs, batch | {"images": images})
            if not math.isfinite(total.item()):
                raise TrainingStoppedError(f"epoch {epoch + 1}, batch {number + 1}: the loss is {total.item()}: lower lr0, or try --amp off")
            training.scaler.scale(total).backward()
            pending += 1
            if pending >= accumulate or number == schedule.batches_per_epoch - 1:
                skipped += not optimizer_step(training)
                pending = 0
            count += 1
            for name, value in items.items():
                sums[name] = sums.get(name, 0) + value
            if progress:
                seen = (number + 1) * len(images) / (time.perf_counter() - start)
                losses = " ".join(f"{name} {float(value) / count:.3f}" for name, value in sums.items())
                bar.set_postfix_str(f"{losses} {seen:.0f} images/s", refresh=False)
                bar.update()
            asked = time.perf_counter()
    means = {name: float(value) / max(count, 1) for name, value in sums.items()}
    return EpochResult(means, time.perf_counter() - start, waited, skipped)


def optimizer_step(training: Training) -> bool:
    """Clip the gradients, step, and average the weights; leave the step out (False) where the gradient is not finite.

    Raises:
        TrainingStoppedError: too many steps in a row were left out.
    """
    training.scaler.unscale_(training.optimizer)
    parameters = [parameter for group in training.optimizer.param_groups for parameter in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, training.schedule.hyp.clip_norm, foreach=True)
    finite = bool(torch.isfinite(norm))
    if finite or training.scaler.is_enabled():
        training.scaler.step(training.optimizer)  # the scaler leaves a non-finite step out by itself
    training.scaler.update()
    training.optimizer.zero_grad(set_to_none=True)
    if finite:
        training.bad_steps = 0
        training.ema.update(training.model)
        return True
    training.bad_steps += 1
    if training.bad_steps >= MAX_BAD_STEPS:
        raise TrainingStoppedError(f"{MAX_BAD_STEPS} steps in a row had a non-finite gradient: lower lr0, or try --amp off")
    return False
