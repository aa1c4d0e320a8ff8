"""Contact sheets of real, tiny networks: layers, messages, and independence of the dtype."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.yolo import Model
from tests.networks import tiny_config, tiny_segment_config
from tests.saying import assert_says
from utils.drawing.panels import BarPanel, MapPanel
from utils.errors import SettingsError
from utils.explain.sheet import Explainer, View, head_inputs, module_panels
from utils.geometry.placement import Placement
from utils.inference.predictor import Predictor
from utils.precision import choose_precision

IMAGE = np.random.default_rng(0).integers(0, 255, (48, 80, 3), np.uint8)
VIEW = View(np.zeros((24, 40, 3), np.uint8), Placement((48, 80), (1.0, 1.0), (0, 8)), (64, 80))


def network(*attention: list, branches: int = 1, head: list | None = None) -> Model:
    """The tiny network with attention rows before the last convolution, and another head if given."""
    torch.manual_seed(0)
    config = tiny_config(branches)
    config["backbone"][4:4] = [[-1, 1, *row] for row in attention]
    last = 4 + len(attention)
    config["head"] = [[[2, 3, last] * branches, 1, *(head or config["head"][0][2:])]]
    return Model(config)


def explainer(model: nn.Module, *wanted: str, **settings: object) -> Explainer:
    precision = settings.pop("precision", choose_precision("cpu", "off"))
    return Explainer(model, wanted, Predictor(model, image_size=64, precision=precision, **settings))


def test_by_default_all_that_explain_themselves_and_the_inputs_of_the_lead_branch() -> None:
    model = network(["FocalModulation", []], ["GatherExcite", []], branches=2)
    found = explainer(model)
    assert list(found.mapped) == ["02_Conv", "03_Conv", "06_Conv"]
    assert list(found.layers) == ["02_Conv", "03_Conv", "06_Conv", "04_FocalModulation", "05_GatherExcite"]
    assert_says(found.describe(), "2 Conv, 3 Conv, 6 Conv", "1 FocalModulation, 1 GatherExcite")


def test_prototype_inputs_are_no_levels() -> None:
    assert list(head_inputs(Model(tiny_segment_config(2)))) == ["02_Conv", "03_Conv", "04_Conv"]


def test_the_outermost_of_nested_modules_explains() -> None:
    model = network(["FocalModulationBlock", []], head=["Detect", ["nc", {"cls": "depthwise", "dynamic": True}]])
    assert list(explainer(model).layers) == [
        *("02_Conv", "03_Conv", "05_Conv", "04.modulation_FocalModulation"),
        *(
            f"06.lead.{part}_DynamicConv"
            for part in ("box.0.1", "box.1.1", "box.2.1", "cls.0.1.1", "cls.1.1.1", "cls.2.1.1")
        ),
    ]


def test_chosen_layers_and_what_is_in_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = network(["GatherExcite", []], head=["Detect", ["nc", {"dynamic": True}]])
    found = explainer(model, "1", "6")
    assert list(found.layers) == ["01_Conv", "06_Detect"]
    for number in range(2):
        found.write(IMAGE, tmp_path / f"{number}.png")
    said = capsys.readouterr().err
    assert said.count("06_Detect has no class-activation map") == 1
    assert_says(said, "--explain", "dict")
    assert found.written == 2
    with pytest.raises(SettingsError) as caught:
        explainer(model, "GatherExite")
    assert_says(caught.value, "--explain GatherExite", "'GatherExcite'")


def test_layers_of_auxiliary_branches_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny_config(2)
    config["backbone"].append([1, 1, "Conv", [8, 3, 2]])
    config["head"] = [[[5, 3, 4, 2, 3, 4], 1, "DualDDetect", ["nc"]]]
    explainer(Model(config), "5").write(IMAGE, tmp_path / "a.png")
    assert_says(capsys.readouterr().err, "--explain", "05_Conv", "no class-activation map", "did not run")


@pytest.mark.parametrize("conf_thres", [0.0, 0.99])
@pytest.mark.parametrize("segment", [False, True])
def test_a_sheet_with_and_without_detections(tmp_path: Path, conf_thres: float, segment: bool) -> None:
    torch.manual_seed(0)
    model = Model(tiny_segment_config() if segment else tiny_config())
    path = explainer(model, conf_thres=conf_thres, max_det=5).write(IMAGE, tmp_path / "explain" / "a.png")
    assert cv2.imread(str(path)).shape[1] > 1000


def test_detection_in_bf16_and_folded_weights_are_explained_in_float32(tmp_path: Path) -> None:
    files = []
    half = network(
        ["ACmix", [{"heads": 2}]], ["GatherExcite", [4, "theta"]], head=["Detect", ["nc", {"dynamic": ["cls"]}]]
    )
    for model, amp in ((half, "off"), (half, "bf16"), (half.deploy(), "off")):
        files.append(
            explainer(model, precision=choose_precision("cpu", amp)).write(IMAGE, tmp_path / f"{len(files)}.png")
        )
    exact, bf16, folded = (cv2.imread(str(path)).astype(int) for path in files)
    assert (exact == bf16).all()
    assert exact.shape == folded.shape
    assert np.abs(exact - folded).mean() < 0.5


def test_nothing_stays_on_the_network(tmp_path: Path) -> None:
    model = network(["ACmix", [{"heads": 2}]])
    found = explainer(model)
    found.write(IMAGE, tmp_path / "a.png")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


class Says(nn.Module):
    """Explains itself by what it was given."""

    def __init__(self, **parts: Tensor) -> None:
        super().__init__()
        self.parts = parts

    def explain(self, _x: Tensor) -> dict[str, Tensor]:
        """Return the parts."""
        return self.parts


def captions(**parts: Tensor) -> list[str]:
    return [panel.caption[1] for panel in module_panels(Says(**parts), torch.ones(1, 6, 8, 10), "4 Says", VIEW)]


def test_panels_of_each_kind() -> None:
    assert captions(gates=torch.rand(1, 3, 8, 10), modulator=torch.rand(1, 6, 8, 10)) == [
        "gate level 1, 8 x 10 cells",
        "gate level 2, 8 x 10 cells",
        "gate global level, 8 x 10 cells",
        "length of the modulator, 8 x 10 cells",
    ]
    assert captions(reach=torch.tensor([[[[1.0, 2]], [[3, 4]]]])) == [
        "attention reach of head 1, 1 x 2 cells: 1 to 2",
        "attention reach of head 2, 1 x 2 cells: 3 to 4",
    ]
    assert captions(routing_weights=torch.rand(1, 4)) == ["expert weights"]
    assert captions(gate=torch.rand(1, 32, 1, 1)) == ["gate of 32 channels"]
    assert captions(gate=torch.rand(1, 6, 1, 1)) == ["gate", "share of the map that the gate keeps, 8 x 10 cells"]
    assert captions(gate=torch.rand(1, 6, 2, 2)) == ["gate, mean of 6 channels, 2 x 2 cells"]
    assert captions(spatial_weights=torch.rand(1, 1, 8, 10)) == ["spatial weights, 8 x 10 cells"]
    assert captions(spatial_weights=torch.rand(1, 9, 8, 10)) == ["spatial weights, mean of 9 channels, 8 x 10 cells"]


def test_reach_has_the_same_colours_in_all_heads_and_gates_their_own() -> None:
    values = torch.tensor([[[[1.0, 2]], [[3, 4]]]])
    assert [panel.ends() for panel in module_panels(Says(reach=values), torch.ones(1, 2, 1, 2), "", VIEW)] == [
        (1, 4),
        (1, 4),
    ]
    assert [panel.ends() for panel in module_panels(Says(gates=values), torch.ones(1, 2, 1, 2), "", VIEW)] == [
        (1, 2),
        (3, 4),
    ]
    assert [panel.ends() for panel in module_panels(Says(gates=-values), torch.ones(1, 2, 1, 2), "", VIEW)] == [
        (-2, 2),
        (-4, 4),
    ]


def test_what_gates_leave_is_their_length_weighed_mean() -> None:
    given = torch.tensor([[[[3.0, 1.0]], [[4.0, 0.0]]]])
    gate = torch.tensor([[[[0.5]], [[1.0]]]])
    chart, effect = module_panels(Says(gate=gate), given, "", VIEW)
    assert isinstance(chart, BarPanel)
    assert chart.values.tolist() == [0.5, 1.0]
    assert isinstance(effect, MapPanel)
    assert float(effect.values.max()) == pytest.approx((1.5**2 + 4**2) ** 0.5 / 5)
    assert float(effect.values.min()) == pytest.approx(0.5)
