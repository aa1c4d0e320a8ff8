"""The language of edits: phrases, mappings, and what is no edit."""

from typing import Any

import pytest

from models.config.language import Edit, Every, LayerPhrase, read_edit
from tests.saying import assert_says
from utils.errors import ModelConfigError

FORMS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "insert": (
        "insert FocalModulationBlock after p5",
        {"insert": "FocalModulationBlock", "after": "p5"},
        {"action": "insert", "rows": ["p5"], "layer": LayerPhrase("FocalModulationBlock", [])},
    ),
    "insert with arguments": (
        "insert ACmix [{residual: true}] before head",
        {"insert": ["ACmix", {"residual": True}], "before": "head"},
        {"action": "insert", "rows": ["head"], "at": "before", "layer": LayerPhrase("ACmix", [{"residual": True}])},
    ),
    "insert with everything": (
        "insert 3 C2f [64, True] after 4 for spp, 12 from n4, p4 as wide",
        {"insert": ["C2f", 64, True], "after": 4, "for": ["spp", 12], "from": ["n4", "p4"], "as": "wide", "repeats": 3},
        {
            "action": "insert",
            "rows": [4],
            "layer": LayerPhrase("C2f", [64, True], 3),
            "consumers": ["spp", 12],
            "sources": ["n4", "p4"],
            "label": "wide",
        },
    ),
    "a keyword alone": (
        "insert GatherExcite {extent: 4} after p3 and p4",
        {"insert": ["GatherExcite", {"extent": 4}], "after": "p3, p4"},
        {"action": "insert", "rows": ["p3", "p4"], "layer": LayerPhrase("GatherExcite", [{"extent": 4}])},
    ),
    "rows in brackets": (
        "insert SE after [p4, p5] for [spp, n4] from [p3, p4]",
        {"insert": "SE", "after": ["p4", "p5"], "for": "[spp, n4]", "from": ["p3", "p4"]},
        {
            "action": "insert",
            "rows": ["p4", "p5"],
            "layer": LayerPhrase("SE", []),
            "consumers": ["spp", "n4"],
            "sources": ["p3", "p4"],
        },
    ),
    "arguments and rows in brackets": (
        "insert ACmix [{heads: 2}] before [head]",
        {"insert": ["ACmix", {"heads": 2}], "before": ["head"]},
        {"action": "insert", "rows": ["head"], "at": "before", "layer": LayerPhrase("ACmix", [{"heads": 2}])},
    ),
    "remove rows in brackets": (
        "remove [9, every SE in neck]",
        {"remove": [9, "every SE in neck"]},
        {"action": "remove", "rows": [9, Every("SE", "neck")]},
    ),
    "wrap rows in brackets": (
        "wrap [n3, n4] in Residual",
        {"wrap": "[n3,n4]", "in": "Residual"},
        {"action": "wrap", "rows": ["n3", "n4"], "layer": LayerPhrase("Residual", [])},
    ),
    "set rows in brackets": (
        "set [n3, n4] attention = SE",
        {"set": ["n3", "n4"], "to": {"attention": "SE"}},
        {"action": "set", "rows": ["n3", "n4"], "arguments": {"attention": "SE"}},
    ),
    "replace rows in brackets": (
        "replace [n3, n4] with C3k2 [64]",
        {"replace": "n3, n4", "with": ["C3k2", 64]},
        {"action": "replace", "rows": ["n3", "n4"], "layer": LayerPhrase("C3k2", [64])},
    ),
    "every": (
        "replace every C2f in the neck with 2 C3k2 [256, mlx]",
        {"replace": "every C2f in neck", "with": ["C3k2", 256, "mlx"], "repeats": 2},
        {"action": "replace", "rows": [Every("C2f", "neck")], "layer": LayerPhrase("C3k2", [256, "mlx"], 2)},
    ),
    "remove": (
        "remove every SE, spp",
        {"remove": ["every SE", "spp"]},
        {"action": "remove", "rows": [Every("SE", None), "spp"]},
    ),
    "wrap": (
        "wrap every Rep* in neck in Residual [{start: identity}]",
        {"wrap": "every Rep* in neck", "in": ["Residual", {"start": "identity"}]},
        {"action": "wrap", "rows": [Every("Rep*", "neck")], "layer": LayerPhrase("Residual", [{"start": "identity"}])},
    ),
    "set": (
        "set every C2f in backbone attention = [ACmix, {heads: 8}]",
        {"set": "every C2f in backbone", "to": {"attention": ["ACmix", {"heads": 8}]}},
        {"action": "set", "rows": [Every("C2f", "backbone")], "arguments": {"attention": ["ACmix", {"heads": 8}]}},
    ),
    "set with a dot": (
        "set p5.repeats=3",
        {"set": "p5", "to": {"repeats": 3}},
        {"action": "set", "rows": ["p5"], "arguments": {"repeats": 3}},
    ),
    "swap": (
        "swap head with V9Detect [nc]",
        {"swap": "head", "with": ["V9Detect", "nc"]},
        {"action": "swap", "rows": ["head"], "layer": LayerPhrase("V9Detect", ["nc"])},
    ),
    "label": ("label 9 as p5", {"label": 9, "as": "p5"}, {"action": "label", "rows": [9], "label": "p5"}),
    "brackets with words of the language": (
        "insert GatherExcite [8, after for] after p5",
        {"insert": ["GatherExcite", 8, "after for"], "after": "p5"},
        {"action": "insert", "rows": ["p5"], "layer": LayerPhrase("GatherExcite", [8, "after for"])},
    ),
}


