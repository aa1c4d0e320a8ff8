"""Gather-Excite: weigh each channel by its values pooled over a neighbourhood or over the whole map.

Source: Hu et al. 2018, Gather-Excite, arxiv.org/abs/1810.12348.
"""

from collections import OrderedDict
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.common import fold_batchnorm
from models.limits import CHANNELS, Limits
from models.parts import BatchNorm2d, Start, require_cells
from models.registry import layer, same
from utils.errors import ModelConfigError


class Excite(nn.Module):
    """Two 1 x 1 convolutions with ReLU between them."""

    def __init__(self, channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden_channels, 1)
        self.fc2 = nn.Conv2d(hidden_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.relu(self.fc1(x)))


@layer(same, "attention", example=())
class GatherExcite(nn.Module):
    """Weigh every channel by the sigmoid of its values pooled over a neighbourhood or over the whole map.

    Args:
        extent: cells of the input that one cell of the gathered map stands for, a power of two; "global" (or 0) gathers
            the whole map.
        variant: "theta-minus" gathers by average pooling, without parameters; "theta" by depthwise convolutions;
            "theta-plus" by those, ReLU, and a bottleneck of two 1 x 1 convolutions.
        size_hw: height and width of the map, for theta and theta-plus at extent "global": their kernel has that size.
        mlp: the bottleneck after theta-minus (at extent "global" that is Squeeze-and-Excitation) or theta.
        mlp_ratio: hidden channels of the bottleneck divided by the channels.
        hidden_channels: hidden channels of the bottleneck, in place of `mlp_ratio`.
        maxpool: theta-minus gathers the mean of average and maximum.
        pad_global: pad the global convolution by half its kernel, as timm does; its output then is a map, not one
            value.
        start: `identity` makes the gate 2 * sigmoid(gain * gathered) with a gain per channel that starts at zero, so
            gates start at one (this gives theta-minus parameters, too). With `random`, as in the paper, gates start
            near 0.5.
    Raises:
        ModelConfigError: an extent that is no power of two, or settings that do not go together.
    Source: Hu et al. 2018, arxiv.org/abs/1810.12348, sections 3 and 4, and the authors' published RN50-GEP and
        RN50-GEPP
    Differs: the gate is computed before the interpolation, which is cheaper and gives the same. A window at the border
        averages the cells inside the map. Without arguments this is theta-minus; timm's is Squeeze-and-Excitation.
    """

    def __init__(
        self,
        channels: int,
        extent: Annotated[int | Literal["global"], Limits(0, 64)] = "global",
        variant: Literal["theta-minus", "theta", "theta-plus"] = "theta-minus",
        size_hw: Annotated[tuple[int, int] | None, Limits(1, 512)] = None,
        mlp: bool = False,
        mlp_ratio: Annotated[float, Limits(0, 4, above=True)] = 1 / 16,
        hidden_channels: Annotated[int | None, CHANNELS] = None,
        maxpool: bool = False,
        pad_global: bool = False,
        start: Start = "random",
    ) -> None:
        super().__init__()
        self.extent = 0 if extent == "global" else extent
        learned = variant != "theta-minus"
        check(self.extent, learned, size_hw, maxpool, pad_global, hidden_channels)
        self.maxpool, self.size_hw, self.pad_global = maxpool, size_hw, pad_global
        self.post_relu = variant == "theta-plus"
        self.gather: nn.Module | None = None
        if learned:
            self.gather = (
                global_gather(channels, size_hw, pad_global) if size_hw else strided_gather(channels, self.extent)
            )
        hidden = hidden_channels or max(1, int(channels * mlp_ratio + 0.5))
        self.mlp = Excite(channels, hidden) if mlp or self.post_relu else None
        self.gain = nn.Parameter(torch.zeros(channels)) if start == "identity" else None

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x)
        if self.extent or self.pad_global:
            gate = functional.interpolate(gate, size=x.shape[2:], mode="nearest")
        return x * gate

    def gate(self, x: Tensor) -> Tensor:
        """Return the gates of the gathered map's cells, (B, C, ceil(H / extent), ceil(W / extent)), or (B, C, 1, 1)."""
        require_cells("extent", self.extent, x)
        gathered = self.pool(x) if self.gather is None else self.convolve(x, self.gather)
        if self.post_relu:
            gathered = functional.relu(gathered)
        if self.mlp is not None:
            gathered = self.mlp(gathered)
        return gathered.sigmoid() if self.gain is None else 2 * (gathered * self.gain[:, None, None]).sigmoid()

    def pool(self, x: Tensor) -> Tensor:
        """Gather without parameters."""
        if not self.extent:
            average = x.mean((2, 3), keepdim=True)
            return (average + x.amax((2, 3), keepdim=True)) / 2 if self.maxpool else average
        window = 2 * self.extent - 1, self.extent, self.extent - 1
        average = functional.avg_pool2d(x, *window, count_include_pad=False)
        return (average + functional.max_pool2d(x, *window)) / 2 if self.maxpool else average

    def convolve(self, x: Tensor, gather: nn.Module) -> Tensor:
        """Gather by the learned convolutions.

        Raises:
            ModelConfigError: the kernel covers the whole map, and the map has another size than `size_hw`.
        """
        if self.size_hw and not self.pad_global and tuple(x.shape[2:]) != self.size_hw:
            if not x.is_meta:
                raise ModelConfigError(
                    f"GatherExcite: the map is {x.shape[2]} x {x.shape[3]}, size_hw says {self.size_hw[0]} x "
                    f"{self.size_hw[1]}: a global kernel "
                    "fits one size; train and run at that image size alone (square batches, no multi-scale), or give "
                    "an extent of 2, 4 or 8"
                )
            x = x.new_empty(*x.shape[:2], *self.size_hw)  # a probe for shapes may have any size
        return gather(x)

    def fold(self) -> None:
        """Merge every normalisation into its convolution, for inference."""
        if self.gather is None:
            return
        for name, norm in list(self.gather.named_children()):
            if isinstance(norm, nn.BatchNorm2d):
                before = name.replace("norm", "conv")
                setattr(self.gather, before, fold_batchnorm(getattr(self.gather, before), norm))
                setattr(self.gather, name, nn.Identity())

    def explain(self, x: Tensor) -> dict[str, Tensor]:
        """Return "gate" (B, C, h, w): the weight of every channel at every cell of the gathered map."""
        return {"gate": self.gate(x)}


