"""Load any weights file or exported file as a network."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from models.yolo import Model
from utils.checkpoint.importing import load_model
from utils.errors import SettingsError
from utils.inference.exported import RUNNERS, ExportedNetwork
from utils.precision import Precision, choose_precision
from utils.weights.reading import read_weights
from utils.wording import is_count


def load_network(
    path: str | Path, cfg: str | Path | None = None, patches: Sequence[str] = ()
) -> Model | ExportedNetwork:
    """Load a file by its suffix: .onnx and .torchscript as an `ExportedNetwork`, any other as a `Model`.

    Args:
        cfg: yaml of the network, in place of the file's description.
        patches: edits of the network (models/config/language.py).
    Raises:
        CheckpointError: the file cannot be read.
        SettingsError: a yaml or edits are given for an exported file, whose network cannot be changed.
    """
    if Path(path).suffix.lower() in RUNNERS:
        if cfg is not None or patches:
            raise SettingsError(
                f"{'--patch' if cfg is None else '--cfg'}: does not apply to {path}: an exported network cannot be "
                "changed: give it with the weights that the file is made from, such as best.pt"
            )
        return ExportedNetwork(path)
    weights = read_weights(path)
    model = load_model(weights, cfg=cfg, patches=patches)
    model.trained_size = trained_size(weights.training)
    return model


def check_channels(channels: int, where: str) -> None:
    """Refuse a network that does not take RGB images, which are all that is read here.

    Args:
        channels: the channels of its images.
        where: the network, for the message.
    Raises:
        SettingsError: `channels` is not 3.
    """
    if channels != 3:
        raise SettingsError(f"{where}: takes images of {channels} channels: expected 3, since images are read as RGB")


def trained_size(training: Mapping[str, Any]) -> int | None:
    """Return the image size in a file's training arguments (ours, YOLOv9's or Ultralytics'), or None."""
    for key, name in (("options", "img"), ("opt", "imgsz"), ("train_args", "imgsz")):
        arguments = training.get(key)
        if isinstance(arguments, Mapping) and is_count(arguments.get(name)):
            return arguments[name]
    return None


def network_precision(network: Model | ExportedNetwork, device: str, amp: str) -> Precision:
    """Choose device and dtype of a run; an exported file always computes in float32."""
    if not isinstance(network, ExportedNetwork):
        return choose_precision(device, amp)
    if amp not in ("auto", "off"):
        print(f"--amp {amp}: does not apply to {network.path}, which computes in float32")
    return choose_precision(device, "off")
