"""Gather-Excite: by hand, every extent and variant, and what a map of another size does to a global kernel."""

from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.plain_modules import plain_gather_excite
from models.attention.gather_excite import GatherExcite
from models.deploy import fold_modules
from models.yolo import Model
from tests.networks import randomise
from tests.saying import assert_says
from utils.errors import ModelConfigError


def maps(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def sigmoid(value: float) -> float:
    return torch.tensor(value, dtype=torch.float64).sigmoid().item()


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_without_arguments_it_is_theta_minus_of_the_whole_map() -> None:
    layer = GatherExcite(2)
    assert parameters(layer) == 0
    x = torch.tensor([[1.0, 2.0], [3.0, 6.0]], dtype=torch.float64).expand(1, 2, 2, 2)
    assert layer(x)[0, 1, 1].tolist() == pytest.approx([3 * sigmoid(3.0), 6 * sigmoid(3.0)])


def test_extent_averages_the_cells_in_the_window() -> None:
    x = torch.arange(9, dtype=torch.float64).view(1, 1, 3, 3)
    # windows of 3 x 3 at stride 2, cut at the border: {0, 1, 3, 4}, {1, 2, 4, 5}, …
    gate = GatherExcite(1, 2).gate(x)
    assert gate.flatten().tolist() == pytest.approx([sigmoid(2.0), sigmoid(3.0), sigmoid(5.0), sigmoid(6.0)])
    # nearest, as torch: of three cells the first two take the first gate
    assert GatherExcite(1, 2)(x)[0, 0, 1].tolist() == pytest.approx(
        [3 * sigmoid(2.0), 4 * sigmoid(2.0), 5 * sigmoid(3.0)]
    )


@pytest.mark.parametrize("extent", [2, 4, 8])
@pytest.mark.parametrize("variant", ["theta-minus", "theta", "theta-plus"])
@pytest.mark.parametrize("size_hw", [(13, 10), (8, 16), (1, 3)], ids=str)
def test_gate_before_interpolation_is_the_same(extent: int, variant: Any, size_hw: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = randomise(GatherExcite(4, extent, variant, mlp_ratio=0.5)).double().eval()
    x = maps(2, 4, *size_hw)
    assert layer.explain(x)["gate"].shape == (2, 4, -(-size_hw[0] // extent), -(-size_hw[1] // extent))
    layer.mlp = nn.Sequential(nn.ReLU(), layer.mlp) if variant == "theta-plus" else layer.mlp
    torch.testing.assert_close(layer(x), plain_gather_excite(layer, x), rtol=1e-12, atol=1e-14)


def test_parameters_by_variant() -> None:
    assert parameters(GatherExcite(32, 8, "theta")) == 11 * 32 * 3
    assert parameters(GatherExcite(32, "global", "theta", (5, 7))) == 32 * 35 + 2 * 32
    assert parameters(GatherExcite(32, "global", "theta-plus", (5, 7))) == 32 * 35 + 2 * 32 + (2 * 32 * 2 + 2 + 32)
    assert parameters(GatherExcite(32, mlp=True, hidden_channels=5)) == 2 * 32 * 5 + 5 + 32


def test_zero_means_global() -> None:
    x = maps(1, 4, 5, 6)
    assert torch.equal(GatherExcite(4, 0)(x), GatherExcite(4)(x))


def test_maxpool_is_half_of_it() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 6.0]], dtype=torch.float64).view(1, 1, 2, 2)
    assert GatherExcite(1, maxpool=True).gate(x).item() == pytest.approx(sigmoid((3 + 6) / 2))
    assert GatherExcite(1, 2, maxpool=True).gate(x).item() == pytest.approx(sigmoid((3 + 6) / 2))


def test_relu_is_between_the_convolutions_and_not_after_the_last() -> None:
    assert [name for name, _ in GatherExcite(4, 4, "theta").gather.named_children()] == [
        "conv1",
        "norm1",
        "act1",
        "conv2",
        "norm2",
    ]
    assert not GatherExcite(4, 2, "theta").post_relu
    assert GatherExcite(4, 2, "theta-plus").post_relu


@pytest.mark.parametrize(
    "settings",
    [(4, 8, "theta"), (4, 2, "theta-plus"), (4, "global", "theta", (6, 7)), (4, "global", "theta", (6, 7), True)],
)
def test_fold(settings: tuple[Any, ...]) -> None:
    torch.manual_seed(0)
    layer, x = randomise(GatherExcite(*settings)).double().eval(), maps(2, 4, 6, 7)
    expected = layer(x)
    for _ in range(2):
        fold_modules(nn.Sequential(layer))
    assert not any(isinstance(part, nn.BatchNorm2d) for part in layer.modules())
    torch.testing.assert_close(layer(x), expected, rtol=1e-11, atol=1e-13)


def test_identity_start_doubles_the_gate() -> None:
    layer = GatherExcite(2, start="identity")
    assert parameters(layer) == 2
    x = torch.ones(1, 2, 3, 3)
    assert layer.gate(x).unique().tolist() == [1]
    layer.gain.data.fill_(1)
    assert layer.gate(x).unique().tolist() == pytest.approx([2 * sigmoid(1.0)])


@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        ({"extent": 6}, ("extent is 6", "power of two", "'global'")),
        ({"extent": 1}, ("extent is 1", "power of two")),
        ({"extent": -2}, ("extent is -2", "power of two")),
        ({"variant": "theta"}, ("size_hw: [20, 20]", "extent of 2, 4 or 8")),
        ({"size_hw": (5, 5)}, ("size_hw is [5, 5]", "theta", "theta-plus", "'global'", "leave it out")),
        ({"size_hw": (5, 5), "variant": "theta", "extent": 2}, ("size_hw is [5, 5]", "'global'")),
        ({"size_hw": (0, 5), "variant": "theta"}, ("size_hw is [0, 5]", "positive")),
        ({"maxpool": True, "variant": "theta", "extent": 2}, ("maxpool", "theta-minus", "leave it out")),
        ({"pad_global": True}, ("pad_global", "leave it out")),
        ({"mlp": True, "hidden_channels": 0}, ("hidden_channels is 0", "positive")),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], facts: tuple[str, ...]) -> None:
    with pytest.raises(ModelConfigError) as caught:
        GatherExcite(8, **settings)
    assert_says(caught.value, *facts)


def test_global_kernel_in_a_network_fits_one_image_size() -> None:
    rows = [[-1, 1, "Conv", [8, 3, 2]] for _ in range(3)] + [[-1, 1, "GatherExcite", ["global", "theta", [8, 8]]]]
    rows += [[-1, 1, "Conv", [8, 3, 2]] for _ in range(2)]
    model = Model({"nc": 2, "backbone": rows, "head": [[[3, 4, 5], 1, "DDetect", ["nc"]]]}).eval()
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 6, 64 + 16 + 4)
    with pytest.raises(ModelConfigError) as caught:
        model(torch.rand(1, 3, 64, 96))
    assert_says(caught.value, "GatherExcite", "8 x 12", "8 x 8", "one size")
    assert "\n" not in str(caught.value)
