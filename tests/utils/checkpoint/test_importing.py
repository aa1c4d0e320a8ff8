"""Weights in and out: round trips, the originals' names, and files that are not checkpoints."""

import errno
import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models.yolo import Model
from tests.foreign_files import foreign_name, foreign_tensors, write_ultralytics_checkpoint, write_yolov9_checkpoint
from tests.networks import randomise, seeded_images, tiny_config, tiny_model
from tests.saying import assert_says
from utils import cli
from utils.checkpoint.importing import import_state_dict, load_model
from utils.errors import CheckpointError
from utils.weights.foreign_names import foreign_head_names
from utils.weights.own_file import VERSION, network_entry, plain, read_checkpoint, save_checkpoint


def content_of(model: Model, **more: Any) -> dict[str, Any]:
    return {"network": network_entry(model), "model": model.state_dict()} | more


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint of the tiny network."""
    model = randomise(tiny_model())
    model.names = ["a", "б", "红"]
    save_checkpoint(tmp_path / "best.pt", content_of(model))
    return tmp_path / "best.pt"


def foreign(model: Model, prefix: str = "") -> dict[str, torch.Tensor]:
    """A network's state under the originals' names."""
    return {prefix + name: value for name, value in foreign_tensors(model).items()}


def outputs(model: Model) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(seeded_images(1, 3, 64, 64))


# --- our own


@pytest.mark.parametrize("branches", [1, 2, 3])
def test_round_trip(tmp_path: Path, branches: int) -> None:
    model = randomise(tiny_model(branches)).eval()
    model.names = ["a", "б", "红"]
    save_checkpoint(tmp_path / "best.pt", content_of(model))
    loaded = load_model(tmp_path / "best.pt")
    assert torch.equal(outputs(loaded), outputs(model))
    assert (loaded.names, loaded.nc, loaded.stride, loaded.config) == (
        model.names,
        3,
        [8, 16, 32],
        model.config | {"ch": 3},
    )
    assert not loaded.training
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    frozen = [name for name, parameter in loaded.named_parameters() if not parameter.requires_grad]
    assert len(frozen) == branches
    assert all(".dfl." in name for name in frozen)
    assert loaded.deploy()(seeded_images(1, 3, 64, 64)).shape == outputs(model).shape


def test_a_loaded_network_trains_on(saved: Path) -> None:
    model = load_model(saved).train()
    total = sum(level.sum() for level in model(seeded_images(2, 3, 64, 64))["main"])
    total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    assert {module.num_batches_tracked.dtype for module in model.modules() if isinstance(module, nn.BatchNorm2d)} == {
        torch.int64
    }


def test_averaged_weights_are_preferred(tmp_path: Path) -> None:
    model, averaged = tiny_model(seed=0), tiny_model(seed=1)
    save_checkpoint(tmp_path / "last.pt", content_of(model, ema=averaged.state_dict()))
    assert torch.equal(outputs(load_model(tmp_path / "last.pt")), outputs(averaged))


def test_half_precision_weights_come_back_as_float32(tmp_path: Path) -> None:
    model = randomise(tiny_model())
    half = {name: value.half() for name, value in model.state_dict().items()}
    save_checkpoint(tmp_path / "half.pt", content_of(model) | {"model": half})
    loaded = load_model(tmp_path / "half.pt")
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32, torch.int64}
    assert outputs(loaded).sub(outputs(model)).abs().max() < 0.5


def test_a_deployed_network_round_trips(tmp_path: Path) -> None:
    model = randomise(tiny_model(2)).eval()
    pruned = model.deploy(fold=False)
    save_checkpoint(tmp_path / "lead.pt", content_of(pruned))
    torch.testing.assert_close(outputs(load_model(tmp_path / "lead.pt")), outputs(model))


def test_networks_of_a_mapping_of_names_channels_and_activation(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Model(tiny_config() | {"activation": "ReLU", "names": {0: "a", 1: "b", 2: "c"}}, nc=3, ch=1)
    save_checkpoint(tmp_path / "a.pt", content_of(model))
    loaded = load_model(tmp_path / "a.pt")
    assert (loaded.channels, loaded.names) == (1, ["a", "b", "c"])
    image = seeded_images(1, 1, 64, 64)
    with torch.inference_mode():
        assert torch.equal(loaded(image), model.eval()(image))


def test_plain_data_only(tmp_path: Path) -> None:
    assert plain({"a": (1, Path("b")), 3: [None, {"c": 2.5}]}) == {"a": [1, "b"], "3": [None, {"c": 2.5}]}
    save_checkpoint(tmp_path / "a.pt", content_of(tiny_model(), rows=[[1, float("nan")]], options={"cfg": "x"}))
    read = read_checkpoint(tmp_path / "a.pt")
    assert (read["version"], read["options"], read["rows"][0][0]) == (VERSION, {"cfg": "x"}, 1)


# --- files that are not checkpoints


def truncated(saved: Path) -> bytes:
    return saved.read_bytes()[: saved.stat().st_size // 2]


class Dangerous:
    """What a pickle can do when it is read."""

    def __reduce__(self) -> tuple:
        return os.system, ("echo must never run > ran.txt",)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<!DOCTYPE html><html>Sign in to continue</html>",
        truncated,
        pickle.dumps({"model": 1}),
        b"PK\x03\x04" + b"\x00" * 100,
    ],
    ids=["empty", "html", "truncated", "pickle", "zip header"],
)
def test_other_files(tmp_path: Path, saved: Path, content: Any) -> None:
    path = tmp_path / "other.pt"
    path.write_bytes(content(saved) if callable(content) else content)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert_says(caught.value, "other.pt", "not a checkpoint", "train.py")
    with pytest.raises(CheckpointError, match=r"other\.pt: .*expected"):  # test_reading.py checks the kind of file
        load_model(path)


def test_damaged_in_the_middle(tmp_path: Path, saved: Path) -> None:
    data = bytearray(saved.read_bytes())
    start = data.index(b"data.pkl") + 20
    data[start : start + 60] = b"\xff" * 60
    (tmp_path / "other.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"other\.pt: "):
        load_model(tmp_path / "other.pt")


def test_objects_are_not_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for content in (Dangerous(), {"version": 1, "network": Dangerous()}, nn.Conv2d(1, 1, 1)):
        torch.save(content, tmp_path / "object.pt")
        with pytest.raises(CheckpointError, match=r"object\.pt: ") as caught:
            read_checkpoint(tmp_path / "object.pt")
        with pytest.raises(CheckpointError, match=r"object\.pt: "):
            load_model(tmp_path / "object.pt")
        assert "weights_only" not in str(caught.value), "no advice to switch the protection off"
    assert not (tmp_path / "ran.txt").exists()


@pytest.mark.parametrize("content", [[1, 2], {"model": {}}, {"version": 1}, torch.zeros(3)])
def test_tensors_of_something_else(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(tmp_path / "other.pt")
    assert_says(caught.value, "other.pt", "not a checkpoint of this framework", "train.py")
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path / "other.pt")
    assert_says(caught.value, "other.pt", "holds", "state dict")


def test_newer_version(tmp_path: Path) -> None:
    torch.save({"version": VERSION + 1, "network": {}}, tmp_path / "new.pt")
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path / "new.pt")
    assert_says(caught.value, "new.pt", f"version {VERSION + 1}", f"up to {VERSION}")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path, kind in ((tmp_path / "none.pt", "no such file"), (tmp_path, "a folder")):
        with pytest.raises(CheckpointError) as caught:
            load_model(path)
        assert_says(caught.value, path.name, kind, "weights/best.pt")
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(path)
        assert_says(caught.value, path.name, "no such file", "runs/train/exp/weights/best.pt")


def test_weights_that_do_not_fit_their_network(tmp_path: Path) -> None:
    state = tiny_model().state_dict()
    for changed, fact in (
        ({name: value for name, value in state.items() if "model.0." not in name}, "5 missing"),
        (state | {"model.0.conv.weight": torch.zeros(8, 3, 5, 5)}, "1 of another shape"),
        (state | {"model.0.conv.weights": torch.zeros(1)}, "1 too many"),
    ):
        save_checkpoint(tmp_path / "bad.pt", content_of(tiny_model()) | {"model": changed})
        with pytest.raises(CheckpointError, match=r"model\.0\.conv\.weight") as caught:
            load_model(tmp_path / "bad.pt")
        assert_says(caught.value, "bad.pt", fact, "--cfg")


def test_a_network_that_cannot_be_built_any_more(tmp_path: Path) -> None:
    content = content_of(tiny_model())
    content["network"]["config"]["backbone"][0][2] = "Gone"
    content["network"]["layer_files"]["Gone"] = "my_layers.py (sha256 0123456789ab)"
    save_checkpoint(tmp_path / "old.pt", content)
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path / "old.pt")
    assert_says(caught.value, "old.pt", "'Gone'", "my_layers.py (sha256 0123456789ab")


def test_where_layers_came_from() -> None:
    files = network_entry(
        Model(tiny_config() | {"backbone": [*tiny_config()["backbone"][:4], [-1, 1, "nn.MaxPool2d", [2]]]})
    )["layer_files"]
    assert sorted(files) == ["Conv", "DDetect"]
    assert re.fullmatch(r"models/common\.py \(sha256 [0-9a-f]{12}\)", files["Conv"])


@pytest.mark.parametrize(
    ("part", "value", "facts"),
    [
        ("network", [1], ("network", "list")),
        ("network", {"nc": 3}, ("network", "config (dict")),
        ("model", {"a": 1}, ("model", "mapping")),
        ("model", {}, ("no weights",)),
    ],
)
def test_malformed(tmp_path: Path, part: str, value: Any, facts: tuple[str, ...]) -> None:
    save_checkpoint(tmp_path / "odd.pt", content_of(tiny_model()) | {part: value})
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(tmp_path / "odd.pt")
    assert_says(caught.value, "odd.pt", *facts)
    with pytest.raises(CheckpointError, match=r"odd\.pt: "):
        load_model(tmp_path / "odd.pt")


def test_a_flop_counter_s_leftovers(tmp_path: Path) -> None:
    model = randomise(tiny_model())
    state = model.state_dict() | {"model.0.total_ops": torch.zeros(1), "model.0.conv.total_params": torch.zeros(1)}
    save_checkpoint(tmp_path / "a.pt", content_of(model) | {"model": state})
    assert torch.equal(outputs(load_model(tmp_path / "a.pt")), outputs(model))


def test_folded_networks_round_trip(tmp_path: Path) -> None:
    model = randomise(tiny_model(2)).eval()
    deployed = model.deploy()
    save_checkpoint(tmp_path / "folded.pt", content_of(deployed))
    loaded = load_model(tmp_path / "folded.pt")
    assert loaded.config["folded"] is True
    assert torch.equal(outputs(loaded), outputs(deployed))


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("write", [write_yolov9_checkpoint, write_ultralytics_checkpoint])
def test_foreign_checkpoints(tmp_path: Path, write: Any, half: bool, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny_config()
    if write is write_ultralytics_checkpoint:
        config["head"][0][2] = "Detect"
    model = randomise(Model(config)).eval()
    model.names = ["a", "b", "c"]
    write(tmp_path / "theirs.pt", model, half=half)
    loaded = load_model(tmp_path / "theirs.pt")
    assert "without running anything" in capsys.readouterr().out
    assert (loaded.names, loaded.nc, loaded.stride) == (["a", "b", "c"], 3, [8, 16, 32])
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    torch.testing.assert_close(outputs(loaded), outputs(model.half().float() if half else model))
    assert not loaded.head.lead.dfl.conv.weight.requires_grad


def test_a_plain_state_dict_describes_no_network(tmp_path: Path) -> None:
    torch.save(tiny_model().state_dict(), tmp_path / "plain.pt")
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path / "plain.pt")
    assert_says(caught.value, "plain.pt", "state dict", "export.py", "--cfg")


# --- writing


@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_a_full_disk_keeps_the_old_checkpoint(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], function: str
) -> None:
    before = saved.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, function, fail)
    assert cli.run(lambda: save_checkpoint(saved, content_of(tiny_model(seed=1)))) == cli.EXIT_FAILED
    monkeypatch.undo()
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["best.pt"]
    load_model(saved)
    said = capsys.readouterr().err
    assert said.startswith("error: disk full: ")
    assert len(said.splitlines()) == 1


# --- the originals' names


def test_foreign_names() -> None:
    assert foreign_head_names(tiny_model(1).head) == {"lead.box": "cv2", "lead.cls": "cv3", "lead.dfl": "dfl"}
    table = foreign_head_names(tiny_model(3).head)
    assert [table[f"{part}.box"] for part in ("aux.0", "aux.1", "lead")] == ["cv2", "cv4", "cv6"]
    assert [table[f"{part}.cls"] for part in ("aux.0", "aux.1", "lead")] == ["cv3", "cv5", "cv7"]
    assert [table[f"{part}.dfl"] for part in ("aux.0", "aux.1", "lead")] == ["dfl", "dfl2", "dfl3"]
    assert foreign_name("model.5.lead.box.0.1.conv.weight", 5, table) == "model.5.cv6.0.1.conv.weight"
    assert foreign_name("model.4.conv.weight", 5, table) == "model.4.conv.weight"


@pytest.mark.parametrize("branches", [1, 2, 3])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model."])
def test_import_under_foreign_names(branches: int, prefix: str) -> None:
    source, target = randomise(tiny_model(branches, seed=0)), tiny_model(branches, seed=1)
    report = import_state_dict(target, foreign(source, prefix))
    assert (report.missing, report.unexpected, report.mismatched, report.coverage) == ([], [], [], 1.0)
    assert sorted(report.loaded) == sorted(source.state_dict())
    assert torch.equal(outputs(target), outputs(source))
    for ours, theirs in zip(target.state_dict().values(), source.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_import_under_our_names_and_own_number_format() -> None:
    source, target = randomise(tiny_model(2, seed=0)), tiny_model(2, seed=1).double()
    assert import_state_dict(target, source.half().state_dict()).coverage == 1.0
    assert {parameter.dtype for parameter in target.parameters()} == {torch.float64}
    assert target.model[0].conv.weight[0, 0, 0, 0].item() == source.model[0].conv.weight[0, 0, 0, 0].item()


def test_report_of_a_partial_import() -> None:
    model = tiny_model()
    tensors = foreign(tiny_model(seed=1))
    del tensors["model.0.conv.weight"]
    tensors["model.1.conv.weight"] = torch.zeros(8, 8, 5, 5)
    tensors["model.9.extra"] = torch.zeros(3)
    before = model.state_dict()["model.1.conv.weight"].clone()
    report = import_state_dict(model, tensors)
    assert report.missing == ["model.0.conv.weight"]
    assert report.mismatched == ["model.1.conv.weight"]
    assert report.unexpected == ["model.9.extra"]
    total = sum(parameter.numel() for parameter in model.parameters())
    assert report.coverage == pytest.approx(1 - (216 + 576) / total)
    assert torch.equal(model.state_dict()["model.1.conv.weight"], before)
    line = report.describe()
    assert_says(line, f"{len(report.loaded)} of {len(report.loaded) + 2}", "missing (model.0.conv.weight")
    assert_says(line, "shape (model.1.conv.weight", "network (model.9.extra")


def test_dfl_weights_must_be_the_numbers_of_the_bins() -> None:
    tensors = foreign(tiny_model(2))
    tensors["model.5.dfl2.conv.weight"] = tensors["model.5.dfl2.conv.weight"] + 0.5
    with pytest.raises(CheckpointError) as caught:
        import_state_dict(tiny_model(2), tensors)
    assert_says(caught.value, "model.5.dfl2.conv.weight", "0.5, 1.5", "0 to 15")
