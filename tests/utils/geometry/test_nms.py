"""Non-maximum suppression: literal cases, agreement with brute force, and a broken torchvision."""

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.saying import assert_says
from utils.errors import SettingsError
from utils.geometry import nms
from utils.geometry.boxes import box_iou
from utils.geometry.nms import non_max_suppression, suppress, torchvision_nms


def dense(rows: list[list[float]]) -> Tensor:
    """Rows of cx, cy, w, h, probabilities to a prediction (1, 4 + nc, A)."""
    return torch.tensor(rows).T[None]


def brute_force(boxes_xyxy: Tensor, iou_thres: float) -> list[int]:
    """Greedy suppression as one would say it, of sorted boxes."""
    overlaps = box_iou(boxes_xyxy, boxes_xyxy)
    kept: list[int] = []
    for row in range(len(boxes_xyxy)):
        if all(overlaps[row, earlier] <= iou_thres for earlier in kept):
            kept.append(row)
    return kept


def crowded_boxes(count: int, seed: int, spread: float = 300.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * spread
    return torch.cat((corner, corner + 20 + 60 * torch.rand(count, 2, generator=generator)), 1)


class TestLiteral:
    # the first two overlap by 80 / 120 = 0.667
    ROWS = ([10, 10, 10, 10, 0.9, 0.0], [12, 10, 10, 10, 0.8, 0.0], [40, 40, 10, 20, 0.7, 0.0])

    def test_less_confident_of_two_goes(self):
        (rows,) = non_max_suppression(dense(list(self.ROWS)), 2, iou_thres=0.6)
        torch.testing.assert_close(rows, torch.tensor([[5, 5, 15, 15, 0.9, 0], [35, 30, 45, 50, 0.7, 0]]))

    def test_overlap_below_threshold_stays(self):
        (rows,) = non_max_suppression(dense(list(self.ROWS)), 2, iou_thres=0.7)
        assert rows[:, 4].tolist() == pytest.approx([0.9, 0.8, 0.7])

    def test_other_class_stays_unless_agnostic(self):
        prediction = dense([[10, 10, 10, 10, 0.9, 0.0], [12, 10, 10, 10, 0.0, 0.8]])
        assert len(non_max_suppression(prediction, 2, iou_thres=0.3)[0]) == 2
        assert len(non_max_suppression(prediction, 2, iou_thres=0.3, agnostic=True)[0]) == 1

    def test_classes_far_apart_never_meet(self):
        boxes = [
            [10, 10, 10, 10, 0.9, 0.0],
            [9000, 9000, 10, 10, 0.0, 0.8],
            [-8000, 10, 10, 10, 0.7, 0.0],
            [10, 10, 10, 10, 0.0, 0.6],
        ]
        assert len(non_max_suppression(dense(boxes), 2)[0]) == 4

    def test_multi_label_gives_a_box_a_class(self):
        prediction = dense([[10, 10, 10, 10, 0.4, 0.6]])
        assert non_max_suppression(prediction, 2)[0][:, 5].tolist() == [1]
        assert non_max_suppression(prediction, 2, multi_label=True)[0][:, 5].tolist() == [1, 0]

    def test_only_the_classes_asked_for(self):
        prediction = dense([[10, 10, 10, 10, 0.4, 0.6], [50, 50, 10, 10, 0.5, 0.3]])
        assert non_max_suppression(prediction, 2, classes=[0])[0][:, 4].tolist() == [0.5]

    def test_mask_coefficients_travel_along(self):
        prediction = dense([[10, 10, 10, 10, 0.5, 7.0, 8.0], [50, 50, 10, 10, 0.6, 5.0, 6.0]])
        assert non_max_suppression(prediction, 1)[0][:, 6:].tolist() == [[5, 6], [7, 8]]

    def test_max_det_keeps_the_most_confident(self):
        prediction = dense([[100 * k, 10, 10, 10, 0.3 + 0.1 * k] for k in range(5)])
        assert non_max_suppression(prediction, 1, max_det=2)[0][:, 4].tolist() == pytest.approx([0.7, 0.6])

    def test_equal_scores_keep_the_order_of_anchors(self):
        prediction = dense([[100 * k, 10, 10, 10, 0.5] for k in range(50)])
        assert non_max_suppression(prediction, 1)[0][:, 0].tolist() == [100 * k - 5 for k in range(50)]

    def test_nothing_confident_gives_empty_rows(self):
        rows = non_max_suppression(torch.zeros(3, 4 + 2 + 1, 20), 2)
        assert [row.shape for row in rows] == [(0, 7)] * 3

    def test_no_anchors(self):
        assert non_max_suppression(torch.zeros(1, 5, 0), 1)[0].shape == (0, 6)

    def test_nan_and_infinite_boxes_are_dropped_alone(self):
        boxes = [
            [float("nan"), 10, 10, 10, 0.9],
            [10, 10, 10, 10, float("nan")],
            [10, 10, float("inf"), 10, 0.8],
            [10, 10, 10, 10, 0.7],
        ]
        assert non_max_suppression(dense(boxes), 1)[0][:, 4].tolist() == pytest.approx([0.7])

    def test_half_precision_comes_back_as_float32(self):
        assert non_max_suppression(dense(list(self.ROWS)).bfloat16(), 2)[0].dtype is torch.float32


@pytest.mark.parametrize("iou_thres", [0.0, 0.3, 0.45, 0.7, 1.0])
@pytest.mark.parametrize(("count", "spread"), [(1, 300.0), (2, 300.0), (100, 300.0), (600, 300.0)])
def test_equals_brute_force(count: int, spread: float, iou_thres: float):
    check_against_brute_force(count, spread, iou_thres)


@pytest.mark.parametrize(
    "iou_thres", [0.45, *(pytest.param(one, marks=pytest.mark.slow) for one in (0.0, 0.3, 0.7, 1.0))]
)
def test_equals_brute_force_beyond_the_first_boxes(iou_thres: float):
    """More boxes than the prefix that suppression looks at first, close together."""
    check_against_brute_force(1500, 20.0, iou_thres)


def check_against_brute_force(count: int, spread: float, iou_thres: float) -> None:
    boxes = crowded_boxes(count, count, spread)
    kept = brute_force(boxes, iou_thres)
    for max_det in (count, 40):
        assert suppress(boxes, None, iou_thres, max_det).tolist() == kept[:max_det]


def test_a_chain_of_suppressions_is_followed():
    corner = torch.arange(0.0, 700.0)[:, None] * torch.tensor([[4.0, 0.0]])  # each overlaps its neighbours by 6 / 14
    boxes = torch.cat((corner, corner + 10), 1)
    assert suppress(boxes, None, 0.4, 700).tolist() == list(range(0, 700, 2))


def test_classes_are_suppressed_apart_and_later_boxes_only_looked_at_where_needed(monkeypatch: pytest.MonkeyPatch):
    boxes = crowded_boxes(2000, seed=3)
    labels = torch.randint(0, 5, (2000,), generator=torch.Generator().manual_seed(4))
    kept = [torch.nonzero(labels == label)[:, 0][brute_force(boxes[labels == label], 0.5)] for label in range(5)]
    expected = torch.cat(kept).sort().values.tolist()
    seen: list[int] = []

    def counted(device_type: str):
        def operator(boxes_xyxy: Tensor, scores: Tensor, iou_thres: float) -> Tensor:
            seen.append(len(boxes_xyxy))
            return torchvision_nms(device_type)(boxes_xyxy, scores, iou_thres)

        return operator

    monkeypatch.setattr(nms, "torchvision_nms", counted)
    assert suppress(boxes, labels, 0.5, 2000).tolist() == expected
    assert seen == [512, 1024, 2000]
    assert suppress(boxes, labels, 0.5, 50).tolist() == expected[:50]
    assert seen[3:] == [512]


def test_nothing_is_dropped_for_lack_of_time():
    generator = torch.Generator().manual_seed(0)
    prediction = torch.rand(16, 4 + 10, 2000, generator=generator)
    prediction[:, :4] *= 300
    start = time.perf_counter()
    rows = non_max_suppression(prediction, 10, conf_thres=0.001, iou_thres=0.7, multi_label=True)
    assert [len(row) for row in rows] == [300] * 16
    assert time.perf_counter() - start < 30


def loaded_torchvision() -> list[str]:
    return [name for name in sys.modules if name.partition(".")[0] == "torchvision"]


@pytest.fixture
def without_torchvision() -> Iterator[None]:
    """Have torchvision looked for again; what a test finds in its place is forgotten."""
    before = {name: sys.modules.pop(name) for name in loaded_torchvision()}
    torchvision_nms.cache_clear()
    yield
    for name in loaded_torchvision():
        del sys.modules[name]
    sys.modules.update(before)
    torchvision_nms.cache_clear()


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param("raise ImportError('No module named torchvision')", id="missing"),
        pytest.param("raise RuntimeError('operator torchvision::nms does not exist')", id="built for another torch"),
        pytest.param(
            "def nms(boxes, scores, threshold):\n    raise RuntimeError('operator torchvision::nms does not exist')",
            id="fails at the call",
        ),
    ],
)
def test_torchvision_missing_or_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_torchvision: None, broken: str
):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("")
    (tmp_path / "torchvision" / "ops.py").write_text(broken + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SettingsError) as caught:
        non_max_suppression(dense([[10.0, 10, 10, 10, 0.9], [11.0, 10, 10, 10, 0.8]]), 1)
    assert_says(caught.value, "torchvision", re.search(r"Error\('(.*)'\)", broken)[1], "'cpu'", torch.__version__)
    assert_says(caught.value, "requirements.txt")


