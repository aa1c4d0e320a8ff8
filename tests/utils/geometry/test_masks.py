"""Masks from coefficients and prototypes: where their edges come to lie, and what the two rules have in common."""

import numpy as np
import pytest
import torch

from utils.geometry.masks import as_array, instance_region, instance_regions, logits_at, prototype_map
from utils.geometry.placement import Placement
from utils.geometry.region import dense_masks

WHOLE = np.array([0, 0, 1000, 1000], np.float32)


def step(column: int, size: int = 8) -> np.ndarray:
    """Prototypes (1, 8, 8): 1 from a column on, -1 before it."""
    return np.where(np.arange(size) >= column, 1, -1).astype(np.float32)[None, None].repeat(size, 1)


ONE = np.ones(1, np.float32)


def test_logits_are_linear_between_the_centres_of_cells() -> None:
    ramp = np.arange(8, dtype=np.float32)[None, None].repeat(8, 1)
    x = np.array([0.5, 2.0, 4.0, 6.0, 29.0, 31.5])
    assert logits_at(ONE, ramp, np.array([0.5, 31.5]), x).tolist() == [pytest.approx([0, 0, 0.5, 1, 6.75, 7])] * 2
    assert logits_at(2 * ONE, ramp.transpose(0, 2, 1), x, np.array([3.0]))[:, 0].tolist() == pytest.approx(
        [0, 0, 1, 2, 13.5, 14]
    )


def test_the_edge_lies_where_the_logit_is_zero() -> None:
    # cells of 4 pixels, inside from cell 3 on: the logit is 0 between the centres of cells 2 and 3, at 12 pixels
    region = instance_region(ONE, step(3), WHOLE, Placement((32, 32), (1, 1), (0, 0)))
    assert region.mask.shape == (32, 32)
    assert region.mask.any(0).tolist() == [False] * 12 + [True] * 20


@pytest.mark.parametrize("full", [True, False])
def test_images_are_letterboxed(full: bool) -> None:
    # an image of 64 x 48 at half size, 4 rows of padding above: column 12 of the input is column 24 of the image
    placement = Placement((48, 64), (0.5, 0.5), (0, 4))
    region = instance_region(ONE, step(3), WHOLE, placement, full)
    assert region.mask.shape == (48, 64)
    assert region.mask.all(0).tolist() == [False] * 24 + [True] * 40
    down = instance_region(
        ONE, step(3).transpose(0, 2, 1), WHOLE, placement, full
    )  # row 12 of the input is row 16 of the image
    assert down.mask.all(1).tolist() == [False] * 16 + [True] * 32


def test_a_mask_is_cut_at_its_box() -> None:
    region = instance_region(-ONE, step(3), np.array([2.4, 5.0, 20.0, 7.6]), Placement((32, 32), (1, 1), (0, 0)))
    assert region.window == (slice(5, 8), slice(2, 20))
    assert region.mask.all(0).tolist() == [True] * 10 + [False] * 8
    empty = instance_region(ONE, step(3), np.array([5.0, 5, 5, 9]), Placement((32, 32), (1, 1), (0, 0)))
    assert empty.area == 0


def test_the_full_rule_has_finer_edges_than_the_fast_one() -> None:
    generator = np.random.default_rng(0)
    prototypes, coefficients = (
        generator.standard_normal((4, 8, 8)).astype(np.float32),
        generator.standard_normal((1, 4)).astype(np.float32),
    )
    placement = Placement((256, 256), (0.125, 0.125), (0, 0))  # an image of eight times the input's size
    full, fast = (
        dense_masks(instance_regions(coefficients, prototypes, WHOLE[None], placement, rule), (256, 256))[0]
        for rule in (True, False)
    )
    blocks = fast.reshape(32, 8, 32, 8)
    assert (blocks == blocks[:, :1, :, :1]).all()
    assert not (full.reshape(32, 8, 32, 8) == full.reshape(32, 8, 32, 8)[:, :1, :, :1]).all()
    assert (full == fast).mean() > 0.95
    same = Placement((32, 32), (1, 1), (0, 0))
    assert np.array_equal(
        *(instance_region(coefficients[0], prototypes, WHOLE, same, rule).mask for rule in (True, False))
    )


def test_prototype_map_puts_the_first_on_top() -> None:
    both = np.array([[1.0], [1.0]], np.float32)
    drawn = prototype_map(both, step(0), np.array([[0, 0, 16, 16], [8, 8, 32, 32]], np.float32))
    assert drawn[:4, :4].tolist() == [[1] * 4] * 4
    assert drawn[5, 5] == 2
    assert drawn[0, 6] == 0


def test_as_array_takes_half_precision() -> None:
    assert as_array(torch.ones(2, dtype=torch.bfloat16, requires_grad=True)).dtype == np.float32
