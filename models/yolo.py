"""Build and run a network: `parse_model` builds its registered layers from rows, `Model` runs them.

models/config/reading.py reads the yaml, models/config/rows.py its rows; models/deploy.py prunes it for inference.

`python -m models.yolo CFG` prints the layer table (models/summary.py).
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

import models.catalogue  # noqa: F401 registers the built-in layers
from models.building import LAYER_ERRORS, build_layer
from models.common import set_activation
from models.config.places import Places
from models.config.reading import read_config
from models.config.rows import IMAGE, Row
from models.config.scaling import apply_multiples, choose_scale
from models.deploy import fold_modules, needed_rows, prune_to_lead
from models.heads.detect import DetectionHead
from models.plugins.loading import load_plugins
from models.registry import Scale
from utils.errors import ModelConfigError
from utils.wording import is_count

ODD_NUMBER = 7
"""A step is enough for a network that takes images of an odd number of steps: an even one could hide a larger need."""


def fits_batch_norm(
    maps: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> bool:
    """Tell whether a batch normalisation with these arguments is in evaluation and takes its input, on meta."""
    if training or eps < 0 or maps.dim() < 2 or mean is None or variance is None:
        return False
    return all_on_meta(maps, (mean, variance, weight, bias), maps.shape[1:2])


def fits_layer_norm(
    maps: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> bool:
    """Tell whether a layer normalisation with these arguments takes its input, on meta."""
    shape = maps.shape[-len(normalized_shape) :]
    return 0 < len(normalized_shape) and shape == tuple(normalized_shape) and all_on_meta(maps, (weight, bias), shape)


def all_on_meta(maps: Tensor, parts: Sequence[Tensor | None], shape: torch.Size) -> bool:
    """Tell whether the input and what it is normalised with are of one type on meta, and those parts of this shape."""
    given = [part for part in parts if part is not None]
    return (
        maps.is_meta
        and maps.is_floating_point()
        and all(part.is_meta and part.dtype == maps.dtype and part.shape == shape for part in given)
    )


NORMALISATIONS: dict[Callable[..., Any], Callable[..., bool]] = {
    functional.batch_norm: fits_batch_norm,
    functional.layer_norm: fits_layer_norm,
}
"""What tells whether a normalisation only keeps the shape of its input."""


class ShapesOnly(TorchFunctionMode):
    """Answers a normalisation by its input's shape, while a network runs on the meta device.

    Torch goes through the arithmetic of each one in Python there: that took three quarters of the time of a trace.
    What does not fit its input, and a batch normalisation in training, is left to torch, which has the message.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        settings = kwargs or {}
        fits = NORMALISATIONS.get(func)
        return args[0].detach() if fits and fits(*args, **settings) else func(*args, **settings)


class RowError(ModelConfigError):
    """A layer cannot run on its input; `row` is its row, and the cause is the layer's own error."""

    def __init__(self, message: str, row: Row) -> None:
        super().__init__(message)
        self.row = row


def parse_model(rows: Sequence[Row], channels: int, num_classes: int, scale: Scale) -> nn.ModuleList:
    """Build the layer of each row; set `out_channels` and the scaled `repeats` of the row.

    Args:
        channels: channels of the image.
    Returns:
        The modules, in the order of the rows.
    Raises:
        ModelConfigError: a row cannot be built; the message names it.
    """
    modules = nn.ModuleList()
    for row in rows:
        inputs = [channels if source == IMAGE else rows[source].out_channels for source in row.sources]
        row.repeats = scale.repeats(row.repeats)
        try:
            module, row.out_channels = build_layer(row.name, row.arguments, inputs, scale, row.repeats, num_classes)
        except ModelConfigError as error:
            raise ModelConfigError(f"{row.where}: {error}") from error
        modules.append(module)
    return modules


