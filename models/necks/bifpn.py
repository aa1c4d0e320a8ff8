"""Weighted sum of several maps: the node of a bidirectional feature pyramid."""

from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.limits import SMALL
from models.registry import Channels, Scale, layer, maps, rule
from utils.errors import ModelConfigError


@rule("num_inputs")
def alike(inputs: list[Channels], arguments: dict, scale: Scale) -> Channels:
    """Several inputs of one width; the output has the same width."""
    widths = maps(inputs)
    if len(widths) < 2:
        raise ModelConfigError(f"'from' names {len(widths)} layer: expected a list of several, such as [-1, 6]")
    if len(set(widths)) > 1:
        raise ModelConfigError(
            f"the inputs have {', '.join(map(str, widths))} channels: expected one width; "
            "put a Conv row before those that differ"
        )
    arguments["num_inputs"] = len(widths)
    return widths[0]


@layer(alike, "fusion", example_inputs=(16, 16, 16))
class BiFPNAdd(nn.Module):
    """Add maps of one size and width in learned shares: each weight (at least 0) divided by the sum of all.

    Source: Tan et al. 2019, EfficientDet, arxiv.org/abs/1911.09070, section 3.3 (fast normalised fusion).
    Differs: the sum alone; resizing before it and the activated convolution after it are rows of their own, as is the
        Concat that some networks put after the weights. The weights start equal; like every vector, they get no weight
        decay.

    Args:
        epsilon: added to the sum of the weights.
    """

    def __init__(self, num_inputs: int, epsilon: Annotated[float, SMALL] = 1e-4) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_inputs))
        self.epsilon = epsilon

    def shares(self) -> Tensor:
        """Return the share of each input (N)."""
        positive = functional.relu(self.weight)
        return positive / (positive.sum() + self.epsilon)

    def forward(self, inputs: list[Tensor]) -> Tensor:
        shares = self.shares()
        fused = inputs[0] * shares[0]
        for x, share in zip(inputs[1:], shares[1:], strict=True):
            fused = fused + x * share
        return fused
