"""Options of train.py."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from data.images.cache import CACHE_CHOICES
from utils.cli import SHARED, check_values, flag_of, option
from utils.errors import SettingsError
from utils.image_size import IMAGE_SIZE
from utils.optim.optimizer import OPTIMIZERS, SCHEDULES
from utils.precision import AMP_CHOICES

CHANGEABLE = (
    *("data", "epochs", "patience", "device", "amp", "workers", "cache"),
    *("nosave", "noval", "noplots", "save_period", "save_steps", "half"),
)
"""Options that a resumed run may change; it keeps its own values of all others."""
OF_ONE_MACHINE = ("device", "project", "log")
"""Options in which the processes of a run on several machines may differ; the first one's project and log are used."""
HEAD_HIDDEN = ("keep", "rule")
OF_ONE_CALL = ("resume", "force", "plugin", "log")
"""Options that a checkpoint does not restore: how to resume, and which Python files are run."""


@dataclass
class TrainOptions:
    """Options of train.py, each with its flag.

    Attributes:
        given: names of the options on the command line; a resumed run takes some of them.
    """

    cfg: str = option("", "network yaml: a path or the name of a shipped one")
    data: str = option("data/shapes.yaml", "data yaml")
    weights: str = option("", "checkpoint to start from; without --cfg also the network")
    hyp: str = option(
        "data/hyp.yaml", "hyperparameter yaml; its loss: chooses losses and assigner by name (docs/losses.md)"
    )
    epochs: int = option(100, "length of the run", least=1)
    batch: int = option(16, "images a batch; -1 fills the GPU's memory", **SHARED["batch"])
    img: int = option(IMAGE_SIZE, "image size", least=32, **SHARED["img"])
    scale: str | None = option(None, "letter of a family yaml's scales")
    width: float | None = option(None, "factor on channel counts, in place of the yaml's")
    depth: float | None = option(None, "factor on repeats, in place of the yaml's")
    patch: list[str] = option([], **SHARED["patch"])
    rect: bool = option(False, "rectangular training batches, no mosaics")
    resume: str | None = option(None, "go on from a last.pt, or from the newest one", nargs="?", const="")
    force: bool = option(False, "resume although the data or a yaml changed since the run began")
    nosave: bool = option(False, "save only the last epoch")
    noval: bool = option(False, "validate only the last epoch")
    noplots: bool = option(False, "draw no images")
    cache: str = option("auto", "keep resized images in memory", choices=CACHE_CHOICES, nargs="?", const="ram")
    device: str = option("", **SHARED["device"])
    amp: str = option("auto", "mixed precision", choices=AMP_CHOICES)
    multi_scale: bool = option(False, "vary the size of batches by ± 50 %")
    single_cls: bool = option(False, "take all classes for one")
    optimizer: str = option("SGD", "optimizer", choices=OPTIMIZERS)
    schedule: str = option(
        "linear",
        "learning rate over the epochs",
        choices=tuple(SCHEDULES),
        switches={
            "--cos-lr": ("cosine", "cosine learning rate, not linear"),
            "--flat-cos-lr": ("flat-cosine", "flat-cosine learning rate, not linear"),
            "--fixed-lr": ("fixed", "fixed learning rate, not linear"),
        },
        switches_only=True,
    )
    workers: int = option(2, "processes that load images", least=0, metavar="N")
    project: str = option("runs/train", **SHARED["project"])
    name: str = option("exp", **SHARED["name"])
    exist_ok: bool = option(False, **SHARED["exist_ok"])
    patience: int = option(100, "stop after so many epochs without improvement; 0 never", least=0)
    freeze: list[str] = option(
        [], "first n layers, indices, ranges (0-9), backbone, neck, head, layer names, or globs of parameter names"
    )
    lr_factor: list[str] = option(
        [],
        "factors on the learning rate, such as backbone=0.1; WHAT as in --freeze",
        metavar="WHAT=FACTOR",
    )
    layer_decay: float = option(1.0, "factor on the learning rate from each layer to the one before it")
    head_hidden: str = option(
        "keep",
        "hidden widths of the head's towers when classes or levels change: those of --weights, or the family's rule",
        choices=HEAD_HIDDEN,
    )
    min_transfer: float = option(
        0.5, "least share of the network's parameters that --weights has to bring, 0 to 1", metavar="SHARE"
    )
    allow_partial: bool = option(False, "go on with less than --min-transfer")
    save_period: int = option(0, "also save every so many epochs", least=0)
    save_steps: int = option(
        0, "also save last.pt every so many batches within an epoch; 0 only after each epoch", least=0
    )
    half: bool = option(False, "write best.pt and epoch*.pt in float16, half as large; last.pt stays float32")
    min_items: int = option(0, "leave out images with fewer objects", least=0, metavar="N")
    close_mosaic: int = option(0, "no mosaics in the last so many epochs", least=0)
    seed: int = option(0, "seed of everything random", least=0)
    sync_bn: bool = option(False, "BatchNorm statistics over all ranks, not each rank's own (GPUs)")
    log: list[str] = option(
        [], "also tell 'tensorboard', or the listeners of a Python file of yours, about every epoch", metavar="WHAT"
    )
    plugin: list[str] = option([], **SHARED["plugin"])
    given: frozenset[str] = frozenset()

    def as_dict(self) -> dict[str, Any]:
        """Return all options by name, without `given`."""
        return {name: value for name, value in asdict(self).items() if name != "given"}

    def resume_from(self, stored: dict[str, Any], path: str) -> "TrainOptions":
        """Return the options of the run at `path`, with the given ones of these that may change.

        Prints which of the given options the run does not take.

        Args:
            stored: the run's options, as its checkpoint has them.
        """
        taken = stored.keys() & self.as_dict().keys() - set(OF_ONE_CALL)
        taken -= {name for name in self.given if name in CHANGEABLE}
        kept = sorted(
            f"{flag_of(name)} {stored[name]}" for name in taken & self.given if getattr(self, name) != stored[name]
        )
        if kept:
            print(f"{path}: the run keeps its own {', '.join(kept)}: the values on this command line are not used")
        return replace(self, **{name: stored[name] for name in taken}, resume=path)

    def check(self) -> None:
        """Refuse values out of range.

        Raises:
            SettingsError: names the flag and what was expected.
        """
        check_values(self)
        for name in ("min_transfer", "allow_partial", "head_hidden"):
            if name in self.given and not self.weights and self.resume is None:
                raise SettingsError(f"{flag_of(name)}: given without --weights: expected --weights, or leave it out")
        if not 0 <= self.min_transfer <= 1:
            raise SettingsError(f"--min-transfer {self.min_transfer}: expected a share from 0 to 1, such as 0.5")
        if self.batch < 1 and self.batch != -1:
            raise SettingsError(f"--batch {self.batch}: expected a positive number, or -1 to fill the GPU's memory")
        if self.force and self.resume is None:
            raise SettingsError("--force: given without --resume: expected --resume, or leave it out")
        if self.nosave and self.save_steps:
            raise SettingsError(
                f"--nosave --save-steps {self.save_steps}: --nosave saves only the last epoch: leave one of them out"
            )
