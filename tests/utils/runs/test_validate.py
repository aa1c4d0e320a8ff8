"""A whole validation run on a handful of images with an untrained network, and the command line in front of it."""

import contextlib
import csv
import io
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import val
from data.config import load_data_config
from data.loader import Loader
from data.scan import load_annotations
from models.plugins.loading import install_plugins
from models.yolo import Model
from tests.deep_images import png, ramp, write_data_yaml, write_split
from tests.networks import tiny_config, tiny_model
from tests.saying import assert_says
from utils import cli
from utils.drawing.draw import write_image
from utils.errors import CheckpointError, DataError, SettingsError
from utils.inference import evaluate as evaluate_module
from utils.inference.evaluate import EvalResult
from utils.inference.network import load_network
from utils.metrics.coco_eval import coco_ground_truth
from utils.runs import validate as validate_run
from utils.runs.validate import ValOptions, validate
from utils.weights.own_file import network_entry, read_checkpoint, save_checkpoint

coco_module = pytest.importorskip("pycocotools.coco")
cocoeval_module = pytest.importorskip("pycocotools.cocoeval")

NAMES = ["cat", "dog"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network that is sure to see something."""
    model = tiny_model(nc=2)
    model.names = list(NAMES)
    for tower in model.head.lead.cls:
        tower[-1].bias.data.fill_(-1)
    path = tmp_path_factory.mktemp("weights") / "best.pt"
    save_checkpoint(path, {"network": network_entry(model), "model": model.state_dict()})
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small images, one without objects, as YOLO txt."""
    root = tmp_path_factory.mktemp("data")
    for number, rows in enumerate(["0 0.5 0.5 0.4 0.6\n1 0.3 0.3 0.2 0.2\n", "1 0.5 0.5 0.9 0.9\n", ""]):
        noise = np.random.default_rng(number).integers(0, 255, (48 + 16 * number, 64, 3), dtype=np.uint8)
        write_image(root / "images" / f"{number}.png", noise)
        (root / "labels").mkdir(exist_ok=True)
        (root / "labels" / f"{number}.txt").write_text(rows)
    (root / "data.yaml").write_text("train: images\nval: images\nnames: [cat, dog]\n")
    return root / "data.yaml"


def settings(weights: Path, data: Path, folder: Path, **changes: object) -> ValOptions:
    plain = {
        "img": 64,
        "batch": 2,
        "workers": 0,
        "device": "cpu",
        "amp": "off",
        "project": str(folder),
        "noplots": True,
    }
    return ValOptions(str(weights), str(data), **{**plain, **changes})


def test_everything_is_written(weights: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    result = validate(settings(weights, data, tmp_path, save_txt=True, save_conf=True, save_json=True, noplots=False))
    folder, printed = tmp_path / "exp", capsys.readouterr().out
    assert result.metrics.num_images == 3
    assert "class " in printed
    assert "in-loop (at most 300) minus pycocotools at 100" in printed

    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["metrics/mAP_0.5:0.95"] == result.metrics.map
    assert {
        "val/box_loss",
        "val/cls_loss",
        "val/dfl_loss",
        "metrics/precision",
        "metrics/recall",
        "metrics/mAP_0.5",
    } <= set(metrics)
    assert metrics["settings"]["iou_thres"] == 0.7
    rows = list(csv.DictReader((folder / "classes.csv").open()))
    assert [(row["class"], row["images"], row["instances"]) for row in rows] == [
        ("all", "3", "3"),
        ("cat", "1", "1"),
        ("dog", "2", "2"),
    ]

    detections = sum(len(rows) for rows in result.detections.values())
    assert detections > 0
    assert len(json.loads((folder / "predictions.json").read_text())) == detections
    lines = [line for path in (folder / "labels").iterdir() for line in path.read_text().splitlines()]
    assert len(lines) == detections
    assert {len(line.split()) for line in lines} == {6}
    gap = json.loads((folder / "coco_eval.json").read_text())["max_det_300"]["gap"]
    assert max(map(abs, gap.values())) < 1e-4
    assert len(list(folder.glob("*.png"))) == 9


def test_labels_of_the_data_set_are_not_written_over(weights: Path, data: Path, tmp_path: Path):
    (tmp_path / "alias").symlink_to(data.parent)
    before = {path: path.read_bytes() for path in (data.parent / "labels").iterdir()}
    for folder in (data.parent, tmp_path / "alias"):
        with pytest.raises(SettingsError) as caught:
            validate(settings(weights, data, folder, name=".", exist_ok=True, save_txt=True))
        assert_says(caught.value, "--save-txt", folder, "--project")
    assert {path: path.read_bytes() for path in (data.parent / "labels").iterdir()} == before


def test_full_and_deployed_network_agree(weights: Path, data: Path, tmp_path: Path):
    deployed, full = (validate(settings(weights, data, tmp_path, deploy=choice)) for choice in (True, False))
    assert deployed.metrics.map == pytest.approx(full.metrics.map, abs=1e-3)
    assert deployed.losses == pytest.approx(full.losses, rel=1e-3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exp", "exp2"]


def test_size_off_the_stride_is_rounded_and_said(
    weights: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    validate(settings(weights, data, tmp_path, img=50, rect=False))
    assert_says(capsys.readouterr().out, "--img 50", 32, "64 x 64")


def test_min_items_leaves_images_out(weights: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert validate(settings(weights, data, tmp_path, min_items=1)).metrics.num_images == 2
    assert_says(capsys.readouterr().out, "--min-items 1: 1 images")


def test_other_number_of_classes(weights: Path, data: Path, tmp_path: Path):
    other = data.with_name("other.yaml")
    other.write_text("val: images\nnames: [cat, dog, kite]\n")
    with pytest.raises(DataError) as caught:
        validate(settings(weights, other, tmp_path))
    assert_says(caught.value, other, 3, weights, 2, "'cat', 'dog'", "'kite'", "--single-cls")
    result = validate(settings(weights, other, tmp_path, single_cls=True))
    assert result.confusion.shape == (2, 2)
    assert result.losses == {}


def renamed(weights: Path, folder: Path, names: list[str]) -> Path:
    """The same network with other class names."""
    content = read_checkpoint(weights)
    content["network"]["names"] = names
    save_checkpoint(folder / "renamed.pt", content)
    return folder / "renamed.pt"


def figures(result: EvalResult) -> list[float]:
    metrics = result.metrics
    return [*result.losses.values(), metrics.map, metrics.map50, *metrics.class_recall, *result.confusion.flatten()]


@pytest.mark.parametrize("deploy", [True, False])
def test_names_in_another_order_are_matched_by_name(
    weights: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], deploy: bool
):
    """A network that names its classes dog, cat sees dogs where the same network with cat, dog sees cats."""
    swapped = data.with_name("swapped.yaml")
    swapped.write_text("val: images\nnames: [dog, cat]\n")
    same = validate(settings(weights, data, tmp_path, deploy=deploy))
    assert "by name" not in capsys.readouterr().out
    options = {"deploy": deploy, "save_txt": True, "save_json": True}
    as_named = validate(settings(renamed(weights, tmp_path, ["dog", "cat"]), swapped, tmp_path / "a", **options))
    assert figures(as_named) == pytest.approx(figures(same))
    assert "by name" not in capsys.readouterr().out
    matched = validate(settings(renamed(weights, tmp_path, ["dog", "cat"]), data, tmp_path / "b", **options))
    assert_says(capsys.readouterr().out, "another order", "dog, cat", "cat, dog")
    assert matched.losses != pytest.approx(same.losses)
    for index, rows in matched.detections.items():
        assert np.array_equal(rows[:, :5], as_named.detections[index][:, :5])
        assert np.array_equal(rows[:, 5], 1 - as_named.detections[index][:, 5])
    numbers = [
        {line.split()[0] for path in (tmp_path / run / "exp" / "labels").iterdir() for line in path.open()}
        for run in "ab"
    ]
    assert numbers == [{"0", "1"}, {"0", "1"}]
    rows = [json.loads((tmp_path / run / "exp" / "predictions.json").read_text()) for run in "ab"]
    assert [row["category_id"] for row in rows[1]] == [1 - row["category_id"] for row in rows[0]]


@pytest.mark.parametrize(
    ("names", "facts"),
    [
        (["cat", "hound"], ("'hound'", "'dog'")),
        (["Cat", "dog "], ("'cat' and 'Cat'", "'dog' and 'dog '", "spelling only")),
        (["cat", "cat"], ("more than once",)),
    ],
)
def test_a_name_of_one_side_is_an_error_with_both_lists(
    weights: Path, data: Path, tmp_path: Path, names: list[str], facts: tuple[str, ...]
):
    path = renamed(weights, tmp_path, names)
    with pytest.raises(DataError) as caught:
        validate(settings(path, data, tmp_path))
    assert_says(caught.value, path, data, f"'{names[0]}', '{names[1]}'", "'cat', 'dog'", *facts)
    assert not (tmp_path / "exp").exists()
    assert validate(settings(path, data, tmp_path, single_cls=True)).confusion.shape == (2, 2)


@pytest.mark.parametrize("names", [["0", "1"], ["class0", "class1"], ["class_1", "class_2"]])
def test_weights_without_names_are_matched_by_position(
    weights: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], names: list[str]
):
    path = renamed(weights, tmp_path, names)
    result = validate(settings(path, data, tmp_path))
    assert_says(capsys.readouterr().out, path, "position", f"{names[0]} is cat", f"{names[1]} is dog")
    assert figures(result) == pytest.approx(figures(validate(settings(weights, data, tmp_path))))


@pytest.fixture
def nested(data: Path, tmp_path: Path) -> Path:
    """The images of `data` in two folders with the same file names."""
    for number, place in enumerate(("a/0", "b/0", "b/1")):
        image = tmp_path / "images" / f"{place}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes((data.parent / "images" / f"{number}.png").read_bytes())
        label = tmp_path / "labels" / f"{place}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text((data.parent / "labels" / f"{number}.txt").read_text())
    (tmp_path / "data.yaml").write_text("val: images\nnames: [cat, dog]\n")
    return tmp_path / "data.yaml"


def coco_json(data: Path, image_ids: list[object], categories: list[object]) -> Path:
    """The split of `nested` as a COCO file with these ids, and a data yaml for it."""
    annotations, _ = load_annotations(load_data_config(data), "val")
    file_names = {one.image_id: one.path.relative_to(data.parent).as_posix() for one in annotations}
    content = coco_ground_truth(annotations, NAMES, categories, file_names=file_names)
    for image, image_id in zip(content["images"], image_ids, strict=True):
        for one in [one for one in content["annotations"] if one["image_id"] == image["id"]]:
            one["image_id"] = image_id
        image["id"] = image_id
    (data.parent / "truth.json").write_text(json.dumps(content))
    data.with_name("coco.yaml").write_text("val: truth.json\nnames: [cat, dog]\n")
    return data.with_name("coco.yaml")


@pytest.mark.parametrize(
    ("image_ids", "categories"), [(None, None), ([900, 7, 44], [7, 90]), (["p", "q/../../r", "s"], ["x", "y"])]
)
def test_pycocotools_on_the_two_files_gives_our_figure(
    weights: Path,
    nested: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    image_ids: list[object] | None,
    categories: list[object] | None,
):
    path = coco_json(nested, image_ids, categories) if image_ids and categories else nested
    annotations, _ = load_annotations(load_data_config(path), "val")

    def almost_the_truth(rows: object, batch: dict) -> Iterator[np.ndarray]:
        for one in (annotations[int(index)] for index in batch["indices"]):
            scores = 0.9 - 0.1 * np.arange(len(one))[:, None]
            yield np.concatenate((one.boxes_xyxy + 1.5, scores, one.classes[:, None]), 1)

    monkeypatch.setattr(evaluate_module, "_in_original_pixels", almost_the_truth)
    result = validate(settings(weights, path, tmp_path / "runs", save_json=True, save_txt=True))
    folder = tmp_path / "runs" / "exp"
    truth, rows = (json.loads((folder / name).read_text()) for name in ("ground_truth.json", "predictions.json"))
    files = {image["id"]: image["file_name"] for image in truth["images"]}
    assert sorted(files.values()) == ["images/a/0.png", "images/b/0.png", "images/b/1.png"]
    assert rows
    assert all(row["file_name"] == files[row["image_id"]] for row in rows)
    assert {row["category_id"] for row in rows} == set(categories or [0, 1])
    if image_ids:
        assert set(files) == set(image_ids)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = coco_module.COCO(str(folder / "ground_truth.json"))
        evaluation = cocoeval_module.COCOeval(coco, coco.loadRes(str(folder / "predictions.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(
        json.loads((folder / "coco_eval.json").read_text())["max_det_100"]["AP"]
    )
    assert 0.3 < result.metrics.map < 0.9
    assert evaluation.stats[0] == pytest.approx(result.metrics.map, abs=1e-4)
    assert len(list((folder / "labels").iterdir())) == 3
    assert len(list((folder / "labels").rglob("*.txt"))) == 3


@pytest.mark.parametrize(
    ("change", "text"),
    [({"conf_thres": 1.5}, "--conf-thres"), ({"batch": 0}, "--batch 0"), ({"img": -1}, "--img -1")],
)
def test_numbers_out_of_range(weights: Path, data: Path, tmp_path: Path, change: dict, text: str):
    with pytest.raises(SettingsError) as caught:
        validate(settings(weights, data, tmp_path, **change))
    assert_says(caught.value, text)


def test_missing_weights_and_split(weights: Path, data: Path, tmp_path: Path):
    with pytest.raises(CheckpointError) as caught:
        validate(settings(tmp_path / "none.pt", data, tmp_path))
    assert_says(caught.value, tmp_path / "none.pt")
    with pytest.raises(DataError) as caught:
        validate(settings(weights, data, tmp_path, task="test"))
    assert_says(caught.value, data, "test", "train", "val")
    assert not (tmp_path / "exp").exists()


class TestCommandLine:
    def test_aliases_and_defaults(self):
        assert val.parse_options(["--weights", "a.pt"]) == ValOptions("a.pt")
        for name in ("--img", "--imgsz", "--img-size"):
            assert val.parse_options(["--weights", "a.pt", name, "320"]).img == 320
        for name in ("--batch", "--batch-size"):
            assert val.parse_options(["--weights", "a.pt", name, "4"]).batch == 4
        changed = val.parse_options(["--weights", "a.pt", "--half", "--no-rect", "--no-deploy"])
        assert (changed.amp, changed.rect, changed.deploy) == ("fp16", False, False)

    @pytest.mark.parametrize("wrong", ["--aug", "--save", "--augment", "--save-hybrid", "--dnn"])
    def test_ambiguous_and_retired_flags(self, wrong: str, capsys: pytest.CaptureFixture[str]):
        with pytest.raises(SystemExit) as stopped:
            val.parse_options(["--weights", "a.pt", wrong])
        assert stopped.value.code == 2
        assert wrong in capsys.readouterr().err

    def test_user_mistake_is_one_line_and_status_2(self, capsys: pytest.CaptureFixture[str]):
        assert cli.run(lambda: val.validate(val.parse_options(["--weights", "none.pt"]))) == cli.EXIT_USER
        said = capsys.readouterr().err
        assert_says(said, "none.pt")
        assert len(said.splitlines()) == 1


def test_workers_start_with_the_plugins(
    weights: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    build = validate_run.build_loader

    def building(*arguments: object, on_worker_start: partial, **options: object) -> Loader:
        started.append((on_worker_start.func, on_worker_start.args))
        return build(*arguments, on_worker_start=on_worker_start, **options)

    monkeypatch.setattr(validate_run, "build_loader", building)
    monkeypatch.setattr(validate_run, "loaded_plugins", lambda: ["a plug-in"])
    validate(settings(weights, data, tmp_path))
    assert started == [(install_plugins, (["a plug-in"],))]


def test_deep_images_are_scaled_as_in_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_split(tmp_path, "val", [ramp("u2", hw=(32, 32))], png, ".png")
    data = write_data_yaml(tmp_path)
    for trained, expected in ((None, (0, 4095)), ((0.0, 16383.0), (0, 16383))):
        model = tiny_model(nc=1)
        model.pixel_range = trained
        save_checkpoint(tmp_path / "w.pt", {"network": network_entry(model), "model": model.state_dict()})
        network = load_network(tmp_path / "w.pt")
        dataset = validate_run.open_split(settings(tmp_path / "w.pt", data, tmp_path), network, (64, 64)).dataset
        assert dataset.pixel_range == expected
    assert_says(capsys.readouterr().out, "0 to 3071", "0 to 16383", f"as {tmp_path / 'w.pt'} was trained")


def test_a_network_for_other_images_than_rgb_is_refused(tmp_path: Path, data: Path) -> None:
    model = Model(tiny_config(nc=2) | {"ch": 4})
    save_checkpoint(tmp_path / "w.pt", {"network": network_entry(model), "model": model.state_dict()})
    with pytest.raises(SettingsError) as caught:
        validate(settings(tmp_path / "w.pt", data, tmp_path))
    assert_says(caught.value, tmp_path / "w.pt", "4 channels", 3)
    assert not (tmp_path / "exp").exists()
