"""Layers that join and split maps, and torch's own layers.

Source of CBLinear and CBFuse: Liang et al. 2021, CBNet, arxiv.org/abs/2107.00420, as in YOLOv9,
    arxiv.org/abs/2402.13616.
"""

from typing import Annotated, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.limits import CHANNELS, KERNEL, STRIDE
from models.registry import Channels, Scale, keep, layer, maps, only, rule, scale_hidden
from utils.errors import ModelConfigError


@layer(keep, "other")
class Silence(nn.Module):
    """Identity: gives the image a row of its own, to which a second backbone can refer.

    Source: Wang, Yeh, Liao 2024, YOLOv9, arxiv.org/abs/2402.13616
    """

    passes_through = True

    def forward(self, x: Tensor) -> Tensor:
        return x


@rule()
def cat(inputs: list[Channels], arguments: dict, scale: Scale) -> Channels:
    """Several inputs; the output has the sum of their channels."""
    if arguments.get("dimension", 1) != 1:
        raise ModelConfigError(f"dimension {arguments['dimension']}: maps are concatenated along channels, dimension 1")
    return sum(maps(inputs))


@layer(cat, "fusion", example_inputs=(16, 24))
class Concat(nn.Module):
    """Concatenate maps of one size along the channels.

    Source: Ronneberger et al. 2015, U-Net, arxiv.org/abs/1505.04597
    """

    def __init__(self, dimension: int = 1) -> None:
        super().__init__()
        self.dimension = dimension

    def forward(self, inputs: list[Tensor]) -> Tensor:
        return torch.cat(inputs, self.dimension)


@rule("in_channels")
def split(inputs: list[Channels], arguments: dict, scale: Scale) -> Channels:
    """One input; the output is a list of maps, for CBFuse or Pick."""
    scale_hidden(arguments, scale, ("out_channels",))
    arguments["in_channels"] = only(inputs)
    return arguments["out_channels"]


@layer(split, "convolution", example=([16, 8],))
class CBLinear(nn.Module):
    """Split the output of one biased convolution into maps for the CBFuse rows of a second backbone.

    Source: Liang et al. 2021, CBNet, arxiv.org/abs/2107.00420, as in YOLOv9, arxiv.org/abs/2402.13616
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: Annotated[list[int], CHANNELS],
        kernel_size: Annotated[int, KERNEL] = 1,
        stride: Annotated[int, STRIDE] = 1,
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.conv = nn.Conv2d(in_channels, sum(out_channels), kernel_size, stride, kernel_size // 2)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.conv(x).split(self.out_channels, 1)


@rule()
def last(inputs: list[Channels], arguments: dict, scale: Scale) -> Channels:
    """Several lists of maps, one map of each is picked, and a last input, which sets the width."""
    width, index = only(inputs[-1:]), arguments["index"]
    if len(index) != len(inputs) - 1:
        raise ModelConfigError(
            f"index {index} picks from {len(index)} inputs, but 'from' names {len(inputs) - 1} before the last"
        )
    for number, (channels, pick) in enumerate(zip(inputs, index, strict=False)):
        if not isinstance(channels, list) or not 0 <= pick < len(channels):
            raise ModelConfigError(
                f"input {number} of 'from' has channels {channels}: no element {pick} to pick (a CBLinear was expected)"
            )
        if channels[pick] != width:
            raise ModelConfigError(
                f"channels differ: element {pick} of input {number} of 'from' has {channels[pick]} of {channels}, the "
                f"last input has {width}"
            )
    return width


@layer(last, "fusion", example=([1],), example_inputs=([8, 16], 16))
class CBFuse(nn.Module):
    """Add to the last input one map of each CBLinear, resized (nearest) to its size.

    Source: Liang et al. 2021, CBNet, arxiv.org/abs/2107.00420, as in YOLOv9, arxiv.org/abs/2402.13616
    """

    def __init__(self, index: list[int]) -> None:
        super().__init__()
        self.index = index

    def forward(self, inputs: list[Tensor | tuple[Tensor, ...]]) -> Tensor:
        fused = cast(Tensor, inputs[-1])
        for maps_, pick in zip(inputs[:-1], self.index, strict=True):
            fused = fused + functional.interpolate(maps_[pick], size=fused.shape[2:], mode="nearest")
        return fused


@rule()
def picked(inputs: list[Channels], arguments: dict, scale: Scale) -> Channels:
    """One list of maps; the output is the map at `index`."""
    index = arguments["index"]
    if len(inputs) != 1 or not isinstance(inputs[0], list):
        raise ModelConfigError(
            "'from' names no list of maps: Pick takes one map of the list that CBLinear, AFPN or TimmBackbone gives"
        )
    if not 0 <= index < len(inputs[0]):
        raise ModelConfigError(
            f"index is {index}: the list has {len(inputs[0])} maps, 0 to {len(inputs[0]) - 1}, with {inputs[0]} "
            "channels"
        )
    return inputs[0][index]


@layer(picked, "other", example=(1,), example_inputs=([8, 16],))
class Pick(nn.Module):
    """One map of a list of maps.

    Source: none; it only selects.

    Args:
        index: position of the map in the list, from 0.
    """

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index

    def forward(self, maps_: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
        return maps_[self.index]


layer(keep, "upsample", name="nn.Upsample", example=(None, 2, "nearest"))(nn.Upsample)
layer(keep, "downsample", name="nn.MaxPool2d", example=(2,))(nn.MaxPool2d)
layer(keep, "downsample", name="nn.AvgPool2d", example=(2,))(nn.AvgPool2d)
layer(keep, "other", name="nn.Identity")(nn.Identity)
