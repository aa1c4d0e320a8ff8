"""Optimizers over three parameter groups, learning-rate schedules and the warm-up."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from models.parameters import BIAS, DECAYED, OTHER, parameter_groups
from utils.errors import SettingsError
from utils.hyperparameters import Hyperparameters

OPTIMIZERS = ("SGD", "AdamW")
SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "linear": lambda share, lrf: (1 - share) * (1 - lrf) + lrf,
    "cosine": lambda share, lrf: (1 + math.cos(math.pi * share)) / 2 * (1 - lrf) + lrf,
    "flat-cosine": lambda share, lrf: (
        1.0 if share < 0.5 else (1 + math.cos(math.pi * (2 * share - 1))) / 2 * (1 - lrf) + lrf
    ),
    "fixed": lambda share, lrf: 1.0,
}
"""Factor on lr0 by the share of the run that is over, in [0, 1)."""


def build_optimizer(
    model: nn.Module, name: str, hyp: Hyperparameters, weight_decay: float, factors: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """Return an optimizer over `parameter_groups`, in that order; groups with other learning rates follow the three.

    Args:
        weight_decay: of the decayed weights, a step.
        factors: factor on the learning rate, by parameter name; 1 for those not named.
    Raises:
        SettingsError: unknown optimizer, or nothing to train.
    """
    if name not in OPTIMIZERS:
        raise SettingsError(f"--optimizer {name}: expected one of {', '.join(OPTIMIZERS)}")
    biases, decayed, others = parameter_groups(model)
    if not (biases or decayed or others):
        raise SettingsError("--freeze: leaves no parameter to train")
    factor_of = {id(parameter): (factors or {}).get(name, 1.0) for name, parameter in model.named_parameters()}
    groups = [
        {"params": chosen, "weight_decay": weight_decay if kind == DECAYED else 0.0, "kind": kind, "factor": factor}
        for factor in sorted(set(factor_of.values()), key=lambda factor: factor != 1.0)
        for kind, members in ((BIAS, biases), (DECAYED, decayed), (OTHER, others))
        if (chosen := [parameter for parameter in members if factor_of[id(parameter)] == factor]) or factor == 1.0
    ]
    # on a GPU one kernel for all parameters
    fused = next(model.parameters()).device.type == "cuda"
    form = {"fused": True} if fused else {"foreach": True}
    if name == "SGD":
        return torch.optim.SGD(groups, lr=hyp.lr0, momentum=hyp.momentum, nesterov=hyp.momentum > 0, **form)
    return torch.optim.AdamW(groups, lr=hyp.lr0, betas=(hyp.momentum, 0.999), **form)


@dataclass
class Schedule:
    """Learning rates, momentum and accumulation of every step of a run.

    Args:
        kind: one of SCHEDULES.
        epochs: length of the run.
        batches_per_epoch: batches of an epoch.
        batch_size: images of a batch.
    """

    hyp: Hyperparameters
    kind: str
    epochs: int
    batches_per_epoch: int
    batch_size: int

    @property
    def accumulate(self) -> int:
        """Batches per optimizer step after the warm-up: up to the nominal batch, if the epoch is long enough."""
        wanted = max(round(self.hyp.nominal_batch / self.batch_size), 1)
        return max(1, min(wanted, self.batches_per_epoch // max(self.hyp.min_steps_per_epoch, 1)))

    @property
    def warmup_batches(self) -> int:
        """Batches of warm-up, at most `warmup_share` of the run."""
        total = self.epochs * self.batches_per_epoch
        return int(min(self.hyp.warmup_epochs * self.batches_per_epoch, self.hyp.warmup_share * total))

    @property
    def weight_decay(self) -> float:
        """Weight decay of one step, in proportion to the images behind it."""
        return self.hyp.weight_decay * self.batch_size * self.accumulate / self.hyp.nominal_batch

    def factor(self, epoch: int) -> float:
        """Return the factor on lr0 in an epoch."""
        return SCHEDULES[self.kind](epoch / self.epochs, self.hyp.lrf)

    def apply(self, optimizer: torch.optim.Optimizer, epoch: int, batch_number: int) -> int:
        """Set learning rates and momentum for one batch; return how many batches to accumulate now.

        Args:
            batch_number: number of the batch within the epoch.
        """
        base = self.hyp.lr0 * self.factor(epoch)
        done = epoch * self.batches_per_epoch + batch_number
        ramp = min(done / self.warmup_batches, 1.0) if self.warmup_batches else 1.0
        momentum = self.hyp.warmup_momentum + ramp * (self.hyp.momentum - self.hyp.warmup_momentum)
        for group in optimizer.param_groups:
            start = self.hyp.warmup_bias_lr if group["kind"] == BIAS else 0.0
            group["lr"] = (start + ramp * (base - start)) * group["factor"]
            if "momentum" in group:
                group["momentum"] = momentum
            else:
                group["betas"] = (momentum, group["betas"][1])
        return max(1, round(1 + ramp * (self.accumulate - 1)))
