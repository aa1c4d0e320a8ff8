"""Networks from yaml: what they return, what building leaves alone, and what deploying keeps."""

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models.common import Conv
from models.config.reading import find_config, read_config
from models.deploy import needed_rows
from models.registry import layer, same, temporary_layers
from models.yolo import Model, load
from tests.few import few
from tests.networks import (
    HEADS,
    deep_config,
    meta_deployed,
    meta_model,
    meta_pruned,
    randomise,
    seeded_images,
    tiny_config,
    tiny_model,
)
from tests.saying import assert_says
from utils.errors import ModelConfigError

REPOSITORY = Path(__file__).parent.parent.parent


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


# --- finding and reading


def test_find_config(tmp_path: Path) -> None:
    shipped = REPOSITORY / "models" / "detect" / "gelan-t.yaml"
    assert find_config("gelan-t") == (shipped, None)
    assert find_config("gelan-t.yaml") == (shipped, None)
    assert find_config("models/detect/gelan-t.yaml")[0].samefile(shipped)
    with pytest.raises(ModelConfigError) as caught:
        find_config("elsewhere/gelan-t.yaml")
    assert_says(caught.value, "elsewhere/gelan-t.yaml", "'gelan-t.yaml'")
    (tmp_path / "yolov8-mine.yaml").write_text("nc: 1")
    assert find_config(tmp_path / "yolov8m-mine.yaml") == (tmp_path / "yolov8-mine.yaml", "m")
    (tmp_path / "yolov8m-mine.yaml").write_text("nc: 2")
    assert find_config(tmp_path / "yolov8m-mine.yaml") == (tmp_path / "yolov8m-mine.yaml", None)


@pytest.mark.parametrize(
    ("given", "file", "letter"),
    [
        ("yolov8n.yaml", "detect/yolov8.yaml", "n"),
        ("yolov8m", "detect/yolov8.yaml", "m"),
        ("models/detect/yolov8n.yaml", "detect/yolov8.yaml", "n"),
        ("yolov8", "detect/yolov8.yaml", None),
        ("yolo11x", "detect/yolo11.yaml", "x"),
        ("yolo11n-seg", "segment/yolo11-seg.yaml", "n"),
        ("models/segment/yolov8s-seg.yaml", "segment/yolov8-seg.yaml", "s"),
        ("gelan-c-dseg.yaml", "segment/gelan-c-dseg.yaml", None),
    ],
)
def test_find_config_of_a_family(given: str, file: str, letter: str | None) -> None:
    path, found = find_config(given)
    assert path.samefile(REPOSITORY / "models" / file)
    assert found == letter


def test_scale_of_a_family() -> None:
    with torch.device("meta"):
        assert (
            shapes(Model("yolov8.yaml", scale="n"))
            == shapes(Model("yolov8n.yaml"))
            == shapes(Model("yolov8n.yaml", scale="n"))
        )
    with pytest.raises(ModelConfigError) as unchosen:
        Model("yolov8.yaml")
    assert_says(unchosen.value, "yolov8.yaml", "scale None", "n, s, m, l, x", "--scale")
    with pytest.raises(ModelConfigError) as twice:
        Model("yolov8n.yaml", scale="s")
    assert_says(twice.value, "yolov8n.yaml", "scale 's'", "'n'", "--scale")


def test_read_config_takes_the_scale_of_the_name(tmp_path: Path) -> None:
    (tmp_path / "yolo11.yaml").write_text(
        "nc: 3\nscales: {n: [0.5, 0.25, 1024]}\n"
        "backbone: [[-1, 1, Conv, [64, 3, 2]]]\nhead: [[[0], 1, DDetect, [nc]]]\n"
    )
    assert read_config(tmp_path / "yolo11n.yaml").as_yaml()["scale"] == "n"
    model = Model(tmp_path / "yolo11n.yaml")
    assert model.rows[0].out_channels == 16
    assert Model(tmp_path / "yolo11.yaml", scale="n").rows[0].out_channels == 16


