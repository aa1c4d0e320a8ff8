"""Dynamic convolution: every image mixes its own kernel from a layer's experts.

Source: Han et al. 2024, ParameterNet, arxiv.org/abs/2306.14525; Yang et al. 2019, CondConv, arxiv.org/abs/1904.04971.
The parameters of `DynamicConv2d` are named as in the published weights of both.
"""

import math
from typing import Annotated, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.attention.window_attention import full_precision, graph_leaves_torch, wide
from models.common import Conv, same_padding
from models.limits import CHANNELS, DILATION, KERNEL, PADDING, STRIDE, UP_TO_CHANNELS, Limits
from models.parts import BatchNorm2d, is_channels_last
from models.registry import layer, to
from utils.errors import ModelConfigError

Route = Literal["sigmoid", "mlp_softmax", "mlp_sigmoid"]
"""How a pooled map gives the experts' weights: one linear map, or two with ReLU between, then an activation."""

Form = Literal["pointwise", "grouped", "separate", "experts"]
"""How the mixed convolutions of a batch are computed; all are equal.

grouped: one grouped convolution with the images of the batch as its groups; a plain convolution for one image.
separate: image by image, for channels-last maps on a CPU, where grouping would copy the maps twice.
pointwise: 1 x 1 kernels as a matrix product.
experts: the convolutions of all experts, then the mixture. This multiplies the work by their number, but weights
are constant and the batch size is free, as graphs outside torch need it.
"""


