"""Where an image lies in the network's input, and the mapping from that input back to the image."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Placement:
    """Where letterboxing put an image.

    Attributes:
        original_hw: height and width of the original image.
        ratio_wh: letterboxed size over original size, width then height.
        pad_wh: pixels added at the left and at the top.
    """

    original_hw: tuple[int, int]
    ratio_wh: tuple[float, float]
    pad_wh: tuple[float, float]


def unletterbox(boxes_xyxy: Tensor, placement: Placement) -> Tensor:
    """Map (N, 4) corners from the network's input to the original image, clipped to it."""
    scale = boxes_xyxy.new_tensor(placement.ratio_wh * 2)
    shift = boxes_xyxy.new_tensor(placement.pad_wh * 2)
    height, width = placement.original_hw
    limit = boxes_xyxy.new_tensor((width, height, width, height))
    return torch.minimum(((boxes_xyxy - shift) / scale).clamp(min=0), limit)
