"""The registry of yaml-selectable layers: each layer declares its own channel rule beside its class.

A rule is a short function `(input channels, arguments, scale) -> output channels` that also sets the constructor
arguments named in its `fills`. The yaml row gives the other arguments, which are bound to the constructor's signature.
"""

import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from torch import nn

from models.limits import Limits
from models.names import suggested_layer
from utils.errors import ModelConfigError, did_you_mean
from utils.files import REPOSITORY

Channels = int | list[int]
"""Channel count of a layer's output; a list for a layer that returns several maps (CBLinear, AFPN)."""


@dataclass(frozen=True)
class Scale:
    """Multipliers of a network; `channels` and `repeats` apply them to the numbers of a yaml row.

    Attributes:
        letter: name of this scale in the yaml's `scales`.
        full: whether to scale hidden widths and inner repeats among a block's arguments too (`scaling: full`).
    """

    depth: float = 1.0
    width: float = 1.0
    max_channels: int | None = None
    letter: str | None = None
    full: bool = False

    def channels(self, count: int) -> int:
        """Scale a channel count: cap, multiply by the width, round up to a multiple of 8."""
        return math.ceil(self._capped(count) * self.width / 8) * 8

    def hidden_channels(self, count: int) -> int:
        """Scale a block's hidden width: as `channels`, but width multiple 1 keeps any number (90 in YOLOv9-m)."""
        return self._capped(count) if self.width == 1 else self.channels(count)

    def _capped(self, count: int) -> int:
        return count if self.max_channels is None else min(count, self.max_channels)

    def repeats(self, count: int) -> int:
        """Scale a repeat count: multiply by the depth, round half to even, at least 1; a single layer stays single."""
        return max(round(count * self.depth), 1) if count > 1 else count

    def inner_repeats(self, count: int) -> int:
        """Scale the number of units in a block's chain; unlike in `repeats`, a single unit may become several."""
        return max(round(count * self.depth), 1) if self.full and count > 0 else count


@dataclass(frozen=True)
class Rule:
    """A channel rule.

    Attributes:
        fills: names of the constructor arguments that the rule sets; a yaml row cannot give them.
        repeats: name of the argument with the number of units in the block's chain; `scaling: full` scales it by the
            depth.
        wraps: name of the first argument if that is another layer with its arguments, built like a row of its own.
        settings: a dataclass whose fields are further arguments, which the constructor takes as `**` keywords.
        branches: number of a head's branches; 0 for a layer that is no head.
        extra_inputs: number of inputs of each branch besides its levels.
    """

    apply: Callable[[list[Channels], dict[str, Any], Scale], Channels]
    fills: tuple[str, ...] = ()
    repeats: str | None = None
    wraps: str | None = None
    settings: type | None = None
    branches: int = 0
    extra_inputs: int = 0


def rule(*fills: str) -> Callable[[Callable[[list[Channels], dict[str, Any], Scale], Channels]], Rule]:
    """Turn a function into a channel rule that sets the named constructor arguments."""
    return lambda function: Rule(function, fills)


def only(inputs: list[Channels]) -> int:
    """Return the channel count of the one input map.

    Raises:
        ModelConfigError: there are several inputs, or the input is a list of maps.
    """
    if len(inputs) != 1:
        raise ModelConfigError(f"'from' names {len(inputs)} layers: this layer takes one input")
    if isinstance(inputs[0], list):
        raise ModelConfigError(
            f"the input is a list of {len(inputs[0])} maps: this layer takes one: "
            "pick one by a row [-1, 1, Pick, [0]] before it"
        )
    return inputs[0]


def maps(inputs: list[Channels]) -> list[int]:
    """Return the channel counts of several input maps.

    Raises:
        ModelConfigError: one of the inputs is a list of maps.
    """
    return [only([channels]) for channels in inputs]


