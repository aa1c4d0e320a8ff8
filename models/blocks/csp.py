"""Blocks of the YOLOv8 and YOLO11 networks, each with its channel rule.

Source: the layers' published structure, built here from its description; He et al. 2014, SPP, arxiv.org/abs/1406.4729;
Wang et al. 2019, CSPNet, arxiv.org/abs/1911.11929; Vaswani et al. 2017, arxiv.org/abs/1706.03762 (Attention).
Parts are named as in the original weights (cv1, cv2, m, attn, ffn), which therefore load without mapping.
"""

import math
from collections.abc import Callable
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from models.building import InnerLayer, build_inner, unit_builder
from models.common import Conv, CrossStage, fix_activation
from models.limits import DILATION, FACTOR, KERNEL, LARGE_KERNEL, STRIDE, UP_TO_CHANNELS
from models.registry import Channels, Scale, layer, rule, to
from utils.errors import ModelConfigError


@layer(to, "convolution", example=(16, 3))
class DWConv(Conv):
    """Conv whose number of groups is the greatest common divisor of its input and output widths.

    Source: Howard et al. 2017, MobileNets, arxiv.org/abs/1704.04861
    Differs: the number of groups, and no 1 x 1 convolution follows.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Annotated[int, LARGE_KERNEL] = 1,
        stride: Annotated[int, STRIDE] = 1,
        dilation: Annotated[int, DILATION] = 1,
        activate: bool = True,
    ) -> None:
        groups = math.gcd(in_channels, out_channels)
        super().__init__(
            in_channels, out_channels, kernel_size, stride, groups=groups, dilation=dilation, activate=activate
        )


@layer(to, example=(16,))
class Bottleneck(nn.Module):
    """Two convolutions, added to the input where the widths agree.

    Source: He et al. 2015, arxiv.org/abs/1512.03385
    Differs: two convolutions, in CSP blocks both 3 x 3, in place of three; the sum is not activated.

    Args:
        attention: a layer at the end of the branch, before the sum: its registered name, or [name, arguments …].
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        shortcut: bool = True,
        groups: Annotated[int, UP_TO_CHANNELS] = 1,
        kernel_sizes: Annotated[tuple[int, int], KERNEL] = (3, 3),
        expansion: Annotated[float, FACTOR] = 0.5,
        attention: InnerLayer | None = None,
    ) -> None:
        super().__init__()
        hidden = int(out_channels * expansion)
        self.cv1 = Conv(in_channels, hidden, kernel_sizes[0])
        self.cv2 = Conv(hidden, out_channels, kernel_sizes[1], groups=groups)
        self.attention = None if attention is None else build_inner(attention, out_channels, "attention")
        self.add = shortcut and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv2(self.cv1(x))
        if self.attention is not None:
            y = self.attention(y)
        return x + y if self.add else y


class StageConcat(nn.Module):
    """Shell of C2f and C3k2: split a 1 x 1 convolution in halves, chain units after the second, concatenate all stages.

    Args:
        unit: function that builds one unit of the chain for a number of channels; the unit must keep that number.
    """

    def __init__(
        self, in_channels: int, out_channels: int, repeats: int, expansion: float, unit: Callable[[int], nn.Module]
    ) -> None:
        super().__init__()
        hidden = int(out_channels * expansion)
        self.cv1 = Conv(in_channels, 2 * hidden)
        self.cv2 = Conv((2 + repeats) * hidden, out_channels)
        self.m = nn.ModuleList(unit(hidden) for _ in range(repeats))

    def forward(self, x: Tensor) -> Tensor:
        stages = list(self.cv1(x).chunk(2, 1))
        for unit in self.m:
            stages.append(unit(stages[-1]))
        return self.cv2(torch.cat(stages, 1))


