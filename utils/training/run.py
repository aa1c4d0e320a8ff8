"""A training run from its options to its plots: set-up, epochs, validation, checkpoints, results."""

import math
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.config import load_data_config, print_notes
from data.loader import Loader
from models.config.composed import config_text
from models.loose_ends import loose_ends
from models.parameters import count_parameters
from models.plugins.loading import load_plugins
from models.plugins.record import keep_copies, plugin_flags, plugins_key, print_plugins
from utils.checkpoint.importing import load_model
from utils.drawing.plots import plot_batch, plot_labels, plot_results
from utils.errors import SignalledError, TrainingStoppedError
from utils.files import write_text, write_yaml
from utils.hyperparameters import load_hyperparameters
from utils.inference.evaluate import NUM_PLOTTED_BATCHES, EvalResult, evaluate
from utils.listeners import Audience, open_listeners
from utils.metrics.detection import DetectionResult
from utils.precision import Precision, choose_precision
from utils.ranks import check_same, first_goes_first, from_first, is_first, joined, share_from_first, size
from utils.signals import handling
from utils.training.epoch import EpochResult, EpochState, train_one_epoch
from utils.training.log import record, table_header
from utils.training.options import OF_ONE_MACHINE, TrainOptions
from utils.training.resume import find_resumable, note_launch, resumed_by_torchrun
from utils.training.set_up import set_up
from utils.training.state import Run, not_finite, save_last, saved_beforehand, snapshot
from utils.weights.own_file import plain


def train(options: TrainOptions) -> Path:
    """Train a network, and return the run's folder.

    Raises:
        UserError: options, data, weights or network that cannot be used.
        TrainingStoppedError: the training or validation loss became non-finite.
    """
    options.check()
    plugins = load_plugins(options.plugin)
    precision = choose_precision(options.device, options.amp)
    with joined(precision.device):
        flags = {name: value for name, value in options.as_dict().items() if name not in OF_ONE_MACHINE}
        check_same("flags", flags, "start all processes with the same flags")
        options = from_first(resumed_by_torchrun(options) if is_first() else options)
        checkpoint = None
        if options.resume is not None:
            options, checkpoint = find_resumable(options)
            precision = choose_precision(options.device, options.amp)
        audience = open_listeners(options.log) if is_first() else Audience()
        seed_everything(options.seed)
        hyp = load_hyperparameters(checkpoint["hyp"] if checkpoint else options.hyp)
        with first_goes_first():  # the built-in data is drawn at first use
            config = load_data_config(options.data)
        print_notes(config)
        run = set_up(options, hyp, config, precision, checkpoint)
        run.audience = audience
        if is_first():
            describe(run, precision)
            print_plugins(run.training.model, plugins)
        train_and_tell(run)
    return run.folder


def train_and_tell(run: Run) -> None:
    """Train, and tell the user and the listeners how it ended."""
    run.audience.start(run.facts())
    try:
        with run.stop.handled():
            fit(run)
        finish(run)
    except TrainingStoppedError as error:
        run.audience.end(run.facts(), error)
        raise TrainingStoppedError(f"{error}; {what_is_kept(run)}") from error
    except SignalledError as error:
        run.audience.end(run.facts(), error)
        raise SignalledError(f"{run.stop.name}: {what_is_kept(run)}") from error
    except BaseException as error:  # Ctrl-C, a full disk, a fault in a layer: the user learns what is saved
        run.audience.end(run.facts(), error)
        print(f"\n{what_is_kept(run)}", flush=True)
        raise
    run.audience.end(run.facts(), None)