class ExpertConv2d(nn.Module):
    """Convolution with a kernel mixed for each image from those of the experts, by given weights.

    Args:
        padding: cells on each side; None keeps the size at stride 1; "same" gives ceil(H / stride) rows; an odd cell of
            padding goes below and on the right.
        bias: whether every expert has a bias, which is mixed like its kernel.
    Attributes:
        weight: (experts, out_channels * in_channels / groups * kernel_size ** 2), one flat kernel per row.
        shift: (out_channels,), a bias that is not mixed, set by folding; else None.
        form: overrides `suitable_form`; None by default.
    """

    shift: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        padding: int | Literal["same"] | None = None,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
        experts: int = 4,
    ) -> None:
        super().__init__()
        check(in_channels, out_channels, groups, experts)
        self.in_channels, self.out_channels, self.kernel_size, self.experts = (
            in_channels,
            out_channels,
            kernel_size,
            experts,
        )
        self.stride, self.dilation, self.groups = stride, dilation, groups
        self.same = padding == "same"
        if padding is None:
            padding = (stride - 1 + dilation * (kernel_size - 1)) // 2
        self.padding = 0 if self.same else int(padding)
        fan_in = in_channels // groups * kernel_size**2
        self.weight = nn.Parameter(torch.empty(experts, out_channels * fan_in).uniform_(-(fan_in**-0.5), fan_in**-0.5))
        self.bias = (
            nn.Parameter(torch.empty(experts, out_channels).uniform_(-(fan_in**-0.5), fan_in**-0.5)) if bias else None
        )
        self.register_parameter("shift", None)
        self.form: Form | None = None

    def suitable_form(self, x: Tensor) -> Form:
        """Return the fastest form for this input and device."""
        if graph_leaves_torch():
            return "experts"
        if x.shape[0] == 1:
            return "grouped"
        if (self.kernel_size, self.stride, self.groups, self.padding) == (1, 1, 1, 0):
            return "pointwise"
        return (
            "separate"
            if x.device.type == "cpu" and is_channels_last(x) and not torch.compiler.is_compiling()
            else "grouped"
        )

    def forward(self, x: Tensor, routing_weights: Tensor) -> Tensor:
        """Convolve (B, C, H, W) with kernels mixed by `routing_weights` (B, experts)."""
        if self.same:
            x = functional.pad(x, (*self.same_padding(x.shape[3]), *self.same_padding(x.shape[2])))
        form, mixture = self.form or self.suitable_form(x), routing_weights.to(self.weight.dtype)
        bias = None if self.bias is None else mixture @ self.bias  # (B, out_channels)
        if self.shift is not None:
            bias = self.shift.expand(x.shape[0], -1) if bias is None else bias + self.shift
        if form == "experts":
            return self.all_experts(x, mixture, bias)
        kernels = mixture @ self.weight
        computed = {"pointwise": self.pointwise, "separate": self.separate, "grouped": self.grouped}
        return computed[form](x, kernels, bias)

    def same_padding(self, size: int) -> tuple[int, int]:
        """Return the cells before and after a row or column of `size` that give ceil(size / stride) outputs."""
        total = max((-(-size // self.stride) - 1) * self.stride + self.dilation * (self.kernel_size - 1) + 1 - size, 0)
        return total // 2, total - total // 2

    def grouped(self, x: Tensor, kernels: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve with the images of a batch as groups of one convolution."""
        batch = x.shape[0]
        kernels = kernels.view(-1, self.in_channels // self.groups, self.kernel_size, self.kernel_size)
        bias = None if bias is None else bias.flatten()
        settings = (self.stride, self.padding, self.dilation)
        if batch == 1:
            return functional.conv2d(x, kernels, bias, *settings, self.groups)
        together = x.reshape(1, -1, *x.shape[2:])
        y = functional.conv2d(together, kernels, bias, *settings, batch * self.groups)
        y = y.view(batch, self.out_channels, *y.shape[2:])
        return y.contiguous(memory_format=torch.channels_last) if is_channels_last(x) else y

    def separate(self, x: Tensor, kernels: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve image by image."""
        kernels = kernels.view(
            -1, self.out_channels, self.in_channels // self.groups, self.kernel_size, self.kernel_size
        )
        biases = [None] * len(kernels) if bias is None else bias.unbind()
        settings = (self.stride, self.padding, self.dilation, self.groups)
        return torch.cat(
            [functional.conv2d(*each, *settings) for each in zip(x.split(1), kernels.unbind(), biases, strict=True)]
        )

    def pointwise(self, x: Tensor, kernels: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve with 1 x 1 kernels, in the memory layout of the input."""
        batch, _, height, width = x.shape
        kernels = kernels.view(batch, self.out_channels, self.in_channels)
        if is_channels_last(x):
            pixels, turned = x.permute(0, 2, 3, 1).flatten(1, 2), kernels.transpose(1, 2)
            y = pixels @ turned if bias is None else torch.baddbmm(bias[:, None], pixels, turned)
            return y.view(batch, height, width, -1).permute(0, 3, 1, 2)
        pixels = x.flatten(2)
        y = kernels @ pixels if bias is None else torch.baddbmm(bias[:, :, None], kernels, pixels)
        return y.view(batch, -1, height, width)

    def all_experts(self, x: Tensor, mixture: Tensor, bias: Tensor | None) -> Tensor:
        """Compute the outputs of all experts by one convolution with constant weights, then mix them."""
        inputs, outputs = self.in_channels // self.groups, self.out_channels // self.groups
        shape = (self.experts, self.groups, outputs, inputs, self.kernel_size, self.kernel_size)
        constant = self.weight.view(shape).transpose(0, 1).reshape(-1, *shape[3:])
        y = functional.conv2d(x, constant, None, self.stride, self.padding, self.dilation, self.groups)
        batch, _, height, width = y.shape
        y = mixture[:, None, None] @ y.reshape(batch, self.groups, self.experts, outputs * height * width)
        y = y.view(batch, self.out_channels, height, width)
        return y if bias is None else y + bias[:, :, None, None]

    def absorb(self, bn: nn.BatchNorm2d) -> None:
        """Merge the normalisation that follows into the experts' kernels and `shift`."""
        assert bn.running_mean is not None
        assert bn.running_var is not None
        scale = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()
        shift = bn.bias.double() - bn.running_mean.double() * scale
        if self.shift is not None:
            shift = shift + self.shift.double() * scale
        weight = self.weight.double().view(self.experts, self.out_channels, -1) * scale[:, None]
        self.weight = nn.Parameter(weight.flatten(1).detach().to(self.weight.dtype))
        if self.bias is not None:
            self.bias = nn.Parameter((self.bias.double() * scale).detach().to(self.bias.dtype))
        self.shift = nn.Parameter(shift.detach().to(self.weight.dtype))


class RouterMLP(nn.Module):
    """Two linear maps with ReLU between them, computed in the input's dtype."""

    def __init__(self, channels: int, hidden_channels: int, experts: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden_channels)
        self.fc2 = nn.Linear(hidden_channels, experts)

    def forward(self, pooled: Tensor) -> Tensor:
        return linear(functional.relu(linear(pooled, self.fc1)), self.fc2)


class DynamicConv2d(nn.Module):
    """Convolution whose kernel is mixed for each image from the experts, by weights computed from the map's mean.

    Args:
        experts: number of kernels.
        route: see Route. Weights of a softmax sum to 1, those of sigmoids do not.
        router_channels: hidden channels of the routes with two linear maps; the input's channels by default.
        temperature: divides the logits before the route's activation; above 1, the experts' weights are more equal.
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: see ExpertConv2d.
    Source: the published code computes "sigmoid"; arxiv.org/abs/2306.14525, section 3.3, describes "mlp_softmax"
        without its activation and biases (here ReLU, with biases). Differs: routing is computed in at least float32.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        padding: int | Literal["same"] | None = None,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
        experts: int = 4,
        route: Route = "sigmoid",
        router_channels: int | None = None,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        if route not in get_args(Route):
            raise ModelConfigError(f"route is {route!r}: expected one of {', '.join(get_args(Route))}")
        if not 0 < temperature < math.inf:
            raise ModelConfigError(f"temperature is {temperature}: expected a positive number")
        if router_channels is not None and (router_channels < 1 or route == "sigmoid"):
            raise ModelConfigError(
                f"router_channels is {router_channels}: expected a positive number, and route mlp_softmax or "
                "mlp_sigmoid"
            )
        self.cond_conv = ExpertConv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, experts
        )
        hidden = router_channels or in_channels
        self.routing = (
            nn.Linear(in_channels, experts) if route == "sigmoid" else RouterMLP(in_channels, hidden, experts)
        )
        self.softmax, self.temperature = route == "mlp_softmax", temperature

    def route(self, x: Tensor) -> Tensor:
        """Return the experts' weights for each image, (B, experts)."""
        with full_precision(x):
            pooled = x.mean((2, 3), dtype=wide(x))
            logits = linear(pooled, self.routing) if isinstance(self.routing, nn.Linear) else self.routing(pooled)
            if self.temperature != 1:
                logits = logits / self.temperature
            return logits.softmax(1) if self.softmax else logits.sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return self.cond_conv(x, self.route(x))

    def explain(self, x: Tensor) -> dict[str, Tensor]:
        """Return "routing_weights" (B, experts)."""
        return {"routing_weights": self.route(x)}


@layer(to, "convolution", example=(16, 3))
class DynamicConv(Conv):
    """Dynamic convolution without bias, batch normalisation (eps 1e-3, momentum 0.03), activation: in place of a Conv.

    Args:
        padding: None keeps the size at stride 1 for odd kernels, dilation included.
        activate: False leaves the activation out.
        experts, route, router_channels, temperature: see DynamicConv2d.
    Source: Han et al. 2024, ParameterNet, arxiv.org/abs/2306.14525; Yang et al. 2019, CondConv,
        arxiv.org/abs/1904.04971
    Differs: forks use the bare convolution in detection heads; two of those in a row, 1 x 1 and without a nonlinearity
        between them, are one linear map.
    """

    conv: DynamicConv2d  # type: ignore[assignment]  # a Conv in all but its convolution

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
        experts: Annotated[int, Limits(1, 64)] = 4,
        route: Route = "sigmoid",
        router_channels: Annotated[int | None, CHANNELS] = None,
        temperature: Annotated[float, Limits(0, 1000, above=True)] = 1.0,
    ) -> None:
        check(in_channels, out_channels, groups, experts)
        if padding is None:
            padding = same_padding(kernel_size, dilation)
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, groups, dilation, activate)
        self.conv = DynamicConv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            False,
            experts,
            route,
            router_channels,
            temperature,
        )
        self.bn = BatchNorm2d(out_channels, eps=1e-3, momentum=0.03)

    def fold(self) -> None:
        """Merge the normalisation into the experts, for inference."""
        if isinstance(self.bn, nn.BatchNorm2d):
            self.conv.cond_conv.absorb(self.bn)
            self.bn = nn.Identity()

    def explain(self, x: Tensor) -> dict[str, Tensor]:
        """Return "routing_weights" (B, experts): the share of each expert in an image's kernel."""
        return self.conv.explain(x)


def check(in_channels: int, out_channels: int, groups: int, experts: int) -> None:
    """Reject invalid settings.

    Raises:
        ModelConfigError: `experts` below 1, or groups that do not divide the channels.
    """
    if experts < 1:
        raise ModelConfigError(f"experts is {experts}: expected a positive number")
    if groups < 1 or in_channels % groups or out_channels % groups:
        raise ModelConfigError(f"groups is {groups}: does not divide {in_channels} channels in and {out_channels} out")


def linear(x: Tensor, map_: nn.Linear) -> Tensor:
    """Apply a linear map in the dtype of `x`."""
    return functional.linear(x, map_.weight.to(x.dtype), map_.bias.to(x.dtype))
