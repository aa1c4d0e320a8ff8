"""The rows of a network yaml: taken apart, checked, shown, and what came of each."""

from dataclasses import dataclass
from typing import Any

import yaml

from models.registry import Channels
from utils.errors import ModelConfigError

IMAGE = -1
"""Index that stands for the picture itself among the sources of a row."""


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
