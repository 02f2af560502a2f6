// What the page knows, and the leaderboard: rows that can be sorted, filtered, unfolded and picked.

// Of several data sets the page shows the one that its address names.
const first = JSON.parse(document.getElementById("data").textContent);
const pages = [first, ...first.others];
const page = pages[Number(location.hash.slice(5))] || first;
const { rows, runs, keys, header } = page;
const at = (id) => document.getElementById(id);
const lower = page.better === "min";

const state = { column: 0, down: false, words: "", facets: new Map(), shown: new Set(rows.keys()), picked: new Map() };

// Of values that all begin with one long folder, what comes after it.
const folders = keys.map((_, place) => {
  const given = [...new Set(rows.map((row) => row.values[place]).filter(Boolean))];
  let length = given.length > 1 ? given[0].lastIndexOf("/") + 1 : 0;
  while (length && !given.every((value) => value.startsWith(given[0].slice(0, length)))) length = given[0].lastIndexOf("/", length - 2) + 1;
  return length > 8 ? length : 0;
});
const labelOf = (place, value) => (folders[place] && value ? `…${value.slice(folders[place] - 1)}` : value);

function nameOf(row) {
  const named = row.values.map((value, place) => (value ? (isPlain(value) ? `${keys[place]}=${value}` : labelOf(place, value)) : null));
  return named.filter(Boolean).join(" · ") || (keys.length ? "defaults" : runs[row.runs[0]].name);
}
// A bare number or truth value says nothing without its key.
const isPlain = (value) => /^[-+\d.eE]*$|^(true|false|null)$/i.test(value);
const many = (count, noun, plural = `${noun}s`) => `${grouped.format(count)} ${count === 1 ? noun : plural}`;

const stateBadge = (name) => html("span", { class: ["failed", "interrupted"].includes(name) ? "badge" : "badge plain" }, name);

