// The model: loaded once, and run for each class to explain.

import * as ort from "./ort/ort.wasm.min.mjs";
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

  /** Classify an image: the scores, and the heatmap of the predicted class. */
  async look(image) {
    this.input = null;
    const { values, shape, box } = prepare(image, this.site.preprocessing);
    const batch = this.site.model.batch ?? 1;
    const rows = new values.constructor(batch * values.length);
    for (let row = 0; row < batch; row++) rows.set(values, row * values.length);
    this.input = new ort.Tensor(this.site.preprocessing.dtype, rows, [batch, ...shape]);
    return { ...(await this.explain(-1)), box };
  }

  /** The heatmap of a class, or -1 for the predicted class, over the model's input. */
  async explain(index) {
    const { model, scores } = this.site;
    const [batch] = this.input.dims;
    const classes = new ort.Tensor("int64", new BigInt64Array(batch).fill(BigInt(index)), [batch]);
    let results;
    try {
      results = await this.session.run({ [model.image]: this.input, [model.class]: classes }, [
        model.scores,
        model.heatmap,
        model.heatmapClass,
      ]);
    } catch (error) {
      throw new Error(`The model failed on this image: ${reason(error)}.`);
    }
    const heatmap = results[model.heatmap];
    const [, height, width] = heatmap.dims;
    const values = heatmap.data.slice(0, height * width);
    const rows = numbers(results[model.scores]);
    const row = rows.slice(0, rows.length / batch);
    if (row.some(Number.isNaN) || !values.every(Number.isFinite)) {
      throw new Error("The model outputs NaN for this image: check its weights and its preprocessing.");
    }
    const all = scores.singleLogit ? [scores.kind === "sigmoid" ? 1 - row[0] : -row[0], row[0]] : row;
    return { scores: all, index: Number(results[model.heatmapClass].data[0]), heatmap: { values, height, width } };
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
