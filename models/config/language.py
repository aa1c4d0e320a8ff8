"""Read an edit, written as a phrase or a mapping, into an `Edit`.

A phrase stands in `--patch` or in a yaml's `edits:`. Each phrase has an equal mapping:

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

A layer is written as its name and the arguments of a row. A number before it is the row's repeats:
`insert 3 C2f [256] after p5`.
A row is written as its label, its index, `head`, its layer's name if no other row has that layer,
or `every NAME [in backbone|neck]`, where NAME may contain `*`. Commas separate several rows, which may stand in
brackets: `after [p4, p5]`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from models.config.rows import PARTS, check_label, show_row
from utils.errors import ModelConfigError, did_you_mean
from utils.files import parse_yaml
from utils.wording import is_count

ACTIONS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "insert": ("insert LAYER after|before ROWS", (), ("after", "before", "for", "from", "as", "repeats")),
    "replace": ("replace ROWS with LAYER", ("with",), ("as", "repeats")),
    "remove": ("remove ROWS", (), ()),
    "wrap": ("wrap ROWS in LAYER", ("in",), ()),
    "set": ("set ROWS ARGUMENT = VALUE", ("to",), ()),
    "swap": ("swap head with LAYER", ("with",), ()),
    "label": ("label ROW as LABEL", ("as",), ()),
}
"""Each action: its form, its required words after the first, and its optional words."""

LAYER_WORDS = ("with", "in")
"""Words before a layer."""

ROWS_EXPECTED = "expected a label, an index, a layer's name, head, or 'every NAME in neck'"


@dataclass(frozen=True)
class Every:
    """All rows whose layer name matches a pattern, in one part of the network or in all of it."""

    pattern: str
    part: str | None


RowPhrase = str | int | Every
"""A label, a layer's name or `head`; an index; or a pattern."""


@dataclass(frozen=True)
class LayerPhrase:
    """A layer in an edit: its name, arguments and repeats, as in a row."""

    name: str
    arguments: list[Any]
    repeats: int = 1


@dataclass(frozen=True)
class Edit:
    """One edit of a network's rows.

    Attributes:
        place: its location and its text, for messages.
        rows: the rows to change, or to insert at.
        layer: the new layer, if any.
        at: "after" or "before"; only for an insertion.
        consumers: rows that read the inserted row; None for all readers of the row before it.
        sources: rows that the inserted row reads; None for the row before it.
        arguments: new values by argument name; only for `set`.
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
        place: location of the edit, for messages.
    Raises:
        ModelConfigError: the edit is malformed; the message shows the expected form.
    """
    place = f"{place}: {written if isinstance(written, str) else show_row(written)}"
    try:
        return _from_mapping(_from_phrase(written) if isinstance(written, str) else written, place)
    except ModelConfigError as error:
        raise ModelConfigError(f"{place}: {error}") from error


# --- mappings


def _from_mapping(content: object, place: str) -> Edit:
    """Read the mapping form; a phrase is converted to it first."""
    if not isinstance(content, dict):
        raise ModelConfigError(
            "expected a phrase such as 'insert SE after p5', or a mapping such as {insert: SE, after: p5}; "
            f"got {content!r}"
        )
    action = _action_of(content)
    repeats = content.get("repeats", 1)
    if not is_count(repeats):
        raise ModelConfigError(f"repeats is {repeats!r}: expected a positive integer")
    label = content.get("as")
    if "as" in content:
        check_label(label)
    if action == "insert":
        return _insertion(content, place, _layer(content["insert"], repeats), label)
    rows = _rows(content[action])
    if action == "set":
        if not isinstance(content["to"], dict) or not content["to"]:
            raise ModelConfigError(f"'to' is {content['to']!r}: expected a mapping of arguments to values")
        return Edit(place, action, rows, arguments=content["to"])
    layer = next((_layer(content[word], repeats) for word in LAYER_WORDS if word in content), None)
    return Edit(place, action, rows, layer, label=label)


