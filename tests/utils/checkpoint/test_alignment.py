"""Layers found again after edits: small graphs by hand; insertion, removal, replacement in shipped networks."""

import random
from collections.abc import Callable

import pytest
import torch

from models.yolo import Model
from tests.edits import inserted, removed, replaced
from tests.levels import ADDED, CASES, EDITS, edited
from tests.networks import meta_model
from utils.checkpoint.alignment import Node, align, best_pairs, pair_likeness
from utils.checkpoint.transfer import network_nodes, tensor_nodes

NETWORKS = (
    *(("gelan-t", 2), ("yolov9-c", 2), ("yolo11n", 2)),
    *(
        pytest.param(name, 5, marks=pytest.mark.slow)
        for name in (
            "gelan-t",
            "yolov9-c",
            "yolo11n",
            "gelan-c",
            "gelan-e",
            "yolov9-t",
            "yolov9-e",
            "yolov9-cf",
            "yolov8n",
            "yolo11n-seg",
            "yolov9-c-dseg",
        )
    ),
)
BLOCK = [1, "FocalModulationBlock", []]


def built(config: dict) -> Model:
    with torch.device("meta"):
        return Model(config)


def places(name: str, count: int) -> list[int]:
    """Rows spread over a network after which a block can stand."""
    rows = [
        row.index
        for row in meta_model(name).rows[:-1]
        if not isinstance(row.out_channels, list) and row.name != "Silence"
    ]
    return sorted(random.Random(name).sample(rows, count))


def conv(*sources: int, width: int = 8, name: str | None = "Conv") -> Node:
    return Node(name, {"conv.weight": (width, 8, 3, 3), "bn.weight": (width,)}, list(sources))


# --- by hand


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (conv(-1), conv(-1), 1.0),
        (conv(-1), conv(-1, width=16), 0.1),
        (Node("A", {}, [0]), Node("A", {}, [0]), 0.5),
        (Node("A", {}, [0]), Node("B", {}, [0]), 0.0),
        (conv(-1), Node("Conv", {}, [0]), 0.0),
        (conv(-1), Node("Gated", {"conv.weight": (8, 8, 3, 3), "bn.weight": (8,), "gate": (8,)}, [-1]), 0.6),
        (conv(-1), Node("Other", {"conv.weight": (8, 8, 3, 3)}, [-1]), 0.0),
        (conv(-1, name=None), conv(-1), 1.0),
        (conv(-1, name=None), conv(-1, width=16), 0.0),
    ],
    ids=[
        "same",
        "other width",
        "empty",
        "empty of another name",
        "empty or not",
        "part added",
        "part lost",
        "unnamed",
        "unnamed, other width",
    ],
)
def test_likeness(before: Node, after: Node, expected: float) -> None:
    assert pair_likeness(before, after) == pytest.approx(expected)


def test_best_pairs_keep_the_order() -> None:
    likeness = torch.tensor([[0.2, 0.9, 0.0], [0.9, 0.1, 0.0], [0.0, 0.0, 0.5]]).numpy()
    assert best_pairs(likeness) == {1: 0, 2: 2}


def test_an_insertion_between_twins() -> None:
    old = [conv(-1), conv(0), conv(1), conv(2)]
    new = [conv(-1), conv(0), Node("Extra", {"w": (1,)}, [1]), conv(2), conv(3)]
    assert align(old, new) == {0: 0, 1: 1, 3: 2, 4: 3}


def test_twins_are_told_apart_by_what_they_feed() -> None:
    """Two equal branches of one image; the one that feeds the head's auxiliary input is gone in the new network."""
    head = Node("Head", {"w": (1,)}, [0, 1], ["auxiliary 0", "lead 0"])
    single = Node("Head", {"w": (1,)}, [0], ["lead 0"])
    assert align([conv(-1), conv(-1), head], [conv(-1), single]) == {0: 1, 1: 2}


def test_only_a_head() -> None:
    assert align([conv(-1)], [conv(-1)]) == {0: 0}


