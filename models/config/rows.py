"""Rows of a network yaml. Each is read once into a `Row`, which is then edited, scaled, built, deployed and written.

A row is `[from, repeats, layer, arguments]` or `[from, repeats, layer, arguments, label]`. The `from`
of a later row may use the label in place of the index; labels need no renumbering.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from models.config.places import SECTIONS, Places
from models.registry import Channels, join_arguments, split_arguments
from utils.errors import ModelConfigError, did_you_mean
from utils.files import yaml_text
from utils.wording import is_count

IMAGE = -1
"""Index of the input image among the sources of a row."""

PARTS = ("backbone", "neck", "head")
"""Parts of a network; see `part_of`."""

LABEL = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
RESERVED_LABELS = (
    *PARTS,
    *("image", "nc", "None"),
    *"all every after before for from with in as and to the".split(),
)
"""Words that cannot be labels, because they have another meaning in `from` or in an edit."""

Source = int | str
"""A layer in a `from`: its index, its distance counted back from the row, or its label."""


@dataclass(eq=False)
class Row:
    """One row of a network.

    Attributes:
        index: position in the network.
        sources: index of each row that it reads; IMAGE for the image.
        written: each source as the yaml writes it, in the order of `sources`: -1 and so on, an index or a label.
        one_source: whether `from` is a single value, not a list.
        repeats: as written; in a built network scaled by the depth.
        name: the layer's yaml name.
        positional, keywords: its arguments.
        section: key of the yaml that holds it, "backbone" or "head".
        number: position in that section.
        place: file and line, or the edit that wrote the row.
        fresh: whether an edit in progress added it.
        out_channels: known once the layer is built.
    """

    index: int
    sources: list[int]
    written: list[Source]
    one_source: bool
    repeats: int
    name: str
    positional: list[Any]
    keywords: dict[str, Any]
    label: str | None = None
    section: str = "backbone"
    number: int = 0
    place: str = "network"
    fresh: bool = False
    out_channels: Channels = 0

    @property
    def arguments(self) -> list[Any]:
        """The arguments as a yaml writes them: keyword arguments are a mapping at the end."""
        return join_arguments(self.positional, self.keywords)

    @arguments.setter
    def arguments(self, written: Sequence[Any]) -> None:
        self.positional, self.keywords = split_arguments(written)

    @property
    def where(self) -> str:
        """Place and content of the row, for messages."""
        return f"{self.place}: {self.section}[{self.number}] (layer {self.index}): {show_row(self.as_yaml())}"

    def as_yaml(self) -> list[Any]:
        """Return the row as a yaml writes it."""
        source = self.written[0] if self.one_source else list(self.written)
        return [source, self.repeats, self.name, self.arguments, *([self.label] if self.label else [])]

    def numbered_from(self) -> Source | list[Source]:
        """Return `from` without labels: -1 for the previous row if the yaml counts back to it, else the index."""
        numbers: list[Source] = []
        for source, written in zip(self.sources, self.written, strict=True):
            counted_back = isinstance(written, int) and written < 0 and source == self.index - 1
            numbers.append(-1 - self.index if source == IMAGE else -1 if counted_back else source)
        return numbers[0] if self.one_source else numbers


@dataclass
class NetworkConfig:
    """A network yaml as read.

    Attributes:
        keys: its content without the rows.
        where: its name, and the places of its items, for messages.
        notes: lines to print about edits and about rows that were changed on reading.
    """

    keys: dict[str, Any]
    rows: list[Row]
    where: Places
    notes: list[str] = field(default_factory=list)

    def as_yaml(self) -> dict[str, Any]:
        """Return the content of a yaml that builds this network."""
        return self.keys | sections_of(self.rows)


def sections_of(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Return the sections of a yaml with these rows."""
    return {section: [row.as_yaml() for row in rows if row.section == section] for section in SECTIONS}


def part_of(row: Row, rows: Sequence[Row]) -> Literal["backbone", "neck", "head"]:
    """Return the part of the network that a row belongs to.

    The last row is the head, the other rows of the yaml's `head` section are the neck, and the rest is the backbone.
    """
    if row is rows[-1]:
        return "head"
    return "neck" if row.section == "head" else "backbone"


def show_row(raw: object) -> str:
    """Return a row, or a part of one, as a yaml author would write it."""
    return yaml_text(raw, default_flow_style=True, width=1000).strip().removesuffix("\n...")


