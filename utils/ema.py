"""Exponential moving average of a network's weights, kept in float32."""

import copy
import math

import torch
from torch import Tensor, nn


class ModelEMA:
    """Averaged copy of a network, updated after every optimizer step.

    The decay grows as `decay * (1 - exp(-updates / ramp))`, so that early weights are forgotten quickly.

    Args:
        model: network to follow; copied, never changed.
        decay: decay in the long run.
        ramp: steps over which the decay grows.
        updates: steps taken before (a resumed run).
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999, ramp: float = 2000.0, updates: int = 0) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.ramp, self.updates = decay, ramp, updates

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move every floating entry of the state towards `model`'s; copy the others."""
        self.updates += 1
        weight = 1 - self.decay * (1 - math.exp(-self.updates / self.ramp))
        averaged: list[Tensor] = []
        current: list[Tensor] = []
        for ours, theirs in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True):
            if ours.is_floating_point():
                averaged.append(ours)
                current.append(theirs)
            else:
                ours.copy_(theirs)
        torch._foreach_lerp_(averaged, current, weight)
