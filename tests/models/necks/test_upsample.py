"""Upsampling against plain loops in float64, its start, its borders, and half precision."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.necks.upsample import CARAFE, DySample
from utils.errors import ModelConfigError


def seeded(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def stirred(layer: nn.Module, std: float) -> nn.Module:
    """Return the layer in float64 with seeded parameters in place of its start."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in layer.double().parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return layer.eval()


@torch.no_grad()
@pytest.mark.parametrize(
    ("scale", "window", "size_hw"), [(2, 5, (4, 3)), (3, 3, (2, 5)), (2, 1, (3, 3)), (2, 5, (1, 1))]
)
def test_carafe_cell_by_cell(scale: int, window: int, size_hw: tuple[int, int]) -> None:
    layer = stirred(CARAFE(3, scale, window, mid_channels=6), 0.7)
    x = seeded(2, 3, *size_hw)
    logits = functional.pixel_shuffle(layer.encoder(layer.compress(x)), scale)  # (B, window^2, scale * H, scale * W)
    expected = torch.zeros(2, 3, scale * size_hw[0], scale * size_hw[1], dtype=torch.float64)
    for row in range(expected.shape[2]):
        for column in range(expected.shape[3]):
            weights = logits[..., row, column].softmax(1)
            for tap in range(window**2):
                y, x_ = row // scale + tap // window - window // 2, column // scale + tap % window - window // 2
                if 0 <= y < size_hw[0] and 0 <= x_ < size_hw[1]:
                    expected[..., row, column] += weights[:, tap, None] * x[..., y, x_]
    torch.testing.assert_close(layer(x), expected)


def test_carafe_starts_as_the_mean_of_the_window() -> None:
    layer = CARAFE(4).double()
    enlarged = layer(torch.ones(1, 4, 5, 5, dtype=torch.float64))
    assert enlarged[0, 0, 4:6, 4:6].flatten().tolist() == pytest.approx([1.0] * 4)
    assert enlarged[0, 0, 0, 0].item() == pytest.approx(9 / 25, abs=0.01), (
        "of the 25 cells around a corner 16 are outside, and zero"
    )


def test_carafe_parameters() -> None:
    assert sum(p.numel() for p in CARAFE(256).parameters()) == 256 * 64 + 64 + 64 * 9 * 100 + 100


def test_carafe_weighs_in_float32() -> None:
    layer = CARAFE(2, kernel_up=3, mid_channels=2)
    with torch.no_grad():
        layer.encoder.bias[0], layer.encoder.bias[4] = (
            11.0,
            10.0,
        )  # e^11 is finite in fp16, and the sum of nine of those is not exact
    layer.half()
    weights = layer.kernels(torch.zeros(1, 2, 4, 4, dtype=torch.half))
    assert weights.dtype is torch.half
    assert weights.float().sum(1).sub(1).abs().max() < 1e-3


@torch.no_grad()
@pytest.mark.parametrize("style", ["lp", "pl"])
@pytest.mark.parametrize("scale", [2, 3])
@pytest.mark.parametrize("dyscope", [False, True])
def test_dysample_starts_as_bilinear_interpolation(style: str, scale: int, dyscope: bool) -> None:
    layer = DySample(36, scale, style, dyscope=dyscope).double()
    nn.init.zeros_(layer.offset.weight)
    x = seeded(2, 36, 5, 7)
    torch.testing.assert_close(
        layer(x), functional.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)
    )


