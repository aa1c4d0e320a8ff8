"""Width and depth that reach a network's inside: hidden widths, inner repeats and the lists of CBLinear."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from models import command
from models.config import reading as config_file
from models.parameters import count_parameters
from models.registry import Scale, find_layer, with_inner_repeats
from models.yolo import Model
from tests.few import few
from tests.networks import meta_model, randomise, seeded_images, tiny_config
from tests.saying import assert_says
from utils.checkpoint.importing import load_model
from utils.errors import ModelConfigError
from utils.losses.detection import build_loss
from utils.weights.own_file import network_entry, save_checkpoint
from utils.wording import say_once

SHIPPED = sorted(
    path.stem
    for folder in config_file.CONFIG_FOLDERS
    for path in (config_file.REPOSITORY / folder).glob("*.yaml")
    if path.stem.startswith(("yolov9", "gelan")) and path.stem.count("-") == 1
)
"""The families' networks without attention, which has no widths of its own."""
MULTIPLES = [(width, depth) for width in (0.25, 0.5, 1.5) for depth in (0.33, 1.0, 2.0)]


def shapes(model: Model) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def on_meta(*arguments: Any, **keywords: Any) -> Model:
    with torch.device("meta"):
        return Model(*arguments, **keywords)


@pytest.fixture(autouse=True)
def say_again() -> None:
    """Let each test hear what an earlier one was told."""
    say_once.cache_clear()


def test_shipped_networks_are_found() -> None:
    assert set(SHIPPED) >= {f"{family}-{size}" for family in ("yolov9", "gelan") for size in "tsmce"}


# --- the rules


def test_a_blocks_own_widths_and_repeats() -> None:
    rule = find_layer("RepNCSPELAN4").rule
    arguments: dict[str, Any] = {"out_channels": 256, "hidden_channels": 128, "branch_channels": 40, "repeats": 3}
    assert rule.apply([64], arguments, Scale(width=0.25, depth=0.67, full=True)) == 64
    assert arguments == {
        "in_channels": 64,
        "out_channels": 64,
        "hidden_channels": 32,
        "branch_channels": 16,
        "repeats": 2,
    }
    arguments = {"out_channels": 256, "hidden_channels": 128, "branch_channels": 40}
    rule.apply([64], arguments, Scale(depth=2.0, full=True))
    assert arguments["repeats"] == 2
    arguments = {"out_channels": [64, 128, 512]}
    assert find_layer("CBLinear").rule.apply([16], arguments, Scale(width=0.3, max_channels=256, full=True)) == [
        24,
        40,
        80,
    ]
    assert arguments == {"in_channels": 16, "out_channels": [24, 40, 80]}


@pytest.mark.parametrize(
    ("scale", "count", "expected"),
    [
        (Scale(depth=2.0, full=True), 1, 2),
        (Scale(depth=0.33, full=True), 1, 1),
        (Scale(depth=0.33, full=True), 3, 1),
        (Scale(depth=0.5, full=True), 5, 2),
        (Scale(depth=2.0, full=True), 0, 0),
        (Scale(depth=2.0), 3, 3),
    ],
)
def test_inner_repeats(scale: Scale, count: int, expected: int) -> None:
    assert scale.inner_repeats(count) == expected


def test_inner_repeats_are_written_where_the_row_has_them() -> None:
    entry, twice = find_layer("RepNCSPELAN4"), Scale(depth=2.0, full=True)
    assert with_inner_repeats(entry, [8, 8, 4, 3], twice) == [8, 8, 4, 6]
    assert with_inner_repeats(entry, [8, 8, 4], twice) == [8, 8, 4, {"repeats": 2}]
    assert with_inner_repeats(entry, [8, 8, {"branch_channels": 4, "repeats": 3}], twice) == [
        8,
        8,
        {"branch_channels": 4, "repeats": 6},
    ]
    assert with_inner_repeats(entry, [8, 8, 4], Scale(depth=0.5, full=True)) == [8, 8, 4]
    assert with_inner_repeats(entry, [8, 8, 4, 3], Scale(depth=2.0)) == [8, 8, 4, 3]
    assert with_inner_repeats(find_layer("Conv"), [8, 3], twice) == [8, 3]


def test_a_width_of_one_leaves_hidden_widths_as_written() -> None:
    assert [Scale(full=True).hidden_channels(count) for count in (90, 64)] == [90, 64]
    assert [Scale(width=0.5, full=True).hidden_channels(count) for count in (90, 64)] == [48, 32]
    assert Scale(full=True, max_channels=80).hidden_channels(90) == 80


# --- networks


@pytest.mark.parametrize(
    "name", few([*SHIPPED, "gelan-c-dseg", "yolov9-m-FocalModulationBlock"], "gelan-t", "yolov9-c", "gelan-c-dseg")
)
def test_at_one_nothing_changes(name: str) -> None:
    assert shapes(on_meta(name, width=1.0, depth=1.0)) == shapes(meta_model(name))


