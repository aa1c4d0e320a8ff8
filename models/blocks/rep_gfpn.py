"""The block of DAMO-YOLO's neck; rows of Concat, nn.Upsample and Conv around it fuse the levels."""

from typing import Annotated

import torch
from torch import Tensor, nn

from models.blocks.normalisation import allow_single_values
from models.building import InnerLayer, unit_builder
from models.common import Conv, RepBottleneck
from models.limits import FACTOR
from models.parts import require_positive
from models.registry import layer, to


@layer(to, repeats="repeats", example=(16,))
class CSPStage(nn.Module):
    """RepGFPN's block: chain RepBottlenecks on half the width; concatenate all stages and the other half.

    Source: Xu et al. 2022, DAMO-YOLO, arxiv.org/abs/2211.15444
    Differs: the bottleneck is RepBottleneck: a RepConv (3 x 3 and 1 x 1 side by side, merged by `fold`), then a 3 x 3,
        with a shortcut. The pyramid pooling in one stage of DAMO-YOLO's backbone is left out: write an SPPF row.

    Args:
        expansion: width between the two convolutions of a bottleneck divided by the bottleneck's width.
        unit: a layer in place of each bottleneck: its registered name, or [name, arguments …].
        attention: a layer at the end of each bottleneck's branch, before its sum; same form as `unit`.
    Raises:
        ModelConfigError: fewer than two channels, a layer that cannot be built, or both `unit` and `attention`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        repeats: int = 1,
        expansion: Annotated[float, FACTOR] = 1.0,
        unit: InnerLayer | None = None,
        attention: InnerLayer | None = None,
    ) -> None:
        super().__init__()

        def bottleneck(width: int) -> nn.Module:
            return RepBottleneck(width, width, expansion=expansion, attention=attention)

        build = unit_builder(unit, bottleneck, attention)
        past = out_channels // 2
        require_positive("expansion", expansion)
        require_positive("half of out_channels", past)
        width = out_channels - past
        self.past = Conv(in_channels, past)
        self.into = Conv(in_channels, width)
        self.m = nn.ModuleList(build(width) for _ in range(repeats))
        self.fuse = Conv(past + repeats * width, out_channels)
        allow_single_values(self)

    def forward(self, x: Tensor) -> Tensor:
        stages, y = [self.past(x)], self.into(x)
        for unit in self.m:
            y = unit(y)
            stages.append(y)
        return self.fuse(torch.cat(stages, 1))
