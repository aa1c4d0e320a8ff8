"""Imports go down: a file imports from lower floors and from its own room, at its top, and never in a circle.

`python tests/test_layering.py` writes the floors into docs/architecture.md.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "architecture.md"
MARKERS = "<!-- floors -->\n", "<!-- /floors -->"
FOLDERS = ("models", "utils", "data", "benchmarks")

FLOORS = [
    "utils.errors utils.wording utils.quiet",
    "utils.ranks",
    "utils.signals utils.listeners",
    "utils.files utils.cli utils.precision utils.image_size utils.onnx_graph utils.geometry",
    "data.images utils.hyperparameters",
    "data.labels",
    "data.augment",
    "data.figures",
    "data.shapes",
    "data.places",
    "data.config",
    "data.folders",
    "data.scan",
    "data.dataset",
    "data.loader",
    "utils.metrics utils.losses",
    "utils.drawing",
    "models.limits models.names",
    "models.registry models.parameters",
    "models.parts models.building",
    "models.common",
    "models.attention",
    "models.blocks models.heads",
    "models.necks",
    "models.catalogue",
    "models.plugins",
    "models.config",
    "models.deploy",
    "models.yolo",
    "models.summary",
    "models.loose_ends models.graph models.checks",
    "models.command models.check",
    "utils.weights utils.optim",
    "utils.checkpoint",
    "utils.inference",
    "utils.explain utils.export utils.training",
    "utils.runs",
    "train val detect export",
    "benchmarks",
]
"""Rooms from the ground up. A room is a file, or a folder with all that is in it."""
STOREYS = {
    "utils.errors": "basics",
    "data.images": "data: from files to batches",
    "utils.metrics": "losses, metrics, drawing",
    "models.limits": "networks: layers, yaml files, the model",
    "utils.weights": "work with networks: weights, prediction, training",
    "utils.runs": "commands",
}
"""Titles of groups of floors, by the first room of their lowest floor; for the drawing only."""
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms.split()}

UPWARD = {("models/yolo.py", "models/command.py"), ("models/yolo.py", "utils/inference")}
"""The only imports that go up: `python -m models.yolo`, and `load` of `from models.yolo import load`."""
SIDE_EFFECT = "models/catalogue.py"
"""The one module that is imported for what it does: it registers the built-in layers."""
SIZE = range(3, 11)
OTHER_SIZES = {"models.attention": "a catalogue: one file for each family of attention layers"}
"""Rooms of other sizes, each with its reason."""


class Import(NamedTuple):
    """One import of a file of ours by another."""

    path: str
    target: str
    line: int
    at_top: bool
    unused: bool


def room_of(path: str) -> str:
    """The room of a file, or its module's name where the table has none."""
    parts = path.removesuffix(".py").removesuffix("/__init__").split("/")
    return next((".".join(parts[:n]) for n in (1, 2) if ".".join(parts[:n]) in FLOOR), ".".join(parts))


def file_of(module: str) -> str | None:
    """The file of a module, or None where there is none: `data.loader` is data/loader.py."""
    stem = module.replace(".", "/")
    return next((path for path in (f"{stem}.py", f"{stem}/__init__.py") if (ROOT / path).is_file()), None)


