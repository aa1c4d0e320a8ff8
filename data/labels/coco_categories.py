"""Ids and categories of COCO files; categories are matched with class names by name."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.labels.annotation import Id
from data.labels.class_names import advice, difference, loose, twice
from utils.errors import DataError
from utils.wording import listed, shown


@dataclass(slots=True)
class Category:
    """One entry of a COCO file's categories; `used` tells whether an annotation has it."""

    category_id: Id
    name: str
    used: bool


def id_key(value: object) -> str | None:
    """Return the text by which ids are compared, so that 7, 7.0 and "7" are one id; None for what is no id."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str):
        return value if is_writable(value) else None
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def is_writable(text: str) -> bool:
    """Tell whether a text can be a file name and be written: it has no null and no half of a character."""
    return "\0" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)


def are_ids(value: object, count: int) -> bool:
    """Tell whether a value of a file is a list of `count` different ids."""
    if not isinstance(value, list) or len(value) != count:
        return False
    keys = [id_key(one) if isinstance(one, int | str) else None for one in value]
    return None not in keys and len(set(keys)) == count


def in_message(value: object) -> str:
    """Return a value of the file for a message: a short text in quotes, a short list as it stands."""
    if isinstance(value, str):
        return f"'{shown(value)}'" if is_writable(value) else ascii(value[:40])
    if isinstance(value, list) and len(value) <= 8 and all(isinstance(one, int | float | str) for one in value):
        return f"[{', '.join(map(in_message, value))}]"
    return str(value) if value is None or isinstance(value, bool) else shown(value)


def categories_of(path: Path, content: dict[str, list]) -> list[Category]:
    """Read the categories, and see which of them annotations have."""
    used = {id_key(one.get("category_id")) for one in content["annotations"] if isinstance(one, dict)}
    categories: dict[str, Category] = {}
    for position, entry in enumerate(content["categories"]):
        where = f"{path}: categories[{position}]"
        category_id, name = (entry.get("id"), entry.get("name")) if isinstance(entry, dict) else (None, None)
        key = id_key(category_id)
        if key is None or isinstance(name, bool) or not isinstance(name, str | int):
            raise DataError(
                f"{where}: id {in_message(category_id)}, name {in_message(name)}: "
                "expected an id (number or text) and a name"
            )
        if not is_writable(str(name)) or not str(name).strip():
            raise DataError(f"{where}: name {name!a}: expected whole characters; correct the name")
        if key in categories:
            raise DataError(f"{where}: id {key} stands twice: expected different ids")
        categories[key] = Category(key if isinstance(category_id, str) else int(key), str(name), key in used)
    if not categories:
        raise DataError(f"{path}: categories: 0 different ids in 0 entries: expected id and name of each class")
    return list(categories.values())


def distinct(path: Path, categories: list[Category]) -> list[Category]:
    """Leave out categories without objects that have the name of another one.

    Raises:
        DataError: two categories with objects have one name.
    """
    if repeated := twice([one.name for one in categories if one.used]):
        ids = [one.category_id for one in categories if one.name == repeated[0]]
        raise DataError(
            f"{path}: categories {listed(ids)} are all named {repeated[0]!r} and have objects: "
            "expected one category for each name; give them different names or one id"
        )
    kept: dict[str, Category] = {}
    for one in categories:
        if one.name not in kept or one.used:
            kept[one.name] = one
    return [one for one in categories if kept[one.name] is one]


def match_categories(
    path: Path, categories: list[Category], names: Sequence[str]
) -> tuple[dict[str | None, int], list[Id | None], list[str]]:
    """Match categories and class names by name.

    Returns:
        The class index by category, under its `id_key`; the category id by class, None for a class without a category;
        and lines to print about another order and about names of one side only.
    Raises:
        DataError: a category with objects has no name, or names are equal except for case or white space.
    """
    known = distinct(path, categories)
    theirs = [one.name for one in known]
    foreign = [one for one in known if one.name not in names]
    lacking = [name for name in names if name not in theirs]
    alike = {loose(name) for name in lacking}
    if any(one.used or loose(one.name) in alike for one in foreign) or twice(names):
        raise DataError(
            f"{path}: its categories and the class names differ: {difference(theirs, names, 'categories', 'names')}: "
            "expected every category with objects among the names (those of the data yaml, or of its first COCO "
            f"file): write them alike. {advice(theirs, names)}".rstrip()
        )
    index_of = {name: index for index, name in enumerate(names)}
    shared = [one for one in known if one.name in index_of]
    class_of: dict[str | None, int] = {id_key(one.category_id): index_of[one.name] for one in shared}
    id_of = {index_of[one.name]: one.category_id for one in shared}
    notes = []
    order = [index_of[one.name] for one in shared]
    if order != sorted(order):
        notes.append(f"{path}: its categories stand in another order than the class names: matched by name")
    left_out = [f"{one.category_id} {one.name!r}" for one in categories if one not in shared]
    if left_out:
        notes.append(f"{path}: {len(left_out)} categories without objects are left out: {listed(left_out)}")
    if lacking:
        notes.append(
            f"{path}: no category for {len(lacking)} of the {len(names)} class names: {listed(map(repr, lacking))}"
        )
    return class_of, [id_of.get(index) for index in range(len(names))], notes


def merged_categories(files: Sequence[Sequence[Id | None]], names: Sequence[str]) -> tuple[list[Id], str]:
    """Return one category id for each class from those of several files, and a note if the files disagree.

    A class without a category gets a free id. Where files disagree, the class indices are the ids.
    """
    found: list[dict[str, Id]] = [{} for _ in names]
    for categories in files:
        for index, category in enumerate(categories):
            if category is not None:
                found[index][str(category)] = category
    own = [next(iter(ids.values())) if ids else None for ids in found]
    given = [category for category in own if category is not None]
    if any(len(ids) > 1 for ids in found) or len(set(map(str, given))) < len(given):
        note = "category ids differ between the files of this split: result files use the class index, 0 for the first"
        return list(range(len(names))), note
    if any(isinstance(category, str) for category in given):
        free = iter([f"class {index}" for index in range(len(names))])
        return [next(free) if category is None else category for category in map(_as_text, own)], ""
    numbers = [category for category in given if isinstance(category, int)]
    first = max(numbers, default=-1) + 1
    count = iter(range(first, first + len(names)))
    return [next(count) if category is None else category for category in own], ""


def _as_text(category: Id | None) -> Id | None:
    return None if category is None else str(category)
