// The three kinds of charts: curves of the rows picked, costs, and what each key does.

function drawCurves() {
  const curved = [...state.picked].filter(([place]) => curvesOf(rows[place]).length);
  const without = [...state.picked.keys()].filter((place) => !curvesOf(rows[place]).length && rows[place].runs.some((run) => runs[run].state === "done"));
  at("curves-note").textContent = [
    curved.length ? "Solid: validation. Dotted: training. The dot: the epoch whose weights the run has kept. A line a run; tick rows in the leaderboard to compare them." : "",
    !state.picked.size ? "Tick a row in the leaderboard to see its curves." : "",
    without.length ? `No epochs to draw for ${without.map((place) => nameOf(rows[place])).join("; ")}: the head was solved at once, or there was a single epoch.` : "",
    !curved.length && state.picked.size && !without.length ? "What is picked has no epochs to draw." : "",
  ].filter(Boolean).join(" ");
  at("curves-legend").replaceChildren(...curved.map(([place, slot]) => html("span", {},
    svg("svg", { width: 26, height: 10, "aria-hidden": "true" }, svg("line", { class: "line", x1: 1, x2: 25, y1: 5, y2: 5, "stroke-dasharray": dashes(slot), style: { stroke: colour(slot) } })),
    nameOf(rows[place]))));
  const bases = new Set(curved.flatMap(([place]) => curvesOf(rows[place]).flatMap((curve) => Object.keys(curve)))
    .filter((name) => name.startsWith("val_")).map((name) => name.slice(4)));
  const wanted = page.monitor.slice(4);
  const ordered = [...bases].sort((a, b) => (b === wanted) - (a === wanted)).slice(0, 4);
  at("curves-charts").replaceChildren(...ordered.map((base) => chart(base.replaceAll("_", " "), null, (width, label) => curvesChart(base, curved, width, label), `Learning curves of ${base}`)));
  at("curves-charts").querySelectorAll(".plot").forEach((plot) => redraw(plot));
}
function curvesChart(base, curved, width, label) {
  const lines = curved.flatMap(([place, slot]) => rows[place].runs.filter((run) => runs[run].curve).map((run) => ({ run, slot, place, curve: runs[run].curve })));
  const values = lines.flatMap(({ curve }) => [...(curve[base] || []), ...(curve[`val_${base}`] || [])]).filter(isNumber);
  const epochs = lines.flatMap(({ curve }) => curve.epoch).filter(isNumber);
  const height = 260, box = { left: 46, right: width - 8, top: 20, bottom: height - 42 };
  const limits = base.endsWith("loss") ? [0, Infinity] : [0, 1.005];
  const x = scale(epochs, box.left, box.right, { pad: 0.001, count: Math.min(8, Math.max(...epochs)) });
  const y = scale(values, box.bottom, box.top, { limits });
  const canvas = frame(width, height, box, { place: x, format: (tick) => (Number.isInteger(tick) ? String(tick) : ""), title: "epoch" }, { place: y, format: plain }, label);
  for (const [epoch, stage] of stagesOf(lines)) {
    canvas.append(svg("line", { class: "stage", x1: x(epoch), x2: x(epoch), y1: box.top - 12, y2: box.bottom }),
      svg("text", { x: x(epoch) + 5, y: box.top - 6 }, stage));
  }
  const drawnLine = (curve, name, slot, kind) => {
    const points = (curve[name] || []).map((value, i) => [curve.epoch[i], value]).filter(([e, v]) => isNumber(e) && isNumber(v));
    return svg("path", { class: `line ${kind}${lines.length > 4 ? " thin" : ""}`, d: path(points.map(([e, v]) => [x(e), y(v)])), "stroke-dasharray": kind ? null : dashes(slot), style: { stroke: colour(slot) } });
  };
  lines.forEach(({ curve, slot }) => canvas.append(drawnLine(curve, base, slot, "train")));
  const ends = lines.map(({ curve, slot, place, run }) => {
    canvas.append(drawnLine(curve, `val_${base}`, slot, ""));
    const column = curve[`val_${base}`] || [], known = [...column.keys()].filter((i) => isNumber(column[i]));
    const kept = curve.epoch.indexOf(runs[run].kept);
    if (!known.includes(kept)) return null;
    const point = dot(x(curve.epoch[kept]), y(column[kept]), null, svg("circle", { r: 4, cx: 0, cy: 0, style: { fill: colour(slot), stroke: "var(--card)" } }));
    tell(point, nameOf(rows[place]), [`run ${runs[run].name}`, `kept epoch ${curve.epoch[kept]}: val_${base} ${fixed(column[kept])}`, `last ${fixed(column[known.at(-1)])}`]);
    canvas.append(point);
    return point;
  });
  roving(ends.filter(Boolean));
  return canvas;
}
// Where a later stage begins: [epoch, its name], a few of them.
function stagesOf(lines) {
  const found = new Map();
  for (const { curve } of lines) curve.stage.forEach((stage, i) => { if (i && stage !== curve.stage[i - 1]) found.set(`${curve.epoch[i]} ${stage}`, [curve.epoch[i], stage]); });
  return [...found.values()].slice(0, 4);
}

