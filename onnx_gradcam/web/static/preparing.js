// Converts pixels to the model's input, bit for bit as `onnx_gradcam.images.decoding.prepare`.

import { interpolated, resized, rounded } from "./resizing.js";

const ARRAYS = {
  float16: Uint16Array, // as bits
  float32: Float32Array,
  float64: Float64Array,
  uint8: Uint8Array,
  int8: Int8Array,
  uint16: Uint16Array,
  int16: Int16Array,
  int32: Int32Array,
};
const LARGEST = 2 ** 26;

/**
 * @param {import("./resizing.js").Image} image RGB.
 * @param {object} spec `preprocessing` in site.json.
 * @returns the input of one image without a batch axis, its shape, and the part of the image that the model sees,
 *   [x0, y0, x1, y1] in pixels of the image.
 */
export function prepare(image, spec) {
  const { pixels, box } = fitted(spec.color === "gray" ? gray(image) : image, spec);
  const { data, height, width, channels } = pixels;
  const values = new ARRAYS[spec.dtype](data.length);
  const plane = height * width;
  const first = spec.layout === "NCHW";
  for (let c = 0; c < channels; c++) {
    const levels = spec.levels.map((level) => level[c]);
    const from = spec.color === "bgr" ? channels - 1 - c : c;
    for (let i = 0; i < plane; i++) values[first ? c * plane + i : i * channels + c] = levels[data[i * channels + from]];
  }
  return { values, shape: first ? [channels, height, width] : [height, width, channels], box };
}

/** The luma of ITU-R BT.601 in 15 bits, as OpenCV's RGB2GRAY. */
function gray({ data, height, width }) {
  const luma = new Uint8Array(height * width);
  for (let i = 0, at = 0; i < luma.length; i++, at += 3) {
    luma[i] = (data[at] * 9798 + data[at + 1] * 19235 + data[at + 2] * 3735 + 16384) >> 15;
  }
  return { data: luma, height, width, channels: 1 };
}

function fitted(image, spec) {
  const { height, width } = image;
  if (spec.resize === "short_crop") return shortCrop(image, spec);
  if (spec.resize === "letterbox") return letterbox(image, spec);
  const [tall, wide] = spec.size ?? [height, width];
  if (spec.resize === "none" && (tall !== height || wide !== width)) {
    throw new Error(`The image is ${width} x ${height} pixels, but this model takes exactly ${wide} x ${tall}.`);
  }
  return { pixels: resized(image, tall, wide), box: [0, 0, width, height] };
}

function shortCrop(image, { size: [cropHeight, cropWidth], short }) {
  const { height, width, channels } = image;
  const least = Math.min(cropHeight, cropWidth);
  const factor = short
    ? short / Math.min(height, width)
    : (rounded((least * 256) / 224) / least) * Math.max(cropHeight / height, cropWidth / width);
  const tall = Math.max(1, rounded(height * factor));
  const wide = Math.max(1, rounded(width * factor));
  if (tall < cropHeight || wide < cropWidth || tall * wide > LARGEST) {
    throw new Error(`The image, ${width} x ${height} pixels, is too narrow for this model: crop it closer to a square.`);
  }
  const top = rounded((tall - cropHeight) / 2);
  const left = rounded((wide - cropWidth) / 2);
  const [down, right] = [height / tall, width / wide];
  const box = [left * right, top * down, (left + cropWidth) * right, (top + cropHeight) * down];
  const scaled = resized(image, tall, wide);
  const data = new Uint8Array(cropHeight * cropWidth * channels);
  for (let y = 0; y < cropHeight; y++) {
    const start = ((top + y) * wide + left) * channels;
    data.set(scaled.data.subarray(start, start + cropWidth * channels), y * cropWidth * channels);
  }
  return { pixels: { data, height: cropHeight, width: cropWidth, channels }, box };
}

/** Scale the image to fit into the input, and fill the rest. */
function letterbox(image, { size: [rows, columns], align, padding }) {
  const { height, width, channels } = image;
  const factor = Math.min(rows / height, columns / width);
  const centred = align !== "top_left";
  const [tall, wide] = [height, width].map((side) => (centred ? rounded : Math.trunc)(side * factor));
  if (!tall || !wide) {
    throw new Error(`The image, ${width} x ${height} pixels, is too narrow for this model: crop it closer to a square.`);
  }
  const top = centred ? Math.floor((rows - tall) / 2) : 0;
  const left = centred ? Math.floor((columns - wide) / 2) : 0;
  const [down, right] = [height / tall, width / wide];
  const box = [-left * right, -top * down, (columns - left) * right, (rows - top) * down];
  const scaled = interpolated(image, tall, wide);
  const data = new Uint8Array(rows * columns * channels).fill(padding);
  for (let y = 0; y < tall; y++) {
    const row = scaled.data.subarray(y * wide * channels, (y + 1) * wide * channels);
    data.set(row, ((top + y) * columns + left) * channels);
  }
  return { pixels: { data, height: rows, width: columns, channels }, box };
}
