"""Hyperparameters: one dataclass with a line of documentation under each field; a yaml file overrides the defaults."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from utils.errors import SettingsError, did_you_mean
from utils.files import find_shipped, read_yaml

WITHOUT_EFFECT = ("obj", "obj_pw", "iou_t", "anchor_t")
"""Keys of the original's hyperparameter files that no detection loss reads: ignored with a note."""

NEUTRAL_ONLY = {"cls_pw": 1.0, "fl_gamma": 0.0}
"""Keys of the original's files that are accepted with the one value that changes nothing, and ignored with a note."""


@dataclass
class Hyperparameters:
    """Settings of training, loss and augmentation."""

    lr0: float = 0.01
    """Learning rate after the warm-up."""
    lrf: float = 0.01
    """Final learning rate over lr0."""
    momentum: float = 0.937
    """SGD momentum, or AdamW's first beta."""
    weight_decay: float = 0.0005
    """Decay of convolution and linear weights at the nominal batch."""
    nominal_batch: int = 64
    """Images per optimizer step: gradients of several batches are accumulated, if an epoch is long enough."""
    min_steps_per_epoch: int = 100
    """Fewest optimizer steps in an epoch: on small data sets fewer batches are accumulated, down to one a step."""
    warmup_epochs: float = 3.0
    """Epochs of warm-up; at most warmup_share of the run."""
    warmup_share: float = 0.1
    """Largest share of the run that the warm-up takes."""
    warmup_momentum: float = 0.8
    """Momentum at the start of the warm-up."""
    warmup_bias_lr: float = 0.1
    """Learning rate of biases at the start of the warm-up."""
    ema_decay: float = 0.9999
    """Decay of the averaged weights in the long run."""
    ema_warmup: float = 10.0
    """The decay of the averaged weights is at most (1 + steps) / (ema_warmup + steps)."""
    clip_norm: float = 10.0
    """Largest norm of a step's gradient."""
    box: float = 7.5
    """Gain of the box loss (CIoU by default)."""
    cls: float = 0.5
    """Gain of the class loss (binary cross-entropy by default)."""
    dfl: float = 1.5
    """Gain of the distribution focal loss."""
    mask: float = 7.5
    """Gain of the mask loss (instance segmentation only)."""
    aux: float = 0.25
    """Weight of each auxiliary branch."""
    tal_topk: int = 10
    """Most anchor points that the assigner gives an object."""
    tal_alpha: float = 0.5
    """Exponent of the class score in the assigner's metric."""
    tal_beta: float = 6.0
    """Exponent of the overlap in the assigner's metric."""
    loss: dict[str, Any] = field(default_factory=dict)
    """Box loss, wrappers, class loss and assigner by name (docs/losses.md), read by utils/losses/settings.py."""
    hsv_h: float = 0.015
    """Hue jitter, as a share of the circle."""
    hsv_s: float = 0.7
    """Saturation jitter, as a share."""
    hsv_v: float = 0.4
    """Value jitter, as a share."""
    degrees: float = 0.0
    """Rotation, up to ± degrees."""
    translate: float = 0.1
    """Translation, up to ± share of the size."""
    scale: float = 0.9
    """Scaling, by 1 ± share."""
    shear: float = 0.0
    """Shear, up to ± degrees."""
    perspective: float = 0.0
    """Perspective, up to ± share; 0 to 0.001."""
    flipud: float = 0.0
    """Probability of a flip upside down."""
    fliplr: float = 0.5
    """Probability of a flip left to right."""
    mosaic: float = 1.0
    """Probability of a mosaic of four images."""
    mixup: float = 0.15
    """Probability of blending a mosaic with another one."""
    copy_paste: float = 0.3
    """Share of the objects with polygons that are pasted again, mirrored."""

    def __post_init__(self) -> None:
        self.loss = {} if self.loss is None else self.loss
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name == "loss":
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                quoted = "; write it without quotes" if isinstance(value, str) and is_number(value) else ""
                raise SettingsError(
                    f"hyperparameter {one.name}: {value!r}: expected a number such as {one.default}{quoted}"
                )
            if not 0 <= value < math.inf:
                raise SettingsError(f"hyperparameter {one.name}: {value}: expected a finite number, at least 0")
            if isinstance(one.default, int) and value != int(value):
                raise SettingsError(
                    f"hyperparameter {one.name}: {value}: expected a whole number such as {one.default}"
                )
            setattr(self, one.name, int(value) if isinstance(one.default, int) else float(value))
        if self.momentum >= 1 or self.warmup_momentum >= 1:
            momenta = f"momentum {self.momentum}, warmup_momentum {self.warmup_momentum}"
            raise SettingsError(f"hyperparameters {momenta}: expected less than 1")
        if self.tal_topk < 1 or self.nominal_batch < 1:
            counts = f"tal_topk {self.tal_topk}, nominal_batch {self.nominal_batch}"
            raise SettingsError(f"hyperparameters {counts}: expected at least 1")

    def as_dict(self) -> dict[str, Any]:
        """Return all values by name."""
        return asdict(self)


def is_number(text: str) -> bool:
    """Tell whether a text is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def load_hyperparameters(source: str | Path | Mapping[str, Any] | Hyperparameters | None = None) -> Hyperparameters:
    """Return hyperparameters from a yaml file or a mapping, over the defaults.

    Raises:
        SettingsError: a missing file, no mapping, an unknown key, or a value that is not a number.
    """
    if isinstance(source, Hyperparameters):
        return source
    where, values = "hyperparameters", source or {}
    if isinstance(source, str | Path):
        where = str(source)
        values = read_yaml(find_shipped(source, "data") or Path(source), SettingsError) or {}
    if not isinstance(values, Mapping):
        raise SettingsError(f"{where}: holds {type(values).__name__}: expected a mapping of hyperparameters")
    known = [one.name for one in fields(Hyperparameters)]
    chosen: dict[str, Any] = {}
    for key, value in values.items():
        if key in known:
            chosen[key] = value
        elif key in WITHOUT_EFFECT or (key in NEUTRAL_ONLY and value == NEUTRAL_ONLY[key]):
            print(f"{where}: '{key}' has no effect on this loss and is ignored")
        elif key in NEUTRAL_ONLY:
            raise SettingsError(f"{where}: {key} is {value}: only {NEUTRAL_ONLY[key]} (no effect) is supported")
        else:
            raise SettingsError(f"{where}: unknown hyperparameter '{key}'.{did_you_mean(key, known)}")
    return Hyperparameters(**chosen)