def test_a_mapping_is_copied() -> None:
    config = tiny_config()
    model = Model(config)
    assert model.config == config
    model.config["backbone"][0][3][0] = 99
    assert config == tiny_config()


# --- attributes


def test_attributes() -> None:
    model = tiny_model()
    assert (model.stride, model.nc, model.names, model.task, model.channels) == (
        [8, 16, 32],
        3,
        ["0", "1", "2"],
        "detect",
        3,
    )
    assert all(key.startswith("model.") and key.split(".")[1].isdigit() for key in model.state_dict())
    assert Model(tiny_config(), nc=7).names == [str(number) for number in range(7)]
    assert Model(tiny_config() | {"names": {0: "a", 1: "b", 2: "c"}}).names == ["a", "b", "c"]
    assert Model(tiny_config() | {"names": ["a", "b", "c"]}).names == ["a", "b", "c"]
    assert Model(tiny_config() | {"ch": 1}).model[0].conv.in_channels == 1
    assert Model(tiny_config() | {"ch": 1}, ch=4).model[0].conv.in_channels == 4


def test_dfl_counts_but_does_not_train() -> None:
    model = tiny_model(branches=2)
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen == ["model.5.aux.0.dfl.conv.weight", "model.5.lead.dfl.conv.weight"]
    assert model.get_parameter(frozen[0]).flatten().tolist() == list(range(16))


def test_building_moves_no_statistics() -> None:
    model = Model("gelan-t")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.num_batches_tracked == 0
            assert module.running_mean.eq(0).all()
            assert module.running_var.eq(1).all()
    assert model.training


def test_normalisation_is_the_layers_own() -> None:
    model = meta_model("yolov9-t")
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.03)}


# --- outputs


@pytest.mark.parametrize("branches", HEADS)
def test_training_output(branches: int) -> None:
    outputs = tiny_model(branches).train()(seeded_images(2, 3, 64, 96))
    assert set(outputs) == {"main", "aux"}
    assert len(outputs["aux"]) == branches - 1
    for maps in (outputs["main"], *outputs["aux"]):
        assert [tuple(level.shape) for level in maps] == [(2, 67, 8, 12), (2, 67, 4, 6), (2, 67, 2, 3)]


@pytest.mark.parametrize("branches", HEADS)
def test_evaluation_output(branches: int) -> None:
    model = randomise(tiny_model(branches)).eval()
    images = seeded_images(2, 3, 64, 96)
    with torch.inference_mode():
        prediction = model(images)
        again, outputs = model(images, raw=True)
    assert prediction.shape == (2, 7, 96 + 24 + 6)
    torch.testing.assert_close(again, prediction)
    assert set(outputs) == {"main", "aux"}
    assert len(outputs["aux"]) == branches - 1
    torch.testing.assert_close(model.decode(outputs["main"]), prediction)
    assert all(model.decode(output).shape == prediction.shape for output in outputs["aux"])
    assert prediction[:, 4:].min() >= 0
    assert prediction[:, 4:].max() <= 1


@pytest.mark.parametrize("branches", [2, 3])
def test_the_lead_branch_is_the_last_one(branches: int) -> None:
    model = randomise(tiny_model(branches)).eval()
    images = seeded_images(1, 3, 64, 64)
    with torch.no_grad():
        before = model(images)
        for parameter in model.head.aux.parameters():
            parameter.zero_()
        torch.testing.assert_close(model(images), before)
        for parameter in model.head.lead.parameters():
            parameter.zero_()
        assert not torch.allclose(model(images), before)


def test_evaluation_computes_the_lead_branch_alone() -> None:
    model, ran = tiny_model(2).eval(), []
    for branch in (*model.head.aux, model.head.lead):
        branch.register_forward_hook(lambda module, *_: ran.append(module is model.head.lead))
    images = seeded_images(1, 3, 32, 32)
    with torch.inference_mode():
        model(images)
        assert ran == [True]
        model(images, raw=True)
    assert sorted(ran) == [False, True, True]


