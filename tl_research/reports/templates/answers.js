// The answers of the best run: confusions, each class, how far to trust it, images it was wrong or unsure about.

const MOST_CLASSES = 30;

function drawAnswers() {
  const best = page.best, total = best ? best.counts.reduce((sum, [, , count]) => sum + count, 0) : 0;
  if (!total && !best?.mistakes.length) { at("answers").hidden = true; return; }
  const row = rows.find((one) => one.runs.includes(best.run));
  at("answers-note").textContent = `Run ${runs[best.run].name} (${nameOf(row)}), chosen by ${page.monitor}, on ${many(total, "test image")}, ${best.num_wrong} of them wrong.`;
  at("answers-note").after(copyable(row.predict));
  at("confusion").append(best.classes.length > MOST_CLASSES ? confusions(best) : matrix(best));
  if (best.classes.length > MOST_CLASSES) at("confusion-title").textContent = "Commonest confusions";
  if (best.scores.length) at("scores").append(html("h3", {}, "Class by class"), html("div", { class: "scroll" }, classTable(best)));
  at("trust").append(...trustCharts(best));
  at("mistakes").append(html("h3", {}, "Worst mistakes"), mistakes(best, best.mistakes));
  if (best.unsure.length) at("mistakes").append(html("h3", {}, "Least sure"), mistakes(best, best.unsure));
}
function classTable({ classes, scores }) {
  const head = ["class", "images", "precision", "recall", "95 % interval", "F1"];
  const cells = (one) => [String(one.count), fixed(one.precision), fixed(one.recall), span(isNumber(one.recall) ? [one.recall_low, one.recall_high] : null), fixed(one.f1)];
  return html("table", { class: "scores" }, html("thead", {}, html("tr", {}, head.map((name) => html("th", { scope: "col" }, name)))),
    html("tbody", {}, classes.map((name, place) => html("tr", {}, html("th", { scope: "row", title: name }, name), cells(scores[place]).map((cell) => html("td", {}, cell))))));
}
// How far to trust the answers: one class against the rest, and how sure against how right.
function trustCharts({ curves, reliability, temperature }) {
  const steps = (ys, kind) => [...(kind === "roc" ? [[0, 0]] : []), ...ys.map((y, i) => [i / (ys.length - 1), y])];
  const dots = (bins) => bins.map((bin) => [bin.confidence, bin.accuracy, bin.num]);
  const lines = (kind) => (curves[kind] || []).map((curve, slot) => ({ slot, name: curve.name, note: fixed(curve.area), points: steps(curve.y, kind) }));
  const kinds = [
    ["ROC", "false positive rate", "true positive rate", lines("roc"), "Each class against the rest; in brackets the area below."],
    ["Precision and recall", "recall", "precision", lines("precision_recall"), "Each class against the rest; in brackets the average precision."],
    ["Reliability", "confidence", "accuracy", reliability ? [
      { slot: 1, name: "as it is", dots: true, points: dots(reliability.plain) },
      { slot: 0, name: "with the temperature", note: fixed(temperature, 2), dots: true, points: dots(reliability.calibrated) }] : [],
    "How often it is right, by how sure it is. On the diagonal it is as sure as it should be; below, too sure. The larger a dot, the more images."],
  ];
  return kinds.filter(([, , , found]) => found.length).map(([title, across, up, found, caption]) => {
    const figure = chart(title, caption, (width, label) => unitChart(across, up, found, title !== "Precision and recall", width, label), `${title} of the test images`);
    figure.querySelector("h3").after(html("div", { class: "legend" }, found.map(({ slot, name, note }) => html("span", {}, swatch(slot), note ? `${name} (${note})` : name))));
    return figure;
  });
}
const swatch = (slot) => svg("svg", { width: 26, height: 10, "aria-hidden": "true" }, svg("line", { class: "line", x1: 1, x2: 25, y1: 5, y2: 5, "stroke-dasharray": dashes(slot), style: { stroke: colour(slot) } }));
function unitChart(across, up, lines, diagonal, width, label) {
  const height = Math.min(width, 340), box = { left: 46, right: width - 8, top: 10, bottom: height - 42 };
  const x = scale([0, 1], box.left, box.right, { pad: 0.0001, count: 5 }), y = scale([0, 1], box.bottom, box.top, { pad: 0.0001, count: 5 });
  const canvas = frame(width, height, box, { place: x, format: plain, title: across }, { place: y, format: plain }, `${label}: ${up} over ${across}`);
  if (diagonal) canvas.append(svg("line", { class: "stage", x1: x(0), x2: x(1), y1: y(0), y2: y(1) }));
  const points = [];
  for (const { slot, points: ends, name, dots } of lines) {
    canvas.append(svg("path", { class: "line", d: path(ends.map(([a, b]) => [x(a), y(b)])), "stroke-dasharray": dashes(slot), style: { stroke: colour(slot) } }));
    const total = ends.reduce((sum, [, , num]) => sum + num, 0);
    for (const [a, b, num] of dots ? ends : []) {
      const point = dot(x(a), y(b), null, svg("circle", { r: 3 + 9 * Math.sqrt(num / total), style: { fill: colour(slot), "fill-opacity": 0.5 } }));
      tell(point, name, [`${many(num, "image")}`, `${across} ${fixed(a)}`, `${up} ${fixed(b)}`]);
      points.push(point);
    }
  }
  canvas.append(...points);
  roving(points);
  return canvas;
}
function matrix({ classes, counts }) {
  const found = new Map(counts.map(([label, prediction, count]) => [JSON.stringify([label, prediction]), count]));
  const count = (label, prediction) => found.get(JSON.stringify([label, prediction])) || 0;
  const head = html("thead", {}, html("tr", {}, html("td", {}), html("th", { class: "axis", colspan: classes.length, scope: "colgroup" }, "predicted"), html("td", {})),
    html("tr", {}, html("th", { class: "axis", scope: "col" }, "true"), classes.map((name) => html("th", { scope: "col", title: name }, name)), html("th", { class: "axis", scope: "col" }, "recall")));
  const body = classes.map((label) => {
    const sum = classes.reduce((all, prediction) => all + count(label, prediction), 0);
    return html("tr", {}, html("th", { class: "side", scope: "row", title: label }, label), classes.map((prediction) => {
      const here = count(label, prediction), share = sum ? here / sum : 0, right = label === prediction;
      const tint = `color-mix(in oklab, var(${right ? "--accent" : "--bad"}) ${Math.round(share * (right ? 42 : 60) + (here && !right ? 8 : 0))}%, var(--card))`;
      return html("td", { class: here ? "" : "zero", style: { background: tint }, title: `${label}, predicted ${prediction}: ${here} of ${sum}` }, String(here));
    }), html("td", { class: "recall" }, sum ? `${(100 * count(label, label) / sum).toFixed(0)} %` : DASH));
  });
  return html("table", { class: `matrix${classes.length > 10 ? " many" : ""}` }, html("caption", { class: "visually-hidden" }, "Confusion matrix, counts of test images"), head, html("tbody", {}, body));
}
// Too many classes for a matrix: what is confused most.
function confusions({ counts }) {
  const wrong = counts.filter(([label, prediction]) => label !== prediction).sort((a, b) => b[2] - a[2]).slice(0, 20);
  return html("table", { class: "matrix" }, html("caption", { class: "visually-hidden" }, "The commonest confusions"),
    html("thead", {}, html("tr", {}, ["true", "taken for", "times"].map((name) => html("th", { scope: "col" }, name)))),
    html("tbody", {}, wrong.map(([label, prediction, count]) => html("tr", {}, html("th", { class: "side", scope: "row" }, label), html("th", {}, prediction), html("td", {}, String(count))))));
}
function mistakes({ num_wrong }, found) {
  if (!found.length) return html("p", { class: "muted" }, num_wrong ? "This run kept none." : "None: every test image was answered rightly.");
  const pictured = found.some((one) => one.jpeg || one.map);
  const picture = (jpeg, alt) => html("img", { src: `data:image/jpeg;base64,${jpeg}`, alt });
  return html("ol", { class: "mistakes" }, found.map((one) => html("li", { class: one.map ? "mapped" : null },
    pictured && html("div", { class: "picture" }, one.jpeg ? picture(one.jpeg, `${one.label}, taken for ${one.prediction}`) : one.map ? null : "no picture kept",
      one.map ? picture(one.map, `Warm: what speaks for ${one.prediction}, in the image as the network sees it`) : null),
    html("div", { class: one.label === one.prediction ? "right" : "wrong" }, `${one.prediction} ${isNumber(one.probability) ? `${(100 * one.probability).toFixed(one.probability > 0.995 ? 1 : 0)}\u00a0%` : ""}`),
    html("div", {}, `is ${one.label}`),
    html("div", { class: "path", title: one.path }, html("bdi", {}, one.path)))));
}
