"""AIFI: a transformer layer over the pixels of a small map."""

from functools import lru_cache
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.attention.window_attention import full_precision, graph_leaves_torch, wide
from models.limits import CHANNELS, DROPPED, UP_TO_CHANNELS, Limits
from models.parts import Start, require_divisor, require_positive, zero_
from models.registry import layer, same
from utils.errors import ModelConfigError


def position_table(
    size_hw: tuple[int, int], channels: int, temperature: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return sines and cosines of each pixel's column, then row, from high to low frequency: (H * W, channels)."""
    height, width = size_hw
    quarter = channels // 4
    computed = torch.promote_types(dtype, torch.float32)
    frequencies = temperature ** -(torch.arange(quarter, dtype=computed, device=device) / quarter)

    def waves(count: int) -> Tensor:
        angles = torch.arange(count, dtype=computed, device=device)[:, None] * frequencies
        return torch.cat((angles.sin(), angles.cos()), 1)

    by_column = waves(width)[None].expand(height, width, 2 * quarter)
    by_row = waves(height)[:, None].expand(height, width, 2 * quarter)
    return torch.cat((by_column, by_row), 2).flatten(0, 1).to(dtype)


@lru_cache(maxsize=32)
def kept_position_table(
    size_hw: tuple[int, int], channels: int, temperature: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return `position_table`, cached by size; made outside inference mode, so that training can use it too."""
    with torch.inference_mode(False), torch.no_grad():
        return position_table(size_hw, channels, temperature, dtype, device)


@layer(same, "attention", example=(32, 4))
class AIFI(nn.Module):
    """Let every pixel attend to every other: a transformer encoder layer with positions as sines and cosines.

    Source: Zhao et al. 2023, DETRs Beat YOLOs on Real-time Object Detection, arxiv.org/abs/2304.08069, section 4.2.
    Differs: positions are also correct on maps that are not square; keys have no bias, which the softmax would cancel;
        no dropout by default; the option `pre_norm` is not in the paper. The cost grows with the square of the number
        of pixels: use it on the smallest map of a network.

    Args:
        ffn_channels: hidden width of the two linear layers; a network's width multiple does not reach it.
        heads: must divide the channels, which must be a multiple of 4.
        drop: dropout after the attention, between the linear layers and after them.
        temperature: ratio of the highest to the lowest frequency of the positions.
        pre_norm: normalise before the attention and the linear layers instead of after their sums.
        start: `identity` starts with zeros in the last layer of both branches; needs `pre_norm`, as the paper's last
            step is a normalisation, which changes any map.
    Raises:
        ModelConfigError: channels that are no multiple of 4 or of the heads, or an identity start without `pre_norm`.
    """

    def __init__(
        self,
        channels: int,
        ffn_channels: Annotated[int, CHANNELS] = 1024,
        heads: Annotated[int, UP_TO_CHANNELS] = 8,
        drop: Annotated[float, DROPPED] = 0.0,
        temperature: Annotated[float, Limits(1, 1e6, above=True)] = 10000.0,
        pre_norm: bool = False,
        start: Start = "random",
    ) -> None:
        super().__init__()
        check(channels, ffn_channels, heads, temperature)
        if start == "identity" and not pre_norm:
            raise ModelConfigError(
                "start is 'identity', but the last step is a normalisation, which changes any map: add pre_norm: true"
            )
        self.heads, self.temperature, self.pre_norm = heads, temperature, pre_norm
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels, bias=False)
        self.value = nn.Linear(channels, channels)
        self.proj = nn.Linear(channels, channels)
        self.norm1 = nn.LayerNorm(channels)
        self.fc1 = nn.Linear(channels, ffn_channels)
        self.fc2 = nn.Linear(ffn_channels, channels)
        self.norm2 = nn.LayerNorm(channels)
        self.drop = nn.Dropout(drop)
        if start == "identity":
            zero_(self.proj)
            zero_(self.fc2)

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.flatten(2).transpose(1, 2)  # (B, H * W, C)
        position = self.position(x)
        if self.pre_norm:
            pixels = pixels + self.drop(self.attend(self.norm1(pixels), position))
            pixels = pixels + self.drop(self.feed(self.norm2(pixels)))
        else:
            pixels = self.norm1(pixels + self.drop(self.attend(pixels, position)))
            pixels = self.norm2(pixels + self.drop(self.feed(pixels)))
        return pixels.transpose(1, 2).reshape(x.shape)

    def position(self, x: Tensor) -> Tensor:
        """Return the position encoding (H * W, C) of `x`: cached, or computed where a graph is recorded."""
        plain = not (torch.compiler.is_compiling() or graph_leaves_torch()) and type(x) in (Tensor, nn.Parameter)
        height, width = x.shape[2:]
        return (kept_position_table if plain else position_table)(
            (height, width), x.shape[1], self.temperature, x.dtype, x.device
        )

    def attend(self, pixels: Tensor, position: Tensor) -> Tensor:
        """Return the attention's output for every pixel, (B, H * W, C)."""
        placed = pixels + position
        gathered = functional.scaled_dot_product_attention(
            self.by_head(self.query(placed)), self.by_head(self.key(placed)), self.by_head(self.value(pixels))
        )
        return self.proj(gathered.transpose(1, 2).flatten(2))

    def by_head(self, pixels: Tensor) -> Tensor:
        """Return pixels (B, H * W, C) as (B, heads, H * W, C / heads)."""
        each = self.query.out_features // self.heads
        return pixels.view(-1, pixels.shape[1], self.heads, each).transpose(1, 2)

    def feed(self, pixels: Tensor) -> Tensor:
        """Return the two linear layers' output of every pixel, (B, H * W, C)."""
        return self.fc2(self.drop(functional.gelu(self.fc1(pixels))))

    def explain(self, x: Tensor) -> dict[str, Tensor]:
        """Return "received" (B, 1, H, W): mean attention on each pixel over heads and queries, times H * W."""
        pixels = x.flatten(2).transpose(1, 2)
        placed = (self.norm1(pixels) if self.pre_norm else pixels) + self.position(x)
        query, key = self.by_head(self.query(placed)), self.by_head(self.key(placed))
        with full_precision(x):
            scores = query.to(wide(x)) @ key.to(wide(x)).transpose(2, 3) * query.shape[3] ** -0.5
        received = scores.softmax(3).mean((1, 2)) * key.shape[2]
        return {"received": received.reshape(x.shape[0], 1, *x.shape[2:]).to(x.dtype)}


def check(channels: int, ffn_channels: int, heads: int, temperature: float) -> None:
    """Reject invalid settings.

    Raises:
        ModelConfigError: a setting is invalid; the message suggests a valid one.
    """
    if channels % 4:
        raise ModelConfigError(
            f"{channels} channels: not a multiple of 4 (sine and cosine of column and row); "
            f"try {-(-channels // 4) * 4} in the row before"
        )
    require_divisor("heads", heads, channels)
    require_positive("ffn_channels", ffn_channels)
    require_positive("temperature", temperature)