class Model(nn.Module):
    """A network composed from a yaml file.

    Args:
        cfg: path or shipped name of a yaml, or its content as a mapping.
        nc: number of classes, in place of the yaml's.
        ch: channels of the images; the yaml's, or 3, by default.
        scale: letter of a family yaml's `scales`.
        width, depth: multiples in place of the yaml's (models/config/scaling.py).
        patches: edits of its rows (models/config/language.py), such as "insert SE after p5".
    Attributes:
        stride: pixels per cell of each level.
        multiple: what the sides of an image must be multiples of.
        nc, names, task: number and names of the classes; "detect" or "segment".
        config: the resolved yaml, without base and edits.
        rows: its rows, in the order of `model`.
    Raises:
        ModelConfigError: the yaml cannot be built.
    """

    trained_size: int | None = None
    """Image size of the training; None if the weights do not say."""
    pixel_range: tuple[float, float] | None = None
    """Values that became 0 and 255 in training images of more than 8 bits; None if there were none."""
    category_ids: list[int | str] | None = None
    """Category id of each class in the COCO file of the training images; None if there was none."""
    static_hw: tuple[int, int] | None = None
    """The only accepted image size, of some exported networks; None if any multiple of the stride is accepted."""

    def __init__(
        self,
        cfg: str | Path | dict[str, Any],
        nc: int | None = None,
        ch: int | None = None,
        scale: str | None = None,
        width: float | None = None,
        depth: float | None = None,
        patches: Sequence[str] = (),
    ) -> None:
        super().__init__()
        network = read_config(cfg, scale, patches)
        apply_multiples(network, width, depth)
        keys, where = network.keys, network.where
        keys |= {key: value for key, value in (("nc", nc), ("ch", ch)) if value is not None}
        self.nc, self.channels = (positive(keys, key, where) for key in ("nc", "ch"))
        self.config, self.rows = network.as_yaml(), network.rows
        self.model = parse_model(self.rows, self.channels, self.nc, choose_scale(keys, where))
        if not isinstance(self.model[-1], DetectionHead):
            raise ModelConfigError(f"{self.rows[-1].where}: the last row must be a head, such as DDetect: [nc]")
        if self.head.num_classes != self.nc:
            raise ModelConfigError(
                f"{self.rows[-1].where}: the head has {self.head.num_classes} classes, and nc is {self.nc}: "
                "write nc in the row"
            )
        if keys.get("activation"):
            try:
                set_activation(self, keys["activation"])
            except ModelConfigError as error:
                raise ModelConfigError(f"{where}: {error}") from error
        self.names = class_names(keys, self.nc, where, renamed=nc is not None)
        self.head.attach(self._level_strides())
        self._plan()
        if keys.get("folded"):
            fold_modules(self)

    def _level_strides(self) -> list[int]:
        """Return the strides of the head's levels, measured with an image of 256 x 256.

        Raises:
            ModelConfigError: the strides are not powers of 2, not ascending or not the same in every branch,
                or the prototypes have a wrong size.
        """
        shapes = self.trace(256)[-1]
        outputs = (shapes["main"], *shapes["aux"])
        strides = [[256 / shape[2] for shape in self.head.maps_of(output)] for output in outputs]
        if problem := next(filter(None, (self.head.problem_with(output, 256) for output in outputs)), None):
            raise ModelConfigError(f"{self.rows[-1].where}: {problem}")
        lead = [round(stride) for stride in strides[0]]
        if lead != sorted(lead) or any(branch != lead for branch in strides):
            shown = "; ".join(", ".join(f"{stride:.4g}" for stride in branch) for branch in (*strides[1:], strides[0]))
            raise ModelConfigError(
                f"{self.rows[-1].where}: its levels have strides {shown}: "
                "expected powers of 2, ascending, the same in every branch"
            )
        return lead

    def _plan(self) -> None:
        """Find the rows that the lead branch needs, and the last reader of each output."""
        self._lead_rows = set(needed_rows(self.rows, self.head))
        self._last_use = {source: row.index for row in self.rows for source in row.sources}

    @property
    def head(self) -> DetectionHead:
        """The last layer."""
        return cast(DetectionHead, self.model[-1])

    @property
    def stride(self) -> list[int]:
        """Pixels per cell of each level, ascending."""
        return self.head.stride

    @cached_property
    def multiple(self) -> int:
        """What the height and width of an image must be multiples of.

        It is the largest stride, or more where a row goes deeper than the levels and is joined with one of them again.
        Found by running the network on shapes. A layer with a fixed size accepts one image size: the largest stride
        is returned for it.
        """
        largest = max(self.stride)
        if any(getattr(module, "size_hw", None) for module in self.modules()):
            return largest
        steps = (largest * factor for factor in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64))
        return next((step for step in steps if self._accepts(ODD_NUMBER * step)), largest)

    def _accepts(self, size: int) -> bool:
        """Tell whether every row takes a `size` x `size` image, and every level is a whole number of cells."""
        try:
            shapes = self.trace(size)[-1]
        except ModelConfigError:
            return False
        maps = (self.head.maps_of(output) for output in (shapes["main"], *shapes["aux"]))
        return all(
            [shape[2] * stride for shape, stride in zip(branch, self.stride, strict=True)] == [size] * len(self.stride)
            for branch in maps
        )

    @property
    def task(self) -> str:
        """Task of the head: "detect" or "segment"."""
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
            images: (B, ch, H, W) in [0, 1]; H and W multiples of `multiple`.
            raw: in evaluation, also return every branch's raw output.
        Returns:
            In training {"main": output, "aux": [output, …]}. A detection output is the list of maps
            (B, 64 + nc, h, w); a segmentation output is {"maps": that list, "coefficients": (B, nm, A),
            "prototypes": (B, nm, H / 4, W / 4)}.
            In evaluation the decoded lead branch, (B, 4 + nc, A), or (B, 4 + nc + nm, A) and its prototypes.
            With `raw` the pair of the evaluation output and the training output.
        """
        lead_only = not (self.training or raw)
        *_, (_, _, outputs) = self.run_rows(images, lead_only)
        if self.training:
            return outputs
        prediction = self.head.predict(outputs["main"])
        return (prediction, outputs) if raw else prediction

    def decode(self, output: Any) -> Tensor:
        """Decode the raw output of a branch.

        Returns:
            (B, 4 + nc (+ nm), A): centre x, y, width, height in pixels, class probabilities (, mask coefficients).
        """
        return self.head.decode(output)

    def trace(self, size: int | tuple[int, int] = 256, batch: int = 1, training: bool = False) -> list[Any]:
        """Return the output shape of every row, without computing values.

        Args:
            size: side of the images, or height and width.
            batch: number of images.
            training: run each layer in the mode that it is in; else all of them in evaluation.
        Raises:
            RowError: a layer fails on its inputs; the message gives the row and their shapes.
        """
        size_hw = (size, size) if isinstance(size, int) else size
        outputs: dict[int, Any] = {IMAGE: torch.empty(batch, self.channels, *size_hw, device="meta")}
        in_training = [] if training else [module for module in self.modules() if module.training]
        if not training:
            self.eval()
        try:
            for row, module in zip(self.rows, self.model, strict=True):
                outputs[row.index] = self._traced(row, module, [outputs[source] for source in row.sources], size_hw)
        finally:
            for module in in_training:
                module.training = True
        return [shape_of(outputs[row.index]) for row in self.rows]

    def _traced(self, row: Row, module: nn.Module, inputs: list[Any], size_hw: tuple[int, int]) -> Any:
        """Run one row on the meta device."""
        state = {name: tensor.to("meta") for name, tensor in (*module.named_parameters(), *module.named_buffers())}
        try:
            with ShapesOnly():
                return torch.func.functional_call(module, state, (inputs[0] if row.one_source else inputs,))
        except LAYER_ERRORS as error:
            names = ["image" if source == IMAGE else self.rows[source].name for source in row.sources]
            given = ", ".join(
                f"layer {source} ({name}) gives {show_shape(value)}"
                for source, name, value in zip(row.sources, names, inputs, strict=True)
            )
            height, width = size_hw
            raise RowError(
                f"{row.where}: does not fit its input for a {height} x {width} image: {given}: {error}", row
            ) from error

    def deploy(self, fold: bool = True) -> "Model":
        """Return a copy for inference: only the lead branch; with `fold`, normalisation merged into convolutions."""
        deployed = prune_to_lead(self)
        deployed._plan()
        deployed.__dict__.pop("multiple", None)  # the rows that are left may need less
        if fold:
            fold_modules(deployed)
            deployed.config["folded"] = True
        return deployed


def positive(keys: dict[str, Any], key: str, where: Places) -> int:
    """Return `nc` or `ch` (3 by default) of a network yaml.

    Raises:
        ModelConfigError: the value is not a positive integer.
    """
    value = keys.get(key, {"ch": 3}.get(key))
    if not is_count(value):
        raise ModelConfigError(f"{where}: {key} is {value!r}: expected a positive integer")
    return value


def class_names(keys: dict[str, Any], num_classes: int, where: Places, renamed: bool) -> list[str]:
    """Return the names of the classes: the yaml's, or their numbers.

    Args:
        renamed: whether `num_classes` replaces the yaml's; names of another number of classes are then dropped.
    Raises:
        ModelConfigError: the names are neither a list nor a mapping, or their number is not `num_classes`.
    """
    numbers = [str(index) for index in range(num_classes)]
    names = keys.get("names") or numbers
    if not isinstance(names, list | dict):
        raise ModelConfigError(f"{where}: names is {names!r}: expected a list, or a mapping of class numbers to names")
    names = list(names.values()) if isinstance(names, dict) else list(names)
    if len(names) == num_classes:
        return names
    if not renamed:
        raise ModelConfigError(f"{where}: names has {len(names)} entries, nc is {num_classes}: expected equal numbers")
    return numbers


def shape_of(output: Any) -> Any:
    """Return the shapes in a layer's output, with the same nesting."""
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


