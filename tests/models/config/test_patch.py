"""Edits of rows: what they make of a network, and what they refuse."""

from typing import Any

import pytest
import torch

from models.config.reading import read_config
from models.yolo import Model
from tests.networks import tiny_config
from tests.saying import assert_says
from utils.errors import ModelConfigError

BACKBONE = [
    [-1, 1, "Conv", [8, 3, 2]],
    [-1, 1, "Conv", [8, 3, 2], "low"],
    [-1, 2, "Conv", [8, 3, 2], "p3"],
    [-1, 1, "Conv", [8, 3, 2], "p4"],
    [-1, 1, "Conv", [8, 3, 2]],
]
NECK = [[[-1, 4], 1, "Concat", []], [-1, 1, "Conv", [8], "n5"]]
NETWORK = {"nc": 2, "backbone": BACKBONE, "head": [*NECK, [["p3", 3, "n5"], 1, "DDetect", ["nc"]]]}


def rows_after(*patches: str) -> list[Any]:
    config = read_config(NETWORK, patches=patches).as_yaml()
    return config["backbone"] + config["head"]


def changed(*patches: str) -> dict[int, Any]:
    """Return the changed rows by index; if the number of rows changed, all from the first change on."""
    old, new = BACKBONE + NETWORK["head"], rows_after(*patches)
    if len(old) != len(new):
        first = next(number for number, row in enumerate(new) if number >= len(old) or row != old[number])
        return dict(enumerate(new[first:], first))
    return {number: row for number, (row, before) in enumerate(zip(new, old, strict=True)) if row != before}


def test_no_edit_changes_nothing() -> None:
    assert rows_after() == BACKBONE + NETWORK["head"]


def test_insert_after_takes_all_consumers() -> None:
    assert changed("insert GatherExcite after p3") == {
        3: [-1, 1, "GatherExcite", [], "p3_gatherexcite"],
        4: [-1, 1, "Conv", [8, 3, 2], "p4"],
        5: [-1, 1, "Conv", [8, 3, 2]],
        6: [[-1, 5], 1, "Concat", []],
        7: [-1, 1, "Conv", [8], "n5"],
        8: [["p3_gatherexcite", 4, "n5"], 1, "DDetect", ["nc"]],
    }


def test_insert_after_for_some() -> None:
    rows = rows_after("insert GatherExcite after p3 for head as gate")
    assert rows[2:5] == [
        [-1, 2, "Conv", [8, 3, 2], "p3"],
        [-1, 1, "GatherExcite", [], "gate"],
        ["p3", 1, "Conv", [8, 3, 2], "p4"],
    ]
    assert rows[-1] == [["gate", 4, "n5"], 1, "DDetect", ["nc"]]


def test_insert_from_several() -> None:
    rows = rows_after("insert Concat after p4 from low, p3 for 4 as both")
    assert rows[4:6] == [[["low", "p3"], 1, "Concat", [], "both"], [-1, 1, "Conv", [8, 3, 2]]]


def test_insert_from_keeps_order_and_duplicates() -> None:
    assert rows_after("insert Concat after p4 from p3, low, p3 for 4")[4] == [["p3", "low", "p3"], 1, "Concat", []]


def test_insert_before_one_input() -> None:
    assert rows_after("insert GatherExcite before p4")[3:5] == [
        [-1, 1, "GatherExcite", []],
        [-1, 1, "Conv", [8, 3, 2], "p4"],
    ]
    assert rows_after("insert GatherExcite before p4")[-1][0] == ["p3", 4, "n5"]


def test_insert_before_several_inputs() -> None:
    rows = rows_after("insert GatherExcite before head")
    assert rows[7:] == [
        ["p3", 1, "GatherExcite", [], "p3_gatherexcite"],
        ["p4", 1, "GatherExcite", [], "p4_gatherexcite"],
        ["n5", 1, "GatherExcite", []],
        [["p3_gatherexcite", "p4_gatherexcite", -1], 1, "DDetect", ["nc"]],
    ]


