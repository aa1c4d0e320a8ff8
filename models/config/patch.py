"""Edits of a network's rows: insert, replace, remove, wrap, set, swap the head, label.

The language of edits is models/config/language.py. While rows are edited, `Row.index` only identifies a row;
`EditedRows.settled` renumbers the rows and rewrites every `from`.
"""

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from models.config.language import Edit, Every, LayerPhrase, RowPhrase
from models.config.places import SECTIONS
from models.config.rows import RESERVED_LABELS, Row, Source, check_label, part_of, settle
from models.registry import Layer, find_layer, split_arguments
from utils.errors import ModelConfigError, did_you_mean
from utils.wording import is_count


@dataclass
class EditedRows:
    """The rows of a network, in order, open to edits.

    Attributes:
        notes: lines about side effects of an edit, such as removed rows.
    """

    rows: list[Row]
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._next_index = len(self.rows)

    def settled(self) -> list[Row]:
        """Return the edited rows, numbered, with a label for every new row that needs one."""
        self._label_new_rows()
        settle(self.rows)
        return self.rows

    def _label_new_rows(self) -> None:
        """Label every new row that a row other than the next refers to."""
        for position, row in enumerate(self.rows):
            users = [later for later, user in enumerate(self.rows) if row.index in user.sources]
            if row.fresh and row.label is None and users != [position + 1]:
                words = [self._label_before(row), row.name.split(".")[-1].lower()]
                row.label = self._free_label("_".join(filter(None, words)))

    def _label_before(self, row: Row) -> str | None:
        """Return the label of the row that a new row follows, looking through other new rows."""
        known = {other.index: other for other in self.rows}
        source = known.get(row.sources[0])
        while source is not None and source.fresh and source.label is None:
            source = known.get(source.sources[0])
        return source.label if source is not None else None

    def _free_label(self, wish: str) -> str:
        taken = {*RESERVED_LABELS, *(row.label for row in self.rows)}
        label, number = wish, 2
        while label in taken:
            label, number = f"{wish}{number}", number + 1
        return label

    # --- finding rows

    def find(self, phrases: Sequence[RowPhrase]) -> list[Row]:
        """Return the rows that match the phrases, in the order of the network.

        Raises:
            ModelConfigError: a phrase matches no row, or a layer name matches several.
        """
        chosen = {row.index for phrase in phrases for row in self._matches(phrase)}
        return [row for row in self.rows if row.index in chosen]

    def one(self, phrases: Sequence[RowPhrase], purpose: str) -> Row:
        """Return the single row that matches the phrases."""
        matches = self.find(phrases)
        if len(matches) != 1:
            raise ModelConfigError(f"matches {len(matches)} rows: expected one, {purpose}")
        return matches[0]

    def _matches(self, phrase: RowPhrase) -> list[Row]:
        if isinstance(phrase, Every):
            return self._every(phrase)
        if isinstance(phrase, int):
            if not 0 <= phrase < len(self.rows):
                raise ModelConfigError(f"there is no layer {phrase}: expected 0 to {len(self.rows) - 1}")
            return [self.rows[phrase]]
        if phrase == "head":
            return [self.rows[-1]]
        if labelled := [row for row in self.rows if row.label == phrase]:
            return labelled
        named = [row for row in self.rows if row.name == phrase]
        if len(named) > 1:
            positions = ", ".join(str(self.rows.index(row)) for row in named)
            raise ModelConfigError(
                f"'{phrase}' is the layer of rows {positions}: name one of them, or write 'every {phrase}'"
            )
        if not named:
            labels = [row.label for row in self.rows if row.label]
            raise ModelConfigError(
                f"there is no row '{phrase}': the labels are {', '.join(labels) or 'none'}."
                f"{did_you_mean(phrase, [*labels, *(row.name for row in self.rows), 'head'])}"
            )
        return named

    def _every(self, phrase: Every) -> list[Row]:
        candidates = [row for row in self.rows if phrase.part in (None, part_of(row, self.rows))]
        matches = [row for row in candidates if fnmatch.fnmatchcase(row.name, phrase.pattern)]
        if not matches:
            part = f" in the {phrase.part}" if phrase.part else ""
            names = sorted({row.name for row in candidates})
            raise ModelConfigError(
                f"no row{part} is '{phrase.pattern}': its layers are {', '.join(names)}."
                f"{did_you_mean(phrase.pattern, names)}"
            )
        return matches

    # --- edits

    def apply(self, edit: Edit) -> None:
        """Apply one edit.

        Raises:
            ModelConfigError: it cannot be applied; the message gives its place and the reason.
        """
        used = self._sources()
        try:
            getattr(self, f"_{edit.action}")(edit)
            self._drop_unused(edit, used)
            for section, remedy in zip(SECTIONS, ("its first row", "the head"), strict=True):
                if not any(row.section == section for row in self.rows):
                    raise ModelConfigError(f"leaves no row in the {section} section: replace {remedy} instead")
        except ModelConfigError as error:
            raise ModelConfigError(f"{edit.place}: {error}") from error

    def _insert(self, edit: Edit) -> None:
        targets = self.find(edit.rows)
        self._check_one_label(edit, targets, "insert")
        for target in targets:
            if edit.at == "after":
                self._insert_after(edit, target)
            else:
                self._insert_before(edit, target)

    def _insert_after(self, edit: Edit, target: Row) -> None:
        if target is self.rows[-1]:
            raise ModelConfigError("nothing can follow the head: insert before it")
        users = [row for row in self.rows if target.index in row.sources]
        if edit.consumers is not None:
            users = self.find(edit.consumers)
            for user in users:
                if target.index not in user.sources:
                    raise ModelConfigError(
                        f"'for' means {self._shown(user)}, which does not read {self._shown(target)}"
                    )
        sources = [target]
        if edit.sources is not None:
            sources = [row for phrase in edit.sources for row in self._matches(phrase)]
        position = self.rows.index(target) + 1
        for source in sources:
            if self.rows.index(source) >= position:
                raise ModelConfigError(
                    f"'from' means {self._shown(source)}, which comes after {self._shown(target)}: "
                    "insert after it instead"
                )
        self._add(edit, position, [source.index for source in sources], target.section, users, target.index)

    def _insert_before(self, edit: Edit, target: Row) -> None:
        sources = list(dict.fromkeys(target.sources))
        if edit.label is not None and len(sources) > 1:
            raise ModelConfigError(
                f"'as {edit.label}' would label a row for each input of {self._shown(target)}: leave it out"
            )
        for source in sources:
            self._add(edit, self.rows.index(target), [source], target.section, [target], source)

    def _add(
        self, edit: Edit, position: int, sources: list[int], section: str, users: Iterable[Row], replaced: int
    ) -> None:
        """Insert the edit's layer at a position; `users` read it in place of the row `replaced`."""
        layer = self._layer(edit)
        self._check_new_label(edit.label)
        if not users:
            raise ModelConfigError("no row reads that row: name the readers of the new row with 'for'")
        new = Row(
            self._next_index,
            sources,
            [-1] * len(sources),
            len(sources) == 1,
            layer.repeats,
            layer.name,
            *split_arguments(layer.arguments),
            edit.label,
            section,
            place=edit.place,
            fresh=True,
        )
        self._next_index += 1
        for user in users:
            self._rewire(user, replaced, new.index, -1)
        self.rows.insert(position, new)

    @staticmethod
    def _rewire(user: Row, old: int, new: int, written: Source) -> None:
        """Replace one source of a row by another."""
        for number, source in enumerate(user.sources):
            if source == old:
                user.sources[number], user.written[number] = new, written

    def _replace(self, edit: Edit) -> None:
        layer, targets = self._layer(edit), self.find(edit.rows)
        self._check_one_label(edit, targets, "replace")
        for row in targets:
            row.name, row.arguments, row.repeats, row.place = layer.name, layer.arguments, layer.repeats, edit.place
            if edit.label is not None:
                self._check_new_label(edit.label)
                row.label = edit.label

    def _remove(self, edit: Edit) -> None:
        for target in self.find(edit.rows):
            if target is self.rows[-1]:
                raise ModelConfigError("the head cannot be removed: swap it")
            if len(target.sources) != 1:
                raise ModelConfigError(
                    f"{self._shown(target)} has {len(target.sources)} inputs: its readers need exactly one: replace it"
                )
            for row in self.rows:
                self._rewire(row, target.index, target.sources[0], target.written[0])
            self.rows.remove(target)

    def _wrap(self, edit: Edit) -> None:
        layer = self._layer(edit)
        for row in self.find(edit.rows):
            if row is self.rows[-1]:
                raise ModelConfigError("the head cannot be wrapped: it must stay the last row")
            row.arguments = [[row.name, *row.arguments], *layer.arguments]
            row.name, row.place = layer.name, edit.place

    def _set(self, edit: Edit) -> None:
        for row in self.find(edit.rows):
            for argument, value in edit.arguments.items():
                if argument == "from":
                    self._connect(row, value)
                elif argument == "repeats" and "repeats" not in find_layer(row.name).parameters():
                    if not is_count(value):
                        raise ModelConfigError(f"repeats is {value!r}: expected a positive integer")
                    row.repeats = value
                else:
                    set_argument(row, argument, value)
            row.place = edit.place

    def _connect(self, target: Row, value: object) -> None:
        """Replace the inputs of a row."""
        phrases: list[Any] = value if isinstance(value, list) else [value]
        if not phrases or not all(isinstance(phrase, str | int) and not isinstance(phrase, bool) for phrase in phrases):
            raise ModelConfigError(f"from is {value!r}: expected a row's label or index, or a list of them")
        before = self.rows[: self.rows.index(target)]
        target.sources, target.written, target.one_source = [], [], not isinstance(value, list)
        for phrase in phrases:
            source = before[-1] if phrase == -1 and before else self.one([phrase], "as a source")
            if source not in before:
                raise ModelConfigError(
                    f"from means {self._shown(source)}, which does not come before {self._shown(target)}"
                )
            target.sources.append(source.index)
            target.written.append(phrase if isinstance(phrase, str) else -1)

    def _swap(self, edit: Edit) -> None:
        layer, head = self._layer(edit), self.one(edit.rows, "the head")
        if head is not self.rows[-1]:
            raise ModelConfigError(f"{self._shown(head)} is not the head: expected 'swap head with LAYER'")
        before, after = find_layer(head.name), find_layer(layer.name)
        old, new = before.rule.branches, after.rule.branches
        if not new:
            raise ModelConfigError(f"{layer.name} is no head: expected a layer such as DDetect")
        if old:
            if new > old:
                raise ModelConfigError(
                    f"{layer.name} has {new} branches and {head.name} {old}: "
                    "the inputs of the further branches are unknown: write the row"
                )
            kept = kept_inputs(before, after, len(head.sources))
            head.sources = [head.sources[position] for position in kept]
            head.written = [head.written[position] for position in kept]
        head.name, head.arguments, head.place = layer.name, layer.arguments, edit.place
        if not head.positional and "num_classes" not in head.keywords:
            head.positional = ["nc"]

    def _label(self, edit: Edit) -> None:
        row = self.one(edit.rows, "to be labelled")
        self._check_new_label(edit.label)
        row.label = edit.label

    # --- helpers

    def _sources(self) -> set[int]:
        return {source for row in self.rows for source in row.sources}

    def _layer(self, edit: Edit) -> LayerPhrase:
        """Return the edit's layer, which must be registered."""
        assert edit.layer is not None, edit
        find_layer(edit.layer.name)
        return edit.layer

    def _check_one_label(self, edit: Edit, targets: Sequence[Row], verb: str) -> None:
        if edit.label is not None and len(targets) > 1:
            raise ModelConfigError(
                f"'as {edit.label}' would label {len(targets)} rows: {verb} one at a time, or leave it out"
            )

    def _check_new_label(self, label: str | None) -> None:
        if label is not None:
            check_label(label)
            if any(row.label == label for row in self.rows):
                raise ModelConfigError(f"label '{label}' is taken: choose another")

    def _drop_unused(self, edit: Edit, used: set[int]) -> None:
        """Remove rows that no row reads after the edit, and add a note.

        Args:
            used: rows that were read before the edit.
        """
        before, dropped = list(self.rows), []
        while True:
            taken = self._sources()
            idle = [row for row in self.rows[:-1] if row.index not in taken and (row.fresh or row.index in used)]
            if not idle:
                break
            dropped += idle
            self.rows = [row for row in self.rows if row not in idle]
        if dropped:
            shown = [f"{place} ({row.label or row.name})" for place, row in enumerate(before) if row in dropped]
            self.notes.append(f"{edit.place}: removed rows that no row reads any more: {', '.join(shown)}")

    def _shown(self, row: Row) -> str:
        return f"row {self.rows.index(row)} ({row.label or row.name})"


