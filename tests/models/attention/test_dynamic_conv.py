"""Dynamic convolution: every form of computing it, every route, folding, and its place in the heads."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from benchmarks.plain_modules import plain_dynamic_conv
from models.attention.dynamic_conv import DynamicConv, DynamicConv2d, ExpertConv2d
from models.common import Conv
from models.yolo import Model
from tests.networks import meta_model, randomise, tiny_config
from tests.saying import assert_says
from utils.errors import ModelConfigError


def maps(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def by_hand(conv: ExpertConv2d, x: torch.Tensor, mixture: torch.Tensor) -> torch.Tensor:
    """Sum the experts' outputs, image by image."""
    shape = (conv.out_channels, conv.in_channels // conv.groups, conv.kernel_size, conv.kernel_size)
    settings = (conv.stride, conv.padding, conv.dilation, conv.groups)
    images = []
    for image, weights in zip(x.split(1), mixture, strict=True):
        outputs = (functional.conv2d(image, kernel.view(shape), None, *settings) for kernel in conv.weight)
        images.append(sum(weight * output for weight, output in zip(weights, outputs, strict=True)))
    y = torch.cat(images)
    return y if conv.bias is None else y + (mixture @ conv.bias)[:, :, None, None]


SETTINGS: list[dict[str, Any]] = [
    {},
    {"bias": True},
    {"kernel_size": 3},
    {"kernel_size": 3, "stride": 2, "groups": 2, "bias": True},
    {"kernel_size": 5, "groups": 8},
    {"kernel_size": 3, "dilation": 2, "experts": 1},
]


FORMS = [
    (settings, form)
    for settings in SETTINGS
    for form in (None, "grouped", "separate", "experts", *["pointwise"] * ("kernel_size" not in settings))
]


@pytest.mark.parametrize(("settings", "form"), FORMS, ids=str)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_every_form_is_the_sum_over_experts(
    settings: dict[str, Any], form: Any, batch: int, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    conv = ExpertConv2d(8, 8, **settings).double()
    conv.form = form
    x, mixture = maps(batch, 8, 6, 7).to(memory_format=layout), maps(batch, conv.experts)
    torch.testing.assert_close(conv(x, mixture), by_hand(conv, x, mixture), rtol=1e-11, atol=1e-12)


def test_form_by_situation() -> None:
    one, many = torch.empty(1, 8, 4, 4), torch.empty(3, 8, 4, 4)
    point, square = ExpertConv2d(8, 8), ExpertConv2d(8, 8, 3)
    assert (point.suitable_form(one), point.suitable_form(many)) == ("grouped", "pointwise")
    assert (square.suitable_form(many), square.suitable_form(many.to(memory_format=torch.channels_last))) == (
        "grouped",
        "separate",
    )
    assert ExpertConv2d(8, 8, groups=2).suitable_form(many) == "grouped"
    program = torch.export.export(DynamicConv2d(8, 8, 3).eval(), (one,))
    assert program.graph_signature.user_inputs
    assert [node.args[1].op for node in program.graph.nodes if "conv2d" in str(node.target)] == ["call_function"]


def test_exported_weights_do_not_depend_on_the_image() -> None:
    torch.manual_seed(0)
    layer = DynamicConv(8, 8, 3).eval()
    graph = torch.jit.trace(layer, (torch.rand(1, 8, 5, 6),), check_trace=False)
    x = torch.rand(4, 8, 5, 6)
    torch.testing.assert_close(graph(x), layer(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size_hw", [(11, 8), (7, 5), (1, 1)], ids=str)
def test_padding_same_puts_the_rest_below_and_right(size_hw: tuple[int, int]) -> None:
    conv = ExpertConv2d(1, 1, 3, 2, "same", experts=1).double()
    x = maps(1, 1, *size_hw)
    y = conv(x, torch.ones(1, 1, dtype=torch.float64))
    assert y.shape[2:] == (-(-size_hw[0] // 2), -(-size_hw[1] // 2))
    total = [max((out - 1) * 2 + 3 - size, 0) for out, size in zip(y.shape[2:], size_hw, strict=True)]
    padded = functional.pad(x, (total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2))
    torch.testing.assert_close(y, functional.conv2d(padded, conv.weight.view(1, 1, 3, 3), stride=2))


def test_sigmoid_route_is_the_published_one() -> None:
    torch.manual_seed(0)
    layer, x = DynamicConv2d(8, 6, 3, experts=3).double(), maps(2, 8, 6, 5)
    torch.testing.assert_close(layer(x), plain_dynamic_conv(layer, x), rtol=1e-11, atol=1e-12)
    assert {name: tuple(value.shape) for name, value in layer.state_dict().items()} == {
        "cond_conv.weight": (3, 6 * 8 * 9),
        "routing.weight": (3, 8),
        "routing.bias": (3,),
    }


def test_routes_by_hand() -> None:
    x = torch.tensor([1.0, -3.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    sigmoid = DynamicConv2d(2, 2, experts=2)
    softmax, mlp = (
        DynamicConv2d(2, 2, experts=2, route=route, temperature=2.0) for route in ("mlp_softmax", "mlp_sigmoid")
    )
    for layer in (sigmoid, softmax, mlp):
        for parameter in layer.routing.parameters():
            nn.init.zeros_(parameter)
    with torch.no_grad():
        sigmoid.routing.weight[0] = 1  # logits -2, 0
        for layer in (softmax, mlp):
            layer.routing.fc1.weight[0, 0], layer.routing.fc1.weight[1, 1] = 1, 1  # hidden 1, and 0 in place of -3
            layer.routing.fc2.weight[0] = 4  # logits 4, 0; halved by the temperature
    assert sigmoid.route(x)[0].tolist() == pytest.approx([0.119203, 0.5])
    assert softmax.route(x)[0].tolist() == pytest.approx([0.880797, 0.119203])
    assert mlp.route(x)[0].tolist() == pytest.approx([0.880797, 0.5])
    assert torch.equal(softmax.explain(x)["routing_weights"], softmax.route(x))


def test_routing_is_in_float32() -> None:
    torch.manual_seed(0)
    layer, x = DynamicConv2d(8, 8), torch.rand(2, 8, 40, 40)
    expected = layer.route(x.bfloat16().float())
    with torch.autocast("cpu", torch.bfloat16):
        mixed = layer.route(x.bfloat16())
    assert mixed.dtype is torch.float32
    torch.testing.assert_close(mixed, expected)
    assert layer.bfloat16().route(x.bfloat16()).dtype is torch.float32


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_fold_keeps_the_shift_out_of_the_mixture(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer = DynamicConv(8, 8, **{key: value for key, value in settings.items() if key != "bias"})
    if settings.get("bias"):
        layer.conv.cond_conv.bias = nn.Parameter(torch.randn(4, 8))
    randomise(layer).double().eval()
    x = maps(3, 8, 6, 7)
    expected = layer(x)
    layer.fold()
    layer.fold()
    assert isinstance(layer.bn, nn.Identity)
    assert "conv.cond_conv.shift" in layer.state_dict()
    for form in (None, "grouped", "separate", "experts"):
        layer.conv.cond_conv.form = form
        torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(layer(x[:1]), expected[:1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"experts": 0}, "experts is 0: expected a positive number"),
        ({"groups": 3}, "groups is 3: does not divide 8 channels in and 8 out"),
        ({"route": "softmax"}, "route is 'softmax': expected one of sigmoid, mlp_softmax, mlp_sigmoid"),
        ({"temperature": 0.0}, "temperature is 0.0: expected a positive number"),
        (
            {"router_channels": 4},
            "router_channels is 4: expected a positive number, and route mlp_softmax or mlp_sigmoid",
        ),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelConfigError) as caught:
        DynamicConv(8, 8, **settings)
    assert str(caught.value) == message


# --- in the heads


def head_of(name: str, **settings: Any) -> nn.Module:
    config = tiny_config(nc=3)
    config["head"][0][2:] = [name, ["nc", settings]]
    return Model(config).head


def seconds(towers: nn.ModuleList) -> set[tuple[type, int]]:
    """Return type and kernel size of the last unit before a tower's output."""
    units = [tower[1][1] if isinstance(tower[1], nn.Sequential) else tower[1] for tower in towers]
    return {
        (type(unit), unit.conv.cond_conv.kernel_size if isinstance(unit, DynamicConv) else unit.conv.kernel_size[0])
        for unit in units
    }


def test_dynamic_head_replaces_the_second_unit() -> None:
    for name in ("Detect", "DDetect"):
        dense = head_of(name, dynamic=True).lead
        assert (seconds(dense.box), seconds(dense.cls)) == ({(DynamicConv, 3)}, {(Conv, 3)})
    depthwise = head_of("Detect", dynamic=True, cls="depthwise", experts=2).lead
    assert (seconds(depthwise.box), seconds(depthwise.cls)) == ({(DynamicConv, 3)}, {(DynamicConv, 1)})
    assert depthwise.box[0][1].conv.cond_conv.experts == 2
    assert not any(isinstance(module, DynamicConv) for module in head_of("Detect", cls="depthwise").modules())


def test_dynamic_head_by_tower_and_route() -> None:
    lead = head_of("Detect", dynamic=["cls"], route="mlp_softmax").lead
    assert (seconds(lead.box), seconds(lead.cls)) == ({(Conv, 3)}, {(DynamicConv, 3)})
    assert lead.cls[0][1].conv.softmax
    with pytest.raises(ModelConfigError) as caught:
        head_of("Detect", dynamic=["mask"])
    assert_says(caught.value, "dynamic", "mask")
    with pytest.raises(ModelConfigError) as caught:
        head_of("Detect", dynamic=["boxes"])
    assert_says(caught.value, "'dynamic' is ['boxes']", "bool | list")


def test_grouped_towers_stay_grouped() -> None:
    conv = head_of("DDetect", dynamic=True).lead.box[0][1].conv.cond_conv
    assert conv.groups == 4


def test_segmentation_head() -> None:
    lead = meta_model("yolo11n-seg-DynamicConv").head.lead
    assert seconds(lead.masks) == seconds(lead.box) == {(DynamicConv, 3)}
    assert seconds(lead.cls) == {(DynamicConv, 1)}
    ours, theirs = (
        sum(p.numel() for p in meta_model(name).parameters()) for name in ("yolo11n-DynamicConv", "yolo11n")
    )
    box, cls = (
        3 * width * width * kernel + 4 * width + 4 for width, kernel in ((64, 9), (80, 1))
    )  # three experts more, and a route
    assert ours - theirs == 3 * (box + cls)


@pytest.mark.parametrize("name", ["yolo11n-DynamicConv", "yolo11n-seg-DynamicConv"])
def test_shipped_networks_train_and_deploy(name: str) -> None:
    torch.manual_seed(0)
    model = Model(name, nc=3)
    outputs = model.train()(torch.rand(2, 3, 64, 64))
    maps_ = (
        outputs["main"]
        if isinstance(outputs["main"], list)
        else [*outputs["main"]["maps"], outputs["main"]["coefficients"]]
    )
    sum(output.square().sum() for output in maps_).backward()
    routes = [parameter.grad for key, parameter in model.named_parameters() if ".routing." in key]
    assert len(routes) == 2 * 3 * (3 if "seg" in name else 2)
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in routes)
    randomise(model).eval()
    deployed = model.deploy()
    assert Model(deployed.config).state_dict().keys() == deployed.state_dict().keys()
    image = torch.rand(2, 3, 64, 96)
    ours, theirs = (network(image) for network in (deployed, model))
    for one, other in zip(ours, theirs, strict=True) if "seg" in name else [(ours, theirs)]:
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-2)
