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
function read() { const found = /^#layer-(-?\d+)$/.exec(location.hash); choose(found ? +found[1] : null); }
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