@rule("in_channels")
def to(inputs: list[Channels], arguments: dict[str, Any], scale: Scale) -> Channels:
    """One input; the first argument, `out_channels`, is width-scaled (Conv, downsamplers)."""
    arguments["in_channels"] = only(inputs)
    if arguments["out_channels"] < 1:
        raise ModelConfigError(f"out_channels is {arguments['out_channels']}: expected a positive number")
    arguments["out_channels"] = scale.channels(arguments["out_channels"])
    return arguments["out_channels"]


@rule("in_channels")
def to_unscaled(inputs: list[Channels], arguments: dict[str, Any], scale: Scale) -> Channels:
    """As `to`, for a block with hidden widths that no rule scales: the width multiple must be 1."""
    if scale.width != 1:
        raise unreached_width(scale, "")
    return to.apply(inputs, arguments, scale)


def unreached_width(scale: Scale, remedy: str) -> ModelConfigError:
    """Return the error for a width multiple that would scale a block's output but not its hidden widths."""
    return ModelConfigError(
        f"width_multiple {scale.width}: this layer's hidden widths are arguments that the multiple does not reach: "
        f"{remedy}"
        "set width_multiple to 1.0 and write the widths that you want"
    )


def scale_hidden(arguments: dict[str, Any], scale: Scale, widths: tuple[str, ...], repeats: str | None = None) -> None:
    """Scale a block's hidden widths and inner repeats in its bound arguments, in place, with `scaling: full`.

    Args:
        widths: names of the arguments that are channel counts, or lists of them.
        repeats: name of the argument with the number of units in a chain, which defaults to 1.
    Raises:
        ModelConfigError: a width multiple without `scaling: full`.
    """
    if not scale.full:
        if scale.width != 1 and widths:
            raise unreached_width(scale, "write scaling: full to scale them too, or ")
        return
    for name in widths:
        value = arguments[name]
        arguments[name] = (
            [scale.hidden_channels(count) for count in value]
            if isinstance(value, list)
            else scale.hidden_channels(value)
        )
    if repeats is not None:
        arguments[repeats] = scale.inner_repeats(arguments.get(repeats, 1))


def to_with(*widths: str, repeats: str | None = None) -> Rule:
    """As `to`, for a block with hidden widths, or the repeats of an inner chain, among its arguments."""

    def apply(inputs: list[Channels], arguments: dict[str, Any], scale: Scale) -> Channels:
        scale_hidden(arguments, scale, widths, repeats)
        return to.apply(inputs, arguments, scale)

    return Rule(apply, to.fills, repeats)


@rule("channels")
def same(inputs: list[Channels], arguments: dict[str, Any], scale: Scale) -> Channels:
    """One input, output of the same width; the constructor gets it as `channels` (attention)."""
    arguments["channels"] = only(inputs)
    return arguments["channels"]


@rule()
def keep(inputs: list[Channels], arguments: dict[str, Any], scale: Scale) -> Channels:
    """One input, output of the same width; the constructor does not take it (upsampling, pooling)."""
    return only(inputs)


Role = Literal[
    "activation", "attention", "block", "convolution", "downsample", "fusion", "head", "other", "pooling", "upsample"
]
"""Purpose of a layer: its section in the catalogue, and its colour in drawings of networks."""


