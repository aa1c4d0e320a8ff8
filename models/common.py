"""Blocks of the YOLOv9 / GELAN family, each with its channel rule.

Source: Wang, Yeh, Liao 2024, YOLOv9, arxiv.org/abs/2402.13616 (GELAN, programmable gradient information);
Ding et al. 2021, RepVGG, arxiv.org/abs/2101.03697 (re-parameterised convolution).
Feature maps are (B, C, H, W) throughout.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.building import InnerLayer, build_inner, check_inner, unit_builder
from models.limits import CHANNELS, DILATION, FACTOR, KERNEL, PADDING, REPEATS, STRIDE, UP_TO_CHANNELS
from models.registry import layer, to, to_with
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
"""Values of a network's `activation` key."""


@layer(to, "convolution", example=(16, 3, 2))
class Conv(nn.Module):
    """Convolution without bias, batch normalisation (eps 1e-3, momentum 0.03), activation.

    Source: Ioffe, Szegedy 2015, arxiv.org/abs/1502.03167 (batch normalisation); Elfwing et al. 2017,
        arxiv.org/abs/1702.03118 (SiLU)

    Args:
        padding: None keeps the size at stride 1 for odd kernels, dilation included.
        activate: False leaves the activation out. The attribute says whether the network's `activation` applies.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: Annotated[int, CHANNELS],
        kernel_size: Annotated[int, KERNEL] = 1,
        stride: Annotated[int, STRIDE] = 1,
        padding: Annotated[int | None, PADDING] = None,
        groups: Annotated[int, UP_TO_CHANNELS] = 1,
        dilation: Annotated[int, DILATION] = 1,
        activate: bool = True,
    ) -> None:
        super().__init__()
        if padding is None:
            padding = same_padding(kernel_size, dilation)
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


def same_padding(kernel_size: int, dilation: int) -> int:
    """Return the padding that keeps the size at stride 1 for odd kernels."""
    return (dilation * (kernel_size - 1) + 1) // 2


def fold_batchnorm(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> nn.Conv2d:
    """Return one convolution that equals `bn(conv(x))` in evaluation; computed in float64."""
    assert bn.running_mean is not None
    assert bn.running_var is not None
    scale = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()
    bias = conv.bias.double() if conv.bias is not None else 0.0
    return biased_conv(
        conv,
        conv.weight.double() * scale[:, None, None, None],
        bn.bias.double() + (bias - bn.running_mean.double()) * scale,
    )


def biased_conv(like: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """Return a convolution with the settings of `like`, and this weight and bias."""
    folded = conv_like(like, like.in_channels, bias=True)
    folded.weight = nn.Parameter(weight.detach().to(like.weight.dtype), requires_grad=like.weight.requires_grad)
    folded.bias = nn.Parameter(bias.detach().to(like.weight.dtype), requires_grad=like.weight.requires_grad)
    return folded


def conv_like(like: nn.Conv2d, in_channels: int, bias: bool) -> nn.Conv2d:
    """Return a convolution with the settings of `like` on the meta device, where it has no values yet."""
    keys = ("kernel_size", "stride", "padding", "dilation", "groups")
    settings: dict[str, Any] = {key: getattr(like, key) for key in keys}
    return nn.Conv2d(in_channels, like.out_channels, **settings, bias=bias, device="meta")


@layer(to, "convolution", name="RepConvN", example=(16,))
class RepConv(nn.Module):
    """Add a 3 x 3 and a 1 x 1 convolution, then activate; `fold` merges them into one 3 x 3.

    Source: Ding et al. 2021, RepVGG, arxiv.org/abs/2101.03697; Wang, Yeh, Liao 2024, YOLOv9, arxiv.org/abs/2402.13616
    Differs: no identity branch.
    """

    def __init__(
        self, in_channels: int, out_channels: Annotated[int, CHANNELS], stride: Annotated[int, STRIDE] = 1
    ) -> None:
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
        assert square.bias is not None
        assert point.bias is not None
        weight = square.weight.double() + functional.pad(point.weight.double(), (1, 1, 1, 1))
        self.conv = biased_conv(square, weight, square.bias.double() + point.bias.double())
        del self.conv1, self.conv2


def build_activation(name: str) -> nn.Module:
    """Build an activation by name; the form of older files, such as ``nn.ReLU()``, is accepted too.

    Raises:
        ModelConfigError: the name is not in ACTIVATIONS.
    """
    plain = str(name).removeprefix("nn.").removesuffix("()").removesuffix("(0.1)")
    if plain not in ACTIVATIONS:
        raise ModelConfigError(f"activation '{name}': expected one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[plain]()


def set_activation(model: nn.Module, name: str) -> None:
    """Give every activated Conv and RepConv of one network the activation `name`.

    Raises:
        ModelConfigError: the name is not in ACTIVATIONS.
    """
    build_activation(name)  # reject a wrong name even if no unit uses it
    for unit in model.modules():
        if isinstance(unit, Conv | RepConv) and unit.activate:
            unit.act = build_activation(name)


def fix_activation(block: nn.Module, name: str | None) -> None:
    """Fix a block's activation, so that its network's `activation` does not change it; None leaves it to the network.

    Raises:
        ModelConfigError: the name is not in ACTIVATIONS.
    """
    if name is None:
        return
    set_activation(block, name)
    for unit in block.modules():
        if isinstance(unit, Conv | RepConv):
            unit.activate = False


@layer(to, name="RepNBottleneck", example=(16,))
class RepBottleneck(nn.Module):
    """RepConv, then 3 x 3 Conv, added to the input if the widths agree.

    Source: He et al. 2015, arxiv.org/abs/1512.03385; Wang, Yeh, Liao 2024, YOLOv9, arxiv.org/abs/2402.13616
    Differs: the first convolution is a RepConv.

    Args:
        attention: a layer at the end of the branch, before the sum: its registered name, or [name, arguments …].
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        shortcut: bool = True,
        expansion: Annotated[float, FACTOR] = 0.5,
        attention: InnerLayer | None = None,
    ) -> None:
        super().__init__()
        hidden = int(out_channels * expansion)
        self.cv1 = RepConv(in_channels, hidden)
        self.cv2 = Conv(hidden, out_channels, 3)
        self.attention = None if attention is None else build_inner(attention, out_channels, "attention")
        self.add = shortcut and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv2(self.cv1(x))
        if self.attention is not None:
            y = self.attention(y)
        return x + y if self.add else y


