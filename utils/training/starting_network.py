"""The network that a training run starts from: that of a yaml, of a weights file, or of a run that is resumed."""

from pathlib import Path
from typing import Any

from models.yolo import Model
from utils.checkpoint.head_width import keep_hidden_width
from utils.checkpoint.importing import build_model, print_notes
from utils.checkpoint.transfer import Source, TransferReport, transfer
from utils.errors import CheckpointError, SettingsError
from utils.inference.network import check_channels
from utils.training.options import TrainOptions
from utils.weights.reading import Weights, of_own_network, read_weights


def starting_network(
    options: TrainOptions, names: list[str], checkpoint: dict[str, Any] | None
) -> tuple[Model, TransferReport | None]:
    """Return the network with its weights, and the report on weights that came from a file.

    Args:
        names: the data set's classes.
        checkpoint: content of last.pt of a run that is resumed; its weights are not loaded here.
    Raises:
        CheckpointError: the class count differs from that of the resumed run, or too few of the weights fit.
        SettingsError: neither a yaml nor weights that describe their network, a folded network, or one that does not
            take RGB images.
    """
    if checkpoint:
        assert options.resume is not None
        network = checkpoint["network"]
        if len(names) != network["nc"]:
            raise CheckpointError(
                f"{options.resume}: trained on {network['nc']} classes, but {options.data} has {len(names)}"
            )
        model, report = build_model(of_own_network(Path(options.resume), network, {}, {})), None
    elif options.weights:
        model, report = fine_tuned(options, read_weights(options.weights), names)
    elif options.cfg:
        model, report = network_of_yaml(options, len(names)), None
    else:
        raise SettingsError(
            "--cfg: none given: expected a network yaml such as gelan-t.yaml, or --weights to fine-tune from"
        )
    if model.config.get("folded"):
        raise SettingsError(
            f"{options.cfg or options.weights}: a folded network, its normalisations merged: "
            "expected an unfolded one for training"
        )
    check_channels(model.channels, options.resume or options.cfg or options.weights)
    model.names = list(names)
    return model, report


def network_of_yaml(options: TrainOptions, num_classes: int) -> Model:
    """Build the network of `--cfg` with the flags that scale or edit it."""
    return Model(
        options.cfg,
        nc=num_classes,
        scale=options.scale,
        width=options.width,
        depth=options.depth,
        patches=options.patch,
    )


def fine_tuned(options: TrainOptions, weights: Weights, names: list[str]) -> tuple[Model, TransferReport]:
    """Build the network of `--cfg`, or else that of the weights, and copy the weights that fit.

    Raises:
        CheckpointError: less fits than `--min-transfer` asks for, and `--allow-partial` is not given.
        SettingsError: no yaml, and the file does not describe its network.
    """
    print_notes(weights)
    num_classes = len(names)
    if options.cfg:
        model = network_of_yaml(options, num_classes)
    elif weights.config is None:
        raise SettingsError(
            f"--weights {weights.path}: a {weights.kind} does not describe its network: give its yaml, --cfg"
        )
    elif flag := next((name for name in ("scale", "width", "depth") if getattr(options, name) is not None), None):
        shown = f"--{flag} {getattr(options, flag)}"
        raise SettingsError(
            f"{shown}: the network comes from {weights.path}: expected --cfg with the yaml that is to be scaled"
        )
    else:
        model = build_model(weights, num_classes)
        if options.patch:
            model = Model(model.config, nc=num_classes, ch=model.channels, patches=options.patch)
    check_channels(model.channels, options.cfg or options.weights)  # before weights are copied, which takes time
    model.names = list(names)
    source = Source.of(weights)
    if options.head_hidden == "keep":
        model, line = keep_hidden_width(model, source)
        if line:
            print(line)
    report = transfer(model, source)
    print(report.describe())
    if report.advice:
        print(f"{weights.path}: {report.advice}")
    if report.coverage < options.min_transfer and not options.allow_partial:
        raise CheckpointError(
            f"{report.describe()}: expected at least {options.min_transfer:.0%} of the network's parameters: "
            "is --cfg the network that these weights belong to? --allow-partial continues with fewer; "
            "--min-transfer sets the limit"
        )
    return model, report
