"""The image of a network: every layer and connection in it, boxes apart, lines around boxes, files that open alone."""

import json
import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from itertools import combinations, pairwise
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn

from models import command
from models.graph.html import draw_html
from models.graph.layout import Graph, lay_out
from models.graph.svg import amount, draw_svg, joined_maps, shorten
from models.registry import keep, layer, temporary_layers
from models.yolo import Model
from tests.few import few
from tests.networks import meta_model, tiny_config, tiny_segment_config
from tests.saying import assert_says

NAMES = few(
    ("yolov9-c", "gelan-t", "yolo11n-seg-DynamicConv", "tiny", "tiny dual", "yolov9-e", "gelan-c-dseg"),
    *("yolov9-c", "tiny", "tiny dual"),
)
SVG = "{http://www.w3.org/2000/svg}"


def model_of(name: str) -> Model:
    if not name.startswith("tiny"):
        return meta_model(name)
    with torch.device("meta"):
        return Model(tiny_segment_config(branches=2) if name == "tiny dual" else tiny_config())


@pytest.fixture(scope="module")
def graphs() -> dict[str, Graph]:
    """Graphs by name, made when first asked for."""

    class Made(dict[str, Graph]):
        def __missing__(self, name: str) -> Graph:
            self[name] = lay_out(model_of(name), name)
            return self[name]

    return Made()


@pytest.mark.parametrize("name", NAMES)
def test_every_row_and_connection_is_drawn(name: str, graphs: dict[str, Graph]) -> None:
    model, root = model_of(name), ElementTree.fromstring(draw_svg(graphs[name]))
    boxes = [group for group in root.iter(f"{SVG}g") if group.get("id", "").startswith("box-")]
    assert [int(box.get("data-layer", "")) for box in boxes] == list(range(-1, len(model.rows)))
    for box, row in zip(boxes[1:], model.rows, strict=True):
        texts = {text.get("class"): text.text for text in box.iter(f"{SVG}text")}
        assert (texts["index"], texts["name"], texts.get("label")) == (str(row.index), row.name, row.label)
    drawn = [
        (int(g.get("data-from", "")), int(g.get("data-to", ""))) for g in root.iter(f"{SVG}g") if g.get("data-from")
    ]
    assert sorted(drawn) == sorted({(source, row.index) for row in model.rows for source in row.sources})


@pytest.mark.parametrize("name", NAMES)
def test_boxes_are_apart_and_lines_pass_around_them(name: str, graphs: dict[str, Graph]) -> None:
    graph = graphs[name]
    rectangles = {node.index: (node.x, node.y, node.x + node.width, node.y + node.height) for node in graph.nodes}
    for (a, b, c, d), (e, f, g, h) in combinations(rectangles.values(), 2):
        assert c <= e or g <= a or d <= f or h <= b
    assert all(0 < a and c < graph.width and d < graph.height for a, _, c, d in rectangles.values())
    for edge in graph.edges:
        start, end = rectangles[edge.source], rectangles[edge.target]
        assert any(on_border(edge.points[0], box) for box in (start,)), edge
        assert on_border(edge.points[-1], end), edge
        for (x, y), (to_x, to_y) in pairwise(edge.points):
            assert x == to_x or y == to_y
            for a, b, c, d in rectangles.values():
                assert max(x, to_x) <= a or min(x, to_x) >= c or max(y, to_y) <= b or min(y, to_y) >= d, edge


def on_border(point: tuple[float, float], box: tuple[float, float, float, float]) -> bool:
    (x, y), (a, b, c, d) = point, box
    return a <= x <= c and b <= y <= d and (x in (a, c) or y in (b, d))


@pytest.mark.parametrize("name", NAMES)
def test_lines_of_two_layers_never_run_upon_each_other(name: str, graphs: dict[str, Graph]) -> None:
    segments = [
        (edge, *segment) for edge in graphs[name].edges for segment in pairwise(edge.points) if segment[0] != segment[1]
    ]
    assert len(segments) > len(graphs[name].nodes)
    for (one, (ax, ay), (bx, by)), (other, (cx, cy), (dx, dy)) in combinations(segments, 2):
        if one.source == other.source:
            continue
        if ax == bx == cx == dx:
            assert max(ay, by) <= min(cy, dy) or max(cy, dy) <= min(ay, by), (one, other)
        if ay == by == cy == dy:
            assert max(ax, bx) <= min(cx, dx) or max(cx, dx) <= min(ax, bx), (one, other)