def seed_everything(seed: int) -> None:
    """Seed every random generator: one seed gives one result on one machine with one number of threads."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def describe(run: Run, precision: Precision) -> None:
    """Print the run's settings, and write them into its folder."""
    options, schedule, model = run.options, run.training.schedule, run.training.model
    source = options.resume or options.cfg or options.weights
    part = f" ({options.batch // size()} in each of {size()} processes)" if size() > 1 else ""
    deeper = f", images in multiples of {model.multiple}" if model.multiple > max(model.stride) else ""
    print(
        f"network: {source}: {count_parameters(model):,} parameters, {model.nc} classes, stride {model.stride}{deeper}"
    )
    for line in loose_ends(model):
        print(line)
    print(f"compute: {precision.describe()}")
    print(
        f"steps: {schedule.batches_per_epoch} batches of {options.batch}{part} an epoch, {schedule.accumulate} batches "
        f"a step (nominal batch {run.hyp.nominal_batch}), warm-up {schedule.warmup_batches} batches, "
        f"{options.optimizer}, {options.schedule} schedule"
    )
    numbers = {key: value for key, value in run.hyp.as_dict().items() if key != "loss"}
    print("hyperparameters: " + ", ".join(f"{key} {value:g}" for key, value in numbers.items()))
    print(f"loss: {run.training.loss.settings}")
    print(f"results: {run.folder}", flush=True)
    note_launch(run.folder)
    write_yaml(run.folder / "args.yaml", options.as_dict())
    write_yaml(run.folder / "hyp.yaml", run.hyp.as_dict())
    write_text(run.folder / "model.yaml", config_text(plugins_key(model) | plain(model.config)))
    keep_copies(model, run.folder)
    if not options.noplots:
        dataset = run.train_loader.dataset
        plot_labels(dataset.annotations, dataset.names, run.folder / "labels.png")


def fit(run: Run) -> None:
    """Train epoch after epoch until the last one, or until nothing has improved for `patience` epochs."""
    options, progress = run.options, run.progress
    print(table_header(run.training.model.task))
    while progress.epoch < options.epochs:
        epoch = progress.epoch
        if progress.partial is None:
            progress.mosaic = epoch < options.epochs - options.close_mosaic
        done = snapshot(progress.partial or EpochState())
        run.train_loader.set_epoch(epoch, mosaic=progress.mosaic, start_batch=done.batch)
        batches: Any = run.train_loader
        if epoch == 0 and not options.noplots and is_first():
            batches = plotted(run.train_loader, run.folder, run.train_loader.dataset.names, done.batch)
        trained = train_until_told(run, batches, epoch, done)
        last_epoch = epoch + 1 == options.epochs
        found = validated(run, epoch, done) if last_epoch or not options.noval else None
        waited = epoch - progress.best_epoch if progress.not_improved_by(found) else 0
        stale = 0 < options.patience <= waited
        with uninterrupted():
            record(run, epoch, trained, found, last=last_epoch or stale)
        if stale:
            print(f"stopped early: nothing better than epoch {progress.best_epoch + 1} in {options.patience} epochs")
            break


def train_until_told(run: Run, batches: Any, epoch: int, done: EpochState) -> EpochResult:
    """Train one epoch; a run that is told to stop saves last.pt first.

    Raises:
        SignalledError: the run was told to stop.
    """
    try:
        return train_one_epoch(
            run.training,
            batches,
            epoch,
            progress=is_first(),
            done=done,
            after_step=step_saver(run),
            stop=lambda: bool(run.stop.name),
        )
    except SignalledError:
        run.progress.partial = snapshot(done)
        with uninterrupted():
            save_last(run)
        raise


def validated(run: Run, epoch: int, trained: EpochState) -> EvalResult | None:
    """Validate the averaged weights of an epoch; None without a val split.

    last.pt is written first, so that no fault in the validation costs the epoch: the resumed run goes on with the
    validation. Weights that are not finite, or whose loss is not, are not kept: last.pt stays that of the epoch before.

    Args:
        trained: the state after the epoch's last batch.
    Raises:
        TrainingStoppedError: the validation loss is not finite.
    """
    training = run.training
    if run.val_loader is None:
        return None
    saves = epoch + 1 == run.options.epochs or not run.options.nosave
    finite = not_finite(training.model.state_dict()) is None and not_finite(training.ema.model.state_dict()) is None
    if saves and finite:
        run.progress.partial = snapshot(trained)
    share_from_first(list(training.ema.model.state_dict().values()))
    with saved_beforehand(run) if saves and finite else nullcontext(), run.stop.while_saved():
        found = evaluate(training.ema.model, run.val_loader, training.precision, loss=training.loss, progress=False)
        if not all(map(math.isfinite, found.losses.values())):
            raise TrainingStoppedError(
                f"epoch {epoch + 1}: the validation loss is {sum(found.losses.values())}: lower lr0, or try --amp off"
            )
    return found