@dataclass(frozen=True)
class Layer:
    """A registered layer: its yaml name, class, channel rule and the other arguments of `layer`."""

    name: str
    cls: type[nn.Module]
    rule: Rule
    role: Role
    repeats: str | None
    example: tuple[Any, ...]
    example_inputs: tuple[Channels, ...]
    example_strides: tuple[int, ...]

    def parameters(self) -> dict[str, inspect.Parameter]:
        """Return the constructor parameters that a yaml row can give, in order."""
        signature = dict(inspect.signature(self.cls.__init__).parameters)
        if self.rule.settings is not None:
            signature |= inspect.signature(self.rule.settings).parameters
        hidden = (*self.rule.fills, self.repeats, "device", "dtype")
        variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        return {name: p for name, p in list(signature.items())[1:] if name not in hidden and p.kind not in variable}

    def hints(self) -> dict[str, Any]:
        """Return the type annotations of the constructor parameters."""
        hints = typing.get_type_hints(self.cls.__init__)
        return hints | (typing.get_type_hints(self.rule.settings) if self.rule.settings is not None else {})

    def limits(self) -> dict[str, Limits]:
        """Return the ranges of the arguments that have one."""
        sources = [self.cls.__init__, *([self.rule.settings] if self.rule.settings is not None else [])]
        hints = {key: hint for one in sources for key, hint in typing.get_type_hints(one, include_extras=True).items()}
        notes = ((key, note) for key, hint in hints.items() for note in getattr(hint, "__metadata__", ()))
        return {key: note for key, note in notes if isinstance(note, Limits)}

    def takes_width(self) -> bool:
        """Tell whether the first argument of a row is a number of channels, or of classes."""
        return self.rule.branches > 0 or WIDTH_NAME.search(next(iter(self.parameters()), "")) is not None

    def documentation(self) -> str:
        """Return the class's own docstring, empty without one."""
        return inspect.cleandoc(self.cls.__dict__.get("__doc__") or "")

    def signature(self) -> str:
        """Return the signature for yaml rows, such as ``Conv(out_channels: int, kernel_size: int = 1)``."""
        written = [p.replace(annotation=without_notes(p.annotation)) for p in self.parameters().values()]
        shown = [str(p).replace("torch.nn.", "").replace("typing.", "") for p in written]
        return f"{self.name}({', '.join(shown)})"


def without_notes(annotation: Any) -> Any:
    """Return the type of an annotation such as ``Annotated[int, KERNEL]``."""
    return annotation.__origin__ if typing.get_origin(annotation) is Annotated else annotation


WIDTH_NAME = re.compile(r"(^|_)(channels?|widths?|dims?|planes|features|filters|hidden|ch|c\d?)$")
"""Names of arguments that are numbers of channels."""

SECTION = re.compile(r"(Args|Attributes|Returns|Raises|Source|Differs|Yields):(.*)")
"""A line that begins a section of a docstring."""


def citations(docstring: str) -> list[tuple[str, str]]:
    """Return the Source and Differs sections of a docstring: (label, text), each text on one line.

    A section ends at a blank line or at the next section.
    """
    found: list[tuple[str, str]] = []
    inside = False
    for line in map(str.strip, docstring.splitlines()):
        section = SECTION.match(line)
        if section and section[1] in ("Source", "Differs"):
            found.append((section[1], section[2].strip()))
            inside = True
        elif section or not line:
            inside = False
        elif inside:
            label, text = found[-1]
            found[-1] = (label, f"{text} {line}".strip())
    return found


def defined_in(cls: type) -> str:
    """Return the file of a class relative to the repository, or the module's name of a class from elsewhere."""
    try:
        path = Path(inspect.getfile(cls))
    except (OSError, TypeError):  # its source is not available
        return cls.__module__
    return path.relative_to(REPOSITORY).as_posix() if path.is_relative_to(REPOSITORY / "models") else cls.__module__


_LAYERS: dict[str, Layer] = {}


class LayerTakenError(ValueError):
    """A class is registered under a name that is taken."""

    def __init__(self, holder: Layer) -> None:
        super().__init__(f"layer '{holder.name}' is registered already, by {holder.cls.__module__}")
        self.holder = holder


def layer(
    channel_rule: Rule,
    role: Role = "block",
    *,
    name: str | None = None,
    repeats: str | None = None,
    example: tuple[Any, ...] = (),
    example_inputs: tuple[Channels, ...] = (16,),
    example_strides: tuple[int, ...] | None = None,
) -> Callable[[type], type]:
    """Register a class as a yaml layer.

    Args:
        channel_rule: how output channels follow from input channels and arguments.
        name: the yaml name; the class name by default.
        repeats: the constructor argument that takes a row's repeats; without it, n repeats make a chain of n copies.
        example: arguments of a small valid row, for the checks of all layers.
        example_inputs: channels of the example's inputs.
        example_strides: factor by which each of them is smaller than the largest; 1 by default.
    Raises:
        ValueError: the name is taken.
    """

    def register(cls: type) -> type:
        key = name or cls.__name__
        if key in _LAYERS:
            raise LayerTakenError(_LAYERS[key])
        strides = example_strides or (1,) * len(example_inputs)
        _LAYERS[key] = Layer(key, cls, channel_rule, role, repeats, example, example_inputs, strides)
        return cls

    return register


