"""A training run from its options to its plots: set-up, epochs, validation, checkpoints, results."""

import math
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.config import DataConfig, load_data_config
from data.dataset import DetectionDataset
from data.loader import Loader, build_loader
from data.scan import check_outlines, load_annotations, print_report
from models.config.composed import config_text
from models.parameters import count_parameters
from models.plugins.held import loaded_plugins
from models.plugins.loading import install_plugins, load_plugins
from models.plugins.record import keep_copies, plugin_flags, plugins_entry, plugins_key, print_plugins
from models.yolo import Model
from utils.checkpoint.importing import load_model
from utils.checkpoint.transfer import DIFFERENT, NEW
from utils.drawing.plots import plot_batch, plot_labels, plot_results
from utils.errors import SettingsError, TrainingStoppedError
from utils.files import next_run_dir, write_text, write_yaml
from utils.hyperparameters import Hyperparameters, load_hyperparameters
from utils.image_size import size_on_stride
from utils.inference.evaluate import NUM_PLOTTED_BATCHES, evaluate
from utils.losses.detection import DetectionLoss, build_loss
from utils.losses.settings import settle_loss
from utils.optim.ema import ModelEMA
from utils.optim.optimizer import Schedule, build_optimizer
from utils.optim.selection import check_frozen_were_loaded, describe_frozen, freeze, learning_rate_factors
from utils.precision import Precision, choose_precision, worker_count
from utils.training.epoch import EpochState, Training, train_one_epoch
from utils.training.log import record, table_header
from utils.training.options import TrainOptions
from utils.training.resume import find_resumable, remove_leftovers
from utils.training.sources import check_sources, describe_sources
from utils.training.starting_network import starting_network
from utils.training.state import Progress, Run, restore, save_last, snapshot
from utils.weights.own_file import plain

MAX_FITTING_BATCH = 256


def train(options: TrainOptions) -> Path:
    """Train a network as asked, and return the run's folder.

    Raises:
        UserError: what was asked for cannot be done.
        TrainingStoppedError: the loss, in training or validation, became non-finite.
    """
    options.check()
    plugins = load_plugins(options.plugin)
    checkpoint = find_resumable(options) if options.resume is not None else None
    seed_everything(options.seed)
    precision = choose_precision(options.device, options.amp)
    hyp = load_hyperparameters(checkpoint["hyp"] if checkpoint else options.hyp)
    config = load_data_config(options.data)
    run = set_up(options, hyp, config, precision, checkpoint)
    describe(run, precision)
    print_plugins(run.training.model, plugins)
    try:
        fit(run)
    except KeyboardInterrupt:
        print(f"\n{what_is_kept(run)}", flush=True)
        raise
    except TrainingStoppedError as error:
        raise TrainingStoppedError(f"{error}; {what_is_kept(run)}") from error
    finish(run)
    return run.folder