def step_saver(run: Run) -> Callable[[EpochState], None] | None:
    """Return a function that saves last.pt every --save-steps batches within an epoch; None without the flag."""
    progress, every = run.progress, run.options.save_steps
    if not every:
        return None

    def save(state: EpochState) -> None:
        saved = progress.partial.batch if progress.partial else 0
        if state.batch - saved >= every and state.batch < len(
            run.train_loader
        ):  # the end of the epoch is saved with its results
            progress.partial = snapshot(state)
            with uninterrupted():
                save_last(run)

    return save


def plotted(batches: Loader, folder: Path, names: list[str], first: int = 0) -> Iterator[dict[str, Any]]:
    """Yield the batches, numbered from `first`, and draw the first ones of the epoch with their boxes."""
    for number, batch in enumerate(batches, first):
        if number < NUM_PLOTTED_BATCHES:
            plot_batch(
                batch["images"],
                batch["targets"].numpy(),
                names,
                folder / f"train_batch{number}.png",
                masks=batch.get("masks"),
            )
        yield batch


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C until the body is done, so that an epoch is recorded whole."""
    caught: list[int] = []
    with handling(lambda *_: caught.append(1), (signal.SIGINT,)):
        yield
    if caught:
        raise KeyboardInterrupt


def what_is_kept(run: Run) -> str:
    """Return a line about the checkpoint that a run leaves when it ends early."""
    if run.kept is None:
        return f"no epoch was saved in {run.weights}"
    epoch, batches = run.kept
    if not batches:
        what = f"epoch {epoch}"
    elif batches == len(run.train_loader):
        what = f"epoch {epoch + 1}, not validated yet,"
    elif epoch:
        what = f"epoch {epoch} and {batches} batches of the next"
    else:
        what = f"epoch 1 up to batch {batches}"
    last = run.weights / "last.pt"
    return f"{what} is saved: python train.py --resume {last}{plugin_flags(run.training.model)} goes on from there"


def finish(run: Run) -> None:
    """Draw the results, validate the best weights again, and print where the files are."""
    if not run.options.noplots and is_first():
        plot_results(run.folder / "results.csv", run.folder / "results.png")
    best, last = run.weights / "best.pt", run.weights / "last.pt"
    if not best.is_file():  # --nosave, and the last epoch was not the best
        best = last
    if run.val_loader is not None:
        measure_best(run, best)
    print(f"weights: {best} (best), {last} (last, resumable); plots and results.csv: {run.folder}")


def measure_best(run: Run, best: Path) -> None:
    """Validate the best weights again, with plots, and print what was measured."""
    assert run.val_loader is not None
    model = run.training.precision.place(load_model(best))
    found = evaluate(
        model,
        run.val_loader,
        run.training.precision,
        plots_dir=run.folder if is_first() and not run.options.noplots else None,
        progress=False,
    )
    if not found.metrics.num_instances:
        print(f"last epoch {run.progress.epoch}, {best.name}: not measured, since no validation image has an object")
        return
    measured = metrics_line(found.metrics)
    if found.masks is not None:
        measured += f"; masks: {metrics_line(found.masks)}"
    print(f"best epoch {run.progress.best_epoch + 1}, {best.name}: {measured}")


def metrics_line(metrics: DetectionResult) -> str:
    """Return precision, recall and the two mAP as text."""
    return f"P {metrics.precision:.4f} R {metrics.recall:.4f} mAP50 {metrics.map50:.4f} mAP50-95 {metrics.map:.4f}"
