"""Rows that lead nowhere, and odd inputs: what a row that is inserted without renumbering leaves behind."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from models import command
from models.config.reading import CONFIG_FOLDERS, read_config
from models.loose_ends import loose_ends
from models.yolo import Model
from tests.few import few
from tests.networks import tiny_config
from tests.saying import assert_says
from utils.files import REPOSITORY

SHIPPED = sorted(path for folder in CONFIG_FOLDERS for path in (REPOSITORY / folder).glob("*.yaml"))


def signs(config: dict[str, Any] | str, scale: str | None = None) -> list[str]:
    with torch.device("meta"):
        return loose_ends(Model(config, scale=scale))


def yolov8_with_a_row_after(position: int, row: list[Any]) -> dict[str, Any]:
    """YOLOv8n without labels, and a row inserted whose successors keep their indices."""
    network = read_config("yolov8n.yaml")
    sections: dict[str, list[Any]] = {"backbone": [], "head": []}
    for each in network.rows:
        sections[each.section].append([each.numbered_from(), *each.as_yaml()[1:4]])
        if each.index == position:
            sections[each.section].append(row)
    return network.keys | sections


@pytest.mark.parametrize(
    "path", few(SHIPPED, "gelan-t", "yolov9-t-ACmix", "yolov8", "yolo11-seg"), ids=lambda path: path.stem
)
def test_no_shipped_network_has_loose_ends(path: Path) -> None:
    assert signs(str(path), "n" if read_config(str(path), "n").keys.get("scales") else None) == []


def test_there_are_shipped_networks() -> None:
    assert len(SHIPPED) > 30


@pytest.mark.parametrize("position", [2, 4, 9, 11, 15, 18])
def test_a_row_inserted_without_renumbering(position: int) -> None:
    lines = signs(yolov8_with_a_row_after(position, [-1, 1, "CBAM", []]))
    assert_says(lines[0], "layer 22", "C2f", "no row reads it", "493,056 parameters", "0.39 GFLOPs")
    (head,) = [line for line in lines if "(layer 23)" in line]
    assert_says(head, "21 (Concat)")
    assert_says(lines[-1], "labels", "edits", "docs/composing.md")


def test_a_concat_that_reads_the_downsampling_before_the_block() -> None:
    lines = signs(yolov8_with_a_row_after(2, [-1, 1, "CBAM", []]))
    assert_says("\n".join(lines), "(layer 12)", "6 (Conv)", "(layer 15)", "4 (Conv)")


def test_an_inserted_row_that_nothing_reads() -> None:
    lines = signs(yolov8_with_a_row_after(21, [-1, 1, "CBAM", []]))
    assert len(lines) == 2
    assert_says(lines[0], "layer 22", "CBAM", "no row reads it")


def test_rows_that_lead_only_to_a_row_that_nothing_reads() -> None:
    config = tiny_config()
    config["backbone"][4:] = [[-1, 1, "C2f", [8]], [-1, 1, "Conv", [8, 3, 2]], [-2, 1, "Conv", [8, 3, 2]]]
    config["backbone"] += [[-2, 1, "Conv", [8]], [-1, 1, "C2f", [8]]]
    config["head"] = [[[2, 4, 6], 1, "DDetect", ["nc"]]]
    lines = signs(config)
    assert_says(lines[0], "layer 5", "7", "without effect")
    assert_says(lines[1], "layer 7", "8")
    assert_says(lines[2], "layer 8", "no row reads it")
    assert len(lines) == 5, "and the head's row 6, and the advice"


def test_the_head_reads_downsampling_rows() -> None:
    lines = signs(tiny_config())
    assert len(lines) == 2
    assert_says(lines[0], "(layer 5)", "2 (Conv)", "3 (Conv)", "4 (Conv)")


def test_pooling_counts_as_downsampling_and_auxiliary_inputs_are_looked_at() -> None:
    config = tiny_config()
    config["backbone"][2] = [-1, 1, "nn.MaxPool2d", [2]]
    config["head"] = [[[2, 3, 4, 2, 3, 4], 1, "DualDDetect", ["nc"]]]
    assert_says(signs(config)[0], "2 (nn.MaxPool2d)")


def test_the_command_prints_them_beside_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "inserted.yaml"
    file.write_text(yaml.safe_dump(yolov8_with_a_row_after(4, [-1, 1, "CBAM", []])))
    assert command.main([str(file), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["nc"] == 80
    lines = captured.err.splitlines()
    assert_says("\n".join(lines), "inserted.yaml", "(layer 22)", "493,056 parameters")
    assert len(lines) == len(set(lines))
    assert command.main(["yolov8n.yaml"]) == 0
    assert capsys.readouterr().err == ""
