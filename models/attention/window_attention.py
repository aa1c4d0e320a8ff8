"""Exact attention of every pixel over a square window around it, for any map size, stride and dilation.

There are two implementations of one formula.
`window_attention` is the fast one. A tile is a run of queries in one row. One small matrix product multiplies it
with the strip of keys that its windows touch; the diagonal bands of the product are the windows. Strips are views
of the padded keys, so no window is copied. Backward keeps only queries, keys, values and weights.
`window_attention_by_taps` is for graphs that are run outside torch; it uses slices, products and sums only.
Positions beyond the border are reflected without repeating the border, several times if the map is small.
Queries, keys and values are (B, heads, D, H, W), with D channels per head.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

TILE = 16
"""Maximum number of queries in a tile; larger tiles waste products, smaller ones read keys more often."""

CPU_SCORES, GPU_SCORES = 2**17, 2**25
"""Number of scores computed at a time; on a CPU as many as the cache holds, for each thread."""


def mirrored(position: int, size: int) -> int:
    """Return a position after repeated reflection at 0 and `size - 1`."""
    period = max(2 * (size - 1), 1)
    return min(position % period, period - position % period)


@dataclass(frozen=True)
class Tiling:
    """Layout of the windows: tiles of queries within a row, and the columns of keys that each tile touches.

    Attributes:
        size_hw: height and width of the map that keys and values come from.
    """

    size_hw: tuple[int, int]
    kernel: int
    stride: int
    dilation: int

    @property
    def extent(self) -> int:
        """Side of a window in cells, from its first tap to its last."""
        return self.dilation * (self.kernel - 1) + 1

    @property
    def padding(self) -> int:
        """Number of cells by which windows reach beyond the border."""
        return self.extent // 2

    @property
    def out_hw(self) -> tuple[int, int]:
        """Height and width of the output."""
        return -(-self.size_hw[0] // self.stride), -(-self.size_hw[1] // self.stride)

    @property
    def tiles(self) -> int:
        """Number of tiles in a row."""
        return -(-self.out_hw[1] // TILE)

    @property
    def tile(self) -> int:
        """Number of queries in a tile."""
        return -(-self.out_hw[1] // self.tiles)

    @property
    def tile_keys(self) -> int:
        """Number of key columns that a tile's windows touch."""
        return self.stride * (self.tile - 1) + self.extent

    @property
    def query_rows(self) -> int:
        """Number of rows in a column of query tiles; some are unused and only align the strips of all images."""
        return -(-(self.size_hw[0] + 2 * self.padding) // self.stride)

    def margins(self, size: int) -> list[tuple[int, int]]:
        """Return the padded positions beyond the border, each with the padded position that it mirrors."""
        outside = (*range(self.padding), *range(self.padding + size, size + 2 * self.padding))
        return [(position, self.padding + mirrored(position - self.padding, size)) for position in outside]

    def columns(self, tile: int) -> slice:
        """Return the output columns of a tile."""
        return slice(tile * self.tile, min((tile + 1) * self.tile, self.out_hw[1]))

    def padded(self, x: Tensor) -> Tensor:
        """Return zeros with room for a padded map: (B, heads, rows, columns, D)."""
        columns = max(self.stride * (self.tiles * self.tile - 1) + self.extent, self.size_hw[1] + 2 * self.padding)
        return x.new_zeros(*x.shape[:2], self.query_rows * self.stride, columns, x.shape[2], dtype=wide(x))

    def inside(self, padded: Tensor) -> Tensor:
        """Return the unpadded part of a padded map, as a view (B, heads, H, W, D)."""
        (height, width), pad = self.size_hw, self.padding
        return padded[:, :, pad : pad + height, pad : pad + width]

    def key_tiles(self, x: Tensor) -> Tensor:
        """Lay a map out as (B * heads * tiles, rows, tile keys, D), reflected beyond the border."""
        padded = self.padded(x)
        self.inside(padded).copy_(x.permute(0, 1, 3, 4, 2))
        rows = padded[:, :, self.padding : self.padding + self.size_hw[0]]
        for outside, source in self.margins(self.size_hw[1]):
            rows[:, :, :, outside] = rows[:, :, :, source]
        for outside, source in self.margins(self.size_hw[0]):
            padded[:, :, outside] = padded[:, :, source]
        tiles = padded.unfold(3, self.tile_keys, self.stride * self.tile).permute(0, 1, 3, 2, 5, 4)
        return tiles.contiguous().view(-1, padded.shape[2], self.tile_keys, x.shape[2])

    def from_key_tiles(self, tiles: Tensor, like: Tensor) -> Tensor:
        """Return the gradient of a map from the gradient of its `key_tiles`."""
        padded = self.padded(like)
        tiles = tiles.view(*like.shape[:2], self.tiles, *tiles.shape[1:])
        for number in range(self.tiles):
            first = number * self.stride * self.tile
            padded[:, :, :, first : first + self.tile_keys] += tiles[:, :, number]
        for outside, source in self.margins(self.size_hw[0]):
            padded[:, :, source] += padded[:, :, outside]
        rows = padded[:, :, self.padding : self.padding + self.size_hw[0]]
        for outside, source in self.margins(self.size_hw[1]):
            rows[:, :, :, source] += rows[:, :, :, outside]
        return torch.empty_like(like).copy_(self.inside(padded).permute(0, 1, 4, 2, 3))

    def query_tiles(self, x: Tensor) -> Tensor:
        """Lay out a map of the output's size as (B * heads * tiles, query rows, tile, D), padded with zeros."""
        tiles = x.new_zeros(*x.shape[:2], self.tiles, self.query_rows, self.tile, x.shape[2], dtype=wide(x))
        for number in range(self.tiles):
            part = x[..., self.columns(number)].permute(0, 1, 3, 4, 2)
            tiles[:, :, number, : part.shape[2], : part.shape[3]] = part
        return tiles.view(-1, *tiles.shape[3:])

    def from_query_tiles(self, tiles: Tensor, out: Tensor) -> Tensor:
        """Fill a map of the output's size, (B, heads, D, H, W), from its `query_tiles`."""
        tiles = tiles.view(*out.shape[:2], self.tiles, *tiles.shape[1:])
        for number in range(self.tiles):
            columns = self.columns(number)
            part = tiles[:, :, number, : out.shape[3], : columns.stop - columns.start]
            out[..., columns] = part.permute(0, 1, 4, 2, 3)
        return out

    def pieces(self, images: int, device: torch.device) -> Iterator[tuple[int, int]]:
        """Split the query rows of all tile columns into ranges (first, end) whose scores are computed at once."""
        most = GPU_SCORES if device.type != "cpu" else CPU_SCORES * torch.get_num_threads()
        rows = max(most // (self.tile * self.extent * self.tile_keys), 1)
        together = max(rows // self.query_rows, 1)
        for image in range(0, images, together):
            first = image * self.query_rows
            end = first + (min(together, images - image) - 1) * self.query_rows + self.out_hw[0]
            step = rows if together == 1 else end - first
            yield from ((start, min(start + step, end)) for start in range(first, end, step))

    def strips(self, tiles: Tensor, first: int, end: int) -> Tensor:
        """Return the keys of query rows, (rows, extent * tile keys, D), as a view of `key_tiles`."""
        depth = tiles.shape[-1]
        step = self.stride * self.tile_keys * depth
        return tiles.as_strided((end - first, self.extent * self.tile_keys, depth), (step, depth, 1), first * step)

    def band(self, scores: Tensor) -> Tensor:
        """Return the windows in scores (rows, tile, extent * tile keys), as a view (rows, tile, kernel, kernel)."""
        row, query, key = scores.stride()
        steps = (row, query + key * self.stride, key * self.dilation * self.tile_keys, key * self.dilation)
        return scores.as_strided((*scores.shape[:2], self.kernel, self.kernel), steps)

    def add_strips(self, strips: Tensor, tiles: Tensor, first: int) -> None:
        """Add the gradients of strips (rows, extent * tile keys, D) to those of the key tiles."""
        rows = tiles.view(-1, *tiles.shape[2:])
        count, parts = len(strips), strips.view(len(strips), self.extent, *tiles.shape[2:])
        for row in range(0, self.extent, self.dilation):
            start = first * self.stride + row
            rows[start : start + (count - 1) * self.stride + 1 : self.stride] += parts[:, row]


def wide(x: Tensor) -> torch.dtype:
    """Return the dtype that attention is computed in: at least float32."""
    return torch.promote_types(x.dtype, torch.float32)


def full_precision(x: Tensor) -> AbstractContextManager:
    """Return a context that disables autocast on `x`'s device."""
    casting = not x.is_meta and torch.is_autocast_enabled(x.device.type)
    return torch.autocast(x.device.type, enabled=False) if casting else nullcontext()


def empty_output(query: Tensor, tiling: Tiling) -> Tensor:
    """Make an output (B, heads, D, out height, out width), channels-last in memory where the queries are."""
    batch, heads, depth = query.shape[:3]
    if query.stride(2) < query.stride(4):
        return query.new_empty(batch, *tiling.out_hw, heads, depth).permute(0, 3, 4, 1, 2)
    return query.new_empty(batch, heads, depth, *tiling.out_hw)


@torch.library.custom_op("yolo_loom::window_attention", mutates_args=())
def window_attention(
    query: Tensor, key: Tensor, value: Tensor, kernel: int, stride: int, dilation: int, keep: bool
) -> tuple[Tensor, Tensor]:
    """Return the attention output of every `stride`-th query over its window, and the weights for backward.

    Args:
        query, key, value: (B, heads, D, H, W); scores are scaled by D ** -0.5.
        kernel: taps of a window's side, odd.
        keep: whether to return the weights, which backward needs.
    Returns:
        (B, heads, D, out height, out width), and weights in the layout of the tiles.
    """
    tiling = Tiling((key.shape[3], key.shape[4]), kernel, stride, dilation)
    with full_precision(query):
        queries = tiling.query_tiles(query[..., ::stride, ::stride]).mul_(query.shape[2] ** -0.5)
        keys, values = tiling.key_tiles(key), tiling.key_tiles(value)
        gathered = torch.empty_like(queries)
        rows, every = gathered.view(-1, *gathered.shape[2:]), queries.view(-1, *queries.shape[2:])
        weights = queries.new_zeros(len(rows) if keep else 0, tiling.tile, kernel * kernel)
        pieces = list(tiling.pieces(len(queries), query.device))
        scores = queries.new_empty(
            max(end - first for first, end in pieces), tiling.tile, tiling.extent * tiling.tile_keys
        )
        banded = torch.zeros_like(scores)
        for first, end in pieces:
            count = end - first
            torch.bmm(every[first:end], tiling.strips(keys, first, end).transpose(1, 2), out=scores[:count])
            part = tiling.band(scores[:count]).flatten(2).softmax(2)
            if keep:
                weights[first:end] = part
            band = tiling.band(banded[:count])
            band.copy_(part.view_as(band))
            torch.bmm(banded[:count], tiling.strips(values, first, end), out=rows[first:end])
        return tiling.from_query_tiles(gathered, empty_output(query, tiling)), weights


@torch.library.custom_op("yolo_loom::window_attention_backward", mutates_args=())
def window_attention_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weights: Tensor,
    kernel: int,
    stride: int,
    dilation: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value, from the output's gradient and the weights that forward kept."""
    tiling = Tiling((key.shape[3], key.shape[4]), kernel, stride, dilation)
    scale = query.shape[2] ** -0.5
    with full_precision(query):
        queries = tiling.query_tiles(query[..., ::stride, ::stride]).mul_(scale)
        keys, values, upstream = tiling.key_tiles(key), tiling.key_tiles(value), tiling.query_tiles(gradient)
        key_gradient, value_gradient, query_gradient = (
            torch.zeros_like(keys),
            torch.zeros_like(values),
            torch.zeros_like(queries),
        )
        every, above, to_query = (each.view(-1, *each.shape[2:]) for each in (queries, upstream, query_gradient))
        pieces = list(tiling.pieces(len(queries), query.device))
        scores = queries.new_empty(
            max(end - first for first, end in pieces), tiling.tile, tiling.extent * tiling.tile_keys
        )
        banded = torch.zeros_like(scores)
        strips = scores.new_empty(len(scores), scores.shape[2], queries.shape[-1])
        for first, end in pieces:
            count, part = end - first, weights[first:end]
            band = tiling.band(banded[:count])
            band.copy_(part.view_as(band))
            torch.bmm(banded[:count].transpose(1, 2), above[first:end], out=strips[:count])
            tiling.add_strips(strips[:count], value_gradient, first)
            torch.bmm(above[first:end], tiling.strips(values, first, end).transpose(1, 2), out=scores[:count])
            to_weights = tiling.band(scores[:count]).flatten(2)
            to_scores = torch._softmax_backward_data(to_weights, part, 2, part.dtype)
            band.copy_(to_scores.view_as(band))
            torch.bmm(banded[:count], tiling.strips(keys, first, end), out=to_query[first:end])
            torch.bmm(banded[:count].transpose(1, 2), every[first:end], out=strips[:count])
            tiling.add_strips(strips[:count], key_gradient, first)
        to_map = torch.zeros_like(query) if stride > 1 else torch.empty_like(query)
        tiling.from_query_tiles(query_gradient.mul_(scale), to_map[..., ::stride, ::stride])
        return to_map, tiling.from_key_tiles(key_gradient, key), tiling.from_key_tiles(value_gradient, value)


@window_attention.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, kernel: int, stride: int, dilation: int, keep: bool
) -> tuple[Tensor, Tensor]:
    tiling = Tiling((key.shape[3], key.shape[4]), kernel, stride, dilation)
    rows = query.shape[0] * query.shape[1] * tiling.tiles * tiling.query_rows if keep else 0
    return empty_output(query, tiling), query.new_empty(rows, tiling.tile, kernel * kernel, dtype=wide(query))


@window_attention_backward.register_fake
def _(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weights: Tensor,
    kernel: int,
    stride: int,
    dilation: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _keep_for_backward(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    query, key, value, *ctx.settings, _ = inputs
    ctx.save_for_backward(query, key, value, output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, gradient: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if gradient is None:
        return (None,) * 7
    return (*window_attention_backward(gradient, *ctx.saved_tensors, *ctx.settings), None, None, None, None)


window_attention.register_autograd(_backward, setup_context=_keep_for_backward)


@register_flop_formula(torch.ops.yolo_loom.window_attention)
def count_operations(
    query: tuple[int, ...], key: object, value: object, kernel: int, *_: object, out_shape: tuple, **__: object
) -> int:
    """Return the number of operations in the two products, two per multiply-accumulate of a tap."""
    batch, heads, depth, height, width = out_shape[0]
    return 2 * 2 * kernel * kernel * batch * heads * depth * height * width


def mirrored_positions(size: int, padding: int, like: Tensor) -> Tensor:
    """Return the source positions of a padded row or column, for graphs with dynamic sizes."""
    period = max(2 * (size - 1), 1)
    position = torch.arange(-padding, size + padding, device=like.device)
    # `position - …` is position.remainder(period), without Mod in an ONNX graph; a quotient of integers rounds exactly
    position = position - (position / period).floor().long() * period
    return torch.minimum(position, period - position)


def window_attention_by_taps(
    query: Tensor, key: Tensor, value: Tensor, kernel: int, stride: int = 1, dilation: int = 1
) -> tuple[Tensor, Tensor]:
    """Compute `window_attention` tap by tap; also return the weights (B, heads, kernel^2, out height, out width)."""
    height, width = key.shape[3], key.shape[4]
    padding = dilation * (kernel // 2)
    rows, columns = mirrored_positions(height, padding, key), mirrored_positions(width, padding, key)
    out_height, out_width = (height + stride - 1) // stride, (width + stride - 1) // stride
    key, value = (x.index_select(3, rows).index_select(4, columns) for x in (key, value))

    def taps(x: Tensor) -> Iterator[Tensor]:
        for row in range(0, dilation * kernel, dilation):
            for column in range(0, dilation * kernel, dilation):
                yield x[
                    ...,
                    row : row + stride * (out_height - 1) + 1 : stride,
                    column : column + stride * (out_width - 1) + 1 : stride,
                ]

    query = query[..., ::stride, ::stride] * query.shape[2] ** -0.5
    scores = torch.stack([(query * tap).sum(2) for tap in taps(key)], 2)
    weights = scores.to(wide(scores)).softmax(2).to(value.dtype)
    gathered: Tensor | None = None
    for tap, weight in zip(taps(value), weights.split(1, 2), strict=True):
        gathered = tap * weight if gathered is None else torch.addcmul(gathered, tap, weight)
    assert gathered is not None, "a window has at least one tap"
    return gathered, weights


def graph_leaves_torch() -> bool:
    """Tell whether the graph being recorded will run outside torch, where only standard operations are allowed."""
    exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
    return torch.jit.is_tracing() or torch.onnx.is_in_onnx_export() or exporting()
