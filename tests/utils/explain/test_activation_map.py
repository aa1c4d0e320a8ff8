"""Class-activation maps against numbers worked out by hand, and against where a detection can see."""

import pytest
import torch
from torch import Tensor

from tests.networks import tiny_model
from utils.explain.activation_map import activation_maps, class_score, kept_detections
from utils.explain.layers import LayerRecorder, pick_layers
from utils.geometry.anchors import NUM_BINS


def test_a_linear_score_is_the_sum_of_its_map() -> None:
    maps = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[5.0, 0.0], [0.0, 1.0]]]], requires_grad=True)
    weights = torch.tensor([[[[2.0, 0.0], [0.5, 1.0]], [[1.0, 7.0], [0.0, 3.0]]]])
    score = (maps * weights).sum()
    found = activation_maps(score, {"layer": maps})["layer"]
    assert found.tolist() == [[7.0, 0.0], [1.5, 7.0]]
    assert found.sum() == score.detach()


def test_what_speaks_against_is_left_out() -> None:
    maps = torch.tensor([[[[1.0, -2.0]]]], requires_grad=True)
    assert activation_maps(maps.sum(), {"layer": maps})["layer"].tolist() == [[1.0, 0.0]]


def test_a_cell_that_the_score_does_not_depend_on_is_zero() -> None:
    """Grad-CAM's mean gradient of 0.25 would give 2.25 at the other cell, which has the larger activation."""
    maps = torch.tensor([[[[1.0, 9.0]]]], requires_grad=True)
    assert activation_maps(maps[0, 0, 0, 0] / 2, {"layer": maps})["layer"].tolist() == [[0.5, 0.0]]


def test_a_layer_outside_the_graph_has_none() -> None:
    inside, outside = torch.ones(1, 1, 1, 1, requires_grad=True), torch.ones(1, 1, 1, 1, requires_grad=True)
    found = activation_maps(inside.sum(), {"inside": inside, "outside": outside})
    assert found["outside"] is None
    assert found["inside"].tolist() == [[1.0]]
    assert activation_maps(inside.sum(), {}) == {}


def prediction_of(*columns: tuple[float, ...]) -> Tensor:
    """Centre x, centre y, width, height and class probabilities of each anchor point to (1, 4 + nc, A)."""
    return torch.tensor(columns).T[None]


def test_kept_detections_know_their_anchor_points() -> None:
    prediction = prediction_of(
        (50, 50, 9, 9, 0.1, 0.2), (20, 20, 10, 10, 0.0, 0.6), (21, 20, 10, 10, 0.0, 0.9), (70, 70, 8, 8, 0.5, 0.1)
    )
    detections, anchors = kept_detections(prediction, 2, 0.25, 0.45, 300, None, False)
    assert anchors.tolist() == [2, 3]
    assert detections[0].tolist() == pytest.approx([16, 15, 26, 25, 0.9, 1])
    _, anchors = kept_detections(prediction, 2, 0.25, 0.45, 300, [0], False)
    assert anchors.tolist() == [3]
    _, anchors = kept_detections(prediction, 2, 0.25, 0.45, 1, None, False)
    assert anchors.tolist() == [2]


def test_mask_coefficients_are_no_anchor_points() -> None:
    with_masks = torch.cat((prediction_of((20, 20, 10, 10, 0.1), (60, 60, 10, 10, 0.9)), torch.full((1, 2, 2), 7.0)), 1)
    assert kept_detections(with_masks, 1, 0.25, 0.45, 300, None, False)[1].tolist() == [1]


LOGITS = torch.tensor([[0.0, 1.0, -4.0], [2.0, -1.0, 3.0]])


def test_the_score_adds_log_odds_of_the_detections() -> None:
    detections = torch.tensor([[0, 0, 9, 9, 0.95, 1], [0, 0, 9, 9, 0.73, 0]])
    score = class_score(LOGITS, detections, torch.tensor([2, 1]))
    assert score.value == 3.0 + 1.0
    assert score.strongest is None


def test_without_detections_it_adds_the_probabilities_of_the_strongest_class() -> None:
    score = class_score(LOGITS, torch.zeros(0, 6), torch.zeros(0, dtype=torch.long))
    assert score.strongest == (1, pytest.approx(0.9525741))
    assert float(score.value) == pytest.approx(0.8807971 + 0.2689414 + 0.9525741)
    assert class_score(LOGITS, torch.zeros(0, 6), torch.zeros(0, dtype=torch.long), [0]).strongest == (
        0,
        pytest.approx(0.7310586),
    )


def test_only_what_a_detection_sees_is_lit() -> None:
    """Two 3 x 3 convolutions of a class tower see 5 x 5 cells of the level, and nothing of the other levels."""
    model = tiny_model().eval()
    with LayerRecorder(pick_layers(model, [2, 3])) as recorder:
        *_, (_, _, outputs) = model.run_rows(
            torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0)), lead_only=True
        )
    logits = torch.cat([level.flatten(2) for level in outputs["main"]], 2)[0, 4 * NUM_BINS :]
    row, column = 5, 9
    score = class_score(logits, torch.tensor([[0, 0, 9, 9, 0.9, 1.0]]), torch.tensor([row * 16 + column]))
    gradient = torch.autograd.grad(score.value, recorder.outputs["02_Conv"], retain_graph=True)[0][0].abs().sum(0)
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[3:8, 7:12] = True
    assert torch.equal(gradient > 0, expected)
    found = activation_maps(score.value, recorder.outputs)
    assert not found["02_Conv"][~expected].any()
    assert found["02_Conv"].any()
    assert not found["03_Conv"].any()
