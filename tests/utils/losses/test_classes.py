"""Class losses: numbers worked out by hand, saturated logits, and that the sparse form is the dense one."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from utils.losses.box import Pairs
from utils.losses.settings import PARTS

LN2, LN3 = math.log(2), math.log(3)
NAMES = [part.name for part in PARTS["cls"]]


def boxes_of(overlaps: list[float]) -> Pairs:
    """Pairs of boxes with these IoUs: unit squares of which the object covers the left part."""
    predicted = torch.tensor([0.0, 0, 1, 1]).repeat(len(overlaps), 1).view(-1, 4)
    goal = predicted.clone()
    goal[:, 2] = torch.tensor(overlaps)
    return Pairs(predicted, goal, (1, 1))


def built(name: str) -> Callable[..., Tensor]:
    return PARTS["cls"].read(name, "test").build()


def score(name: str, logits: list[float], targets: dict[int, float], overlaps: list[float] | None = None) -> float:
    """Return the loss of one row of logits, with targets by column."""
    row = torch.tensor([[logits]])
    columns = list(targets)
    found = torch.tensor(list(targets.values()))
    return built(name)(row, row[0, 0, columns], found, boxes_of(overlaps or [0.5] * len(columns))).item()


# --- by hand: at the logit 0 the probability is 1/2 and the cross-entropy ln 2, whatever the target; at ln 3 the
# probability is 3/4 and the softplus ln 4


@pytest.mark.parametrize(
    ("name", "positive", "background"),
    [
        ("bce", LN2, 2 * LN2),
        ("varifocal", 0.8 * LN2, 0.75 * 0.5625 * 2 * LN2),
        ("varifocal(alpha=2, gamma=1)", 0.8 * LN2, 2 * 0.75 * 2 * LN2),
        ("quality_focal", 0.09 * LN2, 0.5625 * 2 * LN2),  # (0.8 - 0.5)^2 and 0.75^2
        ("quality_focal(beta=1)", 0.3 * LN2, 0.75 * 2 * LN2),
        ("slide", math.exp(0.5) * LN2, 2 * LN2),  # one positive: its IoU 0.5 is the mean
    ],
)
def test_by_hand(name: str, positive: float, background: float) -> None:
    assert score(name, [0.0], {0: 0.8}) == pytest.approx(positive, rel=1e-5)
    assert score(name, [LN3], {}) == pytest.approx(background, rel=1e-5)
    assert score(name, [LN3, 0.0, LN3], {1: 0.8}) == pytest.approx(positive + 2 * background, rel=1e-5)


def test_slide_weights_positives_by_their_overlap() -> None:
    # IoUs 0.2, 0.45, 0.55, 0.8 with mean 0.5: 1 up to 0.4, e^0.5 below the mean, e^0.45 and e^0.2 above it
    weights = 1 + math.exp(0.5) + math.exp(0.45) + math.exp(0.2)
    assert score("slide", [0.0] * 4, dict.fromkeys(range(4), 1.0), [0.2, 0.45, 0.55, 0.8]) == pytest.approx(
        weights * LN2, rel=1e-5
    )
    # a mean of 0.1 is raised to 0.2: of 0.05 and 0.15 the first is at most 0.1
    assert score("slide", [0.0] * 2, {0: 1.0, 1: 1.0}, [0.05, 0.15]) == pytest.approx(
        (1 + math.exp(0.8)) * LN2, rel=1e-5
    )


def test_a_target_of_0_is_background_to_varifocal() -> None:
    assert score("varifocal", [LN3], {0: 0.0}) == pytest.approx(0.75 * 0.5625 * 2 * LN2, rel=1e-5)


def test_a_right_prediction_costs_quality_focal_nothing() -> None:
    assert score("quality_focal", [LN3], {0: 0.75}) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [-1e4, -200.0, 0.0, 200.0, 1e4])
@pytest.mark.parametrize("target", [0.0, 0.5, 1.0])
def test_saturated_logits_are_finite(name: str, value: float, target: float) -> None:
    logits = torch.full((2, 3, 4), value, requires_grad=True)
    loss = built(name)(logits, logits[0, 1, :2], torch.full((2,), target), boxes_of([0.0, 1.0]))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_no_positives(name: str) -> None:
    logits = torch.zeros(1, 2, 3, requires_grad=True)
    loss = built(name)(logits, logits[0, 0, :0], torch.zeros(0), boxes_of([]))
    loss.backward()
    assert loss.item() > 0
    assert logits.grad.gt(0).all()


@pytest.mark.parametrize("name", NAMES)
def test_gradients_leave_the_boxes_alone(name: str) -> None:
    pairs = boxes_of([0.3, 0.6])
    pairs.predicted_xyxy.requires_grad_()
    logits = torch.zeros(1, 2, 3, requires_grad=True)
    built(name)(logits, logits[0, 0, :2], torch.tensor([0.2, 0.9]), pairs).backward()
    assert pairs.predicted_xyxy.grad is None
