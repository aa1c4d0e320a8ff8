"""Blocks with several scales side by side: kernel sizes (MSBlock), dilations (DWR), patch sizes (PPA)."""

import math
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.attention.channel_attention import ECA
from models.attention.gating import GatedLayer
from models.attention.window_attention import wide
from models.blocks.light_convolution import check_even, cropped, space_to_depth
from models.blocks.normalisation import allow_single_values, block_norm, fold_batchnorm_ahead, merge_pointwise
from models.common import Conv, build_activation, fix_activation
from models.limits import CELLS, DROPPED, FACTOR, LARGE_KERNEL, Limits
from models.parts import LayerNorm2d, Start, require_odd, require_positive, same_as_asked, zero_
from models.registry import layer, to
from utils.errors import ModelConfigError


@layer(to, example=(16,))
class MSBlock(nn.Module):
    """Split a widened map into branches of growing kernels; each also gets the output of the one before; join them.

    The input of branch i is its part of the widened map plus the output of branch i - 1. It passes `depth` inverted
    bottlenecks (1 x 1, depthwise, 1 x 1), or nothing if the branch's kernel is 1.

    Source: Chen et al. 2023, YOLO-MS, arxiv.org/abs/2308.05480
    Differs: normalisation and activation follow every convolution. An inverted bottleneck has no shortcut, as in the
        paper's formula.

    Args:
        kernel_sizes: of the branches' depthwise convolutions, odd; YOLO-MS goes from [1, 3, 3] at the first stage to
            [1, 9, 9] at the last.
        widening: width before the split divided by `in_channels`; the number of branches must divide that width.
        expansion: width of the depthwise convolutions divided by the width of a branch.
        depth: inverted bottlenecks of a branch.
    Raises:
        ModelConfigError: an even kernel, or a number of branches that does not divide the width.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_sizes: Annotated[tuple[int, ...], LARGE_KERNEL] = (1, 3, 3),
        widening: Annotated[float, FACTOR] = 3.0,
        expansion: Annotated[float, FACTOR] = 2.0,
        depth: Annotated[int, Limits(1, 16)] = 3,
    ) -> None:
        super().__init__()
        if not kernel_sizes:
            raise ModelConfigError("kernel_sizes is empty: expected one kernel a branch, such as [1, 3, 3]")
        for kernel_size in kernel_sizes:
            require_odd("kernel_sizes", kernel_size)
        require_positive("widening", widening)
        require_positive("expansion", expansion)
        require_positive("depth", depth)
        hidden, branches = int(in_channels * widening), len(kernel_sizes)
        if hidden % branches or not hidden:
            raise ModelConfigError(
                f"widening {widening} makes {hidden} channels of {in_channels}: "
                f"they do not split into {branches} branches: "
                f"try widening {math.ceil(widening / branches) * branches}, or as many kernel_sizes as divide {hidden}"
            )
        width = hidden // branches
        inner = max(1, int(width * expansion))
        self.widen = Conv(in_channels, hidden)
        self.branches = nn.ModuleList(
            nn.Sequential(*(inverted_bottleneck(width, inner, kernel_size) for _ in range(depth)))
            if kernel_size > 1
            else nn.Identity()
            for kernel_size in kernel_sizes
        )
        self.fuse = Conv(hidden, out_channels)
        allow_single_values(self)

    def forward(self, x: Tensor) -> Tensor:
        stages: list[Tensor] = []
        for branch, part in zip(self.branches, self.widen(x).chunk(len(self.branches), 1), strict=True):
            stages.append(branch(part + stages[-1] if stages else part))
        return self.fuse(torch.cat(stages, 1))


def inverted_bottleneck(channels: int, hidden_channels: int, kernel_size: int) -> nn.Sequential:
    """Return 1 x 1, depthwise and 1 x 1 convolution, each with normalisation and activation."""
    depthwise = Conv(hidden_channels, hidden_channels, kernel_size, groups=hidden_channels)
    return nn.Sequential(Conv(channels, hidden_channels), depthwise, Conv(hidden_channels, channels))


DILATIONS = {1: 2, 3: 1, 5: 1}
"""DWR's dilations, with the output channels of each per input channel."""


@layer(same_as_asked, example=(16,))
class DWR(nn.Module):
    """Narrow to half the width by a 3 x 3, convolve at dilations 1, 3 and 5, and add the result to the input.

    Source: Wei et al. 2022, DWRSeg, arxiv.org/abs/2212.01173
    Differs: dilation 1 has as many channels as the input, 3 and 5 have half as many. One normalisation follows all
        three. No activation follows it or the sum.

    Args:
        out_channels: must be `in_channels`, even; the first positional argument of a row.
        depthwise: make the dilated convolutions depthwise, as in the paper; False makes them full, with `out_channels`
            / 2 times the weights.
        activation: of the first convolution; None takes the network's.
        start: `identity` starts with zeros in the last convolution.
    Raises:
        ModelConfigError: an odd width, or no such activation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        depthwise: bool = True,
        activation: str | None = "ReLU",
        start: Start = "random",
    ) -> None:
        super().__init__()
        check_even(in_channels, "the width")
        half = in_channels // 2
        self.narrow = Conv(in_channels, half, 3)
        self.around = nn.ModuleList(
            nn.Conv2d(
                half, times * half, 3, padding=dilation, dilation=dilation, groups=half if depthwise else 1, bias=False
            )
            for dilation, times in DILATIONS.items()
        )
        self.norm: nn.Module = block_norm(2 * in_channels)
        self.fuse = nn.Conv2d(2 * in_channels, in_channels, 1)
        fix_activation(self, activation)
        allow_single_values(self)
        if start == "identity":
            zero_(self.fuse)

    def forward(self, x: Tensor) -> Tensor:
        region = self.narrow(x)
        return x + self.fuse(self.norm(torch.cat([conv(region) for conv in self.around], 1)))

    def fold(self) -> None:
        """Merge the normalisation into the convolution behind it, for inference."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.fuse = fold_batchnorm_ahead(self.norm, self.fuse)
            self.norm = nn.Identity()


