"""What layers compute, as images: feature maps of any layer, and for Focal Modulation its gates and its modulator."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from utils.drawing.draw import put_text, text_height, text_width, write_image
from utils.errors import SettingsError, did_you_mean

MAX_CHANNELS = 32
COLUMNS = 8
TILE = 96
LETTERS = 15
OVERLAY_WIDTH = 480
OVERLAY_OPACITY = 0.55
BLACK = (0, 0, 0)


def pick_layers(model: nn.Module, wanted: Sequence[str | int], flag: str = "--visualize") -> dict[str, nn.Module]:
    """Return the layers to look at, by label.

    Args:
        model: a network whose `model` lists its layers.
        wanted: for each layer its index, its class name (all layers of that class), or its module path such as `10.modulation`;
            empty for every layer of the yaml.
        flag: what asks, for the message.

    Raises:
        SettingsError: no such layer.
    """
    modules = {path: module for path, module in model.model.named_modules() if path}
    if not wanted:
        wanted = [path for path in modules if path.isdigit()]
    picked: dict[str, nn.Module] = {}
    for entry in map(str, wanted):
        key = entry.removeprefix("model.")
        found = (
            {key: modules[key]}
            if key in modules
            else {p: m for p, m in modules.items() if type(m).__name__.lower() == key.lower()}
        )
        if not found:
            kinds = {type(module).__name__ for module in modules.values()}
            count = len(list(model.model))
            raise SettingsError(
                f"{flag} {entry}: no such layer: expected 0..{count - 1}, a layer's name or a module path.{did_you_mean(entry, kinds)}"
            )
        picked.update(found)
    return {layer_label(path, module): module for path, module in picked.items()}


def layer_label(path: str, module: nn.Module) -> str:
    """Return a label for a module that is a good file name and sorts by index, such as `03_RepNCSPELAN4` or `10.attention_SE`."""
    index, _, rest = path.partition(".")
    return f"{int(index):02d}{'.' + rest if rest else ''}_{type(module).__name__}"


def explaining_modules(root: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of `root`, itself included, that have an `explain`, by path; of those within each other the outermost."""
    found: dict[str, nn.Module] = {}
    within: set[nn.Module] = set()
    for path, module in root.named_modules():
        if module not in within and callable(getattr(module, "explain", None)):
            found[path] = module
            within.update(module.modules())
    return found


@dataclass
class LayerRecorder:
    """Collects outputs of chosen layers, and inputs of those that can explain themselves, while a network runs; a context manager.

    Attributes:
        layers: modules by label.
        outputs: what each gave.
        inputs: what each explaining module within them took, by label; of modules within each other, the outermost explains.
    """

    layers: dict[str, nn.Module]
    outputs: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, tuple[nn.Module, Tensor]] = field(default_factory=dict)
    _handles: list[torch.utils.hooks.RemovableHandle] = field(default_factory=list)

    def __enter__(self) -> "LayerRecorder":
        explained: set[nn.Module] = set()
        for label, layer in self.layers.items():
            self._record_output(label, layer)
            for path, module in explaining_modules(layer).items():
                if module not in explained:
                    explained.update(module.modules())
                    self._record_input(f"{label}.{path}" if path else label, module)
        return self

    def _record_output(self, label: str, layer: nn.Module) -> None:
        def hook(_module: nn.Module, _given: tuple[Any, ...], output: Any) -> Tensor | None:
            self.outputs[label] = output
            return (
                output.clone() if isinstance(output, Tensor) else None
            )  # what follows may work in place: on its own copy

        self._handles.append(layer.register_forward_hook(hook))

    def _record_input(self, label: str, module: nn.Module) -> None:
        def hook(module: nn.Module, given: tuple[Any, ...]) -> None:
            self.inputs[label] = (module, given[0])

        self._handles.append(module.register_forward_pre_hook(hook))

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def _to_numpy(maps: Tensor) -> NDArray[np.float32]:
    return maps.detach().float().cpu().nan_to_num().numpy()


def _scaled(values: NDArray[np.float32], low: float, high: float) -> NDArray[np.uint8]:
    return ((values - low) / max(high - low, 1e-12) * 255).clip(0, 255).astype(np.uint8)


