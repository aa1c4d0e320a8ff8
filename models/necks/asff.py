"""Adaptively spatial feature fusion: resize the levels of a pyramid to one of them and sum them, weighted per cell."""

from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.common import Conv
from models.limits import CHANNELS
from models.registry import Channels, Scale, layer, maps, rule
from utils.errors import ModelConfigError


class AdaptiveSum(nn.Module):
    """Add maps of one size and width; the shares of each cell add up to one.

    Args:
        count: number of maps.
        weight_channels: channels of each map's 1 x 1 convolution, which predict the shares.
    """

    def __init__(self, count: int, channels: int, weight_channels: int) -> None:
        super().__init__()
        if weight_channels < 1:
            raise ModelConfigError(f"weight_channels is {weight_channels}: expected a positive number")
        self.compress = nn.ModuleList(Conv(channels, weight_channels) for _ in range(count))
        self.weigh = nn.Conv2d(count * weight_channels, count, 1)

    def shares(self, inputs: list[Tensor]) -> Tensor:
        """Return the share (B, count, H, W) of each map in each cell."""
        logits = self.weigh(torch.cat([compress(x) for compress, x in zip(self.compress, inputs, strict=True)], 1))
        return logits.softmax(1, dtype=torch.promote_types(logits.dtype, torch.float32)).to(inputs[0].dtype)

    def forward(self, inputs: list[Tensor]) -> Tensor:
        shares = self.shares(inputs).split(1, 1)
        fused = inputs[0] * shares[0]
        for x, share in zip(inputs[1:], shares[1:], strict=True):
            fused = torch.addcmul(fused, x, share)
        return fused


def check_levels(inputs: list[Tensor]) -> None:
    """Reject levels whose sizes do not halve from one to the next; checked on meta tensors when a network is built.

    Raises:
        ModelConfigError: names the first level that does not fit.
    """
    height, width = inputs[0].shape[2:]
    for number, x in enumerate(inputs):
        expected = [side / 2**number for side in (height, width)]
        if x.is_meta and any(abs(side - wanted) >= 1 for side, wanted in zip(x.shape[2:], expected, strict=True)):
            raise ModelConfigError(
                f"input {number} is {x.shape[2]} x {x.shape[3]}, and the first {height} x {width}: "
                "expected levels in ascending stride, "
                "each of twice the stride of the one before"
            )


@rule("in_channels")
def to_level(inputs: list[Channels], arguments: dict, scale: Scale) -> Channels:
    """Several inputs, one per level; the output has the width of `level`, or `out_channels` (scaled)."""
    widths, level, wanted = maps(inputs), arguments["level"], arguments.get("out_channels")
    if len(widths) < 2:
        raise ModelConfigError(
            f"'from' names {len(widths)} layer: expected a list of several levels, the finest first, such as [15, 18, "
            "21]"
        )
    if not 0 <= level < len(widths):
        raise ModelConfigError(
            f"level is {level}: expected one of the {len(widths)} inputs, 0 (the finest) to {len(widths) - 1}"
        )
    if wanted is not None and wanted < 1:
        raise ModelConfigError(f"out_channels is {wanted}: expected a positive number")
    arguments["in_channels"] = widths
    arguments["out_channels"] = widths[level] if wanted is None else scale.channels(wanted)
    return arguments["out_channels"]


@layer(to_level, "fusion", example=(1,), example_inputs=(16, 24, 32), example_strides=(1, 2, 4))
class ASFF(nn.Module):
    """Resize the levels of a pyramid to one of them and add them, in shares predicted for every cell.

    The paper's ASFF head is one such row per level, with an ordinary head after them (models/detect/yolov8-ASFF.yaml).

    Source: Liu et al. 2019, Learning Spatial Fusion for Single-Shot Object Detection, arxiv.org/abs/1911.09516.
    Differs: any number of levels and any widths; a coarser level that has the output's width already is enlarged
        without a 1 x 1 convolution.

    Args:
        level: position in `from` of the level whose size the output has. The levels must be in ascending stride, each
            twice the stride of the one before.
        out_channels: of the output; by default the channels of `level`.
        weight_channels: channels per level that predict the shares.
    Raises:
        ModelConfigError: no such level, or a number is not positive.
    """

    def __init__(
        self,
        level: int,
        in_channels: list[int],
        out_channels: Annotated[int | None, CHANNELS] = None,
        weight_channels: Annotated[int, CHANNELS] = 16,
    ) -> None:
        super().__init__()
        self.level = level
        channels = in_channels[level]
        self.resize = nn.ModuleList(
            self.resizer(width, channels, level - number) for number, width in enumerate(in_channels)
        )
        self.fuse = AdaptiveSum(len(in_channels), channels, weight_channels)
        self.expand = Conv(channels, out_channels or channels, 3)

    @staticmethod
    def resizer(in_channels: int, out_channels: int, halvings: int) -> nn.Module:
        """Build the module that changes a level's width and, if it is finer, halves its size `halvings` times."""
        if halvings > 0:
            pools = [nn.MaxPool2d(3, 2, 1) for _ in range(halvings - 1)]
            return nn.Sequential(*pools, Conv(in_channels, out_channels, 3, 2))
        return nn.Identity() if in_channels == out_channels else Conv(in_channels, out_channels)

    def resized(self, inputs: list[Tensor]) -> list[Tensor]:
        """Return all levels at the width and size of the output."""
        levels = [resize(x) for resize, x in zip(self.resize, inputs, strict=True)]
        size = inputs[self.level].shape[2:]
        coarser = [functional.interpolate(x, size=size, mode="nearest") for x in levels[self.level + 1 :]]
        return levels[: self.level + 1] + coarser

    def forward(self, inputs: list[Tensor]) -> Tensor:
        check_levels(inputs)
        return self.expand(self.fuse(self.resized(inputs)))

    def explain(self, inputs: list[Tensor]) -> dict[str, Tensor]:
        """Return "shares" (B, levels, H, W): the share of each level in each cell."""
        return {"shares": self.fuse.shares(self.resized(inputs))}