# --- in real networks


@pytest.mark.parametrize(("name", "insertions"), NETWORKS)
def test_insertion_after_some_rows(name: str, insertions: int) -> None:
    nodes, config, count = network_nodes(meta_model(name)), meta_model(name).config, len(meta_model(name).rows)
    for number, after in enumerate(places(name, insertions)):
        edited = built(inserted(config, after, BLOCK, rewire=number % 2 == 0))
        assert align(nodes, network_nodes(edited)) == {old + (old > after): old for old in range(count)}, (
            f"after row {after}"
        )


@pytest.mark.parametrize(
    ("name", "insertions"),
    [
        ("gelan-t", 1),
        ("yolov9-c", 1),
        *(pytest.param(name, 3, marks=pytest.mark.slow) for name in ("gelan-c", "yolov9-c")),
    ],
)
def test_insertion_where_the_file_describes_no_network(name: str, insertions: int) -> None:
    model = meta_model(name)
    nodes, indices = tensor_nodes(model.state_dict())
    for after in places(name, insertions):
        pairs = align(nodes, network_nodes(built(inserted(model.config, after, BLOCK))))
        assert {new: indices[old] for new, old in pairs.items()} == {old + (old > after): old for old in indices}


def test_removal_and_replacement() -> None:
    model = meta_model("gelan-t")
    nodes, count = network_nodes(model), len(model.rows)
    assert align(nodes, network_nodes(built(removed(model.config, 9)))) == {
        old - (old > 9): old for old in range(count) if old != 9
    }
    other = built(replaced(model.config, 9, [1, "FocalModulation", [{"residual": True}]]))
    assert align(nodes, network_nodes(other)) == {old: old for old in range(count) if old != 9}


@pytest.mark.parametrize(
    ("trained", "deployed", "position"),
    [
        ("yolov9-t", "gelan-t", lambda new: new),
        ("yolov9-c", "gelan-c", lambda new: new + 1),
        pytest.param("yolov9-e", "gelan-e", lambda new: new if new < 29 else new + 7, marks=pytest.mark.slow),
    ],
)
def test_lead_branches_are_recognised(trained: str, deployed: str, position: Callable[[int], int]) -> None:
    """The auxiliary branch repeats the lead one's layers: only the graph tells them apart."""
    old, new = meta_model(trained), meta_model(deployed)
    last = len(new.rows) - 1
    assert align(network_nodes(old), network_nodes(new)) == {i: position(i) for i in range(last)} | {
        last: len(old.rows) - 1
    }
    back = align(network_nodes(new), network_nodes(old))
    assert back == {position(i): i for i in range(last)} | {len(old.rows) - 1: last}


def kept_rows(old: Model, new: Model) -> dict[int, int]:
    """Rows with tensors that an edit of the levels left as they were: {index in the new network: in the old one}."""
    found, rows = {}, iter(old.rows)
    for row in new.rows:
        if row.label in ADDED:
            continue
        before = next(before for before in rows if before.name == row.name and before.label in (row.label, None))
        found[row.index] = before.index
    return {here: there for here, there in found.items() if new.model[here].state_dict()}


@pytest.mark.parametrize("described", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_levels_of_the_head(name: str, described: bool) -> None:
    """A layer that is not edited keeps its counterpart, a new level's layers have none."""
    old = meta_model(EDITS[name][0])
    with torch.device("meta"):
        new = edited(name)
    nodes, indices = (network_nodes(old), list(range(len(old.rows)))) if described else tensor_nodes(old.state_dict())
    pairs = align(nodes, network_nodes(new))
    assert {here: indices[there] for here, there in pairs.items() if new.model[here].state_dict()} == kept_rows(
        old, new
    )


def test_scaled_sibling_keeps_its_layers() -> None:
    small, large = meta_model("gelan-s"), meta_model("gelan-c")
    pairs = align(network_nodes(small), network_nodes(large))
    assert pairs[len(large.rows) - 1] == len(small.rows) - 1
