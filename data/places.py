"""Where the paths of a data yaml lead to: the order in which folders are searched."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from data.images.paths import exists, missing_home, named_path, printable, spellings
from utils.errors import DataError
from utils.wording import shown


class Search:
    """Find the paths of a data yaml.

    A relative path is looked for below the root, then below the yaml's folder; then in both without the `../` at its
    start, or without the name of the yaml's folder at its start. The working folder comes last, for a yaml without
    `path`, if none of its splits was found before; a path that begins with `..` is not looked for there.

    Attributes:
        root: folder of `path`, by default the yaml's.
        written: text of each path that was not found.
        notes: a line for each path that was not at the first place.
    """

    def __init__(self, yaml: Path, roboflow: bool) -> None:
        """Args: `roboflow`: Roboflow wrote the yaml, whose `../train` means the folder train beside the yaml."""
        named = named_path(Path.cwd(), str(yaml))
        self.yaml, self.roboflow = yaml, roboflow
        self.bases = tuple(dict.fromkeys((named.parent, named.resolve().parent)))
        self.root, self.root_given = self.bases[0], False
        self.written: dict[Path, str] = {}
        self.notes: list[str] = []

    def set_root(self, value: object) -> None:
        """Find the folder of `path`."""
        if value is None:
            return
        if not isinstance(value, str) or not value:
            raise DataError(f"{self.yaml}: path is {value!r}: expected a folder")
        if remark := missing_home(value):
            raise DataError(f"{self.yaml}: path is {shown(value)}: expected a folder{remark}")
        places = [*self._near(value), *(named_path(Path.cwd(), text) for text in spellings(value))]
        found = next(filter(exists, places), places[0])
        self._say("path", value, found, named_path(self.root, spellings(value)[-1]))
        self.root, self.root_given = found, True

    def resolve(self, texts: Mapping[str, Iterable[str]], key: str = "") -> dict[str, tuple[Path, ...]]:
        """Return the paths of each split, existing or not; `key` is that of the yaml, by default the split."""
        written = [(split, text) for split, items in texts.items() for text in items]
        found = [next(filter(exists, self._near(text)), None) for _, text in written]
        if not self.root_given and not any(found):
            found = [_in_working_folder(text) for _, text in written]
        result: dict[str, tuple[Path, ...]] = {}
        for (split, text), place in zip(written, found, strict=True):
            first = named_path(self.root, spellings(text)[-1])
            if place is None:
                self.written[first] = text
            else:
                self._say(key or split, text, place, first)
            inner = _without_ups(spellings(text)[-1])
            beside = named_path(self.bases[0], inner)
            if place == first != beside and inner not in spellings(text) and exists(beside):
                self.notes.append(
                    f"{self.yaml}: {key or split}: '{printable(text)}' is {printable(place)}; "
                    f"{printable(beside)} exists too and is not read"
                )
            result[split] = (*result.get(split, ()), place or first)
        return result

    def _near(self, text: str) -> Iterator[Path]:
        """Return the places near the yaml where a path may be, the most likely first."""
        for spelling in spellings(text):
            inner = _without_ups(spelling)
            forms = list(dict.fromkeys((inner, spelling) if self.roboflow else (spelling, inner)))
            yield from (named_path(folder, form) for form in forms for folder in (self.root, *self.bases))
            first = Path(inner).parts[:1]
            yield from (named_path(base.parent, inner) for base in self.bases if first == (base.name,))

    def _say(self, key: str, text: str, place: Path, first: Path) -> None:
        if place not in (first, named_path(self.root, text)):
            there = " (that is something else: it is not read)" if exists(first) else ""
            note = f"{self.yaml}: {key}: '{printable(text)}' is {printable(place)}, not {printable(first)}{there}"
            self.notes += [note] if note not in self.notes else []


def _without_ups(text: str) -> str:
    """Return a relative path without the `..` at its start; a path of nothing else as it is."""
    parts = Path(text).parts
    ups = next((count for count, part in enumerate(parts) if part != ".."), 0)
    return str(Path(*parts[ups:])) if ups else text


def _in_working_folder(text: str) -> Path | None:
    places = [named_path(Path.cwd(), form) for form in spellings(text) if not form.startswith("..")]
    return next(filter(exists, places), None)
