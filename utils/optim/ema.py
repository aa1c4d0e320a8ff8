"""Exponential moving average of a network's weights, kept in float32."""

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


class ModelEMA(Generic[Network]):
    """Averaged copy of a network, updated after every optimizer step.

    The decay grows as `(1 + updates) / (warmup + updates)` up to `decay`. So the average spans about the last tenth of
    the run so far, after a hundred steps and after a hundred thousand.

    Args:
        model: network to follow; copied, never changed.
        decay: largest decay.
        warmup: the decay starts at about 1 / warmup; a larger warmup makes it grow more slowly.
    Attributes:
        updates: steps so far; a resumed run sets it from its checkpoint.
    Differs:
        The original's decay is `decay * (1 - exp(-updates / 2000))`, which hardly averages in runs of fewer than 2000
        steps.
    """

    def __init__(self, model: Network, decay: float = 0.9999, warmup: float = 10.0) -> None:
        self.model = copy.deepcopy(model)
        self.model.eval().requires_grad_(False)
        self.decay, self.warmup, self.updates = decay, warmup, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move every floating entry of the state towards `model`'s; copy the others."""
        self.updates += 1
        weight = 1 - min(self.decay, (1 + self.updates) / (self.warmup + self.updates))
        averaged: list[Tensor] = []
        current: list[Tensor] = []
        for ours, theirs in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True):
            if ours.is_floating_point():
                averaged.append(ours)
                current.append(theirs)
            else:
                ours.copy_(theirs)
        torch._foreach_lerp_(averaged, current, weight)
