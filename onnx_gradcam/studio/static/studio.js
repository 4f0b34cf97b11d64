// The studio: what is chosen, and what is shown of it. Everything is computed by the process that serves this page.

import { blob, get, post, stream, upload } from "./asking.js";
import { mark } from "./drawing.js";

const SHOWN = { classes: 10, layers: 40, methods: 6 };
const $ = (id) => document.getElementById(id);

let model; // what /api/model says
let answer = null; // the explanation shown
let current = null; // what ends the explanation that runs
let writing = null; // what ends the texts of an older choice
let looking = null; // what ends the thumbnails that are made
let preparing = null; // the JSON object of the preprocessing in use
const chosen = { image: null, methods: [], preset: null, layer: [], preprocess: null, target: null, box: null, colormap: null, opacity: null };

/** The one line that says how things stand. */
function say(text, kind = "") {
  $("status").textContent = text;
  $("status").dataset.kind = kind;
}

const complain = (error) => error.name !== "AbortError" && say(`${error.message}.`.replace(/^./, (c) => c.toUpperCase()), "error");

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** What is asked of the studio: everything chosen but what only the drawing needs. */
function recipe(...without) {
  return Object.fromEntries(Object.entries(chosen).filter(([name]) => !without.includes(name)));
}

// Images

async function add(files) {
  for (const file of files) {
    try {
      if (file.size > model.limits.bytes) {
        throw new Error(`${file.name} is larger than ${model.limits.bytes >> 20} MB; choose a smaller image`);
      }
      say(`Reading ${file.name} …`);
      keep(await upload(file));
    } catch (error) {
      complain(error);
      return;
    }
  }
}

/** List an image, and explain it. */
function keep(image) {
  model.images = [...model.images.filter(({ id }) => id !== image.id), image];
  listImages();
  chooseImage(image.id);
}

function listImages() {
  $("images").replaceChildren(
    ...model.images.map(({ id, name }) => {
      const button = element("button", { type: "button", title: name }, element("img", { src: `api/images/${id}.png`, alt: name }));
      button.dataset.id = id;
      button.addEventListener("click", () => chooseImage(id));
      return element("li", {}, button);
    }),
  );
}

function chooseImage(id) {
  Object.assign(chosen, { image: id, target: null, box: null });
  $("find").value = "";
  for (const button of $("images").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button.dataset.id === id));
  }
  explain();
}

const image = () => model.images.find(({ id }) => id === chosen.image);

// Explanations

/** Explain what is chosen; an explanation that still runs ends. */
async function explain() {
  if (chosen.image === null) return;
  current?.abort();
  looking?.abort();
  const { signal } = (current = new AbortController());
  $("results").setAttribute("aria-busy", "true");
  say(`Explaining ${image().name} …`);
  const shown = setTimeout(() => ($("progress").hidden = false), 400);
  try {
    const next = await stream("api/explain", recipe("colormap", "opacity"), signal, ({ progress, done, total }) => {
      say(total ? `${progress}, ${done} of ${total} …` : `${progress} …`);
      if (total) $("progress").value = done / total;
      else $("progress").removeAttribute("value");
    });
    answer = next;
    show();
  } catch (error) {
    complain(error);
    if (!signal.aborted) $("view").hidden = $("again").hidden = true;
  }
  clearTimeout(shown);
  if (signal.aborted) return;
  $("progress").hidden = true;
  $("results").setAttribute("aria-busy", "false");
  document.dispatchEvent(new CustomEvent("explained", { detail: answer }));
}

function show() {
  $("view").hidden = $("again").hidden = false;
  $("targets").hidden = false;
  preparing = answer.seen.settings;
  listTargets();
  drawPanels();
  showSeen();
  const warnings = [...answer.warnings, ...answer.panels.flatMap(({ title, warnings }) => warnings.map((text) => (answer.panels.length > 1 ? `${title}: ${text}` : text)))];
  $("warnings").replaceChildren(...warnings.map((text) => element("li", {}, text)));
  const [first] = answer.panels;
  say(`${described(first)}.`);
  reproduce();
  if ($("layers-box").open) makeThumbnails();
}

