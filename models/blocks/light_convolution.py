"""Cheap convolutions: GSConv computes half of its channels from the others; SPDConv halves the size without loss."""

from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.blocks.normalisation import allow_single_values
from models.building import build_inner
from models.common import Conv, CrossStage
from models.limits import FACTOR, KERNEL, STRIDE
from models.parts import require_odd, require_positive
from models.registry import layer, to
from utils.errors import ModelConfigError


def check_even(channels: int, where: str) -> None:
    """Reject an odd width.

    Args:
        where: name of the width for the message, such as "out_channels".
    Raises:
        ModelConfigError: it is odd.
    """
    if channels % 2:
        raise ModelConfigError(
            f"{where} is {channels}: this block halves it: expected an even number; try {channels + 1}"
        )


@layer(to, "convolution", example=(16, 3))
class GSConv(nn.Module):
    """Compute half of the channels by a convolution, the others from those by a 5 x 5 depthwise one; shuffle both.

    Source: Li et al. 2022, Slim-neck by GSConv, arxiv.org/abs/2206.02424
    Differs: the shuffle alternates the halves: channel 2i comes from the convolution's channel i, and channel 2i + 1
        from the depthwise convolution of it. Another order is equivalent if the next layer's input channels are
        permuted accordingly.

    Args:
        kernel_size: of the first convolution, odd.
        stride: of the first convolution.
        activate: False leaves the activations out.
    Raises:
        ModelConfigError: an odd `out_channels` or even kernel.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Annotated[int, KERNEL] = 1,
        stride: Annotated[int, STRIDE] = 1,
        activate: bool = True,
    ) -> None:
        super().__init__()
        check_even(out_channels, "out_channels")
        require_odd("kernel_size", kernel_size)
        require_positive("stride", stride)
        half = out_channels // 2
        self.dense = Conv(in_channels, half, kernel_size, stride, activate=activate)
        self.cheap = Conv(half, half, 5, groups=half, activate=activate)
        allow_single_values(self)

    def forward(self, x: Tensor) -> Tensor:
        dense = self.dense(x)
        return torch.stack((dense, self.cheap(dense)), 2).flatten(1, 2)


@layer(to, example=(16,))
class GSBottleneck(nn.Module):
    """Two GSConvs, 1 x 1 and 3 x 3, added to the input, or to its 1 x 1 convolution if the widths differ.

    Source: Li et al. 2022, Slim-neck by GSConv, arxiv.org/abs/2206.02424
    Differs: the shortcut is the input itself if the widths agree.

    Args:
        expansion: width between the two GSConvs divided by `out_channels`.
    Raises:
        ModelConfigError: an odd inner or outer width.
    """

    def __init__(self, in_channels: int, out_channels: int, expansion: Annotated[float, FACTOR] = 0.5) -> None:
        super().__init__()
        hidden = int(out_channels * expansion)
        require_positive("expansion", expansion)
        check_even(hidden, f"the inner width, {expansion} of out_channels {out_channels},")
        self.narrow = GSConv(in_channels, hidden, 1)
        self.widen = GSConv(hidden, out_channels, 3, activate=False)
        self.shortcut = (
            nn.Identity() if in_channels == out_channels else Conv(in_channels, out_channels, activate=False)
        )
        allow_single_values(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.widen(self.narrow(x))


@layer(to, repeats="repeats", example=(16,))
class VoVGSCSP(CrossStage):
    """Pass half the width through `repeats` GSBottlenecks; the other half skips them.

    Source: Li et al. 2022, Slim-neck by GSConv, arxiv.org/abs/2206.02424
    Differs: it is C3 with `unit: GSBottleneck`.

    Args:
        expansion: width of each half divided by `out_channels`; this width must be a multiple of 4.
    Raises:
        ModelConfigError: a width that is no multiple of 4.
    """

    def __init__(
        self, in_channels: int, out_channels: int, repeats: int = 1, expansion: Annotated[float, FACTOR] = 0.5
    ) -> None:
        def bottleneck(width: int) -> nn.Module:
            return build_inner("GSBottleneck", width, "unit")

        super().__init__(in_channels, out_channels, repeats, expansion, bottleneck)
        allow_single_values(self)


@layer(to, "downsample", example=(16,))
class SPDConv(nn.Module):
    """Halve the size without loss: move each 2 x 2 cells into four times the channels, then convolve at stride 1.

    Source: Sunkara and Luo 2022, SPD-Conv, arxiv.org/abs/2208.03641
    Differs: odd sizes are padded with zeros below and on the right. Channels are in the order of torch's
        pixel_unshuffle: input channel c at row offset i, column offset j becomes channel 4c + 2i + j. The authors'
        order is (2j + i) * in_channels + c; weights need their input channels permuted to change between the two.

    Args:
        kernel_size: of the convolution on the halved map, odd.
    Raises:
        ModelConfigError: an even kernel.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Annotated[int, KERNEL] = 3) -> None:
        super().__init__()
        require_odd("kernel_size", kernel_size)
        self.conv = Conv(4 * in_channels, out_channels, kernel_size)
        allow_single_values(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(space_to_depth(x, 2))


def up_to_multiple(size_hw: tuple[int, int] | torch.Size, factor: int) -> tuple[int, int, int, int]:
    """Return functional.pad's argument that extends a map below and on the right to multiples of `factor`."""
    height, width = size_hw  # no remainder (%) below: its conditions make symbolic shapes unusably slow
    return 0, (width + factor - 1) // factor * factor - width, 0, (height + factor - 1) // factor * factor - height


def space_to_depth(x: Tensor, factor: int) -> Tensor:
    """Return pixel_unshuffle of a map, padded by zeros below and on the right to a multiple of `factor`.

    Returns:
        (B, C * factor ** 2, ceil(H / factor), ceil(W / factor)).
    """
    return functional.pixel_unshuffle(functional.pad(x, up_to_multiple(x.shape[2:], factor)), factor)


def cropped(x: Tensor, size_hw: tuple[int, int] | torch.Size) -> Tensor:
    """Return the upper left part of a map, which must have at least the size `size_hw`."""
    if not torch.compiler.is_compiling():
        return x[:, :, : size_hw[0], : size_hw[1]]
    rows, columns = (
        torch.arange(size, device=x.device) for size in size_hw
    )  # a slice would compare itself with dynamic sizes
    return x.index_select(2, rows).index_select(3, columns)
