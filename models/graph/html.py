"""The image of a network (models/graph/svg.py) as one HTML file that opens without a network: a click on a layer shows its facts."""

import json
from typing import Any

from models.graph.layout import Graph, Node
from models.graph.svg import ROLE_COLORS, draw_svg, escape, stride_name, totals_of

STYLE = """
:root { color-scheme: light dark; --back: #ffffff; --text: #0f172a; --soft: #475569; --line: #cbd5e1; --link: #1d4ed8; }
* { box-sizing: border-box; }
body { margin: 0; height: 100vh; display: flex; background: var(--back); color: var(--text); font: 14px/1.45 system-ui, sans-serif; }
#view { flex: 1; overflow: auto; cursor: grab; } #view.held { cursor: grabbing; user-select: none; } #view svg { display: block; }
#panel { width: 400px; flex: none; overflow: auto; padding: 16px 18px; border-left: 1px solid var(--line); overflow-wrap: anywhere; }
#panel h1 { font-size: 19px; margin: 0 0 2px; } #panel h2 { font-size: 12px; margin: 16px 0 3px; color: var(--soft); font-weight: 600; }
#panel p { margin: 3px 0; } #panel code, #panel td { font-family: "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: 12.5px; }
#panel .soft { color: var(--soft); } #panel a { color: var(--link); } #panel table { border-collapse: collapse; }
#panel td { padding: 1px 14px 1px 0; vertical-align: top; } kbd { border: 1px solid var(--line); border-radius: 3px; padding: 0 4px; }
@media (max-width: 800px) { body { flex-direction: column; } #panel { width: auto; height: 42vh; border: 0; border-top: 1px solid var(--line); } }
.box { cursor: pointer; outline: none; } .box:hover rect { stroke-width: 2.5; }
.chosen .box, .chosen .line { opacity: 0.28; }
.chosen .box.on, .chosen .line.on { opacity: 1; } .chosen .box.self rect { stroke-width: 4; } .chosen .line.on path { stroke-width: 3; }
@media print { #panel { display: none; } }
@media (prefers-color-scheme: dark) {
  :root { --back: #0f172a; --text: #e2e8f0; --soft: #94a3b8; --line: #334155; --link: #93c5fd; }
  svg text { fill: #e2e8f0; } svg .note, svg .index, svg .cost { fill: #b6c2d2; } svg .label { fill: #93c5fd; }
  svg .paper { fill: #0f172a; } svg .section { fill: #111c33; } svg .section.even { fill: #16223c; }
  svg .line.next path { stroke: #94a3b8; } svg .line.next polygon { fill: #94a3b8; } svg .line { filter: brightness(1.35); }
DARK}
"""