@pytest.mark.parametrize("name", NAMES)
def test_files_need_no_other_and_come_out_alike(name: str, graphs: dict[str, Graph]) -> None:
    again = lay_out(model_of(name), name)
    for draw in (draw_svg, draw_html):
        text = draw(graphs[name])
        assert text == draw(again)
        assert set(re.findall(r"\w+://[^\"'\s)]*", text)) == {"http://www.w3.org/2000/svg"}
        assert not re.search(r"<(link|img|iframe|script\s+src)|@import|url\(", text)


def test_columns_sections_and_what_only_training_needs(graphs: dict[str, Graph]) -> None:
    graph = graphs["yolov9-c"]
    assert [stride for stride, _, _ in graph.columns] == [1, 2, 4, 8, 16, 32]
    assert [name for name, _, _ in graph.sections] == ["backbone", "neck", "head"]
    assert [node.index for node in graph.nodes if node.auxiliary] == list(range(23, 38))
    assert {(edge.source, edge.target) for edge in graph.edges if edge.target == 38 and edge.auxiliary} == {
        (31, 38),
        (34, 38),
        (37, 38),
    }
    head, fused = graph.nodes[39], graph.nodes[31]
    assert (head.section, head.columns, fused.strides, fused.sources) == ("head", (3, 5), [8], [23, 24, 25, 29])
    assert fused.facts["arguments"] == {"index": "[0, 0, 0]"}


def test_rows_cost_what_the_network_costs(graphs: dict[str, Graph]) -> None:
    graph = graphs["yolov9-c"]
    assert sum(node.parameters for node in graph.nodes) == graph.totals["parameters"] == 51_182_080
    assert sum(node.gflops for node in graph.nodes) == pytest.approx(graph.totals["gflops"], rel=1e-12)
    # layer 1: 3 x 3 from 3 to 64 channels at 320 x 320, two operations a multiply-accumulate
    assert graph.nodes[2].gflops == pytest.approx(2 * 27 * 64 * 320**2 / 1e9, rel=1e-12)
    assert (graph.nodes[1].gflops, graph.nodes[13].gflops) == (0, 0)


def test_texts_fit() -> None:
    assert [amount(count) for count in (0, 950, 9_996, 12_345, 999_700, 25_288_768, 157_000_000)] == [
        "0",
        "950",
        "10k",
        "12.3k",
        "1M",
        "25.3M",
        "157M",
    ]
    assert (shorten("RepNCSPELAN4", 12), shorten("RepNCSPELAN4", 6), shorten("ab", 0)) == (
        "RepNCSPELAN4",
        "RepNC…",
        "…",
    )
    assert joined_maps("256x40x40 + 512x40x40") == "256+512 x40x40"
    assert joined_maps("67x80x80 + 67x40x40") == "67x80x80 + 67x40x40"


AWKWARD = '</script><b>&amp;"é]]>'


@pytest.fixture
def awkward() -> Iterator[Graph]:
    """A network whose layer, argument and title hold everything that HTML and XML read otherwise."""

    class Named(nn.Module):
        """Says <b>this</b> & that."""

        def __init__(self, text: str) -> None:
            super().__init__()

        def forward(self, x: Tensor) -> Tensor:
            return x

    config = tiny_config()
    config["backbone"].append([-1, 1, "<Named&>", [AWKWARD], "named_row"])
    with temporary_layers():
        layer(keep, "other", name="<Named&>")(Named)
        yield lay_out(Model(config), AWKWARD)


