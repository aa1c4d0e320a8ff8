"""Compare networks, losses and modules with reference files.

Run `python tests/check_golden.py networks|loss|modules DIR`.

It prints one line per file: PASS, FAIL or SKIP, and the largest relative error. The exit status is 0 when nothing
failed and something passed.
"""

import argparse
import json
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent)) if __name__ == "__main__" else None

from models.config.reading import find_config  # noqa: E402
from models.yolo import Model  # noqa: E402
from tests import golden_modules  # noqa: E402
from utils.checkpoint.importing import import_state_dict  # noqa: E402
from utils.errors import ModelConfigError  # noqa: E402
from utils.geometry.anchors import NUM_BINS  # noqa: E402
from utils.losses.detection import build_loss  # noqa: E402

NETWORK_TOLERANCE, LOSS_TOLERANCE, MODULE_TOLERANCE = 1e-6, 1e-4, 1e-10


class Skipped(Exception):
    """What a file describes does not exist here."""


def seeded_tensor(name: str, shape: list[int]) -> torch.Tensor:
    """Return the float64 values that a state-dict entry has in the reference files; they follow from its name."""
    stream = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF)
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if name.split(".")[-3:] in (["dfl", "conv", "weight"], ["dfl2", "conv", "weight"], ["dfl3", "conv", "weight"]):
        return torch.arange(16.0, dtype=torch.float64).view(shape)
    if name.endswith("running_mean"):
        values = 0.1 * stream.standard_normal(shape)
    elif name.endswith("running_var"):
        values = stream.uniform(0.5, 1.5, shape)
    elif len(shape) == 1 and name.endswith("weight"):
        values = 1 + 0.1 * stream.standard_normal(shape)
    elif len(shape) == 1:
        values = 0.1 * stream.standard_normal(shape)
    else:
        values = stream.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(values, dtype=np.float64))


def relative_error(ours: np.ndarray, reference: np.ndarray, scale: float) -> float:
    """Return the largest difference over `scale`."""
    return float(np.abs(ours - reference).max() / max(scale, 1e-12))


