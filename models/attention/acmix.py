"""ACmix: the sum of window attention and a convolution, both computed from the same projections.

Source: Pan et al. 2022, On the Integration of Self-Attention and Convolution, arxiv.org/abs/2111.14556.
Parts are named as in the authors' weights, which therefore load without mapping.
"""

from functools import lru_cache
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.attention.window_attention import graph_leaves_torch, wide, window_attention, window_attention_by_taps
from models.common import conv_like
from models.limits import CHANNELS, DILATION, KERNEL, STRIDE, UP_TO_CHANNELS
from models.parts import Start, is_channels_last
from models.registry import Channels, Scale, layer, only, rule
from utils.errors import ModelConfigError


@rule("in_channels")
def to_or_same(inputs: list[Channels], arguments: dict, scale: Scale) -> Channels:
    """One input; `out_channels` is width-scaled if given, and defaults to the input's."""
    arguments["in_channels"] = only(inputs)
    asked = arguments.get("out_channels")
    if asked is not None and asked < 1:
        raise ModelConfigError(f"out_channels is {asked}: expected a positive number")
    arguments["out_channels"] = arguments["in_channels"] if asked is None else scale.channels(asked)
    return arguments["out_channels"]


def coordinates(count: int, like: Tensor) -> Tensor:
    """Return `count` positions from -1 to 1, (count,); a single one is -1."""
    return (torch.arange(count, dtype=wide(like), device=like.device) * 2 / max(count - 1, 1) - 1).to(like.dtype)


