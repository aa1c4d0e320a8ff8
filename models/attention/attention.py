"""Focal modulation and its transformer-style block.

Source: Yang et al. 2022, Focal Modulation Networks, arxiv.org/abs/2203.11926.
Feature maps are (B, C, H, W) throughout: 1 x 1 convolutions stand for the paper's per-pixel linear layers.
A module that can start as the identity does so with `{start: identity}` in its row: inserted into trained weights, it changes
nothing at first, and learns from there.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.registry import Channels, Scale, layer, only, rule, same
from utils.errors import ModelConfigError

Start = Literal["random", "identity"]
"""How a module that stands in place begins: as initialised, or passing its input on unchanged."""


def is_channels_last(x: Tensor) -> bool:
    """Tell whether a map lies in memory with its channels last, and not also with its width last."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


class LayerNorm2d(nn.LayerNorm):
    """Layer normalisation over the channels of every pixel of a (B, C, H, W) map, eps 1e-5."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that uses its running statistics where a batch in training has one value per channel, and so no variance."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.shape[0] * x.shape[2] * x.shape[3] == 1:
            return functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


class DepthwiseConv2d(nn.Conv2d):
    """Depthwise convolution of odd kernel that keeps the size, without bias.

    In training on a CPU, bf16 maps pass through it in float32: oneDNN's bf16 backward of 5 x 5 and larger kernels, channels last,
    takes up to four times as long.
    """

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.dtype is torch.bfloat16 and x.device.type == "cpu" and self.kernel_size[0] > 3:
            with torch.autocast("cpu", enabled=False):
                return self._conv_forward(x.float(), self.weight.float(), None).to(x.dtype)
        return super().forward(x)


@layer(same, "attention", example=())
class FocalModulation(nn.Module):
    """Modulate each pixel's query by context gathered at several scales and gated per pixel.

    Args:
        focal_window: kernel size of the first level; level l uses `focal_window + focal_factor * l`. All must be odd.
        focal_level: number of depthwise levels; one global level is always added. 0 is legal.
        bias: whether the joint projection and the modulator's projection have one.
        proj_drop: dropout after the output projection.
        use_postln_in_modulation: layer normalisation before the output projection.
        normalize_modulator: divide the gathered context by the number of levels.
        residual: add the input to the output. Differs: the paper's module has none (its block adds it); in place of a
            pooling layer the product of two small projections starves what comes before it.
        start: `identity` starts with an output projection of zeros; needs `residual`.
    Raises:
        ModelConfigError: a kernel size is even, or an identity start without a residual connection.
    Source: Yang et al. 2022, arxiv.org/abs/2203.11926, section 3.2
    Differs: NCHW instead of NHWC, and nothing is stored on the module:
        `explain` recomputes gates and modulator.
    """

    def __init__(
        self,
        channels: int,
        focal_window: int = 3,
        focal_level: int = 2,
        focal_factor: int = 2,
        bias: bool = True,
        proj_drop: float = 0.0,
        use_postln_in_modulation: bool = False,
        normalize_modulator: bool = False,
        residual: bool = False,
        start: Start = "random",
    ) -> None:
        super().__init__()
        if start == "identity" and not residual:
            raise ModelConfigError(
                "start is 'identity', but there is no residual connection to pass the input on: add residual: true"
            )
        kernels = [focal_window + focal_factor * level for level in range(focal_level)]
        if focal_level < 0 or any(kernel % 2 == 0 or kernel < 1 for kernel in kernels):
            raise ModelConfigError(
                f"focal_window {focal_window}, focal_factor {focal_factor}, focal_level {focal_level} give kernels {kernels}: "
                f"each must be odd and positive; try focal_window {focal_window + 1 - focal_window % 2}, focal_factor 2"
            )
        self.sections = [channels, channels, focal_level + 1]
        self.f = nn.Conv2d(channels, sum(self.sections), 1, bias=bias)
        self.focal_layers = nn.ModuleList(
            nn.Sequential(DepthwiseConv2d(channels, kernel), nn.GELU()) for kernel in kernels
        )
        self.h = nn.Conv2d(channels, channels, 1, bias=bias)
        self.ln = LayerNorm2d(channels) if use_postln_in_modulation else nn.Identity()
        self.proj = nn.Conv2d(channels, channels, 1)
        self.proj_drop = nn.Dropout(proj_drop)
        self.levels = focal_level + 1 if normalize_modulator else 1
        self.residual = residual
        if start == "identity":
            zero_(self.proj)

    def gather(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return query (B, C, H, W), gates (B, levels + 1, H, W) and modulator (B, C, H, W) of an input (B, C, H, W)."""
        query, context, gates = self.f(x).split(self.sections, 1)
        gathered: Tensor | None = None
        for level, focal_layer in enumerate(self.focal_layers):
            context = focal_layer(context)
            gate = gates[:, level : level + 1]
            gathered = context * gate if gathered is None else torch.addcmul(gathered, context, gate)
        everywhere = functional.gelu(context.mean((2, 3), keepdim=True))
        gate = gates[:, -1:]
        gathered = everywhere * gate if gathered is None else torch.addcmul(gathered, everywhere, gate)
        return query, gates, self.h(gathered / self.levels if self.levels > 1 else gathered)

    def forward(self, x: Tensor) -> Tensor:
        query, _, modulator = self.gather(x)
        y = self.proj_drop(self.proj(self.ln(query * modulator)))
        return x + y if self.residual else y

    def explain(self, x: Tensor) -> dict[str, Tensor]:
        """Return what the layer looks at in `x`: "gates" (B, levels + 1, H, W) and "modulator" (B, C, H, W)."""
        _, gates, modulator = self.gather(x)
        return {"gates": gates, "modulator": modulator}


