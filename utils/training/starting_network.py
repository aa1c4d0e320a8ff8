"""The network that a training run starts from: a yaml's, that of a weights file, or that of the run that goes on."""

from pathlib import Path
from typing import Any

from models.yolo import Model
from utils.checkpoint.importing import build_network, print_notes
from utils.checkpoint.transfer import TransferReport, keep_hidden_width, transfer
from utils.errors import CheckpointError, SettingsError
from utils.training.options import TrainOptions
from utils.weights.reading import Weights, of_own_network, read_weights


def starting_network(
    options: TrainOptions, names: list[str], checkpoint: dict[str, Any] | None
) -> tuple[Model, TransferReport | None]:
    """Return the network with the weights asked for, and the report on them if they came from a file.

    Args:
        names: the data set's classes.
        checkpoint: content of the last.pt of a run that goes on; its weights are not loaded here.
    Raises:
        CheckpointError: another number of classes than the run that goes on, or less of the weights fits than asked for.
        SettingsError: neither a yaml nor weights that say their network.
    """
    if checkpoint:
        assert options.resume is not None
        network = checkpoint["network"]
        if len(names) != network["nc"]:
            raise CheckpointError(
                f"{options.resume}: trained on {network['nc']} classes, but {options.data} has {len(names)}"
            )
        model, report = build_network(of_own_network(Path(options.resume), network, {}, {})), None
    elif options.weights:
        model, report = fine_tuned(options, read_weights(options.weights), len(names))
    elif options.cfg:
        model, report = network_of_yaml(options, len(names)), None
    else:
        raise SettingsError(
            "--cfg: none given: expected a network yaml such as gelan-t.yaml, or --weights to fine-tune from"
        )
    if model.config.get("folded"):
        raise SettingsError(
            f"{options.cfg or options.weights}: a folded network, its normalisations merged: expected an unfolded one for training"
        )
    model.names = list(names)
    return model, report


def network_of_yaml(options: TrainOptions, num_classes: int) -> Model:
    """Return the network of `--cfg`, as the flags beside it say."""
    return Model(
        options.cfg,
        nc=num_classes,
        scale=options.scale,
        width=options.width,
        depth=options.depth,
        patches=options.patch,
    )


def fine_tuned(options: TrainOptions, weights: Weights, num_classes: int) -> tuple[Model, TransferReport]:
    """Return the network of `--cfg`, or of the weights where none is given, with what fits of the weights.

    Raises:
        CheckpointError: less fits than `--min-transfer` asks for, and `--allow-partial` is not given.
        SettingsError: no yaml, and the file does not say its network.
    """
    print_notes(weights)
    if options.cfg:
        model = network_of_yaml(options, num_classes)
    elif weights.config is None:
        raise SettingsError(
            f"--weights {weights.path}: a {weights.kind} says nothing of its network: give its yaml, --cfg"
        )
    elif flag := next((name for name in ("scale", "width", "depth") if getattr(options, name) is not None), None):
        shown = f"--{flag} {getattr(options, flag)}"
        raise SettingsError(
            f"{shown}: the network comes from {weights.path}: expected --cfg with the yaml that is to be scaled"
        )
    else:
        model = build_network(weights, num_classes)
        if options.patch:
            model = Model(model.config, nc=num_classes, ch=model.channels, patches=options.patch)
    if options.head_hidden == "keep":
        model, line = keep_hidden_width(model, weights)
        if line:
            print(line)
    report = transfer(model, weights)
    print(report.describe())
    if report.coverage < options.min_transfer and not options.allow_partial:
        raise CheckpointError(
            f"{report.describe()}: expected at least {options.min_transfer:.0%} of the network's parameters: is --cfg the network that these "
            "weights belong to? --allow-partial goes on all the same, --min-transfer sets the limit"
        )
    return model, report
