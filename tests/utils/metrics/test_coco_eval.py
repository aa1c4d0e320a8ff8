"""Our metrics against pycocotools, on real and synthetic ground truth; the detections are damaged copies of it."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest

from data.config import DataConfig
from data.labels.annotation import Annotation
from data.scan import load_annotations
from tests.few import few
from tests.saying import assert_says
from tests.utils.metrics.perturb import outlined_annotations, perturbed, perturbed_masks, synthetic_annotations
from utils.errors import SettingsError
from utils.geometry.region import Region, polygon_region
from utils.geometry.rle import encode_region
from utils.metrics.coco_eval import coco_ground_truth, coco_results, evaluate_coco, result_rows, write_results
from utils.metrics.detection import DetectionMetrics, DetectionResult
from utils.metrics.mask_overlap import mask_overlaps, truth_masks

coco_module = pytest.importorskip("pycocotools.coco")
cocoeval_module = pytest.importorskip("pycocotools.cocoeval")

TOLERANCE = 1e-4
CATEGORIES = [3, 1, 90, 17, 44, 5, 62, 8]


def in_loop(annotations: list[Annotation], detections: dict[int, np.ndarray], max_det: int) -> DetectionResult:
    metrics = DetectionMetrics(max_det)
    for item in annotations:
        metrics.update(detections[item.image_id], item.boxes_xyxy, item.classes, item.crowd, item.image_id)
    return metrics.compute()


def damaged(annotations: list[Annotation], noise: float, nc: int, seed: int, **settings: int) -> dict[int, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {item.image_id: perturbed(item, noise, nc, rng, **settings) for item in annotations}


def gaps(result: DetectionResult, numbers: dict[str, float]) -> list[float]:
    return [abs(result.map - numbers["AP"]), abs(result.map50 - numbers["AP50"]), abs(result.map75 - numbers["AP75"])]


def read_coco(path: Path) -> tuple[list[Annotation], dict]:
    """Annotations straight from a COCO file, independent of data/."""
    content = json.loads(path.read_text())
    index_of = {category["id"]: index for index, category in enumerate(content["categories"])}
    annotations = []
    for image in content["images"]:
        objects = [item for item in content["annotations"] if item["image_id"] == image["id"]]
        boxes_xywh = np.array([item["bbox"] for item in objects]).reshape(-1, 4)
        annotations.append(
            Annotation(
                path=Path(image["file_name"]),
                file_hw=(image["height"], image["width"]),
                image_id=image["id"],
                classes=np.array([index_of[item["category_id"]] for item in objects], dtype=np.int64),
                boxes_xyxy=np.concatenate((boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]), 1).astype(
                    np.float32
                ),
                polygons=[[] for _ in objects],
                crowd=np.array([item["iscrowd"] for item in objects], dtype=bool),
                areas=np.array([item["area"] for item in objects], dtype=np.float64),
                annotation_ids=np.array([item["id"] for item in objects], dtype=np.int64),
            )
        )
    return annotations, content


@pytest.mark.parametrize("noise", [0.2, 0.35, 0.5])
def test_synthetic_equals_pycocotools(noise: float):
    annotations = synthetic_annotations()
    detections = damaged(annotations, noise, len(CATEGORIES), seed=int(100 * noise))
    truth = coco_ground_truth(annotations, list("abcdefgh"), CATEGORIES)
    result = in_loop(annotations, detections, 300)
    numbers = evaluate_coco(truth, coco_results(detections, CATEGORIES), 300)
    assert 0.1 < result.map < 0.9
    assert max(gaps(result, numbers)) < TOLERANCE


@pytest.mark.parametrize("max_det", [1, 3, 100])
def test_equal_number_of_detections_matters(max_det: int):
    annotations = synthetic_annotations(20, nc=2)
    detections = damaged(annotations, 0.3, 2, seed=1, false_alarms=30)
    truth = coco_ground_truth(annotations, ["a", "b"], [1, 2])
    numbers = evaluate_coco(truth, coco_results(detections, [1, 2]), max_det)
    assert max(gaps(in_loop(annotations, detections, max_det), numbers)) < TOLERANCE


@pytest.mark.parametrize(
    ("noise", "false_alarms"),
    few([(0.1, 12), (0.16, 12), (0.2, 12), (0.24, 12), (0.3, 12), (0.06, 280)], (0.2, 12), (0.06, 280)),
)
def test_coco_images_equal_pycocotools(shared: Path, noise: float, false_alarms: int):
    annotations, content = read_coco(shared / "datasets" / "coco_tiny" / "annotations" / "instances_val2017.json")
    assert sum(int(item.crowd.sum()) for item in annotations) > 0
    detections = damaged(annotations, noise, 80, seed=0, false_alarms=false_alarms)
    detections = {image_id: rows[np.argsort(-rows[:, 4], kind="stable")[:300]] for image_id, rows in detections.items()}
    categories = [category["id"] for category in content["categories"]]
    results = coco_results(detections, categories)
    result = in_loop(annotations, detections, 300)
    official = evaluate_coco(content, results, 300)  # the file's own boxes, in float64
    ours = evaluate_coco(coco_ground_truth(annotations, [str(k) for k in categories], categories), results, 300)
    at_100 = evaluate_coco(content, results)
    print(
        f"noise {noise}: mAP50-95 {result.map:.6f}, mAP50 {result.map50:.6f}, "
        f"{sum(map(len, detections.values()))} detections; "
        f"largest gap at 300 {max(gaps(result, official)):.1e}, at 100 {max(gaps(result, at_100)):.1e}"
    )
    assert 0.3 < result.map < 0.7
    assert max(gaps(result, official)) < TOLERANCE
    assert max(gaps(result, ours)) < TOLERANCE


Found = dict[int, tuple[np.ndarray, list[Region]]]


def masks_in_loop(annotations: list[Annotation], found: Found) -> DetectionResult:
    metrics = DetectionMetrics(300)
    for item in annotations:
        detections, regions = found[item.image_id]
        truths, ignored = truth_masks(item)
        overlaps = mask_overlaps(detections, regions.__getitem__, truths, item.classes, ignored)
        metrics.update(detections, item.boxes_xyxy, item.classes, ignored, item.image_id, overlaps)
    return metrics.compute()


def mask_results(annotations: list[Annotation], found: Found, categories: list[int]) -> list[dict]:
    sizes = {item.image_id: item.file_hw for item in annotations}
    masks = {
        image_id: [encode_region(region, sizes[image_id]) for region in regions]
        for image_id, (_, regions) in found.items()
    }
    return coco_results({image_id: rows for image_id, (rows, _) in found.items()}, categories, masks)


@pytest.mark.parametrize("noise", [0.1, 0.2, 0.4])
def test_masks_equal_pycocotools(noise: float):
    annotations, rng = outlined_annotations(20), np.random.default_rng(int(100 * noise))
    found = {item.image_id: perturbed_masks(item, noise, len(CATEGORIES), rng) for item in annotations}
    truth = coco_ground_truth(annotations, list("abcdefgh"), CATEGORIES, masks=True)
    result = masks_in_loop(annotations, found)
    numbers = evaluate_coco(truth, mask_results(annotations, found, CATEGORIES), 300, masks=True)
    print(
        f"noise {noise}: mask mAP50-95 {result.map:.4f}, mAP50 {result.map50:.4f}, "
        f"largest gap {max(gaps(result, numbers)):.1e}"
    )
    assert 0.05 < result.map < 0.9
    # objects without a mask are ignored
    assert result.num_instances < sum(int((~item.crowd).sum()) for item in annotations)
    assert max(gaps(result, numbers)) < TOLERANCE


@pytest.mark.parametrize("noise", few([0.1, 0.2, 0.4], 0.2))
def test_masks_of_coco_images_equal_pycocotools(shared: Path, noise: float):
    path = shared / "datasets" / "coco_tiny" / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    config = DataConfig(path, path.parent, {"val": (path,)}, [category["name"] for category in content["categories"]])
    annotations, report = load_annotations(config, "val")
    assert report.crowds == sum(len(item.run_lengths) for item in annotations) > 0
    rng = np.random.default_rng(0)
    found = {item.image_id: perturbed_masks(item, noise, 80, rng) for item in annotations}
    result = masks_in_loop(annotations, found)
    results = mask_results(annotations, found, report.categories)
    numbers = evaluate_coco(content, results, 300, masks=True)  # the file's own masks
    ours = evaluate_coco(
        coco_ground_truth(annotations, config.names, report.categories, masks=True), results, 300, masks=True
    )
    print(
        f"noise {noise}: mask mAP50-95 {result.map:.4f}, largest gap {max(gaps(result, numbers)):.1e}, "
        f"to ours {max(gaps(result, ours)):.1e}"
    )
    assert 0.1 < result.map < 0.95
    assert max(gaps(result, numbers)) < TOLERANCE
    assert max(gaps(result, ours)) < TOLERANCE


def test_masks_filled_by_pixel_centre_are_near(monkeypatch: pytest.MonkeyPatch):
    annotations, rng = outlined_annotations(20), np.random.default_rng(1)
    found = {item.image_id: perturbed_masks(item, 0.2, len(CATEGORIES), rng) for item in annotations}
    by_pycocotools = masks_in_loop(annotations, found)
    monkeypatch.setattr("utils.metrics.mask_overlap.filled", polygon_region)
    by_centre = masks_in_loop(annotations, found)
    assert by_centre.map != by_pycocotools.map
    assert by_centre.map == pytest.approx(by_pycocotools.map, abs=0.02)


def test_box_results_with_masks_are_measured_as_boxes():
    annotations = outlined_annotations(6)
    found = {item.image_id: perturbed_masks(item, 0.1, 8, np.random.default_rng(0)) for item in annotations}
    results, truth = (
        mask_results(annotations, found, CATEGORIES),
        coco_ground_truth(annotations, list("abcdefgh"), CATEGORIES),
    )
    plain = [{key: value for key, value in result.items() if key != "segmentation"} for result in results]
    assert evaluate_coco(truth, results) == evaluate_coco(truth, plain)


def test_twelve_numbers_are_those_that_pycocotools_prints():
    annotations = synthetic_annotations(15, nc=3, seed=5)
    truth, results = (
        coco_ground_truth(annotations, list("abc"), [1, 2, 3]),
        coco_results(damaged(annotations, 0.3, 3, 2), [1, 2, 3]),
    )
    with contextlib.redirect_stdout(io.StringIO()):
        coco = coco_module.COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluation = cocoeval_module.COCOeval(coco, coco.loadRes([dict(item) for item in results]), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert list(evaluate_coco(truth, results).values()) == pytest.approx(evaluation.stats.tolist(), abs=1e-12)


def test_names_of_the_twelve_numbers_and_empty_results():
    truth = coco_ground_truth(synthetic_annotations(3, nc=3), list("abc"), [1, 2, 3])
    numbers = evaluate_coco(truth, [], 300)
    expected = "AP AP50 AP75 AP_small AP_medium AP_large AR1 AR10 AR300 AR_small AR_medium AR_large"
    assert list(numbers) == expected.split()
    assert numbers["AP"] == 0


def test_nothing_is_printed_and_inputs_stay_as_they_are(capsys: pytest.CaptureFixture[str]):
    annotations = synthetic_annotations(3, nc=3)
    truth, results = (
        coco_ground_truth(annotations, list("abc"), [1, 2, 3]),
        coco_results(damaged(annotations, 0.2, 3, 0), [1, 2, 3]),
    )
    before = json.dumps([truth, results])
    evaluate_coco(truth, results)
    assert json.dumps([truth, results]) == before
    assert capsys.readouterr().out == ""


def test_results_file(tmp_path: Path):
    results = coco_results({7: np.array([[1, 2, 4, 8, 0.1, 1]], dtype=np.float32), 9: np.zeros((0, 6))}, [1, 90])
    assert results == [{"image_id": 7, "category_id": 90, "bbox": [1, 2, 3, 6], "score": pytest.approx(0.1)}]
    assert np.float32(results[0]["score"]) == np.float32(0.1)
    write_results(tmp_path / "predictions.json", results)
    assert json.loads((tmp_path / "predictions.json").read_text()) == results


def test_ground_truth_from_a_file(tmp_path: Path):
    annotations = synthetic_annotations(3, nc=3)
    truth = coco_ground_truth(annotations, list("abc"), [1, 2, 3])
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    results = coco_results(damaged(annotations, 0.2, 3, 0), [1, 2, 3])
    assert evaluate_coco(tmp_path / "truth.json", results) == evaluate_coco(truth, results)


def test_pycocotools_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "pycocotools.coco", None)
    with pytest.raises(SettingsError) as caught:
        evaluate_coco({"images": [], "annotations": [], "categories": []}, [])
    assert_says(caught.value, "pip install pycocotools")


def test_result_rows_keep_scores_apart() -> None:
    scores = np.array([0.5, np.nextafter(np.float32(0.5), np.float32(1))], np.float32)
    rows = result_rows("b", "b.jpg", np.array([[1, 2, 4.00004, 8]] * 2, np.float32), scores, [90, 3])
    assert [(row["image_id"], row["category_id"], row["bbox"]) for row in rows] == [
        ("b", 90, [1, 2, 3, 6]),
        ("b", 3, [1, 2, 3, 6]),
    ]
    assert np.array_equal(np.array([row["score"] for row in rows], np.float32), scores)
    assert rows[0]["file_name"] == "b.jpg"
    assert "segmentation" not in rows[0]
    assert result_rows(1, None, [[0, 0, 1, 1]], [0.5], [1], [{"size": [1, 1]}])[0]["segmentation"] == {"size": [1, 1]}