def test_half_a_yolov9c_is_the_one_written_by_hand() -> None:
    config = copy.deepcopy(meta_model("yolov9-c").config)
    widths = {"Conv": 1, "ADown": 1, "CBLinear": 1, "SPPELAN": 2, "RepNCSPELAN4": 3}
    for row in config["backbone"] + config["head"]:
        for position in range(widths.get(row[2], 0)):
            value = row[3][position]
            row[3][position] = [count // 2 for count in value] if isinstance(value, list) else value // 2
    half = on_meta("yolov9-c", width=0.5, depth=0.33)
    assert shapes(half) == shapes(on_meta(config))
    assert count_parameters(half) == 13_073_472
    assert count_parameters(half.deploy()) == 6_552_000
    assert [row.out_channels for row in half.rows[23:26]] == [[128], [128, 256], [128, 256, 256]]


@pytest.mark.parametrize(
    ("name", "width", "depth", "parameters"),
    few(
        [
            ("yolov9-e", 0.5, 0.33, 15_964_768),
            ("yolov9-e", 0.5, 1.0, 17_860_832),
            ("yolov9-c", 0.5, 2.0, 14_306_112),
            ("gelan-t", 1.5, 2.0, 5_587_432),
            ("gelan-c-dseg", 0.25, 1.0, 2_523_408),
        ],
        *("gelan-t", "yolov9-c"),
    ),
)
def test_counted_networks(name: str, width: float, depth: float, parameters: int) -> None:
    assert count_parameters(on_meta(name, width=width, depth=depth)) == parameters


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_every_multiple_builds_and_deploys(name: str) -> None:
    for width, depth in MULTIPLES:
        assert on_meta(name, width=width, depth=depth).stride == [8, 16, 32]
    deployed = on_meta(name, width=0.5, depth=2.0).deploy(fold=False)
    assert shapes(on_meta(deployed.config)) == shapes(deployed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "width", "depth"),
    [("yolov9-c", 0.25, 2.0), ("yolov9-e", 0.25, 0.33), ("gelan-t", 1.5, 2.0), ("gelan-c-dseg", 0.25, 0.33)],
)
def test_scaled_network_trains(name: str, width: float, depth: float) -> None:
    torch.manual_seed(0)
    model = Model(name, nc=3, width=width, depth=depth).train()
    images = seeded_images(2, 3, 64, 64)
    masks = torch.zeros(2, 16, 16, dtype=torch.long)
    masks[:, 4:12, 4:12] = 1
    batch = {
        "images": images,
        "targets": torch.tensor([[0, 1, 0.5, 0.5, 0.5, 0.5], [1, 2, 0.5, 0.5, 0.5, 0.5]]),
        "masks": masks,
    }
    total, _ = build_loss(model)(model(images), batch)
    total.backward()
    for parameter_name, parameter in model.named_parameters():
        assert not parameter.requires_grad or (parameter.grad is not None and parameter.grad.isfinite().all()), (
            parameter_name
        )


# --- round trips


def small_full(depth: float = 2.0, width: float = 0.5, **keys: Any) -> dict[str, Any]:
    """A dual network whose rows say inner repeats in each way that a row can."""
    return {
        "nc": 3,
        "scaling": "full",
        "depth_multiple": depth,
        "width_multiple": width,
        "backbone": [
            [-1, 1, "Silence", []],
            [-1, 1, "Conv", [16, 3, 2]],
            [-1, 1, "ELAN1", [32, 32, 16]],
            [-1, 1, "AConv", [32]],
            [-1, 2, "RepNCSPELAN4", [32, 32, 16, 2]],
            [-1, 1, "ADown", [32]],
            [-1, 1, "RepNCSPELAN4", [32, 32, 16], "p3"],
            [-1, 1, "AConv", [48]],
            [-1, 1, "RepNCSPELAN4", [48, 32, {"branch_channels": 16, "repeats": 2}], "p4"],
            [-1, 1, "AConv", [48]],
            [-1, 1, "SPPELAN", [48, 32], "p5"],
        ],
        "head": [
            ["p4", 1, "CBLinear", [[16, 48]]],
            [0, 1, "Conv", [32, 3, 2]],
            [-1, 1, "Conv", [48, 3, 8]],
            [[11, -1], 1, "CBFuse", [[1]]],
            [-1, 1, "RepNCSP", [48, 2], "a4"],
            [["p3", "a4", "p5", "p3", "p4", "p5"], 1, "DualDDetect", ["nc"]],
        ],
    } | keys


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize(("width", "depth"), few([(0.5, 2.0), (1.5, 0.33), (1.0, 1.0)], (0.5, 2.0), (1.5, 0.33)))
def test_deployed_configuration_rebuilds_the_network(width: float, depth: float, fold: bool) -> None:
    torch.manual_seed(0)
    model = randomise(Model(small_full(depth, width))).double().eval()
    images = seeded_images(1, 3, 64, 64, dtype=torch.float64)
    deployed = model.deploy(fold=fold)
    assert deployed.config["depth_multiple"] == 1.0
    rebuilt = Model(deployed.config).double().eval()
    rebuilt.load_state_dict(deployed.state_dict())
    with torch.inference_mode():
        assert torch.equal(rebuilt(images), deployed(images))
        assert (deployed(images) - model(images)).abs().max() < 1e-10 * model(images).abs().max()