class TestThresholdsByClass:
    ROWS = ([20, 20, 10, 10, 0.5, 0.3], [60, 20, 10, 10, 0.8, 0.3], [20, 60, 10, 10, 0.2, 0.4])

    @pytest.mark.parametrize(
        ("limits", "scores"),
        [([0.25, 0.25], [0.8, 0.5, 0.4]), ([0.6, 0.25], [0.8, 0.4]), ([0.25, 0.6], [0.8, 0.5]), ([0.9, 0.9], [])],
    )
    def test_a_box_has_the_threshold_of_its_class(self, limits: list[float], scores: list[float]):
        (rows,) = non_max_suppression(dense(self.ROWS), 2, limits)
        assert rows[:, 4].tolist() == pytest.approx(scores)

    def test_equal_thresholds_are_one_threshold(self):
        boxes = crowded_boxes(200, 3)
        scores = torch.rand(3, 200, generator=torch.Generator().manual_seed(4))
        centres = torch.cat(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), 1)
        prediction = torch.cat((centres.T, scores))[None]
        for multi_label in (False, True):
            one, many = (
                non_max_suppression(prediction, 3, limits, multi_label=multi_label)[0] for limits in (0.4, [0.4] * 3)
            )
            assert len(one) > 20
            assert torch.equal(one, many)

    def test_they_count_before_suppression(self):
        rows = [[20, 20, 10, 10, 0.5, 0.1], [20, 20, 10, 10, 0.1, 0.4]]
        (kept,) = non_max_suppression(dense(rows), 2, [0.6, 0.25], agnostic=True)
        assert kept[:, 5].tolist() == [1], "a person below its threshold hides nothing"

    def test_several_classes_of_one_box(self):
        (rows,) = non_max_suppression(dense([[20, 20, 10, 10, 0.5, 0.4]]), 2, [0.6, 0.3], multi_label=True)
        assert rows[:, 5].tolist() == [1]
