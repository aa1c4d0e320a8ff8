"""Layers inside blocks: a block's argument names any registered layer that keeps a map's width, and it is built at the block's inner width."""

from dataclasses import dataclass

from torch import nn

from models.registry import Scale, bind, find_layer
from utils.errors import ModelConfigError

InnerLayer = str | list
"""A registered layer as a block's argument says it: its name, or a list of its name and its arguments as a row would give them."""

RESIZING = ("downsample", "upsample")
"""Roles of layers that give a map of another size."""


@dataclass(frozen=True)
class Unscaled(Scale):
    """Multipliers inside a block, whose inner width is scaled already."""

    def channels(self, count: int) -> int:
        return count


def check_inner(unit: InnerLayer | None, attention: InnerLayer | None, **bottleneck: object) -> None:
    """Refuse arguments of a shell that a `unit` of another kind would leave without meaning.

    Args:
        bottleneck: arguments that only its Bottlenecks have, by name; those that hold something are refused.
    Raises:
        ModelConfigError: names the argument.
    """
    given = [f"{name} {value!r}" for name, value in {"attention": attention, **bottleneck}.items() if value]
    if unit is not None and given:
        raise ModelConfigError(
            f"unit {unit!r} together with {' and '.join(given)}: the unit takes the Bottlenecks' place, and this is theirs: leave it out"
        )


def build_inner(inner: InnerLayer, width: int, role: str) -> nn.Module:
    """Build a registered layer for maps of `width` channels, which it must keep.

    Args:
        inner: such as "GatherExcite" or ["ACmix", {"heads": 8}]; an `out_channels` that it asks for is `width`, and not to be given.
        role: name of the block's argument, for messages.
    Raises:
        ModelConfigError: no such layer, arguments that it refuses, or a layer that gives another width or size.
    """
    name, *arguments = inner if isinstance(inner, list) and inner else [inner]
    if not isinstance(name, str):
        raise ModelConfigError(
            f"{role} is {inner!r}: expected a layer's name, or a list of its name and arguments, such as [ACmix, {{heads: 8}}]"
        )
    try:
        entry = find_layer(name)
        if next(iter(entry.parameters()), None) == "out_channels":
            if arguments and isinstance(arguments[-1], dict) and "out_channels" in arguments[-1]:
                raise ModelConfigError(
                    f"out_channels is {arguments[-1]['out_channels']}: the block's inner width is taken: leave it out"
                )
            arguments.insert(0, width)
        keywords = bind(entry, arguments, num_classes=0)
        given = entry.rule.apply([width], keywords, Unscaled())
        if given != width:
            raise ModelConfigError(f"gives {given} channels: expected a layer that keeps its width")
        if entry.role in RESIZING or keywords.get("stride", 1) != 1:
            raise ModelConfigError("changes the size of a map: expected a layer that keeps it")
        return entry.cls(**keywords)
    except ModelConfigError as error:
        raise ModelConfigError(f"{role} {name} at {width} channels: {error}") from error
    except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError, AttributeError) as error:
        raise ModelConfigError(
            f"{role} {name} at {width} channels: cannot be built: {error}: the layer is {find_layer(name).signature()}"
        ) from error
