"""The confusion matrix, by hand."""

from utils.metrics.confusion import ConfusionMatrix

SQUARE = [0, 0, 10, 10]


def test_rows_predicted_columns_true() -> None:
    matrix = ConfusionMatrix(2)
    detections = [[*SQUARE, 0.9, 1], [50, 50, 60, 60, 0.9, 0], [80, 80, 90, 90, 0.2, 0]]
    matrix.update(detections, [SQUARE, [80, 80, 90, 90]], [0, 1])
    assert matrix.matrix.tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]]


def test_best_overlap_wins_not_the_highest_score() -> None:
    matrix = ConfusionMatrix(2)
    matrix.update([[0, 0, 10, 8, 0.9, 0], [*SQUARE, 0.5, 1]], [SQUARE], [1])
    assert matrix.matrix.tolist() == [[0, 0, 1], [0, 1, 0], [0, 0, 0]]


def test_crowd_is_neither_missed_nor_a_false_alarm_of_its_class() -> None:
    matrix = ConfusionMatrix(2)
    matrix.update([[2, 2, 8, 8, 0.9, 0], [2, 2, 8, 8, 0.9, 1]], [[0, 0, 50, 50]], [0], [True])
    assert matrix.matrix.tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 0]]


def test_empty() -> None:
    matrix = ConfusionMatrix(1)
    matrix.update([], [], [])
    matrix.update([], [SQUARE], [0])
    assert matrix.matrix.tolist() == [[0, 0], [1, 0]]
