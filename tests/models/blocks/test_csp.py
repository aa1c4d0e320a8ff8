"""Blocks of YOLOv8 and YOLO11: their formulas against plain torch, part names, and the rules of their channels."""

import pytest
import torch
from torch import nn

from models.blocks.csp import C2PSA, C3, SPPF, Attention, Bottleneck, C2f, C3k, C3k2, DWConv, SimSPPF, StageConcat
from models.common import Conv, set_activation
from models.registry import Scale, bind, find_layer
from models.yolo import Model
from tests.networks import randomise, seeded_images, tiny_config


def weights(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """The kernels of a block by name."""
    return {
        name.removesuffix(".conv.weight"): tuple(value.shape)
        for name, value in module.state_dict().items()
        if name.endswith("conv.weight")
    }


def test_c2f_parts() -> None:
    assert weights(C2f(32, 48, repeats=2, shortcut=True)) == {
        "cv1": (48, 32, 1, 1),
        "cv2": (48, 96, 1, 1),
        "m.0.cv1": (24, 24, 3, 3),
        "m.0.cv2": (24, 24, 3, 3),
        "m.1.cv1": (24, 24, 3, 3),
        "m.1.cv2": (24, 24, 3, 3),
    }


def test_c2f_formula() -> None:
    block = randomise(C2f(6, 8, repeats=2, shortcut=True)).eval()
    x = torch.randn(1, 6, 5, 4)
    a, b = block.cv1(x)[:, :4], block.cv1(x)[:, 4:]
    c = b + block.m[0].cv2(block.m[0].cv1(b))
    d = c + block.m[1].cv2(block.m[1].cv1(c))
    torch.testing.assert_close(block(x), block.cv2(torch.cat((a, b, c, d), 1)))
    assert not C2f(6, 8).m[0].add, "no shortcut unless asked for"


def test_c3k2_units() -> None:
    plain, nested = C3k2(32, 32, expansion=0.25), C3k2(32, 32, c3k=True)
    assert weights(plain) == {
        "cv1": (16, 32, 1, 1),
        "cv2": (32, 24, 1, 1),
        "m.0.cv1": (4, 8, 3, 3),
        "m.0.cv2": (8, 4, 3, 3),
    }
    assert weights(nested.m[0]) == {
        **{"cv1": (8, 16, 1, 1), "cv2": (8, 16, 1, 1), "cv3": (16, 16, 1, 1)},
        **{f"m.{number}.{part}": (8, 8, 3, 3) for number in (0, 1) for part in ("cv1", "cv2")},
    }
    assert plain.m[0].add
    assert nested.m[0].m[0].add


@pytest.mark.parametrize(("c3k", "nested"), [(True, "nmx"), (False, ""), ("mlx", "mx"), ("n", "n")])
def test_c3k_by_scale(c3k: bool | str, nested: str) -> None:
    for letter in "nmx":
        arguments = bind(find_layer("C3k2"), [64, c3k, 0.5], 3)
        assert find_layer("C3k2").rule.apply([16], arguments, Scale(1.0, 0.5, None, letter)) == 32
        assert arguments["c3k"] is (letter in nested)


def test_deploying_keeps_what_the_scale_chose() -> None:
    backbone = [*tiny_config(width=64)["backbone"], [-1, 2, "C3k2", [64, "m"]]]
    config = {
        "nc": 3,
        "backbone": backbone,
        "head": [[[2, 3, 5], 1, "DDetect", ["nc"]]],
        "scales": {"n": [0.5, 0.25], "m": [1.0, 0.5]},
    }
    for letter, kind in (("n", Bottleneck), ("m", C3k)):
        kept = Model(config, scale=letter).deploy(fold=False)
        again = Model(kept.config)
        assert {type(unit) for unit in again.model[5].m} == {type(unit) for unit in kept.model[5].m} == {kind}
        assert len(again.model[5].m) == len(kept.model[5].m) == (1 if letter == "n" else 2)


def test_c3_and_c3k_kernels() -> None:
    assert weights(C3(8, 8))["m.0.cv1"] == (4, 4, 1, 1)
    assert weights(C3(8, 8))["m.0.cv2"] == (4, 4, 3, 3)
    assert weights(C3k(8, 8, kernel_size=5))["m.0.cv1"] == (4, 4, 5, 5)


def test_a_block_of_other_units() -> None:
    block = StageConcat(8, 16, repeats=2, expansion=0.5, unit=lambda width: nn.Identity()).eval()
    x = torch.randn(1, 8, 3, 3)
    first, second = block.cv1(x).chunk(2, 1)
    torch.testing.assert_close(block(x), block.cv2(torch.cat((first, second, second, second), 1)))


def test_dwconv_groups() -> None:
    assert DWConv(16, 24, 3).conv.groups == 8
    assert DWConv(16, 16, 3, 2).conv.weight.shape == (16, 1, 3, 3)
    assert isinstance(DWConv(16, 16, activate=False).act, nn.Identity)


def test_sppf_sees_growing_squares() -> None:
    block = randomise(SPPF(4, 6)).eval()
    x = torch.randn(1, 4, 9, 11)
    hidden = block.cv1(x)
    pooled = [nn.functional.max_pool2d(hidden, size, 1, size // 2) for size in (5, 9, 13)]
    torch.testing.assert_close(block(x), block.cv2(torch.cat((hidden, *pooled), 1)))


def test_simsppf_is_sppf_with_relu() -> None:
    torch.manual_seed(0)
    named, written, plain = SimSPPF(4, 6), SPPF(4, 6, activation="ReLU"), SPPF(4, 6)
    assert {name: value.shape for name, value in named.state_dict().items()} == {
        name: value.shape for name, value in plain.state_dict().items()
    }
    written.load_state_dict(named.state_dict())
    plain.load_state_dict(named.state_dict())
    x = torch.randn(1, 4, 9, 11)
    assert torch.equal(named.eval()(x), written.eval()(x))
    assert not torch.equal(named(x), plain.eval()(x))
    for block, kind in ((named, nn.ReLU), (written, nn.ReLU), (plain, nn.Mish)):
        set_activation(block, "Mish")
        assert {type(block.cv1.act), type(block.cv2.act)} == {kind}


@torch.no_grad()
def test_attention_formula() -> None:
    block = randomise(Attention(8, heads=2)).double().eval()
    x = torch.randn(1, 8, 2, 3, dtype=torch.float64)
    assert weights(block) == {"qkv": (16, 8, 1, 1), "proj": (8, 8, 1, 1), "pe": (8, 1, 3, 3)}
    mixed, values = [], []
    for head in block.qkv(x).flatten(2)[0].chunk(2):  # 2 queries, 2 keys and 4 values a head, over 6 cells
        query, key, value = head[:2], head[2:4], head[4:]
        scores = torch.tensor(
            [[query[:, i].dot(key[:, j]) / 2**0.5 for j in range(6)] for i in range(6)], dtype=torch.float64
        )
        mixed.append(torch.stack([(scores[i].softmax(0) * value).sum(1) for i in range(6)], 1))
        values.append(value)
    expected = block.proj(torch.cat(mixed).view(1, 8, 2, 3) + block.pe(torch.cat(values).view(1, 8, 2, 3)))
    torch.testing.assert_close(block(x), expected)


def test_c2psa_parts() -> None:
    block = C2PSA(256, 256, repeats=1)
    assert block.m[0].attn.heads == 2
    assert weights(block) == {
        **{
            "cv1": (256, 256, 1, 1),
            "cv2": (256, 256, 1, 1),
            "m.0.attn.qkv": (256, 128, 1, 1),
            "m.0.attn.proj": (128, 128, 1, 1),
        },
        **{"m.0.attn.pe": (128, 1, 3, 3), "m.0.ffn.0": (256, 128, 1, 1), "m.0.ffn.1": (128, 256, 1, 1)},
    }
    assert [
        unit.activate for unit in (block.m[0].attn.qkv, block.m[0].attn.proj, block.m[0].attn.pe, *block.m[0].ffn)
    ] == [False] * 3 + [True, False]


def test_activation_reaches_the_blocks() -> None:
    model = Model(
        tiny_config()
        | {
            "backbone": [*tiny_config()["backbone"], [-1, 1, "C2PSA", [8]], [-1, 1, "DWConv", [8, 3]]],
            "activation": "ReLU",
        }
    )
    assert {type(module.act) for module in model.modules() if isinstance(module, Conv) and module.activate} == {nn.ReLU}


@pytest.mark.parametrize(
    "name",
    [
        "yolov8n",
        "yolo11n",
        "yolov8n-GatherExcite-theta",
        "yolov8n-ACmix",
        "yolov8n-C2f-ACmix",
        "yolo11n-FocalModulation",
    ],
)
def test_deployed_network_computes_the_same(name: str) -> None:
    torch.manual_seed(0)
    model = randomise(Model(name, nc=3)).double().eval()
    images = seeded_images(1, 3, 64, 96, dtype=torch.float64)
    with torch.inference_mode():
        expected = model(images)
        assert model.deploy()(images).sub(expected).abs().max() < 1e-10 * expected.abs().max()
        single = model.float().deploy()(images.float())
    assert single.sub(expected).abs().max() < 1e-5 * expected.abs().max()