@layer(to, repeats="repeats", example=(16,))
class C2f(StageConcat):
    """YOLOv8's block: a chain of full-width Bottlenecks whose stages are all concatenated.

    Source: Wang et al. 2019, CSPNet, arxiv.org/abs/1911.11929; Wang, Liao, Yeh 2022, ELAN, arxiv.org/abs/2211.04800;
        the published structure of YOLOv8

    Args:
        unit: a layer in place of each Bottleneck: its registered name, or [name, arguments …].
        attention: a layer at the end of each Bottleneck's branch, before its sum; same form as `unit`.
    Raises:
        ModelConfigError: the layer cannot be built, or `unit` is given together with an argument of the Bottlenecks.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        repeats: int = 1,
        shortcut: bool = False,
        groups: Annotated[int, UP_TO_CHANNELS] = 1,
        expansion: Annotated[float, FACTOR] = 0.5,
        unit: InnerLayer | None = None,
        attention: InnerLayer | None = None,
    ) -> None:
        def bottleneck(width: int) -> nn.Module:
            return Bottleneck(width, width, shortcut, groups, expansion=1.0, attention=attention)

        build = unit_builder(unit, bottleneck, attention, groups, shortcut=shortcut)
        super().__init__(in_channels, out_channels, repeats, expansion, build)


@layer(to, repeats="repeats", example=(16,))
class C3(CrossStage):
    """Cross-stage-partial block of `repeats` Bottlenecks, 1 x 1 then 3 x 3.

    Source: Wang et al. 2019, CSPNet, arxiv.org/abs/1911.11929
    Differs: no convolution between the chain and the concatenation.

    Args:
        unit, attention: see C2f; `shortcut` applies to Bottlenecks only.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        repeats: int = 1,
        shortcut: bool = True,
        groups: Annotated[int, UP_TO_CHANNELS] = 1,
        expansion: Annotated[float, FACTOR] = 0.5,
        unit: InnerLayer | None = None,
        attention: InnerLayer | None = None,
    ) -> None:
        def bottleneck(width: int) -> nn.Module:
            return Bottleneck(width, width, shortcut, groups, (1, 3), expansion=1.0, attention=attention)

        build = unit_builder(unit, bottleneck, attention, groups)
        super().__init__(in_channels, out_channels, repeats, expansion, build)


@layer(to, repeats="repeats", example=(16,))
class C3k(CrossStage):
    """C3 whose Bottlenecks have two convolutions of `kernel_size`.

    Source: Wang et al. 2019, CSPNet, arxiv.org/abs/1911.11929; the published structure of YOLO11

    Args:
        attention: see C2f.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        repeats: int = 1,
        shortcut: bool = True,
        groups: Annotated[int, UP_TO_CHANNELS] = 1,
        expansion: Annotated[float, FACTOR] = 0.5,
        kernel_size: Annotated[int, KERNEL] = 3,
        attention: InnerLayer | None = None,
    ) -> None:
        def bottleneck(width: int) -> nn.Module:
            kernels = (kernel_size, kernel_size)
            return Bottleneck(width, width, shortcut, groups, kernels, expansion=1.0, attention=attention)

        super().__init__(in_channels, out_channels, repeats, expansion, bottleneck)


SCALE_LETTERS = "nsmlx"
"""Scales of the published networks."""


@rule("in_channels")
def to_with_c3k(inputs: list[Channels], arguments: dict[str, Any], scale: Scale) -> Channels:
    """As `to`; a string `c3k` lists the scales at which it is true, and is replaced by true or false."""
    letters = arguments.get("c3k")
    if isinstance(letters, str):
        if scale.letter is None:
            raise ModelConfigError(f"c3k '{letters}' names scales, and this network has none: write True or False")
        if not set(letters) <= set(SCALE_LETTERS):
            raise ModelConfigError(
                f"c3k is '{letters}': expected true, false, or some of the letters {SCALE_LETTERS}, such as mlx"
            )
        arguments["c3k"] = scale.letter in letters
    return to.apply(inputs, arguments, scale)


@layer(to_with_c3k, repeats="repeats", example=(16,))
class C3k2(StageConcat):
    """YOLO11's block: C2f whose units are half-width Bottlenecks, or C3k of two Bottlenecks.

    Source: Wang et al. 2019, CSPNet, arxiv.org/abs/1911.11929; Wang, Liao, Yeh 2022, ELAN, arxiv.org/abs/2211.04800;
        the published structure of YOLO11

    Args:
        c3k: whether the units are C3k; in a yaml with scales also the letters of the scales with C3k, such as "mlx".
        unit, attention: see C2f; `shortcut` applies to Bottlenecks only.
    Raises:
        ModelConfigError: see C2f; or both `c3k` and `unit` are given.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        repeats: int = 1,
        c3k: bool | str = False,
        expansion: Annotated[float, FACTOR] = 0.5,
        groups: Annotated[int, UP_TO_CHANNELS] = 1,
        shortcut: bool = True,
        unit: InnerLayer | None = None,
        attention: InnerLayer | None = None,
    ) -> None:
        def bottlenecks(width: int) -> nn.Module:
            if c3k:
                return C3k(width, width, 2, shortcut, groups, attention=attention)
            return Bottleneck(width, width, shortcut, groups, attention=attention)

        build = unit_builder(unit, bottlenecks, attention, groups, c3k=c3k)
        super().__init__(in_channels, out_channels, repeats, expansion, build)