def test_special_characters(awkward: Graph) -> None:
    root = ElementTree.fromstring(draw_svg(awkward))
    box = next(group for group in root.iter(f"{SVG}g") if group.get("id") == "box-5")
    assert {text.get("class"): text.text for text in box.iter(f"{SVG}text")}["name"] == "<Named&>"
    assert AWKWARD in (box.findtext(f"{SVG}title") or "")
    page = draw_html(awkward)
    assert page.count("</script>") == 2
    held = json.loads(re.search(r'id="network">(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index]
    assert held["layers"][6]["arguments"] == [["text", AWKWARD]]
    assert held["layers"][6]["does"] == ["Says <b>this</b> & that."]


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(tiny_config()))
    for suffix in ("svg", "html"):
        target = tmp_path / "new" / f"out.{suffix}"
        assert command.main([str(tmp_path / "small.yaml"), "--graph", str(target)]) == 0
        assert_says(capsys.readouterr().out, f"{target}: 6 layers of small", "8 connections")
        assert "small</title>" in target.read_text(encoding="utf-8")
    assert [path.name for path in sorted((tmp_path / "new").iterdir())] == ["out.html", "out.svg"]
    assert command.main(["gelan-t", "--json", "--graph", str(tmp_path / "out.svg")]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == 2_442_640


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("out.png", ["'.png'", ".svg or .html"]),
        ("out", ["suffix is ''", ".svg or .html"]),
        ("folder.svg", ["is a folder", "a file"]),
    ],
)
def test_a_file_that_cannot_be_drawn(
    name: str, facts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.svg").mkdir()
    assert command.main(["gelan-t", "--graph", str(tmp_path / name)]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: --graph {tmp_path / name}: ")
    assert message.count("\n") == 1
    assert_says(message, *facts)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.svg"]


# --- in a browser


def opened(page: str, folder: Path, fragment: str = "", script: str = "") -> ElementTree.Element:
    """Return the page's panel as a headless browser has it, after a script; skips where there is none."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium here")
    file = folder / "page.html"
    file.write_text(page.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    done = subprocess.run(
        [
            *(
                browser,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--virtual-time-budget=2000",
                "--window-size=1400,900",
            ),
            *(f"--user-data-dir={folder / 'profile'}", "--dump-dom", file.as_uri() + fragment),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env=os.environ | {"HOME": str(folder)},
    )
    found = re.search(r"<aside.*?</aside>", done.stdout, re.DOTALL)
    assert found, done.stdout[-2000:]
    return ElementTree.fromstring(found[0])


def texts(panel: ElementTree.Element) -> list[str]:
    return [text for text in panel.itertext() if text.strip()]


@pytest.mark.slow
def test_a_link_to_a_layer_opens_it(graphs: dict[str, Graph], tmp_path: Path) -> None:
    panel = texts(opened(draw_html(graphs["yolov9-c"]), tmp_path, "#layer-24"))
    assert panel[0] == "24 CBLinear"
    assert "neck, convolution; only training needs it" in panel
    assert panel[panel.index("out_channels") + 1] == "[256, 512]"
    assert panel[panel.index("shape") + 1] == "256x40x40 + 512x40x40"
    assert panel[panel.index("parameters") + 1] == "393,984 (0.8 %)"
    assert panel[panel.index("Comes from") + 1].startswith("7 RepNCSPELAN4")
    assert [text.partition(" ")[0] for text in panel[panel.index("Goes to") + 1 :: 2]] == ["30", "33"]


@pytest.mark.slow
def test_click_keys_and_texts_within_their_boxes(graphs: dict[str, Graph], tmp_path: Path) -> None:
    page = draw_html(graphs["yolov9-e"])
    click = 'document.querySelector("#box-16 rect").dispatchEvent(new MouseEvent("click", {bubbles: true}));'
    assert texts(opened(page, tmp_path, script=click))[0] == "16 CBFuse"
    key = 'setTimeout(() => dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowLeft"})), 200);'
    assert texts(opened(page, tmp_path, "#layer-16", key))[0] == "10 CBLinear"
    assert texts(opened(page, tmp_path, "#layer-999"))[0] == "yolov9-e"
    measure = """
      const outside = [];
      for (const box of document.querySelectorAll(".box")) {
        const frame = box.querySelector("rect").getBBox();
        const parts = [...box.querySelectorAll("text")].map(t => t.getBBox());
        const right = frame.x + frame.width, bottom = frame.y + frame.height;
        for (const t of parts)
          if (t.x < frame.x || t.x + t.width > right || t.y + t.height > bottom) outside.push(box.id);
        for (const a of parts) for (const b of parts) {
          const one_line = a !== b && a.y + 3 < b.y + b.height && b.y + 3 < a.y + a.height;
          if (one_line && a.x < b.x && a.x + a.width > b.x + 1) outside.push(box.id);
        }
      }
      document.getElementById("panel").textContent = "outside: " + outside.join(" ");"""
    assert texts(opened(page, tmp_path, script=measure)) == ["outside: "]


@pytest.mark.slow
def test_special_characters_stay_text(awkward: Graph, tmp_path: Path) -> None:
    panel = opened(draw_html(awkward), tmp_path, "#layer-5")
    assert texts(panel)[:4] == ["5 <Named&>", "named ", "named_row", "backbone, other; only training needs it"]
    assert "Says <b>this</b> & that." in texts(panel)
    assert AWKWARD in texts(panel)
    assert not list(panel.iter("b"))
