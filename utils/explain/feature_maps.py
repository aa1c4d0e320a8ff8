"""Feature maps of any layer as images."""

import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.yolo import Model
from utils.drawing.draw import text_width, write_image
from utils.drawing.panels import LETTERS, TABLES, stacked, text_block
from utils.explain.layers import LayerRecorder, pick_layers

MAX_CHANNELS = 32
COLUMNS = 8
TILE = 96


def _to_numpy(maps: Tensor) -> NDArray[np.float32]:
    return maps.detach().float().cpu().nan_to_num().numpy()


def _sequential(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(H, W) numbers to (H, W, 3) RGB, the smallest dark blue, the largest yellow."""
    low, high = float(values.min()), float(values.max())
    return TABLES["level"][((values - low) / max(high - low, 1e-12) * 255).clip(0, 255).astype(np.uint8)]


def _tiles(images: Sequence[NDArray[np.uint8]], columns: int, gap: int = 4) -> NDArray[np.uint8]:
    """Arrange images row by row on white."""
    rows = [images[start : start + columns] for start in range(0, len(images), columns)]
    width = max(sum(image.shape[1] + gap for image in row) for row in rows) - gap
    heights = [max(image.shape[0] for image in row) for row in rows]
    canvas = np.full((sum(heights) + gap * (len(rows) - 1), width, 3), 255, np.uint8)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for image in row:
            canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
            left += image.shape[1] + gap
        top += height + gap
    return canvas


def feature_grid(maps: Tensor, title: str) -> NDArray[np.uint8]:
    """Return the first channels of (C, H, W) maps side by side, each scaled to its own range, as an RGB image."""
    channels = _to_numpy(maps[:MAX_CHANNELS])
    height, width = channels.shape[1:]
    scale = TILE / max(height, width)
    size_wh = (max(1, round(width * scale)), max(1, round(height * scale)))
    tiles = [cv2.resize(_sequential(channel), size_wh, interpolation=cv2.INTER_NEAREST) for channel in channels]
    shown = f", the first {MAX_CHANNELS} channels" if len(maps) > MAX_CHANNELS else ""
    grid, heading = _tiles(tiles, COLUMNS), f"{title}: {len(maps)} x {height} x {width}{shown}"
    return stacked(text_block([heading], max(grid.shape[1], text_width(heading, LETTERS))), grid)


class Visualizer:
    """Writes one PNG for each chosen layer and each image.

    Args:
        model: the network in evaluation form, not deployed: layer numbers are those of its yaml.
        wanted: see `pick_layers`.
    """

    def __init__(self, model: Model, wanted: Sequence[str | int]) -> None:
        self.model = model.eval()
        self.layers = pick_layers(model, wanted)
        self._told: set[tuple[str, str]] = set()

    @torch.inference_mode()
    def write(self, image: NDArray[np.uint8], folder: Path) -> list[Path]:
        """Run the network on an image and write its maps into `folder`.

        Args:
            image: (H, W, 3) uint8 RGB, letterboxed: sides are multiples of the network's `multiple`.
            folder: made if it does not exist.

        Returns:
            The files written. Layers without maps are left out, and named on stderr once.
        """
        parameter = next(self.model.parameters())
        batch = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None].to(parameter) / 255
        with LayerRecorder(self.layers) as recorder:
            self.model(batch, raw=True)
        files = []
        for label in self.layers:
            output = recorder.outputs.get(label)
            if isinstance(output, Tensor) and output.ndim == 4:
                files.append(write_image(folder / f"{label}.png", feature_grid(output[0], label)))
            else:
                self._skip(label, output)
        for label in recorder.inputs:
            self._tell(label, f"{label} can explain itself: --explain shows it")
        return files

    def _skip(self, label: str, output: object) -> None:
        what = f"its output is a {type(output).__name__}, not one (B, C, H, W) tensor"
        if output is None:
            what = "it did not run"
        self._tell(label, f"{label} has no feature maps to draw: {what}")

    def _tell(self, label: str, what: str) -> None:
        """Print a message about a layer, once."""
        if (label, what) not in self._told:
            self._told.add((label, what))
            print(f"--visualize: {what}", file=sys.stderr)
