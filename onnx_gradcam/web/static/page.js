// The page: controls, display and messages. The model runs in worker.js.

import { bytesOf, hottest, mark, overlaid, projected } from "./drawing.js";

const SHOWN = { classes: 10, boxes: 100 };
const $ = (id) => document.getElementById(id);

let site;
let ask;
let next = null;
let running = false;
let view = null; // the image shown, what can be explained in it, and the heatmap of what is chosen

function say(text) {
  $("status").textContent = text;
  $("status").hidden = text === "";
}

function complain(text) {
  if (text !== "") say("");
  $("error").textContent = text;
  $("error").hidden = text === "";
}

/** What this browser lacks, in one sentence; null if it lacks nothing. */
function lack() {
  if (typeof WebAssembly !== "object") {
    return "This browser has no WebAssembly, which the model needs: use another browser, or allow it in the settings.";
  }
  const missing = ["Worker", "OffscreenCanvas", "ResizeObserver", "createImageBitmap", "BigInt64Array"].find((name) => !(name in window));
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
  if (site.detector !== null) describeBoxes();
  $("progress").max = site.model.bytes;
  $("loading").hidden = false;
  ask = started();
  for (const name of ["file", "sample"]) $(name).disabled = false;
  await ask("open", { site });
  say("The model is ready.");
}

function describeBoxes() {
  const placed = site.detector.corners !== "";
  $("classes-title").textContent = "Boxes";
  $("find-label").textContent = "Find a box";
  $("hint").textContent = placed
    ? "Choose a box, here or in the image, to see where its score comes from."
    : "Choose a box to see where its score comes from. The model does not tell where its boxes are, so several of them may be one object.";
}

const opened = open();
opened
  .catch((error) => {
    for (const name of ["file", "sample"]) $(name).disabled = true;
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
    const entries = site.detector === null ? classesOf(answer) : boxesOf(answer);
    if (entries.length === 0) {
      say(`Nothing found in ${file.name}: ${whyNothing(answer.highest)}.`);
      return;
    }
    view = { ...answer, name: file.name, entries };
    view.chosen = site.detector === null ? entries.find(({ key }) => key === answer.index) : entries[0];
    $("find").value = "";
    $("finder").hidden = entries.length <= SHOWN.classes;
    $("results").hidden = false;
    list();
    show();
  });
}

function chooseEntry(entry) {
  complain("");
  const current = view;
  enqueue(async () => {
    const answer = await ask("explain", { index: entry.index, row: entry.row });
    if (view !== current) return;
    Object.assign(view, answer, { chosen: entry });
    press();
    show();
  });
}

function whyNothing(highest) {
  if (highest === null) return "the model has no box";
  return `the highest score of a box is ${highest.toPrecision(2)}, below ${site.detector.least}`;
}

/** The classes, the likeliest first, each with its key in the list, its index, its name and the value shown for it. */
function classesOf({ scores }) {
  const values = valuesOf(scores);
  const order = [...values.keys()].sort((a, b) => scores[b] - scores[a] || a - b);
  return order.map((index) => ({ key: index, index, name: named(index), value: values[index] }));
}