SCRIPT = """
"use strict";
const network = JSON.parse(document.getElementById("network").textContent);
const view = document.getElementById("view"), panel = document.getElementById("panel"), svg = view.querySelector("svg");
const layers = new Map(network.layers.map(layer => [layer.index, layer]));
const lines = [...svg.querySelectorAll(".line")].map(g => ({g, from: +g.dataset.from, to: +g.dataset.to}));
const natural = [svg.viewBox.baseVal.width, svg.viewBox.baseVal.height];
let chosen = null, zoom = 1;

function add(parent, kind, text, style) {
  const made = document.createElement(kind);
  if (text !== undefined) made.textContent = text;
  if (style) made.className = style;
  parent.append(made);
  return made;
}
function table(rows) {
  const made = add(panel, "table");
  for (const [key, value] of rows) { const row = add(made, "tr"); add(row, "td", key, "soft"); add(row, "td", value); }
}
function links(title, indices) {
  add(panel, "h2", title);
  if (!indices.length) add(panel, "p", "none", "soft");
  for (const index of indices) link(layers.get(index), layers.get(index).shape);
}
function link(layer, note) {
  const p = add(panel, "p");
  add(p, "a", layer.title + (layer.label ? ", " + layer.label : "")).href = "#layer-" + layer.index;
  add(p, "span", " " + note, "soft");
}
function overview() {
  panel.replaceChildren();
  add(panel, "h1", network.title);
  for (const line of network.totals) add(panel, "p", line);
  add(panel, "h2", "How to look at it");
  add(panel, "p", "Click a layer to see all of it. Its inputs and what reads it are highlighted.");
  const keyboard = [["↑ ↓", "layer before, after"], ["← →", "first input, first reader"], ["+ − 0", "zoom; also Ctrl and wheel"], ["Esc", "back"]];
  for (const [keys, what] of keyboard) {
    const p = add(panel, "p"); add(p, "kbd", keys); add(p, "span", " " + what, "soft");
  }
  add(panel, "h2", "Most parameters");
  const most = [...network.layers].sort((a, b) => b.parameters - a.parameters).slice(0, 6);
  for (const layer of most) link(layer, layer.share);
}
function show(layer) {
  panel.replaceChildren();
  add(panel, "h1", layer.title);
  if (layer.label) { const p = add(panel, "p", "named "); add(p, "code", layer.label); }
  if (layer.place) add(panel, "p", layer.place, "soft");
  for (const line of layer.does) add(panel, "p", line);
  add(panel, "h2", "Output at the network's input of " + network.size);
  table([["shape", layer.shape], ["stride", layer.stride]]);
  if (layer.facts) {
    add(panel, "h2", "Cost"); table(layer.cost);
    add(panel, "h2", "Arguments");
    if (!layer.arguments.length) add(panel, "p", "none", "soft"); else table(layer.arguments);
    add(panel, "h2", "Row of the yaml"); add(add(panel, "p"), "code", layer.yaml);
    add(panel, "h2", "What the layer takes"); add(add(panel, "p"), "code", layer.signature);
    links("Comes from", layer.inputs);
  }
  links("Goes to", layer.outputs);
}
function choose(index) {
  chosen = layers.has(index) ? index : null;
  svg.classList.toggle("chosen", chosen !== null);
  const on = new Set([chosen]);
  for (const line of lines) {
    const touches = chosen !== null && (line.from === chosen || line.to === chosen);
    line.g.classList.toggle("on", touches);
    if (touches) { on.add(line.from); on.add(line.to); }
  }
  for (const box of svg.querySelectorAll(".box")) {
    const own = +box.dataset.layer;
    box.classList.toggle("on", on.has(own));
    box.classList.toggle("self", own === chosen);
    box.setAttribute("aria-pressed", own === chosen);
  }
  if (chosen === null) { overview(); return; }
  show(layers.get(chosen));
  panel.scrollTop = 0;
  const box = document.getElementById("box-" + chosen).getBoundingClientRect(), frame = view.getBoundingClientRect();
  if (box.top < frame.top + 40 || box.bottom > frame.bottom - 40) view.scrollTop += box.top - frame.top - frame.height / 2;
  if (box.left < frame.left || box.right > frame.right) view.scrollLeft += box.left - frame.left - frame.width / 2;
}
function go(index) {
  if (index !== null) { location.hash = "layer-" + index; return; }
  history.replaceState(null, "", location.pathname + location.search);
  choose(null);
}
function read() { const found = /^#layer-(-?\\d+)$/.exec(location.hash); choose(found ? +found[1] : null); }
function scale(to, x, y) {
  to = Math.min(4, Math.max(0.15, to));
  const left = (view.scrollLeft + x) / zoom, top = (view.scrollTop + y) / zoom;
  zoom = to;
  svg.setAttribute("width", natural[0] * zoom); svg.setAttribute("height", natural[1] * zoom);
  view.scrollLeft = left * zoom - x; view.scrollTop = top * zoom - y;
}
let held = null, moved = false;
view.addEventListener("pointerdown", e => {
  moved = false;
  if (e.button === 0 && e.pointerType === "mouse") held = [e.clientX, e.clientY, view.scrollLeft, view.scrollTop];
});
addEventListener("pointermove", e => {
  if (!held) return;
  const dx = e.clientX - held[0], dy = e.clientY - held[1];
  if (Math.abs(dx) + Math.abs(dy) > 4) { moved = true; view.classList.add("held"); }
  if (moved) { view.scrollLeft = held[2] - dx; view.scrollTop = held[3] - dy; }
});
addEventListener("pointerup", () => { held = null; view.classList.remove("held"); });
view.addEventListener("click", e => {
  if (moved) { moved = false; return; }
  const box = e.target.closest(".box");
  go(box ? +box.dataset.layer : null);
});
view.addEventListener("wheel", e => {
  if (!e.ctrlKey) return;
  e.preventDefault();
  const frame = view.getBoundingClientRect();
  scale(zoom * Math.exp(-e.deltaY / 500), e.clientX - frame.left, e.clientY - frame.top);
}, {passive: false});
addEventListener("keydown", e => {
  if (e.ctrlKey || e.metaKey || e.altKey) return;
  const layer = layers.get(chosen), middle = [view.clientWidth / 2, view.clientHeight / 2];
  const last = network.layers[network.layers.length - 1].index;
  if (e.key === "Escape") go(null);
  else if (e.key === "ArrowDown") go(layer ? Math.min(chosen + 1, last) : -1);
  else if (e.key === "ArrowUp") go(layer ? Math.max(chosen - 1, -1) : last);
  else if (e.key === "ArrowLeft" && layer) { if (layer.inputs.length) go(layer.inputs[0]); }
  else if (e.key === "ArrowRight" && layer) { if (layer.outputs.length) go(layer.outputs[0]); }
  else if (e.key === "Enter" && e.target.closest && e.target.closest(".box")) go(+e.target.closest(".box").dataset.layer);
  else if (e.key === "+" || e.key === "=") scale(zoom * 1.2, ...middle);
  else if (e.key === "-") scale(zoom / 1.2, ...middle);
  else if (e.key === "0") scale(1, ...middle);
  else return;
  e.preventDefault();
});
for (const box of svg.querySelectorAll(".box")) { box.setAttribute("tabindex", "0"); box.setAttribute("role", "button"); }
addEventListener("hashchange", read);
scale(Math.min(1, Math.max(0.5, view.clientWidth / natural[0])), 0, 0);
read();
"""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main id="view">
{svg}</main>
<aside id="panel" aria-live="polite"></aside>
<script type="application/json" id="network">{network}</script>
<script>{script}</script>
</body>
</html>
"""


def draw_html(graph: Graph) -> str:
    """Return the page."""
    dark = "".join(
        f"  svg .{role} rect {{ fill: color-mix(in srgb, {stroke} 26%, #0f172a); stroke: color-mix(in srgb, {stroke} 60%, #ffffff); }}\n"
        for role, (_, stroke) in ROLE_COLORS.items()
    )
    network = json.dumps(described(graph), ensure_ascii=False).replace(
        "<", "\\u003c"
    )  # nothing in it can end its element
    return PAGE.format(
        title=escape(graph.title),
        style=STYLE.replace("DARK", dark),
        svg=draw_svg(graph),
        network=network,
        script=SCRIPT,
    )


def described(graph: Graph) -> dict[str, Any]:
    """Return what the page's script shows."""
    return {
        "title": graph.title,
        "size": graph.nodes[0].shape,
        "totals": totals_of(graph.totals, len(graph.nodes) - 1),
        "layers": [described_node(node, graph) for node in graph.nodes],
    }


