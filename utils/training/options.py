"""What a training run is asked for."""

from dataclasses import asdict, dataclass, field
from typing import Any

from data.images.cache import CACHE_CHOICES
from utils.errors import SettingsError
from utils.optim.optimizer import OPTIMIZERS, SCHEDULES
from utils.precision import AMP_CHOICES

CHANGEABLE = (
    *("data", "epochs", "patience", "device", "amp", "workers", "cache"),
    *("nosave", "noval", "noplots", "save_period", "save_steps", "half"),
)
"""Options that a resumed run may be given anew; any other would make it another run."""
HEAD_HIDDEN = ("keep", "rule")
OF_ONE_CALL = ("resume", "force", "plugin")
"""Options that a checkpoint does not bring back: how to go on, and which files are run, since a checkpoint must not choose that."""


@dataclass
class TrainOptions:
    """What a training run is asked for; names are those of train.py's flags.

    Attributes:
        given: names of the options that were chosen rather than left at their default; a resumed run looks at them.
    """

    cfg: str = ""
    data: str = "data/shapes.yaml"
    weights: str = ""
    hyp: str = "data/hyp.yaml"
    epochs: int = 100
    batch: int = 16
    img: int = 640
    scale: str | None = None
    width: float | None = None
    depth: float | None = None
    patch: list[str] = field(default_factory=list)
    rect: bool = False
    resume: str | None = None
    force: bool = False
    nosave: bool = False
    noval: bool = False
    noplots: bool = False
    cache: str = "auto"
    device: str = ""
    amp: str = "auto"
    multi_scale: bool = False
    single_cls: bool = False
    optimizer: str = "SGD"
    schedule: str = "linear"
    workers: int = 2
    project: str = "runs/train"
    name: str = "exp"
    exist_ok: bool = False
    patience: int = 100
    freeze: list[str] = field(default_factory=list)
    lr_factor: list[str] = field(default_factory=list)
    layer_decay: float = 1.0
    head_hidden: str = "keep"
    min_transfer: float = 0.5
    allow_partial: bool = False
    save_period: int = 0
    save_steps: int = 0
    half: bool = False
    min_items: int = 0
    close_mosaic: int = 0
    seed: int = 0
    plugin: list[str] = field(default_factory=list)
    given: frozenset[str] = frozenset()

    def as_dict(self) -> dict[str, Any]:
        """Return all options by name."""
        return {name: value for name, value in asdict(self).items() if name != "given"}

    def resume_from(self, stored: dict[str, Any], path: str) -> None:
        """Take over the options of the run at `path`, except those that may change and were given; says which others were given."""
        left_out = []
        for name in self.as_dict().keys() & stored.keys() - set(OF_ONE_CALL):
            if name in self.given and name in CHANGEABLE:
                continue
            if name in self.given and getattr(self, name) != stored[name]:
                left_out.append(f"--{name.replace('_', '-')} {stored[name]}")
            setattr(self, name, stored[name])
        self.resume = path
        if left_out:
            print(f"{path}: the run keeps its own {', '.join(sorted(left_out))}: what was given instead is left out")

    def check(self) -> None:
        """Refuse values out of range.

        Raises:
            SettingsError: names the flag and what was expected.
        """
        lowest = {"epochs": 1, "img": 32} | dict.fromkeys(
            ("workers", "patience", "save_period", "save_steps", "min_items", "close_mosaic", "seed"), 0
        )
        for name, least in lowest.items():
            if getattr(self, name) < least:
                raise SettingsError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected at least {least}")
        for name in ("min_transfer", "allow_partial", "head_hidden"):
            if name in self.given and not self.weights and self.resume is None:
                raise SettingsError(f"--{name.replace('_', '-')}: is about --weights, and none are given: leave it out")
        if not 0 <= self.min_transfer <= 1:
            raise SettingsError(f"--min-transfer {self.min_transfer}: expected a share from 0 to 1, such as 0.5")
        if self.batch < 1 and self.batch != -1:
            raise SettingsError(f"--batch {self.batch}: expected a positive number, or -1 to fill the GPU's memory")
        if self.force and self.resume is None:
            raise SettingsError(
                "--force: goes with --resume only: it goes on although the data or settings of the run changed"
            )
        if self.nosave and self.save_steps:
            raise SettingsError(
                f"--nosave --save-steps {self.save_steps}: one saves the last epoch only, the other within epochs: leave one out"
            )
        choices = {
            "amp": AMP_CHOICES,
            "optimizer": OPTIMIZERS,
            "cache": CACHE_CHOICES,
            "schedule": tuple(SCHEDULES),
            "head_hidden": HEAD_HIDDEN,
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise SettingsError(
                    f"--{name.replace('_', '-')} {getattr(self, name)}: expected one of {', '.join(known)}"
                )
