// The page: controls, display and messages. The model runs in worker.js.

import { bytesOf, hottest, overlaid, projected } from "./drawing.js";

const SHOWN = 10;
const $ = (id) => document.getElementById(id);

let site;
let ask;
let next = null;
let running = false;
let view = null; // the image shown, its classes and the heatmap of one of them

function say(text) {
  $("status").textContent = text;
  $("status").hidden = text === "";
}

function complain(text) {
  $("error").textContent = text;
  $("error").hidden = text === "";
}

/** What this browser lacks, in one sentence; null if it lacks nothing. */
function lack() {
  if (typeof WebAssembly !== "object") {
    return "This browser has no WebAssembly, which the model needs: use another browser, or allow it in the settings.";
  }
  const missing = ["Worker", "OffscreenCanvas", "createImageBitmap", "BigInt64Array"].find((name) => !(name in window));
  return missing ? `This browser is too old, it has no ${missing}: use a current one.` : null;
}

/** Start the worker; returns a function that sends it one request at a time. */
function started() {
  // Started from a blob, the worker has the policy of this page, so it cannot send data to other servers either.
  const source = `import ${JSON.stringify(new URL("./worker.js", import.meta.url).href)};`;
  const address = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  const worker = new Worker(address, { type: "module" });
  let settle = null;
  worker.onmessage = ({ data }) => {
    if ("progress" in data) $("progress").value = data.progress;
    else if ("error" in data) settle.reject(new Error(data.error));
    else settle.resolve(data.answer);
  };
  worker.onerror = () => settle.reject(new Error("A part of this page is missing or cannot run: reload the page."));
  return (kind, request) =>
    new Promise((resolve, reject) => {
      settle = { resolve, reject };
      worker.postMessage({ kind, ...request });
    });
}

async function open() {
  const missing = lack();
  if (missing !== null) throw new Error(missing);
  say("Loading the model …");
  const answer = await fetch(new URL("./site.json", import.meta.url)).catch(() => null);
  site = answer?.ok ? await answer.json().catch(() => null) : null;
  if (site === null) throw new Error("This page is incomplete, site.json is missing or damaged: build the page again.");
  document.title = site.title;
  document.querySelector("h1").textContent = site.title;
  for (const name of Object.keys(site.colormaps)) $("colormap").add(new Option(name));
  $("progress").max = site.model.bytes;
  $("loading").hidden = false;
  ask = started();
  $("file").disabled = false;
  await ask("open", { site });
  say("The model is ready.");
}

const opened = open();
opened
  .catch((error) => {
    $("file").disabled = true;
    say("");
    complain(error.message);
  })
  .finally(() => ($("loading").hidden = true));

/** Run a job after the current one; of several waiting jobs, only the latest runs. */
async function enqueue(job) {
  next = job;
  if (running) return;
  running = true;
  $("results").setAttribute("aria-busy", "true");
  try {
    await opened;
    for (; next !== null; ) {
      const job = next;
      next = null;
      await job().catch((error) => {
        say("");
        complain(error.message);
      });
    }
  } catch {
    next = null; // the model did not open; the error is shown already
  }
  $("results").setAttribute("aria-busy", "false");
  running = false;
}

function choose(file) {
  if ($("file").disabled) return; // the reason is shown already
  complain("");
  view = null;
  $("results").hidden = true;
  say(`Explaining ${file.name} …`);
  enqueue(async () => {
    const answer = await ask("look", { file });
    view = { ...answer, name: file.name, values: valuesOf(answer.scores) };
    view.order = [...view.values.keys()].sort((a, b) => view.scores[b] - view.scores[a] || a - b);
    $("find").value = "";
    $("finder").hidden = view.order.length <= SHOWN;
    list();
    $("results").hidden = false;
    show();
  });
}

function chooseClass(index) {
  complain("");
  const current = view;
  enqueue(async () => {
    const answer = await ask("explain", { index });
    if (view !== current) return;
    Object.assign(view, answer);
    mark();
    show();
  });
}

