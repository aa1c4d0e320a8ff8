"""The state of a training run: written into a checkpoint, and restored so that a resumed run goes on exactly."""

import math
import os
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.loader import Loader
from utils.errors import CheckpointError, TrainingStoppedError
from utils.files import copy_file
from utils.hyperparameters import Hyperparameters
from utils.inference.evaluate import EvalResult
from utils.listeners import Audience, RunFacts
from utils.ranks import gathered, is_first, launch, size
from utils.signals import StopSignal
from utils.training.epoch import EpochState, Training
from utils.training.options import TrainOptions
from utils.weights.own_file import network_entry, save_checkpoint


@dataclass
class Progress:
    """How much of a run is done. A resumed run starts from it.

    Attributes:
        epoch: epochs done.
        best_fitness, best_epoch: of the best validation; its epoch counts from 0.
        rows: results.csv so far; epochs count from 1, as on the screen.
        validation: epoch (from 0), metrics and losses of the last validation.
        partial: how much of the next epoch is done, if the run was saved within it.
        mosaic: whether the epoch in progress has mosaics.
    """

    epoch: int = 0
    best_fitness: float = -1.0
    best_epoch: int = -1
    rows: list[list[Any]] = field(default_factory=list)
    validation: dict[str, Any] = field(default_factory=dict)
    partial: EpochState | None = None
    mosaic: bool = True

    def improved_by(self, found: EvalResult | None) -> bool:
        """Tell whether a validation is the best so far; while the best fitness is 0, every validation is."""
        return found is not None and (found.fitness > self.best_fitness or self.best_fitness <= 0)

    def not_improved_by(self, found: EvalResult | None) -> bool:
        """Tell whether a validation counts for --patience: it measured something, and nothing better."""
        return found is not None and found.metrics.num_instances > 0 and not self.improved_by(found)

    def has_waited(self, patience: int) -> bool:
        """Tell whether --patience ended the run.

        The last epoch was validated with objects, and `patience` epochs or more went by since the best one.
        """
        last = self.epoch - 1
        measured = self.validation.get("epoch") == last and not math.isnan(self.validation.get("map", 0.0))
        return 0 < patience <= last - self.best_epoch and measured


@dataclass
class Run:
    """A run in progress: its folder, options and parts.

    Attributes:
        val_loader: None where the data has no val split, with --noval.
        sources: see utils/training/sources.py.
        kept: epochs, and batches of the next one, that last.pt holds; None as long as there is none.
        audience: who is told about the run.
        stop: notes the signals that tell the run to stop.
    """

    folder: Path
    options: TrainOptions
    hyp: Hyperparameters
    training: Training
    train_loader: Loader
    val_loader: Loader | None
    progress: Progress
    sources: dict[str, Any] = field(default_factory=dict)
    kept: tuple[int, int] | None = None
    audience: Audience = field(default_factory=Audience)
    stop: StopSignal = field(default_factory=StopSignal)

    def facts(self) -> RunFacts:
        """Return what listeners are told about the run."""
        return RunFacts(self.folder, self.options.as_dict(), self.hyp.as_dict(), self.progress.epoch)

    @property
    def weights(self) -> Path:
        """Folder of the checkpoints."""
        return self.folder / "weights"


ESSENTIAL: dict[str, Callable[[Run], Any]] = {
    "model": lambda run: run.training.model.state_dict(),
    "ema": lambda run: run.training.ema.model.state_dict(),
    "updates": lambda run: run.training.ema.updates,
    "optimizer": lambda run: run.training.optimizer.state_dict(),
    "scaler": lambda run: run.training.scaler.state_dict(),
    "rng": lambda run: random_states(),
    "epoch": lambda run: run.progress.epoch,
    "best_fitness": lambda run: run.progress.best_fitness,
    "best_epoch": lambda run: run.progress.best_epoch,
    "rows": lambda run: run.progress.rows,
    "hyp": lambda run: run.hyp.as_dict(),
    "options": lambda run: run.options.as_dict(),
}
"""Entries of last.pt that every resumed run needs."""

FURTHER: dict[str, Callable[[Run], Any]] = {
    "network": lambda run: network_entry(run.training.model),
    "loss": lambda run: run.training.loss.state_dict(),
    "bad_steps": lambda run: run.training.bad_steps,
    "partial": lambda run: partial_entry(run.progress),
    "metrics": lambda run: run.progress.validation,
    "schedule": lambda run: {
        "epochs": run.training.schedule.epochs,
        "batches_per_epoch": run.training.schedule.batches_per_epoch,
    },
    "compute": lambda run: run.training.precision.describe(),
    "sources": lambda run: run.sources,
}
"""Entries of last.pt that a resumed run can do without, or that `read_checkpoint` checks."""


