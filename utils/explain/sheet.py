"""Why a network found what it found, on one sheet for each image: class-activation maps, and what attention layers looked at.

A layer takes part by a method `explain(x)` that returns tensors by name, batch first: (B, n, h, w) maps, which are laid over the
image, or (B, n) or (B, n, 1, 1) numbers, which become bars. `READINGS` says how those of known names are shown; others are shown
under their own name.
"""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.config.rows import IMAGE
from models.yolo import Model
from utils.drawing.draw import class_colour, draw_boxes, drawable_names, write_image
from utils.drawing.panels import (
    MOST_BARS,
    BarPanel,
    ImagePanel,
    MapPanel,
    Panel,
    Scale,
    contact_sheet,
    laid_over,
    number,
    resized,
    shown_size,
)
from utils.explain.activation_map import Score, activation_maps, class_score, kept_detections
from utils.explain.layers import LayerRecorder, explaining_modules, layer_label, pick_layers
from utils.geometry.anchors import NUM_BINS
from utils.geometry.masks import as_array
from utils.geometry.placement import Placement, unletterbox
from utils.inference.predictor import Predictor

MOST_EACH = 8
"""Maps of one kind that get a panel each; of more, their mean over the channels is shown."""


@dataclass(frozen=True)
class Reading:
    """How values that a layer explains itself by are shown.

    Attributes:
        title: what they are.
        each: the name of one of n maps or numbers, `{}` for its number from 1 on.
        last: the name of the last one, where it is another thing.
        merge: what is drawn of n maps in place of each: their length or their mean over the channels, at every cell.
        unit: of the values.
        alike: the n maps have the same colours for the same values.
    """

    title: str
    each: str = "{}"
    last: str = ""
    merge: str = ""
    unit: str = ""
    alike: bool = False


READINGS = {
    "gates": Reading("gate", each="level {}", last="global level"),
    "modulator": Reading("length of the modulator", merge="length"),
    "reach": Reading("attention reach of", each="head {}", unit="cells", alike=True),
    "routing_weights": Reading("expert weights", each="expert {}"),
    "gate": Reading("gate", each="channel {}", merge="mean"),
    "received": Reading("attention received"),
    "selection": Reading("weight of", each="context {}", alike=True),
    "shares": Reading("share of", each="level {}", alike=True),
}


@dataclass
class View:
    """One image as the network saw it, and at the size of a panel.

    Attributes:
        image: (h, w, 3) RGB of the size shown.
        placement: of the original image in the network's input.
        input_hw: pixels of that input.
    """

    image: NDArray[np.uint8]
    placement: Placement
    input_hw: tuple[int, int]

    def over(self, values: Tensor) -> NDArray[np.float32]:
        """Return an (h, w) map at every pixel of `image`."""
        return laid_over(np.nan_to_num(as_array(values)), self.placement, self.input_hw, self.image.shape[:2])


