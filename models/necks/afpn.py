"""Asymptotic feature pyramid: adaptive fusion of the two finest levels, then of one coarser level at a time."""

from typing import Annotated

from torch import Tensor, nn
from torch.nn import functional

from models.blocks.csp import Bottleneck
from models.building import InnerLayer, build_inner
from models.common import Conv
from models.limits import CHANNELS, REPEATS, UP_TO_CHANNELS
from models.necks.asff import AdaptiveSum, check_levels
from models.registry import Channels, Scale, layer, maps, rule
from utils.errors import ModelConfigError


class StridedConv(Conv):
    """Conv whose kernel size is its stride; maps are padded with zeros below and on the right to a multiple of it."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(in_channels, out_channels, stride, stride, padding=0)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        # one cell less than the kernel reaches every started block, and needs no remainder of a size
        return super().forward(functional.pad(x, (0, self.stride - 1, 0, self.stride - 1)))


class LevelFusion(nn.Module):
    """Fuse several levels at the size and width of one of them.

    Args:
        widths: channels of the levels, the finest first.
        level: index of the level whose size and width the output has.
    """

    def __init__(self, widths: list[int], level: int, weight_channels: int) -> None:
        super().__init__()
        self.level = level
        channels = widths[level]
        self.resize = nn.ModuleList(
            self.resizer(width, channels, level - number) for number, width in enumerate(widths)
        )
        self.fuse = AdaptiveSum(len(widths), channels, weight_channels)
        self.conv = Conv(channels, channels, 3)

    @staticmethod
    def resizer(in_channels: int, out_channels: int, halvings: int) -> nn.Module:
        """Build the module that changes a level's width and, if it is finer, halves its size `halvings` times."""
        if halvings == 0:
            return nn.Identity()
        return StridedConv(in_channels, out_channels, 2**halvings) if halvings > 0 else Conv(in_channels, out_channels)

    def forward(self, inputs: list[Tensor]) -> Tensor:
        levels = [resize(x) for resize, x in zip(self.resize, inputs, strict=True)]
        size = inputs[self.level].shape[2:]
        coarser = [
            functional.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in levels[self.level + 1 :]
        ]
        return self.conv(self.fuse(levels[: self.level + 1] + coarser))


def level_widths(asked: int | list[int] | None, widths: list[int]) -> list[int]:
    """Return the output width of every level, from one width for all, one each, or None for the input's widths."""
    if asked is None:
        return widths
    return [asked] * len(widths) if isinstance(asked, int) else asked


@rule("in_channels")
def to_levels(inputs: list[Channels], arguments: dict, scale: Scale) -> Channels:
    """One input per level; the output is a list of as many maps of `out_channels` (scaled) or the inputs' widths."""
    widths, wanted = maps(inputs), arguments.get("out_channels")
    if len(widths) < 2:
        raise ModelConfigError(
            f"'from' names {len(widths)} layer: expected a list of several levels, the finest first, such as [4, 6, 9]"
        )
    given = level_widths(wanted, widths)
    if len(given) != len(widths) or min(given) < 1:
        raise ModelConfigError(
            f"out_channels is {wanted}: expected a positive number, or as many as the {len(widths)} levels in 'from'"
        )
    arguments["in_channels"] = widths
    arguments["out_channels"] = widths if wanted is None else [scale.channels(count) for count in given]
    return arguments["out_channels"]


@layer(to_levels, "fusion", example=(16, 4, 1), example_inputs=(16, 24, 32), example_strides=(1, 2, 4))
class AFPN(nn.Module):
    """Fuse the levels of a pyramid step by step, the two finest first; the output is a list of maps.

    A row such as [-1, 1, Pick, [0]] takes one map of the list.

    Source: Yang et al. 2023, AFPN, arxiv.org/abs/2306.15988.
    Differs: any number of levels; the units are this framework's bottlenecks, without activation after the sum; a finer
        level whose size is no multiple of the stride is padded with zeros.

    Args:
        out_channels: of all outputs, or a list with one for each; by default the inputs' widths.
        reduction: divides the inputs' widths, rounded down, to the inner widths.
        repeats: number of bottlenecks after each fusion.
        weight_channels: channels per level that predict the shares.
        unit: a layer in place of each bottleneck: its registered name, or [name, arguments …].
    Raises:
        ModelConfigError: a number is not positive, or a level is left without channels.
    """

    def __init__(
        self,
        in_channels: list[int],
        out_channels: Annotated[int | list[int] | None, CHANNELS] = None,
        reduction: Annotated[int, UP_TO_CHANNELS] = 8,
        repeats: Annotated[int, REPEATS] = 4,
        weight_channels: Annotated[int, CHANNELS] = 8,
        unit: InnerLayer | None = None,
    ) -> None:
        super().__init__()
        if reduction < 1 or min(in_channels) < reduction:
            raise ModelConfigError(
                f"reduction is {reduction}: expected 1 to {min(in_channels)}, the channels of the narrowest level"
            )
        if repeats < 0:
            raise ModelConfigError(f"repeats is {repeats}: expected 0 or more")
        count = len(in_channels)
        wanted = level_widths(out_channels, in_channels)
        widths = [width // reduction for width in in_channels]
        self.reduce = nn.ModuleList(Conv(width, inner) for width, inner in zip(in_channels, widths, strict=True))
        self.steps = nn.ModuleList(
            nn.ModuleList(
                nn.Sequential(
                    LevelFusion(widths[:fused], level, weight_channels),
                    *(make_unit(widths[level], unit) for _ in range(repeats)),
                )
                for level in range(fused)
            )
            for fused in range(2, count + 1)
        )
        self.expand = nn.ModuleList(Conv(inner, width) for inner, width in zip(widths, wanted, strict=True))

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        check_levels(inputs)
        waiting = [reduce(x) for reduce, x in zip(self.reduce, inputs, strict=True)]
        fused, waiting = waiting[:1], waiting[1:]
        for step, coarser in zip(self.steps, waiting, strict=True):
            assert isinstance(step, nn.ModuleList)
            fused = [fuse([*fused, coarser]) for fuse in step]
        return [expand(x) for expand, x in zip(self.expand, fused, strict=True)]


def make_unit(width: int, unit: InnerLayer | None) -> nn.Module:
    """Build one of the units after a fusion."""
    return Bottleneck(width, width, expansion=1.0) if unit is None else build_inner(unit, width, "unit")
