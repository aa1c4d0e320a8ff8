"""Focal modulation and its transformer-style block.

Source: Yang et al. 2022, Focal Modulation Networks, arxiv.org/abs/2203.11926.
Feature maps are (B, C, H, W) throughout: 1 x 1 convolutions stand for the paper's per-pixel linear layers.
With `{start: identity}` in its row, a layer that is added to a trained network changes nothing at first.
"""

from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.limits import DROPPED, FACTOR, LARGE_KERNEL, SHARE, Limits
from models.parts import MLP, DepthwiseConv2d, DropPath, LayerNorm2d, Start, same_as_asked, zero_
from models.registry import layer, same
from utils.errors import ModelConfigError


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
            pooling layer the product of two small projections leaves the layers before it almost no gradient.
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
        focal_window: Annotated[int, LARGE_KERNEL] = 3,
        focal_level: Annotated[int, Limits(0, 8)] = 2,
        focal_factor: Annotated[int, Limits(0, 16)] = 2,
        bias: bool = True,
        proj_drop: Annotated[float, DROPPED] = 0.0,
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
                f"focal_window {focal_window}, focal_factor {focal_factor}, focal_level {focal_level} give kernels "
                f"{kernels}: "
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
        """Return query (B, C, H, W), gates (B, levels + 1, H, W) and modulator (B, C, H, W)."""
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
        """Return "gates" (B, levels + 1, H, W) and "modulator" (B, C, H, W)."""
        _, gates, modulator = self.gather(x)
        return {"gates": gates, "modulator": modulator}


@layer(same_as_asked, "attention", example=(16, {"focal_window": 3}))
class FocalModulationBlock(nn.Module):
    """Focal modulation and a per-pixel MLP, each with layer normalisation and a residual connection.

    Args:
        out_channels: must be `in_channels`; the first positional argument of a row.
        mlp_ratio: hidden width of the MLP divided by `in_channels`.
        focal_window, focal_level: see FocalModulation; the factor is 2.
        use_postln: normalise after the modulation and after the MLP instead of before them.
        use_layerscale: learn a factor per channel for each branch, starting at `layerscale_value`.
        drop, drop_path: probability of dropout in the branches, and of leaving out a whole branch.
        start: `identity` starts with zeros in the last step of each branch: its layer scale if there is one, else the
            normalisation after it, else its output projection.
    Source: Yang et al. 2022, arxiv.org/abs/2203.11926, appendix; defaults of its detection models (window 9, two
        levels)
    Differs: NCHW, no stored height and width, and the leading `out_channels` that seed networks write.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        mlp_ratio: Annotated[float, FACTOR] = 4.0,
        focal_window: Annotated[int, LARGE_KERNEL] = 9,
        focal_level: Annotated[int, Limits(0, 8)] = 2,
        use_postln: bool = False,
        use_postln_in_modulation: bool = False,
        normalize_modulator: bool = False,
        use_layerscale: bool = False,
        layerscale_value: Annotated[float, SHARE] = 1e-4,
        drop: Annotated[float, DROPPED] = 0.0,
        drop_path: Annotated[float, DROPPED] = 0.0,
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
