"""An export run: which files are made of which weights, and that none is kept which computes something else."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from models.plugins.loading import load_plugins
from models.plugins.record import print_plugins
from models.yolo import Model
from utils.cli import REQUIRED, SHARED, check_values, option
from utils.errors import CheckpointError, ExportError, SettingsError
from utils.export.comparison import compare, trial_images
from utils.export.formats import FAILURES, WRITERS, Writer, check_packages, slimmed
from utils.export.weights import export_weights
from utils.files import write_bytes
from utils.image_size import choose_image_size
from utils.inference.exported import RUNNERS, ExportedNetwork
from utils.inference.metadata import INPUT_NAME, OUTPUT_NAMES, ExportMetadata
from utils.inference.network import load_network
from utils.onnx_graph.readers import Reading, readings
from utils.onnx_graph.recording import ONNX_OPSET
from utils.precision import choose_device
from utils.wording import first_line

FORMATS = ("weights", *WRITERS)
LEAST_OPSET = 11


@dataclass
class ExportOptions:
    """Options of export.py, each with its flag."""

    weights: str = option(REQUIRED, "trained weights, such as runs/train/exp/weights/best.pt", metavar="FILE")
    cfg: str | None = option(None, **SHARED["cfg"])
    patch: list[str] = option([], **SHARED["patch"])
    include: Sequence[str] = option(
        ("onnx",),
        f"some of {', '.join(FORMATS)}; weights: the lead branch as STEM-deploy.pt and .yaml, which can be trained",
        metavar="FORMAT",
    )
    fold: bool = option(False, "weights: merge normalisation into convolutions, as STEM-folded.pt and .yaml")
    half: bool = option(False, "weights: in fp16")
    img: Sequence[int] | None = option(
        None, "longer side, or height and width; as in training if not given", **SHARED["img"]
    )
    batch: int = option(1, "images at a time of a static file", least=1, **SHARED["batch"])
    dynamic: bool = option(False, "leave batch, height and width of onnx and torchscript free")
    opset: int = option(ONNX_OPSET, "version of ONNX's operators", least=LEAST_OPSET, metavar="N")
    simplify: bool = option(False, "onnx: compute constants and remove needless nodes, with onnxslim")
    device: str = option("cpu", "where the network is traced and compared: cpu, mps, or a CUDA number")
    out: str | None = option(None, "folder of the files; that of the weights if not given", metavar="DIR")
    plugin: list[str] = option([], **SHARED["plugin"])


def export(settings: ExportOptions) -> list[Path]:
    """Write the formats that were asked for, one printed line a file.

    Returns:
        The files.
    Raises:
        UserError: the options or weights cannot be used, or a written file does not compute the same as the network.
            Such a file is not kept; the other formats are still written.
    """
    formats = check_settings(settings)
    source = Path(settings.weights)
    plugins = load_plugins(settings.plugin)
    model = load_source(settings).to(choose_device(settings.device)).eval()
    print_plugins(model, plugins)
    folder = Path(settings.out) if settings.out else source.parent
    metadata = describe_network(model, settings) if set(formats) & set(WRITERS) else None
    files: list[Path] = []
    failures: list[str] = []
    for name in formats:
        try:
            if name == "weights":
                files += _weights(model, source, folder, settings)
            else:
                assert metadata is not None
                files.append(_exported(model, name, folder / f"{source.stem}.{name}", metadata, settings))
        except ExportError as error:
            failures.append(str(error))
    if failures:
        raise ExportError("; ".join(failures))
    return files


def check_settings(settings: ExportOptions) -> tuple[str, ...]:
    """Refuse flags that cannot be met, say which of them have no effect, and return the formats, each once.

    Raises:
        SettingsError: a flag out of range, or one that nothing asked for takes.
        ExportError: a package is missing.
    """
    formats = tuple(dict.fromkeys(settings.include))
    for name in formats:
        if name not in FORMATS:
            raise SettingsError(f"--include {name}: expected some of {', '.join(FORMATS)}")
    check_values(settings)
    if settings.simplify and "onnx" not in formats:
        raise SettingsError("--simplify: is for --include onnx: leave it out")
    check_packages(formats, settings.simplify)
    for flag, given in (("--half", settings.half), ("--fold", settings.fold)):
        if given and "weights" not in formats:
            raise SettingsError(
                f"{flag}: is for --include weights; exported networks are folded and in float32 always: leave it out"
            )
    if formats == ("weights",):
        unset = ExportOptions("")
        for flag, name in (("--dynamic", "dynamic"), ("--batch", "batch"), ("--opset", "opset"), ("--img", "img")):
            if getattr(settings, name) != getattr(unset, name):
                raise SettingsError(
                    f"{flag}: is for --include onnx or torchscript; weights take images of any size: leave it out"
                )
    elif settings.opset != ExportOptions("").opset and "onnx" not in formats:
        raise SettingsError(f"--opset {settings.opset}: is for --include onnx: leave it out")
    if settings.dynamic and settings.batch != 1:
        raise SettingsError(
            f"--batch {settings.batch}: a --dynamic file takes any number of images: leave one of them out"
        )
    if settings.half and len(formats) > 1:
        print("--half: the weights are written in fp16, exported networks in float32")
    return formats


def load_source(settings: ExportOptions) -> Model:
    """Return the network that is exported, in evaluation.

    Raises:
        CheckpointError: the file cannot be read, is exported already, or does not fit its network or that of --cfg.
    """
    path = Path(settings.weights)
    if path.suffix.lower() in RUNNERS:
        raise CheckpointError(
            f"{path}: is an exported file already: expected weights, such as the best.pt it was made from"
        )
    network = load_network(path, settings.cfg, settings.patch)
    assert isinstance(network, Model)  # exported files were refused above
    return network


def describe_network(model: Model, settings: ExportOptions) -> ExportMetadata:
    """Return the metadata of the exported files.

    Raises:
        SettingsError: --img is out of range.
    """
    size_hw = choose_image_size(settings.img, model)
    return ExportMetadata(
        names=[str(name) for name in model.names],
        nc=model.nc,
        ch=model.channels,
        stride=list(model.stride),
        task=model.task,
        image_hw=list(size_hw),
        batch=settings.batch,
        dynamic=settings.dynamic,
        multiple=model.multiple,
        pixel_range=None if model.pixel_range is None else list(model.pixel_range),
        category_ids=model.category_ids,
    )


def _weights(model: Model, source: Path, folder: Path, settings: ExportOptions) -> list[Path]:
    stem = f"{source.stem}-{'folded' if settings.fold else 'deploy'}"
    paths = folder / f"{stem}.pt", folder / f"{stem}.yaml"
    replaced, start = [path.exists() for path in paths], time.perf_counter()
    try:
        difference = export_weights(model, source, paths, settings.fold, settings.half)
    except ExportError as error:
        raise ExportError(f"{paths[0]}: not written: {error}") from error
    report(paths[0], difference, start, replaced[0])
    report(paths[1], "the yaml that builds it", start, replaced[1])
    return list(paths)


def _exported(model: Model, name: str, path: Path, metadata: ExportMetadata, settings: ExportOptions) -> Path:
    """Write one format with the first of its writers whose file agrees with the network."""
    start, replaced, network = time.perf_counter(), path.exists(), model.deploy().eval()
    partial, reasons = path.with_name(f".{path.stem}.partial{path.suffix}"), []
    for writer in WRITERS[name]:
        try:
            difference = write_checked(model, network, writer, partial, metadata, settings)
            os.replace(partial, path)
        except (*FAILURES, ExportError) as error:
            said = first_line(str(error).replace(str(partial), path.name) or type(error).__name__)
            reasons.append(f"{writer.__name__.replace('_', ' ')}: {said[:200]}")
            continue
        finally:
            partial.unlink(missing_ok=True)
        others = read_elsewhere(network, path, metadata) if name == "onnx" else []
        report(path, difference, start, replaced, others_text(others, settings))
        return path
    raise ExportError(f"{path}: not written: {'; '.join(reasons)}")


def write_checked(
    model: Model, network: nn.Module, writer: Writer, path: Path, metadata: ExportMetadata, settings: ExportOptions
) -> str:
    """Write an exported file, run it, and return its largest differences from the network, for the user.

    Args:
        model: the network that the file has to agree with; `network` is its deployed form, which is written.
    Raises:
        ExportError: they are too large.
        CheckpointError: the file cannot be run.
    """
    device = next(network.parameters()).device
    images = trial_images(trial_shapes(metadata), device)
    content = writer(network, images[0], metadata, settings.opset)
    if settings.simplify and path.suffix == ".onnx":
        content = slimmed(content, metadata, settings.opset)
    write_bytes(path, content)
    difference = compare(model, ExportedNetwork(path).to(device), images, metadata.nc)
    if not difference.exported_agrees():
        raise ExportError(f"computes something else than the network: {difference.describe()}")
    return difference.describe()


def read_elsewhere(network: nn.Module, path: Path, metadata: ExportMetadata) -> list[Reading]:
    """Return what the other readers of ONNX that are installed make of a file."""
    images = trial_images(trial_shapes(metadata)[-1:], next(network.parameters()).device)[0]
    with torch.no_grad():
        outputs = network(images)
    found = outputs if isinstance(outputs, tuple) else (outputs,)
    expected = dict(zip(OUTPUT_NAMES[metadata.task], found, strict=True))
    return readings(path.read_bytes(), {INPUT_NAME: images}, expected)


def others_text(found: Sequence[Reading], settings: ExportOptions) -> list[str]:
    """Return a clause for each reader, with the remedy for those that cannot read the file."""
    refused = any(reading.problem is not None for reading in found)
    remedy = ["try --simplify"] if refused and not settings.simplify else []
    return [reading.describe() for reading in found] + remedy


def trial_shapes(metadata: ExportMetadata) -> list[tuple[int, int, int, int]]:
    """Return the (B, ch, H, W) that are compared, the exporter's example first.

    Three times the static size, or for a dynamic file three sizes and batches, of which the example's batch is not 1.
    """
    (height, width), step = metadata.image_hw, metadata.multiple
    if not metadata.dynamic:
        return [(metadata.batch, metadata.ch, height, width)] * 3
    low, narrow = (max(height - step, 2 * step), width + 2 * step), (height + step, max(width - step, 2 * step))
    return [(2, metadata.ch, height, width), (3, metadata.ch, *low), (1, metadata.ch, *narrow)]


def report(path: Path, what: str, start: float, replaced: bool, more: Sequence[str] = ()) -> None:
    """Print the line about a file."""
    size, again = path.stat().st_size, " (replaced)" if replaced else ""
    shown = f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
    took = f"{time.perf_counter() - start:.1f} s"
    print("; ".join([f"{path}{again}: {shown}, {what}, {took}", *more]), flush=True)