class Explainer:
    """Writes one contact sheet for each image; computes in float32, whatever detection does.

    Args:
        model: the network, not deployed: layer numbers are those of its yaml. It is changed to float32 and moved to the device.
        wanted: layers to show (`pick_layers`): the class-activation map of each, and what explaining modules in it say. Empty for all
            explaining modules, and the class-activation maps at the inputs of the head's lead branch.
        predictor: whose sizes and thresholds apply.
    Attributes:
        mapped: layers with a class-activation map, by label.
        written: number of sheets.
    """

    def __init__(self, model: Model, wanted: Sequence[str | int], predictor: Predictor) -> None:
        self.predictor = predictor
        self.model = model.eval().float().to(predictor.precision.device)
        self.mapped = pick_layers(model, wanted, "--explain") if wanted else head_inputs(model)
        self.layers = (
            self.mapped
            if wanted
            else self.mapped
            | {layer_label(path, module): module for path, module in explaining_modules(model.model).items()}
        )
        self.paths = {module: path for path, module in model.model.named_modules() if path}
        self.written = 0
        self._told: set[str] = set()

    def describe(self) -> str:
        """One line for the start of a run."""
        outer = dict.fromkeys(module for layer in self.layers.values() for module in explaining_modules(layer).values())
        kinds = Counter(type(module).__name__ for module in outer)
        said = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "none"
        maps = ", ".join(self._name(module) for module in self.mapped.values())
        return f"--explain: in float32; class-activation maps of {maps}; modules that explain themselves: {said}"

    def write(self, image: NDArray[np.uint8], path: Path) -> Path:
        """Explain one image.

        Args:
            image: (H, W, 3) uint8 RGB, the original image.
            path: of the contact sheet.
        Returns:
            The path written to. What has no map is said on stderr, once for each layer.
        """
        letterboxed, placement = self.predictor.prepare(image)
        view = View(resized(image, shown_size(image.shape[:2])), placement, letterboxed.shape[:2])
        batch = torch.from_numpy(np.ascontiguousarray(letterboxed.transpose(2, 0, 1)))[None].to(
            self.predictor.precision.device
        )
        with torch.inference_mode(False), torch.enable_grad(), LayerRecorder(self.layers) as recorder:
            score = self._score(batch.float().div_(255).requires_grad_())
        maps = activation_maps(
            score.value, {label: x for label in self.mapped if self._has_map(x := recorder.outputs.get(label), label)}
        )
        for label, values in maps.items():
            if values is None:
                self._tell(label, "the class scores do not depend on it")
        silent = [label for label, values in maps.items() if values is not None and not values.any()]
        shown = {label: values for label, values in maps.items() if values is not None and label not in silent}
        groups = [
            [
                self._image_panel(view, score),
                *(self._map_panel(label, values, view) for label, values in shown.items()),
            ]
        ]
        with torch.inference_mode():
            groups += [
                module_panels(module, given, self._name(module), view) for module, given in recorder.inputs.values()
            ]
        self.written += 1
        return write_image(path, contact_sheet(self._heading(view, score, silent), groups))

    def _score(self, images: Tensor) -> Score:
        """Run the lead branch; return what the heat maps explain."""
        *_, (_, _, outputs) = self.model.run_rows(images, lead_only=True)
        maps = self.model.head.maps_of(outputs["main"])
        logits = torch.cat([level.flatten(2) for level in maps], 2)[0, 4 * NUM_BINS :]
        with torch.no_grad():
            prediction = self.model.decode(outputs["main"])
        p = self.predictor
        kept = kept_detections(prediction, p.nc, p.conf_thres, p.iou_thres, p.max_det, p.classes, p.agnostic)
        return class_score(logits, *kept, p.classes)

    def _name(self, module: nn.Module) -> str:
        return f"{self.paths[module]} {type(module).__name__}"

    def _has_map(self, output: object, label: str) -> TypeGuard[Tensor]:
        if isinstance(output, Tensor) and output.ndim == 4:
            return True
        gives = f"it gives a {type(output).__name__}, not one (B, C, H, W) tensor"
        self._tell(label, "it did not run: inference does not need it" if output is None else gives)
        return False

    def _tell(self, label: str, what: str) -> None:
        if label not in self._told:
            self._told.add(label)
            print(f"--explain: {label} has no class-activation map: {what}", file=sys.stderr)

    def _map_panel(self, label: str, values: Tensor, view: View) -> Panel:
        """Return the class-activation map of a layer."""
        height, width = values.shape
        caption = [f"layer {self._name(self.mapped[label])}", f"class-activation map, {height} x {width} cells"]
        return MapPanel(caption, view.image, view.over(values), "heat")

    def _image_panel(self, view: View, score: Score) -> Panel:
        rows = score.detections.cpu()
        boxes = unletterbox(rows[:, :4], view.placement)
        boxes = boxes * (view.image.shape[1] / view.placement.original_hw[1])
        names = drawable_names(self.predictor.names)
        drawn = draw_boxes(view.image, boxes.numpy(), rows[:, 5].numpy(), names, line_width=1, hide_labels=True)
        counts = sorted(Counter(rows[:, 5].int().tolist()).items())
        return ImagePanel(
            [f"image, {count_of(len(rows))}"],
            drawn,
            [(f"{count} {names[kind]}", class_colour(kind)) for kind, count in counts],
        )

    def _heading(self, view: View, score: Score, silent: Sequence[str]) -> list[str]:
        kinds, counts = drawable_names(self.predictor.names), Counter(score.detections[:, 5].int().tolist())
        if score.strongest is None:
            found = ", ".join(f"{counts[kind]} {kinds[kind]}" for kind in sorted(counts))
            what = f"{count_of(len(score.detections))} ({found}): what each cell adds to the sum of class log-odds"
        else:
            kind, probability = score.strongest
            what = f"class {kinds[kind]} (no detection; its highest probability is {probability:.2g}): what each cell adds to its probabilities"
        (height, width), (rows, columns) = view.placement.original_hw, view.input_hw
        lines = [
            f"Image of {width} x {height} pixels, for the network {columns} x {rows}. Class-activation maps (HiResCAM) explain {what}."
        ]
        if silent:
            names = ", ".join(self._name(self.mapped[label]) for label in silent)
            lines.append(f"Zero everywhere, and so not shown: {names} (nothing there speaks for these scores).")
        return lines


