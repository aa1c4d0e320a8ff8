"""Weights in and out: our checkpoints (tensors and plain data only), and state dicts under the originals' names."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from models.plugins.loading import load_plugins
from models.plugins.record import advise_missing, say_differences
from models.registry import registered_layers
from models.yolo import Model
from utils.errors import CheckpointError, ModelConfigError
from utils.weights.foreign_names import NAME_WRAPPERS, foreign_head_names, guessed_head_names
from utils.weights.reading import Weights, read_weights


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
        rest = [
            f"{len(names)} {what} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
            for what, names in self._others()
            if names
        ]
        total = len(self.loaded) + len(self.missing) + len(self.mismatched)
        return "; ".join([f"{len(self.loaded)} of {total} tensors, {self.coverage:.1%} of the parameters", *rest])

    def _others(self) -> list[tuple[str, list[str]]]:
        return [
            ("missing", self.missing),
            ("differing in shape", self.mismatched),
            ("not in this network", self.unexpected),
        ]


def own_names(tensors: Mapping[str, Tensor], model: Model | None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors under our names, and the file's name of each.

    Args:
        tensors: named as the originals name them, or as we do; a further leading ``model.`` or ``module.`` is taken off.
        model: the network that the tensors belong to; None to tell its head from the names.
    """
    renamed, file_names = {}, {}
    cleaned = {name: NAME_WRAPPERS.sub("", name) for name in tensors}
    if model is not None:
        prefix, table = f"model.{len(model.model) - 1}.", foreign_head_names(model.head)
    else:
        last = max((int(name.split(".")[1]) for name in cleaned.values() if re.match(r"model\.\d+\.", name)), default=0)
        prefix = f"model.{last}."
        table = guessed_head_names({name.split(".")[2] for name in cleaned.values() if name.startswith(prefix)})
    table = {theirs: ours for ours, theirs in table.items()}
    for name, clean in cleaned.items():
        ours = clean
        if clean.startswith(prefix):
            part, _, rest = clean.removeprefix(prefix).partition(".")
            ours = f"{prefix}{table[part]}.{rest}" if part in table else clean
        renamed[ours], file_names[ours] = tensors[name], name
    return renamed, file_names


def import_state_dict(model: Model, tensors: Mapping[str, Tensor]) -> ImportReport:
    """Copy tensors named as the originals (YOLOv9, YOLOv8, YOLO11) or as we name them into a network, where name and shape agree.

    Args:
        tensors: state dict; a further leading ``model.`` or ``module.`` is taken off.
    Returns:
        What was loaded and what was not.
    Raises:
        CheckpointError: a DFL weight is not 0 … 15.
    """
    ours, file_names = own_names(tensors, model)
    parameters = dict(model.named_parameters())
    report, loaded_count = ImportReport(), 0
    targets = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, target in targets.items():
            tensor = ours.get(name)
            if tensor is None:
                report.missing.append(name)
                continue
            if tensor.shape != target.shape:
                report.mismatched.append(name)
                continue
            check_constant(file_names[name], name, tensor, target)
            target.copy_(tensor)
            report.loaded.append(name)
            loaded_count += parameters[name].numel() if name in parameters else 0
    report.unexpected = [file_names[name] for name in ours if name not in targets]
    report.coverage = loaded_count / sum(parameter.numel() for parameter in parameters.values())
    return report


def check_constant(file_name: str, name: str, tensor: Tensor, target: Tensor) -> None:
    """Refuse a DFL weight other than 0 … 15.

    Raises:
        CheckpointError: names it as the file does, and what it holds.
    """
    if ".dfl." in name and not torch.equal(tensor.double().cpu(), target.double().cpu()):
        held = tensor.flatten().tolist()
        raise CheckpointError(
            f"{file_name}: holds {held}: expected 0 to {tensor.numel() - 1}: not a network of this family"
        )