/** What a panel shows, in words. */
function described({ title, target, box, hottest }) {
  const what = box ? `${box.n ?? ""} ${target.label} ${percent(box.score)}` : `${target.label} ${written(target.index)}`;
  const where = hottest ? `hottest at the ${hottest}` : "blank, nothing in the image supports it";
  return `${title} of ${what.trim()}: ${where}`;
}

/** As `onnx_gradcam.runtime.answers.percentage`. */
function percent(share) {
  if (share > 0 && share < 0.001) return "<0.1 %";
  return share > 0.999 && share < 1 ? ">99.9 %" : `${(100 * share).toFixed(1)} %`;
}

/** The probability of a class, else its score. */
function written(index) {
  const value = (answer.shares ?? answer.scores)[index];
  return value === null ? "" : answer.shares ? percent(value) : value.toPrecision(3);
}

function drawPanels() {
  const { name, id } = image();
  const panels = answer.panels.map((panel) => {
    const heat = element("img", { className: "heat", alt: "" });
    heat.dataset.key = panel.key;
    heat.dataset.over = panel.overImage;
    const stage = element("div", { className: "stage" }, original(id, `${described(panel)}, over ${name}`), heat);
    const boxes = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    boxes.setAttribute("aria-hidden", "true");
    boxes.classList.add("boxes");
    stage.append(boxes);
    return element("figure", {}, stage, element("figcaption", {}, described(panel)));
  });
  const alone = element("figure", { id: "alone" }, element("div", { className: "stage" }, original(id, name)), element("figcaption", {}, name));
  $("panels").replaceChildren(alone, ...panels);
  $("panels").dataset.count = panels.length;
  drawHeat();
  besides();
}

const original = (id, alt) => element("img", { className: "original", src: `api/images/${id}.png`, alt });

/** The address of a picture, with the colours and the opacity that are chosen. */
function pictured(path, ...names) {
  const query = new URLSearchParams(names.filter((name) => chosen[name] !== null).map((name) => [name, chosen[name]]));
  return `${path}?${query}`;
}

/** Whether the preset's library draws the overlay, so that opacity and colours are its own. */
function asLibrary() {
  const preset = model.presets.find(({ name }) => name === (chosen.preset ?? model.preset));
  return preset?.name !== "default" && preset?.draws && chosen.colormap === null && chosen.opacity === null;
}

function drawHeat() {
  for (const heat of document.querySelectorAll(".heat")) heat.src = pictured(`api/heat/${heat.dataset.key}.png`, "colormap", "opacity");
  const name = image().name.replace(/\.[^.]*$/, "");
  Object.assign($("save"), { href: pictured(`api/sheets/${answer.sheet}.png`, "colormap", "opacity"), download: `${name}_gradcam.png` });
  Object.assign($("numbers"), { href: `api/sheets/${answer.sheet}.npz`, download: `${name}.npz` });
  fade();
}

function fade() {
  const value = chosen.opacity ?? model.look.opacity;
  const fixed = asLibrary();
  $("opacity").disabled = fixed;
  $("opacity").value = Math.round(100 * value);
  $("opacity-value").textContent = fixed ? "as the library draws" : `${Math.round(100 * value)} %`;
  const hidden = $("original").getAttribute("aria-pressed") === "true";
  for (const heat of document.querySelectorAll(".heat")) {
    // Attributions of single pixels are drawn alone, until an opacity is chosen.
    const alone = heat.dataset.over === "false" && chosen.opacity === null;
    heat.style.opacity = hidden ? 0 : fixed || alone ? 1 : value;
  }
}

function besides() {
  $("alone").hidden = $("beside").getAttribute("aria-pressed") !== "true";
  markBoxes();
}

function markBoxes() {
  if (answer === null || !model.detector) return;
  for (const [i, svg] of [...document.querySelectorAll(".boxes")].entries()) {
    const { clientWidth } = svg.previousElementSibling;
    const { width, height } = image();
    const scale = clientWidth / width;
    const box = answer.panels[i].box;
    const entries = targets().filter(({ xyxy }) => xyxy);
    mark(svg, entries, box?.n ?? -1, { scale, width: width * scale, height: height * scale });
  }
}

