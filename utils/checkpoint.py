"""Weights in and out: our checkpoints (tensors and plain data only), and state dicts under the originals' names."""

import io
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.heads import DetectionHead
from models.yolo import Model
from utils.errors import CheckpointError
from utils.files import atomic_write

VERSION = 1
LEAST_COVERAGE = 0.1
"""Share of the parameters before a network's head that weights have to bring to count as weights for it: some fit by chance."""


@dataclass
class ImportReport:
    """Which tensors of a state dict found their place in a network; names are the network's, `unexpected` the file's."""

    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    coverage: float = 0.0

    def describe(self) -> str:
        """One line: how much was loaded, and what was not."""
        rest = [f"{len(names)} {what} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})" for what, names in self._others() if names]
        total = len(self.loaded) + len(self.missing) + len(self.mismatched)
        return "; ".join([f"{len(self.loaded)} of {total} tensors, {self.coverage:.1%} of the parameters", *rest])

    def _others(self) -> list[tuple[str, list[str]]]:
        return [("missing", self.missing), ("differing in shape", self.mismatched), ("not in this network", self.unexpected)]


def foreign_head_names(head: DetectionHead) -> dict[str, str]:
    """Return the originals' names of a head's parts by ours.

    The originals number the towers branch by branch, auxiliary ones first: cv2, cv3, dfl, then cv4, cv5, dfl2, …
    """
    parts = [*(f"aux.{index}" for index in range(len(head.aux))), "lead"]
    table = {}
    for number, part in enumerate(parts):
        table[f"{part}.box"] = f"cv{2 * number + 2}"
        table[f"{part}.cls"] = f"cv{2 * number + 3}"
        table[f"{part}.dfl"] = f"dfl{number + 1 if number else ''}"
    return table


def foreign_name(name: str, head_index: int, table: dict[str, str]) -> str:
    """Return the originals' name of one of our state-dict entries."""
    prefix = f"model.{head_index}."
    if name.startswith(prefix):
        for ours, theirs in table.items():
            if name.startswith(f"{prefix}{ours}."):
                return f"{prefix}{theirs}.{name.removeprefix(f'{prefix}{ours}.')}"
    return name


def import_state_dict(model: Model, tensors: Mapping[str, Tensor]) -> ImportReport:
    """Copy tensors named as the original YOLOv9 names them, or as ours, into a network, where name and shape agree.

    Args:
        tensors: state dict; a further leading ``model.`` or ``module.`` is taken off.
    Returns:
        What was loaded and what was not.
    Raises:
        CheckpointError: a DFL weight is not 0 … 15.
    """
    cleaned = {re.sub(r"^(?:module\.|model\.(?=model\.))+", "", name): tensor for name, tensor in tensors.items()}
    head_index, table = len(model.model) - 1, foreign_head_names(model.head)
    parameters = dict(model.named_parameters())
    report, used, loaded_count = ImportReport(), set(), 0
    with torch.no_grad():
        for name, target in model.state_dict(keep_vars=True).items():
            theirs = foreign_name(name, head_index, table)
            source = name if name in cleaned else theirs
            if source not in cleaned:
                report.missing.append(name)
                continue
            used.add(source)
            tensor = cleaned[source]
            if tensor.shape != target.shape:
                report.mismatched.append(name)
                continue
            if ".dfl." in name and not torch.equal(tensor.double(), target.double().cpu()):
                held = tensor.flatten().tolist()
                raise CheckpointError(f"{source}: holds {held}: expected 0 to {tensor.numel() - 1}: not a network of this family")
            target.copy_(tensor)
            report.loaded.append(name)
            loaded_count += parameters[name].numel() if name in parameters else 0
    report.unexpected = [name for name in cleaned if name not in used]
    report.coverage = loaded_count / sum(parameter.numel() for parameter in parameters.values())
    return report


def plain(value: Any) -> Any:
    """Return settings as plain data: paths become strings, tuples lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def network_entry(model: Model) -> dict[str, Any]:
    """Return what rebuilds a network, weights aside."""
    return {"config": plain(model.config), "nc": model.nc, "ch": model.channels, "names": list(model.names), "stride": list(model.stride)}


def save_checkpoint(path: str | Path, content: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all; `content` holds tensors and plain data only."""
    buffer = io.BytesIO()
    torch.save({"version": VERSION} | content, buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read one of our checkpoints.

    Raises:
        CheckpointError: no such file, no checkpoint, or one of a newer version.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file: expected the weights of a run, such as runs/train/exp/weights/best.pt")
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path}: is no checkpoint, or only a part of one: expected one that train.py wrote")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own text advises to switch the protection off
        raise CheckpointError(f"{path}: holds more than tensors and plain data: expected a checkpoint that train.py wrote") from error
    except (RuntimeError, ValueError, KeyError, EOFError, OSError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
        raise CheckpointError(f"{path}: damaged: {reason}: expected a checkpoint that train.py wrote") from error
    if not isinstance(content, dict) or "version" not in content or "network" not in content:
        raise CheckpointError(f"{path}: is no checkpoint of this framework: expected one that train.py wrote")
    if content["version"] > VERSION:
        raise CheckpointError(f"{path}: version {content['version']}: this framework reads up to {VERSION}; update it")
    return content


def load_model(path: str | Path) -> Model:
    """Return the network of a checkpoint in evaluation mode, float32, with its averaged (EMA) weights where it has them.

    Raises:
        CheckpointError: the file cannot be read, or its weights do not fit its own network.
    """
    content = read_checkpoint(path)
    network = content["network"]
    with torch.device("meta"):
        model = Model(network["config"], nc=network["nc"], ch=network["ch"])
    weights = content.get("ema") or content["model"]
    try:
        model.load_state_dict({name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: its weights do not fit its own network: {' '.join(str(error).split())}") from error
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.num_batches_tracked is not None:
            module.num_batches_tracked = module.num_batches_tracked.long()
    model.names = list(network["names"])
    freeze_constants(model)
    return model.eval()


def freeze_constants(model: Model) -> None:
    """Keep the DFL weights out of training, also after `load_state_dict(assign=True)`."""
    for branch in (*model.head.aux, model.head.lead):
        branch.dfl.requires_grad_(False)


def transfer(model: Model, path: str | Path) -> ImportReport:
    """Load what fits from a checkpoint into another network, for fine-tuning.

    Raises:
        CheckpointError: the file cannot be read, or next to nothing before the head fits.
    """
    content = read_checkpoint(path)
    report = import_state_dict(model, content.get("ema") or content["model"])
    head = f"model.{len(model.model) - 1}."
    body = {name: parameter.numel() for name, parameter in model.named_parameters() if not name.startswith(head)}
    if sum(body.get(name, 0) for name in report.loaded) < LEAST_COVERAGE * sum(body.values()):
        raise CheckpointError(f"{path}: weights of another network: {report.describe()}: expected a --cfg with the same first layers")
    return report