class PatchAttention(nn.Module):
    """Weigh each patch's features by their similarity to a learned direction, then enlarge them to the patch's size.

    The mean over the channels at each cell makes a patch a vector of patch_size ** 2 values. Two linear maps with layer
    normalisation between them turn it into a token, which is multiplied by its own softmax over the channels.

    Args:
        patch_size: side of a patch in cells; maps are padded with zeros below and on the right to a multiple of it.
    """

    def __init__(self, channels: int, patch_size: int) -> None:
        super().__init__()
        hidden = max(channels // 2, 1)
        self.patch_size = patch_size
        self.fc1 = nn.Conv2d(patch_size * patch_size, hidden, 1)
        self.norm = LayerNorm2d(hidden)
        self.fc2 = nn.Conv2d(hidden, channels, 1)
        self.prompt = nn.Parameter(torch.ones(channels))
        self.transform: nn.Module = nn.Conv2d(channels, channels, 1, bias=False)
        self.transform.weight = nn.Parameter(torch.eye(channels)[..., None, None])
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.fc1(space_to_depth(x.mean(1, keepdim=True), self.patch_size)))
        tokens = self.fc2(
            hidden.contiguous()
        )  # one memory layout for any input: an export with dynamic sizes depends on it
        tokens = tokens * tokens.softmax(1)
        exact = tokens.to(wide(tokens))
        alike = (
            functional.normalize(exact, dim=1) * functional.normalize(self.prompt.to(exact.dtype), dim=0)[:, None, None]
        )
        tokens = tokens * alike.sum(1, keepdim=True).clamp(0, 1).to(tokens.dtype)
        spread = functional.interpolate(
            self.proj(self.transform(tokens)), scale_factor=self.patch_size, mode="bilinear"
        )
        return cropped(spread, x.shape[2:])

    def fold(self) -> None:
        """Merge the two linear maps after the selection, for inference."""
        if isinstance(self.transform, nn.Conv2d):
            self.proj, self.transform = merge_pointwise(self.transform, self.proj), nn.Identity()


class SpatialGate(GatedLayer):
    """Weigh every cell by the sigmoid of a 7 x 7 convolution of the mean and maximum over the channels."""

    def __init__(self) -> None:
        super().__init__("random")
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def gate(self, x: Tensor) -> Tensor:
        return self.opened(self.conv(torch.cat((x.mean(1, keepdim=True), x.amax(1, keepdim=True)), 1)))


@layer(to, example=(16,))
class PPA(nn.Module):
    """Add a chain of 3 x 3 convolutions, a 1 x 1 convolution and its patch attention; then weigh channels and cells.

    Source: Xu et al. 2024, HCF-Net, arxiv.org/abs/2403.10778
    Differs: the mean at a cell is taken over its channels, as in the paper. The authors' code mixes channels with
        cells, so their weights do not fit. Zeros fill the last patches of a map. The learned direction starts at ones:
        a random start can leave a branch without gradient. The projection comes before the interpolation, which is
        cheaper and gives the same.

    Args:
        patch_sizes: one for each branch of the attention.
        drop: share of channels dropped in training, after the gates.
        activation: used throughout; None means the network's, with ReLU after the last normalisation.
    Raises:
        ModelConfigError: a patch size that is not positive, or no such activation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        patch_sizes: Annotated[tuple[int, ...], CELLS] = (2, 4),
        drop: Annotated[float, DROPPED] = 0.1,
        activation: str | None = "ReLU",
    ) -> None:
        super().__init__()
        for patch_size in patch_sizes:
            require_positive("patch_sizes", patch_size)
        self.skip = Conv(in_channels, out_channels, activate=False)
        self.chain = nn.ModuleList(
            Conv(out_channels if number else in_channels, out_channels, 3) for number in range(3)
        )
        self.patches = nn.ModuleList(PatchAttention(out_channels, patch_size) for patch_size in patch_sizes)
        self.gate = nn.Sequential(ECA(out_channels), SpatialGate())
        self.drop = nn.Dropout2d(drop)
        self.norm = block_norm(out_channels)
        fix_activation(self, activation)
        self.act = build_activation(activation or "ReLU")
        allow_single_values(self)

    def forward(self, x: Tensor) -> Tensor:
        skipped = self.skip(x)
        total = skipped
        for branch in self.patches:
            total = total + branch(skipped)
        for conv in self.chain:
            x = conv(x)
            total = total + x
        return self.act(self.norm(self.drop(self.gate(total))))
