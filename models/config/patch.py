"""Edits of a network's rows: insert, replace, remove, wrap, set, swap the head; every reference is put right by the program.

The language of edits is models/config/language.py. Rows are held as nodes that point at each other, so that nothing is renumbered by hand:
indices come out when the rows are written again.
"""

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from models.config.language import Edit, Every, LayerPhrase, RowPhrase
from models.config.rows import IMAGE, RESERVED_LABELS, Source, check_label, checked_row, resolve_source, show_row
from models.registry import Layer, Scale, find_layer
from utils.errors import ModelConfigError, did_you_mean


@dataclass(eq=False)
class Node:
    """One row of a network that is being edited; `None` among the sources stands for the image.

    Attributes:
        written: each source as the row's author wrote it, in step with `sources`.
        place: where the row comes from, for messages.
        fresh: whether an edit brought the row.
    """

    sources: list["Node | None"]
    written: list[Source]
    one_source: bool
    repeats: int
    name: str
    arguments: list[Any]
    label: str | None
    section: str
    place: str
    fresh: bool = False


@dataclass
class Rows:
    """The rows of a network, in order, open to edits.

    Attributes:
        notes: what an edit changed beyond what it says, a line each.
    """

    nodes: list[Node]
    notes: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, config: dict[str, Any], places: dict[str, list[str]]) -> "Rows":
        """Take the rows of a configuration.

        Args:
            places: where each row of `backbone` and `head` stands, for messages.
        Raises:
            ModelConfigError: a row that is none, or refers to a row that does not exist before it.
        """
        nodes: list[Node] = []
        labels: dict[str, int] = {}
        for section in ("backbone", "head"):
            for number, raw in enumerate(config[section]):
                place = places[section][number]
                try:
                    source, repeats, name, arguments, label = checked_row(raw)
                    written = source if isinstance(source, list) else [source]
                    indices = [resolve_source(one, len(nodes), labels) for one in written]
                except ModelConfigError as error:
                    raise ModelConfigError(
                        f"{place}: {section}[{number}] (layer {len(nodes)}): {show_row(raw)}: {error}"
                    ) from error
                if label is not None:
                    labels[label] = len(nodes)
                sources = [None if index == IMAGE else nodes[index] for index in indices]
                nodes.append(
                    Node(
                        sources,
                        list(written),
                        not isinstance(source, list),
                        repeats,
                        name,
                        arguments,
                        label,
                        section,
                        place,
                    )
                )
        return cls(nodes)

    def written(self) -> tuple[dict[str, list[Any]], dict[str, list[str]]]:
        """Return the sections as a yaml holds them, and the place of each row."""
        self._label_referred()
        index = {id(node): number for number, node in enumerate(self.nodes)}
        sections: dict[str, list[Any]] = {"backbone": [], "head": []}
        places: dict[str, list[str]] = {"backbone": [], "head": []}
        for number, node in enumerate(self.nodes):
            sources = [self._source(node, position, number, index) for position in range(len(node.sources))]
            row = [sources[0] if node.one_source else sources, node.repeats, node.name, node.arguments]
            sections[node.section].append(row + ([node.label] if node.label else []))
            places[node.section].append(node.place)
        return sections, places

    def _source(self, node: Node, position: int, number: int, index: dict[int, int]) -> Source:
        """Return one source as the row is to say it: as it did where that still holds, else -1, a label or an index."""
        source, said = node.sources[position], node.written[position]
        if source is None:
            return -(number + 1)
        place = index[id(source)]
        if isinstance(said, str) and source.label:
            return source.label
        if isinstance(said, int) and said >= 0 and not source.fresh:
            return place
        return -1 if place == number - 1 else source.label or place

    def _label_referred(self) -> None:
        """Give a label to every row that an edit brought and that a row other than the next refers to."""
        for number, node in enumerate(self.nodes):
            users = [later for later, user in enumerate(self.nodes) if node in user.sources]
            if node.fresh and node.label is None and users != [number + 1]:
                node.label = self._free_label(
                    "_".join(filter(None, (self._origin(node), node.name.split(".")[-1].lower())))
                )

    @staticmethod
    def _origin(node: Node) -> str | None:
        """Return the label of the row that a new row follows, by way of other new rows."""
        source = node.sources[0]
        while source is not None and source.fresh and source.label is None:
            source = source.sources[0]
        return source.label if source is not None else None

    def _free_label(self, wish: str) -> str:
        taken, number, label = {*RESERVED_LABELS, *(node.label for node in self.nodes)}, 2, wish
        while label in taken:
            label, number = f"{wish}{number}", number + 1
        return label

    # which rows a phrase means

    def find(self, phrases: Sequence[RowPhrase]) -> list[Node]:
        """Return the rows that the phrases mean, in the network's order.

        Raises:
            ModelConfigError: a phrase that means none, or a layer's name that several rows have.
        """
        chosen = [node for phrase in phrases for node in self._matches(phrase)]
        return [node for node in self.nodes if node in chosen]

    def one(self, phrases: Sequence[RowPhrase], what: str) -> Node:
        """Return the one row that the phrases mean."""
        found = self.find(phrases)
        if len(found) != 1:
            raise ModelConfigError(f"means {len(found)} rows: expected one, {what}")
        return found[0]

    def _matches(self, phrase: RowPhrase) -> list[Node]:
        if isinstance(phrase, Every):
            return self._every(phrase)
        if isinstance(phrase, int):
            if not 0 <= phrase < len(self.nodes):
                raise ModelConfigError(f"there is no layer {phrase}: expected 0 to {len(self.nodes) - 1}")
            return [self.nodes[phrase]]
        if phrase == "head":
            return [self.nodes[-1]]
        if labelled := [node for node in self.nodes if node.label == phrase]:
            return labelled
        named = [node for node in self.nodes if node.name == phrase]
        if len(named) > 1:
            places = ", ".join(str(number) for number, node in enumerate(self.nodes) if node.name == phrase)
            raise ModelConfigError(
                f"'{phrase}' is the layer of rows {places}: name one of them, or write 'every {phrase}'"
            )
        if not named:
            labels = [node.label for node in self.nodes if node.label]
            raise ModelConfigError(
                f"there is no row '{phrase}': the labels are {', '.join(labels) or 'none'}."
                f"{did_you_mean(phrase, [*labels, *(node.name for node in self.nodes), 'head'])}"
            )
        return named

    def _every(self, phrase: Every) -> list[Node]:
        parts = {
            None: self.nodes,
            "backbone": [node for node in self.nodes[:-1] if node.section == "backbone"],
            "neck": [node for node in self.nodes[:-1] if node.section == "head"],
            "head": self.nodes[-1:],
        }
        found = [node for node in parts[phrase.section] if fnmatch.fnmatchcase(node.name, phrase.pattern)]
        if not found:
            where, names = (
                f" in the {phrase.section}" if phrase.section else "",
                sorted({node.name for node in parts[phrase.section]}),
            )
            raise ModelConfigError(
                f"no row{where} is '{phrase.pattern}': its layers are {', '.join(names)}.{did_you_mean(phrase.pattern, names)}"
            )
        return found

    # edits

    def apply(self, edit: Edit) -> None:
        """Make one edit.

        Raises:
            ModelConfigError: it cannot be made; names its place and says why.
        """
        used = {id(source) for node in self.nodes for source in node.sources}
        try:
            getattr(self, f"_{edit.action}")(edit)
            self._drop_unused(edit, used)
            for section, what in (("backbone", "its first row"), ("head", "the head")):
                if not any(node.section == section for node in self.nodes):
                    raise ModelConfigError(f"leaves no row in the {section} section: replace {what} instead")
        except ModelConfigError as error:
            raise ModelConfigError(f"{edit.place}: {error}") from error

    def _insert(self, edit: Edit) -> None:
        targets = self.find(edit.rows)
        if edit.label is not None and len(targets) > 1:
            raise ModelConfigError(
                f"'as {edit.label}' would label {len(targets)} rows: insert one at a time, or leave it out"
            )
        for target in targets:
            if edit.at == "after":
                self._insert_after(edit, target)
            else:
                self._insert_before(edit, target)

    def _insert_after(self, edit: Edit, target: Node) -> None:
        if target is self.nodes[-1]:
            raise ModelConfigError("nothing can follow the head: insert before it")
        users = [node for node in self.nodes if target in node.sources]
        if edit.consumers is not None:
            users = self.find(edit.consumers)
            for user in users:
                if target not in user.sources:
                    raise ModelConfigError(
                        f"'for' means {self._shown(user)}, which does not take the output of {self._shown(target)}"
                    )
        sources = (
            [target] if edit.sources is None else [node for phrase in edit.sources for node in self._matches(phrase)]
        )
        position = self.nodes.index(target) + 1
        for source in sources:
            if self.nodes.index(source) >= position:
                raise ModelConfigError(
                    f"'from' means {self._shown(source)}, which comes after {self._shown(target)}: insert after it instead"
                )
        self._add(edit, position, sources, target.section, users, target)

    def _insert_before(self, edit: Edit, target: Node) -> None:
        if edit.label is not None and len(set(map(id, target.sources))) > 1:
            raise ModelConfigError(
                f"'as {edit.label}' would label a row for each input of {self._shown(target)}: leave it out"
            )
        for source in dict.fromkeys(target.sources):
            self._add(edit, self.nodes.index(target), [source], target.section, [target], source)

    def _add(
        self,
        edit: Edit,
        position: int,
        sources: Iterable[Node | None],
        section: str,
        users: list[Node],
        replaced: Node | None,
    ) -> None:
        """Put the edit's layer at a position and let `users` take its output in place of that of `replaced`."""
        layer, sources = self._layer(edit), list(sources)
        self._check_new_label(edit.label)
        written: list[Source] = [-1] * len(sources)
        new = Node(
            sources,
            written,
            len(sources) == 1,
            layer.repeats,
            layer.name,
            list(layer.arguments),
            edit.label,
            section,
            edit.place,
            fresh=True,
        )
        if not users:
            raise ModelConfigError(
                "nothing takes the output of that row, and so nothing would take the new one's: say 'for' which rows"
            )
        for user in users:
            for number, source in enumerate(user.sources):
                if source is replaced:
                    user.sources[number] = new
                    user.written[number] = -1
        self.nodes.insert(position, new)

    def _replace(self, edit: Edit) -> None:
        layer, targets = self._layer(edit), self.find(edit.rows)
        if edit.label is not None and len(targets) > 1:
            raise ModelConfigError(
                f"'as {edit.label}' would label {len(targets)} rows: replace one at a time, or leave it out"
            )
        for target in targets:
            target.name, target.arguments, target.repeats, target.place = (
                layer.name,
                list(layer.arguments),
                layer.repeats,
                edit.place,
            )
            if edit.label is not None:
                self._check_new_label(edit.label)
                target.label = edit.label

    def _remove(self, edit: Edit) -> None:
        for target in self.find(edit.rows):
            if target is self.nodes[-1]:
                raise ModelConfigError("the head cannot be removed: swap it")
            if len(target.sources) != 1:
                raise ModelConfigError(
                    f"{self._shown(target)} has {len(target.sources)} inputs: which would stand in for it is not known: replace it"
                )
            source = target.sources[0]
            for node in self.nodes:
                for number, taken in enumerate(node.sources):
                    if taken is target:
                        node.sources[number], node.written[number] = source, target.written[0]
            self.nodes.remove(target)

    def _wrap(self, edit: Edit) -> None:
        layer = self._layer(edit)
        for target in self.find(edit.rows):
            if target is self.nodes[-1]:
                raise ModelConfigError("the head cannot be wrapped: it must stay the last row")
            target.arguments = [[target.name, *target.arguments], *layer.arguments]
            target.name, target.place = layer.name, edit.place

    def _set(self, edit: Edit) -> None:
        for target in self.find(edit.rows):
            for argument, value in edit.arguments.items():
                if argument == "from":
                    self._connect(target, value)
                elif argument == "repeats" and "repeats" not in find_layer(target.name).parameters():
                    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                        raise ModelConfigError(f"repeats is {value!r}: expected a positive integer")
                    target.repeats = value
                else:
                    target.arguments = with_argument(find_layer(target.name), target.arguments, argument, value)
            target.place = edit.place

    def _connect(self, target: Node, value: object) -> None:
        """Let a row take other inputs."""
        phrases: list[Any] = value if isinstance(value, list) else [value]
        if not phrases or not all(isinstance(phrase, str | int) and not isinstance(phrase, bool) for phrase in phrases):
            raise ModelConfigError(f"from is {value!r}: expected a row's label or index, or a list of them")
        before = self.nodes[: self.nodes.index(target)]
        sources: list[Node | None] = []
        for phrase in phrases:
            source = before[-1] if phrase == -1 and before else self.one([phrase], "a row to take the output of")
            if source not in before:
                raise ModelConfigError(
                    f"from means {self._shown(source)}, which does not come before {self._shown(target)}"
                )
            sources.append(source)
        written: list[Source] = [phrase if isinstance(phrase, str) else -1 for phrase in phrases]
        target.sources, target.written, target.one_source = sources, written, not isinstance(value, list)

    def _swap(self, edit: Edit) -> None:
        layer, head = self._layer(edit), self.one(edit.rows, "the head")
        if head is not self.nodes[-1]:
            raise ModelConfigError(f"{self._shown(head)} is not the head: expected 'swap head with LAYER'")
        before, after = find_layer(head.name), find_layer(layer.name)
        old, new = branches_of(before), branches_of(after)
        if new is None:
            raise ModelConfigError(f"{layer.name} is no head: expected a layer such as DDetect")
        if old is not None:
            if new > old:
                raise ModelConfigError(
                    f"{layer.name} has {new} branches and {head.name} {old}: where the others come from is not known: write the row"
                )
            kept = kept_inputs(before, after, len(head.sources))
            head.sources, head.written = (
                [head.sources[place] for place in kept],
                [head.written[place] for place in kept],
            )
        bare = not layer.arguments or (
            len(layer.arguments) == 1
            and isinstance(layer.arguments[0], dict)
            and "num_classes" not in layer.arguments[0]
        )
        head.name, head.arguments, head.place = layer.name, ["nc"] * bare + list(layer.arguments), edit.place

    def _label(self, edit: Edit) -> None:
        target = self.one(edit.rows, "to be labelled")
        self._check_new_label(edit.label)
        target.label = edit.label

    # helpers

    def _layer(self, edit: Edit) -> LayerPhrase:
        """Return the edit's layer, known to exist."""
        assert edit.layer is not None
        find_layer(edit.layer.name)
        return edit.layer

    def _check_new_label(self, label: str | None) -> None:
        if label is not None:
            check_label(label)
            if any(node.label == label for node in self.nodes):
                raise ModelConfigError(f"label '{label}' is taken: choose another")

    def _drop_unused(self, edit: Edit, used: set[int]) -> None:
        """Remove the rows that lead nowhere since the edit, and note it."""
        number = {id(node): index for index, node in enumerate(self.nodes)}
        dropped: list[Node] = []
        while True:
            taken = {id(source) for node in self.nodes for source in node.sources}
            idle = [node for node in self.nodes[:-1] if id(node) not in taken and (node.fresh or id(node) in used)]
            if not idle:
                break
            dropped += idle
            self.nodes = [node for node in self.nodes if node not in idle]
        if dropped:
            shown = (
                f"{number[id(node)]} ({node.label or node.name})"
                for node in sorted(dropped, key=lambda node: number[id(node)])
            )
            self.notes.append(f"{edit.place}: rows that lead nowhere now are removed: {', '.join(shown)}")

    def _shown(self, node: Node) -> str:
        return f"row {self.nodes.index(node)} ({node.label or node.name})"