/** The boxes, the surest first, with what classes have and with their index in the model's table and their corners. */
function boxesOf({ boxes }) {
  return boxes.map(({ n, index, target, score, xyxy }) => {
    return { key: n, index: target, row: index, name: `${n} ${named(target)}`, value: score, xyxy };
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
const written = (value) => (site.scores.probabilities ? percent(value) : value.toPrecision(3));

/** As `onnx_gradcam.runtime.answers.percentage`. */
function percent(share) {
  if (share > 0 && share < 0.001) return "<0.1 %";
  return share > 0.999 && share < 1 ? ">99.9 %" : `${(100 * share).toFixed(1)} %`;
}
const most = () => (site.detector === null ? SHOWN.classes : SHOWN.boxes);

/** List the top classes or boxes, or the top ones among those whose names match the search. */
function list() {
  const query = $("find").value.trim().toLowerCase();
  const matches = view.entries.filter(({ name }) => name.toLowerCase().includes(query));
  view.listed = matches.slice(0, most());
  $("classes").replaceChildren(...view.listed.map(row));
  const rest = matches.length - view.listed.length;
  const none = site.detector === null ? "No class matches." : "No box matches.";
  $("more").textContent = matches.length === 0 ? none : rest > 0 ? `${rest} more: find them by name.` : "";
  press();
  markBoxes();
}

function row(entry) {
  const part = (kind, text) => {
    const span = document.createElement("span");
    span.className = kind;
    span.textContent = text;
    return span;
  };
  const button = document.createElement("button");
  button.type = "button";
  button.dataset.index = entry.key;
  button.append(part("name", entry.name), part("value", written(entry.value)));
  if (site.scores.probabilities) {
    const share = part("share", "");
    share.style.width = `${100 * Math.max(0, Math.min(entry.value, 1))}%`;
    button.append(share);
  }
  button.addEventListener("click", () => chooseEntry(entry));
  const item = document.createElement("li");
  item.append(button);
  return item;
}

/** Show in the list which class or box is chosen. */
function press() {
  for (const button of $("classes").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(Number(button.dataset.index) === view.chosen.key));
  }
}

/** Draw the boxes of the list, and the chosen one, over the image, in the size in which it is displayed. */
function markBoxes() {
  if (view === null) return;
  const { clientWidth, clientHeight } = $("view");
  const scale = Math.min(clientWidth / view.width, clientHeight / view.height);
  const shown = { scale, width: view.width * scale, height: view.height * scale };
  const drawn = view.entries.filter((entry) => entry.xyxy && (entry === view.chosen || view.listed.includes(entry)));
  mark($("boxes"), drawn, view.chosen.key, shown);
}

/** Draw the heatmap of what is chosen over the image, and describe it. */
function show() {
  const { shown, box, heatmap, chosen, name } = view;
  const [down, across] = [shown.height / view.height, shown.width / view.width];
  const scaled = box.map((place, i) => place * (i % 2 ? down : across));
  view.laid = projected(heatmap, scaled, shown.height, shown.width);
  draw();
  markBoxes();
  const place = hottest(view.laid, shown.height, shown.width);
  const what = site.detector === null ? "class" : "box";
  const where = place === null ? `blank, nothing in the image supports this ${what}` : `hottest at the ${place}`;
  const [x0, y0, x1, y1] = (chosen.xyxy ?? []).map(Math.round);
  const at = chosen.xyxy ? `, x ${x0} to ${x1}, y ${y0} to ${y1}` : "";
  $("view").setAttribute("aria-label", `Heatmap of ${chosen.name} over ${name}: ${where}`);
  say(`Heatmap of ${chosen.name}, ${written(chosen.value)}${at}: ${where}.`);
  document.dispatchEvent(new CustomEvent("explained", { detail: view }));
}

function draw() {
  const opacity = Number($("opacity").value);
  $("opacity-value").textContent = `${opacity} %`;
  const colours = bytesOf(site.colormaps[$("colormap").value]);
  const bar = new ImageData(256, 1);
  for (let i = 0; i < 256; i++) bar.data.set([...colours.subarray(3 * i, 3 * i + 3), 255], 4 * i);
  $("colours").getContext("2d").putImageData(bar, 0, 0);
  const hidden = $("original").getAttribute("aria-pressed") === "true";
  const canvas = $("view");
  [canvas.width, canvas.height] = [view.shown.width, view.shown.height];
  canvas.getContext("2d").putImageData(overlaid(view.shown, view.laid, colours, hidden ? 0 : opacity / 100), 0, 0);
}

function toggleOriginal() {
  $("original").setAttribute("aria-pressed", String($("original").getAttribute("aria-pressed") !== "true"));
  draw();
}

/** Save what is drawn, as PNG. */
function save() {
  const { width, height } = view.shown;
  const copy = Object.assign(document.createElement("canvas"), { width, height });
  const context = copy.getContext("2d");
  context.drawImage($("view"), 0, 0);
  outline(context, view.chosen.xyxy, width / view.width);
  const name = `${view.name.replace(/\.[^.]*$/, "")}_${view.chosen.name}.png`.replace(/[^\p{L}\p{N}._-]+/gu, "_");
  copy.toBlob((data) => {
    const href = URL.createObjectURL(data);
    Object.assign(document.createElement("a"), { href, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(href), 60000);
  });
}

/** Draw a box, if there is one, as on the page: white between dark lines. */
function outline(context, xyxy, scale) {
  if (!xyxy) return;
  const [x0, y0, x1, y1] = xyxy.map((place) => place * scale);
  for (const [lineWidth, strokeStyle] of [[6, "#202020"], [3, "#ffffff"]]) {
    Object.assign(context, { lineWidth, strokeStyle });
    context.strokeRect(x0, y0, x1 - x0, y1 - y0);
  }
}

async function chooseSample() {
  const answer = await fetch(new URL(site.sample, import.meta.url)).catch(() => null);
  if (answer?.ok) choose(new File([await answer.blob()], site.sample));
  else complain("The sample image cannot be loaded: choose another image.");
}

$("file").addEventListener("change", () => {
  const [file] = $("file").files;
  if (file) choose(file);
});
$("sample").addEventListener("click", chooseSample);
$("original").addEventListener("click", toggleOriginal);
$("save").addEventListener("click", save);
$("find").addEventListener("input", list);
$("opacity").addEventListener("input", draw);
$("colormap").addEventListener("change", draw);
$("boxes").addEventListener("click", ({ target }) => {
  const entry = view.entries.find(({ key }) => String(key) === target.dataset.index);
  if (entry) chooseEntry(entry);
});
new ResizeObserver(markBoxes).observe($("view"));

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