function showSeen() {
  const { shape, dtype, low, high, mean, std } = answer.seen;
  $("seen").hidden = false;
  $("seen-image").src = answer.seen.image;
  const [l, h, m, s] = [low, high, mean, std].map((number) => Number(number.toPrecision(3)));
  $("seen-text").textContent = `What the model sees: ${shape.join(" x ")} ${dtype}, ${l} to ${h}, mean ${m}, standard deviation ${s}`;
}

async function reproduce() {
  writing?.abort();
  const { signal } = (writing = new AbortController());
  try {
    const texts = await post("api/reproduce", recipe(), signal);
    for (const [name, text] of Object.entries(texts)) $(name).textContent = text;
  } catch (error) {
    complain(error);
  }
}

// Classes and boxes

/** The boxes of a detector, else the classes, the likeliest first. */
function targets() {
  if (model.detector) {
    return answer.boxes.map((box) => ({ key: box.n, name: `${box.n} ${box.name}`, value: box.score, xyxy: box.xyxy }));
  }
  const order = [...answer.scores.keys()].sort((a, b) => answer.scores[b] - answer.scores[a] || a - b);
  return order.map((index) => ({ key: index, name: model.labels?.[index] || `class ${index}`, value: (answer.shares ?? answer.scores)[index] }));
}

function listTargets() {
  const query = $("find").value.trim().toLowerCase();
  const matches = targets().filter(({ name }) => name.toLowerCase().includes(query));
  const most = model.detector ? Infinity : SHOWN.classes;
  const [panel] = answer.panels;
  const pressed = model.detector ? panel.box?.n : panel.target.index;
  $("classes").replaceChildren(...matches.slice(0, most).map((entry) => row(entry, pressed)));
  const what = model.detector ? "box" : "class";
  const rest = matches.length - most;
  $("more").textContent = matches.length === 0 ? `No ${what} matches.` : rest > 0 ? `${rest} more: find them by name.` : "";
}

function row({ key, name, value }, pressed) {
  const probable = model.detector || answer.shares !== null;
  const text = value === null ? "" : probable ? percent(value) : value.toPrecision(3);
  const button = element("button", { type: "button", disabled: !model.chooses }, element("span", { className: "name" }, name), element("span", { className: "value" }, text));
  button.setAttribute("aria-pressed", String(key === pressed));
  button.dataset.index = key;
  if (probable) {
    const share = element("span", { className: "share" });
    share.style.width = `${100 * Math.max(0, Math.min(value, 1))}%`;
    button.append(share);
  }
  button.addEventListener("click", () => chooseTarget(key));
  return element("li", {}, button);
}

async function chooseTarget(key) {
  chosen[model.detector ? "box" : "target"] = key;
  await explain();
  document.querySelector(`#classes button[data-index="${key}"]`)?.focus();
}

// Methods, presets and layers

function listMethods() {
  const families = [...new Set(model.methods.map(({ family }) => family))];
  const titles = { cam: "Class activation maps", attribution: "Attributions to pixels", sampling: "Averages of many gradients", perturbation: "Scores of changed images" };
  $("methods").replaceChildren(
    ...families.map((family) => {
      const all = model.methods.filter((method) => method.family === family);
      return element("fieldset", {}, element("legend", {}, titles[family] ?? family), ...all.map(checkbox));
    }),
  );
}

function checkbox({ name, title, cost }) {
  const box = element("input", { type: "checkbox", value: name, checked: chosen.methods.includes(name) });
  box.addEventListener("change", () => chooseMethod(box));
  return element("label", { title: cost }, box, ` ${title}`);
}

function chooseMethod(box) {
  const methods = chosen.methods.filter((name) => name !== box.value);
  if (box.checked) methods.push(box.value);
  if (methods.length === 0 || methods.length > SHOWN.methods) {
    box.checked = !box.checked;
    say(methods.length ? `Choose ${SHOWN.methods} methods at most.` : "One method has to stay.", "error");
    return;
  }
  chosen.methods = methods;
  nameChoices();
  explain();
}