def zero_(module: nn.Module) -> None:
    """Set every parameter of a module's own to zero."""
    for parameter in module.parameters(recurse=False):
        nn.init.zeros_(parameter)


class MLP(nn.Module):
    """Two 1 x 1 convolutions with GELU between them, per pixel."""

    def __init__(self, channels: int, hidden_channels: int, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden_channels, 1)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(hidden_channels, channels, 1)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class DropPath(nn.Module):
    """Leave a whole residual branch out, sample by sample, while training (stochastic depth)."""

    def __init__(self, probability: float = 0.0) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0:
            return x
        kept = 1 - self.probability
        return x * x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(kept).div_(kept)


@rule("in_channels")
def same_as_asked(inputs: list[Channels], arguments: dict, scale: Scale) -> Channels:
    """One input; `out_channels` may be left out, and must be the input's where it is given (a residual block keeps its width)."""
    arguments["in_channels"] = only(inputs)
    asked = arguments.get("out_channels")
    if asked is not None and arguments["in_channels"] not in (asked, scale.channels(asked)):
        raise ModelConfigError(
            f"out_channels {asked} after {arguments['in_channels']} channels: a residual block keeps its width; leave it out"
        )
    arguments["out_channels"] = arguments["in_channels"]
    return arguments["in_channels"]


@layer(same_as_asked, "attention", example=(16, {"focal_window": 3}))
class FocalModulationBlock(nn.Module):
    """Focal modulation and a per-pixel MLP, each with layer normalisation and a residual connection.

    Args:
        out_channels: must be `in_channels`; the first positional argument of a row.
        mlp_ratio: hidden width of the MLP over `in_channels`.
        focal_window, focal_level: see FocalModulation; the factor is 2.
        use_postln: normalise after the modulation and after the MLP instead of before them.
        use_layerscale: learn a factor per channel for each branch, starting at `layerscale_value`.
        drop, drop_path: dropout in the branches, and of whole branches.
        start: `identity` starts with zeros in the last step of each branch: its layer scale if there is one, else the normalisation
            after it, else its output projection.
    Source: Yang et al. 2022, arxiv.org/abs/2203.11926, appendix; defaults of its detection models (window 9, two levels)
    Differs: NCHW, no stored height and width, and the leading `out_channels` that seed networks write.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        mlp_ratio: float = 4.0,
        focal_window: int = 9,
        focal_level: int = 2,
        use_postln: bool = False,
        use_postln_in_modulation: bool = False,
        normalize_modulator: bool = False,
        use_layerscale: bool = False,
        layerscale_value: float = 1e-4,
        drop: float = 0.0,
        drop_path: float = 0.0,
        start: Start = "random",
    ) -> None:
        super().__init__()
        channels = in_channels
        self.norm1 = LayerNorm2d(channels)
        self.modulation = FocalModulation(
            channels,
            focal_window,
            focal_level,
            proj_drop=drop,
            use_postln_in_modulation=use_postln_in_modulation,
            normalize_modulator=normalize_modulator,
        )
        self.norm2 = LayerNorm2d(channels)
        self.mlp = MLP(channels, int(channels * mlp_ratio), drop)
        self.drop_path = DropPath(drop_path)
        self.use_postln = use_postln
        first = 0.0 if start == "identity" else layerscale_value
        self.gamma_1 = nn.Parameter(torch.full((channels,), first)) if use_layerscale else None
        self.gamma_2 = nn.Parameter(torch.full((channels,), first)) if use_layerscale else None
        if start == "identity" and not use_layerscale:
            for last in (self.norm1, self.norm2) if use_postln else (self.modulation.proj, self.mlp.fc2):
                zero_(last)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._branch(x, self.norm1, self.modulation, self.gamma_1)
        return x + self._branch(x, self.norm2, self.mlp, self.gamma_2)

    def _branch(self, x: Tensor, norm: nn.Module, body: nn.Module, gamma: Tensor | None) -> Tensor:
        y = norm(body(x)) if self.use_postln else body(norm(x))
        return self.drop_path(y if gamma is None else y * gamma[:, None, None])
