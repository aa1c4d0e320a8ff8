"""Inverted bottlenecks: narrow at both ends, wide and depthwise inside, with a gate or attention."""

from typing import Annotated

from torch import Tensor, nn
from torch.nn import functional

from models.attention.acmix import to_or_same
from models.blocks.light_convolution import cropped, up_to_multiple
from models.blocks.normalisation import allow_single_values, block_norm, fold_batchnorm_ahead
from models.common import Conv
from models.limits import CELLS, DROPPED, FACTOR, LARGE_KERNEL, SHARE, STRIDE, UP_TO_CHANNELS
from models.parts import DropPath, Start, require_divisor, require_odd, require_positive, zero_
from models.registry import layer
from utils.errors import ModelConfigError

HEAD_CHANNELS = 64
"""Maximum number of channels of an attention head of iRMB, by default."""


class SqueezeExcite(nn.Module):
    """Weigh every channel by the sigmoid of two 1 x 1 convolutions of the map's mean, with SiLU between them."""

    def __init__(self, channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, hidden_channels, 1)
        self.expand = nn.Conv2d(hidden_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.expand(functional.silu(self.reduce(x.mean((2, 3), keepdim=True)))).sigmoid()


def squeeze_excite(channels: int, in_channels: int, squeeze: float) -> nn.Module:
    """Build the gate of a block of inner width `channels`; an identity if `squeeze` is 0.

    Raises:
        ModelConfigError: a negative ratio.
    """
    if squeeze < 0:
        raise ModelConfigError(f"squeeze is {squeeze}: expected a ratio such as 0.25, or 0 for no gate")
    return SqueezeExcite(channels, max(1, int(in_channels * squeeze))) if squeeze else nn.Identity()


def check_start(start: str, passes_on: bool, why: str) -> None:
    """Reject an identity start without a residual connection.

    Args:
        passes_on: whether the block has a residual connection.
        why: reason for its absence, for the message.
    Raises:
        ModelConfigError: `start` is identity without a residual connection.
    """
    if start == "identity" and not passes_on:
        raise ModelConfigError(
            f"start is 'identity', but there is no residual connection to pass the input on: {why}: leave it out"
        )


@layer(to_or_same, example=(16,))
class MBConv(nn.Module):
    """Widen by 1 x 1, convolve depthwise, gate, narrow by 1 x 1; add the input if width and size agree.

    Source: Sandler et al. 2018, MobileNetV2, arxiv.org/abs/1801.04381; Tan and Le 2019, EfficientNet,
        arxiv.org/abs/1905.11946
    Differs: expansion 4, where EfficientNet has 1 and 6; the activation is the network's (SiLU by default), the gate's
        is SiLU; normalisation has eps 1e-3 and momentum 0.03 as in Conv; padding is symmetric, also at stride 2.

    Args:
        out_channels: the input's width by default.
        kernel_size: of the depthwise convolution, odd.
        expansion: inner width divided by `in_channels`; 1 leaves out the widening convolution.
        squeeze: hidden width of the gate (Squeeze-and-Excitation) divided by `in_channels`; 0 leaves out the gate.
        stride: of the depthwise convolution.
        drop_path: probability that an image's branch is left out in training.
        start: `identity` starts with zeros in the last normalisation; needs the residual connection.
    Raises:
        ModelConfigError: an even kernel, a number that is not positive, or an identity start without residual
            connection.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        kernel_size: Annotated[int, LARGE_KERNEL] = 3,
        expansion: Annotated[float, FACTOR] = 4.0,
        squeeze: Annotated[float, SHARE] = 0.25,
        stride: Annotated[int, STRIDE] = 1,
        drop_path: Annotated[float, DROPPED] = 0.0,
        start: Start = "random",
    ) -> None:
        super().__init__()
        out_channels = out_channels or in_channels
        require_odd("kernel_size", kernel_size)
        require_positive("expansion", expansion)
        require_positive("stride", stride)
        self.add = in_channels == out_channels and stride == 1
        check_start(start, self.add, f"{in_channels} channels in, {out_channels} out at stride {stride}")
        hidden = max(1, int(in_channels * expansion))
        self.widen = Conv(in_channels, hidden) if expansion != 1 else nn.Identity()
        self.depthwise = Conv(hidden, hidden, kernel_size, stride, groups=hidden)
        self.gate = squeeze_excite(hidden, in_channels, squeeze)
        self.narrow = Conv(hidden, out_channels, activate=False)
        self.drop_path = DropPath(drop_path)
        allow_single_values(self)
        if start == "identity":
            zero_(self.narrow.bn)

    def forward(self, x: Tensor) -> Tensor:
        y = self.narrow(self.gate(self.depthwise(self.widen(x))))
        return x + self.drop_path(y) if self.add else y


def fitting_head_channels(channels: int) -> int:
    """Return the largest divisor of a width that is at most HEAD_CHANNELS."""
    return next(size for size in range(min(channels, HEAD_CHANNELS), 0, -1) if channels % size == 0)


@layer(to_or_same, name="iRMB", example=(16,))
class IRMB(nn.Module):
    """Widen by window attention, convolve depthwise, gate, narrow; add the input if the widths agree.

    Source: Zhang et al. 2023, EMO, arxiv.org/abs/2301.01146
    Differs: the softmax leaves out padded cells; the cells of a window are adjacent, where the authors' code takes
        every n-th cell of the map; narrow widths get narrower heads by default; batch normalisation before the
        attention, SiLU for the values.

    Args:
        out_channels: the input's width by default.
        expansion: width of the values and of all later steps before the last convolution, divided by `in_channels`.
        head_channels: channels of one head's queries and keys, a divisor of `in_channels`; by default the largest up to
            64.
        window: side of the square windows; maps are padded to a multiple of it, and attention ignores the padded cells.
        kernel_size: of the depthwise convolution, odd.
        squeeze: hidden width of the gate (Squeeze-and-Excitation) divided by `in_channels`; 0 leaves out the gate.
        drop_path: probability that an image's branch is left out in training.
        start: `identity` starts with zeros in the last convolution; needs the residual connection.
    Raises:
        ModelConfigError: heads that do not divide a width, an even kernel, or an identity start without residual
            connection.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        expansion: Annotated[float, FACTOR] = 2.0,
        head_channels: Annotated[int | None, UP_TO_CHANNELS] = None,
        window: Annotated[int, CELLS] = 7,
        kernel_size: Annotated[int, LARGE_KERNEL] = 3,
        squeeze: Annotated[float, SHARE] = 0.25,
        drop_path: Annotated[float, DROPPED] = 0.0,
        start: Start = "random",
    ) -> None:
        super().__init__()
        out_channels = out_channels or in_channels
        require_odd("kernel_size", kernel_size)
        require_positive("expansion", expansion)
        require_positive("window", window)
        self.add = in_channels == out_channels
        check_start(start, self.add, f"{in_channels} channels in, {out_channels} out")
        hidden = max(1, int(in_channels * expansion))
        self.heads, self.window = count_heads(in_channels, hidden, head_channels), window
        self.norm: nn.Module = block_norm(in_channels)
        self.query_key = nn.Conv2d(in_channels, 2 * in_channels, 1, bias=False)
        self.value = nn.Conv2d(in_channels, hidden, 1, bias=False)
        self.local = Conv(hidden, hidden, kernel_size, groups=hidden)
        self.gate = squeeze_excite(hidden, in_channels, squeeze)
        self.proj = nn.Conv2d(hidden, out_channels, 1, bias=False)
        self.drop_path = DropPath(drop_path)
        allow_single_values(self)
        if start == "identity":
            zero_(self.proj)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        y = self.attend(self.query_key(normed), functional.silu(self.value(normed)))
        y = self.proj(y + self.gate(self.local(y)))
        return x + self.drop_path(y) if self.add else y

    def attend(self, query_key: Tensor, values: Tensor) -> Tensor:
        """Return the attention output of every cell over its window's values, (B, hidden, H, W).

        Args:
            query_key: (B, 2 * in_channels, H, W), the queries' channels first.
            values: (B, hidden, H, W).
        """
        height, width = values.shape[2:]
        beyond = up_to_multiple((height, width), self.window)
        depth, value_depth = self.query_key.in_channels // self.heads, self.value.out_channels // self.heads
        queries, keys = (
            self.windows(functional.pad(part, beyond), self.heads, depth) for part in query_key.chunk(2, 1)
        )
        hidden_keys = self.windows(
            functional.pad(values.new_zeros(1, 1, height, width), beyond, value=float("-inf")), 1, 1
        )
        scores = (queries * depth**-0.5) @ keys.transpose(-1, -2) + hidden_keys.transpose(-1, -2)
        padded = self.windows(functional.pad(values, beyond), self.heads, value_depth)
        gathered = scores.softmax(-1).to(values.dtype) @ padded
        return cropped(self.whole(gathered), (height, width))

    def windows(self, x: Tensor, heads: int, depth: int) -> Tensor:
        """Cut a padded map (B, heads * depth, H, W) into (B, window rows, window columns, heads, cells, depth)."""
        cells = functional.pixel_unshuffle(x, self.window)  # (B, heads * D * cells, rows, columns)
        return cells.view(-1, heads, depth, self.window**2, *cells.shape[2:]).permute(0, 4, 5, 1, 3, 2)

    def whole(self, windows: Tensor) -> Tensor:
        """Join windows (B, rows, columns, heads, cells, D) to a map (B, heads * D, H, W)."""
        return functional.pixel_shuffle(windows.permute(0, 3, 5, 4, 1, 2).flatten(1, 3), self.window)

    def fold(self) -> None:
        """Merge the normalisation into the convolutions after it, for inference."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.query_key, self.value = (
                fold_batchnorm_ahead(self.norm, conv) for conv in (self.query_key, self.value)
            )
            self.norm = nn.Identity()


def count_heads(in_channels: int, hidden: int, head_channels: int | None) -> int:
    """Return the number of attention heads.

    Raises:
        ModelConfigError: `head_channels` does not divide the width, or the heads do not divide the values' width.
    """
    if head_channels is None:
        head_channels = fitting_head_channels(in_channels)
    require_divisor("head_channels", head_channels, in_channels)
    heads = in_channels // head_channels
    if hidden % heads:
        raise ModelConfigError(
            f"expansion makes {hidden} channels of {in_channels}: they do not split into {heads} heads: "
            f"try a whole expansion, or head_channels {in_channels}"
        )
    return heads