def _action_of(content: dict[str, Any]) -> str:
    """Check the words of a mapping and return its action."""
    actions = [word for word in ACTIONS if word in content]
    if not actions:
        raise ModelConfigError(
            f"no such edit: expected one of {', '.join(ACTIONS)}.{did_you_mean(str(next(iter(content), '')), ACTIONS)}"
        )
    action = actions[0]
    form, needed, allowed = ACTIONS[action]
    if len(actions) > 1:
        raise ModelConfigError(f"says both {action} and {actions[1]}: expected {form}")
    if "repeats" in content and "repeats" not in allowed:
        raise ModelConfigError(f"a number before the layer: expected {form}, which keeps the row's repeats")
    for word in content:
        if word not in (action, *needed, *allowed):
            raise ModelConfigError(
                f"unknown word '{word}': expected {form}.{did_you_mean(str(word), (*needed, *allowed))}"
            )
    for word in needed:
        if word not in content:
            raise ModelConfigError(f"'{word}' is missing: expected {form}")
    return action


def _insertion(content: dict[str, Any], place: str, layer: LayerPhrase, label: str | None) -> Edit:
    positions = [word for word in ("after", "before") if word in content]
    if len(positions) != 1:
        raise ModelConfigError(
            f"says {' and '.join(positions) or 'neither after nor before'}: expected {ACTIONS['insert'][0]}"
        )
    at = positions[0]
    if at == "before" and ("for" in content or "from" in content):
        raise ModelConfigError(
            "'for' and 'from' are for an insertion after a row: one before it takes that row's inputs"
        )
    consumers, sources = (_rows(content[word]) if word in content else None for word in ("for", "from"))
    return Edit(place, "insert", _rows(content[at]), layer, at, consumers, sources, label)


def _layer(written: object, repeats: int) -> LayerPhrase:
    """Read a layer: its name, or a list of its name and arguments."""
    name, *arguments = written if isinstance(written, list) and written else [written]
    if not isinstance(name, str):
        raise ModelConfigError(
            f"layer is {written!r}: expected a name, or a list of a name and arguments, "
            "such as [GatherExcite, 8, theta]"
        )
    return LayerPhrase(name, arguments, repeats)


def _rows(written: object) -> list[RowPhrase]:
    """Read references to rows: text with commas, in brackets or without, an index, or a list of both."""
    if isinstance(written, list) and written:
        return [row for one in written for row in _rows(one)]
    if isinstance(written, int) and not isinstance(written, bool):
        return [written]
    text = re.sub(r"[][]", " ", written).strip() if isinstance(written, str) else ""
    if not text:
        raise ModelConfigError(f"rows are {written!r}: {ROWS_EXPECTED}")
    return [_row(part) for part in re.split(r"\s*,\s*|\s+and\s+", text)]


def _row(part: str) -> RowPhrase:
    """Read one row."""
    if every := re.fullmatch(r"(?:every|all)\s+([\w.*?]+)(?:\s+in\s+(?:the\s+)?(\w+))?", part):
        if every[2] not in (None, *PARTS):
            raise ModelConfigError(
                f"there is no part '{every[2]}': expected {', '.join(PARTS)}.{did_you_mean(every[2], PARTS)}"
            )
        return Every(every[1], every[2])
    word = re.fullmatch(r"(?:the\s+)?([\w.]+)", part)
    if not word:
        raise ModelConfigError(f"rows are {part!r}: {ROWS_EXPECTED}")
    return int(word[1]) if word[1].isdecimal() else word[1]


# --- phrases