function dot(x, y, place, ...shapes) {
  const made = svg("g", { class: "point", transform: `translate(${x.toFixed(1)} ${y.toFixed(1)})`, role: "img", "data-row": place },
    svg("circle", { class: "ring", r: 8 }), ...shapes);
  if (place !== null) {
    const toggle = () => { pick(place, !state.picked.has(place)); drawPicked(); };
    made.addEventListener("click", toggle);
    made.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); toggle(); } });
  }
  return made;
}
function told(point, row) {
  tell(point, nameOf(row), [
    `${page.monitor} ${fixed(row.val)} (${span(row.val_interval)})`, `${page.test_metric} ${fixed(row.test)} (${span(row.test_interval)})`,
    `${seconds(row.seconds)} · ${short(row.parameters)} parameters`, row.random ? "random weights" : null].filter(Boolean));
  return point;
}
function drawTrade() {
  const known = [...rows.keys()].filter((place) => isNumber(rows[place].val));
  if (known.length < 2) { at("trade").hidden = true; return; }
  at("trade-title").textContent = `What ${page.monitor.slice(4).replaceAll("_", " ")} costs`;
  at("trade-note").textContent = `Hover, or Tab and then the arrow keys, to read a point; click or Enter picks it. The line steps along the best ${page.monitor} for its cost.`;
  at("trade-legend").replaceChildren(
    html("span", {}, svg("svg", { width: 12, height: 12, "aria-hidden": "true" }, svg("circle", { class: "val", cx: 6, cy: 6, r: 5 })), page.monitor),
    html("span", {}, svg("svg", { width: 12, height: 12, "aria-hidden": "true" }, svg("path", { class: "test", d: "M6 1.5L10.5 6L6 10.5L1.5 6Z" })), `${page.test_metric}, never chosen by`),
    known.some((place) => rows[place].random) ? html("span", {}, svg("svg", { width: 12, height: 12, "aria-hidden": "true" }, svg("circle", { class: "dot", cx: 6, cy: 6, r: 5 })), "random weights") : "");
  const kinds = [["Against time", "seconds", "seconds of the whole run", seconds], ["Against size", "parameters", "parameters", short]];
  const captions = { seconds: "A run that found its features in the store took less than one that computed them." };
  for (const [title, field, axis, format] of kinds) {
    const places = known.filter((place) => isNumber(rows[place][field]));
    if (places.length > 1) at("trade-charts").append(chart(title, captions[field], (width, label) => tradeChart(places, field, axis, format, width, label), `${page.monitor} ${title.toLowerCase()}`));
  }
}
function tradeChart(places, field, axis, format, width, label) {
  const height = 300, box = { left: 46, right: width - 10, top: 12, bottom: height - 42 };
  const values = places.flatMap((place) => [rows[place].val, rows[place].test]).filter(isNumber);
  const costs = places.map((place) => rows[place][field]);
  const x = scale(costs, box.left + 8, box.right - 8, { log: wide(costs), count: width < 420 ? 4 : 6 });
  const y = scale(values, box.bottom - 4, box.top, { pad: 0.08 });
  const canvas = frame(width, height, box, { place: x, format: field === "seconds" ? plain : format, title: axis }, { place: y, format: plain }, label);
  const front = places.filter((place) => !rows[place].random).sort((a, b) => rows[a][field] - rows[b][field]).reduce((kept, place) => {
    const last = kept.at(-1);
    return last === undefined || (lower ? rows[place].val < rows[last].val : rows[place].val > rows[last].val) ? [...kept, place] : kept;
  }, []);
  const steps = front.flatMap((place, i) => [...(i ? [[x(rows[place][field]), y(rows[front[i - 1]].val)]] : []), [x(rows[place][field]), y(rows[place].val)]]);
  canvas.append(svg("path", { class: "front", d: path(steps) }));
  const ordered = [...places].sort((a, b) => rows[a][field] - rows[b][field]);
  const points = ordered.map((place) => {
    const row = rows[place], gap = isNumber(row.test) ? y(row.test) - y(row.val) : null;
    const shapes = gap === null ? [] : [svg("line", { class: "pair", y2: gap }), svg("path", { class: "test", d: `M0 ${gap - 4.5}L4.5 ${gap}L0 ${gap + 4.5}L-4.5 ${gap}Z` })];
    return told(dot(x(row[field]), y(row.val), place, ...shapes, svg("circle", { class: row.random ? "dot" : "val", r: 5 })), row);
  });
  canvas.append(...points);
  roving(points);
  return canvas;
}

