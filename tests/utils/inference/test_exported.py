"""Exported files as networks: the outputs of the network they were made from, and one message for broken files."""

import copy
import json
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from data.augment.transforms import letterbox
from models.yolo import Model, load
from tests.networks import randomise, seeded_images, tiny_model
from tests.saying import assert_says
from utils.errors import CheckpointError, SettingsError
from utils.inference.exported import (
    ExportedNetwork,
    move_constants,
    read_torchscript_metadata,
)
from utils.inference.metadata import FORMAT_VERSION, ExportMetadata, parse_metadata
from utils.inference.network import load_network, network_precision
from utils.inference.predictor import Predictor
from utils.precision import choose_precision
from utils.runs.export import ExportOptions, export
from utils.weights.own_file import network_entry, save_checkpoint

NAMES = ["红细胞", 'a"b', "größer"]
FORMATS = ("onnx", "torchscript")
CPU = choose_precision("cpu", "off")


def eager(branches: int = 2) -> Model:
    """A tiny network with non-ASCII class names that is sure to see something."""
    model = randomise(tiny_model(branches)).eval()
    model.names = list(NAMES)
    for tower in model.head.lead.cls:
        tower[-1].bias.data.fill_(-1)
    return model


def write(path: Path, model: Model, **content: object) -> Path:
    save_checkpoint(path, {"network": network_entry(model), "model": model.state_dict(), **content})
    return path


@pytest.fixture(scope="module")
def model() -> Model:
    return eager()


