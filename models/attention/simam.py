"""SimAM: weigh every value of a map by its distance from the channel's mean; no parameters."""

from typing import Annotated

import torch
from torch import Tensor, nn

from models.attention.gating import GatedLayer
from models.attention.window_attention import full_precision, wide
from models.limits import CELLS, SMALL
from models.parts import Start, require_cells, require_positive
from models.registry import layer, same


@layer(same, "attention", example=())
class SimAM(GatedLayer):
    """Weigh every value by the sigmoid of its squared distance from the channel's mean divided by 4 times the variance.

    Source: Yang et al. 2021, SimAM: A Simple, Parameter-Free Attention Module, ICML 2021,
        proceedings.mlr.press/v139/yang21o.html.
    Differs: computed in float32, where float16 would overflow; a map of one value has no variance and gets a constant
        weight. With `slices` (after public variants, which use four quarters) the map is cut into slices x slices
        tiles, whose sides differ by at most one pixel.

    Args:
        regularizer: the paper's lambda, added to the variance.
        slices: tiles along each side; each tile has its own mean and variance.
        start: `identity` makes the gate 2 * sigmoid(gain * ...) with a gain per channel that starts at zero, so that
            gates start at one.
    Raises:
        ModelConfigError: a setting that is not positive.
    """

    def __init__(
        self,
        channels: int,
        regularizer: Annotated[float, SMALL] = 1e-4,
        slices: Annotated[int, CELLS] = 1,
        start: Start = "random",
    ) -> None:
        super().__init__(start)
        require_positive("regularizer", regularizer)
        require_positive("slices", slices)
        self.regularizer, self.slices = regularizer, slices
        self.gain = nn.Parameter(torch.zeros(channels)) if start == "identity" else None

    def gate(self, x: Tensor) -> Tensor:
        wider = x.to(wide(x))
        with full_precision(x):
            distinct = self.distinctness(wider) if self.slices == 1 else self.distinctness_in_tiles(wider)
        return self.opened(distinct if self.gain is None else distinct * self.gain[:, None, None]).to(x.dtype)

    def distinctness(self, x: Tensor) -> Tensor:
        """Return the inverse of the paper's energy, (B, C, H, W)."""
        squares = (x - x.mean((2, 3), keepdim=True)).square()
        count = torch.ones_like(x[:1, :1]).sum((2, 3), keepdim=True)
        return squares / self.energy(squares.sum((2, 3), keepdim=True), count) + 0.5

    def distinctness_in_tiles(self, x: Tensor) -> Tensor:
        """Return `distinctness` with the statistics of each tile."""
        require_cells("slices", self.slices, x)
        down, across = tiles(self.slices, x.shape[2], x), tiles(self.slices, x.shape[3], x)

        def total(maps: Tensor) -> Tensor:  # (B, C, H, W) -> (B, C, slices, slices)
            return down @ maps @ across.transpose(0, 1)

        def spread(cells: Tensor) -> Tensor:  # and back
            return down.transpose(0, 1) @ cells @ across

        count = down.sum(1)[:, None] * across.sum(1)
        squares = (x - spread(total(x) / count.clamp(min=1))).square()
        return squares / spread(self.energy(total(squares), count)) + 0.5

    def energy(self, total: Tensor, count: Tensor) -> Tensor:
        """Return four times the regularised variance, from the sum of squares and the number of values."""
        return 4 * (total / (count - 1).clamp(min=1) + self.regularizer)


def tiles(count: int, size: int, like: Tensor) -> Tensor:
    """Return a mask (count, size): which positions lie in each of `count` nearly equal tiles."""
    tile = torch.arange(count, device=like.device)[:, None]
    return (torch.arange(size, device=like.device)[None] * count // size == tile).to(like.dtype)