class CrossStage(nn.Module):
    """Shell of cross-stage-partial blocks: half the width passes a chain of units, the other half skips it.

    Args:
        unit: function that builds one unit of the chain for a number of channels; the unit must keep that number.
    """

    def __init__(
        self, in_channels: int, out_channels: int, repeats: int, expansion: float, unit: Callable[[int], nn.Module]
    ) -> None:
        super().__init__()
        hidden = int(out_channels * expansion)
        self.cv1 = Conv(in_channels, hidden)
        self.cv2 = Conv(in_channels, hidden)
        self.cv3 = Conv(2 * hidden, out_channels)
        self.m = nn.Sequential(*(unit(hidden) for _ in range(repeats)))

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


@layer(to_with(repeats="repeats"), name="RepNCSP", example=(16,))
class RepCSP(CrossStage):
    """Cross-stage-partial block: half the width passes `repeats` RepBottlenecks, the other half skips them.

    Source: Wang et al. 2019, CSPNet, arxiv.org/abs/1911.11929; Wang, Yeh, Liao 2024, YOLOv9, arxiv.org/abs/2402.13616

    Args:
        shortcut: whether the bottlenecks add their input; no effect on `unit`.
        unit: a layer in place of each bottleneck: its registered name, or [name, arguments …].
        attention: a layer at the end of each bottleneck's branch, before its sum; same form as `unit`.
    Raises:
        ModelConfigError: the layer cannot be built, or both `unit` and `attention` are given.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        repeats: Annotated[int, REPEATS] = 1,
        shortcut: bool = True,
        expansion: Annotated[float, FACTOR] = 0.5,
        unit: InnerLayer | None = None,
        attention: InnerLayer | None = None,
    ) -> None:
        def bottleneck(width: int) -> nn.Module:
            return RepBottleneck(width, width, shortcut, expansion=1.0, attention=attention)

        super().__init__(in_channels, out_channels, repeats, expansion, unit_builder(unit, bottleneck, attention))


def stage(in_channels: int, out_channels: int, unit: InnerLayer | None, attention: InnerLayer | None) -> nn.Module:
    """Build one stage of an ELAN1: a 3 x 3 Conv, followed by `attention`, or replaced by `unit`."""
    if unit is not None:
        built = build_inner(unit, out_channels, "unit")
        return built if in_channels == out_channels else nn.Sequential(Conv(in_channels, out_channels), built)
    conv = Conv(in_channels, out_channels, 3)
    return conv if attention is None else nn.Sequential(conv, build_inner(attention, out_channels, "attention"))


@layer(to_with("hidden_channels", "branch_channels"), example=(16, 16, 8))
class ELAN1(nn.Module):
    """Efficient layer aggregation with two plain 3 x 3 convolutions in a chain; all stages are concatenated.

    Source: Wang, Liao, Yeh 2022, ELAN, arxiv.org/abs/2211.04800; Wang, Yeh, Liao 2024, YOLOv9, arxiv.org/abs/2402.13616

    Args:
        hidden_channels: of the first convolution; half of them feed the chain.
        branch_channels: of each stage of the chain.
        unit: a layer in place of each 3 x 3 convolution: its registered name, or [name, arguments …]. A 1 x 1
            convolution comes before it if the widths differ.
        attention: a layer after each 3 x 3 convolution; same form as `unit`.
    Raises:
        ModelConfigError: the layer cannot be built, or both `unit` and `attention` are given.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden_channels: Annotated[int, CHANNELS],
        branch_channels: Annotated[int, CHANNELS],
        unit: InnerLayer | None = None,
        attention: InnerLayer | None = None,
    ) -> None:
        super().__init__()
        check_inner(unit, attention)
        self.cv1 = Conv(in_channels, hidden_channels)
        self.cv2 = stage(hidden_channels // 2, branch_channels, unit, attention)
        self.cv3 = stage(branch_channels, branch_channels, unit, attention)
        self.cv4 = Conv(hidden_channels + 2 * branch_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        stages = list(self.cv1(x).chunk(2, 1))
        for stage in (self.cv2, self.cv3):
            stages.append(stage(stages[-1]))
        return self.cv4(torch.cat(stages, 1))


@layer(to_with("hidden_channels", "branch_channels", repeats="repeats"), example=(16, 16, 8, 1))
class RepNCSPELAN4(ELAN1):
    """GELAN's block: an ELAN1 whose two stages are a RepCSP (with `repeats` bottlenecks) and a 3 x 3 Conv each.

    Source: Wang, Yeh, Liao 2024, YOLOv9, arxiv.org/abs/2402.13616

    Args:
        hidden_channels, branch_channels: see ELAN1.
        unit, attention: passed on to each RepNCSP.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden_channels: Annotated[int, CHANNELS],
        branch_channels: Annotated[int, CHANNELS],
        repeats: Annotated[int, REPEATS] = 1,
        unit: InnerLayer | None = None,
        attention: InnerLayer | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, hidden_channels, branch_channels)
        self.cv2 = nn.Sequential(
            RepCSP(hidden_channels // 2, branch_channels, repeats, unit=unit, attention=attention),
            Conv(branch_channels, branch_channels, 3),
        )
        self.cv3 = nn.Sequential(
            RepCSP(branch_channels, branch_channels, repeats, unit=unit, attention=attention), self.cv3
        )


@layer(to_with("hidden_channels"), "pooling", example=(16, 8))
class SPPELAN(nn.Module):
    """Spatial pyramid pooling in an ELAN: three 5 x 5 max pools in a chain, all stages concatenated.

    Source: He et al. 2014, SPP, arxiv.org/abs/1406.4729; Wang, Yeh, Liao 2024, YOLOv9, arxiv.org/abs/2402.13616
    """

    def __init__(self, in_channels: int, out_channels: int, hidden_channels: Annotated[int, CHANNELS]) -> None:
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
    """Halve the size: 2 x 2 average pooling at stride 1, then a 3 x 3 convolution at stride 2.

    Source: Wang, Yeh, Liao 2024, YOLOv9, arxiv.org/abs/2402.13616
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.cv1 = Conv(in_channels, out_channels, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.cv1(functional.avg_pool2d(x, 2, 1))


@layer(to, "downsample", example=(16,))
class ADown(nn.Module):
    """Halve the size: average pool, then a strided 3 x 3 for half the channels, max pool and 1 x 1 for the others.

    Source: Wang, Yeh, Liao 2024, YOLOv9, arxiv.org/abs/2402.13616
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.cv1 = Conv(in_channels // 2, out_channels // 2, 3, 2)
        self.cv2 = Conv(in_channels // 2, out_channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        convolved, pooled = functional.avg_pool2d(x, 2, 1).chunk(2, 1)
        return torch.cat((self.cv1(convolved), self.cv2(functional.max_pool2d(pooled, 3, 2, 1))), 1)
