"""Weights into the network that they were made for: matched by name, under our names or the originals'."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from models.parameters import is_constant
from models.plugins.loading import load_plugins
from models.plugins.record import advise_missing, say_differences
from models.registry import registered_layers
from models.yolo import Model
from utils.errors import CheckpointError, ModelConfigError
from utils.weights.foreign_names import own_names
from utils.weights.head_form import class_count
from utils.weights.reading import Weights, complete_description, read_weights
from utils.wording import listed

SHOWN = 3
"""Names or layers that a one-line message shows."""


@dataclass
class ImportReport:
    """Which tensors of a state dict were copied into a network.

    Names are the network's; those in `unexpected` are the file's. `coverage` is the share of the parameters, 0 to 1.
    """

    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    coverage: float = 0.0

    def describe(self) -> str:
        """Say in one line how much was loaded, and what was not."""
        total = len(self.loaded) + len(self.missing) + len(self.mismatched)
        rest = counted(
            {"missing": self.missing, "differing in shape": self.mismatched, "not in this network": self.unexpected}
        )
        return "; ".join([f"{len(self.loaded)} of {total} tensors, {self.coverage:.1%} of the parameters", *rest])


def counted(groups: dict[str, list[str]]) -> list[str]:
    """Return ``2 missing (a, b)`` for each group that has names."""
    return [f"{len(names)} {what} ({listed(names, SHOWN)})" for what, names in groups.items() if names]


def import_state_dict(model: Model, tensors: Mapping[str, Tensor]) -> ImportReport:
    """Copy tensors into a network where name and shape agree.

    Args:
        tensors: under the originals' names or ours; a leading ``module.`` or second ``model.`` is removed.
    Returns:
        What was loaded and what was not.
    Raises:
        CheckpointError: a DFL weight is not 0 to 15.
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
    """Refuse a DFL weight other than 0 to 15.

    Raises:
        CheckpointError: gives the file's name for it and its values.
    """
    if is_constant(name) and not torch.equal(tensor.double().cpu(), target.double().cpu()):
        values = tensor.flatten().tolist()
        raise CheckpointError(
            f"{file_name}: holds {values}: expected 0 to {tensor.numel() - 1}: not a network of this family"
        )


def load_model(
    source: str | Path | Weights,
    plugins: Iterable[str | Path] = (),
    cfg: str | Path | None = None,
    patches: Sequence[str] = (),
) -> Model:
    """Build the network of a weights file, in evaluation mode and float32.

    It gets the averaged (EMA) weights where the file has them.

    Args:
        source: a checkpoint of ours or of the originals (docs/weights.md), or what `read_weights` returned for it.
        plugins: Python files with your own layers; they are run (docs/plugins.md). A checkpoint itself runs none.
        cfg: yaml of the network, in place of the file's description.
        patches: edits of the network (models/config/language.py).
    Raises:
        CheckpointError: the file cannot be read, does not describe its network, or its weights do not fit the network.
        ModelConfigError: the yaml or an edit cannot be used.
        PluginError: a plug-in cannot be loaded.
    """
    load_plugins(plugins)
    weights = source if isinstance(source, Weights) else read_weights(source)
    weights, network = described_by(weights, cfg, patches)
    print_notes(weights)
    with torch.device("meta"):
        model = build_model(weights)
    tensors, _ = own_names(weights.tensors, model)
    tensors = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
        if not is_leftover(name)
    }
    for name, expected in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            tensors[name] = tensors.get(name, torch.zeros(())).to(expected.dtype)
        elif is_constant(name):  # some exporters leave it out; its values are known
            tensors.setdefault(name, torch.arange(float(expected.numel())).view(expected.shape))
    check_fit(weights, tensors, model.state_dict(), network)
    model.load_state_dict(tensors, assign=True)
    for name, parameter in model.named_parameters():
        bins = torch.arange(parameter.numel()).view(parameter.shape)
        check_constant(f"{weights.path}: {name}", name, parameter, bins)
    model.names = list(weights.names or model.names)
    model.pixel_range, model.category_ids = weights.pixel_range, weights.category_ids
    freeze_constants(model)
    return model.eval()


def described_by(weights: Weights, cfg: str | Path | None, patches: Sequence[str]) -> tuple[Weights, str]:
    """Return weights with the description of a yaml, of an edited network, or of both; and how to call the network.

    The towers of the head are those that the tensors show, whatever the yaml says.
    Raises:
        CheckpointError: edits are given, and there is no network to edit.
        ModelConfigError: the yaml or an edit cannot be used.
    """
    if cfg is None and not patches:
        return weights, "its own network"
    nc = class_count(own_names(weights.tensors, None)[0]) or weights.nc
    with torch.device("meta"):
        model = Model(cfg, nc=nc, ch=weights.ch, patches=patches) if cfg else build_model(weights, patches=patches)
    described = replace(weights, config=model.config, nc=model.nc, ch=model.channels)
    network = f"the network of {cfg}" if cfg else "its own network"
    return complete_description(described), f"{network}, as edited" if patches else network


def print_notes(weights: Weights) -> None:
    """Print what was translated or left out when a weights file was read."""
    for note in weights.notes:
        print(f"{weights.path}: {note}")


def is_leftover(name: str) -> bool:
    """Tell whether a tensor was left in a module by a FLOP counter."""
    return name.endswith((".total_ops", ".total_params"))


def check_fit(
    weights: Weights, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], network: str = "its own network"
) -> None:
    """Refuse weights that are not exactly those of a network.

    Args:
        expected: the tensors of the network.
        network: what the message calls it.
    Raises:
        CheckpointError: counts and names the tensors that are missing, of another shape, or too many.
    """
    different = [name for name in expected if name in tensors and tensors[name].shape != expected[name].shape]
    parts = counted(
        {
            "missing": [name for name in expected if name not in tensors],
            "of another shape": different,
            "too many": [name for name in tensors if name not in expected],
        }
    )
    if parts:
        raise CheckpointError(
            f"{weights.path}: its weights do not fit {network}: {'; '.join(parts)}: expected every tensor of the "
            "network; --cfg YAML gives another network and --patch EDIT changes it, in every command; "
            "train.py --cfg YAML --weights loads those that fit"
        )


def build_model(weights: Weights, nc: int | None = None, patches: Sequence[str] = ()) -> Model:
    """Build the network that a weights file describes, with new values; print which of its plug-ins have changed since.

    Args:
        nc: number of classes, in place of the file's.
        patches: edits of the network.
    Raises:
        CheckpointError: the file describes no network, or one that cannot be built here; says what is missing for it.
    """
    if weights.config is None:
        raise CheckpointError(
            f"{weights.path}: a {weights.kind} does not describe its network: expected a checkpoint; "
            "give the yaml of the network, --cfg YAML, or make a checkpoint with "
            f"python export.py --weights {weights.path} --cfg YAML --include weights"
        )
    try:
        model = Model(weights.config, nc=nc or weights.nc, ch=weights.ch, patches=patches)
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
    """Exclude the DFL weights from training, also after `load_state_dict(assign=True)`."""
    for branch in (*model.head.aux, model.head.lead):
        branch.dfl.requires_grad_(False)
