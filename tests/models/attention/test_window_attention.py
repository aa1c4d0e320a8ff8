"""Window attention: the fast form against the tap-by-tap form, finite differences, literal numbers."""

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models.attention import window_attention as module
from models.attention.window_attention import mirrored, mirrored_positions, window_attention, window_attention_by_taps

SETTINGS = [  # height, width, kernel, stride, dilation
    (7, 6, 3, 1, 1), (9, 40, 7, 1, 1), (5, 9, 5, 2, 1), (9, 10, 3, 1, 2), (8, 37, 5, 3, 2), (6, 33, 3, 2, 3),
    (4, 4, 1, 1, 1), (1, 1, 7, 1, 1),
    (2, 3, 7, 1, 1), (1, 20, 7, 2, 1), (33, 1, 3, 1, 4),
]  # fmt: skip


def projections(height: int, width: int, depth: int = 3, batch: int = 2, heads: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (batch, heads, depth, height, width)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3)]


def test_mirrored_positions_by_hand() -> None:
    assert [mirrored(position, 4) for position in range(-4, 8)] == [2, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0, 1]
    assert [mirrored(position, 2) for position in range(-3, 5)] == [1, 0, 1, 0, 1, 0, 1, 0]
    assert [mirrored(position, 1) for position in range(-3, 4)] == [0] * 7


@pytest.mark.parametrize("size", [1, 2, 3, 9])
def test_both_forms_mirror_alike(size: int) -> None:
    assert mirrored_positions(size, 5, torch.empty(0)).tolist() == [
        mirrored(position, size) for position in range(-5, size + 5)
    ]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("scores", [1, 2000, 2**17], ids=lambda value: f"{value} scores at a time")
def test_fast_form_is_the_formula(settings: tuple[int, ...], scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CPU_SCORES", scores)
    height, width, kernel, stride, dilation = settings
    inputs = projections(height, width)
    expected, _ = window_attention_by_taps(*inputs, kernel, stride, dilation)
    ours, _ = window_attention(*inputs, kernel, stride, dilation, True)
    assert ours.shape == expected.shape
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-14)
    upstream = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for gradient, theirs in zip(
        torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(gradient, theirs, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("settings", [(4, 5, 3, 1, 1), (3, 5, 3, 2, 2), (2, 2, 5, 1, 1)], ids=str)
def test_gradients_are_those_of_finite_differences(settings: tuple[int, ...]) -> None:
    height, width, kernel, stride, dilation = settings
    inputs = projections(height, width, depth=2, batch=1)
    assert torch.autograd.gradcheck(lambda *given: window_attention(*given, kernel, stride, dilation, True)[0], inputs)


def test_queries_of_zero_average_the_window() -> None:
    value = torch.arange(9.0).view(1, 1, 1, 3, 3)
    gathered, weights = window_attention(torch.zeros_like(value), value, value, 3, 1, 1, True)
    corner = [4, 3, 4, 1, 0, 1, 4, 3, 4]  # the window of the upper left cell, reflected
    assert gathered[0, 0, 0, 0, 0].item() == pytest.approx(sum(corner) / 9)
    assert gathered[0, 0, 0, 1, 1].item() == pytest.approx(4)
    assert weights[:3, :3].unique().tolist() == pytest.approx([1 / 9])


def test_a_strong_key_takes_all_and_scores_are_scaled() -> None:
    query = torch.full((1, 1, 4, 1, 3), 1.0)
    key = torch.zeros(1, 1, 4, 1, 3)
    key[..., 2] = torch.log(torch.tensor(3.0)) / 2  # its score is 4 * log(3) / 2 / sqrt(4) = log(3)
    value = torch.tensor([0.0, 0.0, 1.0]).expand(1, 1, 4, 1, 3).clone()
    gathered, _ = window_attention(query, key, value, 3, 1, 1, False)
    # columns in reach, mirrored: 1, 0, 1, then 0, 1, 2, then 1, 2, 1
    assert gathered[0, 0, 0, 0].tolist() == pytest.approx([0, 3 / 5, 3 / 5])


def test_weights_are_kept_only_for_backward() -> None:
    inputs = projections(6, 6)
    assert window_attention(*inputs, 3, 1, 1, False)[1].numel() == 0
    assert window_attention(*inputs, 3, 1, 1, True)[1].shape[2] == 9


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("keep", [False, True])
def test_the_declared_operator_is_the_real_one(last: bool, keep: bool) -> None:
    inputs = [
        x.detach().permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2) if last else x for x in projections(6, 21)
    ]
    if keep:
        inputs = [x.detach().requires_grad_() for x in inputs]
    torch.library.opcheck(window_attention, (*inputs, 3, 2, 1, keep), test_utils=("test_schema", "test_faketensor"))


def test_operations_are_counted() -> None:
    inputs = [x.detach() for x in projections(6, 8)]
    with FlopCounterMode(display=False) as counter:
        window_attention(*inputs, 3, 2, 1, False)
    assert counter.get_total_flops() == 2 * 2 * 9 * (2 * 2 * 3) * (3 * 4)


def test_half_precision_is_computed_in_float32() -> None:
    inputs = [x.detach().to(torch.bfloat16) for x in projections(6, 8)]
    gathered, weights = window_attention(*inputs, 3, 1, 1, True)
    assert (gathered.dtype, weights.dtype) == (torch.bfloat16, torch.float32)
    expected, _ = window_attention(*(x.float() for x in inputs), 3, 1, 1, True)
    torch.testing.assert_close(gathered, expected.to(torch.bfloat16), rtol=0, atol=0)
