"""The language of edits: what a patch of a network says, as a phrase or as a mapping, read into an `Edit`.

Phrases (the command line's `--patch`, or an item of a yaml's `edits:`) and the mappings that they stand for:

    insert FocalModulationBlock after p5          {insert: FocalModulationBlock, after: p5}
    insert ACmix [{residual: true}] before head   {insert: [ACmix, {residual: true}], before: head}
    insert Concat after n4 from n4, p4 as cat4    {insert: Concat, after: n4, from: [n4, p4], as: cat4}
    insert SE after p5 for spp                    {insert: SE, after: p5, for: spp}
    replace every C2f in neck with C3k2 [256]     {replace: every C2f in neck, with: [C3k2, 256]}
    remove spp                                    {remove: spp}
    wrap every RepNCSPELAN4 in Residual           {wrap: every RepNCSPELAN4, in: Residual}
    set every C2f attention = SE                  {set: every C2f, to: {attention: SE}}
    swap head with DDetect                        {swap: head, with: DDetect}
    label 9 as p5                                 {label: 9, as: p5}

A layer is its name, with its arguments as a row would list them. A number before it is the row's repeats: `insert 3 C2f [256] after p5`.
Rows are meant by label, index, layer name where only one row has it, `head`, or `every NAME [in backbone|neck]`, NAME with `*` if wanted;
several are separated by commas.
"""

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from models.config.rows import check_label, show_row
from utils.errors import ModelConfigError, did_you_mean

ACTIONS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "insert": ("insert LAYER after|before ROWS", (), ("after", "before", "for", "from", "as", "repeats")),
    "replace": ("replace ROWS with LAYER", ("with",), ("as", "repeats")),
    "remove": ("remove ROWS", (), ()),
    "wrap": ("wrap ROWS in LAYER", ("in",), ()),
    "set": ("set ROWS ARGUMENT = VALUE", ("to",), ()),
    "swap": ("swap head with LAYER", ("with",), ()),
    "label": ("label ROW as LABEL", ("as",), ()),
}
"""Each action: its form, the words that it must have beside the first, and those that it may have."""

SECTIONS = ("backbone", "neck", "head")


@dataclass(frozen=True)
class Every:
    """All rows whose layer's name fits a pattern, in a part of the network or in all of it."""

    pattern: str
    section: str | None


RowPhrase = str | int | Every
"""A label, a layer's name or `head`; an index; or a pattern."""


@dataclass(frozen=True)
class LayerPhrase:
    """A layer as an edit names it: what its row says."""

    name: str
    arguments: list[Any]
    repeats: int = 1


@dataclass(frozen=True)
class Edit:
    """One edit of a network's rows.

    Attributes:
        place: where it stands and what it says, for messages.
        rows: the rows that it is about.
        layer: the one that it brings, if any.
        at: "after" or "before", of an insertion.
        consumers: of an insertion the rows that take the new row's output; None for all that took the old one's.
        sources: of an insertion where the new row's input comes from; None for the row that it follows.
        arguments: of a `set` the values by argument.
    """

    place: str
    action: str
    rows: list[RowPhrase]
    layer: LayerPhrase | None = None
    at: str = "after"
    consumers: list[RowPhrase] | None = None
    sources: list[RowPhrase] | None = None
    label: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)


def read_edit(written: object, place: str) -> Edit:
    """Read an edit from a phrase or a mapping.

    Args:
        place: where it stands, for messages.
    Raises:
        ModelConfigError: it says no edit; shows the form that was expected.
    """
    place = f"{place}: {written if isinstance(written, str) else show_row(written)}"
    try:
        return _from_mapping(_from_phrase(written) if isinstance(written, str) else written, place)
    except ModelConfigError as error:
        raise ModelConfigError(f"{place}: {error}") from error