def registered_layers() -> dict[str, Layer]:
    """Return all layers by yaml name."""
    return dict(_LAYERS)


def replace_layers(layers: dict[str, Layer]) -> None:
    """Replace the registry's content, to restore an earlier `registered_layers`."""
    kept = dict(layers)
    _LAYERS.clear()
    _LAYERS.update(kept)


@contextmanager
def temporary_layers() -> Iterator[None]:
    """Restore the registry at the end of a `with` block."""
    before = registered_layers()
    try:
        yield
    finally:
        replace_layers(before)


def find_layer(name: object) -> Layer:
    """Return the layer of a yaml name.

    Raises:
        ModelConfigError: no such layer; the message suggests the nearest name.
    """
    if name not in _LAYERS:
        raise ModelConfigError(f"unknown layer '{name}'.{suggested_layer(str(name), _LAYERS)}")
    return _LAYERS[name]


def split_arguments(written: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
    """Split a row's arguments into positional values and keyword arguments (a mapping at the end)."""
    positional = list(written)
    if positional and isinstance(positional[-1], dict):
        return positional[:-1], dict(positional[-1])
    return positional, {}


def join_arguments(positional: Sequence[Any], keywords: dict[str, Any]) -> list[Any]:
    """Return arguments as a row writes them; the inverse of `split_arguments`."""
    return [*positional, dict(keywords)] if keywords else list(positional)


def bind(entry: Layer, row_arguments: list[Any], num_classes: int) -> dict[str, Any]:
    """Bind a row's arguments to the constructor's signature.

    Args:
        row_arguments: positional values; the last may be a mapping of keyword arguments.
        num_classes: value of the string ``nc``.
    Returns:
        Constructor arguments by name, without those that the channel rule sets.
    Raises:
        ModelConfigError: wrong number, name or type of an argument; the message shows the signature.
    """
    parameters = entry.parameters()
    positional, keywords = split_arguments(row_arguments)
    if len(positional) > len(parameters):
        raise ModelConfigError(f"too many positional arguments: the layer is {entry.signature()} and got {positional}")
    bound = dict(zip(parameters, positional, strict=False))
    for key, value in keywords.items():
        if key not in parameters:
            raise ModelConfigError(
                f"unknown argument '{key}': {filled_by_program(entry, key)}the layer is {entry.signature()}."
                f"{did_you_mean(str(key), parameters)}"
            )
        if key in bound:
            raise ModelConfigError(f"argument '{key}' is given twice: the layer is {entry.signature()}")
        bound[key] = value
    missing = [key for key, p in parameters.items() if p.default is p.empty and key not in bound]
    if missing:
        raise ModelConfigError(f"missing argument {', '.join(map(repr, missing))}: the layer is {entry.signature()}")
    hints = entry.hints()
    return {
        key: _checked(entry, key, _meaning(value, num_classes), hints.get(key, Any)) for key, value in bound.items()
    }


def filled_by_program(entry: Layer, key: object) -> str:
    """Return a clause for an argument that the program fills, such as `channels`; empty for any other name."""
    if key in entry.rule.fills or key in ("c1", "in_channels", "inp", "channels", "channel", "dim"):
        return "the program gives a layer the channels of its input: leave it out: "
    return ""


def with_inner_repeats(entry: Layer, row_arguments: list[Any], scale: Scale) -> list[Any]:
    """Return a row's arguments with the scaled inner repeats, as for a network of depth 1."""
    if wraps := entry.rule.wraps:
        wrapped = row_arguments[0].get(wraps) if isinstance(row_arguments[0], dict) else row_arguments[0]
        inner, *given = wrapped if isinstance(wrapped, list) else [wrapped]
        written = [inner, *with_inner_repeats(find_layer(inner), given, scale)]
        return (
            [{**row_arguments[0], wraps: written}]
            if isinstance(row_arguments[0], dict)
            else [written, *row_arguments[1:]]
        )
    name = entry.rule.repeats
    if name is None or not scale.full:
        return row_arguments
    (positional, keywords), position = split_arguments(row_arguments), list(entry.parameters()).index(name)
    if position < len(positional):
        positional[position] = scale.inner_repeats(positional[position])
    elif (count := scale.inner_repeats(keywords.get(name, 1))) != 1 or name in keywords:
        keywords[name] = count
    return join_arguments(positional, keywords)


def _meaning(value: object, num_classes: int) -> object:
    """Replace the special strings ``nc`` and ``None``, also inside lists."""
    if isinstance(value, list):
        return [_meaning(item, num_classes) for item in value]
    return {"nc": num_classes, "None": None}.get(value, value) if isinstance(value, str) else value


def _checked(entry: Layer, key: str, value: object, annotation: object) -> object:
    """Return `value` converted to `annotation`'s type (a list may become a tuple); reject one that does not fit."""
    fits, converted = _fit(value, annotation)
    if not fits:
        expected = getattr(annotation, "__name__", None) if isinstance(annotation, type) else None
        wanted = expected or str(annotation).replace("typing.", "")
        reason = reason_of_misfit(entry, value)
        raise ModelConfigError(
            f"argument '{key}' is {value!r}, expected {wanted}{reason}: the layer is {entry.signature()}"
        )
    return converted


def reason_of_misfit(entry: Layer, value: object) -> str:
    """Return what is wrong with a value that does not fit its annotation, where that is known, else an empty text."""
    if entry.rule.branches and (value == "anchors" or is_anchor_list(value)):
        return ": the heads have no anchors: leave them out, as in [nc]"
    if entry.rule.branches and isinstance(value, list) and all(isinstance(width, int) for width in value):
        return ": the program gives a head the channels of its inputs: leave them out, as in [nc]"
    if not isinstance(value, str):
        return ""
    try:
        number = float(value.strip())
    except ValueError:
        return ""
    if not math.isfinite(number):
        return ""
    return f": it is text: write {as_yaml_number(number)}, without quotes"


def as_yaml_number(number: float) -> str:
    """Return a finite number as any reader of yaml takes it for one: 1.0e-5, where some take 1e-5 for text."""
    digits, _, exponent = repr(number).partition("e")
    if number.is_integer() and abs(number) < 1e15:
        return str(int(number))
    return f"{digits if '.' in digits else f'{digits}.0'}e{int(exponent):+d}" if exponent else digits


def is_anchor_list(value: object) -> bool:
    """Tell whether a value is a list of lists of numbers, as heads with anchor boxes have it."""
    return isinstance(value, list) and bool(value) and all(isinstance(row, list) for row in value)


def _fit(value: object, annotation: object) -> tuple[bool, object]:
    """Tell whether a value fits a type annotation, and convert it; unknown annotations accept anything but strings."""
    origin, options = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return value in options, value
    if origin in (typing.Union, types.UnionType):
        results = [_fit(value, option) for option in options]
        return next((result for result in results if result[0]), (False, value))
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            return False, value
        kinds = [options[0]] * len(value) if origin is list or options[-1:] == (Ellipsis,) else list(options)
        results = [_fit(item, kind) for item, kind in zip(value, kinds, strict=False)]
        return len(kinds) == len(value) and all(fit for fit, _ in results), origin(item for _, item in results)
    if annotation is type(None) or annotation is None:
        return value is None, value
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool), value
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool), value
    if isinstance(annotation, type) and annotation not in (Any, object):
        return isinstance(value, annotation), value
    return not isinstance(value, str), value