function drawEffects() {
  if (!page.effects.length) { at("effects").hidden = true; return; }
  at("effects-note").textContent = `Grey: a configuration each, joined by a line where only this key differs. Blue: their mean ${page.monitor} with the 95 % interval of that mean, which holds what the other keys do, too.`;
  for (const effect of page.effects) {
    const unknown = effect.numeric && effect.groups.some((group) => group.x === null);
    at("effects-charts").append(chart(effect.key, unknown ? "Without the configurations that leave this key at its default." : null,
      (width, label) => (effect.numeric ? curveOf : dotsOf)(effect, width, label), `${page.monitor} by ${effect.key}`));
  }
}
// The configurations that differ in nothing but this key, as lists of [group, row].
function siblings(effect, groups) {
  const place = keys.indexOf(effect.key), families = new Map();
  groups.forEach((group, i) => group.rows.forEach((row) => {
    const family = JSON.stringify(rows[row].values.filter((_, k) => k !== place));
    families.set(family, [...(families.get(family) || []), [i, row]]);
  }));
  return [...families.values()].filter((family) => family.length > 1);
}
// The range that the dots need; intervals of two values are wider than any page and are cut at its edge.
function rangeOf(groups) {
  const dots = groups.flatMap((group) => group.rows.map((row) => rows[row].val));
  const low = Math.min(...dots), high = Math.max(...dots), room = Math.max(high - low, 0.02) * 0.6;
  const ends = groups.flatMap((group) => group.interval || []).filter((end) => isNumber(end) && end > low - room && end < high + room);
  return [...dots, ...ends];
}
const limitsOf = () => (lower ? [0, Infinity] : [0, 1.005]);
let clips = 0;
function clipped(canvas, box, ...content) {
  const id = `clip-${clips++}`;
  canvas.append(svg("clipPath", { id }, svg("rect", { x: box.left, y: box.top - 6, width: box.right - box.left, height: box.bottom - box.top + 6 })), svg("g", { "clip-path": `url(#${id})` }, ...content));
}
const meanLines = (group) => [`mean ${page.monitor} ${fixed(group.mean)}`, `95 % interval ${span(group.interval)}`, many(group.rows.length, "configuration")];

