"""Prepare a training run: network, loss, data, optimizer, folder."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from data.config import DataConfig
from data.dataset import DetectionDataset
from data.images.pixels import PixelRange, check_types
from data.labels.annotation import Annotation
from data.labels.yolo_txt import label_path
from data.loader import Loader, Share, build_loader
from data.scan import check_outlines, load_annotations, print_report, print_shared, settle_pixel_range
from models.plugins.held import loaded_plugins
from models.plugins.loading import install_plugins
from models.plugins.record import plugins_entry
from models.yolo import Model
from utils.checkpoint.transfer import DIFFERENT, NEW, PARTLY, TransferReport
from utils.errors import DataError, SettingsError
from utils.files import next_run_dir
from utils.geometry.anchors import PROTOTYPE_STRIDE
from utils.hyperparameters import Hyperparameters
from utils.image_size import size_on_multiple
from utils.losses.detection import DetectionLoss, build_loss
from utils.losses.settings import settle_loss
from utils.optim.ema import ModelEMA
from utils.optim.optimizer import Schedule, build_optimizer
from utils.optim.selection import check_frozen_were_loaded, describe_frozen, freeze, learning_rate_factors
from utils.precision import Precision, worker_count
from utils.ranks import check_same, exchange, first_goes_first, from_first, gathered, is_first, launch, size
from utils.training.batch_limits import fit_batches
from utils.training.epoch import Training
from utils.training.options import TrainOptions
from utils.training.resume import remove_leftovers
from utils.training.sources import check_sources, describe_sources
from utils.training.starting_network import starting_network
from utils.training.state import Progress, Run, restore
from utils.wording import listed

MAX_FITTING_BATCH = 256


def set_up(
    options: TrainOptions,
    hyp: Hyperparameters,
    config: DataConfig,
    precision: Precision,
    checkpoint: dict[str, Any] | None,
) -> Run:
    """Build a run with its folder.

    Args:
        checkpoint: content of last.pt, for a resumed run.
    """
    names = ["object"] if options.single_cls else config.names
    model, transferred = starting_network(options, names, checkpoint)
    loss, hyp = run_loss(hyp, model, options, quiet=checkpoint is not None)
    model = with_shared_statistics(model, options, precision)
    frozen = frozen_layers(model, options.freeze, transferred)
    factors = learning_rate_factors(model, options.lr_factor, options.layer_decay)
    precision.place(model)
    options = with_sizes(options, model, precision, hyp)
    loaders = build_loaders(options, hyp, config, model.multiple, masks=model.task == "segment")
    model.pixel_range = (loaders[1] or loaders[0]).dataset.pixel_range
    model.category_ids = loaders[0].dataset.category_ids
    least_side = fit_batches(options, model, frozen, loaders[0].dataset)
    sources = checked_sources(options, model, loaders, checkpoint)
    check_ranks(options, sources, loaders[0], model)
    schedule = Schedule(hyp, options.schedule, options.epochs, len(loaders[0]), options.batch)
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
        least_side=least_side,
        seed=options.seed,
        parallel=among_ranks(model, precision),
    )
    folder = from_first(run_folder(options) if is_first() else None)
    assert folder is not None
    if transferred and is_first():
        transferred.write(folder)
    progress, kept = Progress(), None
    if checkpoint:  # last: no random number may be drawn between this and the training
        progress = restore(training, checkpoint, str(options.resume))
        kept = progress.epoch, progress.partial.batch if progress.partial else 0
    return Run(folder, options, hyp, training, *loaders, progress, sources, kept)


def with_shared_statistics(model: Model, options: TrainOptions, precision: Precision) -> Model:
    """Return the network with BatchNorm over all ranks for --sync-bn, where torch has it; else say why not."""
    if not options.sync_bn:
        return model
    if size() == 1:
        print("--sync-bn: does not apply to one process: its statistics are those of the whole batch")
        return model
    if precision.device.type != "cuda":
        print(
            "--sync-bn: does not apply on CPUs, where torch has no such layer: every rank normalises by the statistics "
            "of its own images, and the running statistics are those of rank 0"
        )
        return model
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def among_ranks(model: Model, precision: Precision) -> DistributedDataParallel | None:
    """Return the network among several ranks; None for a process alone.

    A layer that a step does not use leaves its gradients empty instead of keeping the others waiting.
    """
    if size() == 1:
        return None
    devices = [precision.device] if precision.device.type == "cuda" else None
    with exchange():
        return DistributedDataParallel(
            model, device_ids=devices, find_unused_parameters=True, gradient_as_bucket_view=True
        )


def check_ranks(options: TrainOptions, sources: dict[str, Any], train_loader: Loader, model: Model) -> None:
    """Refuse what several ranks cannot share.

    Raises:
        SettingsError: the batch cannot be divided by the ranks, there are more ranks than images, or the ranks have
            different data, settings or plug-ins.
    """
    ranks = size()
    if ranks == 1:
        return
    if options.batch % ranks:
        nearest = max(options.batch // ranks, 1) * ranks
        raise SettingsError(
            f"--batch {options.batch}: cannot be divided by {ranks} processes: expected a multiple, such as {nearest}; "
            "it is the batch of all of them together"
        )
    if len(train_loader.dataset) < ranks:
        raise SettingsError(
            f"{options.data}: {len(train_loader.dataset)} training images for {ranks} processes: expected one for each "
            "at least; start fewer"
        )
    plugins = {entry["path"]: entry["sha256"][:12] for entry in plugins_entry(model)}
    check_same("plug-ins", sorted(plugins.values()), f"rank {launch().rank} uses {listed(plugins) or 'none'}")
    for split in ("train", "val"):
        check_same(f"{split} images of {options.data}", sources[split], "every machine needs the same files")


def frozen_layers(model: Model, phrases: Sequence[str], transferred: TransferReport | None) -> list[nn.Module]:
    """Freeze what the phrases of --freeze name, and return the normalisation layers that stay in evaluation mode.

    Raises:
        SettingsError: a phrase names nothing, or --weights did not fill a frozen layer.
    """
    frozen = freeze(model, phrases)
    if phrases:
        if transferred:
            check_frozen_were_loaded(
                model, [name for status in (NEW, DIFFERENT, PARTLY) for name in transferred.names(status)]
            )
        print(describe_frozen(model, frozen))
    return frozen


def with_sizes(options: TrainOptions, model: Model, precision: Precision, hyp: Hyperparameters) -> TrainOptions:
    """Return the options with an image size on the stride, and with a batch size that fits the GPU for --batch -1."""
    side = size_on_multiple(options.img, model.multiple)[0]
    batch = options.batch
    if batch == -1:  # that of the smallest GPU, for each
        batch = min(gathered(fitting_batch(model, precision, side, hyp))) * size()
    return replace(options, img=side, batch=batch)


def checked_sources(
    options: TrainOptions, model: Model, loaders: tuple[Loader, Loader | None], checkpoint: dict[str, Any] | None
) -> dict[str, Any]:
    """Return digests of the run's data and settings; for a resumed run, compare them with those of its checkpoint.

    Raises:
        CheckpointError: the data or the settings changed, and --force is not given.
    """
    datasets = {"train": loaders[0].dataset, "val": loaders[1].dataset if loaders[1] is not None else None}
    if not checkpoint:
        return describe_sources(options, datasets, {})
    network = checkpoint["network"]
    before = {"names": network["names"], "plugins": network.get("plugins")} | checkpoint.get("sources", {})
    sources = describe_sources(options, datasets, before)
    check_sources(before, sources | {"plugins": plugins_entry(model)}, str(options.resume), options.force)
    return sources


def run_folder(options: TrainOptions) -> Path:
    """Return the run's folder: a new one, or that of the resumed run, without temporary files of a killed process."""
    if options.resume is None:
        folder = next_run_dir(options.project, options.name, options.exist_ok)
    else:
        folder = Path(options.resume).resolve().parent.parent
    remove_leftovers(folder)
    return folder


