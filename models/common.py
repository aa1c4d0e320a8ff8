"""Blocks of the YOLOv9 / GELAN family, each with its channel rule.

Source: Wang, Yeh, Liao 2024, YOLOv9, arxiv.org/abs/2402.13616 (GELAN, programmable gradient information);
Ding et al. 2021, RepVGG, arxiv.org/abs/2101.03697 (re-parameterised convolution).
Feature maps are (B, C, H, W) throughout.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.registry import Channels, Scale, keep, layer, maps, only, rule, to, to_unscaled
from utils.errors import ModelConfigError

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "SiLU": partial(nn.SiLU, inplace=True),
    "ReLU": partial(nn.ReLU, inplace=True),
    "ReLU6": partial(nn.ReLU6, inplace=True),
    "LeakyReLU": partial(nn.LeakyReLU, 0.1, inplace=True),
    "Hardswish": partial(nn.Hardswish, inplace=True),
    "Mish": partial(nn.Mish, inplace=True),
    "GELU": nn.GELU,
    "Identity": nn.Identity,
}
"""What a network's `activation` key can name."""


@layer(to, "convolution", example=(16, 3, 2))
class Conv(nn.Module):
    """Convolution without bias, batch normalisation (eps 1e-3, momentum 0.03), activation.

    Args:
        padding: None keeps the size at stride 1 for odd kernels, dilation included.
        activate: False leaves the activation out.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        padding: int | None = None,
        groups: int = 1,
        dilation: int = 1,
        activate: bool = True,
    ) -> None:
        super().__init__()
        if padding is None:
            padding = (dilation * (kernel_size - 1) + 1) // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(out_channels, eps=1e-3, momentum=0.03)
        self.act = ACTIVATIONS["SiLU" if activate else "Identity"]()
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))

    def fold(self) -> None:
        """Merge the normalisation into the convolution, for inference; the keys `bn.*` become `conv.bias`."""
        if isinstance(self.bn, nn.BatchNorm2d):
            self.conv = fold_batchnorm(self.conv, self.bn)
            self.bn = nn.Identity()


def fold_batchnorm(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> nn.Conv2d:
    """Return one convolution that equals `bn(conv(x))` in evaluation; computed in float64."""
    scale = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()
    bias = conv.bias.double() if conv.bias is not None else 0.0
    return biased_conv(conv, conv.weight.double() * scale[:, None, None, None], bn.bias.double() + (bias - bn.running_mean.double()) * scale)


def biased_conv(like: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """Return a convolution shaped like `like` with this weight and bias."""
    folded = nn.Conv2d(
        like.in_channels, like.out_channels, like.kernel_size, like.stride, like.padding, like.dilation, like.groups, bias=True, device="meta"
    )
    folded.weight = nn.Parameter(weight.detach().to(like.weight.dtype), requires_grad=like.weight.requires_grad)
    folded.bias = nn.Parameter(bias.detach().to(like.weight.dtype), requires_grad=like.weight.requires_grad)
    return folded


@layer(to, "convolution", name="RepConvN", example=(16,))
class RepConv(nn.Module):
    """3 x 3 and 1 x 1 convolution side by side, added, then activated; `fold` makes them one 3 x 3.

    Source: RepVGG without the identity branch, as YOLOv9's RepConvN.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = Conv(in_channels, out_channels, 3, stride, activate=False)
        self.conv2 = Conv(in_channels, out_channels, 1, stride, activate=False)
        self.act = ACTIVATIONS["SiLU"]()
        self.activate = True

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "conv"):
            return self.act(self.conv(x))
        return self.act(self.conv1(x) + self.conv2(x))

    def fold(self) -> None:
        """Merge both branches into one biased 3 x 3 convolution `conv`, for inference."""
        if hasattr(self, "conv"):
            return
        self.conv1.fold()
        self.conv2.fold()
        square, point = self.conv1.conv, self.conv2.conv
        weight = square.weight.double() + functional.pad(point.weight.double(), (1, 1, 1, 1))
        self.conv = biased_conv(square, weight, square.bias.double() + point.bias.double())
        del self.conv1, self.conv2


