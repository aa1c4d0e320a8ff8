"""Networks and losses against reference numbers: extracts kept here, and the whole files where they are present.

An extract of a network holds some of its outputs, and the digest of its sorted state-dict names and shapes. The names
that our network has under the originals' naming must give the same digest, so that their weights find their places.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from models.yolo import Model
from tests import check_golden
from tests.few import few
from tests.foreign_files import foreign_tensors
from tests.networks import meta_deployed, meta_pruned
from utils.checkpoint.importing import import_state_dict

GOLDEN = Path(__file__).parent / "golden"
NETWORKS = (
    *("gelan-t", "gelan-s", "gelan-c", "yolov9-t", "yolov9-s", "yolov9-c", "yolov9-cf", "gelan-c-seg"),
    *("yolov8n", "yolov8s", "yolov8n-seg", "yolo11n", "yolo11s", "yolo11m", "yolo11n-seg"),
)
QUICK = ("gelan-t", "yolov9-c", "yolov8n-seg", "yolo11n")
"""Networks of each family, single, dual and with masks, that every run looks at."""


def foreign_state_dict(name: str) -> list[list]:
    """Return names and shapes of a network's state dict as the original names them."""
    with torch.device("meta"):
        model = Model(f"{name}.yaml")
    return [[name, list(value.shape)] for name, value in foreign_tensors(model).items()]


EXTRACTS = sorted((GOLDEN / "networks").glob("*.json"))
MODULES = sorted((GOLDEN / "modules").glob("*.npz"))
SLOW_EXTRACTS = ("yolov9-cf", "gelan-c-seg")


def test_extracts_are_there() -> None:
    assert (len(EXTRACTS), len(MODULES)) == (7, 9)
    assert {*SLOW_EXTRACTS} <= {path.stem for path in EXTRACTS}


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.slow] * (path.stem in SLOW_EXTRACTS), id=path.stem) for path in EXTRACTS],
)
def test_network(path: Path, tmp_path: Path) -> None:
    golden = json.loads(path.read_text())
    entries = foreign_state_dict(golden["cfg"])
    lines = sorted(f"{key} {'x'.join(map(str, shape))}" for key, shape in entries)
    assert len(lines) == golden["state_dict_entries"]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == golden["state_dict_sha256"]
    whole = tmp_path / path.name
    whole.write_text(json.dumps(golden | {"state_dict": entries}))
    assert check_golden.check_network(whole) < check_golden.NETWORK_TOLERANCE


@pytest.mark.parametrize("name", few(NETWORKS, *QUICK))
def test_names_and_shapes_of_whole_network_files(shared: Path, name: str) -> None:
    golden = json.loads((shared / "golden" / "networks" / f"{name}.json").read_text())
    assert sorted(foreign_state_dict(name)) == sorted(golden["state_dict"])


@pytest.mark.parametrize("name", few(NETWORKS, *QUICK))
def test_deployed_names_and_shapes_build_again(name: str) -> None:
    """The deployed form of each reference network is rebuilt by its own configuration, folded and not."""
    for deployed in (meta_pruned(name), meta_deployed(name)):
        with torch.device("meta"):
            rebuilt = Model(deployed.config)
        assert {key: value.shape for key, value in rebuilt.state_dict().items()} == {
            key: value.shape for key, value in deployed.state_dict().items()
        }


def test_import_covers_every_parameter(tmp_path: Path) -> None:
    model = Model("yolo11n-seg", nc=80)
    report = import_state_dict(
        model,
        {
            key: torch.zeros(shape) if ".dfl." not in key else torch.arange(16.0).view(shape)
            for key, shape in foreign_state_dict("yolo11n-seg")
        },
    )
    assert (report.missing, report.unexpected, report.mismatched, report.coverage) == ([], [], [], 1.0)
    assert model.head.lead.prototypes.upsample.bias.eq(0).all()


def test_loss() -> None:
    assert check_golden.check_loss(GOLDEN / "loss" / "tal_detect.json") < 2e-6
    assert check_golden.check_loss(GOLDEN / "loss" / "tal_segment.json") < 2e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_whole_network_file(shared: Path, name: str) -> None:
    assert check_golden.check_network(shared / "golden" / "networks" / f"{name}.json") < check_golden.NETWORK_TOLERANCE


def test_whole_loss_file(shared: Path) -> None:
    paths = sorted((shared / "golden" / "loss").glob("*.json"))
    assert [path.stem for path in paths] == ["tal_detect", "tal_segment"]
    for path in paths:
        assert check_golden.check_loss(path) < check_golden.LOSS_TOLERANCE, path.name


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_module(path: Path) -> None:
    assert check_golden.check_module(path) < check_golden.MODULE_TOLERANCE


def test_whole_module_files(shared: Path) -> None:
    paths = sorted((shared / "golden" / "modules").glob("*.npz"))
    assert len(paths) >= 46
    for path in paths:
        assert check_golden.check_module(path) < check_golden.MODULE_TOLERANCE, path.name


def test_a_module_with_another_weight_is_seen(tmp_path: Path) -> None:
    with np.load(GOLDEN / "modules" / "focal_c6_l0_5x4.npz") as arrays:
        golden = {name: arrays[name] for name in arrays.files}
    golden["w/h.weight"] = golden["w/h.weight"] * 1.001
    np.savez(tmp_path / "wrong.npz", **golden)
    assert check_golden.check_module(tmp_path / "wrong.npz") > 1e-5


def test_a_wrong_number_is_seen(tmp_path: Path) -> None:
    golden = json.loads((GOLDEN / "loss" / "tal_detect.json").read_text())
    golden["dual"]["items"]["dfl"] *= 1.001
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(golden))
    assert check_golden.check_loss(path) == pytest.approx(1e-3, rel=0.01)


def test_command_counts_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = (GOLDEN / "loss" / "tal_detect.json").read_text()
    (tmp_path / "a.json").write_text(good)
    (tmp_path / "b.json").write_text("{}")
    monkeypatch.setattr("sys.argv", ["check_golden.py", "loss", str(tmp_path)])
    assert check_golden.main() == 0
    assert "1 PASS, 0 FAIL, 1 SKIP" in capsys.readouterr().out
    (tmp_path / "a.json").write_text(good.replace('"total": 884.76', '"total": 894.76'))
    assert check_golden.main() == 1
    assert "0 PASS, 1 FAIL, 1 SKIP" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["check_golden.py", "networks", str(tmp_path / "nothing")])
    assert check_golden.main() == 1, "nothing passed"