def count_of(detections: int) -> str:
    """Return a number of detections in words."""
    return "1 detection" if detections == 1 else f"{detections} detections"


def head_inputs(model: Model) -> dict[str, nn.Module]:
    """Return the layers that the levels of the head's lead branch come from, by label."""
    head, sources = model.head, model.rows[-1].sources
    levels = [sources[position] for position in head.lead_inputs()[: head.levels]]
    return {
        layer_label(str(index), model.model[index]): model.model[index]
        for index in dict.fromkeys(levels)
        if index != IMAGE
    }


def module_panels(module: nn.Module, given: Tensor, name: str, view: View) -> list[Panel]:
    """Return what a module says about its input, (1, C, H, W)."""
    panels: list[Panel] = []
    explain: Callable[[Tensor], dict[str, Tensor]] = getattr(module, "explain")  # noqa: B009
    for key, values in explain(given).items():
        reading = READINGS.get(key, Reading(key.replace("_", " ")))
        spread = values.ndim == 4 and values.shape[2:].numel() > 1
        panels += (
            map_panels(values[0], reading, name, view) if spread else [number_panel(values[0].flatten(), reading, name)]
        )
        if key == "gate" and not spread and values.ndim == 4 and values.shape[1] == given.shape[1]:
            panels.append(effect_panel(given, values, name, view))
    return panels


def number_panel(values: Tensor, reading: Reading, name: str) -> Panel:
    """Return a chart of (n,) numbers."""
    what = reading.title if len(values) <= MOST_BARS else f"{reading.title} of {len(values)} channels"
    return BarPanel([f"layer {name}", what], np.nan_to_num(as_array(values)), reading.each)


def map_panels(maps: Tensor, reading: Reading, name: str, view: View) -> list[Panel]:
    """Return (n, h, w) maps over the image: each, or what `reading` merges them into."""
    count, height, width = maps.shape
    cells = f"{height} x {width} cells"
    if reading.merge == "length":
        shown = {f"{reading.title}, {cells}": maps.float().norm(dim=0)}
    elif count == 1:
        shown = {f"{reading.title}, {cells}": maps[0]}
    elif reading.merge == "mean" or count > MOST_EACH:
        shown = {f"{reading.title}, mean of {count} channels, {cells}": maps.float().mean(0)}
    else:
        names = [reading.each.format(number + 1) for number in range(count)]
        names[-1] = reading.last or names[-1]
        shown = {f"{reading.title} {one}, {cells}": map_ for one, map_ in zip(names, maps, strict=True)}
    laid = {title: view.over(map_) for title, map_ in shown.items()}
    low, high = min(float(x.min()) for x in laid.values()), max(float(x.max()) for x in laid.values())
    scale: Scale = "signed" if low < 0 else "level"
    limits = (low, high) if reading.alike else None
    return [
        MapPanel([f"layer {name}", title + own_range(x, scale, limits)], view.image, x, scale, limits, reading.unit)
        for title, x in laid.items()
    ]


def own_range(values: NDArray[np.float32], scale: Scale, limits: tuple[float, float] | None) -> str:
    """Return the range of a map, for its caption, where the ends of the colours are others."""
    return f": {number(float(values.min()))} to {number(float(values.max()))}" if limits or scale == "signed" else ""


def effect_panel(given: Tensor, gate: Tensor, name: str, view: View) -> Panel:
    """Return what channels' gates (1, C, 1, 1) leave of a map (1, C, H, W) at every cell: the length of gate times map over that of the map."""
    left = (given * gate).norm(dim=1) / given.norm(dim=1).clamp(min=torch.finfo(given.dtype).tiny)
    height, width = given.shape[2:]
    caption = [f"layer {name}", f"what the gate leaves of the map, {height} x {width} cells"]
    return MapPanel(caption, view.image, view.over(left[0]), "level")
