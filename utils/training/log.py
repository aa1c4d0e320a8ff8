"""A training run's record: the line of each epoch, results.csv, and when the checkpoints are written."""

import json
import math
from typing import Any

from utils.files import write_csv, write_text
from utils.inference.evaluate import EvalResult
from utils.ranks import is_first
from utils.training.epoch import EpochResult
from utils.training.state import Run, save_best, save_last

LOSS_ITEMS = ("box", "cls", "dfl")
METRICS = ("precision", "recall", "map50", "map")
TABLE = (*LOSS_ITEMS, "P", "R", "mAP50", "mAP50-95", *(f"val {item}" for item in LOSS_ITEMS), "train s", "wait s")
MASK_TABLE = ("mask", "P(m)", "R(m)", "mAP50(m)", "mAP(m)", "val mask")
MASK_COLUMNS = (
    "train/mask_loss",
    *(f"metrics/{name}(mask)" for name in ("precision", "recall", "mAP_0.5", "mAP_0.5:0.95")),
    "val/mask_loss",
)
"""What a segmentation run's results.csv has after a detection run's columns."""


def table_header(task: str = "detect") -> str:
    """Return the line above the epochs' lines."""
    titles = (*TABLE, *MASK_TABLE) if task == "segment" else TABLE
    return f"{'epoch':>10}" + "".join(f"{title:>10}" for title in titles)


def record(run: Run, epoch: int, trained: EpochResult, found: EvalResult | None, last: bool) -> None:
    """Print and write the results of an epoch, and save the checkpoints.

    Args:
        last: the epoch ends the run.
    """
    progress, options = run.progress, run.options
    validation = describe_validation(epoch, found) if found else {}
    measured = [float(validation.get(name, "nan")) for name in (*METRICS, *(f"{item}_loss" for item in LOSS_ITEMS))]
    rates = [group["lr"] for group in run.training.optimizer.param_groups]
    trained_items = [trained.items.get(item, float("nan")) for item in LOSS_ITEMS]  # none where every step was left out
    masks = mask_columns(trained, validation) if run.training.model.task == "segment" else []
    numbers = (*trained_items, *measured, *rates, trained.seconds, trained.waited, *masks)
    progress.rows.append([epoch + 1, *(round(float(x), 6) for x in numbers)])
    progress.epoch, progress.partial = epoch + 1, None
    progress.validation = validation or progress.validation
    best = progress.improved_by(found) or (run.val_loader is None and last)
    if best:
        progress.best_fitness, progress.best_epoch = (found.fitness if found else 0.0), epoch
    shown = (*trained_items, *measured, trained.seconds, trained.waited, *masks)
    print(f"{epoch + 1:>5}/{options.epochs:<4}" + "".join(f"{value:>10.4f}" for value in shown), flush=True)
    if trained.skipped_steps:
        print(f"          {trained.skipped_steps} optimizer steps left out: their gradient was not finite")
    write_results(run, results_header(len(rates), run.training.model.task))
    if last or not options.nosave:
        save_all(run, best)


def write_results(run: Run, header: list[str]) -> None:
    """Write results.csv and results.jsonl, which leaves out what was not measured, and tell the listeners."""
    if not is_first():
        return
    rows = run.progress.rows
    write_csv(run.folder / "results.csv", header, rows)
    named = [{name: value for name, value in zip(header, row, strict=True) if not math.isnan(value)} for row in rows]
    write_text(run.folder / "results.jsonl", "".join(f"{json.dumps(row)}\n" for row in named))
    numbers = {name: value for name, value in named[-1].items() if name != "epoch"}
    run.audience.epoch(run.facts(), run.progress.epoch, numbers)


def mask_columns(trained: EpochResult, validation: dict[str, Any]) -> list[float]:
    """Return an epoch's numbers under `MASK_COLUMNS`."""
    found = [float(validation.get(name, "nan")) for name in (*(f"mask_{name}" for name in METRICS), "mask_loss")]
    return [trained.items.get("mask", float("nan")), *found]


def save_all(run: Run, best: bool) -> None:
    """Save the checkpoints of an epoch.

    last.pt is written last. A run that is killed before that writes the other files again when it is resumed. If
    last.pt were the first, the epoch would count as done, and a best.pt that is missing would never be written.
    """
    if best:
        save_best(run, run.weights / "best.pt")
    period = run.options.save_period
    if period and run.progress.epoch % period == 0:
        save_best(run, run.weights / f"epoch{run.progress.epoch}.pt")
    save_last(run)


def describe_validation(epoch: int, found: EvalResult) -> dict[str, Any]:
    """Return what a validation found as plain data.

    Args:
        epoch: number from 0.
    Returns:
        Fitness, metrics (nan where no validation image has an object) and losses by name.
    """
    measured = found.metrics.num_instances > 0
    metrics = {name: float(getattr(found.metrics, name)) if measured else math.nan for name in METRICS}
    if found.masks is not None:
        metrics |= {f"mask_{name}": float(getattr(found.masks, name)) for name in METRICS}
    return {
        "epoch": epoch,
        "fitness": float(found.fitness),
        **metrics,
        **{f"{item}_loss": float(value) for item, value in found.losses.items()},
    }


def results_header(num_rates: int, task: str = "detect") -> list[str]:
    """Return the columns of results.csv."""
    return [
        "epoch",
        *(f"train/{item}_loss" for item in LOSS_ITEMS),
        *("metrics/precision", "metrics/recall", "metrics/mAP_0.5", "metrics/mAP_0.5:0.95"),
        *(f"val/{item}_loss" for item in LOSS_ITEMS),
        *(f"x/lr{index}" for index in range(num_rates)),
        *("time/train_s", "time/wait_s"),
        *(MASK_COLUMNS if task == "segment" else ()),
    ]
