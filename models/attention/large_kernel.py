"""Attention by large depthwise kernels (MSCA, LSK, LSKA): multiply the map by a gate without sigmoid."""

from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.limits import KERNEL, LARGE_KERNEL
from models.parts import Start, require_odd, zero_
from models.registry import layer, same
from utils.errors import ModelConfigError


class LargeKernelLayer(nn.Module):
    """Base class: the gate is the 1 x 1 convolution `mix` of the map that `context` returns.

    Args:
        context_channels: channels of `context`'s output.
        block: put the product inside a residual block: 1 x 1 convolution, GELU, product, 1 x 1 convolution, plus the
            input.
        start: `identity` starts with a gate of one (`mix` has zero weights and biases of one), or a last convolution of
            zeros in a block.
    """

    def __init__(self, channels: int, context_channels: int, block: bool, start: Start) -> None:
        super().__init__()
        self.mix = nn.Conv2d(context_channels, channels, 1)
        self.proj_in = nn.Conv2d(channels, channels, 1) if block else None
        self.proj_out = nn.Conv2d(channels, channels, 1) if block else None
        if start == "identity":
            zero_(self.mix if self.proj_out is None else self.proj_out)
            if self.proj_out is None:
                assert self.mix.bias is not None
                nn.init.ones_(self.mix.bias)

    def context(self, x: Tensor) -> Tensor:
        """Return the features of each pixel's surroundings in `x`, (B, context_channels, H, W)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        if self.proj_out is None:
            return x * self.gate(x)
        inner = self.inner(x)
        return x + self.proj_out(inner * self.gate(inner))

    def inner(self, x: Tensor) -> Tensor:
        """Return the map from which the gate is computed, and which it multiplies."""
        return x if self.proj_in is None else functional.gelu(self.proj_in(x))

    def gate(self, inner: Tensor) -> Tensor:
        """Return the factor of the inner map, (B, C, H, W)."""
        return self.mix(self.context(inner))

    def explain(self, x: Tensor) -> dict[str, Tensor]:
        """Return "gate" (B, C, H, W): the factor of the map, or of the block's inner map."""
        return {"gate": self.gate(self.inner(x))}