@layer(to, "pooling", example=(16, 5))
class SPPF(nn.Module):
    """Spatial pyramid pooling: three max pools in a chain, all stages concatenated.

    Source: He et al. 2014, SPP, arxiv.org/abs/1406.4729
    Differs: a chain of pools of one size, which equals parallel pools of growing sizes.

    Args:
        kernel_size: side of the pooling window.
        activation: of both convolutions, in place of the network's.
    Raises:
        ModelConfigError: no such activation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Annotated[int, KERNEL] = 5,
        activation: str | None = None,
    ) -> None:
        super().__init__()
        hidden = in_channels // 2
        self.cv1 = Conv(in_channels, hidden)
        self.cv2 = Conv(4 * hidden, out_channels)
        self.pool = nn.MaxPool2d(kernel_size, stride=1, padding=kernel_size // 2)
        fix_activation(self, activation)

    def forward(self, x: Tensor) -> Tensor:
        stages = [self.cv1(x)]
        for _ in range(3):
            stages.append(self.pool(stages[-1]))
        return self.cv2(torch.cat(stages, 1))


@layer(to, "pooling", example=(16, 5))
class SimSPPF(SPPF):
    """SPPF with ReLU, whatever the network's activation.

    Source: Li et al. 2022, YOLOv6, arxiv.org/abs/2209.02976
    Differs: it is SPPF with `activation: ReLU`, nothing else.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Annotated[int, KERNEL] = 5) -> None:
        super().__init__(in_channels, out_channels, kernel_size, activation="ReLU")


HEAD_CHANNELS = 64
"""Channels of one attention head of C2PSA."""


class Attention(nn.Module):
    """Multi-head self-attention over all cells of a map; a depthwise convolution of the values encodes positions.

    Args:
        key_ratio: width of queries and keys divided by the width of the values.
    Raises:
        ModelConfigError: the heads do not divide the channels.
    """

    def __init__(self, channels: int, heads: int, key_ratio: float = 0.5) -> None:
        super().__init__()
        if channels % heads:
            raise ModelConfigError(
                f"{channels} channels do not split into {heads} attention heads: "
                f"choose a width that is a multiple of {heads}"
            )
        self.heads, self.value_channels = heads, channels // heads
        self.key_channels = int(self.value_channels * key_ratio)
        self.qkv = Conv(channels, channels + 2 * heads * self.key_channels, activate=False)
        self.proj = Conv(channels, channels, activate=False)
        self.pe = Conv(channels, channels, 3, groups=channels, activate=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        parts = (self.key_channels, self.key_channels, self.value_channels)
        queries, keys, values = self.qkv(x).view(batch, self.heads, sum(parts), height * width).split(parts, 2)
        weights = ((queries * self.key_channels**-0.5).transpose(2, 3) @ keys).softmax(
            3
        )  # (B, heads, N queries, N keys)
        mixed = (values @ weights.transpose(2, 3)).reshape(batch, channels, height, width)
        return self.proj(mixed + self.pe(values.reshape(batch, channels, height, width)))


class PSABlock(nn.Module):
    """Attention, then two 1 x 1 convolutions, each with a residual connection; no layer normalisation."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.attn = Attention(channels, heads)
        self.ffn = nn.Sequential(Conv(channels, 2 * channels), Conv(2 * channels, channels, activate=False))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return x + self.ffn(x)


@rule("in_channels")
def to_same(inputs: list[Channels], arguments: dict[str, Any], scale: Scale) -> Channels:
    """As `to`, for a block that keeps its input's width."""
    asked = arguments["out_channels"]
    if to.apply(inputs, arguments, scale) != arguments["in_channels"]:
        raise ModelConfigError(
            f"out_channels {asked} after {arguments['in_channels']} channels: this block keeps its width; "
            "write that of its input"
        )
    return arguments["out_channels"]


@layer(to_same, "attention", repeats="repeats", example=(16,))
class C2PSA(nn.Module):
    """Pass half the width through `repeats` attention blocks; the other half skips them.

    Source: Vaswani et al. 2017, arxiv.org/abs/1706.03762; the published structure of YOLO11
    Differs: no layer normalisation; a depthwise convolution of the values replaces position encodings.
    """

    def __init__(
        self, in_channels: int, out_channels: int, repeats: int = 1, expansion: Annotated[float, FACTOR] = 0.5
    ) -> None:
        super().__init__()
        hidden = int(out_channels * expansion)
        self.cv1 = Conv(in_channels, 2 * hidden)
        self.cv2 = Conv(2 * hidden, out_channels)
        self.m = nn.Sequential(*(PSABlock(hidden, max(hidden // HEAD_CHANNELS, 1)) for _ in range(repeats)))

    def forward(self, x: Tensor) -> Tensor:
        kept, attended = self.cv1(x).chunk(2, 1)
        return self.cv2(torch.cat((kept, self.m(attended)), 1))
