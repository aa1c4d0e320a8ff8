"""Metrics on cases that can be checked by hand."""

import numpy as np
import pytest

from utils.metrics.detection import (
    DetectionMetrics,
    average_precision,
    box_iou_crowd,
    confidence_curves,
    match_detections,
    smooth,
)

SQUARE = [0, 0, 10, 10]
FALSE_ALARMS = [[90, 90, 99, 99, 0.05, 1]] * 20
NO_CROWD = np.zeros(1, bool)


def score(*images: tuple[list, list, list], crowd: list[bool] | None = None, **settings: int):
    """Metrics of images given as detections, boxes, classes."""
    metrics = DetectionMetrics(**settings)
    for detections, boxes, classes in images:
        metrics.update(detections, boxes, classes, crowd)
    return metrics.compute()


class TestOverlap:
    def test_union_for_objects_own_area_for_crowds(self):
        detection, truth = np.array([[0.0, 0, 4, 4]]), np.array([[2.0, 0, 10, 4]])
        assert box_iou_crowd(detection, truth, NO_CROWD).item() == 8 / (16 + 32 - 8)
        assert box_iou_crowd(detection, truth, ~NO_CROWD).item() == 8 / 16

    def test_empty_and_degenerate(self):
        assert box_iou_crowd(np.zeros((0, 4)), np.ones((3, 4)), np.zeros(3, bool)).shape == (0, 3)
        assert box_iou_crowd(np.array([[5.0, 5, 5, 5]]), np.array([[5.0, 5, 5, 5]]), NO_CROWD).item() == 0


class TestMatching:
    def test_the_more_confident_takes_its_best_truth(self):
        overlaps = np.array([[0.6, 0.7], [0.5, 0.9]])
        matched, _ = match_detections(overlaps, np.zeros(2, bool), np.array([0.5, 0.65]))
        assert matched.tolist() == [[True, True], [True, False]]  # the second falls back on 0.5

    def test_threshold_itself_matches(self):
        assert match_detections(np.array([[0.5]]), NO_CROWD, np.array([0.5]))[0].item()

    def test_of_equal_overlaps_the_last_truth_is_taken(self):
        overlaps = np.array([[0.8, 0.8], [0.0, 0.8]])  # so the second detection goes without
        assert match_detections(overlaps, np.zeros(2, bool), np.array([0.5]))[0].tolist() == [[True, False]]

    def test_crowd_is_second_choice_and_never_used_up(self):
        overlaps = np.array([[0.6, 1.0], [0.0, 0.9], [0.0, 0.8], [0.0, 0.3]])
        matched, ignored = match_detections(overlaps, np.array([False, True]), np.array([0.5]))
        assert matched.tolist() == [[True, False, False, False]]
        assert ignored.tolist() == [[False, True, True, False]]

    @pytest.mark.parametrize("shape", [(0, 0), (0, 2), (3, 0)])
    def test_nothing_to_match(self, shape: tuple[int, int]):
        matched, ignored = match_detections(np.zeros(shape), np.zeros(shape[1], bool))
        assert matched.shape == ignored.shape == (10, shape[0])
        assert not matched.any()
        assert not ignored.any()


class TestAveragePrecision:
    def test_hit_miss_hit_of_two(self):
        # precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1: 51 points at 1 and 50 at 2/3
        matched = np.array([[True, False, True]])
        values = average_precision(np.array([0.9, 0.8, 0.7]), matched, np.zeros_like(matched), 2)
        assert values.mean() == pytest.approx((51 + 50 * 2 / 3) / 101)

    def test_order_of_rows_does_not_matter_but_of_scores(self):
        matched = np.array([[True, True, False]])
        values = average_precision(np.array([0.9, 0.7, 0.8]), matched, np.zeros_like(matched), 2)
        assert values.mean() == pytest.approx((51 + 50 * 2 / 3) / 101)

    def test_ignored_counts_as_nothing(self):
        matched, ignored = np.array([[False, True]]), np.array([[True, False]])
        assert average_precision(np.array([0.9, 0.8]), matched, ignored, 1).mean() == pytest.approx(1)

    def test_recall_never_reached_is_zero(self):
        matched = np.array([[True]])
        assert average_precision(np.array([0.9]), matched, np.zeros_like(matched), 4).mean() == pytest.approx(26 / 101)

    def test_no_detection(self):
        empty = np.zeros((10, 0), bool)
        assert average_precision(np.zeros(0), empty, empty, 3).sum() == 0


class TestCurves:
    def test_precision_and_recall_at_a_confidence(self):
        matched = np.array([True, False, True])
        precision, recall = confidence_curves(np.array([0.9, 0.6, 0.3]), matched, np.zeros(3, bool), 4)
        at = [round(c * 999) for c in (0.1, 0.5, 0.7, 0.95)]
        assert precision[at] == pytest.approx([2 / 3, 1 / 2, 1, 0])
        assert recall[at] == pytest.approx([2 / 4, 1 / 4, 1 / 4, 0])

    def test_no_detection_is_zero(self):
        precision, recall = confidence_curves(np.zeros(0), np.zeros(0, bool), np.zeros(0, bool), 4)
        assert precision.max() == recall.max() == 0

    def test_moving_mean(self):
        assert smooth(np.arange(5.0), 0.4).tolist() == pytest.approx([1 / 3, 1, 2, 3, 11 / 3])
        assert smooth(np.full(1000, 0.3)) == pytest.approx(np.full(1000, 0.3))