def _from_mapping(content: object, place: str) -> Edit:
    """Read the mapping form; every form ends here."""
    if not isinstance(content, dict):
        raise ModelConfigError(
            f"expected a phrase such as 'insert SE after p5', or a mapping such as {{insert: SE, after: p5}}; got {content!r}"
        )
    action = next((key for key in ACTIONS if key in content), None)
    if action is None:
        raise ModelConfigError(
            f"no such edit: expected one of {', '.join(ACTIONS)}.{did_you_mean(str(next(iter(content), '')), ACTIONS)}"
        )
    form, needed, allowed = ACTIONS[action]
    if several := [key for key in ACTIONS if key in content and key != action]:
        raise ModelConfigError(f"says both {action} and {several[0]}: expected {form}")
    if "repeats" in content and "repeats" not in allowed:
        raise ModelConfigError(f"a number before the layer: expected {form}, which keeps the row's repeats")
    for key in content:
        if key not in (action, *needed, *allowed):
            raise ModelConfigError(
                f"unknown word '{key}': expected {form}.{did_you_mean(str(key), (*needed, *allowed))}"
            )
    for key in needed:
        if key not in content:
            raise ModelConfigError(f"'{key}' is missing: expected {form}")
    repeats = content.get("repeats", 1)
    if not isinstance(repeats, int) or isinstance(repeats, bool) or repeats < 1:
        raise ModelConfigError(f"repeats is {repeats!r}: expected a positive integer")
    if "as" in content:
        check_label(content["as"])
    common: dict[str, Any] = {"place": place, "action": action, "label": content.get("as")}
    if action == "insert":
        ats = [at for at in ("after", "before") if at in content]
        if len(ats) != 1:
            raise ModelConfigError(f"says {' and '.join(ats) or 'neither after nor before'}: expected {form}")
        optional: dict[str, Any] = {
            name: _rows(content[key]) if key in content else None
            for name, key in (("consumers", "for"), ("sources", "from"))
        }
        if ats == ["before"] and len(content.keys() & {"for", "from"}):
            raise ModelConfigError(
                "'for' and 'from' are for an insertion after a row: one before it takes that row's inputs"
            )
        return Edit(
            **common, rows=_rows(content[ats[0]]), layer=_layer(content["insert"], repeats), at=ats[0], **optional
        )
    if action == "set":
        if not isinstance(content["to"], dict) or not content["to"]:
            raise ModelConfigError(f"'to' is {content['to']!r}: expected a mapping of arguments to values")
        return Edit(**common, rows=_rows(content["set"]), arguments=content["to"])
    layer = next((_layer(content[key], repeats) for key in ("with", "in") if key in content), None)
    return Edit(**common, rows=_rows(content[action]), layer=layer)


def _layer(written: object, repeats: int) -> LayerPhrase:
    """Read a layer: its name, or a list of its name and arguments."""
    name, *arguments = written if isinstance(written, list) and written else [written]
    if not isinstance(name, str):
        raise ModelConfigError(
            f"layer is {written!r}: expected its name, or a list of its name and arguments, such as [GatherExcite, 8, theta]"
        )
    return LayerPhrase(name, arguments, repeats)


def _rows(written: object) -> list[RowPhrase]:
    """Read a list of rows: a phrase with commas, an index, or a list of those."""
    if isinstance(written, list) and written:
        return [row for one in written for row in _rows(one)]
    if isinstance(written, int) and not isinstance(written, bool):
        return [written]
    if not isinstance(written, str) or not written.strip():
        raise ModelConfigError(
            f"rows are {written!r}: expected a label, an index, a layer's name, head, or 'every NAME in neck'"
        )
    return [_row(part) for part in re.split(r"\s*,\s*|\s+and\s+", written.strip())]


def _row(part: str) -> RowPhrase:
    """Read one row phrase."""
    if found := re.fullmatch(r"(?:every|all)\s+([\w.*?]+)(?:\s+in\s+(?:the\s+)?(\w+))?", part):
        if found[2] not in (None, *SECTIONS):
            raise ModelConfigError(
                f"there is no part '{found[2]}': expected {', '.join(SECTIONS)}.{did_you_mean(found[2], SECTIONS)}"
            )
        return Every(found[1], found[2])
    word = re.fullmatch(r"(?:the\s+)?([\w.]+)", part)
    if not word:
        raise ModelConfigError(
            f"rows are {part!r}: expected a label, an index, a layer's name, head, or 'every NAME in neck'"
        )
    return int(word[1]) if word[1].isdigit() else word[1]


