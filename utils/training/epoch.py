"""One epoch of training, in the order of time."""

import math
import random
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from models.yolo import Model
from utils.errors import SignalledError, TrainingStoppedError
from utils.optim.ema import ModelEMA
from utils.optim.optimizer import Schedule
from utils.precision import Precision
from utils.ranks import exchange, size, summed
from utils.wording import listed

MAX_BAD_STEPS = 20
"""Optimizer steps in a row that may be left out for a non-finite gradient."""


@dataclass
class Training:
    """What training changes, and what it needs to do so.

    Attributes:
        frozen: layers that stay in evaluation mode.
        multi_scale: vary the size of the batches, but no side below `least_side`.
        seed: of the sizes.
        bad_steps: steps in a row that were left out, see `MAX_BAD_STEPS`.
    """

    model: Model
    ema: ModelEMA[Model]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    loss: Any
    schedule: Schedule
    precision: Precision
    frozen: list[nn.Module] = field(default_factory=list)
    multi_scale: bool = False
    least_side: int = 0
    seed: int = 0
    bad_steps: int = 0
    parallel: DistributedDataParallel | None = None
    """The network among several ranks; it averages their gradients."""
    unused_named: bool = False
    """The layers without a gradient in the first step have been named."""

    def run(self, images: Tensor) -> Any:
        """Return the network's raw outputs."""
        return self.model(images) if self.parallel is None else self.parallel(images)

    def without_exchange(self, last: bool) -> AbstractContextManager[None]:
        """Return a context in which gradients are added up but not averaged, unless it is the `last` of a step."""
        return nullcontext() if last or self.parallel is None else self.parallel.no_sync()


@dataclass
class EpochResult:
    """Mean loss items of an epoch, how long it took, how long of that it waited for data, and steps left out."""

    items: dict[str, float]
    seconds: float
    waited: float
    skipped_steps: int


@dataclass
class EpochState:
    """How much of an epoch is done. A run that is resumed within the epoch starts from it.

    Attributes:
        batch: batches done.
        sums: loss items added up over `counted` batches; one whose loss was not finite does not count.
        skipped_steps: optimizer steps left out.
        seconds: time taken, `waited` of it for data.
    """

    batch: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    counted: int = 0
    skipped_steps: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    def add(self, items: dict[str, Tensor]) -> None:
        """Add a batch's loss items."""
        self.counted += 1
        for name, value in items.items():
            self.sums[name] = self.sums.get(name, 0) + value

    def means(self) -> dict[str, float]:
        """Return the mean of each loss item."""
        return {name: float(value) / self.counted for name, value in self.sums.items()}


SCALES = (0.5, 1.5)
"""Smallest and largest factor of the image size in multi-scale training."""


def scaled_side(side: int, scale: float, multiple: int, least: int = 0) -> int:
    """Return a side times `scale`, as a multiple of `multiple`, and not below `least`."""
    return max(multiple, least, round(side * scale / multiple) * multiple)


def resized(images: Tensor, epoch: int, number: int, seed: int, multiple: int, least: int = 0) -> Tensor:
    """Return a batch at a random size (multi-scale training), which depends only on seed, epoch and number."""
    scale = random.Random(f"{seed}/{epoch}/{number}").uniform(*SCALES)
    size = [scaled_side(side, scale, multiple, least) for side in images.shape[2:]]
    return (
        functional.interpolate(images, size=size, mode="bilinear", align_corners=False)
        if size != list(images.shape[2:])
        else images
    )