def run_loss(
    hyp: Hyperparameters, model: Model, options: TrainOptions, quiet: bool
) -> tuple[DetectionLoss, Hyperparameters]:
    """Build the run's loss from the settings of the hyperparameters, and where they give none, of the network yaml.

    Args:
        quiet: do not print which settings of the network yaml the hyperparameters override.
    Returns:
        The loss, and the hyperparameters with all its settings.
    Raises:
        UserError: the hyperparameters or the network yaml name a part that does not exist, or a value out of range.
    """
    settings, overridden = settle_loss(hyp.loss, model.config.get("loss"), options.hyp, options.cfg or options.weights)
    settled = replace(hyp, loss=settings.as_dict())
    if overridden and not quiet:
        print("\n".join(overridden))
    return build_loss(model, settled, settings), settled


def build_loaders(
    options: TrainOptions, hyp: Hyperparameters, config: DataConfig, multiple: int, masks: bool = False
) -> tuple[Loader, Loader | None]:
    """Build the loaders of the training images (augmented) and of the validation images (letterboxed, rectangular).

    Args:
        masks: add index maps of the objects' outlines to the batches.
    Returns:
        The second is None where --noval is given and the data has no val split.
    Raises:
        DataError: `masks` is true, and no object of a split has an outline.
    """
    loaders: list[Loader] = []
    pixel_range: PixelRange | None = None
    for split in splits_of(config, options.noval):
        with first_goes_first():  # the others read the label cache that it writes
            annotations, report = load_annotations(config, split)
        print_report(report)
        if config.pixel_range is None:
            check_types(report.deep, f"{config.path}: {split}")
        pixel_range = settle_pixel_range(config, report, pixel_range, "as in training")
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
            multiple=multiple,
            seed=options.seed,
            masks=masks,
            cache=options.cache,
            min_items=options.min_items if training else 0,
            single_cls=options.single_cls,
            pixel_range=pixel_range,
            category_ids=report.categories if report.file_categories else None,
        )
        print(f"{split}: {dataset.describe_cache()}")
        if not training and not any(np.count_nonzero(~one.crowd) for one in annotations):
            print(unlabelled_note(config, annotations))
        if not training:
            print_shared(loaders[0].dataset.annotations, dataset.annotations)
        workers = worker_count(options.workers if training else min(options.workers, 1))
        batch_size = dataset.batch_size
        on_start = partial(install_plugins, loaded_plugins())
        share = Share(launch().rank, size(), whole=not training)
        loaders.append(build_loader(dataset, batch_size, workers, training, options.seed, on_start, share))
    return loaders[0], loaders[1] if len(loaders) > 1 else None