def _from_phrase(text: str) -> dict[str, Any]:
    """Turn a phrase into the mapping that it stands for."""
    action, _, rest = text.strip().partition(" ")
    if action not in ACTIONS:
        raise ModelConfigError(
            f"no such edit '{action}': expected one of {', '.join(ACTIONS)}.{did_you_mean(action, ACTIONS)}"
        )
    form = ACTIONS[action][0]
    if action == "set":
        found = re.fullmatch(r"(.+?)[\s.](\w+)\s*=\s*(.+)", rest.strip())
        if not found:
            raise ModelConfigError(f"expected {form}")
        return {"set": found[1], "to": {found[2]: _value(found[3])}}
    if action == "insert":
        layer, rest = _layer_at_start(rest, form)
        content = {"insert": layer.pop("layer"), **layer}
        words: tuple[str, ...] = ("after", "before", "for", "from", "as")
    else:
        content, words = {}, ("with", "in", "as")
        rest = f"{action} {rest}"
    joined = "|".join(words)
    keys = (action,) if action != "insert" else ()
    marks = [*re.finditer(rf"(?:^|(?<=\s))({'|'.join((*keys, joined))})\s+", _masked(rest))]
    marks = [
        mark
        for mark in marks
        if mark[1] != "in"
        or (action == "wrap" and not re.match(r"(the\s+)?(backbone|neck|head)\b", rest[mark.end() :]))
    ]
    if not marks or rest[: marks[0].start()].strip():
        raise ModelConfigError(f"expected {form}")
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        part = rest[mark.end() : following.start() if following else None].strip()
        if mark[1] in content:
            raise ModelConfigError(f"says '{mark[1]}' twice: expected {form}")
        if mark[1] in ("with", "in"):
            layer, left = _layer_at_start(part, form)
            if left.strip():
                raise ModelConfigError(f"'{left.strip()}' is left over: expected {form}")
            content |= {mark[1]: layer.pop("layer"), **layer}
        else:
            content[mark[1]] = part
    return content


def _layer_at_start(text: str, form: str) -> tuple[dict[str, Any], str]:
    """Take `[repeats] NAME [arguments]` off the start of a text; return it, and the rest."""
    found = re.match(r"\s*(?:(\d+)\s+)?([\w.]+)\s*", text)
    if not found:
        raise ModelConfigError(f"expected {form}")
    rest, arguments = text[found.end() :], []
    if rest.startswith(("[", "{")):
        end = _closing(rest)
        value = _value(rest[:end])
        arguments, rest = value if isinstance(value, list) else [value], rest[end:]
    layer: dict[str, Any] = {"layer": [found[2], *arguments] if arguments else found[2]}
    return layer | ({"repeats": int(found[1])} if found[1] else {}), rest.strip()


def _closing(text: str) -> int:
    """Return the position after the bracket that closes the one at the start."""
    depth = 0
    for position, character in enumerate(text):
        depth += (character in "[{") - (character in "]}")
        if depth == 0:
            return position + 1
    raise ModelConfigError(f"'{text}': a bracket is not closed")


def _masked(text: str) -> str:
    """Return a text of the same length in which what stands in brackets is blotted out."""
    depth, masked = 0, []
    for character in text:
        depth += character in "[{"
        masked.append("." if depth else character)
        depth -= character in "]}" and depth > 0
    return "".join(masked)


def _value(text: str) -> Any:
    """Read a value as yaml."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ModelConfigError(
            f"'{text}' is not valid yaml: expected a value such as 8, theta, [1, 2] or {{residual: true}}"
        ) from error
