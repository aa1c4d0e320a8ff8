"""What network a run starts from, by what it is given."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from models.yolo import Model
from tests.foreign_files import foreign_tensors, write_yolov9_checkpoint
from tests.networks import randomise, tiny_config, tiny_model
from tests.saying import assert_says
from utils.errors import CheckpointError, SettingsError
from utils.training.options import TrainOptions
from utils.training.starting_network import starting_network
from utils.weights.own_file import network_entry, save_checkpoint

NAMES = ["a", "b", "c"]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A network in every form of weights, and its yaml."""
    model = randomise(tiny_model(2)).eval()
    model.names = NAMES
    (tmp_path / "net.yaml").write_text(yaml.safe_dump(tiny_config(2)))
    save_checkpoint(tmp_path / "ours.pt", {"network": network_entry(model), "model": model.state_dict()})
    torch.save(foreign_tensors(model), tmp_path / "plain.pt")
    save_file(
        {name: value.contiguous() for name, value in foreign_tensors(model).items()}, tmp_path / "theirs.safetensors"
    )
    write_yolov9_checkpoint(tmp_path / "theirs.pt", model)
    return tmp_path


def started(**settings: Any) -> tuple[Model, Any]:
    return starting_network(
        TrainOptions(**{name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}),
        NAMES,
        None,
    )


@pytest.mark.parametrize("name", ["ours.pt", "plain.pt", "theirs.safetensors", "theirs.pt"])
@pytest.mark.parametrize("with_cfg", [True, False])
def test_weights_of_every_kind(files: Path, name: str, with_cfg: bool) -> None:
    if not with_cfg and name in ("plain.pt", "theirs.safetensors"):
        with pytest.raises(SettingsError) as caught:
            started(weights=files / name)
        assert_says(caught.value, "--weights", name, "--cfg")
        return
    model, report = started(weights=files / name, **({"cfg": files / "net.yaml"} if with_cfg else {}))
    assert (report.coverage, model.names) == (1.0, NAMES)
    expected = randomise(tiny_model(2)).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


def test_a_yaml_alone(files: Path) -> None:
    model, report = started(cfg=files / "net.yaml")
    assert (report, model.nc) == (None, 3)


def test_too_little_fits(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "wide.yaml").write_text(yaml.safe_dump(tiny_config(2, width=16)))
    with pytest.raises(CheckpointError) as caught:
        started(cfg=files / "wide.yaml", weights=files / "ours.pt")
    assert_says(caught.value, "ours.pt", "103 of 200", "at least 50", "--allow-partial", "--min-transfer")
    _, report = started(cfg=files / "wide.yaml", weights=files / "ours.pt", allow_partial=True)
    assert report.coverage < 0.5
    _, again = started(cfg=files / "wide.yaml", weights=files / "ours.pt", min_transfer=0.0)
    assert again.coverage == report.coverage
    assert "different shape" in capsys.readouterr().out


def test_the_width_of_the_class_towers(files: Path) -> None:
    config = tiny_config(nc=40)
    (files / "forty.yaml").write_text(yaml.safe_dump(config))
    forty = Model(config)
    save_checkpoint(files / "forty.pt", {"network": network_entry(forty), "model": forty.state_dict()})
    kept, report = started(cfg=files / "forty.yaml", weights=files / "forty.pt")
    ruled, less = started(cfg=files / "forty.yaml", weights=files / "forty.pt", head_hidden="rule", allow_partial=True)
    assert (kept.head.lead.cls[0][0].conv.out_channels, ruled.head.lead.cls[0][0].conv.out_channels) == (80, 8)
    assert report.coverage > less.coverage


@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        ({}, ["--cfg", "gelan-t.yaml", "--weights"]),
        (
            {"weights": "ours.pt", "scale": "n"},
            ["--scale n", "ours.pt", "--cfg"],
        ),
        (
            {"weights": "folded.pt"},
            ["folded.pt", "folded network", "unfolded"],
        ),
    ],
)
def test_refused(files: Path, settings: dict[str, str], facts: list[str]) -> None:
    folded = tiny_model().eval().deploy()
    save_checkpoint(files / "folded.pt", {"network": network_entry(folded), "model": folded.state_dict()})
    with pytest.raises(SettingsError) as caught:
        started(**{name: files / value if name == "weights" else value for name, value in settings.items()})
    assert_says(caught.value, *facts)


def test_other_classes_than_the_run_that_goes_on() -> None:
    checkpoint = {"network": network_entry(tiny_model(nc=2))}
    with pytest.raises(CheckpointError) as caught:
        starting_network(TrainOptions(resume="last.pt", data="d.yaml"), NAMES, checkpoint)
    assert_says(caught.value, "last.pt", "2 classes", "d.yaml has 3")


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("given", ["cfg", "weights", "weights and cfg"])
def test_networks_for_other_images_than_rgb_are_refused(
    tmp_path: Path, channels: int, given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config() | {"ch": channels}
    (tmp_path / "net.yaml").write_text(yaml.safe_dump(config))
    model = Model(config)
    save_checkpoint(tmp_path / "w.pt", {"network": network_entry(model), "model": model.state_dict()})
    files = {"cfg": tmp_path / "net.yaml", "weights": tmp_path / "w.pt"}
    with pytest.raises(SettingsError) as caught:
        started(**{name: path for name, path in files.items() if name in given})
    assert_says(caught.value, files["cfg" if "cfg" in given else "weights"], f"{channels} channels", 3)
    assert capsys.readouterr().out == ""


def test_weights_for_other_images_fill_all_but_the_first_layer(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Model(tiny_config(2) | {"ch": 4})
    save_checkpoint(tmp_path / "4.pt", {"network": network_entry(model), "model": model.state_dict()})
    _, report = started(cfg=files / "net.yaml", weights=tmp_path / "4.pt")
    assert 0.9 < report.coverage < 1
    assert_says(capsys.readouterr().out, "4.pt", "1 in layer 0", "inputs 3 here, 4 in the file")
