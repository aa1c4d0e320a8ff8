"""The rows of a network yaml: taken apart, checked, shown, and what came of each.

A row is `[from, repeats, layer, arguments]`, or `[from, repeats, layer, arguments, label]`: a later row's `from` may use the
label in place of the index, which then needs no renumbering.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from models.registry import Channels
from utils.errors import ModelConfigError, did_you_mean

IMAGE = -1
"""Index that stands for the image itself among the sources of a row."""

LABEL = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
RESERVED_LABELS = (
    "backbone",
    "neck",
    "head",
    "image",
    "nc",
    "None",
    *"all every after before for from with in as and to the".split(),
)
"""Words that mean something else where a row is referred to."""

Source = int | str
"""A layer as a `from` refers to it: by index, counted back, or by label."""


@dataclass
class Row:
    """One row of a network as built: where its input comes from (absolute indices), what it says, what came of it.

    Attributes:
        written: each source as the yaml says it: counted back from the row (-1), by index, or by label.
        label: the row's own label.
    """

    index: int
    where: str
    sources: list[int]
    written: list[Source]
    one_source: bool
    repeats: int
    name: str
    arguments: list[Any]
    out_channels: Channels
    label: str | None = None


def show_row(raw: object) -> str:
    """Return a row as a yaml author would write it."""
    return (
        yaml.safe_dump(raw, default_flow_style=True, width=1000, allow_unicode=True, sort_keys=False)
        .strip()
        .removesuffix("\n...")
    )


def checked_row(raw: object) -> tuple[Source | list[Source], int, str, list[Any], str | None]:
    """Take a row apart: from, repeats, layer, arguments, label.

    Raises:
        ModelConfigError: it is not `[from, repeats, layer, arguments]`, with or without a label.
    """
    if not isinstance(raw, list) or len(raw) not in (4, 5):
        raise ModelConfigError("expected [from, repeats, layer, arguments] or [from, repeats, layer, arguments, label]")
    source, repeats, name, arguments, label = (*raw, None)[:5]
    if not all(
        isinstance(index, int | str) and not isinstance(index, bool)
        for index in (source if isinstance(source, list) and source else [source])
    ):
        raise ModelConfigError(f"'from' is {source!r}: expected a layer's index or label, or a list of them")
    if not isinstance(repeats, int) or isinstance(repeats, bool) or repeats < 1:
        raise ModelConfigError(f"repeats is {repeats!r}: expected a positive integer")
    if not isinstance(name, str):
        raise ModelConfigError(f"layer is {name!r}: expected a layer's name")
    if not isinstance(arguments, list):
        raise ModelConfigError(f"arguments are {arguments!r}: expected a list")
    if label is not None:
        check_label(label)
    return source, repeats, name, arguments, label


def check_label(label: object) -> None:
    """Refuse what cannot be a row's label.

    Raises:
        ModelConfigError: it is not a word, or a word that means something else where rows are referred to.
    """
    if not isinstance(label, str) or not LABEL.fullmatch(label):
        raise ModelConfigError(f"label is {label!r}: expected a word of letters, digits and _, such as p4")
    if label in RESERVED_LABELS:
        raise ModelConfigError(
            f"label is {label!r}: this word means something else: choose another, such as {label}_row"
        )


def resolve_source(source: Source, current: int, labels: Mapping[str, int]) -> int:
    """Turn a `from` into an absolute index (IMAGE for what comes before layer 0).

    Args:
        labels: index of each label so far.
    Raises:
        ModelConfigError: the layer does not exist yet.
    """
    if isinstance(source, str):
        if source not in labels:
            known = (
                f"the labels of the rows before it are {', '.join(labels)}"
                if labels
                else "no row before it has a label"
            )
            raise ModelConfigError(f"'from' asks for '{source}': {known}.{did_you_mean(source, labels)}")
        return labels[source]
    absolute = source if source >= 0 else current + source
    if absolute >= current or absolute < IMAGE:
        existing = (
            f"only layers 0..{current - 1} exist yet"
            if current
            else "this is the first layer: its input is the image, -1"
        )
        raise ModelConfigError(f"'from' asks for layer {absolute if source >= 0 else source}, but {existing}")
    return absolute