class TestDetectionMetrics:
    def test_perfect(self):
        result = score(([[*SQUARE, 0.9, 0]], [SQUARE], [0]))
        assert (result.map50, result.map, result.precision, result.recall) == pytest.approx((1, 1, 1, 1))
        assert result.fitness == pytest.approx(1)

    def test_overlap_of_three_quarters(self):
        result = score(([[0, 0, 10, 7.5, 0.9, 0]], [SQUARE], [0]))
        assert result.class_ap[0].tolist() == pytest.approx([1] * 6 + [0] * 4)
        assert (result.map50, result.map75, result.map, result.fitness) == pytest.approx((1, 1, 0.6, 0.64))

    def test_duplicate_is_a_false_alarm(self):
        boxes = [SQUARE, [50, 50, 60, 60]]
        result = score(([[*SQUARE, 0.9, 0], [*SQUARE, 0.8, 0], [50, 50, 60, 60, 0.7, 0]], boxes, [0, 0]))
        assert result.map == pytest.approx((51 + 50 * 2 / 3) / 101)

    def test_wrong_class_is_no_match(self):
        result = score(([[*SQUARE, 0.9, 1]], [SQUARE], [0]))
        assert result.classes.tolist() == [0]
        assert result.map == result.precision == result.recall == 0

    def test_class_without_truth_is_left_out_of_the_mean(self):
        result = score(([[*SQUARE, 0.9, 0], [*SQUARE, 0.8, 7]], [SQUARE], [0]))
        assert result.map == pytest.approx(1)
        assert result.classes.tolist() == [0]

    def test_class_with_truth_and_no_detection_counts_as_zero(self):
        result = score(([[*SQUARE, 0.9, 0]], [SQUARE, SQUARE], [0, 1]))
        assert result.map == pytest.approx(0.5)

    @pytest.mark.parametrize("of_the_other", [[], [[*SQUARE, 0.05, 1], *FALSE_ALARMS], FALSE_ALARMS])
    def test_class_without_a_detection_at_the_chosen_confidence_does_not_lift_precision(self, of_the_other: list):
        detections = [[*SQUARE, 0.9, 0], [50, 50, 60, 60, 0.3, 0], *of_the_other]
        result = score((detections, [SQUARE, SQUARE], [0, 1]))
        assert result.confidence > 0.3
        assert result.class_precision.tolist() == result.class_recall.tolist() == [1, 0]
        assert (result.precision, result.recall) == (0.5, 0.5)
        assert [row[3] for row in result.table(["a", "b"])] == [0.5, 1, 0]

    def test_crowd_swallows_false_alarms_and_is_not_missed(self):
        detections = [[*SQUARE, 0.5, 0], [52, 52, 60, 60, 0.9, 0], [60, 60, 70, 70, 0.8, 0]]
        result = score((detections, [SQUARE, [50, 50, 100, 100]], [0, 0]), crowd=[False, True])
        assert (result.map, result.precision) == pytest.approx((1, 1))
        assert result.num_instances == 1

    def test_class_with_only_crowds_is_left_out(self):
        assert len(score(([[*SQUARE, 0.5, 0]], [SQUARE], [0]), crowd=[True]).classes) == 0

    def test_max_det_counts_per_class_and_image(self):
        detections = [[90, 90, 99, 99, 0.9, 0], [*SQUARE, 0.8, 0], [*SQUARE, 0.7, 1]]
        result = score((detections, [SQUARE, SQUARE], [0, 1]), max_det=1)
        assert result.class_ap[:, 0].tolist() == pytest.approx([0, 1])

    def test_counts(self):
        result = score(([], [SQUARE, SQUARE], [2, 2]), ([], [SQUARE], [5]), ([], [], []))
        assert (result.num_images, result.num_instances) == (3, 3)
        assert (result.classes.tolist(), result.class_images.tolist(), result.class_instances.tolist()) == (
            [2, 5],
            [1, 1],
            [2, 1],
        )

    def test_table_starts_with_all(self):
        result = score(([[*SQUARE, 0.9, 1]], [SQUARE], [1]))
        assert [row[:3] for row in result.table(["cat", "dog"])] == [("all", 1, 1), ("dog", 1, 1)]

    def test_equal_scores_follow_image_ids_not_calls(self):
        metrics = DetectionMetrics()
        metrics.update([[90, 90, 99, 99, 0.5, 0]], [SQUARE], [0], image_id=2)
        metrics.update([[*SQUARE, 0.5, 0]], [SQUARE], [0], image_id=1)
        assert metrics.compute().map50 == pytest.approx(51 / 101)  # the hit of image 1 comes first

    @pytest.mark.parametrize("images", [[], [([], [], [])], [([[*SQUARE, 0.9, 0]], [], [])]])
    def test_empty(self, images: list):
        result = score(*images)
        assert (result.map, result.map50, result.precision, result.recall, result.fitness) == (0, 0, 0, 0, 0)
        assert len(result.table([])) == 1