PREVIOUS = ".last.pt.previous.tmp"
"""Name of the last.pt before the newest one during a validation; `utils.training.resume.LEFTOVER` matches it."""


def save_last(run: Run) -> None:
    """Write everything that a resumed run needs; no gradient may be pending.

    All ranks call it; the first one writes.
    """
    states = gathered(random_states())
    if is_first():
        content = {name: read(run) for name, read in (FURTHER | ESSENTIAL).items()}
        save_checkpoint(run.weights / "last.pt", content | {"ranks": len(states), "rng_of_ranks": states[1:]})
    run.kept = run.progress.epoch, run.progress.partial.batch if run.progress.partial else 0


@contextmanager
def saved_beforehand(run: Run) -> Iterator[None]:
    """Write last.pt before the body; if the body stops the training, last.pt is again what it was before.

    A body that fails in any other way leaves the new last.pt.
    """
    last, previous, kept = run.weights / "last.pt", run.weights / PREVIOUS, run.kept
    try:
        if is_first() and last.exists():
            copy_file(last, previous)
        save_last(run)
        yield
    except TrainingStoppedError:
        if is_first() and previous.exists():
            os.replace(previous, last)
        elif is_first():
            last.unlink()
        run.kept = kept
        raise
    finally:
        if is_first():
            previous.unlink(missing_ok=True)


def partial_entry(progress: Progress) -> dict[str, Any] | None:
    """Return the state of the epoch in progress as plain data; None between epochs."""
    return asdict(progress.partial) | {"mosaic": progress.mosaic} if progress.partial else None


def save_best(run: Run, path: Path) -> None:
    """Write the averaged weights alone, for inference and fine-tuning; in half precision with --half.

    All ranks may call it; the first one writes.
    """
    if not is_first():
        return
    weights = run.training.ema.model.state_dict()
    save_checkpoint(
        path,
        {
            "network": network_entry(run.training.model),
            "model": {name: halved(tensor) for name, tensor in weights.items()} if run.options.half else weights,
            "epoch": run.progress.epoch,
            "metrics": run.progress.validation,
            "hyp": run.hyp.as_dict(),
            "options": run.options.as_dict(),
        },
    )


def halved(tensor: Tensor) -> Tensor:
    """Return floating values in float16, but as they are where that format cannot hold one."""
    if not tensor.is_floating_point():
        return tensor
    half = tensor.half()
    return half if half.isfinite().all() else tensor


def random_states() -> dict[str, Any]:
    """Return the state of every random number generator as tensors and plain data."""
    version, words, gauss = random.getstate()
    numbers: Any = np.random.get_state()  # annotated as a mapping too, which only legacy=False gives
    kind, keys, position, has_gauss, cached = numbers
    return {
        "python": [version, torch.tensor(words), gauss],
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
    }


def restore_random_states(states: dict[str, Any] | Tensor, where: str) -> None:
    """Restore every random number generator, and print which ones the checkpoint does not have.

    Args:
        states: what `random_states` returned, or torch's own state alone (version 1 of the format).
        where: the checkpoint, for messages.
    """
    if isinstance(states, Tensor):
        torch.set_rng_state(states)
        print(f"{where}: holds torch's random state only: Python's, numpy's and the GPU's start anew")
        return
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for device, state in enumerate(states["cuda"][:devices]):
        torch.cuda.set_rng_state(state, device)
    if devices > len(states["cuda"]):
        stored = len(states["cuda"])
        print(f"{where}: holds the random state of {stored} GPUs: the other {devices - stored} start with a new state")
    if states["mps"] is not None and torch.backends.mps.is_available():
        torch.mps.set_rng_state(states["mps"])


FORMS = ("fused", "foreach")
"""Settings of an optimizer that follow from the device."""