def modules_of(node: ast.AST) -> Iterator[tuple[str, str | None]]:
    """Yield (file, name that it is bound to) for every file of ours that a statement or call imports."""
    if isinstance(node, ast.Import):
        wanted = [(alias.name, None, alias.asname or alias.name.partition(".")[0]) for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        assert not node.level, f"{ast.unparse(node)}: write the whole path"
        wanted = [(f"{node.module}.{alias.name}", node.module, alias.asname or alias.name) for alias in node.names]
    elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ("import_module", "__import__"):
        constant = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else ""
        wanted = [(constant, None, None)]
    else:
        return
    for module, parent, name in wanted:
        if path := file_of(module) or (file_of(parent) if parent else None):
            yield path, name


def imports_of(path: str) -> list[Import]:
    """Every import of a file of ours in a file, wherever it stands."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return [
        Import(path, target, node.lineno, node in tree.body, path.endswith(".py") and name not in used)
        for node in ast.walk(tree)
        for target, name in modules_of(node)
    ]


def source_files() -> list[str]:
    paths = [*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))]
    return sorted(path.relative_to(ROOT).as_posix() for path in paths)


FILES = source_files()
IMPORTS = [found for path in FILES for found in imports_of(path)]


def goes_up(found: Import, upward: set[tuple[str, str]] = UPWARD) -> bool:
    """Whether an import is one of the two that may go up."""
    return any(found.path == path and found.target.startswith(target) for path, target in upward)


def upward_imports() -> Iterator[str]:
    for found in IMPORTS:
        source, target = room_of(found.path), room_of(found.target)
        down = source == target or FLOOR.get(target, len(FLOORS)) < FLOOR.get(source, -1)
        if not down and not goes_up(found):
            yield f"{found.path}: imports {target}"


def late_imports() -> Iterator[str]:
    for found in IMPORTS:
        if not found.at_top and not goes_up(found):
            yield f"{found.path}: imports {found.target} below its top"


def side_effects() -> Iterator[str]:
    for found in IMPORTS:
        facade = found.path.endswith("__init__.py")
        if found.unused and not facade and SIDE_EFFECT not in (found.path, found.target):
            yield f"{found.path}: imports {found.target} and does not use it"


def circles() -> Iterator[str]:
    """Files that reach themselves: from each file, follow its imports."""
    arrows: dict[str, set[str]] = {path: set() for path in FILES}
    for found in IMPORTS:
        if not goes_up(found):
            arrows[found.path].add(found.target)

    def reach(path: str) -> set[str]:
        seen: set[str] = set()
        waiting = [path]
        while waiting:
            for target in arrows[waiting.pop()] - seen:
                seen.add(target)
                waiting.append(target)
        return seen

    reached = {path: reach(path) for path in FILES}
    for path in FILES:
        for target in arrows[path]:
            if path == target or path in reached[target]:
                yield f"{path}: leads back to itself by {target}"


def homeless_files() -> Iterator[str]:
    for path in FILES:
        if room_of(path) not in FLOOR and room_of(path) not in FOLDERS:
            yield f"{path}: belongs to no room"


def odd_rooms() -> Iterator[str]:
    for room in FLOOR:
        folder = ROOT / room.replace(".", "/")
        number = len([path for path in folder.rglob("*.py") if path.name != "__init__.py"])
        if folder.is_dir() and number not in SIZE and room not in OTHER_SIZES:
            yield f"{room}: {number} files"
        if not folder.is_dir() and not folder.with_suffix(".py").is_file():
            yield f"{room}: does not exist"


def check(problems: Iterator[str]) -> None:
    found = sorted(set(problems))
    assert not found, "\n".join(found)


def test_imports_are_found() -> None:
    assert len(FILES) > 150
    assert len(IMPORTS) > 600
    assert any(goes_up(found) for found in IMPORTS)


def test_imports_go_down() -> None:
    check(upward_imports())


def test_imports_stand_at_the_top() -> None:
    check(late_imports())


def test_no_circles() -> None:
    check(circles())


def test_nothing_is_imported_for_its_side_effect() -> None:
    check(side_effects())


def test_every_file_has_a_room() -> None:
    check(homeless_files())


def test_rooms_hold_a_handful() -> None:
    check(odd_rooms())


def test_every_exception_is_needed() -> None:
    stale = [arrow for arrow in sorted(UPWARD) if not any(goes_up(found, {arrow}) for found in IMPORTS)]
    assert not stale, f"solved, delete the exceptions: {stale}"
    for room in OTHER_SIZES:
        assert len(list((ROOT / room.replace(".", "/")).glob("[!_]*.py"))) not in SIZE, room


def test_faults_are_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "utils").mkdir()
    (tmp_path / "models").mkdir()
    (tmp_path / "utils" / "files.py").write_text(
        "import models.deploy\n\ndef late():\n    import_module('models.deploy')\n"
    )
    (tmp_path / "models" / "deploy.py").write_text("from utils import files\n\nfiles.x\n")
    (tmp_path / "utils" / "drawer.py").write_text("")
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    monkeypatch.setitem(globals(), "FILES", source_files())
    monkeypatch.setitem(globals(), "IMPORTS", [found for path in FILES for found in imports_of(path)])
    assert set(upward_imports()) == {"utils/files.py: imports models.deploy"}
    assert set(late_imports()) == {"utils/files.py: imports models/deploy.py below its top"}
    assert len(set(circles())) == 2
    assert set(side_effects()) == {"utils/files.py: imports models/deploy.py and does not use it"}
    assert set(homeless_files()) == {"utils/drawer.py: belongs to no room"}
    assert "models.yolo: does not exist" in set(odd_rooms())


def diagram() -> str:
    """The floors as text, the highest first; a title above each group."""
    lines, title = [], ""
    for rooms in FLOORS:
        if begins := STOREYS.get(rooms.split()[0]):
            lines += [title, ""] if title else []
            title = begins
        lines.append(f"    {'  '.join(rooms.split())}")
    lines.append(title)
    return "\n".join(["```", *reversed(lines), "```", ""])


def page_with_diagram(page: str) -> str:
    before, start, rest = page.partition(MARKERS[0])
    _old, end, after = rest.partition(MARKERS[1])
    assert start, f"{PAGE}: no line {MARKERS[0]!r}"
    assert end, f"{PAGE}: no line {MARKERS[1]!r}"
    return before + start + diagram() + end + after


def test_page_shows_the_floors() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page_with_diagram(page) == page, "run python tests/test_layering.py"


if __name__ == "__main__":
    PAGE.write_text(page_with_diagram(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
