"""Activations with parameters: rows of their own, and names for a network's `activation`."""

import torch
from torch import Tensor, nn

from models.common import ACTIVATIONS
from models.registry import keep, layer

LOWEST, HIGHEST = 0.01, 0.99
"""Bounds of ARelu's negative slope."""


@layer(keep, "activation", example=())
class ARelu(nn.Module):
    """Learn one slope for a whole layer's negative values, below one, and one for its positive values, above one.

    relu(x) * (1 + sigmoid(beta)) - relu(-x) * clamp(alpha, 0.01, 0.99)

    Source: Chen et al. 2020, AReLU, arxiv.org/abs/2006.13858
    Differs: in nothing; both are scalars, so that no optimizer lets them decay. A network whose every activation this
        is doubles its values layer by layer unless each is normalised first. A negative slope at one of its bounds gets
        no gradient.

    Args:
        alpha: the negative slope at the start, within its bounds.
        beta: positive values are multiplied by 1 + sigmoid(beta), 1.88 at the start.
    """

    def __init__(self, alpha: float = 0.9, beta: float = 2.0) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor([float(alpha)]))
        self.beta = nn.Parameter(torch.tensor([float(beta)]))

    def forward(self, x: Tensor) -> Tensor:
        above, below = 1 + self.beta.sigmoid(), self.alpha.clamp(LOWEST, HIGHEST)
        return torch.where(x > 0, x * above.to(x.dtype), x * below.to(x.dtype))


ACTIVATIONS["ARelu"] = ARelu
