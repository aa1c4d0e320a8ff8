"""Runs with losses by name: from either yaml, recorded, resumed to the same bits, refused in one line."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml

import train as command
from tests.networks import tiny_config, tiny_segment_config
from tests.saying import assert_says
from tests.utils.training.test_run import options_for, stop_after, workplace  # noqa: F401 a fixture
from utils import cli
from utils.checkpoint.importing import load_model
from utils.hyperparameters import load_hyperparameters
from utils.losses.settings import DEFAULTS
from utils.training.options import TrainOptions
from utils.training.run import train
from utils.weights.own_file import read_checkpoint, save_checkpoint

COMBINATIONS = {
    "atss": ({"box": "shape_iou(0.5)", "wrap": "inner(1.2)", "cls": "varifocal", "assigner": "atss"}, {}),
    "both": ({"box": "siou", "cls": "slide"}, {"box": "wiou", "wrap": ["focaler(0, 0.95)"], "assigner_iou": "ciou"}),
    "nwd": ({}, {"box": "nwd(20, 0.5)", "cls": "qfl", "assigner_iou": "giou"}),
}


def run_command(place: Path, project: Path, network: dict, hyp: dict | None, *flags: str) -> int:
    """`train.py` for one epoch, with these two `loss` mappings."""
    project.mkdir(parents=True, exist_ok=True)
    (project / "net.yaml").write_text(
        yaml.safe_dump(tiny_config(branches=2, nc=2) | ({"loss": network} if network else {}))
    )
    (project / "hyp.yaml").write_text(yaml.safe_dump({"warmup_epochs": 1.0} | ({"loss": hyp} if hyp else {})))
    arguments = [
        "--cfg",
        f"{project}/net.yaml",
        "--data",
        f"{place}/data.yaml",
        "--hyp",
        f"{project}/hyp.yaml",
        "--project",
        str(project),
    ]
    arguments += [
        "--epochs",
        "1",
        "--batch",
        "2",
        "--img",
        "64",
        "--workers",
        "0",
        "--device",
        "cpu",
        "--amp",
        "off",
        "--noplots",
        *flags,
    ]
    return cli.run(lambda: command.train(command.parse_options(arguments)))


@pytest.mark.parametrize("name", COMBINATIONS)
def test_a_run_with_losses_by_name(
    name: str,
    workplace: Path,  # noqa: F811 the fixture
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    network, hyp = COMBINATIONS[name]
    assert run_command(workplace, tmp_path, network, hyp) == 0
    said = capsys.readouterr().out
    used = yaml.safe_load((tmp_path / "exp" / "hyp.yaml").read_text())["loss"]
    assert used == read_checkpoint(tmp_path / "exp" / "weights" / "best.pt")["hyp"]["loss"]
    assert set(used) == set(DEFAULTS)
    if name == "atss":
        assert "loss: box shape_iou(scale=0.5) in inner(ratio=1.2), cls varifocal(alpha=0.75, gamma=2.0), " in said
        assert "assigner atss(topk=9, anchor_scale=5.0) by shape_iou(scale=0.5) in inner(ratio=1.2)" in said
        assert load_model(tmp_path / "exp" / "weights" / "best.pt").config["loss"] == network
    if name == "both":
        line = next(line for line in said.splitlines() if line.startswith("loss: box: "))
        assert_says(
            line,
            f"wiou(alpha=1.9, delta=3.0, momentum=0.01) of {tmp_path}/hyp.yaml",
            f"siou(theta=4.0) of {tmp_path}/net.yaml",
        )
        assert (used["cls"], used["assigner_iou"]) == ("slide", "ciou")
    assert load_hyperparameters(tmp_path / "exp" / "hyp.yaml").loss == used


@pytest.mark.parametrize(
    ("network", "hyp", "place", "facts"),
    [
        ({"box": "shape-iu"}, {}, "net.yaml:42: loss: box", ["'shape-iu'", "'shape_iou'"]),
        ({}, {"wrap": ["focaler(0.95, 0.1)"]}, "hyp.yaml: loss: wrap", ["d is 0.95", "u is 0.1", "d < u"]),
        ({}, {"bx": "ciou"}, "hyp.yaml: loss: bx", ["'box'"]),
    ],
)
def test_a_mistake_takes_one_line(
    network: dict,
    hyp: dict,
    place: str,
    facts: list[str],
    workplace: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_command(workplace, tmp_path, network, hyp) == 2
    said = capsys.readouterr().err
    assert_says(said, f"{tmp_path}/{place}", *facts)
    assert said.count("\n") == 1
    assert not (tmp_path / "exp").exists()


def test_wise_iou_is_resumed_to_the_same_bits(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    (tmp_path / "hyp.yaml").write_text("loss: {box: 'wiou(momentum=0.3)'}\n")
    settings = {"hyp": str(tmp_path / "hyp.yaml"), "save_steps": 1}
    straight = read_checkpoint(train(options_for(workplace, tmp_path / "straight", **settings)) / "weights" / "last.pt")
    stop_after(monkeypatch, 1, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        train(options_for(workplace, tmp_path / "cut", **settings))
    monkeypatch.undo()
    last = tmp_path / "cut" / "exp" / "weights" / "last.pt"
    assert 0 < read_checkpoint(last)["loss"]["mean"].item() < 1
    train(TrainOptions(resume=str(last), given=frozenset({"resume"})))
    resumed = read_checkpoint(last)
    assert torch.equal(resumed["loss"]["mean"], straight["loss"]["mean"])
    assert resumed["rows"][-1][:11] == straight["rows"][-1][:11]  # up to the learning rates: what follows is seconds
    for key in ("model", "ema"):
        assert all(torch.equal(value, straight[key][name]) for name, value in resumed[key].items()), key


def test_a_checkpoint_from_before_losses_had_names(workplace: Path, tmp_path: Path) -> None:  # noqa: F811
    last = train(options_for(workplace, tmp_path, epochs=1)) / "weights" / "last.pt"
    old = read_checkpoint(last)
    del old["loss"], old["hyp"]["loss"]
    save_checkpoint(last, {key: value for key, value in old.items() if key != "version"})
    folder = train(TrainOptions(resume=str(last), epochs=2, given=frozenset({"resume", "epochs"})))
    assert yaml.safe_load((folder / "hyp.yaml").read_text())["loss"] == DEFAULTS


def test_validation_does_not_move_the_mean(workplace: Path, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "hyp.yaml").write_text("loss: {box: 'wiou(momentum=0.3)'}\n")
    means = []
    for noval in (False, True):
        options = options_for(workplace, tmp_path, hyp=str(tmp_path / "hyp.yaml"), noval=noval)
        means.append(read_checkpoint(train(options) / "weights" / "last.pt")["loss"]["mean"].item())
    assert means[0] == means[1] != 1


def test_segmentation_trains_with_them(tmp_path: Path, workplace: Path) -> None:  # noqa: F811
    labels = tmp_path / "labels"
    for split in ("train", "val"):
        (labels / split).mkdir(parents=True)
        for number in range(3):
            (labels / split / f"{number}.txt").write_text("0 0.2 0.2 0.7 0.2 0.7 0.7 0.2 0.7\n")
    shutil.copytree(workplace / "images", tmp_path / "images")
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [a]\n")
    loss = {"box": "eiou", "cls": "slide", "assigner": "atss", "assigner_iou": "ciou"}
    (tmp_path / "net.yaml").write_text(yaml.safe_dump(tiny_segment_config(branches=2, nc=1) | {"loss": loss}))
    options = options_for(
        workplace, tmp_path, cfg=str(tmp_path / "net.yaml"), data=str(tmp_path / "data.yaml"), epochs=1
    )
    row = read_checkpoint(train(options) / "weights" / "last.pt")["rows"][-1]
    assert all(torch.tensor([float(value) for value in row[1:4]]).isfinite())