def test_insert_before_an_input_taken_twice() -> None:
    rows = rows_after("set 5 from = [p4, p4]", "insert GatherExcite before Concat")
    assert rows[4:6] == [[-1, 1, "GatherExcite", []], [[-1, -1], 1, "Concat", []]]


def test_insert_before_the_first_row_takes_the_image() -> None:
    assert rows_after("insert Conv [8] before 0")[:2] == [[-1, 1, "Conv", [8]], [-1, 1, "Conv", [8, 3, 2]]]
    assert Model(NETWORK, patches=["insert Conv [8] before 0"]).rows[0].sources == [-1]


def test_inserting_after_every_one_of_a_kind() -> None:
    names = [row[2] for row in rows_after("insert GatherExcite after every Conv in backbone")]
    assert names == ["Conv", "GatherExcite"] * 5 + ["Concat", "Conv", "DDetect"]
    assert [row[2] for row in rows_after("insert GatherExcite after every Conv in neck")][5:] == [
        "Concat",
        "Conv",
        "GatherExcite",
        "DDetect",
    ]


def test_new_rows_belong_to_the_section_of_their_neighbour() -> None:
    config = read_config(NETWORK, patches=["insert GatherExcite after 4"]).as_yaml()
    assert (len(config["backbone"]), len(config["head"])) == (6, 3)


def test_two_new_rows_get_different_labels() -> None:
    rows = rows_after("insert GatherExcite after p3", "insert GatherExcite after p3")
    assert [row[4] for row in rows if len(row) == 5 and row[2] == "GatherExcite"] == ["p3_gatherexcite"]
    assert rows[3:5] == [[-1, 1, "GatherExcite", []], [-1, 1, "GatherExcite", [], "p3_gatherexcite"]]
    rows = rows_after("insert GatherExcite after p3 for head", "insert GatherExcite after p3 for p4")
    assert [row[4] for row in rows if row[2] == "GatherExcite" and len(row) == 5] == [
        "p3_gatherexcite",
        "p3_gatherexcite2",
    ]


def test_replace_keeps_place_inputs_and_label() -> None:
    assert changed("replace p4 with 2 ADown [8]") == {3: [-1, 2, "ADown", [8], "p4"]}
    assert changed("replace p3 with ADown [8] as down") == {
        2: [-1, 1, "ADown", [8], "down"],
        7: [["down", 3, "n5"], 1, "DDetect", ["nc"]],
    }


def test_remove_joins_the_ends() -> None:
    assert rows_after("remove n5")[-1] == [["p3", 3, -1], 1, "DDetect", ["nc"]]
    assert rows_after("remove low")[1] == [-1, 2, "Conv", [8, 3, 2], "p3"]


def test_wrap() -> None:
    assert changed("wrap p3 in Residual [{start: identity}]") == {
        2: [-1, 2, "Residual", [["Conv", 8, 3, 2], {"start": "identity"}], "p3"]
    }


def test_set_by_position_and_by_name() -> None:
    assert changed("set p3 out_channels = 16") == {2: [-1, 2, "Conv", [16, 3, 2], "p3"]}
    assert changed("set p3 groups = 2") == {2: [-1, 2, "Conv", [8, 3, 2, {"groups": 2}], "p3"]}
    assert changed("set p3 groups = 2", "set p3 groups = 4") == {2: [-1, 2, "Conv", [8, 3, 2, {"groups": 4}], "p3"]}
    assert changed("set p3.repeats = 1") == {2: [-1, 1, "Conv", [8, 3, 2], "p3"]}
    assert changed("set 5 from = [-1, low]") == {5: [[-1, "low"], 1, "Concat", []]}


def test_repeats_of_a_layer_that_has_such_an_argument() -> None:
    rows = read_config("yolov9-c", patches=["set p4 repeats = 3"]).as_yaml()["backbone"]
    assert rows[7] == [-1, 1, "RepNCSPELAN4", [512, 512, 256, 3], "p4"]


def test_label() -> None:
    assert changed("label 4 as p5") == {4: [-1, 1, "Conv", [8, 3, 2], "p5"]}
    assert changed("label 4 as p5", "set 5 from = [-1, p5]")[5] == [[-1, "p5"], 1, "Concat", []]