@torch.no_grad()
@pytest.mark.parametrize("style", ["lp", "pl"])
@pytest.mark.parametrize("dyscope", [False, True])
@pytest.mark.parametrize("size_hw", [(3, 4), (1, 1), (1, 5)])
def test_dysample_cell_by_cell(style: str, dyscope: bool, size_hw: tuple[int, int]) -> None:
    groups, scale, (height, width) = 2, 2, size_hw
    layer = stirred(DySample(8, scale, style, groups, dyscope), 1.0)
    x = seeded(2, 8, *size_hw)
    shuffled = functional.pixel_shuffle(x, scale) if style == "pl" else x
    reach = 0.25 if layer.scope is None else 0.5 * layer.scope(shuffled).sigmoid()
    moves = layer.offset(shuffled) * reach
    expected = torch.zeros(2, 8, scale * height, scale * width, dtype=torch.float64)
    for b in range(2):
        for channel in range(8):
            group = channel // 4
            for row in range(scale * height):
                for column in range(scale * width):
                    if style == "lp":
                        inner = row % scale * scale + column % scale
                        across, down = (
                            moves[b, (axis * groups + group) * scale**2 + inner, row // scale, column // scale]
                            for axis in (0, 1)
                        )
                    else:
                        across, down = (moves[b, axis * groups + group, row, column] for axis in (0, 1))
                    y = ((row + 0.5) / scale + down - 0.5).clamp(0, height - 1)
                    x_ = ((column + 0.5) / scale + across - 0.5).clamp(0, width - 1)
                    top, left = int(y), int(x_)
                    for corner_y, corner_x in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
                        share = (1 - (y - corner_y).abs()).clamp(0) * (1 - (x_ - corner_x).abs()).clamp(0)
                        if corner_y < height and corner_x < width:
                            expected[b, channel, row, column] += share * x[b, channel, corner_y, corner_x]
    torch.testing.assert_close(layer(x), expected)


def test_dysample_starts_near_no_moves() -> None:
    torch.manual_seed(0)
    layer = DySample(256, groups=8, dyscope=True)
    assert layer.offset.weight.std().item() == pytest.approx(0.001, rel=0.05)
    assert layer.offset.bias.abs().max() == 0
    assert layer.scope.weight.abs().max() == 0


@torch.no_grad()
def test_dysample_points_of_half_precision_are_exact() -> None:
    layer = DySample(4).half()
    nn.init.zeros_(layer.offset.weight)
    ramp = torch.arange(160, dtype=torch.half).expand(1, 4, 2, 160)
    enlarged = layer(ramp)
    assert enlarged.dtype is torch.half
    assert enlarged[0, 0, 0, 200:204].tolist() == [99.75, 100.25, 100.75, 101.25]


@torch.no_grad()
@pytest.mark.parametrize("layer", [CARAFE(4), DySample(4)], ids=lambda layer: type(layer).__name__)
def test_upsampling_in_a_channels_last_map_and_under_autocast(layer: nn.Module) -> None:
    x = seeded(2, 4, 5, 3).float()
    torch.testing.assert_close(layer(x.to(memory_format=torch.channels_last)), layer(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x.bfloat16()).dtype is torch.bfloat16
        torch.testing.assert_close(layer(x), layer(x.clone()))


@pytest.mark.parametrize(
    "layer",
    [
        CARAFE(4, mid_channels=4),
        pytest.param(DySample(4), marks=pytest.mark.slow),
        DySample(4, style="pl", dyscope=True),
    ],
    ids=["CARAFE", "lp", "pl"],
)
def test_exported_with_any_size(layer: nn.Module) -> None:
    dynamic = {
        0: torch.export.Dim("batch", min=1),
        2: torch.export.Dim("height", min=1),
        3: torch.export.Dim("width", min=1),
    }
    program = torch.export.export(layer.eval(), (torch.randn(2, 4, 6, 8),), dynamic_shapes=(dynamic,))
    x = seeded(3, 4, 5, 7).float()
    torch.testing.assert_close(program.module()(x), layer(x))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CARAFE(8, 0), "scale is 0: expected a positive number, such as 2"),
        (lambda: CARAFE(8, 2, 4), "kernel_up is 4: expected an odd positive number, such as 5"),
        (lambda: CARAFE(8, 2, 5, 0), "kernel_encoder is 0: expected an odd positive number, such as 3"),
        (lambda: CARAFE(8, mid_channels=0), "mid_channels is 0: expected a positive number, such as 64"),
        (lambda: DySample(6), "groups is 4: does not divide 6 channels; try one of 1, 2"),
        (lambda: DySample(6, style="pl", groups=2), "style 'pl' splits 6 channels into 4 parts"),
        (lambda: DySample(8, -2), "scale is -2: expected a positive number"),
    ],
)
def test_refused(build: object, message: str) -> None:
    with pytest.raises(ModelConfigError) as caught:
        build()
    assert str(caught.value).startswith(message)
