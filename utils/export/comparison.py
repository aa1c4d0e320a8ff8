"""Whether a file computes what the network computes that it was made from."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from utils.errors import ExportError

MOST_PIXELS, MOST_SCORE, MOST_RELATIVE = 0.5, 1e-3, 1e-3
"""Largest differences between the outputs of an exported file and of its network."""

TINY = 1e-12
"""What magnitudes are at least taken for, so that outputs of zero divide."""


@dataclass
class Difference:
    """Largest differences: boxes in pixels, class probabilities, masks and all outputs over their largest value."""

    pixels: float = 0.0
    scores: float = 0.0
    masks: float = 0.0
    relative: float = 0.0

    def describe(self) -> str:
        """One clause for the user."""
        masks = f", {self.masks:.1e} of the mask outputs" if self.masks else ""
        return f"largest difference {self.pixels:.1e} px, {self.scores:.1e} in scores{masks}"

    def exported_agrees(self) -> bool:
        """Tell whether an exported file may be kept; not with a difference that is no number."""
        return self.pixels <= MOST_PIXELS and self.scores <= MOST_SCORE and self.masks <= MOST_RELATIVE


def largest(values: Tensor) -> float:
    """Return the largest magnitude; infinite if one is no number, and 0 of nothing."""
    return float(values.abs().nan_to_num(nan=torch.inf).max()) if values.numel() else 0.0


def trial_images(shapes: list[tuple[int, int, int, int]], device: torch.device) -> list[Tensor]:
    """Return images in [0, 1] of these (B, ch, H, W) shapes, always the same: smooth areas with noise, and noise."""
    generator, images = torch.Generator().manual_seed(0), []
    for number, (batch, channels, height, width) in enumerate(shapes):
        noise = torch.rand(batch, channels, height, width, generator=generator)
        areas = torch.rand(batch, channels, 4, 4, generator=generator)
        smooth = nn.functional.interpolate(areas, (height, width), mode="bilinear", align_corners=False)
        images.append((noise if number % 2 else 0.9 * smooth + 0.1 * noise).to(device))
    return images


@torch.inference_mode()
def compare(expected: nn.Module, found: nn.Module, batches: list[Tensor], nc: int) -> Difference:
    """Return the largest differences of two networks' outputs.

    Raises:
        ExportError: the outputs of the expected network are no numbers, or those of the other one have another form.
    """
    difference = Difference()
    for images in batches:
        pair = [outputs if isinstance(outputs, tuple) else (outputs,) for outputs in (expected(images), found(images))]
        shapes = [[tuple(output.shape) for output in outputs] for outputs in pair]
        if not all(output.isfinite().all() for output in pair[0]):
            raise ExportError("the network's own outputs are not all numbers: its weights are broken")
        if shapes[0] != shapes[1]:
            raise ExportError(f"images {tuple(images.shape)} give {shapes[1]}, {shapes[0]} was expected")
        for number, (right, other) in enumerate(zip(*pair, strict=True)):
            gap, masks = other - right, 4 + nc if number == 0 else 0
            difference.relative = max(difference.relative, largest(gap) / max(largest(right), TINY))
            difference.masks = max(difference.masks, largest(gap[:, masks:]) / max(largest(right[:, masks:]), TINY))
            if number == 0:
                difference.pixels = max(difference.pixels, largest(gap[:, :4]))
                difference.scores = max(difference.scores, largest(gap[:, 4:masks]))
    return difference
