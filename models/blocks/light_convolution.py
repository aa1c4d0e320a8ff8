"""Convolutions that do with less: half of the channels made cheaply from the other half, or a stride without loss."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.blocks.csp import CrossStage
from models.blocks.normalisation import allow_single_values
from models.common import Conv
from models.parts import require_odd, require_positive
from models.registry import layer, to
from utils.errors import ModelConfigError


def check_even(channels: int, where: str) -> None:
    """Reject an odd width.

    Args:
        where: what the width is of, such as "out_channels".
    Raises:
        ModelConfigError: it is odd.
    """
    if channels % 2:
        raise ModelConfigError(
            f"{where} is {channels}: this block halves it: expected an even number; try {channels + 1}"
        )


@layer(to, "convolution", example=(16, 3))
class GSConv(nn.Module):
    """Half of the channels by a convolution, half by a 5 x 5 depthwise convolution of those, the two shuffled.

    Source: Li et al. 2022, Slim-neck by GSConv, arxiv.org/abs/2206.02424
    Differs: the shuffle alternates the halves: channel 2i is the convolution's i-th, 2i + 1 the depthwise one made of
        it. A shuffle in another order gives the same function after the channels of the next layer are permuted alike.

    Args:
        kernel_size: of the first convolution, odd.
        stride: of the first convolution.
        activate: False leaves the activations out.
    Raises:
        ModelConfigError: an odd `out_channels` or even kernel.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 1, stride: int = 1, activate: bool = True
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
    """Two GSConvs, 1 x 1 and 3 x 3, added to the input, or to a 1 x 1 convolution of it where the widths differ.

    Source: Li et al. 2022, Slim-neck by GSConv, arxiv.org/abs/2206.02424
    Differs: the shortcut is the input itself where the widths agree.

    Args:
        expansion: width between the two over `out_channels`.
    Raises:
        ModelConfigError: an inner or outer width that is odd.
    """

    def __init__(self, in_channels: int, out_channels: int, expansion: float = 0.5) -> None:
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
    """Half the width through `repeats` GSBottlenecks, half past them.

    Source: Li et al. 2022, Slim-neck by GSConv, arxiv.org/abs/2206.02424
    Differs: it is C3 whose unit is GSBottleneck, built by that name.

    Args:
        expansion: width of each half over `out_channels`; it, and its half, must be even.
    Raises:
        ModelConfigError: a width that cannot be halved twice.
    """

    def __init__(self, in_channels: int, out_channels: int, repeats: int = 1, expansion: float = 0.5) -> None:
        super().__init__(in_channels, out_channels, repeats, False, 1, expansion, (1, 3), unit="GSBottleneck")
        allow_single_values(self)


@layer(to, "downsample", example=(16,))
class SPDConv(nn.Module):
    """Halve the size without loss: move each 2 x 2 cells into four times the channels, then convolve at stride 1.

    Source: Sunkara and Luo 2022, SPD-Conv, arxiv.org/abs/2208.03641
    Differs: odd sizes are padded by a row below and a column on the right of zeros. The order is torch's
        pixel_unshuffle: input channel c at row offset i, column offset j becomes channel 4c + 2i + j. The authors
        concatenate whole maps, channel c of offset (i, j) at (2j + i) * in_channels + c: weights of one order need
        their input channels permuted for the other.

    Args:
        kernel_size: of the convolution, on the halved map, odd.
    Raises:
        ModelConfigError: an even kernel.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3) -> None:
        super().__init__()
        require_odd("kernel_size", kernel_size)
        self.conv = Conv(4 * in_channels, out_channels, kernel_size)
        allow_single_values(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(space_to_depth(x, 2))


def up_to_multiple(size_hw: tuple[int, int] | torch.Size, factor: int) -> tuple[int, int, int, int]:
    """Return the padding for functional.pad that extends a map below and right to multiples of `factor`."""
    height, width = size_hw  # written without a remainder, whose conditions slow symbolic shapes down beyond use
    return 0, (width + factor - 1) // factor * factor - width, 0, (height + factor - 1) // factor * factor - height


def space_to_depth(x: Tensor, factor: int) -> Tensor:
    """Return pixel_unshuffle of a map, padded by zeros below and on the right to a multiple of `factor`.

    Returns:
        (B, C * factor ** 2, ceil(H / factor), ceil(W / factor)).
    """
    return functional.pixel_unshuffle(functional.pad(x, up_to_multiple(x.shape[2:], factor)), factor)


def cropped(x: Tensor, size_hw: tuple[int, int] | torch.Size) -> Tensor:
    """Return the upper left part of a map, of a size that it is known to have at least."""
    if not torch.compiler.is_compiling():
        return x[:, :, : size_hw[0], : size_hw[1]]
    rows, columns = (
        torch.arange(size, device=x.device) for size in size_hw
    )  # a slice would ask whether it reaches beyond open sizes
    return x.index_select(2, rows).index_select(3, columns)
