"""A training run from its options to its plots: set-up, epochs, validation, checkpoints, results."""

import fnmatch
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from data.config import DataConfig, load_data_config
from data.dataset import DetectionDataset
from data.labels import load_annotations, print_report
from data.loader import Loader, build_loader
from models.summary import count_parameters
from models.yolo import Model
from utils.checkpoint import load_model, network_entry, plain, read_checkpoint, save_checkpoint, transfer
from utils.config import Hyperparameters, load_hyperparameters
from utils.ema import ModelEMA
from utils.engine import EpochResult, Training, train_one_epoch
from utils.errors import CheckpointError, SettingsError
from utils.evaluate import EvalResult, evaluate
from utils.files import next_run_dir, write_csv, write_yaml
from utils.losses import build_loss
from utils.optim import OPTIMIZERS, SCHEDULES, Schedule, build_optimizer
from utils.plots import plot_batch, plot_labels, plot_results
from utils.precision import AMP_CHOICES, Precision, choose_precision, worker_count

NUM_PLOTTED_BATCHES = 3
LOSS_ITEMS = ("box", "cls", "dfl")


@dataclass
class TrainOptions:
    """What a training run is asked for; names are those of train.py's flags."""

    cfg: str = ""
    data: str = "data/shapes.yaml"
    weights: str = ""
    hyp: str = "data/hyp.yaml"
    epochs: int = 100
    batch: int = 16
    img: int = 640
    scale: str | None = None
    rect: bool = False
    resume: str | None = None
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
    save_period: int = 0
    min_items: int = 0
    close_mosaic: int = 0
    seed: int = 0

    def check(self) -> None:
        """Refuse values out of range.

        Raises:
            SettingsError: names the flag and what was expected.
        """
        for flag, value, lowest in (("--epochs", self.epochs, 1), ("--img", self.img, 32), ("--workers", self.workers, 0), ("--patience", self.patience, 0)):
            if value < lowest:
                raise SettingsError(f"{flag} {value}: expected at least {lowest}")
        if self.batch < 1 and self.batch != -1:
            raise SettingsError(f"--batch {self.batch}: expected a positive number, or -1 to fill the GPU's memory")
        for flag, value, known in (("--amp", self.amp, AMP_CHOICES), ("--optimizer", self.optimizer, OPTIMIZERS), ("--cache", self.cache, ("auto", "ram", "off"))):
            if value not in known:
                raise SettingsError(f"{flag} {value}: expected one of {', '.join(known)}")
        if self.schedule not in SCHEDULES:
            raise SettingsError(f"schedule {self.schedule}: expected one of {', '.join(SCHEDULES)}")


@dataclass
class Progress:
    """How far a run has come: what a resumed run starts from."""

    epoch: int = 0
    best_fitness: float = -1.0
    best_epoch: int = -1
    rows: list[list[Any]] = field(default_factory=list)


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


def train(options: TrainOptions) -> Path:
    """Train a network as asked, and return the run's folder.

    Raises:
        UserError: what was asked for cannot be done.
        TrainingStoppedError: the loss became non-finite.
    """
    options.check()
    checkpoint = find_resumable(options) if options.resume is not None else None
    seed_everything(options.seed)
    precision = choose_precision(options.device, options.amp)
    hyp = load_hyperparameters(checkpoint["hyp"] if checkpoint else options.hyp)
    config = load_data_config(options.data)
    run = set_up(options, hyp, config, precision, checkpoint)
    describe(run, precision)
    try:
        fit(run)
    except KeyboardInterrupt:
        print(f"\ninterrupted after epoch {run.progress.epoch}: python train.py --resume {run.weights / 'last.pt'} goes on")
        raise
    finish(run, config)
    return run.folder