@pytest.mark.parametrize(("phrase", "mapping", "expected"), FORMS.values(), ids=FORMS)
def test_a_phrase_and_its_mapping_mean_the_same(phrase: str, mapping: dict[str, Any], expected: dict[str, Any]) -> None:
    edit = Edit(place="x: " + phrase, **expected)
    assert read_edit(phrase, "x") == edit
    fields = vars(read_edit(mapping, "x")) | {"place": edit.place}
    assert Edit(**fields) == edit


MISTAKES: dict[str, tuple[Any, list[str]]] = {
    "another verb": (
        "add SE after p5",
        ["edit 'add'", "insert, replace, remove, wrap, set, swap, label"],
    ),
    "nearly a verb": ("inset SE after p5", ["edit 'inset'", "'insert'"]),
    "nothing": ("", ["edit ''", "insert, replace, remove, wrap, set, swap, label"]),
    "a number": (5, ["x: 5", "'insert SE after p5'", "got 5"]),
    "no place": ("insert SE", ["insert LAYER after|before ROWS"]),
    "no layer": ("insert after", ["insert LAYER after|before ROWS"]),
    "two places": ("insert SE after p4 before p5", ["after and before", "insert LAYER after|before ROWS"]),
    "the same twice": ("insert SE after p4 after p5", ["'after' twice", "insert LAYER after|before ROWS"]),
    "words left over": ("replace p5 with SE now", ["'now'", "replace ROWS with LAYER"]),
    "an open bracket": ("insert SE [4 after p5", ["'[4 after p5'", "bracket"]),
    "no yaml": ("insert SE [4: : 5] after p5", ["'[4: : 5]'", "yaml"]),
    "no with": ("replace p5", ["'with' is missing", "replace ROWS with LAYER"]),
    "no in": ("wrap p5", ["'in' is missing", "wrap ROWS in LAYER"]),
    "no argument": ("set p5", ["set ROWS ARGUMENT = VALUE"]),
    "no value": ("set p5 repeats =", ["set ROWS ARGUMENT = VALUE"]),
    "no such part": ("remove every SE in tail", ["part 'tail'", "backbone, neck, head"]),
    "rows of signs": ("remove p5+p4", ["rows are 'p5+p4'", "every NAME in neck"]),
    "a label of two words": ({"label": 9, "as": "p 5"}, ["label is 'p 5'", "word"]),
    "a reserved label": ("label 9 as head", ["label is 'head'", "head_row"]),
    "an unknown word": (
        {"insert": "SE", "after": "p5", "fro": "p4"},
        ["word 'fro'", "insert LAYER after|before ROWS", "'from'"],
    ),
    "a mapping of nothing": ({}, ["insert, replace, remove, wrap, set, swap, label"]),
    "a layer that is none": ({"insert": 5, "after": "p5"}, ["layer is 5", "name"]),
    "no rows": ({"remove": []}, ["rows are []", "every NAME in neck"]),
    "rows that are a truth": ({"remove": True}, ["rows are True", "every NAME in neck"]),
    "no repeats": ("insert 0 SE after p5", ["repeats is 0", "positive integer"]),
    "set to nothing": ({"set": "p5", "to": {}}, ["'to' is {}", "mapping"]),
    "for before": ("insert SE before p5 for p4", ["'for' and 'from'", "after"]),
}


@pytest.mark.parametrize(("written", "facts"), MISTAKES.values(), ids=MISTAKES)
def test_what_is_no_edit(written: Any, facts: list[str]) -> None:
    with pytest.raises(ModelConfigError) as caught:
        read_edit(written, "x")
    assert_says(caught.value, *facts)
    assert str(caught.value).startswith("x: ")
    assert "\n" not in str(caught.value)