def check(
    extent: int,
    learned: bool,
    size_hw: tuple[int, int] | None,
    maxpool: bool,
    pad_global: bool,
    hidden_channels: int | None,
) -> None:
    """Reject invalid settings.

    Raises:
        ModelConfigError: a setting is invalid; the message suggests a valid one.
    """
    if extent < 0 or extent == 1 or extent & (extent - 1):
        raise ModelConfigError(f"extent is {extent}: expected a power of two such as 2, 4 or 8, or 'global'")
    if learned and not extent and size_hw is None:
        raise ModelConfigError(
            "a learned global gather has a kernel as large as the map: give its size, such as size_hw: "
            "[20, 20], and use that image size alone; "
            "or an extent of 2, 4 or 8, which takes maps of any size"
        )
    if size_hw is not None and (extent or not learned):
        raise ModelConfigError(
            f"size_hw is {list(size_hw)}: only theta and theta-plus with extent 'global' depend on it: leave it out"
        )
    if size_hw is not None and min(size_hw) < 1:
        raise ModelConfigError(f"size_hw is {list(size_hw)}: expected positive numbers")
    if learned and maxpool:
        raise ModelConfigError(
            "maxpool: theta and theta-plus gather by convolutions: leave it out, or use variant 'theta-minus'"
        )
    if pad_global and size_hw is None:
        raise ModelConfigError("pad_global: there is no global convolution to pad: leave it out")
    if hidden_channels is not None and hidden_channels < 1:
        raise ModelConfigError(f"hidden_channels is {hidden_channels}: expected a positive number")


def strided_gather(channels: int, extent: int) -> nn.Sequential:
    """Return a depthwise 3 x 3 convolution of stride 2 with normalisation for each halving, ReLU between them."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    last = extent.bit_length() - 1
    for number in range(1, last + 1):
        parts[f"conv{number}"] = nn.Conv2d(channels, channels, 3, 2, 1, groups=channels, bias=False)
        parts[f"norm{number}"] = BatchNorm2d(channels)
        if number < last:
            parts[f"act{number}"] = nn.ReLU()
    return nn.Sequential(parts)


def global_gather(channels: int, size_hw: tuple[int, int], padded: bool) -> nn.Sequential:
    """Return a depthwise convolution as large as the map, with normalisation."""
    padding = ((size_hw[0] - 1) // 2, (size_hw[1] - 1) // 2) if padded else (0, 0)
    conv = nn.Conv2d(channels, channels, size_hw, padding=padding, groups=channels, bias=False)
    return nn.Sequential(OrderedDict(conv1=conv, norm1=BatchNorm2d(channels)))
