"""Efficient multi-scale attention, known as EMA attention; it is unrelated to the moving average of weights."""

from typing import Annotated

import torch
from torch import Tensor, nn

from models.attention.gating import GatedLayer, GroupNorm
from models.attention.window_attention import wide
from models.limits import UP_TO_CHANNELS
from models.parts import Start, require_divisor
from models.registry import layer, same


@layer(same, "attention", example=())
class EMAttention(GatedLayer):
    """Weigh each pixel of a channel group by comparing two branches: row and column means, and a 3 x 3 convolution.

    Source: Ouyang et al. 2023, Efficient Multi-Scale Attention Module with Cross-Spatial Learning,
        arxiv.org/abs/2305.13563, section 3.
    Differs: each channel is normalised on its own (the formula leaves the groups open), so the first softmax depends on
        the normalisation's biases only. 8 groups by default where the authors' code has 32.

    Args:
        groups: number of channel groups, which share all weights; must divide the channels.
        start: `identity` makes the gate 2 * sigmoid(gain * ...) with a gain per group that starts at zero, so that
            gates start at one.
    Raises:
        ModelConfigError: groups that do not divide the channels.
    """

    def __init__(self, channels: int, groups: Annotated[int, UP_TO_CHANNELS] = 8, start: Start = "random") -> None:
        super().__init__(start)
        require_divisor("groups", groups, channels)
        self.groups, part = groups, channels // groups
        self.conv1 = nn.Conv2d(part, part, 1)
        self.conv3 = nn.Conv2d(part, part, 3, padding=1)
        self.norm = GroupNorm(part, part)
        self.gain = nn.Parameter(torch.zeros(groups)) if start == "identity" else None

    def forward(self, x: Tensor) -> Tensor:
        parts = x.view(-1, self.groups, self.conv1.in_channels, *x.shape[2:])
        return (parts * self.gate(x)[:, :, None]).flatten(1, 2)

    def gate(self, x: Tensor) -> Tensor:
        """Return the weight of every pixel of every group, (B, groups, H, W)."""
        batch, _, height, width = x.shape
        part = x.reshape(batch * self.groups, self.conv1.in_channels, height, width)
        means = torch.cat(
            (part.mean(3, keepdim=True), part.mean(2, keepdim=True).transpose(2, 3)), 2
        )  # (B * groups, C / groups, H + W, 1)
        mixed = self.conv1(means).sigmoid()
        strips = self.norm(part * mixed[:, :, :height] * mixed[:, :, height:].transpose(2, 3))
        squares = self.conv3(part)
        seen = (seen_by(strips, squares) + seen_by(squares, strips)).reshape(batch, self.groups, height, width)
        return self.opened(seen if self.gain is None else seen * self.gain[:, None, None])


def seen_by(viewer: Tensor, viewed: Tensor) -> Tensor:
    """Average `viewed` over channels, weighed by the softmax of `viewer`'s means: (N, C, H, W) -> (N, 1, H * W)."""
    weights = viewer.mean((2, 3)).softmax(1, dtype=wide(viewer)).to(viewed.dtype)
    return weights[:, None] @ viewed.flatten(2)