def _sequential(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(H, W) numbers to (H, W, 3) RGB, the smallest dark blue, the largest yellow."""
    grey = _scaled(values, float(values.min()), float(values.max()))
    return cv2.cvtColor(cv2.applyColorMap(grey, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)


def _titled(image: NDArray[np.uint8], title: str) -> NDArray[np.uint8]:
    """Put a line of text above an image, in white space as wide as either needs."""
    bar = text_height(LETTERS) + 6
    width = max(image.shape[1], text_width(title, LETTERS) + 12)
    canvas = np.full((image.shape[0] + bar, width, 3), 255, np.uint8)
    canvas[bar:, : image.shape[1]] = image
    put_text(canvas, title, 6, 3, LETTERS, BLACK)
    return canvas


def _tiles(images: Sequence[NDArray[np.uint8]], columns: int, gap: int = 4) -> NDArray[np.uint8]:
    """Lay images out row by row on white, each row as high as its highest image."""
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
    return _titled(_tiles(tiles, COLUMNS), f"{title}: {len(maps)} x {height} x {width}{shown}")


def _over(image: NDArray[np.uint8], values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Blend an (h, w) map, enlarged smoothly and coloured, over an (H, W, 3) RGB image."""
    low, high = float(values.min()), float(values.max())
    grey = _scaled(cv2.resize(values, image.shape[1::-1], interpolation=cv2.INTER_CUBIC), low, high)
    heat = cv2.cvtColor(cv2.applyColorMap(grey, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
    return cv2.addWeighted(image, 1 - OVERLAY_OPACITY, heat, OVERLAY_OPACITY, 0)


def focal_sheet(image: NDArray[np.uint8], gates: Tensor, modulator: Tensor, title: str) -> NDArray[np.uint8]:
    """Return the gates and the modulator of a Focal Modulation beside the image they belong to.

    Args:
        image: (H, W, 3) uint8 RGB as the network saw it.
        gates: (L + 1, h, w), the raw gates, local levels first, the global one last; signed.
        modulator: (C, h, w).
        title: what the sheet is about.

    Returns:
        RGB image: the image, the modulator's length per pixel over it, then every gate in its own range.
    """
    scale = OVERLAY_WIDTH / image.shape[1]
    size_wh = (OVERLAY_WIDTH, max(1, round(image.shape[0] * scale)))
    small = cv2.resize(image, size_wh, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    length = _to_numpy(modulator.float().norm(dim=0))
    panels = [
        _titled(small, f"{title}: input"),
        _titled(_over(small, length), f"modulator length {length.min():.3g} to {length.max():.3g}"),
    ]
    maps = _to_numpy(gates)
    for level, gate in enumerate(maps):
        name = "gate, global" if level == len(maps) - 1 else f"gate, level {level + 1}"
        coloured = cv2.resize(_sequential(gate), size_wh, interpolation=cv2.INTER_NEAREST)
        panels.append(_titled(coloured, f"{name}: {gate.min():.3g} (blue) to {gate.max():.3g} (yellow)"))
    return _tiles(panels, 2, gap=8)


class Visualizer:
    """Writes one PNG for each chosen layer and each image.

    Args:
        model: the network in evaluation form, not deployed: layer numbers are those of its yaml.
        wanted: see `pick_layers`.
    """

    def __init__(self, model: nn.Module, wanted: Sequence[str | int]) -> None:
        self.model = model.eval()
        self.layers = pick_layers(model, wanted)
        self._told: set[tuple[str, str]] = set()

    @torch.inference_mode()
    def write(self, image: NDArray[np.uint8], folder: Path) -> list[Path]:
        """Run the network on an image and write its maps into `folder`.

        Args:
            image: (H, W, 3) uint8 RGB, letterboxed: multiples of the largest stride.
            folder: made if it does not exist.

        Returns:
            The files written. Layers without maps are named on stderr once and left out.
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
        for label, (module, given) in recorder.inputs.items():
            parts = module.explain(given)
            if not {"gates", "modulator"} <= parts.keys():
                self._tell(label, f"{label} explains itself by {', '.join(parts)}: --explain shows it")
                continue
            sheet = focal_sheet(image, parts["gates"][0], parts["modulator"][0], label)
            files.append(write_image(folder / f"{label}_focal.png", sheet))
        return files

    def _skip(self, label: str, output: object) -> None:
        what = (
            "it did not run" if output is None else f"it gives a {type(output).__name__}, not one (B, C, H, W) tensor"
        )
        self._tell(label, f"{label} has no feature maps to draw: {what}")

    def _tell(self, label: str, what: str) -> None:
        """Say something about a layer, once."""
        if (label, what) not in self._told:
            self._told.add((label, what))
            print(f"--visualize: {what}", file=sys.stderr)