def load_model(path: str | Path, plugins: Iterable[str | Path] = ()) -> Model:
    """Return the network of a weights file in evaluation mode, float32, with its averaged (EMA) weights where it has them.

    Args:
        path: a checkpoint of ours, or one of the originals' (utils/weights/reading.py says which).
        plugins: Python files with layers of yours, which are run (docs/plugins.md); a checkpoint runs none by itself.
    Raises:
        CheckpointError: the file cannot be read, does not say its network, or its weights do not fit that.
        PluginError: a plug-in cannot be loaded.
    """
    load_plugins(plugins)
    return model_of(read_weights(path))


def model_of(weights: Weights) -> Model:
    """Return the network that a weights file holds; see `load_model`."""
    print_notes(weights)
    model = skeleton_of(weights)
    tensors, _ = own_names(weights.tensors, model)
    tensors = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
        if not is_leftover(name)
    }
    for name, expected in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            tensors[name] = tensors.get(name, torch.zeros(())).to(expected.dtype)
    check_fit(weights, tensors, model.state_dict())
    model.load_state_dict(tensors, assign=True)
    for name, parameter in model.named_parameters():
        check_constant(
            f"{weights.path}: {name}", name, parameter, torch.arange(parameter.numel()).view(parameter.shape)
        )
    model.names = list(weights.names or model.names)
    freeze_constants(model)
    return model.eval()


def print_notes(weights: Weights) -> None:
    """Print what was translated or left out in reading a weights file."""
    for note in weights.notes:
        print(f"{weights.path}: {note}")


def is_leftover(name: str) -> bool:
    """Tell whether a tensor is what a FLOP counter left behind in a module."""
    return name.endswith((".total_ops", ".total_params"))


def check_fit(weights: Weights, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuse weights that are not exactly those of their own network.

    Raises:
        CheckpointError: says how many are missing, too many, or of another shape, and names the first ones.
    """
    missing = [name for name in expected if name not in tensors]
    different = [name for name in expected if name in tensors and tensors[name].shape != expected[name].shape]
    unknown = [name for name in tensors if name not in expected]
    parts = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
        for what, names in (("missing", missing), ("of another shape", different), ("too many", unknown))
        if names
    ]
    if parts:
        raise CheckpointError(
            f"{weights.path}: its weights do not fit its own network: {'; '.join(parts)}; train.py --cfg takes what fits"
        )


def skeleton_of(weights: Weights) -> Model:
    """Return the network that weights belong to, on the meta device: without memory for its values.

    Raises:
        CheckpointError: the file does not say, or says one that cannot be built here.
    """
    if weights.config is None:
        convert = f"python export.py --weights {weights.path} --cfg YAML --include weights makes a checkpoint of it"
        raise CheckpointError(f"{weights.path}: a {weights.kind} says nothing of its network: {convert}")
    with torch.device("meta"):
        return build_network(weights)


def build_network(weights: Weights, nc: int | None = None) -> Model:
    """Build the network that weights say they belong to, with fresh values; say which of its plug-ins have changed since.

    Args:
        nc: number of classes, in place of theirs.
    Raises:
        CheckpointError: it cannot be built here; says where layers that are not there came from, and what brings them.
    """
    assert weights.config is not None
    try:
        model = Model(weights.config, nc=nc or weights.nc, ch=weights.ch)
    except ModelConfigError as error:
        hints = advise_missing(weights.plugins)
        known = {*registered_layers(), *(name for plugin in weights.plugins for name in plugin.layers)}
        came_from = [f"{name} came from {place}" for name, place in weights.layer_files.items() if name not in known]
        hints += [f"{', '.join(came_from)}: put that file back"] if came_from else []
        raise CheckpointError(
            "; ".join([f"{weights.path}: its network cannot be built here: {error}", *hints])
        ) from error
    say_differences(str(weights.path), weights.plugins)
    return model


def freeze_constants(model: Model) -> None:
    """Keep the DFL weights out of training, also after `load_state_dict(assign=True)`."""
    for branch in (*model.head.aux, model.head.lead):
        branch.dfl.requires_grad_(False)
