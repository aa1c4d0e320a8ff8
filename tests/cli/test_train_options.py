"""What train.py's flags do to a run."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from models.yolo import Model
from tests.cli.command_line import CommandLine, Finished, read_table, write_data
from tests.saying import assert_says
from utils.checkpoint.importing import load_model
from utils.weights.own_file import read_checkpoint

Train = Callable[..., Finished]


def frozen_layers(checkpoint: Path, network: Path) -> set[int]:
    """Return the layers whose whole state, running statistics included, is as the seed made it."""
    torch.manual_seed(0)
    before, after = Model(network).state_dict(), read_checkpoint(checkpoint)["model"]
    layers = {int(name.split(".")[1]) for name in before}
    return layers - {int(name.split(".")[1]) for name, value in before.items() if not torch.equal(value, after[name])}


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        (["2"], {0, 1}),
        (["1", "3"], {1, 3}),
        (["backbone"], {0, 1, 2, 3, 4}),
        (["0"], set()),
        (["model.4.*", "model.0.*"], {0, 4}),
    ],
)
def test_freeze(train: Train, network: Path, tmp_path: Path, what: list[str], expected: set[int]) -> None:
    train("--freeze", *what).done()
    assert frozen_layers(tmp_path / "exp" / "weights" / "last.pt", network) == expected


def test_fine_tuning_with_other_classes_says_how_much_was_loaded(
    cli: CommandLine, train: Train, trained: Path, tmp_path: Path
) -> None:
    data = write_data(tmp_path / "data", names=("red", "green", "blue", "black", "white"))
    out = train("--data", data, "--weights", trained / "weights" / "best.pt").done()
    assert_says(out, "best.pt", "109 of 115 tensors", "6 in layer 5", "5 classes here", "3 in the file")
    assert_says(out, "head_hidden keep", "8 wide")
    header, rows = read_table(tmp_path / "exp" / "transfer.csv")
    assert (header[0], len(rows)) == ("tensor", 115)
    model = load_model(tmp_path / "exp" / "weights" / "best.pt")
    assert model.names == ["red", "green", "blue", "black", "white"]


def test_learning_rates_by_layer(train: Train, tmp_path: Path) -> None:
    train("--lr-factor", "backbone=0.1", "--layer-decay", "0.9").done()
    header, rows = read_table(tmp_path / "exp" / "results.csv")
    rates = sorted({float(rows[-1][index]) for index, title in enumerate(header) if title.startswith("x/lr")})
    assert len(rates) >= 2
    assert rates[0] == pytest.approx(0.1 * rates[-1], rel=0.02)


def test_a_new_layer_is_not_frozen(train: Train, network: Path, trained: Path, tmp_path: Path) -> None:
    config = yaml.safe_load(network.read_text())
    config["backbone"].append([-1, 1, "FocalModulationBlock", []])
    (tmp_path / "edited.yaml").write_text(yaml.safe_dump(config))
    flags = ("--cfg", tmp_path / "edited.yaml", "--weights", trained / "weights" / "best.pt", "--min-transfer", "0.1")
    train(*flags, "--freeze", "backbone").refused("--freeze", "layer 5 (FocalModulationBlock)", "--freeze 0-4")
    assert_says(train(*flags, "--freeze", "0-4").done(), "frozen")


def test_weights_alone_name_the_network(cli: CommandLine, data: Path, trained: Path, tmp_path: Path) -> None:
    flags = ("--img", 64, "--epochs", 1, "--workers", 0, "--device", "cpu", "--noplots", "--project", tmp_path)
    out = cli("train.py", "--weights", trained / "weights" / "best.pt", "--data", data, *flags).done()
    assert_says(out, "100.0%")
    ours, theirs = (Model(folder / "model.yaml") for folder in (tmp_path / "exp", trained))
    assert ours.state_dict().keys() == theirs.state_dict().keys()


def test_single_cls_makes_one_class(train: Train, tmp_path: Path) -> None:
    train("--single-cls").done()
    assert load_model(tmp_path / "exp" / "weights" / "best.pt").names == ["object"]


@pytest.mark.parametrize(
    "flags",
    [
        ["--optimizer", "AdamW", "--cos-lr", "--rect", "--cache", "off"],
        ["--multi-scale", "--flat-cos-lr", "--cache", "ram", "--close-mosaic", "1", "--amp", "bf16"],
    ],
)
def test_other_ways_to_train(train: Train, tmp_path: Path, flags: list[str]) -> None:
    out = train(*flags).done()
    assert ("in memory" in out) == ("ram" in flags)
    assert (tmp_path / "exp" / "weights" / "best.pt").is_file()


def test_noval_validates_the_last_epoch_only(train: Train, tmp_path: Path) -> None:
    train("--noval", "--epochs", 2, "--save-period", 1).done()
    header, rows = read_table(tmp_path / "exp" / "results.csv")
    column = header.index("metrics/mAP_0.5")
    assert [row[column] == "nan" for row in rows] == [True, False]
    assert {path.name for path in (tmp_path / "exp" / "weights").iterdir()} == {
        "best.pt",
        "last.pt",
        "epoch1.pt",
        "epoch2.pt",
    }


def test_nosave_writes_the_last_epoch_only(train: Train, tmp_path: Path) -> None:
    out = train("--nosave", "--epochs", 2).done()
    assert str(tmp_path / "exp" / "weights" / "last.pt") in out.splitlines()[-1]
    assert read_checkpoint(tmp_path / "exp" / "weights" / "last.pt")["epoch"] == 2


def test_names_of_runs(train: Train, tmp_path: Path) -> None:
    for flags, folder in ((("--name", "a"), "a"), (("--name", "a"), "a2"), (("--name", "a", "--exist-ok"), "a")):
        assert_says(train(*flags).done(), f"results: {tmp_path / folder}\n")
    assert {path.name for path in tmp_path.iterdir()} >= {"a", "a2"}
    assert not (tmp_path / "a3").exists()


def test_min_items_leaves_images_out(train: Train, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    (data.parent / "labels" / "train" / "train0.txt").write_text("0 .5 .5 .2 .2\n")
    out = train("--data", data, "--min-items", 2).done()
    assert_says(out, "train: 7 images")


def test_bad_images_and_rows_are_counted_named_and_left_out(train: Train, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    row, image = data.parent / "labels" / "train" / "train1.txt", data.parent / "images" / "train" / "train2.jpg"
    row.write_text("0 .5 .5 .2 .2\n0 .5 .5 .1\n")
    broken = image.read_bytes()[:500]
    image.write_bytes(broken)
    out = train("--data", data).done()
    assert_says(out, "train: 7 images", "1 images skipped", image, "1 label rows skipped", f"{row}:2", "4 columns")
    assert image.read_bytes() == broken


def test_early_stopping_survives_resuming(cli: CommandLine, train: Train, tmp_path: Path) -> None:
    hyp = tmp_path / "hyp.yaml"
    hyp.write_text("lr0: 0.0\nwarmup_epochs: 0\n")
    train("--epochs", 1, "--patience", 2, "--hyp", hyp).done()
    last = tmp_path / "exp" / "weights" / "last.pt"
    checkpoint = read_checkpoint(last) | {"best_fitness": 1.0}  # what no epoch reaches
    torch.save(checkpoint, last)
    out = cli("train.py", "--resume", last, "--epochs", 9).done()
    assert_says(out, "stopped early", "epoch 1", "2 epochs")
    assert read_checkpoint(last)["epoch"] == 3