/** Say in the headings of closed lists what is chosen. */
function nameChoices() {
  const title = (name) => model.methods.find((method) => method.name === name)?.title ?? name;
  $("methods-chosen").textContent = (chosen.methods.length ? chosen.methods : [model.method]).map(title).join(", ");
  const layers = model.layers.filter((layer) => (chosen.layer.length ? chosen.layer.includes(layer.tensor) : layer.chosen));
  $("layers-chosen").textContent = layers.map(({ name, grid }) => `${name} (${grid})`).join(", ") || "none";
}

/** The layers that are listed: the last one of each grid, or all whose names match. */
function listedLayers() {
  const query = $("layer-find").value.trim().toLowerCase();
  if (query || $("layers-all").checked) {
    return model.layers.filter(({ name, tensor }) => `${name} ${tensor}`.toLowerCase().includes(query));
  }
  const grids = new Set();
  const isLast = ({ grid, everyPath, chosen: own }) => own || (everyPath && !grids.has(grid) && grids.add(grid));
  return model.layers.filter(isLast);
}

function listLayers() {
  looking?.abort();
  const layers = listedLayers();
  $("layers").replaceChildren(...layers.slice(0, SHOWN.layers).map(layerRow));
  const rest = layers.length - SHOWN.layers;
  $("layers-more").textContent = layers.length === 0 ? "No layer matches." : rest > 0 ? `${rest} more: find them by name.` : "";
  if ($("layers-box").open) makeThumbnails();
}

function layerRow(layer) {
  const { name, tensor, operator, grid, channels, everyPath } = layer;
  const details = [grid, channels === null ? "" : `${channels} channels`, operator, everyPath ? "" : "a branch"].filter(Boolean).join(", ");
  const text = element("span", { className: "name" }, name, element("small", {}, details));
  const button = element("button", { type: "button", title: tensor }, element("img", { alt: "", hidden: true }), text);
  button.dataset.tensor = tensor;
  button.setAttribute("aria-pressed", String(chosen.layer.length ? chosen.layer.includes(tensor) : layer.chosen));
  button.addEventListener("click", () => chooseLayer(layer));
  return element("li", {}, button);
}

function chooseLayer({ tensor, chosen: own }) {
  chosen.layer = own ? [] : [tensor];
  nameChoices();
  for (const button of $("layers").querySelectorAll("button")) {
    const layer = model.layers.find((one) => one.tensor === button.dataset.tensor);
    button.setAttribute("aria-pressed", String(chosen.layer.length ? chosen.layer.includes(layer.tensor) : layer.chosen));
  }
  explain();
}

/** Show what each listed layer sees, one after the other, until something else is asked. */
async function makeThumbnails() {
  looking?.abort();
  const { signal } = (looking = new AbortController());
  const method = model.methods.find(({ name }) => name === (chosen.methods[0] ?? model.method));
  for (const button of $("layers").querySelectorAll("button")) {
    const [picture] = button.getElementsByTagName("img");
    if (answer === null || signal.aborted || !method.layer) return;
    try {
      const asked = { ...recipe("colormap", "opacity"), methods: [method.name], layer: [button.dataset.tensor] };
      picture.src = (await stream("api/thumbnail", asked, signal)).thumbnail;
      picture.hidden = false;
    } catch (error) {
      if (error.name === "AbortError") return;
      button.title = error.message;
    }
  }
}

// Preprocessing

function listPreprocessing() {
  const { presets, described } = model.preprocessing;
  const first = described ? "as the model or the command says" : "choose how";
  $("preprocess").replaceChildren(new Option(first, ""), ...presets.map((name) => new Option(name)), new Option("a JSON object", "json"));
}

function choosePreprocessing() {
  const { value } = $("preprocess");
  $("json-box").hidden = value !== "json";
  if (value === "json") {
    $("json").value = JSON.stringify(preparing ?? { size: [224, 224] }, null, 1);
    return;
  }
  chosen.preprocess = value || null;
  explain();
}

function useJson() {
  try {
    chosen.preprocess = JSON.parse($("json").value);
  } catch (error) {
    say(`This is not JSON: ${error.message}.`, "error");
    return;
  }
  explain();
}

// Saving and copying

