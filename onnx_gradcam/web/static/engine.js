// The model: loaded once, and run for each class to explain.

import * as ort from "./ort/ort.wasm.min.mjs";
import { listed } from "./detections.js";
import { prepare } from "./preparing.js";

const FILES = new URL("./ort/", import.meta.url).href;

/** An error as part of one sentence; of ONNX Runtime's messages, the text after the code. */
export function reason(error) {
  const text = String(error?.message ?? error).replace(/^.*ERROR_MESSAGE:/s, "");
  const line = text.replace(/\s+/g, " ").trim().replace(/\.$/, "").replaceAll(". ", "; ");
  return line.length > 300 ? `${line.slice(0, 300)} …` : line;
}

/** A model and the current image. */
export class Engine {
  /**
   * @param {object} site site.json.
   * @param {(done: number) => void} progress called with the number of bytes of the model received.
   */
  static async open(site, progress) {
    const bytes = await download(site.model, progress);
    // Threads need headers that plain file hosts do not send.
    ort.env.wasm.numThreads = 1;
    ort.env.wasm.wasmPaths = {
      mjs: `${FILES}ort-wasm-simd-threaded.mjs`,
      wasm: `${FILES}ort-wasm-simd-threaded.wasm`,
    };
    try {
      return new Engine(site, await ort.InferenceSession.create(bytes, site.model.options));
    } catch (error) {
      throw new Error(`The model cannot run in this browser: ${reason(error)}.`);
    }
  }

  constructor(site, session) {
    this.site = site;
    this.session = session;
    this.input = null;
  }

  /**
   * Look at an image: the scores and the heatmap of the predicted class; of a detector, its boxes and the heatmap of the
   * surest one, or where it finds none the highest score, null for a table without any box.
   */
  async look(image) {
    this.input = null;
    const { preprocessing, model, detector } = this.site;
    const { values, shape, box } = prepare(image, preprocessing);
    const batch = model.batch ?? 1;
    const rows = new values.constructor(batch * values.length);
    for (let row = 0; row < batch; row++) rows.set(values, row * values.length);
    this.input = new ort.Tensor(preprocessing.dtype, rows, [batch, ...shape]);
    const { table, ...first } = await this.explain(-1).catch((error) => {
      if (detector !== null && String(error.cause?.message).includes(detector.empty)) return { table: null };
      throw error;
    });
    if (detector === null) return { ...first, box };
    if (table === null) return { boxes: [], highest: null };
    const axis = (name) => shape[preprocessing.layout.indexOf(name) - 1];
    const found = listed(table, { height: axis("H"), width: axis("W") }, box, image, detector);
    if (found.boxes.length === 0) return found;
    const [{ target, index }] = found.boxes;
    const surest = first.index === target && first.row === index ? first : await this.explain(target, index);
    return { ...surest, ...found, box };
  }

  /**
   * The heatmap over the model's input of a class, or -1 for the predicted class, and of the box at an index of a
   * detector's table, or -1 for its best one, with the table of all boxes.
   */
  async explain(index, row = -1) {
    const { model, detector } = this.site;
    const [batch] = this.input.dims;
    const chosen = (value) => new ort.Tensor("int64", new BigInt64Array(batch).fill(BigInt(value)), [batch]);
    const feeds = { [model.image]: this.input, [model.class]: chosen(index) };
    const outputs = [model.scores, model.heatmap, model.heatmapClass];
    const tables = detector !== null && row < 0 ? [detector.scores, detector.corners].filter(Boolean) : [];
    if (detector !== null) {
      feeds[detector.box] = chosen(row);
      outputs.push(detector.heatmapBox, ...tables);
    }
    let results;
    try {
      results = await this.session.run(feeds, outputs);
    } catch (error) {
      throw new Error(`The model failed on this image: ${reason(error)}.`, { cause: error });
    }
    const heatmap = results[model.heatmap];
    const [, height, width] = heatmap.dims;
    const values = heatmap.data.slice(0, height * width);
    const first = (name) => Number(results[name].data[0]);
    return {
      scores: this.scores(results[model.scores], batch, values),
      index: first(model.heatmapClass),
      heatmap: { values, height, width },
      ...(detector !== null && { row: first(detector.heatmapBox) }),
      ...(tables.length > 0 && { table: this.table(results) }),
    };
  }

  /** The scores of all classes, refused if they or the values of the heatmap are NaN. */
  scores(tensor, batch, heatmap) {
    const { singleLogit, kind } = this.site.scores;
    const rows = numbers(tensor);
    const row = rows.slice(0, rows.length / batch);
    if (row.some(Number.isNaN) || !heatmap.every(Number.isFinite)) {
      throw new Error("The model outputs NaN for this image: check its weights and its preprocessing.");
    }
    return singleLogit ? [kind === "sigmoid" ? 1 - row[0] : -row[0], row[0]] : row;
  }

  /** The table of all boxes of a detector. */
  table(results) {
    const { scores, corners } = this.site.detector;
    const [, rows, classes] = results[scores].dims;
    return { scores: results[scores].data, corners: corners ? results[corners].data : null, rows, classes };
  }
}

async function download({ file, bytes }, progress) {
  let response;
  try {
    response = await fetch(new URL(file, import.meta.url));
  } catch (error) {
    throw new Error(`The model cannot be downloaded (${reason(error)}): check the connection.`);
  }
  if (!response.ok) throw new Error(`The model cannot be downloaded: the server answers ${response.status} for ${file}.`);
  const model = new Uint8Array(bytes);
  let done = 0;
  try {
    for (const reader = response.body.getReader(); ; ) {
      const { value } = await reader.read();
      if (value === undefined) break;
      if (done + value.length > bytes) throw new Error("it is longer than expected");
      model.set(value, done);
      progress((done += value.length));
    }
  } catch (error) {
    throw new Error(`The model cannot be downloaded (${reason(error)}): reload the page.`);
  }
  if (done !== bytes) throw new Error(`The model is incomplete, ${done} of ${bytes} bytes: reload the page.`);
  return model;
}

/** The values of a tensor as floats; browsers without a half-precision type return its bits. */
function numbers({ type, data }) {
  return Array.from(data, type === "float16" && data instanceof Uint16Array ? half : Number);
}

function half(bits) {
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  const sign = bits >> 15 ? -1 : 1;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24);
}
