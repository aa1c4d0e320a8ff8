"""Which batches a network can be trained on: a normalisation layer needs more than one value per channel.

A map of one cell in a batch of one image is one value. Nothing is computed to find that out: the network runs on
shapes.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from data.dataset import DetectionDataset
from models.yolo import Model, RowError
from utils.errors import SettingsError
from utils.ranks import size
from utils.training.epoch import SCALES, scaled_side
from utils.training.options import TrainOptions

TORCH_TEXT = "Expected more than 1"
"""Start of torch's error, from every normalisation layer; the error has no class of its own."""
LARGER_SIZES = 4
"""Image sizes, each `multiple` larger, that are tried for a suggestion."""

Shape = tuple[int, int]


def fit_batches(options: TrainOptions, model: Model, frozen: Sequence[nn.Module], dataset: DetectionDataset) -> int:
    """Change the training batches as far as the network needs it, print what changed, and return the smallest side.

    A last batch of one image, or of fewer than two for each rank, joins the batch before it. The sizes of --multi-scale
    stay large enough.

    Args:
        frozen: layers that stay in evaluation mode.
    Returns:
        Smallest height and width for --multi-scale.
    Raises:
        SettingsError: no batch of this size can be trained on; the message names the layer.
    """
    count, batch, ranks = len(dataset), options.batch, size()
    images = 1 if min(batch, count, count % batch or batch) // ranks < 2 else 2
    failure = first_failure(model, frozen, images, smallest_shapes(options, model, dataset))
    if failure is not None and images == 1 and 2 * ranks <= batch < count:
        images = 2
        dataset.use_least_batch(images * ranks)
        print(
            f"train: {count} images in batches of {batch} leave {count % batch} over, which joins the batch before, "
            f"since {needs(failure)}"
        )
        failure = first_failure(model, frozen, images, smallest_shapes(options, model, dataset))
    if failure is None:
        return model.multiple
    base = shapes_of(options, dataset)
    if refused := first_failure(model, frozen, images, base):
        raise SettingsError(
            f"--batch {batch} --img {options.img}: {needs(refused)}, and a batch of {images} gives one: "
            f"expected {remedy(options, model, frozen, count)}"
        )
    sides = range(model.multiple, max(map(max, base)) + 1, model.multiple)
    least = next(side for side in sides if first_failure(model, frozen, images, [(side, side)]) is None)
    print(f"--multi-scale: no image is smaller than {least} x {least}, since {needs(failure)}")
    return least


def shapes_of(options: TrainOptions, dataset: DetectionDataset) -> list[Shape]:
    """Return the heights and widths of the batches; of rectangular ones only those that no other is smaller than."""
    if dataset.shapes_hw is None:
        return [(options.img, options.img)]
    shapes = {(int(height), int(width)) for height, width in dataset.shapes_hw}
    return sorted(
        one for one in shapes if not any(other != one and other[0] <= one[0] and other[1] <= one[1] for other in shapes)
    )


def smallest_shapes(options: TrainOptions, model: Model, dataset: DetectionDataset) -> list[Shape]:
    """Return the smallest heights and widths of the batches, --multi-scale included."""
    shapes = shapes_of(options, dataset)
    if not options.multi_scale:
        return shapes
    low = SCALES[0]
    return [(scaled_side(h, low, model.multiple), scaled_side(w, low, model.multiple)) for h, w in shapes]


def first_failure(model: Model, frozen: Iterable[nn.Module], images: int, shapes: Iterable[Shape]) -> RowError | None:
    """Return the error of the first layer that gets one value per channel in training; None if no layer does."""
    model.train()
    for module in frozen:
        module.eval()
    for shape in shapes:
        try:
            with torch.random.fork_rng(devices=[]):
                model.trace(shape, images, training=True)
        except RowError as error:
            if str(error.__cause__).startswith(TORCH_TEXT):
                return error
    return None


def needs(failure: RowError) -> str:
    """Return which layer needs more than one value per channel."""
    return f"{failure.row.where}: {failure.row.name} normalises over more than one value per channel in training"


def remedy(options: TrainOptions, model: Model, frozen: Sequence[nn.Module], count: int) -> str:
    """Return the settings that the network can be trained with."""
    images = min(options.batch, count, 2)
    sizes = (options.img + step * model.multiple for step in range(1, LARGER_SIZES + 1))
    larger = next((size for size in sizes if first_failure(model, frozen, images, [(size, size)]) is None), None)
    remedies = [f"--img {larger}"] if larger else []
    if count == 1:
        remedies.insert(0, "more than one training image")
    elif images == 1:
        remedies.insert(0, f"--batch {2 * size()} or more")
    return ", or ".join(remedies) or "a network without this layer"
