"""Base class of the attention layers that multiply a map by a gate."""

import torch
from torch import Tensor, nn

from models.parts import Start, require_positive


class GatedLayer(nn.Module):
    """Multiply the input by a gate that the layer computes from it.

    Args:
        start: `identity` doubles every sigmoid, so that a gate of logits zero is one; the subclass must start with such
            logits.
    """

    def __init__(self, start: Start) -> None:
        super().__init__()
        self.doubled = start == "identity"

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)

    def gate(self, x: Tensor) -> Tensor:
        """Return the factor of the input, (B, C or 1, H or 1, W or 1)."""
        raise NotImplementedError

    def opened(self, logits: Tensor) -> Tensor:
        """Turn logits into a gate: their sigmoid, or twice that with an identity start."""
        return 2 * logits.sigmoid() if self.doubled else logits.sigmoid()

    def explain(self, x: Tensor) -> dict[str, Tensor]:
        """Return "gate" (B, C or 1, H or 1, W or 1): the weight of every channel and pixel of `x`."""
        return {"gate": self.gate(x)}


class GroupNorm(nn.GroupNorm):
    """Group normalisation that also accepts groups of one value; their output is the bias."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


def squeezed(channels: int, reduction: int) -> int:
    """Return the hidden channels of a bottleneck: channels / reduction, but at least min(8, channels).

    Raises:
        ModelConfigError: the reduction is not positive.
    """
    require_positive("reduction", reduction)
    return max(channels // reduction, min(channels, 8))
