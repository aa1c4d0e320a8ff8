"""Contact sheets for `detect.py --explain`: one per image, with class-activation maps and the maps of attention layers.

A layer takes part if it has a method `explain(x)`. The method returns tensors by name, batch first: (B, n, h, w) maps,
which are drawn over the image, or (B, n) or (B, n, 1, 1) numbers, which are drawn as bars. `READINGS` holds the titles
and units of known names; other tensors are shown under their own name.
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
"""Up to this many maps of one tensor get a panel each; of more, the mean over the channels is shown."""


@dataclass(frozen=True)
class Reading:
    """How to show a tensor that a layer's `explain` returns.

    Attributes:
        title: title of the panel.
        each: name of one of n maps or numbers; `{}` stands for its number, from 1.
        last: name of the last one, where it differs.
        merge: "length" or "mean": draw the n maps as one, their length or mean over the channels at each cell.
        unit: unit of the values.
        alike: use the same colour range for all n maps.
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
    """One image at the size of a panel, and its place in the network's input.

    Attributes:
        image: (h, w, 3) RGB at the panel's size.
        placement: of the original image in the network's input.
        input_hw: height and width of that input.
    """

    image: NDArray[np.uint8]
    placement: Placement
    input_hw: tuple[int, int]

    def over(self, values: Tensor) -> NDArray[np.float32]:
        """Interpolate an (h, w) map at every pixel of `image`."""
        return laid_over(np.nan_to_num(as_array(values)), self.placement, self.input_hw, self.image.shape[:2])


class Explainer:
    """Write one contact sheet for each image; compute in float32, also where detection does not.

    Args:
        model: the network, not deployed, so that layers have the numbers of its yaml. It is converted to float32 and
            moved to the predictor's device.
        wanted: layers to show (`pick_layers`), each with its class-activation map and the modules in it that have a
            method `explain`. Empty: the class-activation maps at the inputs of the head's lead branch, and all modules
            with `explain`.
        predictor: gives image size and thresholds.
    Attributes:
        mapped: layers to draw a class-activation map of, by label.
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
        """Describe what is shown, in one line for the start of a run."""
        outer = dict.fromkeys(module for layer in self.layers.values() for module in explaining_modules(layer).values())
        kinds = Counter(type(module).__name__ for module in outer)
        said = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "none"
        maps = ", ".join(self._name(module) for module in self.mapped.values())
        return f"--explain: in float32; class-activation maps of {maps}; modules with explain(): {said}"

    def write(self, image: NDArray[np.uint8], path: Path) -> Path:
        """Explain one image.

        Args:
            image: (H, W, 3) uint8 RGB, the original image.
            path: where to write the contact sheet.
        Returns:
            The path written to. Layers without a map are named on stderr, once each.
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
        """Run the lead branch; return the score that the class-activation maps explain."""
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
            what = (
                f"class {kinds[kind]} (no detection; its highest probability is {probability:.2g}): "
                "what each cell adds to its probabilities"
            )
        (height, width), (rows, columns) = view.placement.original_hw, view.input_hw
        lines = [
            f"Image of {width} x {height} pixels, network input {columns} x {rows}. "
            f"Class-activation maps (HiResCAM) explain {what}."
        ]
        if silent:
            names = ", ".join(self._name(self.mapped[label]) for label in silent)
            lines.append(f"Not shown, since zero everywhere: {names} (no cell there raises these scores).")
        return lines


def count_of(detections: int) -> str:
    """Return "1 detection" or "N detections"."""
    return "1 detection" if detections == 1 else f"{detections} detections"


def head_inputs(model: Model) -> dict[str, nn.Module]:
    """Return the layers that the head's lead branch reads, by label."""
    head, sources = model.head, model.rows[-1].sources
    levels = [sources[position] for position in head.lead_inputs()[: head.levels]]
    return {
        layer_label(str(index), model.model[index]): model.model[index]
        for index in dict.fromkeys(levels)
        if index != IMAGE
    }


def module_panels(module: nn.Module, given: Tensor, name: str, view: View) -> list[Panel]:
    """Return the panels of a module's `explain` for its input (1, C, H, W)."""
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
    """Return a panel with a chart of (n,) numbers."""
    what = reading.title if len(values) <= MOST_BARS else f"{reading.title} of {len(values)} channels"
    return BarPanel([f"layer {name}", what], np.nan_to_num(as_array(values)), reading.each)


def map_panels(maps: Tensor, reading: Reading, name: str, view: View) -> list[Panel]:
    """Return panels of (n, h, w) maps over the image, one for each or one merged map (see `Reading`)."""
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
    """Return a map's range for its caption where the colour scale has another range, else an empty text."""
    return f": {number(float(values.min()))} to {number(float(values.max()))}" if limits or scale == "signed" else ""


def effect_panel(given: Tensor, gate: Tensor, name: str, view: View) -> Panel:
    """Return a panel of the share that channel gates keep at each cell: length of gate times map over length of map.

    Args:
        given: (1, C, H, W) the module's input.
        gate: (1, C, 1, 1).
        name: path and class of the module.
        view: the image.
    """
    left = (given * gate).norm(dim=1) / given.norm(dim=1).clamp(min=torch.finfo(given.dtype).tiny)
    height, width = given.shape[2:]
    caption = [f"layer {name}", f"share of the map that the gate keeps, {height} x {width} cells"]
    return MapPanel(caption, view.image, view.over(left[0]), "level")