/** The values shown for the scores: probabilities if they are known. */
function valuesOf(scores) {
  const way = {
    given: () => scores,
    exponential: () => scores.map(Math.exp),
    sigmoid: () => scores.map((score) => 1 / (1 + Math.exp(-score))),
    softmax: () => {
      const largest = scores.reduce((a, b) => Math.max(a, b));
      const parts = scores.map((score) => Math.exp(score - largest));
      const sum = parts.reduce((a, b) => a + b);
      return parts.map((part) => part / sum);
    },
  };
  return way[site.scores.way]();
}

const named = (index) => site.labels?.[index] || `class ${index}`;
const written = (value) => (site.scores.probabilities ? `${(100 * value).toFixed(1)} %` : value.toPrecision(3));

/** List the top classes, or the top classes among those whose names match the search. */
function list() {
  const query = $("find").value.trim().toLowerCase();
  const matches = view.order.filter((index) => named(index).toLowerCase().includes(query));
  $("classes").replaceChildren(...matches.slice(0, SHOWN).map(entry));
  const rest = matches.length - SHOWN;
  $("more").textContent = matches.length === 0 ? "No class matches." : rest > 0 ? `${rest} more: find them by name.` : "";
  mark();
}

function entry(index) {
  const part = (kind, text) => {
    const span = document.createElement("span");
    span.className = kind;
    span.textContent = text;
    return span;
  };
  const button = document.createElement("button");
  button.type = "button";
  button.dataset.index = index;
  button.append(part("name", named(index)), part("value", written(view.values[index])));
  if (site.scores.probabilities) {
    const share = part("share", "");
    share.style.width = `${100 * Math.max(0, Math.min(view.values[index], 1))}%`;
    button.append(share);
  }
  button.addEventListener("click", () => chooseClass(index));
  const item = document.createElement("li");
  item.append(button);
  return item;
}

function mark() {
  for (const button of $("classes").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(Number(button.dataset.index) === view.index));
  }
}

/** Draw the heatmap of the chosen class over the image, and describe it. */
function show() {
  const { shown, box, heatmap, index, name } = view;
  const [down, across] = [shown.height / view.height, shown.width / view.width];
  const scaled = box.map((place, i) => place * (i % 2 ? down : across));
  view.laid = projected(heatmap, scaled, shown.height, shown.width);
  draw();
  const place = hottest(view.laid, shown.height, shown.width);
  const where = place === null ? "blank, nothing in the image supports this class" : `hottest at the ${place}`;
  $("caption").textContent = `${named(index)}, ${written(view.values[index])}: ${where}.`;
  $("view").setAttribute("aria-label", `Heatmap of ${named(index)} over ${name}: ${where}`);
  say(`Heatmap of ${named(index)}: ${where}.`);
  document.dispatchEvent(new CustomEvent("explained", { detail: view }));
}

function draw() {
  const opacity = Number($("opacity").value);
  $("opacity-value").textContent = `${opacity} %`;
  const colours = bytesOf(site.colormaps[$("colormap").value]);
  const bar = new ImageData(256, 1);
  for (let i = 0; i < 256; i++) bar.data.set([...colours.subarray(3 * i, 3 * i + 3), 255], 4 * i);
  $("colours").getContext("2d").putImageData(bar, 0, 0);
  const canvas = $("view");
  [canvas.width, canvas.height] = [view.shown.width, view.shown.height];
  canvas.getContext("2d").putImageData(overlaid(view.shown, view.laid, colours, opacity / 100), 0, 0);
}

$("file").addEventListener("change", () => {
  const [file] = $("file").files;
  if (file) choose(file);
});
$("find").addEventListener("input", list);
$("opacity").addEventListener("input", draw);
$("colormap").addEventListener("change", draw);

const over = (inside) => $("chooser").classList.toggle("over", inside);
addEventListener("dragover", (event) => {
  event.preventDefault();
  over(!$("file").disabled);
});
addEventListener("dragleave", (event) => over(event.relatedTarget !== null));
addEventListener("drop", (event) => {
  event.preventDefault();
  over(false);
  const [file] = event.dataTransfer.files;
  if (file) choose(file);
  else complain("This is not a file: save the image first, then drop it here.");
});
