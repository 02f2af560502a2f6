"use strict";
const MOST_CLASSES = 10;
const at = (id) => document.getElementById(id);
let facts = { class_names: [], max_bytes: Infinity };
let photo = null; // the file that the page shows an answer for
let turn = 0; // answers to an earlier photograph or class come too late

const percent = (p) => (p > 0 && p < 0.001 ? "< 0.1 %" : p < 1 && p > 0.999 ? "> 99.9 %" : `${(100 * p).toFixed(1)} %`);
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;

function say(answer, set = "", error = "") {
  at("answer").textContent = answer;
  at("set").textContent = set;
  at("error").textContent = error;
}

async function post(path, file) {
  let response;
  try {
    response = await fetch(path, { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" } });
  } catch {
    throw new Error("The server does not answer, or the file can no longer be read.");
  }
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  throw new Error(problem.error || `The server answers with status ${response.status}.`);
}

function showImage(id, blob) {
  URL.revokeObjectURL(at(id).src);
  at(id).src = URL.createObjectURL(blob);
}

/** Name the classes of a prediction set in words. */
function inWords(answer) {
  const percents = Math.round(100 * answer.coverage);
  if (!answer.prediction_set) return "This run has no calibration.json: how sure it is has not been checked.";
  const names = answer.prediction_set.length === facts.class_names.length && facts.class_names.length > 1
    ? "any of its classes" : answer.prediction_set.join(" or ");
  return `Prediction set: ${names}. Such sets hold the true class for ${percents} % of images like those of training.`;
}

async function explain(name) {
  const mine = ++turn;
  for (const button of at("classes").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button.dataset.name === name));
  }
  at("caption").textContent = "Looking where it shows …";
  try {
    const response = await post(`explain?class_name=${encodeURIComponent(name)}`, photo);
    const blob = await response.blob();
    if (mine !== turn) return;
    showImage("map", blob);
    at("map").alt = `The photograph as the network sees it, warm where it speaks for ${name}`;
    at("caption").textContent = `Warm: what speaks for ${name}, in the image as the network sees it`;
  } catch (error) {
    if (mine === turn) at("caption").textContent = error.message;
  }
}

function bar(name, probability) {
  const [item, button, length, label, number] = ["li", "button", "i", "span", "span"].map((tag) => document.createElement(tag));
  button.type = "button";
  button.dataset.name = name;
  length.style.width = `${100 * probability}%`;
  label.textContent = name;
  number.textContent = percent(probability);
  button.append(length, label, " ", number);
  button.addEventListener("click", () => explain(name));
  item.append(button);
  return item;
}

async function ask(file) {
  const mine = ++turn;
  at("result").hidden = true;
  at("map").removeAttribute("src");
  at("file").value = "";
  if (file.size > facts.max_bytes) {
    return say("", "", `${file.name}: ${megabytes(file.size)}, more than ${megabytes(facts.max_bytes)}, the most that is taken.`);
  }
  say("Looking …");
  try {
    const answer = await (await post("predict", file)).json();
    if (mine !== turn) return;
    photo = file;
    const ranked = Object.entries(answer.probabilities).sort((a, b) => b[1] - a[1]);
    at("classes").replaceChildren(...ranked.slice(0, MOST_CLASSES).map(([name, p]) => bar(name, p)));
    at("more").textContent = ranked.length > MOST_CLASSES ? `and ${ranked.length - MOST_CLASSES} less probable ones` : "";
    at("photo").parentElement.hidden = false;
    showImage("photo", file);
    at("result").hidden = false;
    say(`${answer.prediction}: ${percent(answer.probability)}`, inWords(answer));
    await explain(answer.prediction);
  } catch (error) {
    if (mine === turn) say("", "", `${file.name}: ${error.message}`);
  }
}

function take(event, files) {
  event.preventDefault();
  at("drop").classList.remove("over");
  if (files.length) ask(files[0]);
  else say("", "", "That is no file; drop or choose a photograph.");
}

at("choose").addEventListener("click", () => at("file").click());
at("file").addEventListener("change", (event) => take(event, event.target.files));
at("photo").addEventListener("error", () => { at("photo").parentElement.hidden = true; }); // a format no browser shows
document.addEventListener("paste", (event) => event.clipboardData.files.length && take(event, event.clipboardData.files));
document.addEventListener("drop", (event) => take(event, event.dataTransfer.files));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  at("drop").classList.add("over");
});
document.addEventListener("dragleave", (event) => event.relatedTarget || at("drop").classList.remove("over"));

fetch("model").then((response) => response.json()).then((known) => {
  facts = known;
  document.title = `Ask ${facts.name}`;
  at("model").textContent = `${facts.name} knows: ${facts.class_names.slice(0, 30).join(", ")}${facts.class_names.length > 30 ? ", …" : ""}`;
});
