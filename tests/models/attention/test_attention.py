"""Focal modulation: against a straightforward form of the paper's equations, and every option of the block."""

import pkgutil
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

import models.attention
from models.attention.attention import FocalModulation, FocalModulationBlock
from models.parts import MLP, DepthwiseConv2d, DropPath, LayerNorm2d
from tests.networks import seeded_images
from tests.saying import assert_says
from utils.errors import ModelConfigError


def reference(layer: FocalModulation, x: torch.Tensor, focal_level: int, normalize: bool = False) -> torch.Tensor:
    """Equations 3 to 6 of arxiv.org/abs/2203.11926, pixel by pixel, from the layer's weights."""
    pixels = x.permute(0, 2, 3, 1)
    channels = pixels.shape[-1]
    projected = pixels @ layer.f.weight[:, :, 0, 0].T + (0 if layer.f.bias is None else layer.f.bias)
    query, context, gates = (
        projected[..., :channels],
        projected[..., channels : 2 * channels],
        projected[..., 2 * channels :],
    )
    total, levels = 0, context.permute(0, 3, 1, 2)
    for level in range(focal_level):
        weight = layer.focal_layers[level][0].weight
        levels = functional.gelu(functional.conv2d(levels, weight, padding=weight.shape[-1] // 2, groups=channels))
        total = total + levels.permute(0, 2, 3, 1) * gates[..., level : level + 1]
    everywhere = functional.gelu(levels.mean((2, 3)))[:, None, None]
    total = total + everywhere * gates[..., focal_level:]
    if normalize:
        total = total / (focal_level + 1)
    modulator = total @ layer.h.weight[:, :, 0, 0].T + (0 if layer.h.bias is None else layer.h.bias)
    y = layer.ln((query * modulator).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return (y @ layer.proj.weight[:, :, 0, 0].T + layer.proj.bias).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("window", "level", "factor", "settings"),
    [
        (3, 2, 2, {}),
        (3, 0, 2, {}),
        (1, 3, 2, {"bias": False}),
        (5, 1, 4, {"normalize_modulator": True}),
        (3, 2, 2, {"use_postln_in_modulation": True}),
        (3, 3, 0, {"normalize_modulator": True, "use_postln_in_modulation": True}),
    ],
)
def test_focal_modulation_is_the_papers(window: int, level: int, factor: int, settings: dict[str, bool]) -> None:
    torch.manual_seed(0)
    layer = FocalModulation(6, window, level, factor, **settings).double().eval()
    x = seeded_images(2, 6, 7, 5, dtype=torch.float64)
    expected = reference(layer, x, level, settings.get("normalize_modulator", False))
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-12)


def test_kernels_grow_by_the_factor() -> None:
    layer = FocalModulation(4, focal_window=3, focal_level=3, focal_factor=4)
    assert [part[0].kernel_size for part in layer.focal_layers] == [(3, 3), (7, 7), (11, 11)]
    assert layer.f.out_channels == 4 + 4 + 4


def test_residual_adds_the_input() -> None:
    torch.manual_seed(0)
    layer = FocalModulation(4, residual=True).eval()
    x = seeded_images(1, 4, 5, 5)
    with_input = layer(x)
    layer.residual = False
    torch.testing.assert_close(with_input, x + layer(x))


def test_dropout_only_trains() -> None:
    layer = FocalModulation(4, proj_drop=0.5)
    x = seeded_images(1, 4, 8, 8)
    assert not torch.equal(layer.train()(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))


@pytest.mark.parametrize(
    ("window", "level", "factor", "kernels"),
    [(4, 2, 2, "[4, 6]"), (3, 2, 1, "[3, 4]"), (-1, 1, 2, "[-1]"), (3, -1, 2, "[]")],
)
def test_kernels_must_be_odd(window: int, level: int, factor: int, kernels: str) -> None:
    with pytest.raises(ModelConfigError) as caught:
        FocalModulation(4, window, level, factor)
    assert_says(caught.value, f"focal_window {window}", f"kernels {kernels}", "odd")


def test_explain_gives_gates_and_modulator_and_stores_nothing() -> None:
    torch.manual_seed(0)
    layer = FocalModulation(4, focal_level=2).eval()
    x = seeded_images(1, 4, 6, 5)
    before = set(vars(layer))
    seen = layer.explain(x)
    assert {key: tuple(value.shape) for key, value in seen.items()} == {
        "gates": (1, 3, 6, 5),
        "modulator": (1, 4, 6, 5),
    }
    query = layer.f(x)[:, :4]
    torch.testing.assert_close(layer(x), layer.proj(query * seen["modulator"]))
    assert set(vars(layer)) == before


def test_layer_norm_over_channels() -> None:
    x = seeded_images(1, 4, 2, 3)
    y = LayerNorm2d(4)(x)
    pixel = x[0, :, 1, 2]
    torch.testing.assert_close(y[0, :, 1, 2], (pixel - pixel.mean()) / (pixel.var(unbiased=False) + 1e-5).sqrt())


@pytest.mark.parametrize("kernel", [3, 5])
def test_depthwise_convolution_in_mixed_precision(kernel: int) -> None:
    torch.manual_seed(0)
    layer = DepthwiseConv2d(4, kernel)
    assert (layer.padding, layer.groups, layer.bias) == ((kernel // 2, kernel // 2), 4, None)
    x = seeded_images(1, 4, 6, 7).bfloat16()
    exact = functional.conv2d(x.float(), layer.weight, padding=kernel // 2, groups=4)
    with torch.autocast("cpu", torch.bfloat16):
        trained, used = layer.train()(x), layer.eval()(x)
    assert trained.dtype is used.dtype is torch.bfloat16
    assert torch.equal(trained, exact.bfloat16()) is (kernel > 3)
    torch.testing.assert_close(used.float(), exact, rtol=0.02, atol=0.02)


# --- the block


def test_out_channels_is_the_width_not_the_mlp_ratio() -> None:
    block = FocalModulationBlock(8, 8)
    assert block.mlp.fc1.out_channels == 32
    assert [part[0].kernel_size[0] for part in block.modulation.focal_layers] == [9, 11]
    assert FocalModulationBlock(8, None, 2.0).mlp.fc1.out_channels == 16


def test_block_of_512_channels_has_the_articles_parameters() -> None:
    with torch.device("meta"):
        block = FocalModulationBlock(512, 512)
    assert sum(parameter.numel() for parameter in block.parameters()) == 54_439_427 - 51_182_080


@pytest.mark.parametrize("postln", [False, True])
@pytest.mark.parametrize("layerscale", [False, True])
def test_order_of_the_parts(postln: bool, layerscale: bool) -> None:
    torch.manual_seed(0)
    block = (
        FocalModulationBlock(6, focal_window=3, use_postln=postln, use_layerscale=layerscale, layerscale_value=0.3)
        .double()
        .eval()
    )
    x = seeded_images(1, 6, 5, 4, dtype=torch.float64)
    y = x
    for norm, body in ((block.norm1, block.modulation), (block.norm2, block.mlp)):
        y = y + (0.3 if layerscale else 1) * (norm(body(y)) if postln else body(norm(y)))
    torch.testing.assert_close(block(x), y)
    assert (block.gamma_1 is None) is not layerscale


def test_layerscale_starts_small() -> None:
    block = FocalModulationBlock(4, focal_window=3, use_layerscale=True)
    assert block.gamma_1 is not None
    assert block.gamma_1.tolist() == pytest.approx([1e-4] * 4)


def test_mlp_is_per_pixel() -> None:
    torch.manual_seed(0)
    mlp = MLP(4, 8).eval()
    x = seeded_images(1, 4, 3, 3)
    torch.testing.assert_close(mlp(x)[:, :, 1:2, 2:], mlp(x[:, :, 1:2, 2:]))


def test_drop_path_drops_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop = DropPath(0.25).train()
    y = drop(torch.ones(4000, 2, 1, 1))[:, :, 0, 0]
    assert torch.equal(y[:, 0], y[:, 1])
    assert sorted(set(y.flatten().tolist())) == pytest.approx([0, 1 / 0.75])
    assert y.mean().item() == pytest.approx(1, abs=0.03)
    assert drop.eval()(torch.ones(3, 1, 1, 1)).tolist() == [[[[1.0]]]] * 3


# --- the package


def test_the_package_imports_every_file_in_it() -> None:
    folder = Path(models.attention.__file__).parent
    siblings = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert {module.name for module in pkgutil.iter_modules(models.attention.__path__)} >= siblings
    assert {f"models.attention.{name}" for name in siblings} <= set(sys.modules)


def test_a_plug_in_keeps_its_own_normalisation() -> None:
    norms = [module for module in FocalModulationBlock(4, focal_window=3).modules() if isinstance(module, nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {1e-5}
