"""Backbones of timm: the error without it; its maps where it is installed. Nothing is downloaded."""

import sys
from typing import Any

import pytest
import torch

from models.blocks.timm_backbone import TimmBackbone, create
from models.registry import Scale, find_layer
from models.yolo import Model
from tests.saying import assert_says
from utils.errors import ModelConfigError


def with_backbone(*arguments: Any) -> dict[str, Any]:
    """A network on the last three maps of a backbone that gives five."""
    picks = [["timm", 1, "Pick", [level], f"p{level}"] for level in (2, 3, 4)]
    return {
        "nc": 3,
        "backbone": [[-1, 1, "TimmBackbone", list(arguments), "timm"], *picks],
        "head": [[["p2", "p3", "p4"], 1, "DDetect", ["nc"]]],
    }


def refusal(*arguments: Any) -> str:
    with pytest.raises(ModelConfigError) as caught:
        Model(with_backbone(*arguments))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_timm_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert refusal("resnet18").endswith(
        "TimmBackbone needs the timm package, which is not installed: python -m pip install -r requirements-timm.txt"
    )


@pytest.fixture
def timm() -> Any:
    return pytest.importorskip("timm", reason="timm is not installed: python -m pip install -r requirements-timm.txt")


@pytest.mark.usefixtures("timm")
def test_network_on_a_backbone() -> None:
    model = Model(with_backbone("test_resnet")).eval()
    assert model.rows[0].out_channels == [32, 32, 48, 192, 96]
    assert [row.out_channels for row in model.rows[1:4]] == [48, 192, 96]
    assert model.stride == [8, 16, 32]
    images = torch.rand(2, 3, 64, 96)
    assert model(images).shape == (2, 7, 8 * 12 + 4 * 6 + 2 * 3)
    torch.testing.assert_close(model.deploy()(images), model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("timm")
def test_chosen_maps_of_images_of_one_channel() -> None:
    channels = find_layer("TimmBackbone").rule.apply(
        [1], arguments := {"name": "resnet18", "out_indices": [1, 3]}, Scale(width=0.25)
    )
    assert channels == [64, 256], "no width multiple reaches it"
    with torch.device("meta"):
        layer = TimmBackbone(**arguments)
    assert layer.body.conv1.in_channels == 1
    assert not any(name.startswith("body.layer4") for name, _ in layer.named_parameters()), (
        "what no map needs is not built"
    )


@pytest.mark.usefixtures("timm")
def test_weights_are_fetched_only_when_asked_for(monkeypatch: pytest.MonkeyPatch, timm: Any) -> None:
    asked, build = [], timm.create_model

    def recorded(name: str, pretrained: bool, **settings: Any) -> Any:
        asked.append(pretrained)
        return build(name, pretrained=False, **settings)

    monkeypatch.setattr(timm, "create_model", recorded)
    Model(with_backbone("test_resnet"))
    assert asked == [False, False], "once for the channels, once for the layer"
    Model(with_backbone("test_resnet", {"pretrained": True}))
    assert asked[2:] == [False, True]
    with torch.device("meta"):
        Model(with_backbone("test_resnet", {"pretrained": True}))
    assert asked[4:] == [False, False], "a skeleton has no values"


def test_weights_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, timm: Any) -> None:
    def refuse(*_: Any, **settings: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(ModelConfigError) as caught:
        create("resnet18", 3, pretrained=True)
    assert_says(caught.value, "'resnet18'", "no route to host", "pretrained: true")


@pytest.mark.usefixtures("timm")
@torch.no_grad()
def test_normalised_as_the_weights_expect() -> None:
    torch.manual_seed(0)
    layer = TimmBackbone("resnet18", 3, out_indices=[0], normalize=True).eval()
    images = torch.rand(1, 3, 32, 32)
    mean, deviation = (
        torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1),
        torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1),
    )
    torch.testing.assert_close(layer(images)[0], layer.body((images - mean) / deviation)[0])
    layer.normalize = False
    assert not torch.allclose(layer(images)[0], layer.body((images - mean) / deviation)[0])


@pytest.mark.usefixtures("timm")
@torch.no_grad()
def test_maps_with_channels_last_are_turned() -> None:
    layer = TimmBackbone(
        "swin_tiny_patch4_window7_224",
        3,
        out_indices=[0, 1],
        options={"strict_img_size": False, "depths": (1, 1, 1, 1)},
    ).eval()
    assert [tuple(y.shape) for y in layer(torch.rand(1, 3, 56, 112))] == [(1, 96, 14, 28), (1, 192, 7, 14)]


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet19"], "has no network 'resnet19'. Did you mean 'resnet18'?"),
        (["hf-hub:timm/resnet18.a1_in1k"], "has no network 'hf-hub:timm/resnet18.a1_in1k'"),
        (["local-dir:/tmp"], "has no network 'local-dir:/tmp'"),
        (
            ["resnet18", {"options": {"checkpoint_path": "x.pth"}}],
            "options give checkpoint_path: not a setting of the network",
        ),
        (
            ["resnet18", {"options": {"widht": 2}}],
            "timm's 'resnet18' cannot be built with pretrained False, out_indices None, options {'widht': 2}: ",
        ),
        (
            ["resnet18", {"out_indices": [9]}],
            "timm's 'resnet18' cannot be built with pretrained False, out_indices [9], options None: ",
        ),
        (["resnet18", {"out_indices": []}], "out_indices is []: expected numbers of feature maps, such as [2, 3, 4]"),
        (["resnet18", {"out_indices": [2, 3]}], "index is 2: the list has 2 maps, 0 to 1, with [128, 256] channels"),
        (["swin_tiny_patch4_window7_224", {"options": {"depths": (1, 1, 1, 1)}}], "index is 4: the list has 4 maps"),
    ],
)
def test_refused(arguments: list[Any], message: str) -> None:
    assert message in refusal(*arguments)


@pytest.mark.usefixtures("timm")
def test_a_network_of_one_image_size_says_so() -> None:
    layer = TimmBackbone("swin_tiny_patch4_window7_224", 3, out_indices=[0], options={"depths": (1, 1, 1, 1)})
    with pytest.raises(ModelConfigError) as caught:
        layer(torch.rand(1, 3, 64, 64))
    assert_says(caught.value, "64 x 64")


@pytest.mark.usefixtures("timm")
def test_a_mean_for_other_channels() -> None:
    with pytest.raises(ModelConfigError) as caught:
        TimmBackbone("resnet18", 1, normalize=True)
    assert_says(caught.value, "'resnet18'", "3 channels", "1", "leave it out")
