"""Categories of COCO files and class names are matched by name."""

from pathlib import Path

import pytest

from data.labels.annotation import Id
from data.labels.coco_categories import Category, categories_of, distinct, match_categories, merged_categories
from tests.saying import assert_says
from utils.errors import DataError

PATH = Path("a.json")


def categories(*names: str, used: str = "", first: int = 1) -> list[Category]:
    """Categories with the ids `first`, `first` + 1, …; those that `used` names have objects, or all."""
    return [Category(first + place, name, not used or name in used.split()) for place, name in enumerate(names)]


def test_another_order_is_mapped_and_said() -> None:
    class_of, ids, notes = match_categories(PATH, categories("dog", "car"), ["car", "dog"])
    assert (class_of, ids) == ({"1": 1, "2": 0}, [2, 1])
    assert len(notes) == 1
    assert_says(notes[0], "a.json", "another order", "by name")


def test_the_same_order_is_not_worth_a_line() -> None:
    assert match_categories(PATH, categories("dog", "car"), ["dog", "car"])[2] == []


def test_names_without_a_category_and_categories_without_objects_are_said() -> None:
    class_of, ids, notes = match_categories(PATH, categories("all", "dog", used="dog"), ["cat", "dog"])
    assert (class_of, ids) == ({"2": 1}, [None, 2])
    assert len(notes) == 2
    assert_says(notes[0], 1, "1 'all'")
    assert_says(notes[1], 1, "'cat'")


@pytest.mark.parametrize(
    ("theirs", "used", "names", "facts"),
    [
        (("Hund", "Auto"), "Hund Auto", ["dog", "car"], ("'Hund'", "'Auto'", "'dog'", "'car'")),
        (("dog", "car"), "car", ["dog", "cars"], ("'car'", "'cars'", "Did you mean 'cars'")),
        (("Platelets", "RBC"), "RBC", ["RBC", "platelets"], ("'platelets' and 'Platelets'", "spelling only")),
        (("traffic_light",), "traffic_light", ["traffic light"], ("'traffic_light'", "spelling only")),
        (("caf\u00e9",), "caf\u00e9", ["cafe\u0301"], ("spelling only",)),
        (("dog",), "dog", ["dog", "dog"], ("more than once in names", "'dog'")),
    ],
)
def test_a_name_of_one_side_is_an_error_with_both_lists(
    theirs: tuple[str, ...], used: str, names: list[str], facts: tuple[str, ...]
) -> None:
    with pytest.raises(DataError) as caught:
        match_categories(PATH, categories(*theirs, used=used), names)
    assert_says(caught.value, "a.json", *facts)


def test_of_two_categories_with_one_name_the_one_with_objects_counts() -> None:
    both = [
        Category(0, "fish", False),
        Category(1, "fish", True),
        Category(2, "bird", False),
        Category(3, "bird", False),
    ]
    assert [one.category_id for one in distinct(PATH, both)] == [1, 2]
    both[0].used = True
    with pytest.raises(DataError) as caught:
        distinct(PATH, both)
    assert_says(caught.value, "0, 1", "'fish'")


@pytest.mark.parametrize(
    ("entry", "facts"),
    [
        ("a", ("categories[1]",)),
        ({"id": 2}, ("categories[1]", 2)),
        ({"id": [2], "name": "a"}, ("categories[1]", "[2]")),
        ({"id": None, "name": "a"}, ("categories[1]", "None")),
        ({"id": 2, "name": None}, ("categories[1]", "None")),
        ({"id": 2, "name": "\ud83d"}, ("categories[1]", r"\ud83d")),
        ({"id": 2, "name": " "}, ("categories[1]",)),
        ({"id": "1", "name": "a"}, ("categories[1]", "twice")),
    ],
)
def test_entries_that_are_no_category_stop(entry: object, facts: tuple[object, ...]) -> None:
    with pytest.raises(DataError) as caught:
        categories_of(PATH, {"categories": [{"id": 1, "name": "dog"}, entry], "annotations": []})
    assert_says(caught.value, "a.json", *facts)
    str(caught.value).encode()


@pytest.mark.parametrize(
    ("files", "expected", "said"),
    [
        ([[18, None, 3]], [18, 19, 3], False),
        ([[7, None, None], [7, 90, None]], [7, 90, 91], False),
        ([[7, 8, None], [8, 7, None]], [0, 1, 2], True),  # one name, two ids
        ([[7, None, None], [None, 7, None]], [0, 1, 2], True),  # one id, two names
        ([["x", None, "y"]], ["x", "class 0", "y"], False),
        ([[None, None, None]], [0, 1, 2], False),
    ],
)
def test_ids_of_several_files(files: list[list[Id | None]], expected: list[Id], said: bool) -> None:
    ids, note = merged_categories(files, ["a", "b", "c"])
    assert ids == expected
    assert bool(note) == said