def load(
    weights: str | Path,
    plugins: Iterable[str | Path] = (),
    cfg: str | Path | None = None,
    patches: Sequence[str] = (),
    **settings: Any,
) -> Any:
    """Return a predictor from weights or an exported file.

    Call the predictor with a path, an array in the order RGB, a Pillow image, the content of a file, or a list of
    these; docs/detect.md lists what is taken.

    Args:
        plugins: Python files with your own layers of the network; they are run (docs/plugins.md).
        cfg: yaml of the network, in place of the weights' own description.
        patches: edits of the network, such as "set head cls = depthwise".
        settings: see utils.inference.predictor.Predictor.
    """
    from utils.inference.network import load_network
    from utils.inference.predictor import Predictor

    load_plugins(plugins)
    return Predictor(load_network(weights, cfg, patches), **settings)


def network_of(weights: str | Path) -> dict[str, Any]:
    """Return the content of a yaml that builds the network of a weights file.

    Raises:
        CheckpointError: the file cannot be read, or does not describe its network.
        ModelConfigError: it is an exported file.
    """
    from utils.inference.network import load_network

    network = load_network(weights)
    if not isinstance(network, Model):
        raise ModelConfigError(
            f"{weights}: an exported file does not describe rows: expected a network yaml, or the weights that it was "
            "made from"
        )
    return network.config


if __name__ == "__main__":
    from models.command import main

    sys.exit(main())