def test_training_and_raw_outputs_agree_where_statistics_do_not_matter() -> None:
    model = tiny_model(2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    images = seeded_images(1, 3, 64, 64)
    trained = model(images)
    _, raw = model.eval()(images, raw=True)
    for ours, theirs in zip([*trained["main"], *trained["aux"][0]], [*raw["main"], *raw["aux"][0]], strict=True):
        torch.testing.assert_close(ours, theirs)


def test_double_reaches_the_decoding() -> None:
    model = randomise(tiny_model()).double().eval()
    images = seeded_images(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        precise = model(images)
        assert precise.dtype is torch.float64
        assert precise.double().sub(model.float()(images.float())).abs().max() < 1e-3
        with torch.no_grad():
            assert model.double().train()(images)["main"][0].dtype is torch.float64


def test_half_precision_is_decoded_in_float32() -> None:
    model = randomise(tiny_model()).bfloat16().eval()
    with torch.no_grad():
        assert model(seeded_images(1, 3, 64, 64).bfloat16()).dtype is torch.float32


def test_large_images_keep_their_coordinates_under_autocast() -> None:
    model = tiny_model().eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        prediction = model(seeded_images(1, 3, 64, 1024))
    with torch.no_grad():
        precise = model(seeded_images(1, 3, 64, 1024))
    assert prediction.dtype is torch.float32
    assert prediction.sub(precise).abs()[:, :2].max() < 1, "bfloat16 would be off by 4 pixels at 1000"


def test_deepcopy_after_a_forward() -> None:
    model = tiny_model()
    model(seeded_images(1, 3, 64, 64))
    twin = copy.deepcopy(model)
    images = seeded_images(1, 3, 64, 64, seed=1)
    with torch.no_grad():
        torch.testing.assert_close(twin.eval()(images), model.eval()(images))


# --- per-model settings


def test_activation_belongs_to_one_network() -> None:
    first = tiny_model()
    second = Model(tiny_config() | {"activation": "ReLU"})
    third = tiny_model()
    kinds = [
        {type(module.act) for module in model.modules() if isinstance(module, Conv)} for model in (first, second, third)
    ]
    assert kinds == [{nn.SiLU}, {nn.ReLU}, {nn.SiLU}]


def test_activation_leaves_unactivated_units_alone() -> None:
    model = Model(
        tiny_config() | {"backbone": [*tiny_config()["backbone"], [-1, 1, "RepNCSP", [8]]], "activation": "Mish"}
    )
    unit = model.model[5].m[0].cv1
    assert isinstance(unit.act, nn.Mish)
    assert isinstance(unit.conv1.act, nn.Identity)


def test_depth_multiple_acts_on_the_repeats_of_a_row() -> None:
    config = tiny_config()
    config["backbone"].append([-1, 4, "Conv", [8, 3]])
    for depth, count in ((1.0, 4), (0.5, 2), (0.33, 1), (2.0, 8)):
        model = Model(config | {"depth_multiple": depth})
        assert model.rows[5].repeats == count
        added = model.model[5]
        assert count == (1 if isinstance(added, Conv) else len(added))
    assert Model(config).model[5][1].conv.in_channels == 8


def test_repeated_rows_follow_their_own_widths() -> None:
    model = Model(tiny_config() | {"backbone": [*tiny_config()["backbone"], [-1, 2, "Conv", [24, 3]]]})
    assert [unit.conv.in_channels for unit in model.model[5]] == [8, 24]


def test_width_multiple_acts_on_convolutions() -> None:
    model = Model(tiny_config(width=64) | {"width_multiple": 0.25})
    assert [row.out_channels for row in model.rows[:5]] == [16] * 5


def test_anchors_and_inplace_are_inert() -> None:
    assert shapes(Model(tiny_config() | {"anchors": 3, "inplace": True})) == shapes(Model(tiny_config()))


# --- deploying


def deployed_pair(name: str) -> tuple[Model, torch.Tensor]:
    torch.manual_seed(0)
    return randomise(Model(name)).double().eval(), seeded_images(1, 3, 64, 96, dtype=torch.float64)


@pytest.mark.parametrize("name", ["gelan-t", "yolov9-t", "yolov9-t-FocalModulationBlock"])
def test_deployed_network_computes_the_same(name: str) -> None:
    model, images = deployed_pair(name)
    with torch.inference_mode():
        expected = model(images)
        for fold in (True, False):
            deployed = model.deploy(fold=fold)
            assert not deployed.training
            assert deployed(images).sub(expected).abs().max() < 1e-10 * expected.abs().max()
            assert (deployed.stride, deployed.nc, deployed.names) == (model.stride, model.nc, model.names)
        single = model.float().deploy()(images.float())
    assert single.dtype is torch.float32
    assert single.sub(expected).abs().max() < 1e-5 * expected.abs().max()
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules()), "the network itself is left alone"


def test_folding_leaves_no_normalisation_and_no_parallel_branch() -> None:
    deployed = meta_deployed("yolov9-t")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in deployed.modules())
    assert not any("conv1" in key or "aux" in key for key in deployed.state_dict())


