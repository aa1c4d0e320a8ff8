"""Build layers from names and arguments: for rows, for layers inside blocks, for wrapped layers and for checks."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from models.registry import Channels, Layer, Scale, bind, find_layer, join_arguments, split_arguments
from utils.errors import ModelConfigError
from utils.files import yaml_text

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
    refuse_width(entry, arguments, inputs, scale)
    for _ in range(1 if entry.repeats else repeats):
        bound = bind(entry, list(arguments), num_classes)
        check_limits(entry, bound, widths)
        keywords = bound | fixed
        try:
            widths = [entry.rule.apply(widths, keywords, scale)]
        except ModelConfigError:
            raise
        except LAYER_ERRORS as error:
            raise refused(entry, keywords, error) from error
        copies.append(keywords)
    return Plan(entry, copies, widths[0])


LEAST_WIDTH = 32
"""A smaller number at the start of a row's arguments is not taken for a width: it may be a reduction or a kernel."""


def input_widths(inputs: Sequence[Channels]) -> list[int]:
    """Return the channels of all maps among a layer's inputs."""
    return [width for channels in inputs for width in (channels if isinstance(channels, list) else [channels])]


def refuse_width(entry: Layer, arguments: Sequence[Any], inputs: Sequence[Channels], scale: Scale) -> None:
    """Reject the input's width as the first argument of a layer that takes no width there.

    A number below LEAST_WIDTH and the argument's default are taken as they are, and so is any value that is given by
    name.

    Raises:
        ModelConfigError: names the width, and the row's other arguments.
    """
    positional, keywords = split_arguments(arguments)
    widths = input_widths(inputs)
    if entry.takes_width() or not positional or not is_width(positional[0], widths, scale):
        return
    number, *others = positional
    while others and is_width(others[0], widths, scale):  # input and output width, as in GAM_Attention [512, 512]
        del others[0]
    name, parameter = next(iter(entry.parameters().items()), ("", None))
    if parameter is not None and number == parameter.default:
        return
    remedy, limits = "", entry.limits().get(name)
    if others or parameter is None or parameter.default is not parameter.empty:
        remedy = f": write {yaml_text(join_arguments(others, keywords), default_flow_style=True, width=1000).strip()}"
    if limits is not None and isinstance(number, int) and limits.allow(number, min(widths)):
        remedy += f"; if {name} is meant, write {{{name}: {number}}}"
    raise ModelConfigError(
        f"{number} is the width of the input, which the program gives to the layer: leave it out{remedy}: "
        f"the layer is {entry.signature()}"
    )


def is_width(value: object, widths: Sequence[int], scale: Scale) -> bool:
    """Tell whether a value is the width of an input as it is, or before the network's width multiple."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not LEAST_WIDTH <= value < math.inf:
        return False
    return value in (*widths, sum(widths)) or (looks_like_width(value) and scale.channels(int(value)) in widths)


def looks_like_width(value: object) -> bool:
    """Tell whether a value could be the width that a yaml author writes: a multiple of 8, and not small."""
    return isinstance(value, int | float) and LEAST_WIDTH <= value < math.inf and value % 8 == 0


def check_limits(entry: Layer, bound: dict[str, Any], inputs: Sequence[Channels]) -> None:
    """Reject an argument that is out of its range; a default is in range at any width.

    Raises:
        ModelConfigError: names the range; and says that the width is given by the program, if the value may be one.
    """
    channels = min(input_widths(inputs), default=None)
    parameters = entry.parameters()
    for name, limits in entry.limits().items():
        if name not in bound or bound[name] == parameters[name].default or limits.allow(bound[name], channels):
            continue
        hint = ""
        if name == next(iter(parameters)) and not entry.takes_width() and looks_like_width(bound[name]):
            hint = f"; if {bound[name]} is a width: the program gives the width of the input: leave it out"
        raise ModelConfigError(
            f"{name} is {bound[name]!r}: expected {limits.describe(channels)}{hint}: the layer is {entry.signature()}"
        )


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
