"""Activations with parameters; each can be a row of its own or a network's `activation`."""

from typing import Annotated

import torch
from torch import Tensor, nn

from models.common import ACTIVATIONS
from models.limits import Limits
from models.registry import keep, layer

LOWEST, HIGHEST = 0.01, 0.99
"""Bounds of ARelu's negative slope."""


@layer(keep, "activation", example=())
class ARelu(nn.Module):
    """Learn two slopes per layer: one below 1 for negative values, one above 1 for positive values.

    relu(x) * (1 + sigmoid(beta)) - relu(-x) * clamp(alpha, 0.01, 0.99)

    Source: Chen et al. 2020, AReLU, arxiv.org/abs/2006.13858
    Differs: in nothing. Both slopes are scalars, so they get no weight decay. A network that uses it everywhere doubles
        its values layer by layer, unless each layer's input is normalised. A negative slope at one of its bounds gets
        no gradient.

    Args:
        alpha: the negative slope at the start, within its bounds.
        beta: positive values are multiplied by 1 + sigmoid(beta), 1.88 at the start.
    """

    def __init__(
        self, alpha: Annotated[float, Limits(LOWEST, HIGHEST)] = 0.9, beta: Annotated[float, Limits(-16, 16)] = 2.0
    ) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor([float(alpha)]))
        self.beta = nn.Parameter(torch.tensor([float(beta)]))

    def forward(self, x: Tensor) -> Tensor:
        above, below = 1 + self.beta.sigmoid(), self.alpha.clamp(LOWEST, HIGHEST)
        return torch.where(x > 0, x * above.to(x.dtype), x * below.to(x.dtype))


ACTIVATIONS["ARelu"] = ARelu
