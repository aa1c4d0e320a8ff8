"""Plain forms of attention layers, with the same weights; benchmarks and tests compare the layers with them.

They follow the papers directly: windows are unfolded, channels last, gates interpolated before the sigmoid.
"""

import torch
from torch import Tensor
from torch.nn import functional

from models.attention.acmix import ACmix
from models.attention.attention import FocalModulation
from models.attention.dynamic_conv import DynamicConv2d
from models.attention.gather_excite import GatherExcite


def plain_acmix(layer: ACmix, x: Tensor) -> Tensor:
    """Apply ACmix with unfolded windows and both linear steps of its convolution; stride and dilation are 1."""
    batch, _, height, width = x.shape
    heads, depth, kernel = layer.heads, layer.depth, layer.kernel_att

    def windows(maps: Tensor) -> Tensor:
        padded = functional.pad(maps, (kernel // 2,) * 4, mode="reflect")
        return functional.unfold(padded, kernel).view(*maps.shape[:2], kernel * kernel, height, width)

    query, key, value = layer.conv1(x), layer.conv2(x), layer.conv3(x)
    across = torch.linspace(-1, 1, width, dtype=x.dtype, device=x.device).expand(height, width)
    down = torch.linspace(-1, 1, height, dtype=x.dtype, device=x.device)[:, None].expand(height, width)
    position = layer.conv_p(torch.stack((across, down))[None])
    each = [maps.reshape(batch * heads, depth, height, width) for maps in (query, key, value)]
    differences = windows(each[1]) + position[:, :, None] - windows(position)
    weights = (each[0][:, :, None] * depth**-0.5 * differences).sum(1).softmax(1)
    gathered = (weights[:, None] * windows(each[2])).sum(2).view(batch, heads * depth, height, width)
    mixed = layer.fc(torch.cat([maps.view(batch, heads, depth, -1) for maps in (query, key, value)], 1))
    return layer.rate1 * gathered + layer.rate2 * layer.dep_conv(
        mixed.transpose(1, 2).reshape(batch, -1, height, width)
    )


def plain_dynamic_conv(layer: DynamicConv2d, x: Tensor) -> Tensor:
    """Apply dynamic convolution with sigmoid routing as one grouped convolution."""
    conv, batch = layer.cond_conv, x.shape[0]
    mixture = layer.routing(functional.adaptive_avg_pool2d(x, 1).flatten(1)).sigmoid()
    kernels = (mixture @ conv.weight).view(-1, conv.in_channels // conv.groups, conv.kernel_size, conv.kernel_size)
    together = x.reshape(1, -1, *x.shape[2:])
    y = functional.conv2d(together, kernels, None, conv.stride, conv.padding, conv.dilation, batch * conv.groups)
    return y.view(batch, -1, *y.shape[2:])


def plain_focal_modulation(layer: FocalModulation, x: Tensor) -> Tensor:
    """Apply focal modulation with channels last and linear layers, as in the authors' code."""
    channels = x.shape[1]
    query, context, gates = functional.linear(x.permute(0, 2, 3, 1), layer.f.weight.flatten(1), layer.f.bias).split(
        layer.sections, -1
    )
    context, gates = context.permute(0, 3, 1, 2).contiguous(), gates.permute(0, 3, 1, 2).contiguous()
    total: Tensor | float = 0.0
    for level, convolution in enumerate(layer.focal_layers):
        context = convolution(context)
        total = total + context * gates[:, level : level + 1]
    total = total + functional.gelu(context.mean(2, keepdim=True).mean(3, keepdim=True)) * gates[:, -1:]
    modulated = query * layer.h(total).permute(0, 2, 3, 1).contiguous()
    return functional.linear(modulated, layer.proj.weight.view(channels, channels), layer.proj.bias).permute(0, 3, 1, 2)


def plain_gather_excite(layer: GatherExcite, x: Tensor) -> Tensor:
    """Apply Gather-Excite in the order of the paper's figures: gather, interpolate, sigmoid, product."""
    gathered = layer.pool(x) if layer.gather is None else layer.gather(x)
    if layer.mlp is not None:
        gathered = layer.mlp(gathered)
    return x * functional.interpolate(gathered, size=x.shape[2:], mode="nearest").sigmoid()