def train_one_epoch(
    training: Training,
    batches: Iterable[dict[str, Any]],
    epoch: int,
    progress: bool = True,
    done: EpochState | None = None,
    after_step: Callable[[EpochState], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> EpochResult:
    """Train on every batch once.

    Args:
        batches: dicts with "images" uint8 (B, ch, H, W) and "targets" (N, 6); without the batches that are done.
        epoch: number from 0; the learning rates and the sizes of multi-scale depend on it.
        done: state of an epoch that is resumed; it is changed in place.
        after_step: called after each batch that leaves no gradient pending: a run can be resumed from there.
        stop: tells whether the run was told to stop; it does where no gradient is pending, after `after_step`.
    Raises:
        TrainingStoppedError: the loss is not finite, and there is no gradient scaler whose scale could be lowered.
        SignalledError: the run was told to stop; `done` is how far it came.
    """
    model, optimizer, precision, schedule = training.model, training.optimizer, training.precision, training.schedule
    model.train()
    for module in training.frozen:
        module.eval()
    state, pending, first = done or EpochState(), 0, done.batch if done else 0
    asked = time.perf_counter()
    start = asked - state.seconds
    total_batches, ranks = schedule.batches_per_epoch, size()
    loss = training.loss if ranks == 1 else training.loss.across(ranks, summed)
    title = f"epoch {epoch + 1}/{schedule.epochs}"
    with tqdm(total=total_batches, initial=first, desc=title, unit="batch", disable=not progress, leave=False) as bar:
        for number, batch in enumerate(batches, first):
            state.waited += time.perf_counter() - asked
            accumulate = schedule.apply(optimizer, epoch, number)
            images = precision.images(batch["images"])
            if training.multi_scale:
                images = resized(images, epoch, number, training.seed, model.multiple, training.least_side)
            pending += 1
            step = pending >= accumulate or number == total_batches - 1
            with training.without_exchange(last=step), exchange():
                with precision.autocast():
                    outputs = training.run(images)
                total, items = loss(outputs, batch | {"images": images})
                value, items, stopping = of_all_ranks(total, items, stop is not None and stop())
                lost = not math.isfinite(value)
                if lost and not training.scaler.is_enabled():
                    raise TrainingStoppedError(
                        f"epoch {epoch + 1}, batch {number + 1}: the loss is {value}: lower lr0, or try --amp off"
                    )
                if not lost:
                    training.scaler.scale(total).backward()
                    state.add(items)
            if lost or step:
                state.skipped_steps += not optimizer_step(training, lost)
                pending = 0
            state.batch, state.seconds = number + 1, time.perf_counter() - start
            if progress:
                losses = " ".join(f"{name} {value:.3f}" for name, value in state.means().items())
                bar.set_postfix_str(
                    f"{losses} {state.batch * len(images) * ranks / state.seconds:.0f} images/s", refresh=False
                )
                bar.update()
            if after_step is not None and not pending:
                after_step(state)
            if not pending and (stopping or (ranks == 1 and stop is not None and stop())):
                raise SignalledError(f"{title}, batch {state.batch}")
            asked = time.perf_counter()
    return EpochResult(state.means(), time.perf_counter() - start, state.waited, state.skipped_steps)


def of_all_ranks(total: Tensor, items: dict[str, Tensor], stopping: bool) -> tuple[float, dict[str, Tensor], bool]:
    """Return the loss and its items over all ranks, and whether any of them was told to stop."""
    ranks = size()
    if ranks == 1:
        return total.item(), items, stopping
    flag = total.new_tensor(float(stopping))
    value, told, *rest = summed(torch.stack((total.detach() / ranks, flag, *items.values())).double())
    return float(value), dict(zip(items, (one.float() for one in rest), strict=True)), bool(told)


def optimizer_step(training: Training, lost: bool = False) -> bool:
    """Clip the gradients, step, and average the weights; return False if the step is left out.

    A step is left out if its gradient is not finite.

    Args:
        lost: the loss was not finite: the step is left out, and the scaler lowers its scale.
    Raises:
        TrainingStoppedError: too many steps in a row were left out.
    """
    parameters = [parameter for group in training.optimizer.param_groups for parameter in group["params"]]
    if not lost and not training.unused_named:
        training.unused_named = True
        name_unused(training.model)
    if lost:
        parameters[0].grad = torch.full_like(parameters[0], math.inf)  # what the scaler looks for
        mend_statistics(training)
    training.scaler.unscale_(training.optimizer)
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
        raise TrainingStoppedError(
            f"{MAX_BAD_STEPS} steps in a row had a non-finite gradient: lower lr0, or try --amp off"
        )
    return False


def name_unused(model: Model) -> None:
    """Print the parameters that the first step gave no gradient: nothing that the loss sees depends on them."""
    trained = [(name, one) for name, one in model.named_parameters() if one.requires_grad]
    if unused := [name for name, one in trained if one.grad is None]:
        print(
            f"{len(unused)} of {len(trained)} parameters got no gradient in the first step, and do not train as long "
            f"as no output depends on them: {listed(unused, 4)}"
        )


@torch.no_grad()
def mend_statistics(training: Training) -> None:
    """Replace running statistics that an overflow has made non-finite by those of the averaged network."""
    for ours, averaged in zip(training.model.buffers(), training.ema.model.buffers(), strict=True):
        if ours.is_floating_point() and not ours.isfinite().all():
            ours.copy_(averaged)
