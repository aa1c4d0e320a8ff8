"""The network that inference needs as weights of this framework: a checkpoint and the yaml that builds it."""

import copy
import os
from pathlib import Path
from typing import Any

import torch

from models.config.composed import config_text
from models.plugins.record import plugins_key
from models.yolo import Model
from utils.checkpoint.importing import load_model
from utils.errors import CheckpointError, ExportError
from utils.export.comparison import compare, trial_images
from utils.files import write_text
from utils.weights.own_file import network_entry, read_checkpoint, save_checkpoint

MOST_RELATIVE = 1e-5
"""Largest difference of the outputs over their largest magnitude."""
CARRIED = ("epoch", "metrics", "hyp", "options")
"""What a checkpoint of a run says beside the weights, and the written one says too."""


def export_weights(model: Model, source: Path, paths: tuple[Path, Path], fold: bool, half: bool) -> str:
    """Write the lead branch of a network as checkpoint and yaml, once the written files are seen to compute the same.

    Args:
        model: in evaluation, float32; it is not changed.
        source: the file it came from.
        paths: of the checkpoint and of the yaml.
        fold: merge normalisation into convolutions; the result cannot be trained as the original can.
        half: write tensors as float16.
    Returns:
        The largest differences, for the user.
    Raises:
        ExportError: the files compute something else; they are removed.
    """
    deployed = model.deploy(fold=fold).eval()
    content = {
        "network": network_entry(deployed),
        "model": rounded(deployed.state_dict(), torch.float16 if half else None),
    }
    partial = [path.with_name(f".{path.stem}.partial{path.suffix}") for path in paths]
    try:
        save_checkpoint(partial[0], content | carried(model, source))
        write_text(partial[1], yaml_text(deployed, source.name))
        said = check(model, deployed, partial, half)
        for made, path in zip(partial, paths, strict=True):
            os.replace(made, path)
    finally:
        for made in partial:
            made.unlink(missing_ok=True)
    return said


def carried(model: Model, source: Path) -> dict[str, Any]:
    """Return the training settings of our own checkpoint; for other weights, the image size if it is known."""
    try:
        content = read_checkpoint(source)
    except CheckpointError:  # `load_network` could read it, so it is of another kind
        size = model.trained_size
        return {"options": {"img": size}} if size else {}
    return {key: content[key] for key in CARRIED if key in content}


def rounded(tensors: dict[str, torch.Tensor], dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    """Return a state dict with its floating-point tensors in a number format; as they are for None."""
    return {
        name: tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor for name, tensor in tensors.items()
    }


def yaml_text(network: Model, source: str) -> str:
    """Return a network's configuration as its yaml: one row a line."""
    config = (
        dict(network.config)
        | plugins_key(network)
        | {"nc": network.nc, "ch": network.channels, "names": list(network.names)}
    )
    what = (
        "lead branch only, folded: for inference"
        if config.get("folded")
        else "lead branch only, not folded: can be trained"
    )
    comments = f"# Made by export.py from {' '.join(source.split())}: {what}.\n"
    return comments + config_text(config)


def check(model: Model, deployed: Model, files: list[Path], half: bool) -> str:
    """Compare the files with the network they were made from; return the differences in words.

    Raises:
        ExportError: they differ by more than MOST_RELATIVE.
    """
    step = model.multiple
    device = next(model.parameters()).device
    images = trial_images([(1, model.channels, 8 * step, 8 * step), (2, model.channels, 4 * step, 6 * step)], device)
    with torch.device("meta"):
        built = Model(files[1])
    if {name: tensor.shape for name, tensor in built.state_dict().items()} != {
        n: tensor.shape for n, tensor in deployed.state_dict().items()
    }:
        raise ExportError("the yaml builds another network than the one that was written: please report this")
    reloaded = load_model(files[0]).to(device)
    if not half:
        difference = compare(model, reloaded, images, model.nc)
        limit(difference.relative)
        return difference.describe()
    limit(compare(model, deployed, images, model.nc).relative)
    exact = copy.deepcopy(deployed)
    exact.load_state_dict(rounded(rounded(deployed.state_dict(), torch.float16), torch.float32))
    limit(compare(exact, reloaded, images, model.nc).relative)
    return f"{compare(model, reloaded, images, model.nc).describe()} by rounding to fp16"


def limit(relative: float) -> None:
    """Refuse a difference.

    Raises:
        ExportError: it is above MOST_RELATIVE.
    """
    if not relative <= MOST_RELATIVE:
        raise ExportError(
            f"outputs differ by {relative:.1e} of the largest value: expected at most {MOST_RELATIVE:.0e}"
        )
