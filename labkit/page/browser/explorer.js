"use strict";
// The frame of every explorer: controls built from a table, one redraw per change, nothing from outside this page.
// A view (memory.js, lora.js, nf4.js) defines makeView(data), which returns {evaluate(state), draw(result, state)}.
// `state` maps a control's name to the index of its value.

const byId = id => document.getElementById(id);
const explorer = { spec: JSON.parse(byId("spec").textContent), state: {}, view: null, result: null };

async function readData() {
  const data = JSON.parse(byId("data").textContent);
  if (typeof data !== "string") return data;
  const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).json();
}

const escapeText = text => String(text).replace(/[&<>"]/g, c => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);
const fill = (template, parts) => template.replace(/\{(\w+)\}/g, (_, name) => parts[name]);
const grouped = number => String(number).replace(/\B(?=(\d{3})+$)/g, ",");

function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const inputs = {
  range: c => element("input", { type: "range", min: 0, max: c.texts.length - 1, step: 1, value: c.start }),
  switch: c => {
    const box = element("input", { type: "checkbox" });
    box.checked = c.start === 1;
    return box;
  },
  menu: c => {
    const menu = element("select", {}, ...c.texts.map((text, index) => element("option", { value: index }, text)));
    menu.value = c.start;
    return menu;
  },
};

function addControl(control) {
  const input = inputs[control.kind](control), id = `control-${control.name}`;
  const shown = element("output", { for: id, id: `value-${control.name}` });
  input.id = id;
  input.name = control.name;
  const settle = () => {
    const index = control.kind === "switch" ? Number(input.checked) : Number(input.value);
    explorer.state[control.name] = index;
    if (control.kind !== "menu") shown.textContent = control.texts[index];
    if (control.kind === "range") input.setAttribute("aria-valuetext", control.texts[index]);
  };
  input.addEventListener("input", () => { settle(); redraw(); });
  const box = element("div", { class: "control", id: `box-${control.name}` }, element("label", { for: id }, control.label));
  box.append(...(control.kind === "menu" ? [input] : control.kind === "range" ? [shown, input] : [input]));
  byId("controls").append(box);
  settle();
}

/** Controls that the present settings do not use: greyed out and out of the tab order. */
function setUnused(names) {
  for (const { name } of explorer.spec.controls) {
    const unused = names.includes(name);
    byId(`control-${name}`).disabled = unused;
    byId(`box-${name}`).classList.toggle("unused", unused);
  }
}

function redraw() {
  explorer.result = explorer.view.evaluate(explorer.state);
  explorer.view.draw(explorer.result, explorer.state);
}

// A second cue beside colour: each fill has its own hatch.
const HATCHES = ["", "M-2 10L10 -2M-2 2L2 -2M6 10L10 6", "M2 2h1.6v1.6h-1.6zM6 6h1.6v1.6h-1.6z", "M-2 -2L10 10M6 -2L10 2M-2 6L2 10",
  "M0 0L8 8M0 8L8 0", "M0 4H8", "M4 0V8M0 4H8", "M4 1.6a2.4 2.4 0 1 0 .01 0"];

function fillDefinitions(colours) {
  return "<defs>" + colours.map((colour, index) =>
    `<pattern id="fill-${index}" width="8" height="8" patternUnits="userSpaceOnUse"><rect width="8" height="8" fill="${colour}"/>` +
    `<path d="${HATCHES[index % HATCHES.length]}" stroke="#fff" stroke-width="1.3" fill="none"/></pattern>`).join("") + "</defs>";
}

const swatch = index => `<svg class="swatch" aria-hidden="true"><rect width="100%" height="100%" fill="url(#fill-${index})"/></svg>`;

/** Pixels of a line of text, near enough to decide whether it fits. */
const textWidth = text => [...text].reduce((sum, letter) => sum + (letter > "\u2e80" ? 12 : 6.8), 0);

/** A step of 1, 2 or 5 times a power of ten that cuts `span` into at most `most` pieces. */
function niceStep(span, most) {
  let step = 10 ** Math.floor(Math.log10(span / most));
  for (const factor of [2, 2.5, 2]) if (span / step > most) step *= factor;
  return step;
}

function drawChart(height, said, body) {
  const chart = byId("chart");
  chart.setAttribute("height", height);
  chart.setAttribute("aria-label", said);
  chart.innerHTML = body;
}

(async () => {
  const data = await readData();
  explorer.view = makeView(data);
  explorer.spec.controls.forEach(addControl);
  document.documentElement.classList.add("live");
  redraw();
  new ResizeObserver(redraw).observe(document.body);
})();
