"""What a validation run prints and writes: tables, metrics, label files, COCO files."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from data.dataset import DetectionDataset
from data.labels.annotation import Annotation, Id
from data.labels.yolo_txt import label_rows
from utils.files import write_csv, write_json, write_text
from utils.geometry.rle import decode_region
from utils.inference.evaluate import EvalResult
from utils.metrics.coco_eval import DEFAULT_MAX_DET, coco_ground_truth, coco_results, evaluate_coco, write_results
from utils.metrics.detection import DetectionResult
from utils.precision import Precision

MANY_CLASSES = 50
TABLE_HEADER = ("class", "images", "instances", "P", "R", "mAP50", "mAP50-95")
TRUTH_FILES = {"boxes": "ground_truth.json", "masks": "ground_truth_masks.json"}


def print_table(result: EvalResult, names: list[str], verbose: bool = False) -> None:
    """Print metrics overall and, for up to 50 classes or when `verbose`, by class; then losses and speed."""
    for metrics, title in ((result.metrics, "class"), (result.masks, "masks")):
        if metrics is None:
            continue
        rows = metrics.table(names)
        if len(names) > MANY_CLASSES and not verbose:
            rows = rows[:1]
        width = max(len(title), *(len(row[0]) for row in rows))
        print(f"{title:<{width}}" + "".join(f"{column:>11}" for column in TABLE_HEADER[1:]))
        for name, images, instances, *rates in rows:
            print(f"{name:<{width}}{images:>11}{instances:>11}" + "".join(f"{rate:>11.4f}" for rate in rates))
    if not result.metrics.num_instances:
        print("all metrics are 0: the split has no labelled object")
    if result.losses:
        print("loss: " + ", ".join(f"{name} {value:.4f}" for name, value in result.losses.items()))
    print("time of an image: " + ", ".join(f"{stage} {value:.1f} ms" for stage, value in result.speed_ms.items()))


def write_metrics(
    folder: Path,
    result: EvalResult,
    names: list[str],
    options: dict[str, Any],
    precision: Precision,
    size_hw: tuple[int, int],
) -> None:
    """Write metrics.json and, by class, classes.csv; of masks, classes_mask.csv."""
    metrics, masks = result.metrics, result.masks
    rows = metrics.table(names)
    mask_rows = masks.table(names) if masks else []
    content: dict[str, Any] = {
        **metrics.summary(),
        "metrics/mAP_0.75": metrics.map75,
        "metrics/F1": metrics.f1,
        **(
            {**masks.summary("(mask)"), "metrics/mAP_0.75(mask)": masks.map75, "metrics/F1(mask)": masks.f1}
            if masks
            else {}
        ),
        "confidence": metrics.confidence,
        "fitness": result.fitness,
        **{f"val/{name}_loss": value for name, value in result.losses.items()},
        "images": metrics.num_images,
        "instances": metrics.num_instances,
        "speed_ms": result.speed_ms,
        "classes": [dict(zip(TABLE_HEADER, row, strict=True)) for row in rows[1:]],
        **({"classes(mask)": [dict(zip(TABLE_HEADER, row, strict=True)) for row in mask_rows[1:]]} if masks else {}),
        "precision": precision.describe(),
        "image_size": size_hw[0] if size_hw[0] == size_hw[1] else list(size_hw),
        "settings": options,
    }
    write_json(folder / "metrics.json", content)
    write_csv(folder / "classes.csv", TABLE_HEADER, rows)
    if masks:
        write_csv(folder / "classes_mask.csv", TABLE_HEADER, mask_rows)


def write_labels(folder: Path, dataset: DetectionDataset, result: EvalResult, with_confidence: bool) -> None:
    """Write one label file for each image (see `label_rows`)."""
    stems = label_stems(dataset.annotations)
    for index, detections in result.detections.items():
        item = dataset.annotations[index]
        regions = [decode_region(mask) for mask in result.segmentations.get(index, ())]
        scores = detections[:, 4].tolist() if with_confidence else None
        classes = detections[:, 5].astype(int).tolist()
        rows = label_rows(detections[:, :4], classes, item.file_hw, regions, scores)
        write_text(folder / f"{stems[index]}.txt", "".join(f"{row}\n" for row in rows))


def label_stems(annotations: Sequence[Annotation]) -> list[str]:
    """Return a name for each image's label file: the image's, with its number where several images have one name."""
    uses = Counter(item.path.stem for item in annotations)
    taken = {stem for stem, count in uses.items() if count == 1}
    stems = []
    for place, item in enumerate(annotations, 1):
        stem = item.path.stem
        if uses[stem] > 1:
            number = item.image_id if isinstance(item.image_id, int) else place
            stem = next(name for name in _numbered(f"{stem}_{number}") if name not in taken)
            taken.add(stem)
        stems.append(stem)
    return stems


def _numbered(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}_{number}" for number in count(2))


def traceable_names(annotations: Sequence[Annotation], root: Path) -> dict[Id, str]:
    """Return by image id the name in its COCO file, else the path from the root of the data set."""
    names: dict[Id, str] = {}
    for item in annotations:
        path = item.path.relative_to(root) if item.path.is_relative_to(root) else item.path
        names[item.image_id] = item.file_name or path.as_posix()
    return names


def compare_with_coco(
    folder: Path,
    dataset: DetectionDataset,
    result: EvalResult,
    categories: Sequence[Id],
    names: Mapping[Id, str],
    max_det: int,
) -> None:
    """Write detections and truth as COCO files, print COCO's twelve numbers and how the in-loop metrics differ.

    predictions.json with ground_truth.json (for masks ground_truth_masks.json) gives the printed numbers in any
    pycocotools; coco_eval.json holds them.

    Args:
        categories: category id of each class.
        names: file name of each image, by image id.
    """
    image_ids = [item.image_id for item in dataset.annotations]
    detections = {image_ids[index]: rows for index, rows in result.detections.items()}
    segmentations = {image_ids[index]: masks for index, masks in result.segmentations.items()}
    results = coco_results(detections, categories, segmentations, names)
    write_results(folder / "predictions.json", results)
    content: dict[str, Any] = {}
    for metrics, what in ((result.metrics, "boxes"), (result.masks, "masks")):
        if metrics is not None:
            truth = coco_ground_truth(dataset.annotations, dataset.names, categories, what == "masks", names)
            write_results(folder / TRUTH_FILES[what], truth)
            by_limit = {
                limit: evaluate_coco(truth, results, limit, what == "masks")
                for limit in dict.fromkeys((DEFAULT_MAX_DET, max_det))
            }
            compared = compare_numbers(metrics, by_limit, max_det, what)
            content |= compared if what == "boxes" else {what: compared}
    write_json(folder / "coco_eval.json", content)


def compare_numbers(
    metrics: DetectionResult, by_limit: dict[int, dict[str, float]], max_det: int, what: str
) -> dict[str, Any]:
    """Print and return COCO's numbers at each limit of detections, and the in-loop metrics minus them."""
    print(f"pycocotools, {what}, at most {DEFAULT_MAX_DET} detections a class and image (-1: no such object):")
    for name, value in by_limit[DEFAULT_MAX_DET].items():
        print(f"  {name:<10}{value:>8.4f}")
    in_loop = {"AP": metrics.map, "AP50": metrics.map50, "AP75": metrics.map75}
    gaps = {
        limit: {name: value - numbers[name] for name, value in in_loop.items()} for limit, numbers in by_limit.items()
    }
    for limit, gap in gaps.items():
        differences = ", ".join(f"{name} {value:+.1e}" for name, value in gap.items())
        print(f"in-loop (at most {max_det}) minus pycocotools at {limit}: {differences}")
    return {
        "in_loop": in_loop,
        **{f"max_det_{limit}": numbers | {"gap": gaps[limit]} for limit, numbers in by_limit.items()},
    }
