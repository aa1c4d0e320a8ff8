"""Channel attention (SE, ECA, MLCA): weigh each channel by its means over the whole map or over cells of it."""

import math
from typing import Annotated

import torch
from torch import Tensor, nn

from models.attention.gather_excite import Excite
from models.attention.gating import GatedLayer, squeezed
from models.limits import CELLS, FACTOR, LARGE_KERNEL, SHARE, UP_TO_CHANNELS, Limits
from models.parts import Start, require_cells, require_odd, require_positive, zero_
from models.registry import layer, same
from utils.errors import ModelConfigError


@layer(same, "attention", example=())
class SE(GatedLayer):
    """Weigh every channel by the sigmoid of a bottleneck of two 1 x 1 convolutions over the channels' means.

    Source: Hu et al. 2018, Squeeze-and-Excitation Networks, arxiv.org/abs/1709.01507, section 3.
    Differs: the bottleneck has biases, and at least min(8, channels) channels: the paper's networks have no narrower
        one.

    Args:
        reduction: channels divided by hidden channels.
        start: `identity` makes the gate 2 * sigmoid and its last convolution zero, so that gates start at one.
    Raises:
        ModelConfigError: the reduction is not positive.
    """

    def __init__(self, channels: int, reduction: Annotated[int, UP_TO_CHANNELS] = 16, start: Start = "random") -> None:
        super().__init__(start)
        self.mlp = Excite(channels, squeezed(channels, reduction))
        if start == "identity":
            zero_(self.mlp.fc2)

    def gate(self, x: Tensor) -> Tensor:
        return self.opened(self.mlp(x.mean((2, 3), keepdim=True)))


def channel_conv(channels: int, kernel_size: int | None, gamma: float, offset: float, start: Start) -> nn.Conv1d:
    """Build ECA's convolution along channels; the default kernel is |(log2(channels) + offset) / gamma|, made odd.

    Raises:
        ModelConfigError: an even kernel, or a gamma that is not positive.
    """
    require_positive("gamma", gamma)
    if kernel_size is None:
        truncated = int(abs(math.log2(channels) + offset) / gamma)
        kernel_size = truncated if truncated % 2 else truncated + 1
    require_odd("kernel_size", kernel_size)
    conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)
    if start == "identity":
        zero_(conv)
    return conv


@layer(same, "attention", example=())
class ECA(GatedLayer):
    """Weigh every channel by the sigmoid of a convolution over the means of neighbouring channels.

    Source: Wang et al. 2020, ECA-Net, arxiv.org/abs/1910.03151, sections 3.2 and 3.3.

    Args:
        kernel_size: number of channels that a channel's weight depends on, odd; computed from the width by default.
        gamma, offset: the paper's gamma and b, which give the default kernel.
        start: `identity` makes the gate 2 * sigmoid and the convolution zero, so that gates start at one.
    Raises:
        ModelConfigError: an even kernel, or a gamma that is not positive.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: Annotated[int | None, LARGE_KERNEL] = None,
        gamma: Annotated[float, FACTOR] = 2,
        offset: Annotated[float, Limits(-16, 16)] = 1,
        start: Start = "random",
    ) -> None:
        super().__init__(start)
        self.conv = channel_conv(channels, kernel_size, gamma, offset, start)

    def gate(self, x: Tensor) -> Tensor:
        return self.opened(self.conv(x.mean((2, 3))[:, None])).transpose(1, 2)[..., None]


def windows(cells: int, size: int, like: Tensor) -> Tensor:
    """Return a mask (cells, size): which positions lie in each window of adaptive pooling.

    Window i covers the fractions i / cells to (i + 1) / cells, including positions that are cut. There may be more
    cells than positions.
    """
    cell = torch.arange(cells, device=like.device)[:, None]
    position = torch.arange(size, device=like.device)[None]
    return ((position * cells < (cell + 1) * size) & ((position + 1) * cells > cell * size)).to(like.dtype)


@layer(same, "attention", example=())
class MLCA(GatedLayer):
    """Weigh every channel by a blend of two gates: a local one for each cell of a grid, and a global one.

    Source: Wan et al. 2023, Mixed local channel attention for object detection, Engineering Applications of Artificial
        Intelligence 123.
    Differs: pooling to cells and back is a product with matrices of ones and zeros. It equals adaptive average pooling
        and exports with dynamic sizes. As in the paper, the global mean is the mean of the cell means, and the local
        convolution runs over the channels of all cells as one sequence.

    Args:
        cells: the map is cut into cells x cells; they overlap if the map's size is no multiple of `cells`.
        local_weight: share of the local gates in the blend, in [0, 1].
        kernel_size, gamma, offset: of both convolutions, see ECA.
        start: `identity` makes both gates 2 * sigmoid and both convolutions zero, so that gates start at one.
    Raises:
        ModelConfigError: a share outside [0, 1], `cells` below 1 or more than a map has, an even kernel, or a gamma
            that is not positive.
    """

    def __init__(
        self,
        channels: int,
        cells: Annotated[int, CELLS] = 5,
        local_weight: Annotated[float, SHARE] = 0.5,
        kernel_size: Annotated[int | None, LARGE_KERNEL] = None,
        gamma: Annotated[float, FACTOR] = 2,
        offset: Annotated[float, Limits(-16, 16)] = 1,
        start: Start = "random",
    ) -> None:
        super().__init__(start)
        require_positive("cells", cells)
        if not 0 <= local_weight <= 1:
            raise ModelConfigError(
                f"local_weight is {local_weight}: expected a share from 0 (the whole map alone) to 1 (cells alone)"
            )
        self.cells, self.local_weight = cells, local_weight
        self.conv_local = channel_conv(channels, kernel_size, gamma, offset, start)
        self.conv_global = channel_conv(channels, kernel_size, gamma, offset, start)

    def gate(self, x: Tensor) -> Tensor:
        require_cells("cells", self.cells, x)
        down, across = windows(self.cells, x.shape[2], x), windows(self.cells, x.shape[3], x).transpose(0, 1)
        means = (down @ x) / down.sum(1, keepdim=True) @ across / across.sum(0)  # (B, C, cells, cells)
        sequence = means.flatten(2).transpose(1, 2)  # (B, cells * cells, C): the channels of one cell are adjacent
        local = (
            self.opened(self.conv_local(sequence.flatten(1)[:, None]))
            .reshape(sequence.shape)
            .transpose(1, 2)
            .reshape(means.shape)
        )
        everywhere = self.opened(self.conv_global(sequence.mean(1, keepdim=True))).transpose(1, 2)[..., None]
        blend = everywhere + self.local_weight * (local - everywhere)
        return spread(blend, x)


def spread(cells: Tensor, x: Tensor) -> Tensor:
    """Enlarge a map of cells (B, C, n, n) to the size of `x`; a pixel in several cells gets their mean."""
    down, across = (
        windows(x.shape[2], cells.shape[2], cells),
        windows(x.shape[3], cells.shape[3], cells).transpose(0, 1),
    )
    return (down / down.sum(1, keepdim=True)) @ cells @ (across / across.sum(0))
