"""A user's own layer through every command: train, resume, val, detect, export, the layer table."""

from pathlib import Path

import pytest
import yaml

from tests.cli.command_line import SHORT, CommandLine
from tests.networks import tiny_config
from tests.saying import assert_says
from utils.weights.own_file import read_checkpoint

GATE = """\
from torch import Tensor, nn
from models.registry import layer, same


@layer(same)
class CommandGate(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "my_layers.py"
    path.write_text(GATE)
    return path


@pytest.fixture
def gated(tmp_path: Path) -> Path:
    config = tiny_config()
    config["backbone"].insert(3, [-1, 1, "CommandGate", []])
    config["head"][0][0] = [2, 4, 5]
    path = tmp_path / "gated.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.slow
def test_every_command_takes_a_plugin(cli: CommandLine, data: Path, gated: Path, plugin: Path, tmp_path: Path) -> None:
    flags, run = ("--plugin", plugin), tmp_path / "runs" / "exp"
    shared = ("--data", data, *SHORT, "--noplots", "--project", tmp_path / "runs")
    cli("train.py", "--cfg", gated, *shared).refused("gated.yaml", "'CommandGate'")
    out = cli("train.py", "--cfg", gated, *shared, "--workers", 1, *flags).done()
    assert_says(out, plugin, "sha256")
    assert yaml.safe_load((run / "args.yaml").read_text())["plugin"] == [str(plugin)]
    assert yaml.safe_load((run / "model.yaml").read_text())["plugins"] == [str(plugin)]
    assert [path.read_text() for path in (run / "plugins").iterdir()] == [GATE]
    best, last = run / "weights" / "best.pt", run / "weights" / "last.pt"
    (recorded,) = read_checkpoint(best)["network"]["plugins"]
    assert (recorded["path"], recorded["layers"]) == (str(plugin), ["CommandGate"])

    needed = ("CommandGate", "plug-in", f"--plugin {plugin}")
    cli("train.py", "--resume", last, "--epochs", 2, "--noplots").refused("last.pt", *needed)
    out = cli("train.py", "--resume", last, "--epochs", 2, "--noplots", *flags).done()
    assert "differ" not in out

    weights = ("--weights", best, "--img", 64, "--device", "cpu")
    valued = (
        "val.py",
        *weights,
        "--amp",
        "off",
        "--data",
        data,
        "--workers",
        1,
        "--noplots",
        "--project",
        tmp_path / "val",
    )
    cli(*valued).refused("best.pt", *needed)
    assert_says(cli(*valued, *flags).done(), plugin, "sha256")
    image = data.parent / "images" / "val" / "val0.jpg"
    found = ("detect.py", *weights, "--amp", "off", "--source", image, "--project", tmp_path / "found")
    cli(*found).refused(*needed)
    cli(*found, *flags).done()
    made = ("export.py", *weights, "--include", "weights", "torchscript")
    cli(*made).refused(*needed)
    cli(*made, *flags).done()

    deployed = run / "weights" / "best-deploy.yaml"
    assert yaml.safe_load(deployed.read_text())["plugins"] == [str(plugin)]
    assert "CommandGate" in cli("-m", "models.yolo", deployed).done(), (
        "the yaml that this command names says which file to run"
    )
    assert "CommandGate" in cli("-m", "models.yolo", gated, *flags).done()
    out = cli(
        "detect.py",
        "--weights",
        run / "weights" / "best.torchscript",
        "--source",
        image,
        "--project",
        tmp_path / "found",
        *flags,
    ).done()
    assert_says(out, "loaded", "none of its layers")


def test_export_to_onnx(cli: CommandLine, data: Path, gated: Path, plugin: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    config = yaml.safe_load(gated.read_text()) | {"plugins": ["my_layers.py"]}
    gated.write_text(yaml.safe_dump(config))
    shared = ("--data", data, *SHORT, "--noplots", "--project", tmp_path / "runs")
    out = cli("train.py", "--cfg", gated, *shared, cwd=tmp_path.parent).done()
    assert_says(out, plugin, "sha256")
    best = tmp_path / "runs" / "exp" / "weights" / "best.pt"
    out = cli("export.py", "--weights", best, "--include", "onnx", "--dynamic", "--img", 64, "--plugin", plugin).done()
    assert (best.parent / "best.onnx").is_file(), out


def test_a_changed_plugin_is_another_run(
    cli: CommandLine, data: Path, gated: Path, plugin: Path, tmp_path: Path
) -> None:
    shared = ("--data", data, *SHORT, "--noplots", "--project", tmp_path / "runs", "--plugin", plugin)
    cli("train.py", "--cfg", gated, *shared).done()
    plugin.write_text(GATE + "\n# another formula\n")
    last = tmp_path / "runs" / "exp" / "weights" / "last.pt"
    resumed = ("train.py", "--resume", last, "--epochs", 2, "--noplots", "--plugin", plugin)
    done = cli(*resumed)
    assert_says(done.out, "CommandGate", "plug-in")
    (kept,) = (tmp_path / "runs" / "exp" / "plugins").iterdir()
    done.refused("changed since the run began", plugin, "CommandGate", f"plugins/{kept.name}", "--force")
    cli("train.py", "--resume", last, "--epochs", 2, "--noplots", "--plugin", kept).done()


def test_mistakes(cli: CommandLine, data: Path, gated: Path, plugin: Path, trained: Path) -> None:
    cli("-m", "models.yolo", gated, "--plugin", "none.py").refused("none.py", "no such file")
    plugin.write_text("x = 1\nfrom models.registry import lair\n")
    for command in (
        ("-m", "models.yolo", gated),
        ("train.py", "--cfg", gated),
        ("val.py", "--weights", trained / "weights" / "best.pt"),
        ("detect.py", "--weights", trained / "weights" / "best.pt", "--source", data.parent / "images" / "val"),
        ("export.py", "--weights", trained / "weights" / "best.pt"),
    ):
        cli(*command, "--plugin", plugin).refused(plugin, "line 2", "from models.registry import lair", "ImportError")