def test_rows_that_lead_nowhere_are_removed_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    config = read_config(NETWORK, patches=["set head from = [low, p3, p4]"]).as_yaml()
    assert config["backbone"] + config["head"] == [*BACKBONE[:4], [["low", "p3", "p4"], 1, "DDetect", ["nc"]]]
    said = capsys.readouterr().err.strip()
    assert_says(said, "--patch: set head from = [low, p3, p4]", "removed", "4 (Conv), 5 (Concat), 6 (n5)")


def test_swapping_a_dual_head_keeps_the_lead_inputs(capsys: pytest.CaptureFixture[str]) -> None:
    swapped, single = Model("yolov9-t", patches=["swap head with DDetect"]), Model("gelan-t")
    content = [
        [(row.sources, row.repeats, row.name, row.arguments) for row in model.rows] for model in (swapped, single)
    ]
    assert content[0] == content[1]
    assert_says(capsys.readouterr().err, "--patch: swap head with DDetect", "removed", "22 (a5)")


def test_swapping_a_dual_segmentation_head() -> None:
    swapped = read_config("yolov9-c-dseg", patches=["swap head with DSegment [nc, 32, 256]"]).as_yaml()
    assert swapped["head"][-1] == [["n3", "n4", "n5", "proto"], 1, "DSegment", ["nc", 32, 256]]
    assert not {"a3", "a_proto", "cb3"} & {row[4] for row in swapped["backbone"] + swapped["head"] if len(row) > 4}


def test_swapping_a_segmentation_head_for_a_detection_head() -> None:
    rows = read_config("gelan-c-dseg", patches=["swap head with DDetect"]).as_yaml()["head"]
    assert rows[-1] == [["n3", "n4", "n5"], 1, "DDetect", ["nc"]]
    assert "proto" not in {row[4] for row in rows if len(row) > 4}


def test_a_patched_network_learns_and_detects() -> None:
    model = Model(
        NETWORK,
        patches=[
            "insert FocalModulation [{residual: true, start: identity}] before head",
            "insert Residual [[Conv, 8, 3]] after n5",
        ],
    )
    sum(output.sum() for output in model.train()(torch.rand(2, 3, 64, 64))["main"]).backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    assert model.eval()(torch.rand(1, 3, 64, 64)).shape == (1, 6, 4 * 4 + 2 * 2 + 1)


MISTAKES: dict[str, tuple[str, list[str]]] = {
    "unknown layer": ("insert Cnov after p3", ["layer 'Cnov'", "'Conv'"]),
    "unknown row": (
        "insert GatherExcite after p5",
        ["row 'p5'", "low, p3, p4, n5", "Did you mean 'p4'"],
    ),
    "index too large": ("remove 12", ["layer 12", "0 to 7"]),
    "several rows of that layer": (
        "remove Conv",
        ["'Conv'", "rows 0, 1, 2, 3, 4, 6", "'every Conv'"],
    ),
    "none of that kind": (
        "remove every ADown in neck",
        ["'ADown'", "in the neck", "Concat, Conv"],
    ),
    "after the head": ("insert GatherExcite after head", ["the head: insert before it"]),
    "for a stranger": (
        "insert GatherExcite after p3 for n5",
        ["'for'", "row 6 (n5)", "row 2 (p3)"],
    ),
    "from later": ("insert Concat after p3 from p3, n5", ["'from'", "row 6 (n5)", "row 2 (p3)"]),
    "removing a head": ("remove head", ["the head", "swap it"]),
    "removing a junction": (
        "remove Concat",
        ["row 5 (Concat)", "2 inputs", "replace it"],
    ),
    "wrapping a head": ("wrap head in Residual", ["head", "last row"]),
    "unknown argument": ("set p3 strid = 2", ["'strid'", "Conv(out_channels: int", "'stride'"]),
    "no repeats": ("set p3 repeats = none", ["repeats is 'none'", "positive integer"]),
    "from nothing": ("set p3 from = {}", ["from is {}", "label", "index"]),
    "from itself": ("set p3 from = p3", ["from means row 2 (p3)", "come before row 2 (p3)"]),
    "no head to swap with": ("swap head with Conv", ["Conv is no head", "DDetect"]),
    "swapping another row": ("swap p3 with DDetect", ["row 2 (p3) is not the head"]),
    "more branches": ("swap head with DualDDetect", ["DualDDetect has 2 branches", "DDetect 1"]),
    "prototypes from nowhere": (
        "swap head with DSegment [nc, 8, 8]",
        ["DSegment", "prototypes", "DDetect"],
    ),
    "a number before a wrapper": ("wrap n5 in 2 Residual", ["number", "wrap ROWS in LAYER"]),
    "one label for several": ("insert GatherExcite after every Conv as g", ["'as g'", "6 rows"]),
    "one label for several inputs": (
        "insert GatherExcite before head as g",
        ["'as g'", "row 7 (DDetect)"],
    ),
    "a label taken": ("label 4 as p3", ["label 'p3'", "taken"]),
    "labelling several": ("label every Conv as p3", ["6 rows", "one"]),
}