def described_node(node: Node, graph: Graph) -> dict[str, Any]:
    """Return a layer's facts."""
    share = share_of(node.parameters, graph.totals["parameters"])
    facts = node.facts
    described = {
        "index": node.index,
        "title": f"{node.index} {node.name}" if facts else "image",
        "label": node.label,
        "shape": node.shape,
        "stride": ", ".join(stride_name(stride) for stride in node.strides) if facts else "1",
        "does": [facts["does"], *facts["sources"]] if facts else ["What the network is given."],
        "parameters": node.parameters,
        "share": share,
        "inputs": node.sources,
        "outputs": [edge.target for edge in graph.edges if edge.source == node.index],
        "facts": bool(facts),
    }
    if not facts:
        return described
    needed = "only training needs it" if node.auxiliary else "training and inference need it"
    return described | {
        "place": f"{node.section}, {node.role}; {needed}",
        "cost": [
            ["parameters", f"{node.parameters:,} ({share})"],
            ["GFLOPs", f"{node.gflops:.4g} ({share_of(node.gflops, graph.totals['gflops'])})"],
            *([["repeats", str(facts["repeats"])]] if facts["repeats"] > 1 else []),
        ],
        "arguments": list(facts["arguments"].items()),
        "yaml": facts["yaml"],
        "signature": facts["signature"],
    }


def share_of(part: float, whole: float) -> str:
    """Return a share in percent."""
    return f"{100 * part / whole:.1f} %" if whole else "0.0 %"