def seed_everything(seed: int) -> None:
    """Seed every generator, so that one seed gives one result on one machine and thread count."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def set_up(
    options: TrainOptions,
    hyp: Hyperparameters,
    config: DataConfig,
    precision: Precision,
    checkpoint: dict[str, Any] | None,
) -> Run:
    """Build network, data, optimizer and folder."""
    names = ["object"] if options.single_cls else config.names
    model, transferred = starting_network(options, names, checkpoint)
    loss = run_loss(hyp, model, options, quiet=checkpoint is not None)
    frozen = freeze(model, options.freeze)
    if options.freeze:
        if transferred:
            check_frozen_were_loaded(model, [*transferred.names(NEW), *transferred.names(DIFFERENT)])
        print(describe_frozen(model, frozen))
    factors = learning_rate_factors(model, options.lr_factor, options.layer_decay)
    stride = max(model.stride)
    options.img = size_on_stride(options.img, stride)[0]
    precision.place(model)
    if options.batch == -1:
        options.batch = fitting_batch(model, precision, options.img, hyp)
    train_loader, val_loader = build_loaders(options, hyp, config, stride, masks=model.task == "segment")
    network = checkpoint["network"] if checkpoint else {}
    before = (
        {"names": network["names"], "plugins": network.get("plugins")} | checkpoint.get("sources", {})
        if checkpoint
        else {}
    )
    sources = describe_sources(options, {"train": train_loader.dataset, "val": val_loader.dataset}, before)
    if checkpoint:
        check_sources(before, sources | {"plugins": plugins_entry(model)}, options.resume, options.force)
    schedule = Schedule(hyp, options.schedule, options.epochs, len(train_loader), options.batch)
    training = Training(
        model=model,
        ema=ModelEMA(model, hyp.ema_decay, hyp.ema_warmup),
        optimizer=build_optimizer(model, options.optimizer, hyp, schedule.weight_decay, factors),
        scaler=torch.amp.GradScaler(precision.device.type, enabled=precision.needs_scaler),
        loss=loss,
        schedule=schedule,
        precision=precision,
        frozen=frozen,
        multi_scale=options.multi_scale,
        seed=options.seed,
    )
    if not checkpoint:
        folder = next_run_dir(options.project, options.name, options.exist_ok)
        remove_leftovers(folder)
        if transferred:
            transferred.write(folder)
        return Run(folder, options, hyp, training, train_loader, val_loader, Progress(), sources)
    folder = Path(options.resume).resolve().parent.parent
    remove_leftovers(folder)
    progress = restore(
        training, checkpoint, options.resume
    )  # last: nothing after it draws a random number before training does
    return Run(folder, options, hyp, training, train_loader, val_loader, progress, sources)


def run_loss(hyp: Hyperparameters, model: Model, options: TrainOptions, quiet: bool) -> DetectionLoss:
    """Build the run's loss, and write its parts, some of which the network yaml may name, into the hyperparameters.

    Args:
        quiet: do not print what the hyperparameters override.
    Raises:
        UserError: hyperparameters or network yaml name a part that does not exist, or a number out of range.
    """
    settings, overridden = settle_loss(hyp.loss, model.config.get("loss"), options.hyp, options.cfg or options.weights)
    hyp.loss = settings.as_dict()
    if overridden and not quiet:
        print("\n".join(overridden))
    return build_loss(model, hyp, settings)


def build_loaders(
    options: TrainOptions, hyp: Hyperparameters, config: DataConfig, stride: int, masks: bool = False
) -> tuple[Loader, Loader]:
    """Build the loaders of the training images, augmented, and of the validation images, letterboxed in rectangular batches.

    Args:
        masks: batches hold index maps of the objects' outlines, too.
    Raises:
        DataError: `masks` are asked for, and no object of a split has an outline.
    """
    loaders = []
    config.sources("val")  # a missing one is said before the training images are checked
    for split in ("train", "val"):
        annotations, report = load_annotations(config, split)
        print_report(report)
        if masks and (note := check_outlines(annotations, config, split)):
            print(note)
        training = split == "train"
        dataset = DetectionDataset(
            annotations,
            config.names,
            options.img,
            hyp,
            augment=training,
            rect=options.rect or not training,
            batch_size=options.batch if training else 2 * options.batch,
            stride=stride,
            seed=options.seed,
            masks=masks,
            cache=options.cache,
            min_items=options.min_items if training else 0,
            single_cls=options.single_cls,
        )
        print(f"{split}: {dataset.describe_cache()}")
        workers = worker_count(options.workers if training else min(options.workers, 1))
        batch_size = dataset.batch_size
        on_start = partial(install_plugins, loaded_plugins())
        loaders.append(build_loader(dataset, batch_size, workers, training, options.seed, on_start))
    return loaders[0], loaders[1]


def fitting_batch(model: Model, precision: Precision, size: int, hyp: Hyperparameters, share: float = 0.8) -> int:
    """Return the largest batch whose training step is expected to fit into `share` of the GPU's free memory.

    Measured with forward, loss and backward at two small batches, and extended in a straight line.

    Raises:
        SettingsError: the device is no GPU.
    """
    if precision.device.type != "cuda":
        raise SettingsError(
            "--batch -1: fills a GPU's memory, and this run is on the CPU: name a batch size such as --batch 16"
        )
    loss, used = build_loss(model, hyp), []
    model.train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for batch in (2, 4):
        torch.cuda.reset_peak_memory_stats()
        images = precision.images(torch.zeros(batch, model.channels, size, size, dtype=torch.uint8))
        targets = torch.tensor([[index % batch, 0, 0.5, 0.5, 0.4, 0.4] for index in range(20 * batch)])
        with precision.autocast():
            outputs = model(images)
        masks = torch.zeros(batch, size // 4, size // 4, dtype=torch.int16)
        loss(outputs, {"images": images, "targets": targets, "masks": masks})[0].backward()
        used.append(torch.cuda.max_memory_allocated())
        model.zero_grad(set_to_none=True)
    model.load_state_dict(state)
    each = max((used[1] - used[0]) / 2, 1)
    fixed = (
        used[0] - 2 * each + 3 * sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    )  # EMA, optimizer
    free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
    batch = min(max(1, int((share * free - fixed) / each)), MAX_FITTING_BATCH)
    print(
        f"--batch -1: {each / 2**20:.0f} MiB an image, {free / 2**30:.1f} GiB free: {batch} is used (at most {MAX_FITTING_BATCH})"
    )
    return batch


def describe(run: Run, precision: Precision) -> None:
    """Print what the run will do, and write its settings beside its weights."""
    options, schedule, model = run.options, run.training.schedule, run.training.model
    source = options.resume or options.cfg or options.weights
    print(f"network: {source}: {count_parameters(model):,} parameters, {model.nc} classes, stride {model.stride}")
    print(f"compute: {precision.describe()}")
    print(
        f"steps: {schedule.batches_per_epoch} batches of {options.batch} an epoch, {schedule.accumulate} batches a step "
        f"(nominal batch {run.hyp.nominal_batch}), warm-up {schedule.warmup_batches} batches, {options.optimizer}, {options.schedule} schedule"
    )
    numbers = {key: value for key, value in run.hyp.as_dict().items() if key != "loss"}
    print("hyperparameters: " + ", ".join(f"{key} {value:g}" for key, value in numbers.items()))
    print(f"loss: {run.training.loss.settings}")
    print(f"results: {run.folder}", flush=True)
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
        if epoch == 0 and not options.noplots:
            batches = plotted(run.train_loader, run.folder, run.train_loader.dataset.names, done.batch)
        trained = train_one_epoch(run.training, batches, epoch, done=done, after_step=step_saver(run))
        last_epoch = epoch + 1 == options.epochs
        found = None
        if not options.noval or last_epoch:
            found = evaluate(
                run.training.ema.model, run.val_loader, run.training.precision, loss=run.training.loss, progress=False
            )
            if not all(map(math.isfinite, found.losses.values())):
                raise TrainingStoppedError(
                    f"epoch {epoch + 1}: the validation loss is {sum(found.losses.values())}: lower lr0, or try --amp off"
                )
        waited = epoch - progress.best_epoch if found and not progress.improved_by(found) else 0
        stale = 0 < options.patience <= waited
        with uninterrupted():
            record(run, epoch, trained, found, last=last_epoch or stale)
        if stale:
            print(f"stopped early: nothing better than epoch {progress.best_epoch + 1} in {options.patience} epochs")
            break


def step_saver(run: Run) -> Callable[[EpochState], None] | None:
    """Return what saves last.pt within an epoch, every --save-steps batches or as soon after as no gradient is pending."""
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
    """Hand batches on, numbered from `first`, drawing the first ones of the epoch with their boxes."""
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
    """Hold Ctrl-C back until the body is done, so that an epoch is recorded whole."""
    caught: list[int] = []
    try:
        before = signal.signal(signal.SIGINT, lambda *_: caught.append(1))
    except ValueError:  # not in the main thread: signals go elsewhere
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if caught:
        raise KeyboardInterrupt


def what_is_kept(run: Run) -> str:
    """Say what is left of a run that ends early."""
    last = run.weights / "last.pt"
    epoch, partial = run.progress.epoch, run.progress.partial
    if run.options.nosave or not (epoch or partial):
        return f"no epoch was saved in {run.weights}"
    what = (
        f"epoch {epoch}" + (f" and {partial.batch} batches of the next" if partial else "")
        if epoch
        else f"epoch 1 up to batch {partial.batch}"
    )
    return f"{what} is saved: python train.py --resume {last}{plugin_flags(run.training.model)} goes on from there"


def finish(run: Run) -> None:
    """Validate the best weights once more, with plots, and say where everything is."""
    if not run.options.noplots:
        plot_results(run.folder / "results.csv", run.folder / "results.png")
    best, last = run.weights / "best.pt", run.weights / "last.pt"
    if not best.is_file():  # --nosave, and the last epoch was not the best
        best = last
    model = run.training.precision.place(load_model(best))
    found = evaluate(
        model,
        run.val_loader,
        run.training.precision,
        plots_dir=None if run.options.noplots else run.folder,
        progress=False,
    )
    metrics = found.metrics
    measured = f"P {metrics.precision:.4f} R {metrics.recall:.4f} mAP50 {metrics.map50:.4f} mAP50-95 {metrics.map:.4f}"
    if found.masks is not None:
        measured += f"; masks: P {found.masks.precision:.4f} R {found.masks.recall:.4f} mAP50 {found.masks.map50:.4f} mAP50-95 {found.masks.map:.4f}"
    print(f"best epoch {run.progress.best_epoch + 1}, {best.name}: {measured}")
    print(f"weights: {best} (best), {last} (last, resumable); plots and results.csv: {run.folder}")