def seed_everything(seed: int) -> None:
    """Seed every generator, so that one seed gives one result on one machine and thread count."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 third-party code may draw from it
    torch.manual_seed(seed)


def find_resumable(options: TrainOptions) -> dict[str, Any]:
    """Read the checkpoint to go on from, and take over its run's options, except those that were given again.

    Raises:
        CheckpointError: there is none, or it is finished.
    """
    if options.resume:
        path = Path(options.resume)
        path = path / "weights" / "last.pt" if path.is_dir() else path
    else:
        found = sorted(Path("runs").glob("**/weights/last.pt"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise CheckpointError("--resume: no runs/**/weights/last.pt here: name the checkpoint, --resume PATH")
        path = found[-1]
    checkpoint = read_checkpoint(path)
    if "optimizer" not in checkpoint:
        raise CheckpointError(f"{path}: holds no optimizer state: expected a last.pt; to start from its weights use --weights")
    wanted = options.epochs if options.epochs != TrainOptions.epochs else checkpoint["options"]["epochs"]
    if checkpoint["epoch"] >= wanted:
        raise CheckpointError(f"{path}: has finished its {checkpoint['epoch']} epochs: nothing to resume; --epochs N goes on to N")
    known = {item.name for item in fields(TrainOptions)}
    for key, value in checkpoint["options"].items():
        if key in known and key not in ("resume", "device", "workers", "epochs"):
            setattr(options, key, value)
    options.epochs, options.resume = wanted, str(path)
    return checkpoint


def set_up(options: TrainOptions, hyp: Hyperparameters, config: DataConfig, precision: Precision, checkpoint: dict[str, Any] | None) -> Run:
    """Build network, data, optimizer and folder."""
    if not options.cfg and not checkpoint and not options.weights:
        raise SettingsError("--cfg: none given: expected a network yaml such as gelan-t.yaml, or --weights to fine-tune from")
    names = ["object"] if options.single_cls else config.names
    model = build_network(options, names, checkpoint)
    stride = max(model.stride)
    size = -(-options.img // stride) * stride
    if size != options.img:
        print(f"--img {options.img}: no multiple of the stride {stride}: {size} is used")
        options.img = size
    precision.place(model)
    if options.batch == -1:
        options.batch = fitting_batch(model, precision, options.img, hyp)
    train_loader, val_loader = build_loaders(options, hyp, config, stride)
    schedule = Schedule(hyp, options.schedule, options.epochs, len(train_loader), options.batch)
    frozen = freeze(model, options.freeze)
    training = Training(
        model=model,
        ema=ModelEMA(model, hyp.ema_decay, hyp.ema_ramp),
        optimizer=build_optimizer(model, options.optimizer, hyp, schedule.weight_decay),
        scaler=torch.amp.GradScaler(precision.device.type, enabled=precision.needs_scaler),
        loss=build_loss(model, hyp),
        schedule=schedule,
        precision=precision,
        frozen=frozen,
        multi_scale=options.multi_scale,
        seed=options.seed,
    )
    progress = restore(training, checkpoint) if checkpoint else Progress()
    folder = Path(options.resume).resolve().parent.parent if checkpoint else next_run_dir(options.project, options.name, options.exist_ok)
    return Run(folder, options, hyp, training, train_loader, val_loader, progress)


def build_network(options: TrainOptions, names: list[str], checkpoint: dict[str, Any] | None) -> Model:
    """Build the network of a yaml, or of the weights where no yaml is given, with the weights asked for."""
    if checkpoint:
        model = Model(checkpoint["network"]["config"], nc=len(names), ch=checkpoint["network"]["ch"])
    elif options.cfg:
        model = Model(options.cfg, nc=len(names), scale=options.scale)
    else:
        network = read_checkpoint(options.weights)["network"]
        model = Model(network["config"], nc=len(names), ch=network["ch"])
    if options.weights and not checkpoint:
        print(f"{options.weights}: {transfer(model, options.weights).describe()}")
    model.names = list(names)
    return model


def build_loaders(options: TrainOptions, hyp: Hyperparameters, config: DataConfig, stride: int) -> tuple[Loader, Loader]:
    """Build the loaders of the training pictures, augmented, and of the validation pictures, letterboxed in rectangular batches."""
    loaders = []
    for split in ("train", "val"):
        annotations, report = load_annotations(config, split)
        print_report(report)
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
            cache=options.cache,
            min_items=options.min_items if training else 0,
            single_cls=options.single_cls,
        )
        print(f"{split}: {dataset.describe_cache()}")
        workers = worker_count(options.workers if training else min(options.workers, 1))
        batch_size = dataset.batch_size
        loaders.append(build_loader(dataset, batch_size, workers, shuffle=training and not options.rect, seed=options.seed))
    return loaders[0], loaders[1]


def freeze(model: Model, what: list[str]) -> list[nn.Module]:
    """Stop the training of layers; return them, to be kept in evaluation mode.

    Args:
        what: one number for the first n layers; several for those layers; 'backbone'; or globs of parameter names.
    Raises:
        SettingsError: nothing matches.
    """
    if len(what) == 1 and what[0].isdigit():
        what = [str(index) for index in range(int(what[0]))]
    patterns = []
    for item in what:
        if item == "backbone":
            patterns += [f"model.{index}.*" for index in range(len(model.config["backbone"]))]
        else:
            patterns.append(f"model.{item}.*" if item.isdigit() else item)
    for item in patterns:
        names = [name for name, _ in model.named_parameters() if fnmatch.fnmatch(name, item)]
        if not names and not (item.split(".")[1].isdigit() and int(item.split(".")[1]) < len(model.model) if item.count(".") >= 2 else False):
            raise SettingsError(f"--freeze {item}: matches no parameter: expected a layer index, 'backbone' or a glob such as 'model.4.*'")
        for name in names:
            model.get_parameter(name).requires_grad_(False)
    return [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.weight is not None and not module.weight.requires_grad
    ]


def fitting_batch(model: Model, precision: Precision, size: int, hyp: Hyperparameters, share: float = 0.8) -> int:
    """Return the largest batch whose training step is expected to fit into `share` of the GPU's free memory.

    Measured with forward, loss and backward at two small batches, and extended in a straight line.

    Raises:
        SettingsError: the device is no GPU.
    """
    if precision.device.type != "cuda":
        raise SettingsError("--batch -1: fills a GPU's memory, and this run is on the CPU: name a batch size such as --batch 16")
    loss, used = build_loss(model, hyp), []
    model.train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for batch in (2, 4):
        torch.cuda.reset_peak_memory_stats()
        images = precision.images(torch.zeros(batch, model.channels, size, size, dtype=torch.uint8))
        targets = torch.tensor([[index % batch, 0, 0.5, 0.5, 0.4, 0.4] for index in range(20 * batch)])
        with precision.autocast():
            outputs = model(images)
        loss(outputs, {"images": images, "targets": targets})[0].backward()
        used.append(torch.cuda.max_memory_allocated())
        model.zero_grad(set_to_none=True)
    model.load_state_dict(state)
    each = max((used[1] - used[0]) / 2, 1)
    free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
    batch = max(1, int((share * free - (used[0] - 2 * each)) / each))
    print(f"--batch -1: {each / 2**20:.0f} MiB a picture, {free / 2**30:.1f} GiB free: {batch} is used")
    return batch


def restore(training: Training, checkpoint: dict[str, Any]) -> Progress:
    """Put a run's state back as its checkpoint has it, and return how far it had come."""
    training.model.load_state_dict(checkpoint["model"])
    training.ema.model.load_state_dict(checkpoint["ema"])
    training.ema.updates = checkpoint["updates"]
    training.optimizer.load_state_dict(checkpoint["optimizer"])
    training.scaler.load_state_dict(checkpoint["scaler"])
    torch.set_rng_state(checkpoint["rng"])
    return Progress(checkpoint["epoch"], checkpoint["best_fitness"], checkpoint["best_epoch"], checkpoint["rows"])