def with_argument(entry: Layer, arguments: list[Any], name: str, value: Any) -> list[Any]:
    """Return a row's arguments with one of them set, by position where it stands by position.

    Raises:
        ModelConfigError: the layer has no such argument.
    """
    known = list(entry.parameters())
    if name not in known:
        raise ModelConfigError(
            f"unknown argument '{name}': the layer is {entry.signature()}.{did_you_mean(name, [*known, 'repeats', 'from'])}"
        )
    positional, keywords = list(arguments), {}
    if positional and isinstance(positional[-1], dict):
        keywords = positional.pop()
    if known.index(name) < len(positional):
        positional[known.index(name)] = value
        return [*positional, *([keywords] if keywords else [])]
    return [*positional, {**keywords, name: value}]


def branches_of(entry: Layer) -> int | None:
    """Return how many branches a head has; None for a layer that is no head."""
    if "branches" not in entry.rule.fills:
        return None
    filled: dict[str, Any] = {}
    entry.rule.apply([16], filled, Scale())
    return filled["branches"]


def kept_inputs(before: Layer, after: Layer, count: int) -> list[int]:
    """Return the positions of the inputs that a head of no more branches takes over: those of the last branches, the lead one among them.

    Raises:
        ModelConfigError: it takes maps for prototypes, which the one before had none of.
    """
    (branches, extra), (kept, wanted) = (
        (branches_of(head) or 1, getattr(head.cls, "extra_inputs", 0)) for head in (before, after)
    )
    if wanted > extra:
        raise ModelConfigError(
            f"{after.name} takes a further map for prototypes, which {before.name} has not: write the row"
        )
    levels = count // branches - extra
    return [*range((branches - kept) * levels, branches * levels), *range(count - kept * wanted, count)]
