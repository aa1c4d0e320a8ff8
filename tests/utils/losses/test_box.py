"""Box losses and wrappers: numbers worked out by hand, degenerate boxes, and the state of Wise-IoU."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from utils.losses.box import BoxLoss, Pairs
from utils.losses.settings import PARTS

# The pair of the hand-worked numbers: predicted box 4 x 4 around (2, 2), object 6 x 3 around (5, 2.5), image 40 x 30.
#   intersection 2 * 3 = 6, union 16 + 18 - 6 = 28, IoU 3 / 14 = 0.2142857
#   hull 8 x 4: area 32, squared diagonal 80; centres 3 and 0.5 apart: squared distance 9.25
PREDICTED, GOAL, IMAGE_HW = (0.0, 0.0, 4.0, 4.0), (2.0, 1.0, 8.0, 4.0), (30, 40)

MEASURES = [part.name for part in PARTS["box"]]
WRAPS = [[], ["inner(0.8)"], ["focaler(0.1, 0.5)"], ["inner(1.3)", "focaler"]]


def pairs_of(predicted: Any = PREDICTED, goal: Any = GOAL, dtype: torch.dtype = torch.float64) -> Pairs:
    boxes = [torch.tensor(box, dtype=dtype).view(-1, 4) for box in (predicted, goal)]
    return Pairs(boxes[0].requires_grad_(), boxes[1], IMAGE_HW)


def box_loss(measure: str, wraps: list[str] | None = None) -> BoxLoss:
    return BoxLoss(PARTS["box"].read(measure, "test"), [PARTS["wrap"].read(wrap, "test") for wrap in wraps or []])


def overlap(measure: str, wraps: list[str] | None = None, pairs: Pairs | None = None) -> Tensor:
    pairs = pairs or pairs_of()
    return box_loss(measure, wraps).overlap(pairs.goal_xyxy, pairs.predicted_xyxy, pairs.image_hw)


# --- by hand


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        ("iou", 0.2142857),
        ("giou", 0.0892857),  # less (32 - 28) / 32 = 0.125
        ("diou", 0.0986607),  # less 9.25 / 80 = 0.115625
        # v = 4 / pi^2 (atan 2 - atan 1)^2 = 0.4052847 * 0.3217506^2 = 0.0419565
        # v^2 / (1 - IoU + v) = 0.0021269 less than DIoU
        ("ciou", 0.0965338),
        ("eiou", -0.0263393),  # DIoU less (2 / 8)^2 + (1 / 4)^2 = 0.125
        # angle 2 * 3 * 0.5 / 9.25 = 0.3243243, its weight 2 - 0.3243243 = 1.6756757
        # distance (1 - e^(-1.6756757 * 9 / 64)) + (1 - e^(-1.6756757 * 0.25 / 16)) = 0.2099364 + 0.0258426 = 0.2357790
        # shape (1 - e^(-2 / 6))^4 + (1 - e^(-1 / 4))^4 = 0.0064569 + 0.0023940 = 0.0088510; half of both: 0.1223150
        ("siou", 0.0919707),
        # theta 2: shape 0.2834687^2 + 0.2211992^2 = 0.0803545 + 0.0489291 = 0.1292836; half of both: 0.1825313
        ("siou(theta=2)", 0.0317544),
        ("shape_iou", 0.0942352),  # both weights 1: DIoU less half the shape cost of SIoU, 0.0044255
        # weights 2 * 6 / 9 = 4/3 of the width, 2/3 of the height: distance (2/3 * 9 + 4/3 * 0.25) / 80 = 0.0791667
        # shape (1 - e^(-2/3 * 2/6))^4 + (1 - e^(-4/3 * 1/4))^4 = 0.0015766 + 0.0064569 = 0.0080335; half: 0.0040167
        ("shape_iou(scale=1)", 0.1311023),
        ("mpdiou", 0.2058857),  # less (2^2 + 1^2) / 2500 + (4^2 + 0^2) / 2500 = 0.0084
        ("nwd", 0.7748023),  # W^2 = 9.25 + (2^2 + 1^2) / 4 = 10.5: e^(-3.2403703 / 12.7)
        ("nwd(c=3.2403703)", 0.3678794),  # e^-1
        ("nwd(share=0.5)", 0.4356680),  # the mean of that and CIoU
        ("wiou", 0.1179770),  # 1 - e^(9.25 / 80) * 11 / 14 = 1 - 1.1225748 * 0.7857143
    ],
)
def test_measures_by_hand(measure: str, expected: float) -> None:
    assert overlap(measure).item() == pytest.approx(expected, abs=2e-7)
    if measure != "wiou":
        assert box_loss(measure)(pairs_of()).item() == pytest.approx(1 - expected, abs=2e-7)


def test_wise_iou_focuses_by_hand() -> None:
    # beta = 0.7857143 / 1; beta / 3 * 1.9^(3 - beta) = 0.2619048 * 4.1422861 = 1.0848845; times 1 - 0.1179770
    assert box_loss("wiou")(pairs_of()).item() == pytest.approx(0.9568930, abs=2e-7)
    # alpha 2, delta 1: 0.7857143 * 2^0.2142857 = 0.9115301; times 0.8820230
    assert box_loss("wiou(alpha=2, delta=1)")(pairs_of()).item() == pytest.approx(0.8039907, abs=2e-7)


@pytest.mark.parametrize(
    ("wraps", "expected"),
    [
        # 3.2 x 3.2 and 4.8 x 2.4 around the same centres meet in 1 x 2.3; 2.3 / (10.24 + 11.52 - 2.3)
        (["inner(0.8)"], 0.1181912),
        (["inner(0.5)"], 0.0),  # columns 1 to 3 and 3.5 to 6.5 do not meet
        (["inner(2)"], 0.4468085),  # 8 x 8 and 12 x 6 meet in 7 x 6; 42 / (64 + 72 - 42)
        (["inner(1)"], 0.2142857),
        (["focaler(0.1, 0.5)"], 0.2857143),  # (3 / 14 - 0.1) / 0.4
        (["focaler(0.3, 0.5)"], 0.0),
        (["focaler(0, 0.2)"], 1.0),
        (["inner(2)", "focaler(0.2, 0.7)"], 0.4936170),  # (42 / 94 - 0.2) / 0.5
        (["focaler(0.2, 0.7)", "inner(2)"], 0.4936170),  # whatever the order
    ],
)
@pytest.mark.parametrize("measure", MEASURES)
def test_wrappers_by_hand(measure: str, wraps: list[str], expected: float) -> None:
    change = expected - 3 / 14
    assert overlap(measure, wraps).item() == pytest.approx(overlap(measure).item() + change, abs=2e-7)
    assert box_loss(measure, wraps)(pairs_of()).item() == pytest.approx(
        box_loss(measure)(pairs_of()).item() - change, abs=2e-7
    )


@pytest.mark.parametrize("measure", sorted(set(MEASURES) - {"mpdiou", "nwd"}))
def test_a_measure_does_not_depend_on_the_scale_of_the_image(measure: str) -> None:
    larger = Pairs(pairs_of().predicted_xyxy.detach() * 50, pairs_of().goal_xyxy * 50, IMAGE_HW)
    assert overlap(measure, pairs=larger).item() == pytest.approx(overlap(measure).item(), abs=1e-7)


@pytest.mark.parametrize("measure", [*MEASURES, "nwd(share=0.3)", "shape_iou(scale=1.5)"])
def test_the_gradient_is_the_slope(measure: str) -> None:
    """Wise-IoU's diagonal and CIoU's weight are detached, so these measures are left out."""
    if measure.startswith(("wiou", "ciou", "nwd(")):
        pytest.skip("has a part without gradient")
    goal = pairs_of().goal_xyxy
    assert torch.autograd.gradcheck(
        lambda predicted: box_loss(measure)(Pairs(predicted, goal, IMAGE_HW)), (pairs_of().predicted_xyxy,)
    )


def test_wise_iou_pulls_with_the_diagonal_held() -> None:
    pairs = pairs_of()
    overlap("wiou", pairs=pairs).backward()
    # the gradient without IoU's share is that of the exponential alone
    iou = pairs_of()
    iou.iou.backward()
    factor = math.exp(9.25 / 80)
    by_distance = (pairs.predicted_xyxy.grad - factor * iou.predicted_xyxy.grad)[0]
    # d/dx1 of -e^(d^2 / 80) (1 - IoU) = -e^(d^2 / 80) * (1 - IoU) * 2 dx / 80 / 2, dx = -3
    assert by_distance[0].item() == pytest.approx(factor * 11 / 14 * 3 / 80, rel=1e-6)


# --- degenerate boxes

BOXES = {
    "identical": ((10, 10, 30, 20), (10, 10, 30, 20)),
    "disjoint": ((0, 0, 10, 10), (500, 400, 600, 640)),
    "touching": ((0, 0, 10, 10), (10, 0, 20, 10)),
    "inside": ((12, 12, 14, 14), (0, 0, 100, 50)),
    "around": ((0, 0, 100, 50), (12, 12, 14, 14)),
    "no width": ((10, 10, 10, 30), (8, 8, 20, 20)),
    "no height": ((10, 10, 30, 10), (8, 8, 20, 20)),
    "a point": ((10, 10, 10, 10), (8, 8, 20, 20)),
    "object without width": ((8, 8, 20, 20), (10, 10, 10, 30)),
    "object without size": ((8, 8, 20, 20), (10, 10, 10, 10)),
    "two points": ((10, 10, 10, 10), (40, 40, 40, 40)),
    "the same point": ((10, 10, 10, 10), (10, 10, 10, 10)),
    "the same line": ((10, 10, 10, 30), (10, 10, 10, 30)),
    "huge": ((-1e5, -1e5, 1e5, 1e5), (3, 3, 4, 4)),
    "tiny": ((3, 3, 3.0001, 3.0001), (3, 3, 3.0001, 3.0001)),
    "same centre": ((0, 0, 10, 10), (2, 4, 8, 6)),
    "one above the other": ((0, 0, 10, 10), (0, 50, 10, 60)),
}


@pytest.mark.parametrize(
    "measure", [*MEASURES, "shape_iou(scale=5)", "siou(theta=6)", "nwd(c=0.01)", "nwd(share=0.5)", "wiou(10, 20)"]
)
@pytest.mark.parametrize("wraps", WRAPS, ids=str)
def test_degenerate_boxes_are_finite(measure: str, wraps: list[str]) -> None:
    for name, (predicted, goal) in BOXES.items():
        pairs = pairs_of(predicted, goal, torch.float32)
        loss = box_loss(measure, wraps)(pairs)
        loss.sum().backward()
        assert loss.isfinite().all(), name
        assert pairs.predicted_xyxy.grad.isfinite().all(), name
        assert overlap(measure, wraps, pairs_of(predicted, goal, torch.float32)).item() <= 1 + 1e-5 or wraps, name


@pytest.mark.parametrize("measure", MEASURES)
def test_identical_boxes_cost_nothing(measure: str) -> None:
    pairs = pairs_of((10, 10, 30, 20), (10, 10, 30, 20), torch.float32)
    loss = box_loss(measure)(pairs)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert overlap(measure, pairs=pairs_of((10, 10, 30, 20), (10, 10, 30, 20))).item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("measure", sorted(set(MEASURES) - {"iou"}))
def test_boxes_that_do_not_meet_are_pulled_together(measure: str) -> None:
    pairs = pairs_of((0, 0, 10, 10), (20, 20, 30, 30))
    box_loss(measure)(pairs).backward()
    gradient = pairs.predicted_xyxy.grad[0]
    assert (gradient[:2] + gradient[2:] < 0).all(), "a step against the gradient moves the centre to the object"


@pytest.mark.parametrize("measure", MEASURES)
def test_no_pairs(measure: str) -> None:
    pairs = pairs_of(torch.zeros(0, 4).tolist(), torch.zeros(0, 4).tolist())
    assert box_loss(measure, ["inner", "focaler"])(pairs, learning=True).shape == (0,)


@pytest.mark.parametrize("measure", MEASURES)
def test_a_float32_box_gets_a_float32_loss(measure: str) -> None:
    loss = box_loss(measure, ["inner", "focaler"])
    assert loss(pairs_of(dtype=torch.float32), learning=True).dtype is torch.float32
    assert loss(pairs_of(dtype=torch.float32)).item() == pytest.approx(loss(pairs_of()).item(), rel=1e-5)


# --- the running mean of Wise-IoU


def test_the_mean_moves_by_its_momentum_in_training_only() -> None:
    loss = box_loss("wiou(momentum=0.1)")
    loss(pairs_of())
    assert loss.state_dict()["mean"].item() == 1
    loss(pairs_of(), learning=True)
    assert loss.state_dict()["mean"].item() == pytest.approx(1 - 0.1 * 3 / 14, rel=1e-6)
    # beta = 0.7857143 / 0.9785714 = 0.8029197; beta / 3 * 1.9^(3 - beta) = 1.0964654; times 0.8820230
    assert loss(pairs_of()).item() == pytest.approx(0.9671077, abs=1e-6)


def test_boxes_that_are_not_finite_leave_the_mean() -> None:
    loss = box_loss("wiou")
    loss(pairs_of((math.nan, 0, 1, 1)), learning=True)
    assert loss.state_dict()["mean"].item() == 1


def test_the_mean_is_restored() -> None:
    first, second = box_loss("wiou(momentum=0.5)"), box_loss("wiou(momentum=0.5)")
    first(pairs_of(), learning=True)
    second.load_state_dict(first.state_dict())
    assert second(pairs_of(), learning=True).item() == first(pairs_of(), learning=True).item()
    assert torch.equal(first.state_dict()["mean"], second.state_dict()["mean"])
    assert box_loss("siou").state_dict() == {}
