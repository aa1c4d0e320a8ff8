"""Small parts and checks that blocks of all kinds share: normalisations, a per-pixel MLP, stochastic depth, `start`."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.registry import Channels, Scale, only, rule
from utils.errors import ModelConfigError

Start = Literal["random", "identity"]
"""Initial state of a module: randomly initialised, or the identity."""


def is_channels_last(x: Tensor) -> bool:
    """Tell whether a map is channels-last in memory and not contiguous."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


class LayerNorm2d(nn.LayerNorm):
    """Layer normalisation over the channels of every pixel of a (B, C, H, W) map, eps 1e-5."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that uses running statistics to train on one value per channel, which has no variance."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.shape[0] * x.shape[2] * x.shape[3] == 1:
            return functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


class DepthwiseConv2d(nn.Conv2d):
    """Depthwise convolution of odd kernel that keeps the size, without bias.

    In training on a CPU, bf16 maps are convolved in float32: oneDNN's bf16 backward of channels-last maps with 5 x 5
        and larger kernels takes up to four times as long.
    """

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.dtype is torch.bfloat16 and x.device.type == "cpu" and self.kernel_size[0] > 3:
            with torch.autocast("cpu", enabled=False):
                return self._conv_forward(x.float(), self.weight.float(), None).to(x.dtype)
        return super().forward(x)


def zero_(module: nn.Module) -> None:
    """Set a module's own parameters to zero; leave those of its children."""
    for parameter in module.parameters(recurse=False):
        nn.init.zeros_(parameter)


class MLP(nn.Module):
    """Two 1 x 1 convolutions with GELU between them, per pixel."""

    def __init__(self, channels: int, hidden_channels: int, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden_channels, 1)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(hidden_channels, channels, 1)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class DropPath(nn.Module):
    """Drop the whole residual branch of random samples in training (stochastic depth)."""

    def __init__(self, probability: float = 0.0) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0:
            return x
        kept = 1 - self.probability
        return x * x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(kept).div_(kept)


@rule("in_channels")
def same_as_asked(inputs: list[Channels], arguments: dict, scale: Scale) -> Channels:
    """One input; `out_channels` may be left out or must be the input's: a residual block keeps its width."""
    arguments["in_channels"] = only(inputs)
    asked = arguments.get("out_channels")
    if asked is not None and arguments["in_channels"] not in (asked, scale.channels(asked)):
        raise ModelConfigError(
            f"out_channels {asked} after {arguments['in_channels']} channels: a residual block keeps its width; "
            "leave it out"
        )
    arguments["out_channels"] = arguments["in_channels"]
    return arguments["in_channels"]


def require_positive(name: str, value: float) -> None:
    """Reject a setting that is zero or less.

    Raises:
        ModelConfigError: `value` is not positive.
    """
    if value <= 0:
        raise ModelConfigError(f"{name} is {value}: expected a positive number")


def require_odd(name: str, kernel: int) -> None:
    """Reject an even kernel, which has no centre and would not keep a map's size.

    Raises:
        ModelConfigError: the kernel is even, or not positive.
    """
    if kernel < 1 or kernel % 2 == 0:
        raise ModelConfigError(f"{name} is {kernel}: expected an odd positive number such as {max(kernel, 2) + 1}")


def require_divisor(name: str, value: int, channels: int, least: int = 1) -> None:
    """Reject a number of groups, heads or the like that does not divide the channels.

    Args:
        least: minimum number of channels of a part.
    Raises:
        ModelConfigError: `value` does not fit; the message lists numbers that do.
    """
    if value < 1 or channels % value:
        wrong = f"does not divide {channels} channels"
    elif channels // value < least:
        wrong = f"leaves fewer than {least} of {channels} channels each"
    else:
        return
    fitting = [number for number in range(1, min(channels // least, 32) + 1) if channels % number == 0]
    remedy = f"try one of {', '.join(map(str, fitting))}" if fitting else "use another layer at this width"
    raise ModelConfigError(f"{name} is {value}: {wrong}; {remedy}")


def require_cells(name: str, count: int, x: Tensor) -> None:
    """Reject more cells along a side than a map has; checked on meta tensors when a network is built.

    Such a trace uses a small image, so a map may have four times the cells, and up to 8 cells are always accepted.

    Raises:
        ModelConfigError: names the size of the map.
    """
    if x.is_meta and count > max(4 * min(x.shape[2:]), 8):
        raise ModelConfigError(
            f"{name} is {count}: the map is {x.shape[2]} x {x.shape[3]}: expected fewer cells than a map has, such as 5"
        )