@pytest.fixture(scope="module")
def files(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return `files("onnx-static")`: a file of export.py, static (2 images of 64 x 96) or dynamic; do not change it."""
    folder, made = tmp_path_factory.mktemp("exported"), {}
    weights = write(folder / "bést.pt", model)

    def make(kind: str) -> Path:
        if kind not in made:
            name, form = kind.split("-")
            if name == "onnx":
                pytest.importorskip("onnx")
                pytest.importorskip("onnxruntime")
            settings = {"include": [name], "img": [64, 96], "dynamic": form == "dynamic"}
            if form == "static":
                settings["batch"] = 2
            made[kind] = export(ExportOptions(str(weights), **settings, out=str(folder / kind)))[0]
        return made[kind]

    return make


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected)[:, :4].abs().max() < 0.01
    assert (found - expected)[:, 4:].abs().max() < 1e-5
    assert expected[:, 4:].max() > 0.1, "a network that sees nothing shows nothing"


@pytest.mark.parametrize("name", FORMATS)
class TestOutputs:
    def test_attributes(self, name: str, files, model: Model) -> None:
        static, dynamic = ExportedNetwork(files(f"{name}-static")), ExportedNetwork(files(f"{name}-dynamic"))
        for network in (static, dynamic):
            assert (network.names, network.nc, network.stride, network.task, network.channels) == (
                NAMES,
                3,
                [8, 16, 32],
                "detect",
                3,
            )
            assert network.deploy() is network
            assert not network.training
        assert (static.static_hw, static.batch) == ((64, 96), 2)
        assert (dynamic.static_hw, dynamic.batch, dynamic.trained_size) == (None, None, 96)

    @pytest.mark.parametrize("batch", [1, 2, 3, 5])
    def test_static_takes_any_number_of_images(self, name: str, batch: int, files, model: Model) -> None:
        images = seeded_images(batch, 3, 64, 96)
        with torch.inference_mode():
            assert_same(ExportedNetwork(files(f"{name}-static"))(images), model(images))

    @pytest.mark.parametrize("shape", [(1, 3, 32, 32), (3, 3, 160, 64), (2, 3, 64, 96)])
    def test_dynamic_takes_any_size(self, name: str, shape: tuple[int, ...], files, model: Model) -> None:
        images = seeded_images(*shape)
        with torch.inference_mode():
            assert_same(
                ExportedNetwork(files(f"{name}-dynamic"))(images.to(memory_format=torch.channels_last)), model(images)
            )

    def test_other_sizes_are_refused(self, name: str, files) -> None:
        static, dynamic = (ExportedNetwork(files(f"{name}-{form}")) for form in ("static", "dynamic"))
        for network, shape, facts in (
            (static, (1, 3, 64, 64), ("64 x 64", "64 x 96")),
            (dynamic, (1, 3, 64, 100), ("64 x 100", "multiples of 32")),
            (dynamic, (1, 1, 64, 64), ("1 channels", "3 channels")),
        ):
            with pytest.raises(SettingsError) as caught:
                network(seeded_images(*shape))
            assert_says(caught.value, network.path, *facts)

    def test_predictor_gives_the_same_boxes(
        self, name: str, files, model: Model, capsys: pytest.CaptureFixture[str]
    ) -> None:
        image = np.random.default_rng(0).integers(0, 255, (50, 90, 3), np.uint8)
        static = load(files(f"{name}-static"), precision=CPU, image_size=320)
        assert static.size_hw == (64, 96)
        assert_says(capsys.readouterr().out, "--img 320", "64 x 96")
        dynamic = load(files(f"{name}-dynamic"), precision=CPU, image_size=160)
        for network, other in (
            (static, Predictor(model, (64, 96), precision=CPU, rect=False)),
            (dynamic, Predictor(model, 160, precision=CPU)),
        ):
            found, expected = network(image)[0], other(image)[0]
            assert len(found) == len(expected) > 0
            assert np.abs(found.boxes_xyxy - expected.boxes_xyxy).max() < 0.01
            assert np.abs(found.scores - expected.scores).max() < 1e-5
            assert found.names == NAMES


def test_static_images_are_filled_up_to_the_whole_size(files) -> None:
    image = np.zeros((20, 90, 3), np.uint8)
    prepared = load(files("torchscript-static"), precision=CPU).prepare(image)
    assert prepared[0].shape == (64, 96, 3)
    assert prepared[1] == letterbox(image, (64, 96))[1]


class TestBrokenFiles:
    @pytest.mark.parametrize("name", FORMATS)
    def test_truncated(self, name: str, files, tmp_path: Path) -> None:
        content = files(f"{name}-static").read_bytes()
        path = tmp_path / f"half.{name}"
        for share in (0.0, 0.5, 0.99):
            path.write_bytes(content[: int(share * len(content))])
            with pytest.raises(CheckpointError, match=rf"half\.{name}: no ") as caught:
                load_network(path)
            assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("name", FORMATS)
    @pytest.mark.parametrize("content", [b"<html>not found</html>", b"\x08\x07\x12\x07pytorch", "checkpoint"])
    def test_something_else(self, name: str, content: bytes | str, files, model: Model, tmp_path: Path) -> None:
        path = tmp_path / f"other.{name}"
        if name == "onnx":
            pytest.importorskip("onnxruntime")
        if content == "checkpoint":
            write(path, model)
        else:
            path.write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            load_network(path)
        assert_says(caught.value, path, "export.py")

    def test_missing_and_wrong_suffix(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError) as caught:
            load_network(tmp_path / "none.onnx")
        assert_says(caught.value, "none.onnx", "no such file")
        with pytest.raises(CheckpointError) as caught:
            ExportedNetwork(tmp_path / "best.engine")
        assert_says(caught.value, "'.engine'", ".onnx", ".torchscript")

    def test_onnx_of_somebody_else(self, files, tmp_path: Path) -> None:
        onnx = pytest.importorskip("onnx")
        content = onnx.load(files("onnx-static"))
        del content.metadata_props[:]
        onnx.save(content, tmp_path / "foreign.onnx")
        with pytest.raises(CheckpointError) as caught:
            load_network(tmp_path / "foreign.onnx")
        assert_says(caught.value, "foreign.onnx", "no metadata", "export.py")

    def test_onnx_whose_metadata_are_not_its_own(self, files, tmp_path: Path) -> None:
        onnx = pytest.importorskip("onnx")
        content = onnx.load(files("onnx-static"))
        next(entry for entry in content.metadata_props if entry.key == "image_hw").value = "[96, 64]"
        onnx.save(content, tmp_path / "lying.onnx")
        with pytest.raises(CheckpointError) as caught:
            load_network(tmp_path / "lying.onnx")
        assert_says(caught.value, "lying.onnx", "metadata", "[2, 3, 96, 64]")

    def test_torchscript_without_metadata_is_not_even_loaded(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.trace(nn.Identity(), (torch.zeros(1),)).save(str(tmp_path / "foreign.torchscript"))
        monkeypatch.setattr(torch.jit, "load", lambda *_args, **_settings: pytest.fail("ran a foreign file"))
        with pytest.raises(CheckpointError) as caught:
            load_network(tmp_path / "foreign.torchscript")
        assert_says(caught.value, "foreign.torchscript", "no metadata", "export.py")

    def test_metadata_bomb(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "bomb.torchscript", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x/extra/metadata.json", b" " * (1 << 23))
        with pytest.raises(CheckpointError) as caught:
            load_network(tmp_path / "bomb.torchscript")
        assert_says(caught.value, "bomb.torchscript", "no metadata")

    @pytest.mark.parametrize("content", [b"\xff", b"{", b"[" * 100_000, b"3"])
    def test_torchscript_metadata_that_are_no_json_object(self, content: bytes, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "x.torchscript", "w") as archive:
            archive.writestr("x/extra/metadata.json", content)
        with pytest.raises(CheckpointError) as caught:
            read_torchscript_metadata(tmp_path / "x.torchscript")
        assert_says(caught.value, "x.torchscript", "metadata", "export.py")

    def test_onnxruntime_is_not_installed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "a.onnx").write_bytes(b"")
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(CheckpointError) as caught:
            load_network(tmp_path / "a.onnx")
        assert_says(caught.value, "a.onnx", "onnxruntime", "pip install -r requirements-export.txt")


class TestMetadata:
    good = ExportMetadata(["红", "b"], 2, 3, [8, 16], "detect", [320, 256], 1, False, 16)

    def test_round_trip_and_what_is_written(self) -> None:
        entries = self.good.entries()
        assert entries["names"] == '["红", "b"]'
        assert entries["task"] == '"detect"'
        assert entries["yolo_loom"] == str(FORMAT_VERSION)
        assert parse_metadata(entries | {"author": "not JSON"}, "x.onnx") == self.good

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("nc", '"2"'),
            ("nc", "0"),
            ("nc", "true"),
            ("names", '["a"]'),
            ("names", '["a", 3]'),
            ("names", '{"0": "a", "1": "b"}'),
            ("ch", "3.0"),
            ("stride", "[]"),
            ("stride", "[8, null]"),
            ("task", '"pose"'),
            ("task", '["detect"]'),
            ("image_hw", "[320]"),
            ("image_hw", "[320, -32]"),
            ("batch", "0"),
            ("dynamic", "1"),
            ("multiple", "0"),
        ],
    )
    def test_values_of_another_kind(self, key: str, value: str) -> None:
        with pytest.raises(CheckpointError) as caught:
            parse_metadata(self.good.entries() | {key: value}, "x.onnx")
        assert_says(caught.value, "x.onnx", f"'{key}'", value)

    def test_an_older_file_does_not_say_what_sides_are_multiples_of(self) -> None:
        entries = {key: value for key, value in self.good.entries().items() if key != "multiple"}
        assert parse_metadata(entries, "x.onnx") == self.good

    def test_nothing_is_evaluated(self) -> None:
        with pytest.raises(CheckpointError) as caught:
            parse_metadata(self.good.entries() | {"names": "[__import__('os').getcwd()]"}, "x.onnx")
        assert_says(caught.value, "x.onnx", "'names'", "[__import__('os').getcwd()]", "JSON")

    def test_newer_and_incomplete(self) -> None:
        with pytest.raises(CheckpointError) as caught:
            parse_metadata(self.good.entries() | {"yolo_loom": str(FORMAT_VERSION + 1)}, "x.onnx")
        assert_says(caught.value, "x.onnx", "version", FORMAT_VERSION + 1, FORMAT_VERSION)
        with pytest.raises(CheckpointError) as caught:
            parse_metadata({key: text for key, text in self.good.entries().items() if key != "stride"}, "x.onnx")
        assert_says(caught.value, "x.onnx", "'stride'")


def test_constants_move_with_the_network(files) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.jit.load(str(files("torchscript-dynamic")))
    move_constants(module, torch.device("cuda:1"))
    codes = [part.code for part in module.modules() if "forward" in part._c._method_names()]
    assert sum(code.count('torch.device("cuda:1")') for code in codes) >= 2, "anchor points of height and width"
    assert not any('torch.device("cpu")' in code for code in codes)


def test_number_format_is_the_files_own(files, capsys: pytest.CaptureFixture[str]) -> None:
    network = ExportedNetwork(files("torchscript-static"))
    assert network_precision(network, "cpu", "bf16").dtype is None
    assert "--amp bf16: does not apply to " in capsys.readouterr().out
    assert network_precision(network, "cpu", "auto").dtype is None
    assert capsys.readouterr().out == ""
    assert network_precision(tiny_model(), "cpu", "bf16").dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("content", "size"),
    [({"options": {"img": 192}}, 192), ({"options": {"img": "192"}}, None), ({"options": {}}, None), ({}, None)],
)
def test_checkpoint_says_at_which_size_it_was_trained(
    content: dict, size: int | None, model: Model, tmp_path: Path
) -> None:
    assert load_network(write(tmp_path / "w.pt", model, **content)).trained_size == size


def test_metadata_in_the_files(files) -> None:
    assert json.loads(read_torchscript_metadata(files("torchscript-static"))["names"]) == NAMES
    onnx = pytest.importorskip("onnx")
    content = onnx.load(files("onnx-static"))
    entries = {entry.key: json.loads(entry.value) for entry in content.metadata_props}
    assert entries == {
        **{"names": NAMES, "nc": 3, "ch": 3, "stride": [8, 16, 32], "task": "detect"},
        **{"image_hw": [64, 96], "batch": 2, "dynamic": False, "multiple": 32, "yolo_loom": FORMAT_VERSION},
    }
    assert str(Path.cwd()).encode() not in files("onnx-static").read_bytes()


def test_the_range_of_pixel_values_goes_with_every_file(model: Model, tmp_path: Path) -> None:
    network = copy.deepcopy(model)
    network.pixel_range = (-1000.0, 3000.0)
    weights = write(tmp_path / "best.pt", network)
    assert load_network(weights).pixel_range == (-1000, 3000)
    assert load_network(weights).deploy().pixel_range == (-1000, 3000)
    deployed, _, script = export(ExportOptions(str(weights), include=["weights", "torchscript"], img=[64]))
    assert load_network(deployed).pixel_range == load_network(script).pixel_range == (-1000, 3000)


def test_category_ids_go_with_every_file(model: Model, tmp_path: Path) -> None:
    network = copy.deepcopy(model)
    network.category_ids = [7, "90", 3]
    weights = write(tmp_path / "best.pt", network)
    assert load_network(weights).category_ids == load_network(weights).deploy().category_ids == [7, "90", 3]
    deployed, _, script = export(ExportOptions(str(weights), include=["weights", "torchscript"], img=[64]))
    assert load_network(deployed).category_ids == load_network(script).category_ids == [7, "90", 3]


@pytest.mark.parametrize("given", [[7, 7, 3], [7, 90], [7, [90], 3], "abc", [7, None, 3]])
def test_category_ids_that_are_none_are_left_out(model: Model, tmp_path: Path, given: object) -> None:
    entry = network_entry(model) | {"category_ids": given}
    save_checkpoint(tmp_path / "best.pt", {"network": entry, "model": model.state_dict()})
    assert load_network(tmp_path / "best.pt").category_ids is None


def test_files_of_older_versions_have_no_range(model: Model, tmp_path: Path) -> None:
    entry = network_entry(model)
    assert entry.pop("pixel_range") is None
    save_checkpoint(tmp_path / "old.pt", {"network": entry, "model": model.state_dict()})
    assert load_network(tmp_path / "old.pt").pixel_range is None
    metadata = ExportMetadata(["a"], 1, 3, [8], "detect", [64, 64], 1, False, 8)
    assert "pixel_range" not in metadata.entries()
    assert parse_metadata(metadata.entries(), "old.onnx") == metadata


@pytest.mark.parametrize("value", ["[1]", "[3, 2]", '["a", 2]', "7", "[true, 2]"])
def test_a_damaged_range_is_refused(value: str) -> None:
    entries = ExportMetadata(["a"], 1, 3, [8], "detect", [64, 64], 1, False, 8).entries() | {"pixel_range": value}
    with pytest.raises(CheckpointError) as caught:
        parse_metadata(entries, "a.onnx")
    assert_says(caught.value, "a.onnx", "pixel_range")