def set_activation(model: nn.Module, name: str) -> None:
    """Give every activated Conv and RepConv of one network the activation `name`.

    Raises:
        ModelConfigError: the name is not in ACTIVATIONS.
    """
    plain = str(name).removeprefix("nn.").removesuffix("()").removesuffix("(0.1)")
    if plain not in ACTIVATIONS:
        raise ModelConfigError(f"activation '{name}': expected one of {', '.join(ACTIVATIONS)}")
    for unit in model.modules():
        if isinstance(unit, Conv | RepConv) and unit.activate:
            unit.act = ACTIVATIONS[plain]()


@layer(to, name="RepNBottleneck", example=(16,))
class RepBottleneck(nn.Module):
    """RepConv then 3 x 3 Conv, added to the input where the widths agree."""

    def __init__(self, in_channels: int, out_channels: int, shortcut: bool = True, expansion: float = 0.5) -> None:
        super().__init__()
        hidden = int(out_channels * expansion)
        self.cv1 = RepConv(in_channels, hidden)
        self.cv2 = Conv(hidden, out_channels, 3)
        self.add = shortcut and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv2(self.cv1(x))
        return x + y if self.add else y


@layer(to, name="RepNCSP", example=(16,))
class RepCSP(nn.Module):
    """Cross-stage-partial block: half the width through `repeats` RepBottlenecks, half past them."""

    def __init__(self, in_channels: int, out_channels: int, repeats: int = 1, shortcut: bool = True, expansion: float = 0.5) -> None:
        super().__init__()
        hidden = int(out_channels * expansion)
        self.cv1 = Conv(in_channels, hidden)
        self.cv2 = Conv(in_channels, hidden)
        self.cv3 = Conv(2 * hidden, out_channels)
        self.m = nn.Sequential(*(RepBottleneck(hidden, hidden, shortcut, expansion=1.0) for _ in range(repeats)))

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