def test_deployed_rows_say_their_repeats() -> None:
    deployed = on_meta(small_full()).deploy(fold=False)
    assert [(row.name, row.repeats, row.arguments) for row in deployed.rows if row.name == "RepNCSPELAN4"] == [
        ("RepNCSPELAN4", 4, [32, 32, 16, 4]),
        ("RepNCSPELAN4", 1, [32, 32, 16, {"repeats": 2}]),
        ("RepNCSPELAN4", 1, [48, 32, {"branch_channels": 16, "repeats": 4}]),
    ]


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Model("gelan-t", nc=3, width=0.25, depth=0.33).eval()
    save_checkpoint(tmp_path / "best.pt", {"model": model.state_dict(), "network": network_entry(model)})
    loaded = load_model(tmp_path / "best.pt").eval()
    images = seeded_images(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(loaded(images), model(images))
    again = yaml.safe_load(yaml.safe_dump(model.config))
    assert shapes(on_meta(again)) == shapes(model)


# --- what is said


def test_said_what_was_turned_on(capsys: pytest.CaptureFixture[str]) -> None:
    model = on_meta("yolov9-c", width=0.5, depth=0.33)
    assert {key: model.config[key] for key in ("scaling", "width_multiple", "depth_multiple")} == {
        "scaling": "full", "width_multiple": 0.5, "depth_multiple": 0.33,
    }  # fmt: skip
    turned_on, unchanged = capsys.readouterr().err.splitlines()
    assert_says(turned_on, "yolov9-c", "width 0.5", "depth 0.33", "scaling: full", "CBLinear")
    assert_says(unchanged, "yolov9-c", "depth 0.33")
    on_meta(tiny_config() | {"scaling": "full"}, width=0.5)
    assert capsys.readouterr().err == ""


def test_family_with_scales_keeps_its_letter(capsys: pytest.CaptureFixture[str]) -> None:
    model = on_meta("yolo11n", width=0.375)
    assert (model.config["scales"], model.config["scale"]) == ({"n": [0.5, 0.375, 1024]}, "n")
    assert [row.out_channels for row in model.rows[:2]] == [24, 48]
    assert "scaling" not in model.config
    assert_says(
        capsys.readouterr().err.splitlines()[-1], "yolo11n", "width 0.375", "scale n", "width 0.25", "depth 0.5"
    )
    with pytest.raises(ModelConfigError) as caught:
        on_meta("yolo11", width=0.5)
    assert_says(caught.value, "yolo11", "scale None", "n, s, m, l, x", "--scale")


@pytest.mark.parametrize(
    ("config", "keywords", "facts"),
    [
        (tiny_config(), {"width": 0}, ["--width 0", "positive number", 0.5]),
        (tiny_config(), {"depth": float("nan")}, ["--depth nan", "positive number"]),
        (tiny_config() | {"scaling": "ful"}, {}, ["network: scaling", "'ful'", "full"]),
        (small_full() | {"scaling": None}, {}, ["ELAN1", "width_multiple 0.5", "hidden widths", "scaling: full"]),
        (small_full(backbone=[[-1, "one", "Conv", [8]]]), {"depth": 2.0}, ["repeats is 'one'", "positive integer"]),
        (
            tiny_config() | {"backbone": [*tiny_config()["backbone"], [-1, 1, "RepNCSPELAN4", [8, 8, 8, "x"]]]},
            {"depth": 2.0},
            ["argument 'repeats'", "'x'", "int"],
        ),
    ],
)
def test_mistakes(config: dict[str, Any], keywords: dict[str, Any], facts: list[object]) -> None:
    with pytest.raises(ModelConfigError) as caught:
        on_meta(config, **keywords)
    assert_says(caught.value, *facts)


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["gelan-t", "--width", "0.25", "--depth", "0.33"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-2].split()[:4] == ["as", "trained", "715,176", "parameters"]
    assert_says(captured.err, "gelan-t", "width 0.25", "depth 0.33", "scaling: full")
    assert command.main(["gelan-t", "--width", "-1"]) == 2
    assert_says(capsys.readouterr().err.splitlines()[-1], "error: --width -1", "positive number")
