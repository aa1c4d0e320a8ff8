"""SCSA: spatial attention with several kernel sizes, then self-attention among the channels."""

from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.attention.gating import GatedLayer, GroupNorm
from models.attention.window_attention import full_precision, wide
from models.limits import CELLS, LARGE_KERNEL, UP_TO_CHANNELS
from models.parts import Start, require_divisor, require_odd, require_positive, zero_
from models.registry import layer, same
from utils.errors import ModelConfigError


@layer(same, "attention", example=(4,))
class SCSA(GatedLayer):
    """Weigh rows and columns with one kernel per part of the channels, then channels by self-attention.

    Source: Si et al. 2024, SCSA: Exploring the Synergistic Effects between Spatial and Channel Attention,
        arxiv.org/abs/2407.05128, section 3.
    Differs: a window at the border averages the cells inside the map, so maps may be smaller than a window. The channel
        attention averages the values first: the result is the same. It is computed in float32.

    Args:
        heads: of the channel attention; must divide the channels, with at least two channels per head.
        window: side and stride of the average pooling before the channel attention.
        kernel_sizes: one odd kernel along rows and columns for each part of the channels; their number must divide the
            channels.
        start: `identity` makes the gates 2 * sigmoid, and both normalisations before them and the values zero, so that
            gates start at one.
    Raises:
        ModelConfigError: heads or parts that do not divide the channels, an even kernel, or a window that is not
            positive.
    """

    def __init__(
        self,
        channels: int,
        heads: Annotated[int, UP_TO_CHANNELS] = 8,
        window: Annotated[int, CELLS] = 7,
        kernel_sizes: Annotated[tuple[int, ...], LARGE_KERNEL] = (3, 5, 7, 9),
        start: Start = "random",
    ) -> None:
        super().__init__(start)
        check(channels, heads, window, kernel_sizes)
        self.heads, self.window = heads, window
        part = channels // len(kernel_sizes)
        self.convs = nn.ModuleList(nn.Conv1d(part, part, size, padding=size // 2, groups=part) for size in kernel_sizes)
        self.norm_rows = GroupNorm(len(kernel_sizes), channels)
        self.norm_columns = GroupNorm(len(kernel_sizes), channels)
        self.norm = GroupNorm(1, channels)
        self.query, self.key, self.value = (
            nn.Conv2d(channels, channels, 1, groups=channels, bias=False) for _ in range(3)
        )
        if start == "identity":
            for last in (self.norm_rows, self.norm_columns, self.value):
                zero_(last)

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.spatial_gate(x)
        return x * self.channel_gate(x)

    def gate(self, x: Tensor) -> Tensor:
        spatial = self.spatial_gate(x)
        return spatial * self.channel_gate(x * spatial)

    def spatial_gate(self, x: Tensor) -> Tensor:
        """Return the weight of every value: its row's times its column's, (B, C, H, W)."""
        rows, columns = (
            self.opened(self.norm_rows(self.reach(x.mean(3)))),
            self.opened(self.norm_columns(self.reach(x.mean(2)))),
        )
        return rows[..., None] * columns[:, :, None]

    def reach(self, means: Tensor) -> Tensor:
        """Convolve each part of the channels of row or column means (B, C, length) with its own kernel."""
        return torch.cat(
            [conv(part) for conv, part in zip(self.convs, means.chunk(len(self.convs), 1), strict=True)], 1
        )

    def channel_gate(self, x: Tensor) -> Tensor:
        """Return the weight of every channel, (B, C, 1, 1); `x` is the map after the spatial gate."""
        pooled = self.norm(pool(x, self.window))
        query, key, value = (
            self.by_head(project(pooled)) for project in (self.query, self.key, self.value)
        )  # (B, heads, C / heads, cells)
        with full_precision(x):
            scores = (
                query.to(wide(x)) @ key.to(wide(x)).transpose(2, 3) * (self.query.out_channels // self.heads) ** -0.5
            )
            logits = scores.softmax(3) @ value.to(wide(x)).mean(3, keepdim=True)
        return self.opened(logits.reshape(x.shape[0], x.shape[1], 1, 1).to(x.dtype))

    def by_head(self, maps: Tensor) -> Tensor:
        """Return maps (B, C, h, w) as (B, heads, C / heads, h * w)."""
        pixels = maps.flatten(2)
        return pixels.view(-1, self.heads, self.query.out_channels // self.heads, pixels.shape[2])


def pool(x: Tensor, window: int) -> Tensor:
    """Average adjacent windows, cut at the border: (B, C, ceil(H / window), ceil(W / window))."""
    margins = 0, window - 1, 0, window - 1
    share = functional.avg_pool2d(
        functional.pad(torch.ones_like(x[:1, :1]), margins), window
    )  # of the window that lies in the map
    return functional.avg_pool2d(functional.pad(x, margins), window) / share


def check(channels: int, heads: int, window: int, kernel_sizes: tuple[int, ...]) -> None:
    """Reject invalid settings.

    Raises:
        ModelConfigError: a setting is invalid; the message suggests a valid one.
    """
    require_positive("window", window)
    for kernel_size in kernel_sizes:
        require_odd("kernel_sizes", kernel_size)
    if not kernel_sizes:
        raise ModelConfigError("kernel_sizes is []: expected at least one odd reach, such as [3, 5, 7, 9]")
    if channels % len(kernel_sizes):
        fitting = next(number for number in (4, 3, 2, 1) if channels % number == 0)
        raise ModelConfigError(
            f"kernel_sizes is {list(kernel_sizes)}: {len(kernel_sizes)} parts do not divide {channels} channels; "
            f"try {[3, 5, 7, 9][:fitting]}"
        )
    require_divisor("heads", heads, channels, least=2)
