// The page from top to bottom: its head, what failed, where it comes from.

function drawHead() {
  const done = runs.filter((run) => run.state === "done").length;
  const dates = runs.map((run) => run.started).filter(Boolean).sort();
  const days = [...new Set([dates[0], dates.at(-1)].filter(Boolean).map((text) => date(text).slice(0, 10)))];
  const rest = runs.length - done;
  document.title = `${page.title} ${DASH} report`;
  at("title").textContent = page.title;
  at("summary").textContent = [
    many(rows.length, "configuration"), `${many(runs.length, "run")}${rest ? `, ${rest} of them not done` : ""}`,
    `ranked by ${page.monitor}`, days.join(` ${DASH} `),
  ].filter(Boolean).join(" · ");
  at("leaderboard-note").textContent =
    `One row a configuration; repetitions are put together. ${page.monitor} ranks (${lower ? "lower" : "higher"} is better), `
    + `${page.test_metric} is shown and never ranks. Intervals are at 95 %: for other images and, over several runs, for other seeds and folds.`
    + (rows.some((row) => row.random) ? " Networks with random weights have ranks of their own." : "");
}
function drawSets() {
  if (pages.length < 2) return;
  const choice = html("select", { id: "sets" }, pages.map((one, place) => html("option", { value: place, selected: one === page }, one.data)));
  choice.addEventListener("change", () => { location.hash = `set-${choice.value}`; });
  addEventListener("hashchange", () => { if (location.hash.startsWith("#set-")) location.reload(); });
  at("summary").after(html("label", { class: "sets" }, html("span", { class: "muted" }, "Data set "), choice));
}
function drawWinner() {
  const row = rows[0];
  if (!row || !isNumber(row.val)) {
    at("winner").append(html("p", {}, "No run has come to a number yet."));
    return;
  }
  const fact = (name, value, more) => html("div", {}, html("dt", {}, name), html("dd", {}, value, more && html("small", {}, more)));
  at("winner").append(html("div", { class: "winner" },
    html("div", { class: "muted" }, rows.length > 1 ? `Best of ${rows.length}` : "The run"),
    html("div", { class: "name" }, nameOf(row), " ", row.random ? badge() : null),
    html("dl", { class: "facts" },
      fact(page.monitor, fixed(row.val), row.val_interval && span(row.val_interval)),
      fact(page.test_metric, fixed(row.test), row.test_interval && span(row.test_interval)),
      fact("time", seconds(row.seconds), row.runs.length > 1 ? "mean of its runs" : null),
      fact("parameters", short(row.parameters))),
    copyable(runs[page.best.run].command)));
}
const badge = () => html("span", { class: "badge" }, "random weights");

function drawTheme() {
  const button = at("theme"), root = document.documentElement;
  const dark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const label = () => { button.textContent = dark() ? "Light" : "Dark"; button.setAttribute("aria-label", `Switch to ${dark() ? "light" : "dark"} colours`); };
  try { root.dataset.theme = localStorage.getItem("tl-report-theme") || ""; } catch { /* a browser may keep nothing for files */ }
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    try { localStorage.setItem("tl-report-theme", root.dataset.theme); } catch { /* then only for now */ }
    label();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", label);
  label();
}

const MOST_NAMED = 12;

function drawFailures() {
  const bad = runs.filter((run) => !["done", "running"].includes(run.state));
  if (!bad.length) { at("failures").hidden = true; return; }
  const groups = new Map(); // what ended for the same reason is told once
  for (const run of bad) {
    const reason = JSON.stringify([run.state, run.reason]);
    groups.set(reason, [...(groups.get(reason) || []), run]);
  }
  at("failures-list").append(...[...groups.values()].map((group) => html("div", { class: "failure" },
    html("p", {}, stateBadge(group[0].state), " ", html("strong", {}, group.slice(0, MOST_NAMED).map((run) => run.name).join(", ")),
      group.length > MOST_NAMED ? ` and ${many(group.length - MOST_NAMED, "more run")}` : null),
    group[0].settings === group[0].name ? null : html("p", { class: "muted" }, group.slice(0, MOST_NAMED).map((run) => run.settings).join(", ")),
    html("p", {}, group[0].reason || "no reason given"), group[0].command ? copyable(group[0].command) : null)));
}
function drawOrigin() {
  const distinct = (values) => [...new Set(values.filter(Boolean))];
  const versions = distinct(runs.map((run) => Object.entries(run.versions).map(([name, number]) => `${name} ${number}`).join(", ")));
  const dates = runs.map((run) => run.started).filter(Boolean).sort();
  const fact = (name, values) => [html("dt", {}, name), (values.length ? values : [DASH]).map((value, i) => html("dd", { style: i ? { "grid-column": "2" } : {} }, value))];
  at("origin-list").append(...[
    fact("Runs below", [page.folder]), fact("Data", distinct(runs.map((run) => run.data))), fact("Versions", versions),
    fact("Runs started", [dates.length > 1 && date(dates[0]) !== date(dates.at(-1)) ? `${date(dates[0])} ${DASH} ${date(dates.at(-1))}` : date(dates[0])]),
    fact("Report written", [date(page.written)]), fact("Again with", [page.again]),
  ].flat(2));
}

drawTheme();
drawHead();
drawSets();
drawWinner();
drawTable();
drawFilters();
arrange();
drawCurves();
drawTrade();
drawEffects();
drawAnswers();
drawFailures();
drawOrigin();
markPoints();
