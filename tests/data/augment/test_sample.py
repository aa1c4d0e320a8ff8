import numpy as np

from data.augment.sample import Sample, by_area, clip, clip_part, index_map, map_points, mirror, polygon_bounds

TRIANGLE = np.array([[-10, 10], [30, 10], [30, 30]], np.float32)
SQUARE = np.array([[4, 4], [12, 4], [12, 12], [4, 12]], np.float32)


def array(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array(rows, np.float32).reshape(-1, 4)


def test_clip_part_cuts_at_the_left_border() -> None:
    clipped = clip_part(TRIANGLE, (100, 100))
    assert sorted(map(tuple, clipped.tolist())) == [(0, 10), (0, 15), (30, 10), (30, 30)]


def test_clip_part_keeps_what_is_inside_and_drops_what_is_outside() -> None:
    assert np.array_equal(clip_part(SQUARE, (20, 20)), SQUARE)
    assert clip_part(SQUARE + 100, (20, 20)).shape == (0, 2)


def test_clip_makes_boxes_of_outlines_tight_and_only_cuts_the_others() -> None:
    boxes, polygons = clip(
        array((-10, 10, 30, 30), (-5, -5, 7, 8), (4, 4, 12, 12)), [[TRIANGLE - (0, 5)], [], [SQUARE]], (100, 100)
    )
    assert boxes.tolist() == [[0, 5, 30, 25], [0, 0, 7, 8], [4, 4, 12, 12]]
    assert [len(polygon) for polygon in polygons] == [1, 0, 1]


def test_clip_follows_the_outline_and_not_its_box() -> None:
    # Only the tip of the triangle reaches into the image: x + y >= 90 for x, y <= 100 cut at 60.
    tip = np.array([[50, 40], [100, -10], [100, 40]], np.float32)
    boxes, _ = clip(array((50, -10, 100, 40)), [[tip]], (60, 100))
    assert boxes.tolist() == [[50, 30, 60, 40]]


def test_clip_empties_an_outline_outside_and_keeps_the_rows() -> None:
    boxes, polygons = clip(array((0, 0, 50, 50), (4, 4, 12, 12)), [[SQUARE + 200], [SQUARE]], (100, 100))
    assert boxes.tolist() == [[0, 0, 0, 0], [4, 4, 12, 12]]
    assert polygons[0] == []


def test_clip_ignores_a_corner_that_the_outline_only_passes_round() -> None:
    # An L round the top left corner, with feet inside at (20..30, 0..10) and (0..10, 20..30).
    outline = [[-10, 30], [-10, -10], [30, -10], [30, 10], [20, 10], [20, -5], [-5, -5], [-5, 20], [10, 20], [10, 30]]
    boxes, _ = clip(array((-10, -10, 30, 30)), [[np.array(outline, np.float32)]], (100, 100))
    assert boxes.tolist() == [[0, 0, 30, 30]]  # both feet
    boxes, _ = clip(
        array((-10, -10, 30, 30)),
        [[np.array([*outline[:4], [20, 10], [20, -5], [-5, -5], [-5, 30]], np.float32)]],
        (100, 100),
    )
    assert boxes.tolist() == [[20, 0, 30, 10]]  # one foot


def test_mirror_moves_boxes_and_outlines_alike() -> None:
    boxes, polygons = mirror(array((4, 4, 12, 12)), [[SQUARE]], 0, 100)
    assert boxes.tolist() == [[88, 4, 96, 12]]
    assert polygon_bounds(polygons).tolist() == boxes.tolist()
    boxes, _ = mirror(array((4, 4, 12, 12)), [[SQUARE]], 1, 50)
    assert boxes.tolist() == [[4, 38, 12, 46]]


def test_map_points_keeps_parts_with_their_objects() -> None:
    moved = map_points([[], [SQUARE, TRIANGLE], [], [SQUARE]], lambda points: points + 1)
    assert [len(polygon) for polygon in moved] == [0, 2, 0, 1]
    assert np.array_equal(moved[1][1], TRIANGLE + 1)


BLANK = np.zeros((16, 24, 3), np.uint8)


def sample(*polygons: list[np.ndarray]) -> Sample:
    """An image of 24 x 16 with these objects; the boxes are those of the outlines."""
    boxes = [np.concatenate((part.min(0), part.max(0))) for (part,) in polygons]
    return Sample(BLANK, np.arange(len(polygons)), array(*boxes), list(polygons))


def test_index_map_marks_the_cells_whose_centre_is_inside() -> None:
    assert np.argwhere(index_map(sample([SQUARE]))).tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]
    assert np.argwhere(index_map(sample([SQUARE + 1.9]))).tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]
    assert np.argwhere(index_map(sample([SQUARE + 2.1]))).tolist() == [[2, 2], [2, 3], [3, 2], [3, 3]]
    assert index_map(sample([SQUARE])).shape == (4, 6)


def test_index_map_draws_later_objects_on_top_and_counts_from_one() -> None:
    drawn = index_map(sample([SQUARE * 2 - 8], [SQUARE - 4]))
    assert drawn[:, :4].tolist() == [[2, 2, 1, 1], [2, 2, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]


def test_index_map_leaves_out_objects_known_by_their_box_only() -> None:
    drawn = index_map(Sample(BLANK, np.zeros(2, np.int64), array((0, 0, 16, 16), (4, 4, 12, 12)), [[], [SQUARE]]))
    assert np.unique(drawn).tolist() == [0, 2]
    assert (drawn == 2).sum() == 4


def test_index_map_gives_an_object_too_small_for_any_centre_one_cell() -> None:
    drawn = index_map(sample([SQUARE / 8 + (8, 4)], [SQUARE / 8 + (22.6, 14.9)]))
    assert np.argwhere(drawn == 1).tolist() == [[1, 2]]
    assert np.argwhere(drawn == 2).tolist() == [[3, 5]]


def test_by_area_puts_the_smallest_last() -> None:
    ordered = by_area(sample([SQUARE - 4], [SQUARE * 2 - 8], [SQUARE / 2], [SQUARE]))
    assert ordered.classes.tolist() == [1, 0, 3, 2]
    assert ordered.boxes_xyxy[0].tolist() == [0, 0, 16, 16]
    assert np.array_equal(ordered.polygons[3][0], SQUARE / 2)
