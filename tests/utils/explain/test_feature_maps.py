"""Feature maps of any layer, and the gates and modulator of Focal Modulation."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.attention.attention import FocalModulation
from models.attention.dynamic_conv import DynamicConv
from utils.errors import SettingsError
from utils.explain.feature_maps import LayerRecorder, Visualizer, feature_grid, focal_sheet, pick_layers


class Pair(nn.Module):
    """Gives two maps, as a CBLinear does."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Head(nn.Module):
    """Gives a mapping, as a detection head does."""

    def forward(self, pair: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return {"main": pair[0]}


class SmallNetwork(nn.Module):
    """Four layers: a convolution, a block that holds a Focal Modulation, one with two outputs, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleList([nn.Conv2d(3, 4, 3, 2, 1), nn.Sequential(FocalModulation(4)), Pair(), Head()])

    def forward(self, images: Tensor, raw: bool = False) -> dict[str, Tensor]:
        assert raw, "auxiliary layers must run, too"
        for layer in self.model:
            images = layer(images)
        return images


def test_layers_are_picked_by_index_name_and_path() -> None:
    network = SmallNetwork()
    assert list(pick_layers(network, [])) == ["00_Conv2d", "01_Sequential", "02_Pair", "03_Head"]
    assert list(pick_layers(network, ["2", 0])) == ["02_Pair", "00_Conv2d"]
    assert list(pick_layers(network, ["focalmodulation"])) == ["01.0_FocalModulation"]
    assert list(pick_layers(network, ["1.0", "model.1.0"])) == ["01.0_FocalModulation"]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [("9", "--visualize 9: no such layer: expected 0..3"), ("FocalModulatio", "Did you mean 'FocalModulation'")],
)
def test_unknown_layers_are_named(wanted: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        pick_layers(SmallNetwork(), [wanted])


def test_maps_are_written_and_others_named_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    visualizer = Visualizer(SmallNetwork(), [])
    for number in range(2):
        files = visualizer.write(np.full((32, 64, 3), 128, np.uint8), tmp_path / str(number))
        assert [file.name for file in files] == ["00_Conv2d.png", "01_Sequential.png", "01_Sequential.0_focal.png"]
        assert all(file.is_file() for file in files)
    said = capsys.readouterr().err
    assert said.count("02_Pair has no feature maps to draw: it gives a tuple") == 1
    assert said.count("03_Head has no feature maps to draw: it gives a dict") == 1


def test_nothing_stays_on_the_network() -> None:
    network = SmallNetwork()
    with LayerRecorder(pick_layers(network, [])):
        network(torch.zeros(1, 3, 32, 32), raw=True)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_an_explaining_layer_is_explained_once() -> None:
    network = SmallNetwork()
    with LayerRecorder(pick_layers(network, ["1", "FocalModulation"])) as recorder:
        network(torch.zeros(1, 3, 32, 32), raw=True)
    assert list(recorder.inputs) == ["01_Sequential.0"]


class Doubled(nn.Module):
    """Explains itself in parts that --visualize does not draw."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x

    def explain(self, x: Tensor) -> dict[str, Tensor]:
        """Return the factor."""
        return {"factor": torch.full((len(x), 1), 2.0)}


def test_other_explanations_are_left_to_explain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = SmallNetwork()
    network.model[1] = Doubled()
    files = Visualizer(network, ["1"]).write(np.full((32, 64, 3), 128, np.uint8), tmp_path)
    assert [file.name for file in files] == ["01_Doubled.png"]
    assert "--visualize: 01_Doubled explains itself by factor: --explain shows it" in capsys.readouterr().err


def test_maps_are_those_before_a_step_in_place() -> None:
    network = SmallNetwork()
    network.model[0] = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(inplace=True))
    with LayerRecorder(pick_layers(network, ["0.0", "0"])) as recorder:
        network(torch.rand(1, 3, 32, 32), raw=True)
    before, after = recorder.outputs["00.0_Conv2d"], recorder.outputs["00_Sequential"]
    assert before.min() < 0
    assert torch.equal(before.relu(), after)


def test_of_modules_within_each_other_the_outermost_explains() -> None:
    network = SmallNetwork()
    network.model[1] = nn.Sequential(DynamicConv(4, 4))
    with LayerRecorder(pick_layers(network, ["1"])) as recorder:
        network(torch.rand(1, 3, 32, 32), raw=True)
    assert list(recorder.inputs) == ["01_Sequential.0"]


def test_grids_of_odd_maps() -> None:
    for maps in (torch.zeros(1, 1, 1), torch.full((40, 3, 7), float("nan")), torch.randn(5, 200, 100)):
        grid = feature_grid(maps, "title")
        assert grid.dtype == np.uint8
        assert grid.shape[2] == 3


def test_focal_sheet_holds_every_gate() -> None:
    image = np.zeros((32, 64, 3), np.uint8)
    two, three = (focal_sheet(image, torch.randn(gates, 4, 8), torch.randn(6, 4, 8), "t") for gates in (2, 3))
    assert three.shape[0] > two.shape[0]