def _from_phrase(text: str) -> dict[str, Any]:
    """Convert a phrase to its mapping."""
    action, _, rest = text.strip().partition(" ")
    if action not in ACTIONS:
        raise ModelConfigError(
            f"no such edit '{action}': expected one of {', '.join(ACTIONS)}.{did_you_mean(action, ACTIONS)}"
        )
    form = ACTIONS[action][0]
    if action == "set":
        assignment = re.fullmatch(r"(.+?)[\s.](\w+)\s*=\s*(.+)", rest.strip())
        if not assignment:
            raise ModelConfigError(f"expected {form}")
        return {"set": assignment[1], "to": {assignment[2]: _value(assignment[3])}}
    tokens = _tokens(rest)
    content: dict[str, Any] = {}
    if action == "insert":
        content, tokens = _take_layer("insert", tokens, form)
    start, clauses = _split_clauses(action, tokens)
    if action != "insert":
        content = {action: " ".join(start)}
    elif start:
        raise ModelConfigError(f"'{' '.join(start)}' after the layer: expected {form}")
    for word, following in clauses:
        if word in content:
            raise ModelConfigError(f"says '{word}' twice: expected {form}")
        if word in LAYER_WORDS:
            layer, left = _take_layer(word, following, form)
            if left:
                raise ModelConfigError(f"'{' '.join(left)}' is left over: expected {form}")
            content |= layer
        else:
            content[word] = " ".join(following)
    return content


def _tokens(text: str) -> list[str]:
    """Split a phrase at spaces; a value in brackets is one token.

    Raises:
        ModelConfigError: a bracket is not closed.
    """
    tokens, start, depth = [""], 0, 0
    for position, character in enumerate(text):
        if character in "[{":
            if depth == 0:
                tokens.append("")
                start = position
            depth += 1
        if depth == 0 and character.isspace():
            tokens.append("")
        else:
            tokens[-1] += character
        if character in "]}" and depth > 0:
            depth -= 1
            if depth == 0:
                tokens.append("")
    if depth > 0:
        raise ModelConfigError(f"'{text[start:]}': a bracket is not closed")
    return [token for token in tokens if token]


def _split_clauses(action: str, tokens: Sequence[str]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Split tokens at the keywords of an action.

    Returns:
        The tokens before the first word; each word, with the tokens after it.
    """
    _, needed, allowed = ACTIONS[action]
    start: list[str] = []
    clauses: list[tuple[str, list[str]]] = []
    for position, token in enumerate(tokens):
        following = tokens[position + 1 :]
        if token in (*needed, *allowed) and following and not (token == "in" and _names_part(following)):
            clauses.append((token, []))
        else:
            (clauses[-1][1] if clauses else start).append(token)
    return start, clauses


def _names_part(tokens: Sequence[str]) -> bool:
    """Tell whether tokens begin with a part of the network, so that the `in` before them belongs to `every NAME`."""
    return re.match(rf"(the )?({'|'.join(PARTS)})\b", " ".join(tokens)) is not None


def _take_layer(word: str, tokens: Sequence[str], form: str) -> tuple[dict[str, Any], list[str]]:
    """Take `[repeats] NAME [arguments]` from the start of the tokens.

    Returns:
        The layer under `word`, and its `repeats` if given; and the tokens after it.
    """
    content: dict[str, Any] = {}
    tokens = list(tokens)
    if len(tokens) > 1 and tokens[0].isdecimal() and re.fullmatch(r"[\w.]+", tokens[1]):
        content["repeats"] = int(tokens.pop(0))
    if not tokens or not re.fullmatch(r"[\w.]+", tokens[0]):
        raise ModelConfigError(f"expected {form}")
    name, *rest = tokens
    if not rest or rest[0][0] not in "[{":
        return content | {word: name}, rest
    value = _value(rest[0])
    arguments = value if isinstance(value, list) else [value]
    return content | {word: [name, *arguments] if arguments else name}, rest[1:]


def _value(text: str) -> Any:
    """Parse a value as yaml."""
    try:
        return parse_yaml(text)
    except yaml.YAMLError as error:
        raise ModelConfigError(
            f"'{text}' is not valid yaml: expected a value such as 8, theta, [1, 2] or {{residual: true}}"
        ) from error
