"""The mask loss: literal numbers, a dense form of the same rule, chunks, gradients and empty batches."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from utils.losses import mask as module
from utils.losses.mask import fitted_maps, mask_loss

HW = (32, 48)  # of the image; maps are 8 x 12


def random_inputs(dtype: torch.dtype = torch.float64, positives: int = 9, images: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(positives, 2, generator=generator) * torch.tensor([30.0, 18.0])
    boxes = torch.cat((corner, corner + 4 + torch.rand(positives, 2, generator=generator) * 20), 1)
    return [
        torch.randn(positives, 4, generator=generator, dtype=dtype).requires_grad_(),
        torch.randn(images, 4, 8, 12, generator=generator, dtype=dtype).requires_grad_(),
        torch.randint(0, images, (positives,), generator=generator),
        torch.randint(1, 4, (positives,), generator=generator),
        boxes.to(dtype),
        torch.randint(0, 4, (images, 8, 12), generator=generator, dtype=torch.int16),
    ]


def dense(
    coefficients: Tensor, prototypes: Tensor, image: Tensor, number: Tensor, boxes: Tensor, maps: Tensor
) -> Tensor:
    """Apply the rule as it is written, with full tables."""
    logits = torch.einsum("pm,pmhw->phw", coefficients, prototypes[image])
    target = (maps[image] == number[:, None, None]).to(logits.dtype)
    entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    x, y = torch.arange(12), torch.arange(8)
    crop = ((y >= boxes[:, 1:2] / 4) & (y < boxes[:, 3:] / 4))[:, :, None] & (
        (x >= boxes[:, :1] / 4) & (x < boxes[:, 2:3] / 4)
    )[:, None]
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1) / (32 * 48)
    return ((entropy * crop).mean((1, 2)) / area).mean()


def test_by_hand() -> None:
    # logits of 0 everywhere: ln 2 a cell. A box of 8 x 8 pixels holds 2 x 2 of 96 cells, and 64 / 1536 of the image
    zeros, prototypes, maps = torch.zeros(1, 4), torch.zeros(1, 4, 8, 12), torch.zeros(1, 8, 12, dtype=torch.int16)
    one = torch.ones(1, dtype=torch.int64)
    loss = mask_loss(zeros, prototypes, one - 1, one, torch.tensor([[8.0, 4, 16, 12]]), maps, HW)
    assert loss.item() == pytest.approx(math.log(2) * 4 / 96 / (64 / 1536))


@pytest.mark.parametrize(
    ("box", "cells"),
    [((4.0, 4, 12, 8), 2), ((4.1, 4, 12, 8), 1), ((4.0, 4, 12.1, 8), 3), ((-9.0, 4, 4, 8), 1), ((1.0, 1, 3, 3), 0)],
)
def test_columns_and_rows_that_are_inside(box: tuple[float, ...], cells: int) -> None:
    one, area = torch.ones(1, dtype=torch.int64), (box[2] - box[0]) * (box[3] - box[1]) / 1536
    loss = mask_loss(
        torch.zeros(1, 4), torch.zeros(1, 4, 8, 12), one - 1, one, torch.tensor([box]), torch.zeros(1, 8, 12), HW
    )
    assert loss.item() == pytest.approx(math.log(2) * cells / 96 / area, rel=1e-5)


@pytest.mark.parametrize("chunk", [1, 200, 1 << 22])
def test_equals_the_dense_form_whatever_the_chunk(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    inputs, others = random_inputs(), random_inputs()
    loss, expected = mask_loss(*inputs, HW), dense(*others)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    (3 * loss).backward()
    (3 * expected).backward()
    for ours, theirs in zip(inputs[:2], others[:2], strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-14)


def test_gradients_are_those_of_the_loss() -> None:
    coefficients, prototypes, *others = random_inputs(positives=3)
    assert torch.autograd.gradcheck(lambda c, p: mask_loss(c, p, *others, HW), (coefficients, prototypes))


def test_no_positive_gives_zero_and_zero_gradients() -> None:
    inputs = [part[:0] if index in (0, 2, 3, 4) else part for index, part in enumerate(random_inputs())]
    loss = mask_loss(*inputs, HW)
    loss.backward()
    assert loss.item() == 0
    assert inputs[1].grad.eq(0).all()


def test_under_no_grad_there_is_no_gradient() -> None:
    with torch.no_grad():
        loss = mask_loss(*random_inputs(), HW)
    assert not loss.requires_grad
    assert loss.item() == pytest.approx(dense(*random_inputs()).item())


def test_a_box_without_area_and_saturated_logits_stay_finite() -> None:
    coefficients, prototypes, image, number, boxes, maps = random_inputs(torch.float32)
    boxes[0] = torch.tensor([10.0, 10, 10, 10])
    loss = mask_loss(coefficients * 1e4, prototypes, image, number, boxes, maps, HW)
    loss.backward()
    assert loss.isfinite()
    assert coefficients.grad.isfinite().all()
    assert prototypes.grad.isfinite().all()


def test_maps_of_another_size_are_fitted_without_new_numbers() -> None:
    maps = torch.tensor([[[0, 1], [2, 300]]], dtype=torch.int16)
    assert fitted_maps(maps, (2, 2)) is maps
    assert fitted_maps(maps, (4, 4))[0].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 300, 300], [2, 2, 300, 300]]
    assert fitted_maps(maps, (1, 1)).dtype is torch.int16