def network_outputs(model: Model, image: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return a network's evaluation outputs under the names that the reference files use."""
    with torch.inference_mode():
        prediction, outputs = model(image, raw=True)
        if model.task == "segment":
            return segmentation_outputs(*prediction, outputs)
        if not outputs["aux"]:
            return {"pred": prediction, "/0": prediction} | box_and_class_logits(outputs["main"])
        named = {f"pred{number}": model.decode(output) for number, output in enumerate(outputs["aux"])}
    return named | {f"pred{len(named)}": prediction, "pred": prediction}


def segmentation_outputs(
    prediction: torch.Tensor, prototypes: torch.Tensor, outputs: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """Return the lead branch's outputs under the names of both families' reference files."""
    lead = outputs["main"]
    yolov9 = {"/0": prediction, "/1/1": lead["coefficients"], "/1/2": prototypes}
    if not outputs["aux"]:
        yolov9 |= {f"/1/0/{level}": maps for level, maps in enumerate(lead["maps"])}
    others = {
        "/0/0": prediction,
        "/0/1": prototypes,
        "/1/proto": prototypes,
        "/1/mask_coefficient": lead["coefficients"],
    }
    return yolov9 | others | box_and_class_logits(lead["maps"])


def box_and_class_logits(maps: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return raw maps as the reference files of YOLOv8 and YOLO11 name their parts."""
    flat = torch.cat([level.flatten(2) for level in maps], 2)
    return {"/1/boxes": flat[:, : 4 * NUM_BINS], "/1/scores": flat[:, 4 * NUM_BINS :]}


def check_network(path: Path) -> float:
    """Return the largest relative error of outputs; 1 for a wrong parameter count or an incomplete import."""
    golden = json.loads(path.read_text())
    try:
        find_config(f"{golden['cfg']}.yaml")
    except ModelConfigError as error:
        raise Skipped("no such network here") from error
    model = Model(f"{golden['cfg']}.yaml").double().eval()
    if sum(parameter.numel() for parameter in model.parameters()) != golden["parameters"]:
        return 1.0
    report = import_state_dict(model, {name: seeded_tensor(name, shape) for name, shape in golden["state_dict"]})
    if report.missing or report.unexpected or report.mismatched:
        return 1.0
    image = torch.from_numpy(np.random.RandomState(golden["input"]["seed"]).uniform(0, 1, golden["input"]["shape"]))
    ours, errors = network_outputs(model, image), []
    for name, reference in golden["output"].items():
        if isinstance(reference, dict) and name in ours:
            if list(ours[name].shape) != reference["shape"]:
                return 1.0
            values = ours[name].flatten().numpy()[reference["index"]]
            errors.append(relative_error(values, np.array(reference["value"]), reference["absmax"]))
    if not errors:
        raise Skipped(f"none of its outputs {list(golden['output'])} is known here")
    return max(errors)


def seeded_maps(seed: int, channels: int, image_hw: list[int]) -> list[torch.Tensor]:
    """Return the seeded feature maps of the loss files, strides 8, 16, 32, float32 leaves."""
    stream = np.random.RandomState(seed)
    shapes = [(3, channels, image_hw[0] // stride, image_hw[1] // stride) for stride in (8, 16, 32)]
    return [torch.from_numpy(stream.standard_normal(shape).astype(np.float32)).requires_grad_() for shape in shapes]


def check_detection_loss(golden: dict[str, Any]) -> float:
    """Return the largest relative error of totals, items and gradient norms, over all recorded cases."""
    criterion = build_loss(Model("gelan-t.yaml", nc=5))
    errors = []
    for case in ("single", "dual", "single_no_targets", "dual_no_targets"):
        first, second = seeded_maps(11, 69, golden["image_hw"]), seeded_maps(12, 69, golden["image_hw"])
        outputs = {"main": first, "aux": []} if case.startswith("single") else {"main": second, "aux": [first]}
        targets = torch.zeros(0, 6) if case.endswith("no_targets") else torch.tensor(golden["targets"])
        total, items = criterion(outputs, {"targets": targets, "image_hw": tuple(golden["image_hw"])})
        total.backward()
        leaves = first if case.startswith("single") else [*first, *second]
        ours = [
            float(total.detach()),
            *(float(items[key]) for key in ("box", "cls", "dfl")),
            *(float(leaf.grad.norm()) for leaf in leaves),
        ]
        expected = [
            golden[case]["total"],
            *(golden[case]["items"][key] for key in ("box", "cls", "dfl")),
            *golden[case]["grad_norm"],
        ]
        errors += [
            abs(value - reference) / max(abs(reference), 1e-12)
            for value, reference in zip(ours, expected, strict=True)
            if reference
        ]
        errors += [abs(value) for value, reference in zip(ours, expected, strict=True) if not reference]
    return max(errors)


def ellipse_maps(targets: torch.Tensor, batch: int, size_hw: tuple[int, int]) -> torch.Tensor:
    """Return index maps (B, h, w) of the ellipse in each box, later targets on top; a cell is in if its centre is."""
    y, x = torch.meshgrid(torch.arange(size_hw[0]) + 0.5, torch.arange(size_hw[1]) + 0.5, indexing="ij")
    maps, numbers = torch.zeros(batch, *size_hw, dtype=torch.int64), [0] * batch
    for image, _, *box_norm in targets.tolist():
        centre_x, centre_y, width, height = (value * size_hw[1 - index % 2] for index, value in enumerate(box_norm))
        numbers[int(image)] += 1
        inside = ((x - centre_x) / (width / 2)) ** 2 + ((y - centre_y) / (height / 2)) ** 2 <= 1
        maps[int(image)][inside] = numbers[int(image)]
    return maps


def check_segmentation_loss(golden: dict[str, Any], inputs: dict[str, Any]) -> float:
    """Return the largest relative error of total, items and gradient norms; `inputs`: targets and image size."""
    (height, width), stream = inputs["image_hw"], np.random.RandomState(21)
    shapes = [(3, 69, height // stride, width // stride) for stride in (8, 16, 32)]
    shapes += [(3, 32, sum(shape[2] * shape[3] for shape in shapes)), (3, 32, height // 4, width // 4)]
    *maps, coefficients, prototypes = (
        torch.from_numpy(stream.standard_normal(shape).astype(np.float32)).requires_grad_() for shape in shapes
    )
    targets = torch.tensor(inputs["targets"])
    masks = ellipse_maps(targets, 3, (height // 4, width // 4))
    pixels = [
        [int((one == number + 1).sum()) for number in range(len(counts))]
        for one, counts in zip(masks, golden["mask_pixels"], strict=True)
    ]
    if pixels != golden["mask_pixels"]:
        return 1.0
    outputs = {"main": {"maps": maps, "coefficients": coefficients, "prototypes": prototypes}, "aux": []}
    total, items = build_loss(Model("yolo11n-seg.yaml", nc=5))(
        outputs, {"targets": targets, "masks": masks, "image_hw": (height, width)}
    )
    total.backward()
    boxes, scores = (
        torch.cat([level.grad[:, part].flatten() for level in maps]).norm() for part in (slice(0, 64), slice(64, None))
    )
    ours = [
        total,
        items["box"],
        items["mask"],
        items["cls"],
        items["dfl"],
        boxes,
        scores,
        coefficients.grad.norm(),
        prototypes.grad.norm(),
    ]
    expected = [golden["total"], *(golden["items"][f"{name}_loss"] for name in ("box", "seg", "cls", "dfl"))]
    expected += [golden["grad_norm"][name] for name in ("boxes", "scores", "mask_coefficient", "proto")]
    return max(
        abs(float(value.detach()) - reference) / abs(reference) for value, reference in zip(ours, expected, strict=True)
    )


def check_loss(path: Path) -> float:
    """Return the largest relative error of one file of losses."""
    golden = json.loads(path.read_text())
    if "single" in golden:
        return check_detection_loss(golden)
    inputs = path.with_name("tal_detect.json")
    if "seg_loss" not in golden.get("items", {}) or not inputs.is_file():
        raise Skipped("no loss that is known here, or without the targets in tal_detect.json")
    return check_segmentation_loss(golden, json.loads(inputs.read_text()))


def array_error(ours: torch.Tensor, reference: np.ndarray) -> float:
    """Return the largest difference over the largest reference value; absolute where that value is almost 0."""
    scale = float(np.abs(reference).max())
    difference = float(np.abs(ours.detach().numpy().reshape(reference.shape) - reference).max())
    return difference / scale if scale >= 1e-12 else difference * MODULE_TOLERANCE / 1e-12


def check_module(path: Path) -> float:
    """Return the largest relative error of a plug-in module's output, intermediates and gradients, in float64."""
    with np.load(path) as arrays:
        golden = {name: arrays[name] for name in arrays.files}
    meta = json.loads(str(golden["meta"]))
    if meta["kind"] not in golden_modules.REFERENCES:
        raise Skipped(f"{meta['kind']}: no such layer here")
    reference, module = golden_modules.build(str(golden["meta"]))
    if sum(parameter.numel() for parameter in module.parameters()) != meta["params"]:
        return 1.0
    weights = {
        reference.our_name(name[2:]): torch.from_numpy(value) for name, value in golden.items() if name.startswith("w/")
    }
    ours = {name: value for name, value in module.state_dict().items() if value.is_floating_point()}
    if weights.keys() != ours.keys():
        return 1.0
    module.load_state_dict({name: value.reshape(ours[name].shape) for name, value in weights.items()}, strict=False)
    given = [torch.from_numpy(golden[name]) for name in ("x", *(f"aux/{name}" for name in reference.inputs))]
    x = given[0].requires_grad_()
    y, gradients = golden_modules.gradients(module, given, torch.from_numpy(golden["gy"]))
    errors = [array_error(y, golden["y"]), array_error(x.grad, golden["gx"])]
    errors += [
        array_error(gradients[reference.our_name(name[3:])], value)
        for name, value in golden.items()
        if name.startswith("gw/")
    ]
    if hasattr(module, "explain"):
        seen = module.explain(x)
        errors += [array_error(seen[name[4:]], value) for name, value in golden.items() if name.startswith("aux/")]
    return max(errors)


CHECKS = {
    "networks": (check_network, "*.json", NETWORK_TOLERANCE),
    "loss": (check_loss, "*.json", LOSS_TOLERANCE),
    "modules": (check_module, "*.npz", MODULE_TOLERANCE),
}


def main() -> int:
    """Check every file of a folder; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=CHECKS)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    check, pattern, tolerance = CHECKS[options.kind]
    counts = {"PASS": 0, "FAIL": 0, "SKIP": 0}
    for path in sorted(options.folder.glob(pattern)):
        try:
            error = check(path)
            verdict, detail = ("PASS" if error <= tolerance else "FAIL"), f"{error:.2e}"
        except Skipped as skipped:
            verdict, detail = "SKIP", str(skipped)
        counts[verdict] += 1
        print(f"{verdict}  {path.name:<48}{detail}", flush=True)
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return 0 if counts["PASS"] and not counts["FAIL"] else 1


if __name__ == "__main__":
    sys.exit(main())
