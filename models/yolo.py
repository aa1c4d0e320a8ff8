"""From a yaml file to a network: `parse_model` composes registered layers, `Model` runs them.

`python -m models.yolo CFG` prints the layer table (models/summary.py).
"""

import copy
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

import models.attention  # noqa: F401 registers its layers
from models.common import set_activation
from models.heads import DetectionHead
from models.registry import Channels, Layer, Scale, bind, find_layer
from utils.errors import ModelConfigError, did_you_mean
from utils.files import REPOSITORY, find_shipped, read_yaml

IMAGE = -1
"""Index that stands for the picture itself among the sources of a row."""

CONFIG_FOLDERS = ("models/detect", "models/segment")
CONFIG_KEYS = (
    *("nc", "ch", "names", "scales", "scale", "depth_multiple", "width_multiple", "max_channels"),
    *("activation", "anchors", "inplace", "backbone", "head"),
)


@dataclass
class Row:
    """One row of a network as built: where its input comes from (absolute indices), what it says, what came of it.

    Attributes:
        relative: for each source whether the yaml counts it back from the row (-1) or names its index.
    """

    index: int
    where: str
    sources: list[int]
    relative: list[bool]
    one_source: bool
    repeats: int
    name: str
    arguments: list[Any]
    out_channels: Channels


def find_config(cfg: str | Path) -> tuple[Path, str | None]:
    """Find a network yaml, also by bare name among the shipped ones, and by scaled name (yolov8m.yaml is yolov8.yaml at m).

    Returns:
        Its path, and the scale letter that the name carried or None.
    Raises:
        ModelConfigError: no such file; names the nearest shipped one.
    """
    given = Path(cfg) if str(cfg).endswith((".yaml", ".yml")) else Path(f"{cfg}.yaml")
    family = re.fullmatch(r"(yolo(?:v8|11))([a-z])(.*)", given.stem)
    names = [(given.name, None)] + ([(f"{family[1]}{family[3]}{given.suffix}", family[2])] if family else [])
    for name, letter in names:
        for folder in CONFIG_FOLDERS:
            if found := find_shipped(given.with_name(name), folder):
                return found, letter
    shipped = [path.name for folder in CONFIG_FOLDERS for path in (REPOSITORY / folder).glob("*.yaml")]
    raise ModelConfigError(f"{cfg}: no such network yaml: expected a path or the name of a shipped one.{did_you_mean(given.name, shipped)}")


