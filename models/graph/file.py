"""Write an image of a network, for `python -m models.yolo CFG --graph FILE`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from models.graph.html import draw_html
from models.graph.layout import Graph, lay_out
from models.graph.svg import draw_svg
from models.yolo import Model
from utils.errors import SettingsError
from utils.files import write_text

FORMS: dict[str, Callable[[Graph], str]] = {".svg": draw_svg, ".html": draw_html}


def check_graph_path(path: str | Path) -> None:
    """Check the path of a graph before any work.

    Raises:
        SettingsError: the suffix is unknown, or the path is a folder.
    """
    suffix = Path(path).suffix
    if suffix not in FORMS:
        raise SettingsError(f"--graph {path}: its suffix is {suffix!r}: expected {' or '.join(FORMS)}")
    if Path(path).is_dir():
        raise SettingsError(f"--graph {path}: is a folder: expected the name of a file")


def write_graph(model: Model, summary: dict[str, Any], path: str | Path, title: str) -> str:
    """Write the image of a network; return a line to print.

    Args:
        summary: the result of `summarize`.
        path: an .svg or .html file; replaced if it exists.
    """
    graph = lay_out(model, title, summary)
    write_text(path, FORMS[Path(path).suffix](graph))
    return f"{path}: {len(graph.nodes) - 1} layers of {title}, {len(graph.edges)} connections"