def describe(run: Run, precision: Precision) -> None:
    """Print what the run will do, and write its settings beside its weights."""
    options, schedule, model = run.options, run.training.schedule, run.training.model
    print(f"network: {options.cfg or options.weights or options.resume}: {count_parameters(model):,} parameters, {model.nc} classes, stride {model.stride}")
    print(f"compute: {precision.describe()}")
    print(
        f"steps: {schedule.batches_per_epoch} batches of {options.batch} an epoch, {schedule.accumulate} batches a step "
        f"(nominal batch {run.hyp.nominal_batch}), warm-up {schedule.warmup_batches} batches, {options.optimizer}, {options.schedule} schedule"
    )
    print("hyperparameters: " + ", ".join(f"{key} {value:g}" for key, value in run.hyp.as_dict().items()))
    print(f"results: {run.folder}", flush=True)
    write_yaml(run.folder / "args.yaml", plain(asdict(options)))
    write_yaml(run.folder / "hyp.yaml", run.hyp.as_dict())
    write_yaml(run.folder / "model.yaml", plain(model.config))
    if not options.noplots:
        dataset = run.train_loader.dataset
        plot_labels(dataset.annotations, dataset.names, run.folder / "labels.png")


def fit(run: Run) -> None:
    """Train epoch after epoch until the last one, or until nothing has improved for `patience` epochs."""
    options, progress = run.options, run.progress
    print(f"{'epoch':>9} {'box':>8} {'cls':>8} {'dfl':>8} {'P':>8} {'R':>8} {'mAP50':>8} {'mAP50-95':>9} {'val box':>8} {'val cls':>8} {'val dfl':>8} {'train s':>8} {'wait s':>7}")
    while progress.epoch < options.epochs:
        epoch = progress.epoch
        mosaic = epoch < options.epochs - options.close_mosaic
        run.train_loader.set_epoch(epoch, mosaic=mosaic)
        batches: Any = run.train_loader
        if epoch == 0 and not options.noplots:
            batches = plotted(run.train_loader, run.folder, run.train_loader.dataset.names)
        trained = train_one_epoch(run.training, batches, epoch)
        last_epoch = epoch + 1 == options.epochs
        found = None
        if not options.noval or last_epoch:
            found = evaluate(run.training.ema.model, run.val_loader, run.training.precision, loss=run.training.loss, progress=False)
        with uninterrupted():
            record(run, epoch, trained, found)
        if options.patience and found and epoch - progress.best_epoch >= options.patience:
            print(f"stopped early: nothing better than epoch {progress.best_epoch + 1} in {options.patience} epochs")
            break