function dotsOf(effect, width, label) {
  const groups = [...effect.groups].sort((a, b) => (lower ? a.mean - b.mean : b.mean - a.mean));
  const words = (group) => labelOf(keys.indexOf(effect.key), group.value) || "default";
  const longest = Math.max(...groups.map((group) => words(group).length));
  const step = 34, box = { left: Math.max(56, Math.min(longest * 7.2 + 20, width * 0.4)), right: width - 10, top: 8, bottom: 8 + groups.length * step };
  const x = scale(rangeOf(groups), box.left + 6, box.right - 4, { count: width < 420 ? 4 : 6, limits: limitsOf() });
  const canvas = frame(width, box.bottom + 40, box, { place: x, format: plain, title: page.monitor }, null, label);
  const middle = (i) => box.top + i * step + step / 2;
  for (const family of siblings(effect, groups)) canvas.append(svg("path", { class: "same", d: path(family.map(([i, row]) => [x(rows[row].val), middle(i)])) }));
  const letters = Math.floor((box.left - 18) / 7.2);
  const points = groups.flatMap((group, i) => {
    const value = words(group);
    canvas.append(svg("text", { class: "label", x: box.left - 12, y: middle(i) + 4, "text-anchor": "end" },
      svg("title", {}, group.value || value), value.length > letters ? `…${value.slice(1 - letters)}` : value));
    const dots = group.rows.map((row) => told(dot(x(rows[row].val), middle(i), row, svg("circle", { class: "dot", r: 4 })), rows[row]));
    canvas.append(...dots);
    if (group.interval) clipped(canvas, box, svg("line", { class: "mean", x1: x(group.interval[0]), x2: x(group.interval[1]), y1: middle(i) + 9, y2: middle(i) + 9 }));
    const mean = dot(x(group.mean), middle(i) + 9, null, svg("path", { class: "mean-dot", d: "M0 -5.5L5.5 0L0 5.5L-5.5 0Z" }));
    tell(mean, `${effect.key}=${group.value || "default"}`, meanLines(group));
    canvas.append(mean);
    return [mean, ...dots];
  });
  roving(points);
  return canvas;
}
function curveOf(effect, width, label) {
  const groups = effect.groups.filter((group) => group.x !== null).sort((a, b) => a.x - b.x);
  const height = 280, box = { left: 46, right: width - 10, top: 12, bottom: height - 42 };
  const xs = groups.map((group) => group.x);
  const x = scale(xs, box.left + 8, box.right - 8, { log: effect.log });
  if (xs.length < 9) x.ticks = xs; // the values that were tried say more than round numbers
  const y = scale(rangeOf(groups), box.bottom - 4, box.top, { limits: limitsOf() });
  const canvas = frame(width, height, box, { place: x, format: plain, title: `${effect.key}${effect.log ? " (log)" : ""}` }, { place: y, format: plain }, label);
  for (const family of siblings(effect, groups)) canvas.append(svg("path", { class: "same", d: path(family.map(([i, row]) => [x(groups[i].x), y(rows[row].val)])) }));
  const held = groups.filter((group) => group.interval);
  const edge = (end) => held.map((group) => [x(group.x), y(group.interval[end])]);
  clipped(canvas, box, held.length > 1 ? svg("path", { class: "band", d: `${path([...edge(0), ...edge(1).reverse()])}Z` }) : null,
    svg("path", { class: "mean", d: path(groups.map((group) => [x(group.x), y(group.mean)])) }));
  const points = groups.flatMap((group) => {
    const dots = group.rows.map((row) => told(dot(x(group.x), y(rows[row].val), row, svg("circle", { class: "dot", r: 3.5 })), rows[row]));
    const mean = dot(x(group.x), y(group.mean), null, svg("path", { class: "mean-dot", d: "M0 -5.5L5.5 0L0 5.5L-5.5 0Z" }));
    tell(mean, `${effect.key}=${group.value}`, meanLines(group));
    return [...dots, mean];
  });
  canvas.append(...points);
  roving(points);
  return canvas;
}