def depthwise(channels: int, kernel_hw: tuple[int, int], dilation: int = 1) -> nn.Conv2d:
    """Return a depthwise convolution with bias that keeps the size; the kernel must be odd."""
    height, width = (dilation * (kernel - 1) // 2 for kernel in kernel_hw)
    return nn.Conv2d(channels, channels, kernel_hw, padding=(height, width), dilation=dilation, groups=channels)


def strips(channels: int, kernel_size: int, dilation: int = 1) -> nn.Sequential:
    """Return a depthwise convolution along rows and then one along columns."""
    return nn.Sequential(
        depthwise(channels, (1, kernel_size), dilation), depthwise(channels, (kernel_size, 1), dilation)
    )


@layer(same, "attention", example=())
class MSCA(LargeKernelLayer):
    """Multiply the map by a mix of depthwise strip convolutions of several lengths over a 5 x 5 one.

    Source: Guo et al. 2022, SegNeXt, arxiv.org/abs/2209.08575, section 3.1.
    Differs: without `block` it is the paper's equations alone; the authors' network puts the block around them. Every
        depthwise convolution has a bias; the paper does not say.

    Args:
        kernel_sizes: lengths of the strips, odd.
        block: put the product inside a residual block: 1 x 1 convolution, GELU, product, 1 x 1 convolution, plus the
            input.
        start: `identity` starts with a gate of one, or with a last convolution of zeros in a block.
    Raises:
        ModelConfigError: an even length, or no lengths.
    """

    def __init__(
        self,
        channels: int,
        kernel_sizes: Annotated[tuple[int, ...], LARGE_KERNEL] = (7, 11, 21),
        block: bool = False,
        start: Start = "random",
    ) -> None:
        super().__init__(channels, channels, block, start)
        if not kernel_sizes:
            raise ModelConfigError("kernel_sizes is []: expected at least one odd length, such as [7, 11, 21]")
        for kernel_size in kernel_sizes:
            require_odd("kernel_sizes", kernel_size)
        self.near = depthwise(channels, (5, 5))
        self.strips = nn.ModuleList(strips(channels, kernel_size) for kernel_size in kernel_sizes)

    def context(self, x: Tensor) -> Tensor:
        near = total = self.near(x)
        for strip in self.strips:
            total = total + strip(near)
        return total


@layer(same, "attention", example=())
class LSK(LargeKernelLayer):
    """Multiply the map by the outputs of two depthwise kernels, weighed per pixel by their channel mean and maximum.

    Source: Li et al. 2023, Large Selective Kernel Network for Remote Sensing Object Detection,
        arxiv.org/abs/2303.09030, section 3.
    Differs: without `block` it is the selection alone; the paper puts the block around it. Every convolution has a
        bias; the paper does not say. Half of an odd width is rounded down.

    Args:
        kernel_size: of the convolution that predicts the weights, odd.
        block: put the product inside a residual block: 1 x 1 convolution, GELU, product, 1 x 1 convolution, plus the
            input.
        start: `identity` starts with a gate of one, or with a last convolution of zeros in a block.
    Raises:
        ModelConfigError: an even kernel.
    """

    def __init__(
        self, channels: int, kernel_size: Annotated[int, KERNEL] = 7, block: bool = False, start: Start = "random"
    ) -> None:
        half = max(channels // 2, 1)
        super().__init__(channels, half, block, start)
        require_odd("kernel_size", kernel_size)
        self.near = depthwise(channels, (5, 5))
        self.far = depthwise(channels, (7, 7), dilation=3)
        self.near_half = nn.Conv2d(channels, half, 1)
        self.far_half = nn.Conv2d(channels, half, 1)
        self.select = nn.Conv2d(2, 2, kernel_size, padding=kernel_size // 2)

    def context(self, x: Tensor) -> Tensor:
        near, far, weights = self.halves(x)
        return torch.addcmul(near * weights[:, :1], far, weights[:, 1:])

    def halves(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the near and the far context (B, C / 2, H, W) and the weights of both (B, 2, H, W)."""
        near = self.near(x)
        far = self.far(near)
        near, far = self.near_half(near), self.far_half(far)
        both = torch.cat((near, far), 1)
        weights = self.select(torch.cat((both.mean(1, keepdim=True), both.amax(1, keepdim=True)), 1)).sigmoid()
        return near, far, weights

    def explain(self, x: Tensor) -> dict[str, Tensor]:
        """Return "gate" (B, C, H, W), and "selection" (B, 2, H, W): the weights of the near and of the far context."""
        inner = self.inner(x)
        return {"gate": self.gate(inner), "selection": self.halves(inner)[2]}


@layer(same, "attention", example=())
class LSKA(LargeKernelLayer):
    """Multiply the map by the output of a large kernel, split into dense and dilated strips along rows and columns.

    Source: Lau et al. 2023, Large Separable Kernel Attention, arxiv.org/abs/2309.01439, section 3.
    Differs: besides the paper's kernels 7, 11, 23, 35, 41 and 53, all sizes are allowed that the strips reach exactly.
        Every convolution has a bias; the paper does not say. The default of 23 is ours.

    Args:
        kernel_size: total extent of the strips: 7 or 11 (dilation 2), or 17, 23, 29, 35, … (dilation 3).
        block: put the product inside a residual block: 1 x 1 convolution, GELU, product, 1 x 1 convolution, plus the
            input.
        start: `identity` starts with a gate of one, or with a last convolution of zeros in a block.
    Raises:
        ModelConfigError: a kernel size that odd strips do not reach exactly.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: Annotated[int, LARGE_KERNEL] = 23,
        block: bool = False,
        start: Start = "random",
    ) -> None:
        super().__init__(channels, channels, block, start)
        dilation = 2 if kernel_size <= 11 else 3
        if kernel_size < 7 or (kernel_size + 1) % (2 * dilation):
            nearest = 7 if kernel_size < 9 else max(round((kernel_size + 1) / 6), 2) * 6 - 1
            raise ModelConfigError(
                f"kernel_size is {kernel_size}: expected 7, 11, 17, 23, 29, 35, 41, … (6 apart); try {nearest}"
            )
        self.near = strips(channels, 2 * dilation - 1)
        self.far = strips(channels, kernel_size // dilation, dilation)

    def context(self, x: Tensor) -> Tensor:
        return self.far(self.near(x))