def check_complete(checkpoint: dict[str, Any], where: str) -> None:
    """Refuse a checkpoint that a run cannot be resumed from.

    Raises:
        CheckpointError: names the entries that are missing, or a weight that is not finite.
    """
    if "optimizer" not in checkpoint:
        raise CheckpointError(
            f"{where}: holds no optimizer state: expected a last.pt; to start from its weights use --weights"
        )
    if missing := [name for name in ESSENTIAL if name not in checkpoint]:
        raise CheckpointError(
            f"{where}: holds no {', '.join(missing)}: expected a whole last.pt; to start from its weights use --weights"
        )
    for part in ("model", "ema"):
        if name := not_finite(checkpoint[part]):
            raise CheckpointError(f"{where}: {part}: {name}: holds values that are not finite: expected finite weights")


def not_finite(weights: Mapping[str, Tensor]) -> str | None:
    """Return the name of a tensor that holds values that are not finite; None if there is none."""
    return next((name for name, value in weights.items() if not value.isfinite().all()), None)


def restore(training: Training, checkpoint: dict[str, Any], where: str) -> Progress:
    """Restore the state of a run from its checkpoint, and return its progress.

    Args:
        where: the checkpoint, for messages.
    Raises:
        CheckpointError: the state does not fit the network.
    """
    built = [dict(group) for group in training.optimizer.param_groups]
    try:
        training.model.load_state_dict(checkpoint["model"])
        training.ema.model.load_state_dict(checkpoint["ema"])
        training.optimizer.load_state_dict(checkpoint["optimizer"])
    except (RuntimeError, ValueError, KeyError) as error:  # torch's own texts take many lines
        raise CheckpointError(
            f"{where}: its state does not fit its own network: {' '.join(str(error).split())[:300]}"
        ) from error
    for group, settings in zip(training.optimizer.param_groups, built, strict=True):
        # a checkpoint of an older version lacks what came later, one of another device had another form of the step
        for name in {*(settings.keys() - group.keys()), *FORMS}:
            group[name] = settings[name]
    training.ema.updates = checkpoint["updates"]
    if checkpoint["scaler"]:  # empty from a run that needed none
        training.scaler.load_state_dict(checkpoint["scaler"])
    training.loss.load_state_dict(
        checkpoint.get("loss", {})
    )  # a checkpoint of an older version lacks it, and its losses had no state
    training.bad_steps = checkpoint.get("bad_steps", 0)
    compute = training.precision.describe()
    if checkpoint.get("compute", compute) != compute:
        print(
            f"{where}: ran on {checkpoint['compute']}, goes on with {compute}: "
            "last digits may differ from those of an uninterrupted run"
        )
    progress = Progress(
        checkpoint["epoch"],
        checkpoint["best_fitness"],
        checkpoint["best_epoch"],
        counted_from_one(checkpoint["rows"]),
        checkpoint.get("metrics", {}),
    )
    if checkpoint.get("partial"):
        restore_partial(progress, training, checkpoint, where)
    restore_random_states(states_of_rank(checkpoint, where), where)
    return progress


def states_of_rank(checkpoint: dict[str, Any], where: str) -> dict[str, Any] | Tensor:
    """Return the random states of this rank; says where the run had another number of ranks."""
    before, number = checkpoint.get("ranks", 1), launch().rank
    if before != size():
        print(
            f"{where}: ran in {before} processes, goes on in {size()}: the batches stay the same; last digits, and "
            "random numbers that layers draw, may differ from those of an uninterrupted run"
        )
    others = checkpoint.get("rng_of_ranks", [])
    return others[number - 1] if 0 < number <= len(others) else checkpoint["rng"]


def counted_from_one(rows: list[list[Any]]) -> list[list[Any]]:
    """Return the rows of results.csv with epochs from 1; checkpoints of older versions count from 0."""
    return [[row[0] + 1, *row[1:]] for row in rows] if rows and rows[0][0] == 0 else rows


def restore_partial(progress: Progress, training: Training, checkpoint: dict[str, Any], where: str) -> None:
    """Restore the progress within an epoch, if the epoch still has as many batches."""
    stored = dict(checkpoint["partial"])
    before, now = checkpoint["schedule"]["batches_per_epoch"], training.schedule.batches_per_epoch
    if before != now:
        print(
            f"{where}: was saved after batch {stored['batch']} of {before}, and an epoch has {now} now: "
            f"epoch {progress.epoch + 1} starts again"
        )
        return
    progress.mosaic = stored.pop("mosaic")
    sums = {name: value.to(training.precision.device) for name, value in stored.pop("sums").items()}
    progress.partial = EpochState(sums=sums, **stored)


def snapshot(state: EpochState) -> EpochState:
    """Return a copy that does not change while the epoch goes on."""
    return replace(state, sums=dict(state.sums))
