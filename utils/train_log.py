"""A training run's record: the line of each epoch, results.csv, and the checkpoints."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from data.loader import Loader
from utils.checkpoint import network_entry, save_checkpoint
from utils.config import Hyperparameters
from utils.engine import EpochResult, Training
from utils.evaluate import EvalResult
from utils.files import write_csv
from utils.train_options import TrainOptions

LOSS_ITEMS = ("box", "cls", "dfl")
TABLE = (*LOSS_ITEMS, "P", "R", "mAP50", "mAP50-95", *(f"val {item}" for item in LOSS_ITEMS), "train s", "wait s")


@dataclass
class Progress:
    """How far a run has come: what a resumed run starts from."""

    epoch: int = 0
    best_fitness: float = -1.0
    best_epoch: int = -1
    rows: list[list[Any]] = field(default_factory=list)

    def improved_by(self, found: EvalResult | None) -> bool:
        """Tell whether a validation is the best so far; as long as nothing was ever found, every one is."""
        return found is not None and (found.fitness > self.best_fitness or self.best_fitness <= 0)


@dataclass
class Run:
    """A run in progress: its folder, options and parts."""

    folder: Path
    options: TrainOptions
    hyp: Hyperparameters
    training: Training
    train_loader: Loader
    val_loader: Loader
    progress: Progress

    @property
    def weights(self) -> Path:
        """Folder of the checkpoints."""
        return self.folder / "weights"


def table_header() -> str:
    """Return the line above the epochs' lines."""
    return f"{'epoch':>10}" + "".join(f"{title:>10}" for title in TABLE)


def record(run: Run, epoch: int, trained: EpochResult, found: EvalResult | None, last: bool) -> None:
    """Print and write what an epoch gave, and save the checkpoints; `last` for the epoch that ends the run."""
    progress, options = run.progress, run.options
    metrics = [found.metrics.precision, found.metrics.recall, found.metrics.map50, found.metrics.map] if found else [float("nan")] * 4
    losses = [found.losses[item] for item in LOSS_ITEMS] if found else [float("nan")] * 3
    rates = [group["lr"] for group in run.training.optimizer.param_groups]
    trained_items = [trained.items[item] for item in LOSS_ITEMS]
    progress.rows.append([epoch, *(round(float(x), 6) for x in (*trained_items, *metrics, *losses, *rates, trained.seconds, trained.waited))])
    progress.epoch = epoch + 1
    best = progress.improved_by(found)
    if best:
        progress.best_fitness, progress.best_epoch = found.fitness, epoch
    shown = (*trained_items, *metrics, *losses, trained.seconds, trained.waited)
    print(f"{epoch + 1:>5}/{options.epochs:<4}" + "".join(f"{value:>10.4f}" for value in shown), flush=True)
    if trained.skipped_steps:
        print(f"          {trained.skipped_steps} optimizer steps left out: their gradient was not finite")
    write_csv(run.folder / "results.csv", results_header(len(rates)), progress.rows)
    if last or not options.nosave:
        save_last(run)
        if best:
            save_best(run, run.weights / "best.pt")
        if options.save_period and progress.epoch % options.save_period == 0:
            save_best(run, run.weights / f"epoch{progress.epoch}.pt")


def results_header(num_rates: int) -> list[str]:
    """Return the columns of results.csv."""
    return [
        "epoch",
        *(f"train/{item}_loss" for item in LOSS_ITEMS),
        *("metrics/precision", "metrics/recall", "metrics/mAP_0.5", "metrics/mAP_0.5:0.95"),
        *(f"val/{item}_loss" for item in LOSS_ITEMS),
        *(f"x/lr{index}" for index in range(num_rates)),
        *("time/train_s", "time/wait_s"),
    ]


def save_last(run: Run) -> None:
    """Write everything that a resumed run needs."""
    training, progress = run.training, run.progress
    save_checkpoint(
        run.weights / "last.pt",
        {
            "network": network_entry(training.model),
            "model": training.model.state_dict(),
            "ema": training.ema.model.state_dict(),
            "updates": training.ema.updates,
            "optimizer": training.optimizer.state_dict(),
            "scaler": training.scaler.state_dict(),
            "rng": torch.get_rng_state(),
            "epoch": progress.epoch,
            "best_fitness": progress.best_fitness,
            "best_epoch": progress.best_epoch,
            "rows": progress.rows,
            "hyp": run.hyp.as_dict(),
            "options": run.options.as_dict(),
        },
    )


def save_best(run: Run, path: Path) -> None:
    """Write the averaged weights alone, for inference and fine-tuning."""
    save_checkpoint(
        path,
        {
            "network": network_entry(run.training.model),
            "model": run.training.ema.model.state_dict(),
            "epoch": run.progress.epoch,
            "fitness": run.progress.best_fitness,
            "hyp": run.hyp.as_dict(),
            "options": run.options.as_dict(),
        },
    )