def set_argument(row: Row, name: str, value: object) -> None:
    """Set an argument of a row, in place; by position where the row gives it by position.

    Raises:
        ModelConfigError: the layer has no such argument.
    """
    entry = find_layer(row.name)
    known = list(entry.parameters())
    if name not in known:
        raise ModelConfigError(
            f"unknown argument '{name}': the layer is {entry.signature()}."
            f"{did_you_mean(name, [*known, 'repeats', 'from'])}"
        )
    if known.index(name) < len(row.positional):
        row.positional[known.index(name)] = value
    else:
        row.keywords[name] = value


def kept_inputs(before: Layer, after: Layer, count: int) -> list[int]:
    """Return the inputs that a head with as many or fewer branches keeps: those of the last branches (lead is last).

    Args:
        count: number of inputs of the old head.
    Raises:
        ModelConfigError: the new head needs a feature map for prototypes and the old head has none.
    """
    branches, kept = before.rule.branches, after.rule.branches
    extra, wanted = before.rule.extra_inputs, after.rule.extra_inputs
    if wanted > extra:
        raise ModelConfigError(
            f"{after.name} needs a feature map for prototypes, {before.name} has none: write the row"
        )
    levels = count // branches - extra
    return [*range((branches - kept) * levels, branches * levels), *range(count - kept * wanted, count)]