function date(text) {
  const found = /^(\d{4}-\d\d-\d\d)T(\d\d:\d\d)/.exec(text || "");
  return found ? `${found[1]} ${found[2]}` : DASH;
}
function copyable(command) {
  if (!command) return html("p", { class: "muted" }, "Started from Python; its config.yaml tells what was asked for.");
  const button = html("button", { type: "button", class: "copy", "aria-label": `Copy: ${command}` }, "Copy");
  button.addEventListener("click", async () => {
    button.textContent = (await copied(command)) ? "Copied" : "Select it by hand";
    setTimeout(() => { button.textContent = "Copy"; }, 1600);
  });
  return html("div", { class: "command" }, html("code", {}, command), button);
}
async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch { // not every browser lets a file use the clipboard; the old way still works
    const area = html("textarea", { class: "visually-hidden" });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

const isKey = (column) => column > 0 && column <= keys.length;
const isInterval = (column) => /_interval$/.test(header[column]) && !isKey(column);
const isCount = (column) => ["parameters", "trainable", "features_computed"].includes(header[column]) && !isKey(column);
const numeric = header.map((_, column) => {
  const cells = rows.map((row) => row.cells[column]).filter(Boolean);
  return cells.length > 0 && cells.every((cell) => Number.isFinite(Number.parseFloat(cell)) && (!isKey(column) || Number.isFinite(Number(cell))))
    && header[column] !== "status";
});

// A column that says nothing of any row is left out.
const columns = [...header.keys()].filter((column) => rows.some((row) => row.cells[column]) && (isKey(column) || !["directory", "data"].includes(header[column])));

function drawTable() {
  const head = html("tr", {}, ["pick", "more"].map((name, i) => html("th", { class: name, scope: "col" }, html("span", { class: "visually-hidden" }, ["Curves", "Details"][i]))));
  columns.forEach((column) => {
    const button = html("button", { type: "button", onclick: () => sortBy(column) }, header[column].replaceAll("_", " "));
    head.append(html("th", { scope: "col", class: alignment(column) }, button));
  });
  at("table").append(html("table", {}, html("thead", {}, head), html("tbody", {})));
  rows.forEach((row, place) => { row.element = rowElement(row, place); });
  const curved = [...rows.keys()].filter((place) => curvesOf(rows[place]).length);
  for (const place of (curved.length ? curved : [0]).slice(0, 3)) pick(place, true);
}
const alignment = (column) => (numeric[column] && !isInterval(column) ? "number" : "");

function rowElement(row, place) {
  const box = html("input", { type: "checkbox", "aria-label": `Curves of ${nameOf(row)}`, onchange: () => { pick(place, box.checked); drawPicked(); } });
  const more = html("button", { type: "button", "aria-expanded": "false", "aria-label": `Runs and commands of ${nameOf(row)}`, onclick: () => expand(row, more) }, "▸");
  row.box = box;
  return html("tr", { class: `row${place === 0 && isNumber(row.val) ? " first" : ""}` },
    html("td", { class: "pick" }, box), html("td", { class: "more" }, more), columns.map((column) => cell(row, column)));
}
function cell(row, column) {
  const text = row.cells[column], classes = [alignment(column)];
  let shown = text ? text.replaceAll(" - ", ` ${DASH} `) : DASH;
  if (isKey(column)) {
    classes.push("key");
    shown = labelOf(column - 1, text) || DASH;
  }
  if (header[column] === page.monitor && !isKey(column)) classes.push("main");
  if (isInterval(column) || !text) classes.push("soft");
  if (isCount(column) && text) shown = short(Number(text));
  const made = html("td", { class: classes.join(" ").trim(), title: (isKey(column) || isCount(column)) && text ? text : null }, shown);
  if (header[column] === `val_interval` && row.val_interval) made.prepend(whisker(row));
  if (column === 0 && row.random) made.append(" ", badge());
  return made;
}
// The interval of a row, small, on an axis that all rows share: the range of their means and some more.
function whisker(row) {
  const inside = scale(rows.map((other) => other.val).filter(isNumber), 4, 76, { pad: 0.2 });
  const x = (value) => Math.min(Math.max(inside(value), 0), 80);
  return svg("svg", { class: "whisker", width: 80, height: 12, "aria-hidden": "true" },
    svg("line", { class: "axis", x1: x(row.val_interval[0]), x2: x(row.val_interval[1]), y1: 6, y2: 6 }),
    svg("circle", { class: "val", cx: x(row.val), cy: 6, r: 3 }));
}

function expand(row, button) {
  const open = button.getAttribute("aria-expanded") === "false";
  button.setAttribute("aria-expanded", open);
  button.textContent = open ? "▾" : "▸";
  row.detail?.remove();
  row.detail = open ? html("tr", {}, html("td", { class: "detail", colspan: columns.length + 2 }, row.runs.map(described),
    row.predict && html("div", { class: "run" }, html("p", {}, "The model of the best run:"), copyable(row.predict)))) : null;
  if (open) row.element.after(row.detail);
}
function described(place) {
  const run = runs[place];
  const scores = Object.entries(run.scores).filter(([, value]) => isNumber(value)).map(([name, value]) => `${name} ${fixed(value)}`);
  const facts = [date(run.started), isNumber(run.seconds) ? seconds(run.seconds) : null, run.data && `data: ${run.data}`];
  return html("div", { class: "run" },
    html("p", {}, html("span", { class: "name" }, run.name), " ", run.state === "done" ? null : stateBadge(run.state)),
    run.settings !== run.name ? html("p", {}, run.settings) : null,
    run.reason ? html("p", {}, run.reason) : null,
    html("p", { class: "muted" }, facts.filter(Boolean).join(" · ")),
    scores.length ? html("p", { class: "muted" }, scores.join(" · ")) : null,
    copyable(run.command));
}

function sortBy(column) {
  const best = header[column] === page.monitor || header[column] === page.test_metric;
  if (state.column === column) state.down = !state.down;
  else Object.assign(state, { column, down: best && !lower });
  arrange();
}
function valueAt(row, column) {
  const text = row.cells[column];
  if (!text) return null;
  return numeric[column] ? Number.parseFloat(text) : text;
}
function compared(a, b, column) {
  const one = valueAt(rows[a], column), other = valueAt(rows[b], column);
  if (one === null || other === null) return one === other ? a - b : one === null ? 1 : -1; // missing last, either way
  const order = numeric[column] ? one - other : one.localeCompare(other, "en", { numeric: true });
  return (state.down ? -order : order) || a - b;
}
function arrange() {
  // By rank, those with random weights stay apart, and those without a rank last; by any other column all are one list.
  const apart = (place) => (state.column ? 0 : !rows[place].cells[0] ? 2 : rows[place].random ? 1 : 0);
  const order = [...rows.keys()].sort((a, b) => apart(a) - apart(b) || compared(a, b, state.column));
  const body = at("table").querySelector("tbody");
  const kept = order.filter((place) => state.shown.has(place));
  body.replaceChildren(...kept.flatMap((place) => [rows[place].element, rows[place].detail].filter(Boolean)));
  if (!kept.length) body.append(html("tr", {}, html("td", { class: "empty", colspan: columns.length + 2 }, "No configuration matches.")));
  at("table").querySelectorAll("thead th").forEach((th, place) => {
    if (columns[place - 2] === state.column) th.setAttribute("aria-sort", state.down ? "descending" : "ascending");
    else th.removeAttribute("aria-sort");
  });
  at("told").textContent = `${many(kept.length, "configuration")}, sorted by ${header[state.column]}, ${state.down ? "descending" : "ascending"}`;
}

const MOST_CHIPS = 8;

function drawFilters() {
  if (rows.length < 2) { at("filters").hidden = true; return; }
  const search = html("input", { type: "search", placeholder: "Find…", "aria-label": "Find in configurations, runs and commands" });
  search.addEventListener("input", () => { state.words = search.value.toLowerCase(); filter(); });
  at("filters").append(search);
  keys.forEach((key, place) => facet(key, (row) => [row.values[place]], (value) => labelOf(place, value) || "default"));
  facet("status", (row) => [...new Set(row.runs.map((run) => runs[run].state))], String);
  at("filters").append(html("span", { class: "count", id: "count" }));
  rows.forEach((row) => {
    const words = [...row.cells, ...row.runs.flatMap((run) => [runs[run].name, runs[run].settings, runs[run].command, runs[run].reason, runs[run].data])];
    row.words = words.filter(Boolean).join("\n").toLowerCase();
  });
}
function facet(name, valuesOf, words) {
  const values = [...new Set(rows.flatMap(valuesOf))].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  if (values.length < 2) return;
  const wanted = new Set();
  state.facets.set(name, { wanted, valuesOf });
  if (values.length > MOST_CHIPS) {
    const select = html("select", { "aria-label": name }, html("option", { value: "" }, "all"), values.map((value, i) => html("option", { value: i + 1 }, words(value))));
    select.addEventListener("change", () => { wanted.clear(); if (select.value) wanted.add(values[select.value - 1]); filter(); });
    at("filters").append(html("label", {}, html("span", { class: "legend-text" }, name), select));
    return;
  }
  at("filters").append(html("fieldset", {}, html("legend", {}, name), values.map((value) => {
    const box = html("input", { type: "checkbox", title: value || words(value) });
    box.addEventListener("change", () => { box.checked ? wanted.add(value) : wanted.delete(value); filter(); });
    return html("label", { class: "chip" }, box, html("span", {}, words(value)));
  })));
}
function filter() {
  const facets = [...state.facets.values()].filter(({ wanted }) => wanted.size);
  const fits = (row) => row.words.includes(state.words) && facets.every(({ wanted, valuesOf }) => valuesOf(row).some((value) => wanted.has(value)));
  state.shown = new Set([...rows.keys()].filter((place) => fits(rows[place])));
  at("count").textContent = state.shown.size < rows.length ? `${state.shown.size} of ${rows.length}` : "";
  arrange();
  markPoints();
}

const curvesOf = (row) => row.runs.map((run) => runs[run].curve).filter(Boolean);

// A row keeps its colour for as long as it is picked.
function pick(place, on) {
  if (on) {
    const taken = new Set(state.picked.values());
    let slot = 0;
    while (taken.has(slot)) slot++;
    state.picked.set(place, slot);
  } else state.picked.delete(place);
  rows[place].box.checked = on;
  rows[place].box.style.accentColor = on ? colour(state.picked.get(place)) : "";
}
function drawPicked() {
  drawCurves();
  markPoints();
}
function markPoints() {
  document.querySelectorAll(".point[data-row]").forEach((point) => {
    const place = Number(point.dataset.row);
    point.classList.toggle("out", !state.shown.has(place));
    point.classList.toggle("picked", state.picked.has(place));
  });
}
