"""Feature maps of any layer."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.saying import assert_says
from tests.utils.explain.small_network import SmallNetwork
from utils.explain.feature_maps import Visualizer, feature_grid


def test_maps_are_written_and_others_named_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    visualizer = Visualizer(SmallNetwork(), [])
    for number in range(2):
        files = visualizer.write(np.full((32, 64, 3), 128, np.uint8), tmp_path / str(number))
        assert [file.name for file in files] == ["00_Conv2d.png", "01_Sequential.png"]
        assert all(file.is_file() for file in files)
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 3
    for facts in (("02_Pair", "tuple"), ("03_Head", "dict"), ("01_Sequential.0", "--explain")):
        assert_says(said, "--visualize", *facts)


def test_grids_of_odd_maps() -> None:
    for maps in (torch.zeros(1, 1, 1), torch.full((40, 3, 7), float("nan")), torch.randn(5, 200, 100)):
        grid = feature_grid(maps, "title")
        assert grid.dtype == np.uint8
        assert grid.shape[2] == 3
