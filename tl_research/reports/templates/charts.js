"use strict";
// Elements, scales and the frame of a chart. All text goes in as text: nothing here ever parses HTML.

const DASH = "–";
const DASHES = ["", "7 4", "2 4", "9 3 2 3"];
const COLOURS = 7;

function fill(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, to] of Object.entries(value)) made.style.setProperty(key, to);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}
const html = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

const colour = (slot) => `var(--series-${slot % COLOURS})`;
const dashes = (slot) => DASHES[Math.floor(slot / COLOURS) % DASHES.length];
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

function fixed(value, digits = 3) {
  return isNumber(value) ? value.toFixed(digits) : DASH;
}
function span(interval) {
  return interval ? `${fixed(interval[0])} ${DASH} ${fixed(interval[1])}` : DASH;
}
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const grouped = new Intl.NumberFormat("en");
function short(value) {
  return isNumber(value) ? compact.format(value).replace(/([KMBT])$/, " $1").replace(" K", " k") : DASH;
}
function seconds(value) {
  if (!isNumber(value)) return DASH;
  if (value < 100) return `${value.toFixed(1)} s`;
  return value < 5400 ? `${(value / 60).toFixed(1)} min` : `${(value / 3600).toFixed(1)} h`;
}

function linearTicks(low, high, count) {
  const wanted = (high - low) / count, power = 10 ** Math.floor(Math.log10(wanted));
  const far = (step) => Math.abs(Math.log(step / wanted));
  const step = [1, 2, 5, 10].map((factor) => factor * power).reduce((a, b) => (far(b) < far(a) ? b : a));
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(10)));
  return found;
}
function logTicks(low, high, count) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
    for (const factor of [1, 2, 5]) found.push(Number((factor * 10 ** power).toPrecision(6)));
  const within = found.filter((tick) => tick >= low * 0.999 && tick <= high * 1.001);
  const powers = within.filter((tick) => Number.isInteger(Math.log10(tick)));
  return within.length > count && powers.length > 1 ? powers : within;
}
// A scale from values to pixels, with room at both ends.
function scale(values, from, to, { log = false, pad = 0.05, count = 5, limits = [-Infinity, Infinity] } = {}) {
  const f = log ? Math.log10 : (value) => value;
  let low = Math.min(...values.map(f)), high = Math.max(...values.map(f));
  const room = (high - low) * pad || (log ? 0.3 : Math.abs(high) * 0.1 || 1);
  low = Math.max(low - room, limits[0]); high = Math.min(high + room, limits[1]);
  const place = (value) => from + ((f(value) - low) / (high - low)) * (to - from);
  place.ticks = log ? logTicks(10 ** low, 10 ** high, count) : linearTicks(low, high, count);
  return place;
}
const wide = (values) => values.length > 1 && Math.min(...values) > 0 && Math.max(...values) / Math.min(...values) > 8;

// Draws into a figure at the width that it has, and again whenever that changes.
const drawn = new Map();
const resized = new ResizeObserver((entries) => entries.forEach(({ target }) => redraw(target)));
function chart(title, caption, draw, label = title) {
  const figure = html("figure", {}, html("h3", {}, title), html("div", { class: "plot" }), caption && html("figcaption", {}, caption));
  const plot = figure.querySelector(".plot");
  drawn.set(plot, { draw, label, width: 0 });
  resized.observe(plot);
  return figure;
}
function redraw(plot, force = false) {
  const one = drawn.get(plot);
  const width = Math.round(plot.clientWidth);
  if (!one || !width || (one.width === width && !force)) return;
  one.width = width;
  plot.replaceChildren(one.draw(width, one.label));
}
function redrawAll(within) {
  within.querySelectorAll(".plot").forEach((plot) => redraw(plot, true));
}

// The canvas, its grid and its axes' words. `x.title`, `x.format` and so on are optional.
function frame(width, height, box, x, y, label) {
  const canvas = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "group", "aria-label": label });
  for (const tick of y ? y.place.ticks : []) {
    const at = y.place(tick);
    canvas.append(svg("line", { class: "grid", x1: box.left, x2: box.right, y1: at, y2: at }),
      svg("text", { x: box.left - 8, y: at + 4, "text-anchor": "end" }, y.format(tick)));
  }
  for (const tick of x.place.ticks) {
    const at = x.place(tick);
    if (!y) canvas.append(svg("line", { class: "grid", x1: at, x2: at, y1: box.top, y2: box.bottom }));
    canvas.append(svg("line", { class: "axis", x1: at, x2: at, y1: box.bottom, y2: box.bottom + 4 }),
      svg("text", { x: at, y: box.bottom + 18, "text-anchor": "middle" }, x.format(tick)));
  }
  canvas.append(svg("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }),
    svg("text", { x: box.right, y: box.bottom + 35, "text-anchor": "end" }, x.title));
  return canvas;
}
const path = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
const plain = (value) => String(Number(value.toPrecision(4)));

// Points of a chart are one stop of the Tab key; arrows go from one to the next.
function roving(points) {
  points.forEach((point, place) => {
    point.setAttribute("tabindex", place ? -1 : 0);
    point.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      const to = { Home: 0, End: points.length - 1 }[event.key] ?? (step && (place + step + points.length) % points.length);
      if (to === undefined) return;
      event.preventDefault();
      point.setAttribute("tabindex", -1);
      points[to].setAttribute("tabindex", 0);
      points[to].focus();
    });
  });
}

const tooltip = document.getElementById("tooltip");
function tell(element, title, lines) {
  element.setAttribute("aria-label", [title, ...lines].join(", "));
  const show = () => {
    tooltip.replaceChildren(html("b", {}, title), ...lines.map((line) => html("div", {}, line)));
    tooltip.hidden = false;
    const at = element.getBoundingClientRect(), own = tooltip.getBoundingClientRect();
    const left = Math.min(Math.max(8, at.left + at.width / 2 - own.width / 2), innerWidth - own.width - 8);
    const above = at.top - own.height - 8;
    tooltip.style.left = `${left}px`;
    tooltip.style.top = `${above < 8 ? at.bottom + 8 : above}px`;
  };
  const hide = () => { tooltip.hidden = true; };
  for (const name of ["pointerenter", "focus"]) element.addEventListener(name, show);
  for (const name of ["pointerleave", "blur"]) element.addEventListener(name, hide);
}
addEventListener("keydown", (event) => { if (event.key === "Escape") tooltip.hidden = true; });
addEventListener("scroll", () => { tooltip.hidden = true; }, { passive: true, capture: true });