@pytest.mark.parametrize(("patch", "facts"), MISTAKES.values(), ids=MISTAKES)
def test_edits_that_cannot_be_made(patch: str, facts: list[str]) -> None:
    with pytest.raises(ModelConfigError) as caught:
        read_config(NETWORK, patches=[patch])
    assert_says(caught.value, *facts)
    assert str(caught.value).startswith(f"--patch: {patch}: ")


def test_a_row_that_cannot_be_built_names_its_edit() -> None:
    with pytest.raises(ModelConfigError) as caught:
        Model(NETWORK, patches=["insert Conv after p3"])
    place = "--patch: insert Conv after p3: backbone[3] (layer 3): [-1, 1, Conv, [], p3_conv]"
    assert_says(caught.value, place, "'out_channels'")


def test_an_edit_that_empties_a_section() -> None:
    config = {
        "nc": 2,
        "backbone": [[-1, 1, "Conv", [8, 3, 2]]],
        "head": [[-1, 1, "Conv", [8]], [-1, 1, "DDetect", ["nc"]]],
    }
    with pytest.raises(ModelConfigError) as caught:
        read_config(config, patches=["remove 0"])
    assert_says(caught.value, "--patch: remove 0", "backbone", "first row")


@pytest.mark.parametrize(
    ("cfg", "patches", "multiples"),
    [
        pytest.param("yolov9-e", ["remove input"], {}, marks=pytest.mark.slow),
        ("gelan-t", ["insert Conv [16, 3, 2] before 0", "remove 0", "insert GatherExcite before head"], {}),
        (
            "yolov9-c",
            ["replace p4 with RepNCSPELAN4 [512, 512, 256, 3]", "wrap p4 in Residual"],
            {"width": 0.5, "depth": 0.34},
        ),
        (
            "yolov9-c",
            ["replace p4 with Residual [{layer: [RepNCSPELAN4, 512, 512, 256, 3]}]"],
            {"width": 0.5, "depth": 0.34},
        ),
        pytest.param(
            *("yolov9-c", ["insert Residual [SE] after p4"], {"width": 0.5, "depth": 2.0}), marks=pytest.mark.slow
        ),
    ],
)
def test_a_deployed_configuration_builds_the_same_network(
    cfg: str, patches: list[str], multiples: dict[str, float]
) -> None:
    with torch.device("meta"):
        model = Model(cfg, patches=patches, **multiples)
        for network in (model, model.deploy(fold=False)):
            rebuilt = Model(network.config)
            assert [row.sources for row in rebuilt.rows] == [row.sources for row in network.rows]
            assert {name: tensor.shape for name, tensor in rebuilt.state_dict().items()} == {
                name: tensor.shape for name, tensor in network.state_dict().items()
            }


def test_the_given_configuration_is_not_changed() -> None:
    config = tiny_config()
    before = str(config)
    Model(config, patches=["insert GatherExcite before head"])
    assert str(config) == before