def read_config(cfg: str | Path | dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Read a network yaml, or take a mapping as it is, and check its keys.

    Returns:
        The configuration (its own copy), and the name that messages use for it.
    Raises:
        ModelConfigError: yaml syntax, an unknown key, or no rows.
    """
    if isinstance(cfg, dict):
        config, where, letter = copy.deepcopy(cfg), "network", None
    else:
        path, letter = find_config(cfg)
        where = str(cfg)
        config = read_yaml(path, ModelConfigError, where)
    if not isinstance(config, dict):
        raise ModelConfigError(f"{where}: holds {type(config).__name__}: expected the keys nc, backbone and head")
    for key in config:
        if key not in CONFIG_KEYS:
            raise ModelConfigError(f"{where}: unknown key '{key}': expected one of {', '.join(CONFIG_KEYS)}.{did_you_mean(str(key), CONFIG_KEYS)}")
    for section in ("backbone", "head"):
        if not isinstance(config.get(section), list) or not config[section]:
            raise ModelConfigError(f"{where}: '{section}' is {config.get(section)!r}: expected a list of rows [from, repeats, layer, arguments]")
    if letter is not None:
        config["scale"] = letter
    return config, where


def choose_scale(config: dict[str, Any], where: str) -> Scale:
    """Return the multipliers of a configuration: of the scale that it names, or its own.

    Raises:
        ModelConfigError: scales without a choice, an unknown one, or a multiple that is no positive number.
    """
    if config.get("scale") is not None and not config.get("scales"):
        raise ModelConfigError(f"{where}: scale {config['scale']!r}: this yaml has no 'scales' to choose from: leave --scale out")
    multiples = (config.get("depth_multiple", 1.0), config.get("width_multiple", 1.0), config.get("max_channels"))
    if scales := config.get("scales"):
        if not isinstance(scales, dict) or not all(isinstance(values, list) and len(values) in (2, 3) for values in scales.values()):
            raise ModelConfigError(f"{where}: scales are {scales!r}: expected a mapping of letters to [depth, width, most channels]")
        if config.get("scale") not in scales:
            raise ModelConfigError(f"{where}: scale {config.get('scale')!r}: choose one of {', '.join(map(str, scales))} with --scale")
        multiples = (*scales[config["scale"]], None)[:3]
    *factors, most = multiples
    if not all(isinstance(factor, int | float) and not isinstance(factor, bool) and 0 < factor < math.inf for factor in factors):
        raise ModelConfigError(f"{where}: depth and width multiple are {factors}: expected positive numbers")
    if most is not None and (not isinstance(most, int) or isinstance(most, bool) or most < 1):
        raise ModelConfigError(f"{where}: max_channels is {most!r}: expected a positive integer")
    return Scale(*multiples)


def parse_model(config: dict[str, Any], channels: int, num_classes: int, where: str) -> tuple[list[Row], nn.ModuleList]:
    """Build the layers that a configuration lists.

    Args:
        config: checked configuration with `backbone` and `head` rows `[from, repeats, layer, arguments]`.
        channels: channels of the picture.
        where: the file's name, for messages.
    Returns:
        The rows as built and their modules, index by index.
    Raises:
        ModelConfigError: any row that cannot be built; names file, section and row.
    """
    scale, rows, modules = choose_scale(config, where), [], nn.ModuleList()
    for section in ("backbone", "head"):
        for number, raw in enumerate(config[section]):
            row_where = f"{where}: {section}[{number}] (layer {len(rows)}): {show_row(raw)}"
            try:
                source, repeats, name, arguments = checked_row(raw)
                named = source if isinstance(source, list) else [source]
                sources = [resolve_source(index, len(rows)) for index in named]
                widths = [channels if index == IMAGE else rows[index].out_channels for index in sources]
                entry, repeats = find_layer(name), scale.repeats(repeats)
                built = []
                for _ in range(1 if entry.repeats else repeats):
                    keywords = bind(entry, arguments, num_classes) | ({entry.repeats: repeats} if entry.repeats else {})
                    widths = [entry.rule.apply(widths, keywords, scale)]
                    built.append(construct(entry, keywords))
            except ModelConfigError as error:
                raise ModelConfigError(f"{row_where}: {error}") from error
            modules.append(built[0] if len(built) == 1 else nn.Sequential(*built))
            relative = [index < 0 for index in named]
            rows.append(Row(len(rows), row_where, sources, relative, not isinstance(source, list), repeats, name, arguments, widths[0]))
    return rows, modules


def construct(entry: Layer, keywords: dict[str, Any]) -> nn.Module:
    """Build a layer.

    Raises:
        ModelConfigError: its constructor refuses the arguments.
    """
    try:
        return entry.cls(**keywords)
    except ModelConfigError:
        raise
    except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError) as error:
        raise ModelConfigError(f"cannot be built with {keywords}: {error}: the layer is {entry.signature()}") from error


def show_row(raw: object) -> str:
    """Return a row as a yaml author would write it."""
    return yaml.safe_dump(raw, default_flow_style=True, width=1000, allow_unicode=True).strip().removesuffix("\n...")


def checked_row(raw: object) -> tuple[int | list[int], int, str, list[Any]]:
    """Take a row apart.

    Raises:
        ModelConfigError: it is not `[from, repeats, layer, arguments]`.
    """
    if not isinstance(raw, list) or len(raw) != 4:
        raise ModelConfigError("expected [from, repeats, layer, arguments]")
    source, repeats, name, arguments = raw
    if not all(isinstance(index, int) and not isinstance(index, bool) for index in (source if isinstance(source, list) and source else [source])):
        raise ModelConfigError(f"'from' is {source!r}: expected a layer index or a list of them")
    if not isinstance(repeats, int) or isinstance(repeats, bool) or repeats < 1:
        raise ModelConfigError(f"repeats is {repeats!r}: expected a positive integer")
    if not isinstance(name, str):
        raise ModelConfigError(f"layer is {name!r}: expected a layer's name")
    if not isinstance(arguments, list):
        raise ModelConfigError(f"arguments are {arguments!r}: expected a list")
    return source, repeats, name, arguments


def resolve_source(index: int, current: int) -> int:
    """Turn a `from` index into an absolute one (IMAGE for what comes before layer 0).

    Raises:
        ModelConfigError: the layer does not exist yet.
    """
    absolute = index if index >= 0 else current + index
    if absolute >= current or absolute < IMAGE:
        existing = f"only layers 0..{current - 1} exist yet" if current else "this is the first layer: its input is the picture, -1"
        raise ModelConfigError(f"'from' asks for layer {absolute if index >= 0 else index}, but {existing}")
    return absolute


class Model(nn.Module):
    """A network composed from a yaml file.

    Args:
        cfg: path or shipped name of a yaml, or its content as a mapping.
        nc: number of classes, in place of the yaml's.
        ch: channels of the pictures; the yaml's, or 3, by default.
        scale: letter of a family yaml's `scales`.
    Attributes:
        stride: pixels per cell of each level; nc, names, task; config: what it was built from; rows: what came of it.
    Raises:
        ModelConfigError: the yaml cannot be built.
    """

    def __init__(self, cfg: str | Path | dict[str, Any], nc: int | None = None, ch: int | None = None, scale: str | None = None) -> None:
        super().__init__()
        config, where = read_config(cfg)
        config |= {key: value for key, value in (("nc", nc), ("ch", ch), ("scale", scale)) if value is not None}
        self.config = config
        self.nc, self.channels = self._count("nc", where), self._count("ch", where, 3)
        self.rows, self.model = parse_model(config, self.channels, self.nc, where)
        if not isinstance(self.model[-1], DetectionHead):
            raise ModelConfigError(f"{self.rows[-1].where}: the last row must be a head, such as DDetect: [nc]")
        if self.head.num_classes != self.nc:
            raise ModelConfigError(f"{self.rows[-1].where}: the head has {self.head.num_classes} classes, and nc is {self.nc}: write nc in the row")
        if config.get("activation"):
            set_activation(self, config["activation"])
        names = config.get("names") or [str(index) for index in range(self.nc)]
        if not isinstance(names, list | dict):
            raise ModelConfigError(f"{where}: names is {names!r}: expected a list, or a mapping of class numbers to names")
        self.names = list(names.values()) if isinstance(names, dict) else list(names)
        if len(self.names) != self.nc and nc is None:
            raise ModelConfigError(f"{where}: names has {len(self.names)} entries, nc is {self.nc}: expected as many; correct one of them")
        if len(self.names) != self.nc:  # nc was given in place of the yaml's, whose names are then not those of its classes
            self.names = [str(index) for index in range(self.nc)]
        self.head.attach(self._level_strides())
        self._plan()

    def _count(self, key: str, where: str, default: int | None = None) -> int:
        value = self.config.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ModelConfigError(f"{where}: {key} is {value!r}: expected a positive integer")
        return value

    def _level_strides(self) -> list[int]:
        """Return the strides of the head's levels, as they come out for a picture of 256 x 256.

        Raises:
            ModelConfigError: they are not whole, not ascending or not the same in every branch.
        """
        shapes = self.trace(256)[-1]
        strides = [[256 / shape[2] for shape in maps] for maps in (shapes["main"], *shapes["aux"])]
        lead = [round(stride) for stride in strides[0]]
        if lead != sorted(lead) or any(branch != lead for branch in strides):
            shown = "; ".join(", ".join(f"{stride:.4g}" for stride in branch) for branch in (*strides[1:], strides[0]))
            raise ModelConfigError(f"{self.rows[-1].where}: its levels have strides {shown}: expected powers of 2, ascending, alike in every branch")
        return lead

    def _plan(self) -> None:
        """Find which rows the lead branch needs, and after which row each output can be forgotten."""
        self._lead_rows = set(needed_rows(self.rows, self.head))
        self._last_use = {source: row.index for row in self.rows for source in row.sources}

    @property
    def head(self) -> DetectionHead:
        """The last layer."""
        return self.model[-1]

    @property
    def stride(self) -> list[int]:
        """Pixels per cell of each level, ascending."""
        return self.head.stride

    @property
    def task(self) -> str:
        """What the head does: "detect"."""
        return self.head.task

    def run_rows(self, images: Tensor, lead_only: bool = False) -> Iterator[tuple[Row, Any, Any]]:
        """Run row after row; yield each row, its input and its output."""
        outputs: dict[int, Any] = {IMAGE: images}
        for row, module in zip(self.rows, self.model, strict=True):
            if lead_only and row.index not in self._lead_rows:
                continue
            inputs = [outputs.get(source) for source in row.sources]
            given = inputs[0] if row.one_source else inputs
            output = module(given, lead_only) if row.index == len(self.rows) - 1 else module(given)
            outputs[row.index] = output
            for source in row.sources:
                if self._last_use[source] == row.index:
                    outputs.pop(source, None)
            yield row, given, output

    def forward(self, images: Tensor, raw: bool = False) -> Any:
        """Run the network.

        Args:
            images: (B, ch, H, W) in [0, 1]; H and W multiples of the largest stride.
            raw: in evaluation, also return every branch's raw output.
        Returns:
            In training {"main": output, "aux": [output, …]}, an output being the list of maps (B, 64 + nc, h, w).
            In evaluation the lead branch decoded, (B, 4 + nc, A); with `raw` that and the training output.
        """
        lead_only = not (self.training or raw)
        *_, (_, _, outputs) = self.run_rows(images, lead_only)
        if self.training:
            return outputs
        prediction = self.decode(outputs["main"])
        return (prediction, outputs) if raw else prediction

    def decode(self, output: Any) -> Tensor:
        """Turn any branch's raw output into (B, 4 + nc, A): centre x, centre y, width, height in pixels, probabilities."""
        return self.head.decode(output)

    def trace(self, size: int = 256) -> list[Any]:
        """Return the output shape of every row for a `size` x `size` picture, without computing values.

        Raises:
            ModelConfigError: a row cannot take its inputs; names it and their shapes.
        """
        outputs: dict[int, Any] = {IMAGE: torch.empty(1, self.channels, size, size, device="meta")}
        training, shapes = self.training, []
        self.eval()
        for row, module in zip(self.rows, self.model, strict=True):
            inputs = [outputs[source] for source in row.sources]
            tensors = {name: tensor.to("meta") for name, tensor in (*module.named_parameters(), *module.named_buffers())}
            try:
                outputs[row.index] = torch.func.functional_call(module, tensors, (inputs[0] if row.one_source else inputs,))
            except (RuntimeError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
                given = ", ".join(
                    f"layer {source} ({self.rows[source].name if source != IMAGE else 'picture'}) gives {show_shape(x)}"
                    for source, x in zip(row.sources, inputs, strict=True)
                )
                raise ModelConfigError(f"{row.where}: does not fit its input for a {size} x {size} picture: {given}: {error}") from error
            shapes.append(shape_of(outputs[row.index]))
        self.train(training)
        return shapes

    def deploy(self, fold: bool = True) -> "Model":
        """Return the network that inference needs: lead branch only, and (with `fold`) normalisation merged into convolutions."""
        deployed = prune_to_lead(self)
        if fold:
            fold_modules(deployed)
        return deployed


def shape_of(output: Any) -> Any:
    """Return the shapes in a layer's output, in the same nesting."""
    if isinstance(output, Tensor):
        return tuple(output.shape)
    if isinstance(output, dict):
        return {key: shape_of(value) for key, value in output.items()}
    return [shape_of(value) for value in output]


def show_shape(output: Any) -> str:
    """Return a layer's output shape for a message, without the batch dimension."""
    if isinstance(output, Tensor):
        return " x ".join(map(str, output.shape[1:]))
    return "[" + ", ".join(show_shape(value) for value in output) + "]"


def needed_rows(rows: list[Row], head: DetectionHead) -> list[int]:
    """Return the indices of the rows that the lead branch depends on, the head included, ascending."""
    needed = {rows[-1].index}
    waiting = list(rows[-1].sources[-head.levels :])
    while waiting:
        index = waiting.pop()
        if index != IMAGE and index not in needed:
            needed.add(index)
            waiting.extend(rows[index].sources)
    return sorted(needed)


def prune_to_lead(model: Model) -> Model:
    """Return a copy without the rows and branches that only training needs; its `config` builds the same network."""
    pruned = copy.deepcopy(model)
    rows, head = pruned.rows, pruned.head
    rows[-1].sources, rows[-1].relative = rows[-1].sources[-head.levels :], rows[-1].relative[-head.levels :]
    head.keep_lead()
    kept = needed_rows(rows, head)
    first = kept[0]
    if getattr(pruned.model[first], "passes_through", False) and [r.index for r in rows if r.index in kept and first in r.sources] == [kept[1]]:
        rows[kept[1]].sources = [IMAGE if source == first else source for source in rows[kept[1]].sources]
        kept = kept[1:]
    position = {old: new for new, old in enumerate(kept)} | {IMAGE: IMAGE}
    pruned.model = nn.ModuleList(pruned.model[index] for index in kept)
    pruned.rows = [rows[index] for index in kept]
    for new, row in enumerate(pruned.rows):
        row.index, row.sources = new, [position[source] for source in row.sources]
    pruned.rows[-1].name = getattr(head, "single", pruned.rows[-1].name)
    written = [[written_source(row), row.repeats, row.name, row.arguments] for row in pruned.rows]
    pruned.config = {key: value for key, value in pruned.config.items() if key not in ("scales", "scale", "backbone", "head")}
    pruned.config |= {"backbone": written[:-1], "head": written[-1:]} | scale_as_multiples(model.config)
    pruned._plan()
    return pruned


def scale_as_multiples(config: dict[str, Any]) -> dict[str, Any]:
    """Return the multipliers of a configuration as keys of a yaml without scales; depth 1, since repeats are written out."""
    scale = choose_scale(config, "network")
    return {"depth_multiple": 1.0, "width_multiple": scale.width} | ({"max_channels": scale.max_channels} if scale.max_channels else {})


def written_source(row: Row) -> int | list[int]:
    """Return a row's `from` as its yaml says it: -1 for the row before where it was counted back, else the index."""
    written = [-1 if relative and source == row.index - 1 else source for source, relative in zip(row.sources, row.relative, strict=True)]
    return written[0] if row.one_source else written


def fold_modules(module: nn.Module) -> None:
    """Merge normalisation and parallel convolutions, in every layer that has a `fold`."""
    for child in module.children():
        fold_modules(child)
    if hasattr(module, "fold"):
        module.fold()


def load(weights: str | Path, **settings: Any) -> Any:
    """Return a predictor from a checkpoint: call it with a path, an array (H, W, 3) RGB, or a list of them.

    Args:
        settings: see utils.predict.Predictor.
    """
    from utils.checkpoint import load_model
    from utils.predict import Predictor

    return Predictor(load_model(weights), **settings)


if __name__ == "__main__":
    from models.summary import main

    sys.exit(main())
