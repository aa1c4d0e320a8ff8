"""Attention over channels and pixels: CBAM weighs channels, then pixels; CoordAtt weighs channels by row and column."""

from typing import Annotated

import torch
from torch import Tensor, nn

from models.attention.gather_excite import Excite
from models.attention.gating import GatedLayer, squeezed
from models.common import fold_batchnorm
from models.limits import KERNEL, UP_TO_CHANNELS
from models.parts import BatchNorm2d, Start, require_odd, zero_
from models.registry import layer, same


@layer(same, "attention", example=())
class CBAM(GatedLayer):
    """Weigh channels by their mean and maximum over the map, then pixels by the mean and maximum over the channels.

    Source: Woo et al. 2018, CBAM: Convolutional Block Attention Module, arxiv.org/abs/1807.06521, section 3.
    Differs: the bottleneck has at least min(8, channels) channels. The spatial convolution is normalised, as in the
        authors' code; the paper's formula has no normalisation.

    Args:
        reduction: channels divided by hidden channels of the bottleneck, which mean and maximum share.
        kernel_size: of the spatial gate's convolution, odd.
        norm: normalise that convolution's output; False gives it a bias instead.
        start: `identity` makes both gates 2 * sigmoid and their last steps zero, so that gates start at one.
    Raises:
        ModelConfigError: an even kernel, or a reduction that is not positive.
    """

    def __init__(
        self,
        channels: int,
        reduction: Annotated[int, UP_TO_CHANNELS] = 16,
        kernel_size: Annotated[int, KERNEL] = 7,
        norm: bool = True,
        start: Start = "random",
    ) -> None:
        super().__init__(start)
        require_odd("kernel_size", kernel_size)
        self.mlp = Excite(channels, squeezed(channels, reduction))
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=not norm)
        self.bn: nn.Module = BatchNorm2d(1) if norm else nn.Identity()
        if start == "identity":
            zero_(self.mlp.fc2)
            zero_(self.bn if norm else self.conv)

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.channel_gate(x)
        return x * self.spatial_gate(x)

    def gate(self, x: Tensor) -> Tensor:
        channel = self.channel_gate(x)
        return channel * self.spatial_gate(x * channel)

    def channel_gate(self, x: Tensor) -> Tensor:
        """Return the weight of every channel, (B, C, 1, 1)."""
        return self.opened(self.mlp(x.mean((2, 3), keepdim=True)) + self.mlp(x.amax((2, 3), keepdim=True)))

    def spatial_gate(self, x: Tensor) -> Tensor:
        """Return the weight of every pixel, (B, 1, H, W); `x` is the map after the channel gate."""
        return self.opened(self.bn(self.conv(torch.cat((x.mean(1, keepdim=True), x.amax(1, keepdim=True)), 1))))

    def fold(self) -> None:
        """Merge the normalisation into its convolution, for inference."""
        if isinstance(self.bn, nn.BatchNorm2d):
            self.conv, self.bn = fold_batchnorm(self.conv, self.bn), nn.Identity()


@layer(same, "attention", example=())
class CoordAtt(GatedLayer):
    """Weigh every value by a gate of its row and a gate of its column, computed from row and column means.

    Source: Hou et al. 2021, Coordinate Attention for Efficient Mobile Network Design, arxiv.org/abs/2103.02907, section
        3.2.
    Differs: the first convolution has no bias, which the normalisation after it would cancel; means replace adaptive
        pooling.

    Args:
        reduction: channels divided by hidden channels; these are at least min(8, channels).
        start: `identity` makes both gates 2 * sigmoid and their convolutions zero, so that gates start at one.
    Raises:
        ModelConfigError: the reduction is not positive.
    """

    def __init__(self, channels: int, reduction: Annotated[int, UP_TO_CHANNELS] = 32, start: Start = "random") -> None:
        super().__init__(start)
        hidden = squeezed(channels, reduction)
        self.conv = nn.Conv2d(channels, hidden, 1, bias=False)
        self.bn: nn.Module = BatchNorm2d(hidden)
        self.act = nn.Hardswish()
        self.conv_rows = nn.Conv2d(hidden, channels, 1)
        self.conv_columns = nn.Conv2d(hidden, channels, 1)
        if start == "identity":
            zero_(self.conv_rows)
            zero_(self.conv_columns)

    def gate(self, x: Tensor) -> Tensor:
        rows, columns = self.gates(x)
        return rows * columns

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gates of rows (B, C, H, 1) and of columns (B, C, 1, W)."""
        height = x.shape[2]
        means = torch.cat((x.mean(3, keepdim=True), x.mean(2, keepdim=True).transpose(2, 3)), 2)  # (B, C, H + W, 1)
        hidden = self.act(self.bn(self.conv(means)))
        rows, columns = hidden[:, :, :height], hidden[:, :, height:].transpose(2, 3)
        return self.opened(self.conv_rows(rows)), self.opened(self.conv_columns(columns))

    def fold(self) -> None:
        """Merge the normalisation into its convolution, for inference."""
        if isinstance(self.bn, nn.BatchNorm2d):
            self.conv, self.bn = fold_batchnorm(self.conv, self.bn), nn.Identity()
