"""Upsampling with weights (CARAFE) or sampling points (DySample) predicted from the map."""

from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.limits import CHANNELS, KERNEL, UP_TO_CHANNELS, Limits
from models.registry import layer, same
from utils.errors import ModelConfigError


def check_scale(scale: int) -> None:
    """Reject an invalid upsampling factor.

    Raises:
        ModelConfigError: the factor is below 1.
    """
    if scale < 1:
        raise ModelConfigError(f"scale is {scale}: expected a positive number, such as 2")


@layer(same, "upsample", example=())
class CARAFE(nn.Module):
    """Enlarge a map: each new cell is a weighted mean of the old cells around it; convolutions predict the weights.

    Source: Wang et al. 2019, CARAFE, arxiv.org/abs/1905.02188.
    Differs: the cells of the window are summed one after the other from views of the map, without a copy for each.

    Args:
        scale: factor by which height and width grow.
        kernel_up: side of the averaged window in cells of the input, odd; cells outside the map are zero.
        kernel_encoder: kernel size of the convolution that predicts the weights; odd.
        mid_channels: hidden channels that predict the weights; a network's width multiple does not scale them.
    Raises:
        ModelConfigError: a number is not positive, or a kernel size is even.
    """

    def __init__(
        self,
        channels: int,
        scale: Annotated[int, Limits(1, 16)] = 2,
        kernel_up: Annotated[int, KERNEL] = 5,
        kernel_encoder: Annotated[int, KERNEL] = 3,
        mid_channels: Annotated[int, CHANNELS] = 64,
    ) -> None:
        super().__init__()
        check_scale(scale)
        for key, size in (("kernel_up", kernel_up), ("kernel_encoder", kernel_encoder)):
            if size < 1 or size % 2 == 0:
                raise ModelConfigError(f"{key} is {size}: expected an odd positive number, such as {max(size, 2) + 1}")
        if mid_channels < 1:
            raise ModelConfigError(f"mid_channels is {mid_channels}: expected a positive number, such as 64")
        self.scale, self.kernel_up = scale, kernel_up
        self.compress = nn.Conv2d(channels, mid_channels, 1)
        self.encoder = nn.Conv2d(mid_channels, (scale * kernel_up) ** 2, kernel_encoder, padding=kernel_encoder // 2)
        nn.init.normal_(self.encoder.weight, std=0.001)  # a window starts with nearly equal weights
        assert self.encoder.bias is not None
        nn.init.zeros_(self.encoder.bias)

    def kernels(self, x: Tensor) -> Tensor:
        """Return each new cell's window weights (B, kernel_up^2, scale^2, H, W); the window is row by row."""
        logits = self.encoder(self.compress(x)).view(-1, self.kernel_up**2, self.scale**2, *x.shape[2:])
        return logits.softmax(1, dtype=torch.promote_types(logits.dtype, torch.float32)).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        kernels = self.kernels(x)
        height, width = x.shape[2:]
        reach = self.kernel_up // 2
        padded = functional.pad(x, (reach, reach, reach, reach)).unsqueeze(2)
        enlarged = kernels.new_zeros(())
        for tap in range(self.kernel_up**2):
            top, left = divmod(tap, self.kernel_up)
            neighbour = padded[..., top : top + height, left : left + width]  # (B, C, 1, H, W)
            enlarged = torch.addcmul(enlarged, neighbour, kernels[:, None, tap])  # (B, C, scale^2, H, W)
        return functional.pixel_shuffle(enlarged.flatten(1, 2), self.scale)


@layer(same, "upsample", example=())
class DySample(nn.Module):
    """Enlarge a map by bilinear sampling at points that a 1 x 1 convolution shifts; at first it interpolates.

    Source: Liu et al. 2023, Learning to Upsample by Learning to Sample, arxiv.org/abs/2308.15085.
    Differs: sampling points are always computed in float32; half precision is off by a tenth of a cell on a large map.

    Args:
        scale: factor by which height and width grow.
        style: "lp" predicts the offsets at the old size, then applies pixel shuffle to them; "pl" applies pixel shuffle
            to the map and predicts the offsets at the new size.
        groups: number of channel groups, each with its own sampling points.
        dyscope: predict the factor of the offsets, from 0 to 0.5, instead of a fixed 0.25.
    Raises:
        ModelConfigError: the channels are no multiple of the groups, or (pl) of scale^2.
    """

    def __init__(
        self,
        channels: int,
        scale: Annotated[int, Limits(1, 16)] = 2,
        style: Literal["lp", "pl"] = "lp",
        groups: Annotated[int, UP_TO_CHANNELS] = 4,
        dyscope: bool = False,
    ) -> None:
        super().__init__()
        check_scale(scale)
        if groups < 1 or channels % groups:
            divisors = ", ".join(str(count) for count in (1, 2, 4, 8) if channels % count == 0)
            raise ModelConfigError(f"groups is {groups}: does not divide {channels} channels; try one of {divisors}")
        if style == "pl" and channels % scale**2:
            raise ModelConfigError(
                f"style 'pl' splits {channels} channels into {scale**2} parts, which they do not divide into: "
                "use style 'lp'"
            )
        self.channels, self.scale, self.style, self.groups = channels, scale, style, groups
        inputs, outputs = (channels, 2 * groups * scale**2) if style == "lp" else (channels // scale**2, 2 * groups)
        self.offset = nn.Conv2d(inputs, outputs, 1)
        nn.init.normal_(self.offset.weight, std=0.001)
        assert self.offset.bias is not None
        nn.init.zeros_(self.offset.bias)
        self.scope: nn.Conv2d | None = None
        if dyscope:
            self.scope = nn.Conv2d(inputs, outputs, 1, bias=False)
            nn.init.zeros_(self.scope.weight)

    def moves(self, x: Tensor) -> Tensor:
        """Return the points' offsets in input cells: (B, 2 * groups, scale * H, scale * W), all x before all y."""
        if self.style == "pl":
            x = functional.pixel_shuffle(x, self.scale)
        moves = self.offset(x) * (0.25 if self.scope is None else 0.5 * self.scope(x).sigmoid())
        return functional.pixel_shuffle(moves, self.scale) if self.style == "lp" else moves

    def points(self, x: Tensor) -> Tensor:
        """Return the sampling points (B * groups, scale * H, scale * W, 2): x, y in [-1, 1], in float32 or wider."""
        exact = torch.promote_types(x.dtype, torch.float32)
        moves = self.moves(x).to(exact)
        height, width = x.shape[2:]
        columns, rows = (
            (torch.arange(self.scale * side, dtype=exact, device=x.device) + 0.5) / self.scale
            for side in (width, height)
        )
        across, down = moves[:, : self.groups], moves[:, self.groups :]  # (B, groups, scale * H, scale * W) each
        return torch.stack((2 * (columns + across) / width - 1, 2 * (rows[:, None] + down) / height - 1), -1).flatten(
            0, 1
        )

    def forward(self, x: Tensor) -> Tensor:
        points = self.points(x)
        parts = x.to(points.dtype).reshape(
            -1, self.channels // self.groups, *x.shape[2:]
        )  # (B * groups, C / groups, …)
        sampled = functional.grid_sample(parts, points, mode="bilinear", padding_mode="border", align_corners=False)
        return sampled.reshape(-1, self.channels, *sampled.shape[2:]).to(x.dtype)