@lru_cache(maxsize=256)
def kept_coordinates(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return `coordinates`, cached by size; made outside inference mode, so that training can use them too."""
    with torch.inference_mode(False), torch.no_grad():
        return coordinates(count, torch.empty(0, dtype=dtype, device=device))


def axis(count: int, like: Tensor) -> Tensor:
    """Return coordinates: cached in eager mode; computed in a recorded graph, where the size may be dynamic."""
    if torch.compiler.is_compiling() or graph_leaves_torch() or type(like) not in (Tensor, nn.Parameter):
        return coordinates(count, like)
    return kept_coordinates(count, like.dtype, like.device)


def shift_kernels(out_channels: int, kernel: int) -> Tensor:
    """Return weights (out_channels, kernel ** 2, kernel, kernel) that shift map t by tap t and sum all maps."""
    return torch.eye(kernel * kernel).view(1, kernel * kernel, kernel, kernel).repeat(out_channels, 1, 1, 1)


@layer(to_or_same, "attention", example=())
class ACmix(nn.Module):
    """Add window attention and a convolution of the same queries, keys and values.

    Args:
        out_channels: the input's width by default.
        kernel_att: side of the attention window, odd.
        heads: must divide `out_channels`.
        kernel_conv: kernel size of the convolution, odd.
        stride: of the output, which has ceil(H / stride) rows.
        dilation: cells between the taps of the attention window.
        residual: add the input to the output. Differs: the paper's module has none.
        start: `identity` starts with both rates at zero; needs `residual`.
    Raises:
        ModelConfigError: an even kernel, heads that do not divide the width, or a residual connection that does not
            fit.
    Source: Pan et al. 2022, arxiv.org/abs/2111.14556, section 4
    Differs: scores omit the terms that cancel in the softmax, so the position encoding is subtracted from the keys
        once. `conv_p.bias`, and `conv_p.weight` for a window of one cell, have no effect; they stay, frozen, for the
        names of published weights. The two linear steps of the convolution are merged where that is cheaper. Dilation
        applies to the attention window, odd maps can be strided, and maps smaller than the window are reflected
        repeatedly (the authors' code fails on all three).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: Annotated[int | None, CHANNELS] = None,
        kernel_att: Annotated[int, KERNEL] = 7,
        heads: Annotated[int, UP_TO_CHANNELS] = 4,
        kernel_conv: Annotated[int, KERNEL] = 3,
        stride: Annotated[int, STRIDE] = 1,
        dilation: Annotated[int, DILATION] = 1,
        residual: bool = False,
        start: Start = "random",
    ) -> None:
        super().__init__()
        out_channels = out_channels or in_channels
        check(out_channels, kernel_att, heads, kernel_conv, stride, dilation)
        if residual and (stride != 1 or in_channels != out_channels):
            raise ModelConfigError(
                f"residual: {in_channels} channels in, {out_channels} out at stride {stride}: "
                "it needs the same width and stride 1"
            )
        if start == "identity" and not residual:
            raise ModelConfigError(
                "start is 'identity', but there is no residual connection to pass the input on: add residual: true"
            )
        self.heads, self.depth = heads, out_channels // heads
        self.kernel_att, self.kernel_conv, self.stride, self.dilation = kernel_att, kernel_conv, stride, dilation
        self.residual = residual
        self.conv1 = nn.Conv2d(in_channels, out_channels, 1)
        self.conv2 = nn.Conv2d(in_channels, out_channels, 1)
        self.conv3 = nn.Conv2d(in_channels, out_channels, 1)
        self.conv_p = nn.Conv2d(2, self.depth, 1)
        assert self.conv_p.bias is not None
        self.conv_p.bias.requires_grad_(False)
        self.conv_p.weight.requires_grad_(kernel_att > 1)
        self.fc = nn.Conv2d(3 * heads, kernel_conv * kernel_conv, 1, bias=False)
        self.dep_conv = nn.Conv2d(
            kernel_conv * kernel_conv * self.depth,
            out_channels,
            kernel_conv,
            stride,
            kernel_conv // 2,
            groups=self.depth,
            bias=False,
        )
        self.dep_conv.weight = nn.Parameter(shift_kernels(out_channels, kernel_conv))
        rate = 0.0 if start == "identity" else 0.5
        self.rate1 = nn.Parameter(torch.full((1,), rate))
        self.rate2 = nn.Parameter(torch.full((1,), rate))

    @property
    def composes(self) -> bool:
        """Whether one merged convolution costs no more than the two linear steps of the convolution branch."""
        return 3 * self.heads <= 3 + self.kernel_conv**2

    def forward(self, x: Tensor) -> Tensor:
        projected = self.project(x)
        convolved = self.convolve(projected)
        gathered = self.attend(*self.split(projected))
        y = torch.addcmul(convolved, gathered, self.rate1.to(gathered.dtype))
        return x + y if self.residual else y

    def project(self, x: Tensor) -> Tensor:
        """Return queries, keys and values (B, D * 3 * heads, H, W), with D as the outer dimension."""
        if hasattr(self, "qkv"):
            return self.qkv(x)
        return functional.conv2d(x, *self.projection())

    def projection(self) -> tuple[Tensor, Tensor]:
        """Return weight and bias of one convolution that equals conv1, conv2 and conv3."""
        convs = (self.conv1, self.conv2, self.conv3)
        weight = torch.stack([conv.weight.view(self.heads, self.depth, -1).transpose(0, 1) for conv in convs], 1)
        biases = [conv.bias for conv in convs if conv.bias is not None]
        assert len(biases) == len(convs)
        bias = torch.stack([bias.view(self.heads, self.depth).transpose(0, 1) for bias in biases], 1)
        return weight.reshape(3 * self.heads * self.depth, -1, 1, 1), bias.flatten()

    def split(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys minus their position encoding, and values, each (B, heads, D, H, W)."""
        batch, _, height, width = projected.shape
        query, key, value = projected.view(batch, self.depth, 3, self.heads, height, width).transpose(1, 3).unbind(2)
        weight = self.conv_p.weight.view(self.depth, 2, 1, 1).to(key.dtype)
        position = weight[:, 0] * axis(width, weight) + weight[:, 1] * axis(height, weight)[:, None]
        return query, key - position, value

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return the attention branch's output, (B, out_channels, out height, out width)."""
        if graph_leaves_torch():
            gathered, _ = window_attention_by_taps(query, key, value, self.kernel_att, self.stride, self.dilation)
        else:
            keep = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
            gathered, _ = window_attention(query, key, value, self.kernel_att, self.stride, self.dilation, keep)
        return gathered.flatten(1, 2)

    def convolve(self, projected: Tensor) -> Tensor:
        """Return the convolution branch's output times its rate."""
        padding = self.kernel_conv // 2
        if hasattr(self, "mixed"):
            return self.mixed(projected)
        if self.composes:
            return functional.conv2d(projected, self.composed(), None, self.stride, padding, groups=self.depth)
        batch, _, height, width = projected.shape
        mixed = self.fc(projected.reshape(batch * self.depth, 3 * self.heads, height, width))
        mixed = mixed.reshape(batch, -1, height, width)
        if is_channels_last(projected):
            mixed = mixed.contiguous(memory_format=torch.channels_last)
        weight = self.dep_conv.weight * self.rate2
        return functional.conv2d(mixed, weight, None, self.stride, padding, groups=self.depth)

    def composed(self) -> Tensor:
        """Return fc, dep_conv and rate2 as one weight (out_channels, 3 * heads, kernel_conv, kernel_conv)."""
        taps = self.kernel_conv**2
        shifted = self.dep_conv.weight.flatten(2).transpose(1, 2)  # (O, taps, maps)
        return (
            (shifted @ (self.fc.weight.view(taps, -1) * self.rate2))
            .transpose(1, 2)
            .reshape(-1, 3 * self.heads, *[self.kernel_conv] * 2)
        )

    def fold(self) -> None:
        """Merge the projections, and the convolution branch where that is cheaper, for inference."""
        if hasattr(self, "qkv"):
            return
        weight, bias = self.projection()
        self.qkv = with_weight(nn.Conv2d(weight.shape[1], weight.shape[0], 1, device="meta"), weight, bias)
        del self.conv1, self.conv2, self.conv3
        if self.composes:
            mixed = conv_like(self.dep_conv, 3 * self.heads * self.depth, bias=False)
            self.mixed = with_weight(mixed, self.composed())
            del self.fc, self.dep_conv, self.rate2

    def explain(self, x: Tensor) -> dict[str, Tensor]:
        """Return "reach" (B, heads, out height, out width): mean attention distance of each head, in cells."""
        _, weights = window_attention_by_taps(*self.split(self.project(x)), self.kernel_att, self.stride, self.dilation)
        offset = torch.arange(self.kernel_att, device=x.device, dtype=weights.dtype) - self.kernel_att // 2
        distance = self.dilation * (offset[:, None] ** 2 + offset**2).sqrt().flatten()
        return {"reach": (weights * distance[:, None, None]).sum(2)}


def check(out_channels: int, kernel_att: int, heads: int, kernel_conv: int, stride: int, dilation: int) -> None:
    """Reject invalid settings.

    Raises:
        ModelConfigError: an even or non-positive kernel, stride, dilation, or heads that do not divide the width.
    """
    for name, kernel in (("kernel_att", kernel_att), ("kernel_conv", kernel_conv)):
        if kernel < 1 or kernel % 2 == 0:
            raise ModelConfigError(
                f"{name} is {kernel}: expected an odd, positive number; try {max(kernel, 0) // 2 * 2 + 1}"
            )
    for name, value in (("heads", heads), ("stride", stride), ("dilation", dilation)):
        if value < 1:
            raise ModelConfigError(f"{name} is {value}: expected a positive number")
    if out_channels % heads:
        fitting = [number for number in range(1, min(out_channels, 16) + 1) if out_channels % number == 0]
        raise ModelConfigError(
            f"heads is {heads}: does not divide {out_channels} channels; try one of {', '.join(map(str, fitting))}"
        )


def with_weight(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None = None) -> nn.Conv2d:
    """Set the weight and bias of a convolution that was built on the meta device."""
    conv.weight = nn.Parameter(weight.detach().contiguous())
    if bias is not None:
        conv.bias = nn.Parameter(bias.detach().contiguous())
    return conv