def plotted(batches: Loader, folder: Path, names: list[str]) -> Iterator[dict[str, Any]]:
    """Hand batches on, drawing the first ones with their boxes."""
    for number, batch in enumerate(batches):
        if number < NUM_PLOTTED_BATCHES:
            plot_batch(batch["images"], batch["targets"].numpy(), names, folder / f"train_batch{number}.png")
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


def record(run: Run, epoch: int, trained: EpochResult, found: EvalResult | None) -> None:
    """Print and write what an epoch gave, and save the checkpoints."""
    progress, options = run.progress, run.options
    metrics = [found.metrics.precision, found.metrics.recall, found.metrics.map50, found.metrics.map] if found else [float("nan")] * 4
    losses = [found.losses[item] for item in LOSS_ITEMS] if found else [float("nan")] * 3
    rates = [group["lr"] for group in run.training.optimizer.param_groups]
    trained_items = [trained.items[item] for item in LOSS_ITEMS]
    progress.rows.append([epoch, *(round(float(x), 6) for x in (*trained_items, *metrics, *losses, *rates, trained.seconds, trained.waited))])
    progress.epoch = epoch + 1
    best = found is not None and found.fitness > progress.best_fitness
    if best:
        progress.best_fitness, progress.best_epoch = found.fitness, epoch
    numbers = "".join(f"{x:>9.4f}" for x in (*trained_items, *metrics[:3]))
    print(f"{epoch + 1:>5}/{options.epochs:<3}{numbers}{metrics[3]:>10.4f}{''.join(f'{x:>9.4f}' for x in losses)}{trained.seconds:>9.1f}{trained.waited:>8.2f}", flush=True)
    if trained.skipped_steps:
        print(f"          {trained.skipped_steps} optimizer steps left out: their gradient was not finite")
    write_csv(run.folder / "results.csv", results_header(len(rates)), progress.rows)
    if not options.nosave or progress.epoch == options.epochs:
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
            "options": plain(asdict(run.options)),
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
            "options": plain(asdict(run.options)),
        },
    )


def finish(run: Run, config: DataConfig) -> None:
    """Validate the best weights once more, with plots and the table by class, and say where everything is."""
    if not run.options.noplots:
        plot_results(run.folder / "results.csv", run.folder / "results.png")
    best = run.weights / "best.pt"
    if not best.is_file():
        return
    model = run.training.precision.place(load_model(best))
    found = evaluate(model, run.val_loader, run.training.precision, plots_dir=None if run.options.noplots else run.folder, progress=False)
    metrics = found.metrics
    print(f"best epoch {run.progress.best_epoch + 1}: P {metrics.precision:.4f} R {metrics.recall:.4f} mAP50 {metrics.map50:.4f} mAP50-95 {metrics.map:.4f}")
    print(f"weights: {best} (best), {run.weights / 'last.pt'} (last, resumable); plots and results.csv: {run.folder}")
