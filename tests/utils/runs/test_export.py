"""Exporting: the written weights, files that compute something else are not kept, and flags that are refused."""

import dataclasses
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from models.plugins.held import temporary_plugins
from models.plugins.loading import load_plugins
from models.yolo import Model
from tests.networks import meta_model, meta_pruned, randomise, seeded_images, tiny_config, tiny_model
from tests.saying import assert_says
from utils.checkpoint.importing import load_model
from utils.errors import CheckpointError, ExportError, ModelConfigError, SettingsError
from utils.export.comparison import compare, largest, trial_images
from utils.export.formats import onnx_by_dynamo, onnx_by_tracing, torchscript_by_tracing
from utils.export.weights import rounded, yaml_text
from utils.inference.exported import ExportedNetwork
from utils.onnx_graph.readers import Reading
from utils.runs import export as export_run
from utils.runs.export import ExportOptions, check_settings, export, load_source
from utils.weights.own_file import network_entry, read_checkpoint, save_checkpoint

NAMES = ["红细胞", "b", "yes"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a tiny network with two branches; not to be changed."""
    model = randomise(tiny_model(2)).eval()
    model.names = list(NAMES)
    path = tmp_path_factory.mktemp("weights") / "best.pt"
    content = {
        "network": network_entry(model),
        "model": model.state_dict(),
        "options": {"img": 96},
        "hyp": {"lr0": 0.01},
        "optimizer": {},
    }
    save_checkpoint(path, content)
    return path


def settings(weights: Path, folder: Path, *include: str, **changes: object) -> ExportOptions:
    size = {} if include == ("weights",) else {"img": [64]}
    return ExportOptions(str(weights), include=include, out=str(folder), **{**size, **changes})


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestWeights:
    def test_lead_branch_alone_computes_the_same_and_can_be_trained(
        self, weights: Path, tmp_path: Path, capsys
    ) -> None:
        files = export(settings(weights, tmp_path, "weights"))
        assert names_in(tmp_path) == ["best-deploy.pt", "best-deploy.yaml"] == [path.name for path in files]
        written, source = load_model(files[0]), load_model(weights)
        images = seeded_images(2, 3, 64, 64)
        with torch.no_grad():
            assert torch.equal(written(images), source(images))
        assert not any(".aux." in name for name in written.state_dict())
        assert any("running_mean" in name for name in written.state_dict())
        outputs = written.train()(images)
        sum(level.sum() for level in outputs["main"]).backward()
        assert outputs["aux"] == []
        assert all(parameter.grad is not None for parameter in written.parameters() if parameter.requires_grad)
        content = read_checkpoint(files[0])
        assert (content["options"], content["hyp"]) == ({"img": 96}, {"lr0": 0.01})
        assert "optimizer" not in content
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 2
        assert lines[0].startswith(f"{files[0]}: ")
        assert "largest difference 0.0e+00 px" in lines[0]

    def test_yaml_builds_it(self, weights: Path, tmp_path: Path) -> None:
        checkpoint, text = export(settings(weights, tmp_path, "weights"))
        built = Model(text)
        assert {n: t.shape for n, t in built.state_dict().items()} == {
            n: t.shape for n, t in load_model(checkpoint).state_dict().items()
        }
        assert built.names == NAMES
        assert "  - [-1, 1, Conv, [8, 3, 2]]\n" in text.read_text(encoding="utf-8")
        assert "红细胞" in text.read_text(encoding="utf-8")

    def test_folded_form_says_so(self, weights: Path, tmp_path: Path) -> None:
        checkpoint, text = export(settings(weights, tmp_path, "weights", fold=True))
        assert names_in(tmp_path) == ["best-folded.pt", "best-folded.yaml"]
        assert yaml.safe_load(text.read_text(encoding="utf-8"))["folded"] is True
        written, source = load_model(checkpoint), load_model(weights)
        assert not any("running_mean" in name for name in written.state_dict())
        images = seeded_images(1, 3, 64, 96)
        with torch.no_grad():
            expected = source(images)
            assert (written(images) - expected).abs().max() < 1e-5 * expected.abs().max()

    @pytest.mark.parametrize("fold", [False, True])
    def test_half(self, weights: Path, tmp_path: Path, fold: bool, capsys) -> None:
        checkpoint, _ = export(settings(weights, tmp_path, "weights", half=True, fold=fold))
        tensors = read_checkpoint(checkpoint)["model"]
        assert {tensor.dtype for tensor in tensors.values()} <= {torch.float16, torch.int64}
        assert (
            checkpoint.stat().st_size
            < 0.7 * export(settings(weights, tmp_path / "full", "weights", fold=fold))[0].stat().st_size
        )
        assert "by rounding to fp16" in capsys.readouterr().out.splitlines()[0]
        assert next(load_model(checkpoint).parameters()).dtype is torch.float32

    def test_source_is_never_touched_and_a_second_export_is_said(self, weights: Path, tmp_path: Path, capsys) -> None:
        source = tmp_path / "best.pt"
        source.write_bytes(weights.read_bytes())
        for _ in range(2):
            export(ExportOptions(str(source), include=["weights"]))
        assert source.read_bytes() == weights.read_bytes()
        assert names_in(tmp_path) == ["best-deploy.pt", "best-deploy.yaml", "best.pt"]
        assert [" (replaced): " in line for line in capsys.readouterr().out.splitlines()] == [False, False, True, True]

    def test_files_that_compute_something_else_are_not_kept(
        self, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            "utils.export.weights.rounded",
            lambda tensors, _: {name: tensor * 1.001 for name, tensor in tensors.items()},
        )
        monkeypatch.setattr("utils.checkpoint.importing.check_constant", lambda *_: None)
        with pytest.raises(
            ExportError,
            match=r"best-deploy\.pt: not written: outputs differ by .* of the largest value: expected at most 1e-05",
        ):
            export(settings(weights, tmp_path, "weights"))
        assert names_in(tmp_path) == []

    def test_yolov9_c_becomes_gelan_c(self, tmp_path: Path) -> None:
        (tmp_path / "made.yaml").write_text(yaml_text(meta_pruned("yolov9-c"), "yolov9-c.pt"))
        with torch.device("meta"):
            made = Model(tmp_path / "made.yaml")
        expected = meta_model("gelan-c")
        for section in ("backbone", "head"):
            assert made.config[section] == expected.config[section]
        assert {n: t.shape for n, t in made.state_dict().items()} == {
            n: t.shape for n, t in expected.state_dict().items()
        }
        assert list(made.state_dict()) == list(expected.state_dict())

    def test_segmentation_network_keeps_both_repeats(self) -> None:
        trained, made = meta_model("yolov9-c-dseg"), meta_pruned("yolov9-c-dseg")
        assert made.config["head"][-1][2] == "DSegment"
        assert [row[3] for row in made.config["head"] if row[2] == "RepNCSPELAN4"][-1] == [256, 256, 128, 2], (
            "its prototypes' branch"
        )
        assert len(made.rows) == len(meta_model("gelan-c-dseg").rows)
        lead = {
            name.partition(".lead.")[2]: tensor.shape
            for name, tensor in trained.state_dict().items()
            if ".lead." in name
        }
        assert {
            name.partition(".lead.")[2]: tensor.shape for name, tensor in made.state_dict().items() if ".lead." in name
        } == lead


class TestComparison:
    def test_largest_takes_no_number_for_infinite(self) -> None:
        assert largest(torch.tensor([1.0, -3.0])) == 3
        assert largest(torch.tensor([1.0, torch.nan])) == torch.inf
        assert largest(torch.zeros(0)) == 0

    def test_differences_by_kind(self) -> None:
        expected = torch.tensor([10.0, 20, 30, 40, 0.5, 0.25, 8]).view(1, 7, 1)
        found = torch.tensor([10.0, 20, 30.25, 40, 0.5, 0.375, 4]).view(1, 7, 1)
        difference = compare(
            lambda _: (expected, torch.full((1, 1, 2, 2), 2.0)),
            lambda _: (found, torch.full((1, 1, 2, 2), 2.5)),
            [found],
            nc=2,
        )
        assert (difference.pixels, difference.scores, difference.masks) == (0.25, 0.125, 0.5)
        assert difference.relative == 0.25, "the prototypes'"

    @pytest.mark.parametrize(("change", "agrees"), [(0.4, True), (0.6, False), (torch.nan, False)])
    def test_limit(self, change: float, agrees: bool) -> None:
        boxes = torch.ones(1, 6, 4)
        other = boxes.clone()
        other[0, 0, 0] += change
        assert compare(lambda _: boxes, lambda _: other, [boxes], nc=2).exported_agrees() is agrees

    def test_other_shapes_and_broken_networks(self) -> None:
        boxes = torch.ones(1, 6, 4)
        with pytest.raises(ExportError, match=r"give \[\(1, 6, 4\), \(1, 6, 4\)\], \[\(1, 6, 4\)\] was expected"):
            compare(lambda _: boxes, lambda _: (boxes, boxes), [boxes], nc=2)
        with pytest.raises(ExportError, match="the network's own outputs are not all numbers"):
            compare(lambda _: boxes / 0, lambda _: boxes, [boxes], nc=2)

    def test_trial_images_differ_and_stay(self) -> None:
        first, again = (trial_images([(1, 3, 32, 32), (2, 1, 64, 32)], torch.device("cpu")) for _ in range(2))
        assert [tuple(images.shape) for images in first] == [(1, 3, 32, 32), (2, 1, 64, 32)]
        assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
        assert all(0 <= images.min() and images.max() <= 1 for images in first)


def wrong(network, images, metadata, opset) -> bytes:
    """Write a file of another network."""
    return torchscript_by_tracing(randomise(tiny_model(), 7).eval(), images, metadata, opset)


def failing(network, images, metadata, opset) -> bytes:
    raise RuntimeError("Unsupported: aten::nonsense\nand much more")


class TestExportedFiles:
    def test_a_file_that_computes_something_else_is_not_kept(
        self, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(export_run.WRITERS, "torchscript", (wrong, failing))
        with pytest.raises(
            ExportError,
            match=r"best\.torchscript: not written: wrong: computes .* else .*; failing: Unsupported: aten::nonsense$",
        ):
            export(settings(weights, tmp_path, "torchscript"))
        assert names_in(tmp_path) == []

    def test_the_next_writer_has_its_turn(self, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(export_run.WRITERS, "torchscript", (failing, wrong, torchscript_by_tracing))
        (path,) = export(settings(weights, tmp_path, "torchscript"))
        assert names_in(tmp_path) == ["best.torchscript"]
        images = seeded_images(1, 3, 64, 64)
        with torch.inference_mode():
            assert (ExportedNetwork(path)(images) - load_model(weights)(images)).abs().max() < 0.01

    def test_one_failure_leaves_the_others(
        self, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(export_run.WRITERS, "torchscript", (failing,))
        with pytest.raises(ExportError, match=r"best\.torchscript: not written: failing: "):
            export(settings(weights, tmp_path, "torchscript", "weights"))
        assert names_in(tmp_path) == ["best-deploy.pt", "best-deploy.yaml"]

    def test_nothing_of_the_exporters_is_heard(self, weights: Path, tmp_path: Path, capfd, recwarn) -> None:
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
        export(settings(weights, tmp_path, "onnx", "torchscript", dynamic=True))
        out, err = capfd.readouterr()
        assert [line.partition(": ")[0] for line in out.splitlines()] == [
            str(tmp_path / "best.onnx"),
            str(tmp_path / "best.torchscript"),
        ]
        assert err == ""
        assert len(recwarn) == 0

    def test_size_of_the_training(self, weights: Path, tmp_path: Path, capsys) -> None:
        (path,) = export(settings(weights, tmp_path, "torchscript", img=None))
        assert ExportedNetwork(path).static_hw == (96, 96)
        assert "image size 96, at which the network was trained" in capsys.readouterr().out

    def test_opset(self, weights: Path, tmp_path: Path) -> None:
        onnx = pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
        (path,) = export(settings(weights, tmp_path, "onnx", opset=13))
        assert [entry.version for entry in onnx.load(path).opset_import if entry.domain == ""] == [13]

    def test_segmentation_has_a_second_output(self, tmp_path: Path) -> None:
        config = tiny_config()
        config["head"] = [[[2, 3, 4], 1, "Segment", ["nc", 4, 8]]]
        config["backbone"][2][3][0] = 16
        torch.manual_seed(0)
        model = randomise(Model(config)).eval()
        save_checkpoint(tmp_path / "seg.pt", {"network": network_entry(model), "model": model.state_dict()})
        kinds = ["torchscript"] + ["onnx"] * all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))
        images = seeded_images(2, 3, 64, 96)
        for dynamic in (False, True):
            for path in export(settings(tmp_path / "seg.pt", tmp_path, *kinds, dynamic=dynamic, img=[64, 96])):
                network = ExportedNetwork(path)
                assert network.task == "segment"
                with torch.inference_mode():
                    for found, expected in zip(network(images), model(images), strict=True):
                        assert (found - expected).abs().max() < 1e-4 * expected.abs().max()

    @pytest.mark.slow
    @pytest.mark.parametrize("dynamic", [False, True])
    def test_exporter_on_torch_export(
        self, weights: Path, tmp_path: Path, dynamic: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for package in ("onnx", "onnxruntime", "onnxscript"):
            pytest.importorskip(package)
        monkeypatch.setitem(export_run.WRITERS, "onnx", (onnx_by_dynamo,))
        (path,) = export(settings(weights, tmp_path, "onnx", dynamic=dynamic))
        assert ExportedNetwork(path).static_hw == (None if dynamic else (64, 64))
        assert b".py" not in path.read_bytes(), "no file of the machine that wrote it"


PLUGIN = """
from models.registry import layer, same
from torch import nn

@layer(same)
class OneBatch(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, x):
        return x.reshape(2, *x.shape[1:]) if x.shape[0] == 2 else x * 1
"""


class TestSizesThatAreWrittenDown:
    """A layer whose traced graph takes the batch of the trial only, as a dynamic file must not."""

    @pytest.fixture
    def settings(self, tmp_path: Path) -> Iterator[ExportOptions]:
        (tmp_path / "one_batch.py").write_text(PLUGIN)
        with temporary_plugins():
            load_plugins([str(tmp_path / "one_batch.py")])
            config = tiny_config()
            config["backbone"].insert(4, [-1, 1, "OneBatch", []])
            config["head"] = [[[2, 3, 5], 1, "DDetect", ["nc"]]]
            model = randomise(Model(config)).eval()
            save_checkpoint(tmp_path / "w.pt", {"network": network_entry(model), "model": model.state_dict()})
        with temporary_plugins():
            out = str(tmp_path / "out")
            plugin = [str(tmp_path / "one_batch.py")]
            yield ExportOptions(str(tmp_path / "w.pt"), plugin=plugin, out=out, img=[64], dynamic=True)

    @pytest.mark.parametrize("name", ["onnx", "torchscript"])
    def test_one_message_and_no_file(
        self, name: str, settings: ExportOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd
    ) -> None:
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
        monkeypatch.setitem(export_run.WRITERS, "onnx", (onnx_by_tracing, failing))
        with pytest.raises(ExportError) as caught:
            export(dataclasses.replace(settings, include=[name]))
        assert_says(caught.value, f"w.{name}", "by tracing", *(["failing"] if name == "onnx" else []))
        assert "\n" not in str(caught.value)
        assert not list(tmp_path.glob("out/*"))
        assert capfd.readouterr().err == ""

    @pytest.mark.slow
    def test_both_exporters_are_tried(self, settings: ExportOptions, tmp_path: Path, capfd) -> None:
        for package in ("onnx", "onnxruntime", "onnxscript"):
            pytest.importorskip(package)
        with pytest.raises(ExportError) as caught:
            export(settings)
        assert_says(caught.value, "w.onnx", "by tracing", "by dynamo")
        assert not list(tmp_path.glob("out/*"))
        assert len(capfd.readouterr().out.splitlines()) <= 2


class TestOtherReaders:
    def test_what_opencv_makes_of_the_file_is_said(self, weights: Path, tmp_path: Path, capsys) -> None:
        for package in ("onnx", "onnxruntime", "cv2"):
            pytest.importorskip(package)
        export(settings(weights, tmp_path, "onnx", "torchscript"))
        first, second = capsys.readouterr().out.splitlines()
        assert_says(first, "best.onnx", "OpenCV", "reads it")
        assert "OpenCV" not in second

    def test_what_it_cannot_read_is_said_with_a_remedy(
        self, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
    ) -> None:
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
        monkeypatch.setattr(export_run, "readings", lambda *_: [Reading("OpenCV 9", "no such layer")])
        export(settings(weights, tmp_path, "onnx"))
        assert_says(capsys.readouterr().out, "OpenCV 9 cannot read it", "no such layer", "--simplify")


def use_onnxslim(monkeypatch: pytest.MonkeyPatch, slim: Callable[[Any], Any]) -> None:
    """Put an onnxslim of ours in place of the real one."""
    module = types.ModuleType("onnxslim")
    module.__spec__ = importlib.machinery.ModuleSpec("onnxslim", None)
    module.slim = slim
    monkeypatch.setitem(sys.modules, "onnxslim", module)


class TestSimplify:
    def test_onnxslim_is_missing(self, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
        found = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *rest: None if name == "onnxslim" else found(name, *rest)
        )
        with pytest.raises(ExportError) as caught:
            export(settings(weights, tmp_path / "out", "onnx", simplify=True))
        assert_says(caught.value, "--simplify", "onnxslim", "requirements-export.txt")
        assert not (tmp_path / "out").exists()

    def test_it_is_for_onnx(self, weights: Path, tmp_path: Path) -> None:
        for name in ("weights", "torchscript"):
            with pytest.raises(SettingsError) as caught:
                export(settings(weights, tmp_path, name, simplify=True))
            assert_says(caught.value, "--simplify", "--include onnx")

    def test_the_simplified_graph_is_compared_too(
        self, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        onnx = pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")

        def broken(model: Any) -> Any:
            for tensor in model.graph.initializer:
                if tensor.name.endswith("cls.0.2.bias"):
                    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) + 9, tensor.name))
            return model

        use_onnxslim(monkeypatch, broken)
        monkeypatch.setitem(export_run.WRITERS, "onnx", (onnx_by_tracing,))
        with pytest.raises(ExportError) as caught:
            export(settings(weights, tmp_path, "onnx", simplify=True))
        assert_says(caught.value, "best.onnx", "computes something else")
        assert names_in(tmp_path) == []

    @pytest.mark.parametrize("dynamic", [False, True])
    def test_the_real_one(self, weights: Path, tmp_path: Path, dynamic: bool, capsys) -> None:
        onnx = pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxslim")
        nodes = []
        for simplify in (False, True):
            (path,) = export(settings(weights, tmp_path, "onnx", dynamic=dynamic, simplify=simplify))
            nodes.append(len(onnx.load(path).graph.node))
            assert ExportedNetwork(path).names == NAMES
        assert nodes[1] < nodes[0]
        assert onnx.load(path).graph.output[0].type.tensor_type.shape.dim[1].dim_value == 4 + len(NAMES)


class TestSettings:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"include": ("tflite",)}, r"--include tflite: expected some of weights, onnx, torchscript"),
            ({"batch": 0}, r"--batch 0: expected at least 1"),
            ({"opset": 3}, r"--opset 3: expected at least 11"),
            ({"half": True}, r"--half: is for --include weights"),
            ({"fold": True}, r"--fold: is for --include weights"),
            ({"img": [0]}, r"--img 0: expected"),
            ({"img": [1, 2, 3]}, r"--img 1 2 3: expected"),
            ({"device": "gpu"}, r"--device gpu: unknown"),
        ],
    )
    def test_refused(self, weights: Path, tmp_path: Path, changes: dict, message: str) -> None:
        with pytest.raises(SettingsError, match=message):
            export(ExportOptions(str(weights), **{"include": ("torchscript",), "out": str(tmp_path), **changes}))
        assert names_in(tmp_path) == []

    def test_half_beside_others_is_said(self, weights: Path, capsys) -> None:
        assert check_settings(ExportOptions("w.pt", include=["weights", "torchscript", "weights"], half=True)) == (
            "weights",
            "torchscript",
        )
        assert "--half: the weights are written in fp16, exported networks in float32" in capsys.readouterr().out

    def test_missing_package_is_one_line(self, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        found = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *rest: None if name == "onnxruntime" else found(name, *rest)
        )
        with pytest.raises(
            ExportError,
            match=r"--include onnx: needs (onnx and )?onnxruntime, not installed here: pip install -r requirements-exp",
        ):
            export(settings(weights, tmp_path, "weights", "onnx"))
        assert names_in(tmp_path) == []

    def test_exported_file_is_no_source(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"best\.onnx: is an exported file already: expected weights"):
            export(settings(tmp_path / "best.onnx", tmp_path, "torchscript"))


class TestStateDict:
    @pytest.fixture
    def plain(self, tmp_path: Path, weights: Path) -> tuple[Path, Path]:
        """A state dict, and the yaml of its network."""
        torch.save(load_model(weights).state_dict(), tmp_path / "plain.pt")
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_config(2)))
        return tmp_path / "plain.pt", tmp_path / "tiny.yaml"

    def test_with_its_network(self, plain: tuple[Path, Path], weights: Path, tmp_path: Path) -> None:
        checkpoint, _ = export(settings(plain[0], tmp_path, "weights", cfg=str(plain[1])))
        images = seeded_images(1, 3, 64, 64)
        with torch.no_grad():
            assert torch.equal(load_model(checkpoint)(images), load_model(weights)(images))

    def test_with_another_network(self, plain: tuple[Path, Path], tmp_path: Path) -> None:
        plain[1].write_text(yaml.safe_dump(tiny_config(2, width=16)))
        with pytest.raises(CheckpointError) as caught:
            export(settings(plain[0], tmp_path, "weights", cfg=str(plain[1])))
        assert_says(caught.value, "plain.pt", "tiny.yaml", "of another shape", "--cfg", "--patch")

    def test_without_and_with_a_missing_network(self, plain: tuple[Path, Path], tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"plain\.pt: .*--cfg"):
            export(settings(plain[0], tmp_path, "weights"))
        with pytest.raises(ModelConfigError, match=r"none\.yaml: no such network yaml"):
            export(settings(plain[0], tmp_path, "weights", cfg="none.yaml"))


def test_rounded_leaves_counts_alone() -> None:
    tensors = rounded({"a": torch.ones(1), "n": torch.tensor(3)}, torch.float16)
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {"a": torch.float16, "n": torch.int64}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"include": ["weights"], "dynamic": True}, r"--dynamic: is for --include onnx or torchscript"),
        ({"include": ["weights"], "batch": 2}, r"--batch: is for --include onnx or torchscript"),
        ({"include": ["weights"], "img": [64]}, r"--img: is for --include onnx or torchscript"),
        ({"include": ["torchscript"], "opset": 17}, r"--opset 17: is for --include onnx"),
        (
            {"include": ["torchscript"], "dynamic": True, "batch": 2},
            r"--batch 2: a --dynamic file takes any number of images",
        ),
    ],
)
def test_flags_that_would_do_nothing(given: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        check_settings(ExportOptions("best.pt", **given))


def test_a_network_that_takes_a_part_of_the_weights_only(tmp_path: Path) -> None:
    """Everything that the yaml asks for is there, and more: another network, which would compute something else."""
    config = tiny_config()
    for repeats in (1, 2):
        config["backbone"][4] = [-1, 1, "RepNCSP", [8, {"repeats": repeats}]]
        (tmp_path / f"{repeats}.yaml").write_text(yaml.safe_dump(config | {"head": [[[2, 3], 1, "DDetect", ["nc"]]]}))
    torch.save(Model(tmp_path / "2.yaml").state_dict(), tmp_path / "plain.pt")
    assert load_source(ExportOptions(str(tmp_path / "plain.pt"), cfg=str(tmp_path / "2.yaml"))).nc == 3
    with pytest.raises(CheckpointError) as caught:
        load_source(ExportOptions(str(tmp_path / "plain.pt"), cfg=str(tmp_path / "1.yaml")))
    assert_says(caught.value, "plain.pt", "1.yaml", "18 too many", "--cfg", "--patch")


def test_the_class_count_of_a_plain_state_dict(tmp_path: Path) -> None:
    torch.save(tiny_model(nc=5).state_dict(), tmp_path / "plain.pt")
    (tmp_path / "net.yaml").write_text(yaml.safe_dump(tiny_config(nc=80)))
    assert load_source(ExportOptions(str(tmp_path / "plain.pt"), cfg=str(tmp_path / "net.yaml"))).nc == 5
