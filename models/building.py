"""Build layers from names and arguments: for rows, for layers inside blocks, for wrapped layers and for checks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from models.registry import Channels, Layer, Scale, bind, find_layer
from utils.errors import ModelConfigError

InnerLayer = str | list
"""A registered layer as the argument of a block: its name, or a list of its name and arguments as in a row."""

LAYER_ERRORS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""Errors of a layer whose arguments or input do not fit; any other error is a fault in its code."""

RESIZING = ("downsample", "upsample")
"""Roles of layers that change a map's size."""


@dataclass(frozen=True)
class Plan:
    """A layer that is ready to be built.

    Attributes:
        entry: the registered layer.
        copies: constructor arguments of each copy in the chain.
        channels: of the output.
    """

    entry: Layer
    copies: list[dict[str, Any]]
    channels: Channels

    def build(self) -> nn.Module:
        """Construct the layer, or the chain of its copies.

        Raises:
            ModelConfigError: the constructor refuses the arguments.
        """
        built = [construct(self.entry, keywords) for keywords in self.copies]
        return built[0] if len(built) == 1 else nn.Sequential(*built)


def plan_layer(
    entry: Layer,
    arguments: Sequence[Any],
    inputs: Sequence[Channels],
    scale: Scale,
    repeats: int = 1,
    num_classes: int = 0,
    settings: dict[str, Any] | None = None,
) -> Plan:
    """Bind a layer's arguments and apply its channel rule.

    Args:
        arguments: positional values; the last may be a mapping of keyword arguments.
        inputs: channels of each input.
        repeats: number of copies in a chain, already scaled; a layer with its own repeats argument gets it instead.
        num_classes: value of the string ``nc``.
        settings: constructor arguments that override `arguments`.
    Raises:
        ModelConfigError: the layer does not accept the arguments or inputs.
    """
    fixed = dict(settings or {})
    if entry.repeats:
        fixed[entry.repeats] = repeats
    copies: list[dict[str, Any]] = []
    widths = list(inputs)
    for _ in range(1 if entry.repeats else repeats):
        keywords = bind(entry, list(arguments), num_classes) | fixed
        try:
            widths = [entry.rule.apply(widths, keywords, scale)]
        except ModelConfigError:
            raise
        except LAYER_ERRORS as error:
            raise refused(entry, keywords, error) from error
        copies.append(keywords)
    return Plan(entry, copies, widths[0])


def build_layer(
    name: str,
    arguments: Sequence[Any],
    inputs: Sequence[Channels],
    scale: Scale,
    repeats: int = 1,
    num_classes: int = 0,
) -> tuple[nn.Module, Channels]:
    """Find and build a layer; see `plan_layer`.

    Returns:
        The module and its output channels.
    Raises:
        ModelConfigError: no such layer, or it does not accept the arguments or inputs.
    """
    plan = plan_layer(find_layer(name), arguments, inputs, scale, repeats, num_classes)
    return plan.build(), plan.channels


def construct(entry: Layer, keywords: dict[str, Any]) -> nn.Module:
    """Call a layer's constructor.

    Raises:
        ModelConfigError: the constructor refuses the arguments.
    """
    try:
        return entry.cls(**keywords)
    except ModelConfigError:
        raise
    except LAYER_ERRORS as error:
        raise refused(entry, keywords, error) from error


def refused(entry: Layer, keywords: dict[str, Any], error: Exception) -> ModelConfigError:
    """Return the error for arguments that a layer's constructor or rule refuses."""
    return ModelConfigError(f"cannot be built with {keywords}: {error}: the layer is {entry.signature()}")


# --- layers inside blocks


@dataclass(frozen=True)
class Unscaled(Scale):
    """Scale inside a block, whose inner width is already scaled."""

    def channels(self, count: int) -> int:
        return count


def name_and_arguments(inner: InnerLayer, role: str) -> tuple[str, list[Any]]:
    """Split an inner layer into its name and arguments.

    Args:
        role: name of the block's argument, for the message.
    Raises:
        ModelConfigError: it is neither a name nor a list that begins with one.
    """
    name, *arguments = inner if isinstance(inner, list) and inner else [inner]
    if not isinstance(name, str):
        raise ModelConfigError(
            f"{role} is {inner!r}: expected a layer's name, or a list of its name and arguments, "
            "such as [ACmix, {heads: 8}]"
        )
    return name, arguments


def check_inner(unit: InnerLayer | None, attention: InnerLayer | None, groups: int = 1, **bottleneck: object) -> None:
    """Reject arguments of a CSP shell that have no effect together with `unit`.

    Args:
        groups: of the Bottlenecks; rejected unless 1.
        bottleneck: further arguments of the Bottlenecks, by name; rejected if set.
    Raises:
        ModelConfigError: names the arguments without effect.
    """
    named = {"attention": attention, **bottleneck, "groups": groups if groups != 1 else None}
    given = [f"{name} {value!r}" for name, value in named.items() if value]
    if unit is not None and given:
        raise ModelConfigError(
            f"unit {unit!r} together with {' and '.join(given)}: "
            "the unit replaces the Bottlenecks, which these arguments are for: leave one out"
        )


def unit_builder(
    unit: InnerLayer | None,
    otherwise: Callable[[int], nn.Module],
    attention: InnerLayer | None = None,
    groups: int = 1,
    **bottleneck: object,
) -> Callable[[int], nn.Module]:
    """Return a function that builds one unit of a CSP shell's chain for a number of channels.

    Args:
        unit: the layer of every unit; None means `otherwise`.
        attention, groups, bottleneck: see `check_inner`.
    Raises:
        ModelConfigError: an argument has no effect together with `unit`.
    """
    check_inner(unit, attention, groups, **bottleneck)
    return otherwise if unit is None else lambda width: build_inner(unit, width, "unit")


def build_inner(inner: InnerLayer, width: int, role: str) -> nn.Module:
    """Build a registered layer for maps of `width` channels; it must keep their width and size.

    Args:
        inner: such as "GatherExcite" or ["ACmix", {"heads": 8}]; `out_channels` cannot be given, it is always `width`.
        role: name of the block's argument, for messages.
    Raises:
        ModelConfigError: no such layer, arguments that it refuses, or a layer that changes width or size.
    """
    name, arguments = name_and_arguments(inner, role)
    try:
        entry = find_layer(name)
        if next(iter(entry.parameters()), None) == "out_channels":
            if arguments and isinstance(arguments[-1], dict) and "out_channels" in arguments[-1]:
                raise ModelConfigError(
                    f"out_channels is {arguments[-1]['out_channels']}: the block sets it to its inner width: "
                    "leave it out"
                )
            arguments.insert(0, width)
        plan = plan_layer(entry, arguments, [width], Unscaled())
        if plan.channels != width:
            raise ModelConfigError(f"gives {plan.channels} channels: expected a layer that keeps its width")
        if entry.role in RESIZING or plan.copies[0].get("stride", 1) != 1:
            raise ModelConfigError("changes the size of a map: expected a layer that keeps it")
        return plan.build()
    except ModelConfigError as error:
        raise ModelConfigError(f"{role} {name} at {width} channels: {error}") from error
