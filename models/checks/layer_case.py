"""A layer with the arguments and inputs of a row; checks can build it any number of times."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from models.building import Plan, plan_layer
from models.common import set_activation
from models.config.rows import IMAGE, Row
from models.config.scaling import choose_scale
from models.registry import Channels, Layer, Scale, find_layer
from models.yolo import Model
from utils.image_size import IMAGE_SIZE

RUNS, SIZES, REPEATABLE = "runs", "sizes", "repeatable"
"""Names of the checks on which others depend."""
SIZES_HW = ((8, 8), (7, 12), (9, 5), (2, 2))
"""Side of the image at which the sizes of a network's maps are compared."""
USUAL_HW, PLAIN_HW = (7, 9), (8, 8)
ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, OSError, RuntimeError),
    *(StopIteration, TypeError, ValueError),
)
"""Errors that a broken layer may raise. Torch raises RuntimeError, this project ValueError, users' layers any."""
LEVEL_CHANNELS = (16, 24, 32)
"""Channels of the levels in a head's example row; each level is half as large as the one before."""


@dataclass(frozen=True)
class LayerCase:
    """A layer with arguments and inputs.

    Attributes:
        arguments: of the row.
        inputs: channels of each input.
        strides: factor by which each input is smaller than the largest one.
        num_classes: value of `nc`.
        scale: multipliers of the network.
        repeats: for a layer that takes the row's repeats as an argument.
        activation: the network's, which replaces the layers' default.
        settings: constructor arguments that override the row's.
        listed: whether a single input is passed as a list.
        size_hw: size of the largest map in most checks; sizes_hw: sizes in the checks that use several.
        fixed_hw: the only size that the layer accepts, if its row fixes one.
    """

    entry: Layer
    arguments: tuple[Any, ...]
    inputs: tuple[Channels, ...]
    strides: tuple[int, ...]
    num_classes: int = 3
    scale: Scale = field(default_factory=Scale)
    repeats: int = 1
    activation: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    listed: bool = False
    size_hw: tuple[int, int] = USUAL_HW
    sizes_hw: tuple[tuple[int, int], ...] = SIZES_HW
    fixed_hw: tuple[int, int] | None = None

    @classmethod
    def of_example(
        cls, entry: Layer, arguments: tuple[Any, ...] | None = None, inputs: tuple[Channels, ...] | None = None
    ) -> "LayerCase":
        """Return the case of a layer's example row, or of other arguments or inputs (all of one size)."""
        if inputs is not None:
            strides = (
                tuple(2 ** (number % len(LEVEL_CHANNELS)) for number in range(len(inputs)))
                if is_head(entry)
                else (1,) * len(inputs)
            )
        elif is_head(entry) and len(entry.example_inputs) == 1:
            branches, extra = entry.rule.branches, entry.rule.extra_inputs
            inputs = LEVEL_CHANNELS * branches + LEVEL_CHANNELS[:1] * branches * extra
            strides = (1, 2, 4) * branches + (1,) * branches * extra
        else:
            inputs, strides = entry.example_inputs, entry.example_strides
        return cls(entry, tuple(entry.example if arguments is None else arguments), tuple(inputs), strides).settled()

    @classmethod
    def of_row(cls, model: Model, row: Row, shapes: list[Any]) -> "LayerCase":
        """Return the case of a network's row; of one copy if the row repeats the layer.

        Args:
            shapes: output shape of every row, from `Model.trace(IMAGE_SIZE)`.
        """
        inputs, heights = [], []
        for source in row.sources:
            shape = (1, model.channels, IMAGE_SIZE, IMAGE_SIZE) if source == IMAGE else shapes[source]
            inputs.append(model.channels if source == IMAGE else model.rows[source].out_channels)
            heights.append(shape[2] if isinstance(shape, tuple) else max(part[2] for part in shape))
        return cls(
            find_layer(row.name),
            tuple(row.arguments),
            tuple(inputs),
            tuple(round(max(heights) / height) for height in heights),
            model.nc,
            choose_scale(model.config, "network"),
            row.repeats,
            model.config.get("activation"),
            listed=not row.one_source,
        ).settled()

    @property
    def head(self) -> bool:
        """Whether the layer is a head, which gives nothing to later rows."""
        return is_head(self.entry)

    @property
    def plain_hw(self) -> tuple[int, int]:
        """A size that any layer accepts."""
        return self.fixed_hw or PLAIN_HW

    def only_plain(self) -> "LayerCase":
        """Return the case with plain sizes only."""
        return replace(self, size_hw=self.plain_hw, sizes_hw=(self.plain_hw,))

    def settled(self) -> "LayerCase":
        """Return the case with the only size that the layer accepts, if it has an attribute `size_hw`."""
        try:
            fixed = getattr(self.build(), "size_hw", None)
        except ERRORS:
            return self  # the checks report that it cannot be built
        return self if fixed is None else replace(self, fixed_hw=tuple(fixed)).only_plain()

    def with_settings(self, **settings: Any) -> "LayerCase":
        """Return the case with constructor arguments that override the row's."""
        return replace(self, settings=self.settings | settings)

    def plan(self) -> Plan:
        """Plan the layer for its inputs.

        Raises:
            ModelConfigError: the layer does not accept the arguments or inputs.
        """
        repeats = self.repeats if self.entry.repeats else 1
        return plan_layer(self.entry, self.arguments, self.inputs, self.scale, repeats, self.num_classes, self.settings)

    @property
    def declared(self) -> Channels:
        """Output channels that the layer's rule declares."""
        return self.plan().channels

    def build(self, seed: int = 0) -> nn.Module:
        """Build the layer with seeded parameters.

        Raises:
            ModelConfigError: the layer does not accept the arguments or inputs.
        """
        plan = self.plan()
        torch.manual_seed(seed)
        module = plan.build()
        if self.activation is not None:
            set_activation(module, self.activation)
        return module

    def given(
        self,
        size_hw: tuple[int, int],
        batch: int = 1,
        dtype: torch.dtype = torch.float32,
        seed: int = 1,
        device: str = "cpu",
    ) -> Any:
        """Return seeded input in the form that a network passes: a map, a list of maps, or nested lists.

        Args:
            size_hw: of the largest map.
        """
        generator = torch.Generator().manual_seed(seed)

        def tensor(count: int, stride: int) -> Tensor:
            height, width = (-(-side // stride) for side in size_hw)
            if device == "meta":
                return torch.empty(batch, count, height, width, dtype=dtype, device=device)
            return torch.randn(batch, count, height, width, generator=generator, dtype=torch.float64).to(device, dtype)

        made = [
            tuple(tensor(part, stride) for part in count) if isinstance(count, list) else tensor(count, stride)
            for count, stride in zip(self.inputs, self.strides, strict=True)
        ]
        return made if len(made) > 1 or self.head or self.listed else made[0]

    def describe(self) -> str:
        """Return the row in words: its layer, arguments and input channels."""
        widths = ", ".join(map(str, self.inputs))
        return f"{self.entry.name} {show(list(self.arguments))} on {widths} channels"


def show(value: Any) -> str:
    """Return arguments as a yaml row writes them, on one line."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(show, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {show(item)}" for key, item in value.items()) + "}"
    return (
        {True: "true", False: "false", None: "None"}.get(value, str(value))
        if isinstance(value, bool | None)
        else str(value)
    )


def is_head(entry: Layer) -> bool:
    """Tell whether a layer is a head, which ends a network."""
    return entry.rule.branches > 0


def tensors_of(output: Any) -> list[Tensor]:
    """Return the tensors in a nested output or input as a flat list.

    Raises:
        TypeError: it contains something else.
    """
    if isinstance(output, Tensor):
        return [output]
    if not isinstance(output, dict | list | tuple):
        raise TypeError(f"gives {type(output).__name__}: expected a tensor, or a list, tuple or mapping of tensors")
    values = output.values() if isinstance(output, dict) else output
    return list(itertools.chain.from_iterable(tensors_of(value) for value in values))


def apply_to(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """Return an input with `function` applied to every tensor."""
    return function(value) if isinstance(value, Tensor) else type(value)(apply_to(item, function) for item in value)


def refilled(value: Any, tensors: list[Tensor]) -> Any:
    """Return an input with its tensors replaced, in order."""
    waiting = iter(tensors)
    return apply_to(value, lambda _: next(waiting))


class FlatForm(nn.Module):
    """A layer in the form that graph recorders need: tensors in, a tuple of tensors out.

    Args:
        like: an input of the layer, which gives the nesting.
    """

    def __init__(self, layer: nn.Module, like: Any) -> None:
        super().__init__()
        self.layer, self.like = layer, apply_to(like, lambda tensor: torch.empty(0))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensors_of(self.layer(refilled(self.like, list(tensors)))))


Module = TypeVar("Module", bound=nn.Module)


def randomise(module: Module, seed: int = 0) -> Module:
    """Randomise the statistics and gains of every normalisation, so that a check notices a missing one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                assert part.running_mean is not None
                assert part.running_var is not None
                part.running_mean.copy_(torch.randn(part.num_features, generator=generator) * 0.2)
                part.running_var.copy_(torch.rand(part.num_features, generator=generator) + 0.5)
                part.weight.copy_(torch.rand(part.num_features, generator=generator) + 0.5)
                part.bias.copy_(torch.randn(part.num_features, generator=generator) * 0.2)
    return module


def size_text(size_hw: tuple[int, int]) -> str:
    """Return a size as text."""
    return f"{size_hw[0]} x {size_hw[1]}"