def splits_of(config: DataConfig, noval: bool) -> tuple[str, ...]:
    """Return the splits that a run reads; without a val split only "train", if `noval` is given.

    Raises:
        DataError: the data has no val split, and `noval` is not given; or its files are missing.
    """
    if "val" in config.splits:
        config.sources("val")  # report missing files before the training images are checked
        return "train", "val"
    if not noval:
        raise DataError(
            f"{config.path}: no 'val' split: it was expected beside 'train', for validation; --noval trains without it"
        )
    print("val: no such split: nothing is validated, and best.pt is the last epoch (--noval)")
    return ("train",)


def unlabelled_note(config: DataConfig, annotations: Sequence[Annotation]) -> str:
    """Return a line about a val split without an object: what that means for the run."""
    crowds = sum(int(np.count_nonzero(one.crowd)) for one in annotations)
    place = label_path(annotations[0].path)
    reason = ""
    if crowds:
        reason = f" ({crowds} crowd regions do not count)"
    elif config.kind == "yolo" and not place.exists():
        reason = f" (there is no {place}, for example)"
    return (
        f"val: none of the {len(annotations)} images has an object{reason}: precision, recall and mAP cannot be "
        "measured; best.pt is the last epoch, and --patience does not end the run"
    )


def fitting_batch(model: Model, precision: Precision, side: int, hyp: Hyperparameters, share: float = 0.8) -> int:
    """Return the largest batch whose training step should fit into `share` of the GPU's free memory.

    Measure forward, loss and backward at two small batches, and extrapolate linearly.

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
        images = precision.images(torch.zeros(batch, model.channels, side, side, dtype=torch.uint8))
        targets = torch.tensor([[index % batch, 0, 0.5, 0.5, 0.4, 0.4] for index in range(20 * batch)])
        with precision.autocast():
            outputs = model(images)
        masks = torch.zeros(batch, *2 * [side // PROTOTYPE_STRIDE], dtype=torch.int16)
        loss(outputs, {"images": images, "targets": targets, "masks": masks})[0].backward()
        used.append(torch.cuda.max_memory_allocated())
        model.zero_grad(set_to_none=True)
    model.load_state_dict(state)
    each = max((used[1] - used[0]) / 2, 1)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    fixed = used[0] - 2 * each + 3 * weights  # the moving average and two states of the optimizer
    free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
    batch = min(max(1, int((share * free - fixed) / each)), MAX_FITTING_BATCH)
    print(
        f"--batch -1: {each / 2**20:.0f} MiB per image, {free / 2**30:.1f} GiB free: trains with --batch {batch} "
        f"(at most {MAX_FITTING_BATCH})"
    )
    return batch