def read_rows(config: Mapping[str, Any], where: Places) -> list[Row]:
    """Read the rows of a configuration.

    Raises:
        ModelConfigError: a malformed row, a reference to a later row, or a label used twice; the message names the row.
    """
    rows: list[Row] = []
    labels: dict[str, int] = {}
    for section in SECTIONS:
        for number, raw in enumerate(config[section]):
            place = where.of(section, number)
            try:
                row = read_row(raw, len(rows), labels)
            except ModelConfigError as error:
                raise ModelConfigError(
                    f"{place}: {section}[{number}] (layer {len(rows)}): {show_row(raw)}: {error}"
                ) from error
            row.section, row.number, row.place = section, number, place
            if row.label is not None:
                labels[row.label] = row.index
            rows.append(row)
    return rows


def read_row(raw: object, index: int, labels: Mapping[str, int]) -> Row:
    """Read one row.

    Args:
        index: its position in the network.
        labels: index of each label of the rows before it.
    Raises:
        ModelConfigError: the row is malformed, or `from` names no earlier row.
    """
    if not isinstance(raw, list) or len(raw) not in (4, 5):
        raise ModelConfigError("expected [from, repeats, layer, arguments] or [from, repeats, layer, arguments, label]")
    source, repeats, name, arguments, label = (*raw, None)[:5]
    written = source if isinstance(source, list) and source else [source]
    if not all(isinstance(one, int | str) and not isinstance(one, bool) for one in written):
        raise ModelConfigError(f"'from' is {source!r}: expected a layer's index or label, or a list of them")
    if not is_count(repeats):
        raise ModelConfigError(f"repeats is {repeats!r}: expected a positive integer")
    if not isinstance(name, str):
        raise ModelConfigError(f"layer is {name!r}: expected a layer's name")
    if not isinstance(arguments, list):
        raise ModelConfigError(f"arguments are {arguments!r}: expected a list")
    if label is not None:
        check_label(label)
        if label in labels:
            raise ModelConfigError(f"label '{label}' is taken by layer {labels[label]}: choose another")
    sources = [resolve_source(one, index, labels) for one in written]
    return Row(
        index, sources, list(written), not isinstance(source, list), repeats, name, *split_arguments(arguments), label
    )


def check_label(label: object) -> None:
    """Reject an invalid label.

    Raises:
        ModelConfigError: it is not a word, or a reserved word.
    """
    if not isinstance(label, str) or not LABEL.fullmatch(label):
        raise ModelConfigError(f"label is {label!r}: expected a word of letters, digits and _, such as p4")
    if label in RESERVED_LABELS:
        raise ModelConfigError(f"label is {label!r}: this word is reserved: choose another, such as {label}_row")


def resolve_source(source: Source, current: int, labels: Mapping[str, int]) -> int:
    """Return the index of the row that an item of `from` names; IMAGE for the image.

    Args:
        current: index of the row with this `from`.
        labels: index of each label of the rows before.
    Raises:
        ModelConfigError: there is no such row before this one.
    """
    if isinstance(source, str):
        if source not in labels:
            known = f"the labels before this row are {', '.join(labels)}" if labels else "no row before it has a label"
            raise ModelConfigError(f"'from' asks for '{source}': {known}.{did_you_mean(source, labels)}")
        return labels[source]
    absolute = source if source >= 0 else current + source
    if absolute >= current or absolute < IMAGE:
        existing = f"only layers 0..{current - 1} exist yet" if current else "the first layer reads the image, -1"
        raise ModelConfigError(f"'from' asks for layer {absolute if source >= 0 else source}, but {existing}")
    return absolute


def settle(rows: Sequence[Row]) -> None:
    """Renumber rows in place, after rows were added, removed or moved.

    Before the call, `index` identifies a row and `sources` refers to it. Afterwards `index` is the row's position.
    `written` changes only where it would mean another row.
    """
    labels = {row.index: row.label for row in rows}
    position = {row.index: new for new, row in enumerate(rows)} | {IMAGE: IMAGE}
    count = dict.fromkeys(SECTIONS, 0)
    for row in rows:
        row.index = position[row.index]
        row.number = count[row.section]
        count[row.section] += 1
        row.written = [
            written_source(row.index, position[source], written, labels.get(source))
            for source, written in zip(row.sources, row.written, strict=True)
        ]
        row.sources = [position[source] for source in row.sources]
        row.fresh = False


def written_source(row: int, source: int, before: Source, label: str | None) -> Source:
    """Return how a row's `from` writes one source.

    Args:
        row: index of the row.
        source: index of the source.
        before: its old form; kept if it still means the same row.
        label: label of the source, if any.
    """
    if source == IMAGE:
        return -1 - row
    if isinstance(before, str) and label:
        return label
    if isinstance(before, int) and before >= 0:
        return source
    if isinstance(before, int) and row + before == source:
        return before
    return -1 if source == row - 1 else label or source