@layer(to_unscaled, example=(16, 16, 8))
class ELAN1(nn.Module):
    """Efficient layer aggregation with two plain 3 x 3 convolutions in a chain; all stages are concatenated."""

    def __init__(self, in_channels: int, out_channels: int, hidden_channels: int, branch_channels: int) -> None:
        super().__init__()
        self.cv1 = Conv(in_channels, hidden_channels)
        self.cv2 = Conv(hidden_channels // 2, branch_channels, 3)
        self.cv3 = Conv(branch_channels, branch_channels, 3)
        self.cv4 = Conv(hidden_channels + 2 * branch_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        stages = list(self.cv1(x).chunk(2, 1))
        for stage in (self.cv2, self.cv3):
            stages.append(stage(stages[-1]))
        return self.cv4(torch.cat(stages, 1))


@layer(to_unscaled, example=(16, 16, 8, 1))
class RepNCSPELAN4(ELAN1):
    """GELAN's block: an ELAN1 whose two stages are a RepCSP (with `repeats` bottlenecks) and a 3 x 3 Conv each."""

    def __init__(self, in_channels: int, out_channels: int, hidden_channels: int, branch_channels: int, repeats: int = 1) -> None:
        super().__init__(in_channels, out_channels, hidden_channels, branch_channels)
        self.cv2 = nn.Sequential(RepCSP(hidden_channels // 2, branch_channels, repeats), Conv(branch_channels, branch_channels, 3))
        self.cv3 = nn.Sequential(RepCSP(branch_channels, branch_channels, repeats), self.cv3)


@layer(to_unscaled, "pooling", example=(16, 8))
class SPPELAN(nn.Module):
    """Spatial pyramid pooling in an ELAN: three 5 x 5 max pools in a chain, all stages concatenated."""

    def __init__(self, in_channels: int, out_channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.cv1 = Conv(in_channels, hidden_channels)
        self.pool = nn.MaxPool2d(5, stride=1, padding=2)
        self.cv5 = Conv(4 * hidden_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        stages = [self.cv1(x)]
        for _ in range(3):
            stages.append(self.pool(stages[-1]))
        return self.cv5(torch.cat(stages, 1))


@layer(to, "downsample", example=(16,))
class AConv(nn.Module):
    """Halve the size: 2 x 2 average pooling at stride 1, then a 3 x 3 convolution at stride 2."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.cv1 = Conv(in_channels, out_channels, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.cv1(functional.avg_pool2d(x, 2, 1))


@layer(to, "downsample", example=(16,))
class ADown(nn.Module):
    """Halve the size: average pool, then half the channels through a strided 3 x 3, half through max pool and 1 x 1."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.cv1 = Conv(in_channels // 2, out_channels // 2, 3, 2)
        self.cv2 = Conv(in_channels // 2, out_channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        convolved, pooled = functional.avg_pool2d(x, 2, 1).chunk(2, 1)
        return torch.cat((self.cv1(convolved), self.cv2(functional.max_pool2d(pooled, 3, 2, 1))), 1)


@layer(keep, "other")
class Silence(nn.Module):
    """Identity: makes the picture addressable as a layer, for a second backbone."""

    passes_through = True

    def forward(self, x: Tensor) -> Tensor:
        return x


@rule()
def cat(inputs: list[Channels], arguments: dict, scale: Scale) -> Channels:
    """Several inputs whose channels are added up."""
    if arguments.get("dimension", 1) != 1:
        raise ModelConfigError(f"dimension {arguments['dimension']}: maps are concatenated along channels, dimension 1")
    return sum(maps(inputs))


@layer(cat, "fusion", example_inputs=(16, 24))
class Concat(nn.Module):
    """Concatenate maps of one size along the channels."""

    def __init__(self, dimension: int = 1) -> None:
        super().__init__()
        self.dimension = dimension

    def forward(self, inputs: list[Tensor]) -> Tensor:
        return torch.cat(inputs, self.dimension)


@rule("in_channels")
def split(inputs: list[Channels], arguments: dict, scale: Scale) -> Channels:
    """One input, a list of maps out: only CBFuse may take it."""
    to_unscaled.apply(inputs, arguments | {"out_channels": 8}, scale)
    arguments["in_channels"] = only(inputs)
    return arguments["out_channels"]


@layer(split, "convolution", example=([16, 8],))
class CBLinear(nn.Module):
    """One biased convolution, split into maps for the composite connections (CBFuse) of a second backbone."""

    def __init__(self, in_channels: int, out_channels: list[int], kernel_size: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.conv = nn.Conv2d(in_channels, sum(out_channels), kernel_size, stride, kernel_size // 2)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.conv(x).split(self.out_channels, 1)


@rule()
def last(inputs: list[Channels], arguments: dict, scale: Scale) -> Channels:
    """Several lists of maps, of which one each is picked, and a last map that says the width."""
    width, index = only(inputs[-1:]), arguments["index"]
    if len(index) != len(inputs) - 1:
        raise ModelConfigError(f"index {index} picks from {len(index)} inputs, but 'from' names {len(inputs) - 1} before the last")
    for number, (channels, pick) in enumerate(zip(inputs, index, strict=False)):
        if not isinstance(channels, list) or not 0 <= pick < len(channels):
            raise ModelConfigError(f"input {number} of 'from' has channels {channels}: no element {pick} to pick (a CBLinear was expected)")
        if channels[pick] != width:
            raise ModelConfigError(
                f"channels differ: element {pick} of input {number} of 'from' has {channels[pick]} of {channels}, the last input has {width}"
            )
    return width


@layer(last, "fusion", example=([1],), example_inputs=([8, 16], 16))
class CBFuse(nn.Module):
    """Add one map of each CBLinear, resized (nearest) to the size of the last input, to the last input."""

    def __init__(self, index: list[int]) -> None:
        super().__init__()
        self.index = index

    def forward(self, inputs: list[Tensor | tuple[Tensor, ...]]) -> Tensor:
        fused = inputs[-1]
        for maps_, pick in zip(inputs[:-1], self.index, strict=True):
            fused = fused + functional.interpolate(maps_[pick], size=fused.shape[2:], mode="nearest")
        return fused


layer(keep, "upsample", name="nn.Upsample", example=(None, 2, "nearest"))(nn.Upsample)
layer(keep, "pooling", name="nn.MaxPool2d", example=(2,))(nn.MaxPool2d)
layer(keep, "pooling", name="nn.AvgPool2d", example=(2,))(nn.AvgPool2d)
layer(keep, "other", name="nn.Identity")(nn.Identity)