async function copy({ currentTarget }) {
  try {
    await navigator.clipboard.writeText($(currentTarget.dataset.of).textContent);
    say("Copied.");
  } catch {
    getSelection().selectAllChildren($(currentTarget.dataset.of));
    say("The browser does not let this page copy: the text is selected, copy it with the keyboard.");
  }
}

async function saveModel() {
  say("Attaching the explanation …");
  $("attach-save").disabled = true;
  try {
    const href = URL.createObjectURL(await blob("api/attach", recipe("colormap", "opacity", "target", "box")));
    element("a", { href, download: model.name.replace(/\.onnx$/, "") + "-explained.onnx" }).click();
    setTimeout(() => URL.revokeObjectURL(href), 60000);
    say("The explained model is saved.");
  } catch (error) {
    complain(error);
  }
  $("attach-save").disabled = false;
}

function toggle(button) {
  button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
}

// Start

function describe() {
  document.title = `${model.name}, studio`;
  document.querySelector("h1").textContent = model.name;
  const { name, shape, dtype } = model.input;
  $("about").textContent = `${model.task}, input ${name} ${shape.join(" x ")} ${dtype}. It runs on this computer, and images stay here.`;
  if (model.detector) {
    $("classes-title").textContent = "Boxes";
    $("find-label").textContent = "Find a box";
  }
  $("how").hidden = $("attaching").hidden = model.explained;
  if (!model.explained) chosen.methods = [model.method];
  $("colormap").append(new Option("default", ""), ...model.colormaps.map((name) => new Option(name)));
  $("preset").append(...model.presets.map(({ name, title }) => new Option(title, name)));
  $("preset").value = model.preset;
  listMethods();
  nameChoices();
  listLayers();
  listPreprocessing();
  listImages();
}

function listen() {
  $("file").addEventListener("change", async () => {
    await add([...$("file").files]);
    $("file").value = "";
  });
  $("sample").addEventListener("click", async () => {
    try {
      keep(await post("api/sample", {}));
    } catch (error) {
      complain(error);
    }
  });
  $("find").addEventListener("input", listTargets);
  $("opacity").addEventListener("input", () => {
    chosen.opacity = Number($("opacity").value) / 100;
    fade();
  });
  $("opacity").addEventListener("change", () => {
    drawHeat();
    reproduce();
  });
  $("colormap").addEventListener("change", () => {
    chosen.colormap = $("colormap").value || null;
    if (chosen.colormap === null) chosen.opacity = null;
    drawHeat();
    reproduce();
  });
  $("original").addEventListener("click", () => {
    toggle($("original"));
    fade();
  });
  $("beside").addEventListener("click", () => {
    toggle($("beside"));
    besides();
  });
  $("panels").addEventListener("click", ({ target }) => {
    if (target.dataset.index) chooseTarget(Number(target.dataset.index));
  });
  $("preset").addEventListener("change", () => {
    chosen.preset = $("preset").value;
    explain();
  });
  $("layers-box").addEventListener("toggle", () => ($("layers-box").open ? makeThumbnails() : looking?.abort()));
  $("layers-all").addEventListener("change", listLayers);
  $("layer-find").addEventListener("input", listLayers);
  $("preprocess").addEventListener("change", choosePreprocessing);
  $("json-use").addEventListener("click", useJson);
  $("attach-save").addEventListener("click", saveModel);
  for (const button of document.querySelectorAll(".copy")) button.addEventListener("click", copy);
  new ResizeObserver(markBoxes).observe($("panels"));
  const over = (inside) => $("chooser").classList.toggle("over", inside);
  addEventListener("dragover", (event) => {
    event.preventDefault();
    over(true);
  });
  addEventListener("dragleave", (event) => over(event.relatedTarget !== null));
  addEventListener("drop", (event) => {
    event.preventDefault();
    over(false);
    add([...event.dataTransfer.files]);
  });
  addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length) add(files);
  });
}

try {
  model = await get("api/model");
  describe();
  listen();
  const warnings = model.warnings.join(" ");
  if (!model.preprocessing.described) say("The model carries no preprocessing: choose one, then an image.");
  else say(`The model is ready. ${warnings}`.trim());
  if (model.images.length) chooseImage(model.images[0].id);
} catch (error) {
  complain(error);
}