def test_folding_twice_is_folding_once() -> None:
    once = randomise(tiny_model()).eval().deploy()
    twice = once.deploy()
    assert shapes(once) == shapes(twice)
    images = seeded_images(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(twice(images), once(images))


@pytest.mark.parametrize(
    "name", few(["yolov9-c", "yolov9-e", "yolov9-t-FocalModulationBlock"], "yolov9-c", "yolov9-t-FocalModulationBlock")
)
def test_deployed_config_builds_the_deployed_network(name: str) -> None:
    deployed = meta_pruned(name)
    with torch.device("meta"):
        rebuilt = Model(deployed.config)
    assert shapes(rebuilt) == shapes(deployed)
    assert [row.sources for row in rebuilt.rows] == [row.sources for row in deployed.rows]


def test_deployed_config_of_a_scaled_network() -> None:
    config = tiny_config(width=64) | {"scales": {"n": [0.5, 0.25, 32]}, "scale": "n"}
    config["backbone"].append([-1, 4, "Conv", [64, 3]])
    deployed = Model(config).deploy(fold=False)
    assert shapes(Model(deployed.config)) == shapes(deployed)
    assert (deployed.config["scales"], deployed.config["scale"]) == ({"n": [1.0, 0.25, 32]}, "n"), (
        "repeats are written out"
    )
    plain = Model(tiny_config() | {"depth_multiple": 0.5, "width_multiple": 2.0}).deploy(fold=False)
    assert (plain.config["depth_multiple"], plain.config["width_multiple"]) == (1.0, 2.0)


@pytest.mark.parametrize("branches", HEADS)
def test_folded_config_builds_the_folded_network(branches: int) -> None:
    model = randomise(tiny_model(branches)).eval()
    deployed = model.deploy()
    assert deployed.config["folded"] is True
    assert "folded" not in model.deploy(fold=False).config
    rebuilt = Model(deployed.config, nc=3).eval()
    rebuilt.load_state_dict(deployed.state_dict())
    images = seeded_images(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(rebuilt(images), deployed(images))
    assert rebuilt.deploy().config == deployed.config


@pytest.mark.parametrize(("trained", "single"), few([("yolov9-c", "gelan-c"), ("yolov9-e", "gelan-e")], "yolov9-c"))
def test_deployed_yolov9_has_the_rows_of_gelan(trained: str, single: str) -> None:
    def plain(model: Model) -> list[list[Any]]:
        return [[row.numbered_from(), row.repeats, row.name, row.arguments] for row in model.rows]

    assert plain(meta_pruned(trained)) == plain(meta_pruned(single))
    assert shapes(meta_deployed(trained)) == shapes(meta_deployed(single))


def test_deploying_drops_silence_and_auxiliary_rows() -> None:
    assert meta_model("yolov9-c").rows[0].name == "Silence"
    deployed = meta_deployed("yolov9-c")
    assert [row.name for row in deployed.rows[:2]] == ["Conv", "Conv"]
    assert "Silence" not in {row.name for row in deployed.rows}
    assert deployed.rows[-1].name == "DDetect"
    assert len(deployed.rows) == len(meta_model("gelan-c").rows) == 23
    assert meta_deployed("yolov9-e").rows[0].name == "Silence", "both of its backbones read the image through it"


def test_rows_of_the_lead_branch() -> None:
    model = Model(tiny_config(2) | {"head": [[2, 1, "Conv", [8]], [[5, 3, 4, 2, 3, 4], 1, "DualDDetect", ["nc"]]]})
    assert needed_rows(model.rows, model.head) == [0, 1, 2, 3, 4, 6]
    ran = [row.index for row, _, _ in model.eval().run_rows(seeded_images(1, 3, 32, 32), lead_only=True)]
    assert ran == [0, 1, 2, 3, 4, 6]


def test_rows_forget_what_nobody_needs() -> None:
    model = tiny_model().eval()
    alive = [
        row.index
        for row, given, output in model.run_rows(seeded_images(1, 3, 32, 32))
        if isinstance(output, torch.Tensor)
    ]
    assert alive == [0, 1, 2, 3, 4]
    assert model._last_use[0] == 1
    assert model._last_use[2] == 5


def test_trace_gives_every_shape_and_changes_nothing() -> None:
    model = tiny_model()
    before = copy.deepcopy(model.state_dict())
    shown = model.trace(64)
    assert shown[:5] == [(1, 8, 32, 32), (1, 8, 16, 16), (1, 8, 8, 8), (1, 8, 4, 4), (1, 8, 2, 2)]
    assert shown[5] == {"main": [(1, 67, 8, 8), (1, 67, 4, 4), (1, 67, 2, 2)], "aux": []}
    assert model.training
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())


def test_a_trace_does_not_calculate_a_normalisation(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = tiny_model().trace(64)

    def calculated(*_: Any) -> None:
        raise AssertionError("a batch normalisation was calculated")

    monkeypatch.setattr(torch, "batch_norm", calculated)
    assert tiny_model().trace(64) == expected
    with pytest.raises(AssertionError, match="calculated"):
        tiny_model().trace(64, 2, training=True)


@pytest.mark.parametrize(
    ("norm", "facts"),
    [
        (nn.BatchNorm2d(7), ["8", "7"]),
        (nn.BatchNorm1d(8), ["4D"]),
        (nn.BatchNorm2d(8, eps=-1.0), ["eps", "-1.0"]),
        (nn.LayerNorm(8), ["[8]", "[1, 8, 64, 64]"]),
    ],
    ids=["width", "dimensions", "eps", "LayerNorm"],
)
def test_a_normalisation_that_does_not_fit_names_its_row(norm: nn.Module, facts: list[str]) -> None:
    class Wrong(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.norm = norm

        def forward(self, maps: torch.Tensor) -> torch.Tensor:
            return self.norm(maps)

    config = tiny_config()
    config["backbone"].insert(2, [-1, 1, "Wrong", []])
    with temporary_layers():
        layer(same)(Wrong)
        with pytest.raises(ModelConfigError) as caught:
            Model(config)
    assert_says(caught.value, "layer 2", "Wrong", *facts)


def test_trace_restores_the_mode_after_an_error() -> None:
    model = tiny_model()
    model.model[1].conv = nn.Conv2d(5, 8, 3)
    for training in (True, False):
        model.train(training)
        with pytest.raises(ModelConfigError) as caught:
            model.trace(64)
        assert_says(caught.value, "backbone[1] (layer 1)", "layer 0 (Conv) gives 8 x 32 x 32")
        assert model.training is training


# --- layers of others


def test_a_registered_layer_is_usable_in_a_row() -> None:
    class Gate(nn.Module):
        def __init__(self, channels: int, reduction: int = 4) -> None:
            super().__init__()
            self.weigh = nn.Sequential(
                nn.AdaptiveAvgPool2d(1),
                nn.Conv2d(channels, channels // reduction, 1),
                nn.Conv2d(channels // reduction, channels, 1),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.weigh(x).sigmoid()

    config = tiny_config()
    config["backbone"][4] = [-1, 1, "Gate", [2]]
    config["head"] = [[[2, 3], 1, "DDetect", ["nc"]]]
    with temporary_layers():
        layer(same)(Gate)
        model = Model(config)
    assert model.model[4].weigh[1].out_channels == 4
    assert model.stride == [8, 16]


PLUG_IN = """
from torch import Tensor, nn
from models.registry import layer, same

@layer(same)
class DroppedIn(nn.Module):
    def __init__(self, channels: int, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x
"""
CHECK = """
import sys
from models.yolo import Model
assert Model("mine.yaml").model[5].gain == 0.5
print(sorted({"cv2", "matplotlib", "pandas", "pycocotools"} & set(sys.modules)))
"""


def test_a_file_dropped_into_attention_is_a_layer_and_building_needs_only_torch_and_yaml(tmp_path: Path) -> None:
    for source in (*REPOSITORY.glob("models/**/*.py"), *REPOSITORY.glob("utils/**/*.py")):
        target = tmp_path / source.relative_to(REPOSITORY)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(source.read_text())
    (tmp_path / "models" / "attention" / "dropped_in.py").write_text(PLUG_IN)
    rows = "".join(f"  - [-1, 1, {row}]\n" for row in [*["Conv, [8, 3, 2]"] * 5, "DroppedIn, [0.5]"])
    (tmp_path / "mine.yaml").write_text(f"nc: 2\nbackbone:\n{rows}head:\n  - [[2, 3, 5], 1, DDetect, [nc]]\n")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", CHECK], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


def test_load_gives_a_predictor(tmp_path: Path) -> None:
    from utils.weights.own_file import network_entry, save_checkpoint

    model = tiny_model()
    save_checkpoint(tmp_path / "best.pt", {"network": network_entry(model), "model": model.state_dict()})
    assert callable(load(tmp_path / "best.pt"))


# --- sizes of images


@pytest.mark.parametrize(
    ("config", "stride", "multiple"),
    [
        (tiny_config(), [8, 16, 32], 32),
        (deep_config(16), [8, 16], 16),
        (deep_config(32), [8, 16], 32),
        (deep_config(64), [8, 16], 64),
        (deep_config(128), [8, 16], 128),
        (deep_config(256), [8, 16], 256),
    ],
)
def test_sides_are_multiples_of_what_the_network_needs(config: dict, stride: list[int], multiple: int) -> None:
    model = Model(config)
    assert (model.stride, model.multiple) == (stride, multiple)
    for size_hw in ((multiple, multiple), (3 * multiple, multiple)):
        model.eval()(torch.rand(1, 3, *size_hw))
    assert model.deploy().multiple == multiple


def test_a_map_that_is_one_cell_whatever_the_image_needs_no_larger_images() -> None:
    config = tiny_config()
    config["backbone"][3] = [-1, 1, "GatherExcite", []]
    config["backbone"].insert(3, [-1, 1, "Conv", [8, 3, 2]])
    config["head"][0][0] = [2, 4, 5]
    assert Model(config).multiple == 32


def test_a_branch_that_is_dropped_asks_for_nothing_after_deploying() -> None:
    config = deep_config(64)
    config["head"][-1] = [[2, 7, 2, 3], 1, "DualDDetect", ["nc"]]
    model = Model(config)
    assert (model.multiple, model.deploy().multiple) == (64, 16)
