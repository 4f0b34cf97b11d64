// Scales images bit for bit as OpenCV 4.10 to 5.0 (modules/imgproc/src/resize.cpp, 8 bits). Browsers scale
// differently, which would change the model's input.

/**
 * An image with `channels` bytes per pixel, in row-major order.
 * @typedef {{data: Uint8Array, height: number, width: number, channels: number}} Image
 */

/** Scale sides down by area averages, then up by bilinear interpolation. */
export function resized(image, height, width) {
  const tall = Math.min(height, image.height);
  const wide = Math.min(width, image.width);
  if (tall !== image.height || wide !== image.width) image = byAreas(image, tall, wide);
  if (tall !== height || wide !== width) image = bilinear(image, height, width);
  return image;
}

/** Scale both sides by bilinear interpolation, whether up or down; OpenCV averages where both are halved. */
export function interpolated(image, height, width) {
  if (height === image.height && width === image.width) return image;
  const halved = ratio(image.height, height) === 2 && ratio(image.width, width) === 2;
  return halved ? byBlocks(image, height, width, 2, 2) : bilinear(image, height, width);
}

/** Round to the nearest integer, and halves to even, as C's rint and Python's round. */
export function rounded(value) {
  const below = Math.floor(value);
  const rest = value - below;
  if (rest !== 0.5) return rest < 0.5 ? below : below + 1;
  return below % 2 === 0 ? below : below + 1;
}

/** Source pixels per result pixel, computed as in OpenCV, as the last bit selects the algorithm. */
function ratio(from, to) {
  return 1 / (to / from);
}

function byAreas(image, height, width) {
  const down = ratio(image.height, height);
  const across = ratio(image.width, width);
  const whole = (value) => Math.abs(value - rounded(value)) < Number.EPSILON;
  return whole(down) && whole(across)
    ? byBlocks(image, height, width, rounded(down), rounded(across))
    : byParts(image, height, width);
}

/** Each pixel is the mean of a block of `tall` by `wide` pixels. */
function byBlocks({ data, width: stride, channels }, height, width, tall, wide) {
  const out = new Uint8Array(height * width * channels);
  const part = Math.fround(1 / (tall * wide));
  const halvesUp = tall === 2 && wide === 2;
  let at = 0;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      for (let c = 0; c < channels; c++) {
        let sum = 0;
        for (let row = y * tall; row < (y + 1) * tall; row++) {
          const start = (row * stride + x * wide) * channels + c;
          for (let i = start; i < start + wide * channels; i += channels) sum += data[i];
        }
        out[at++] = halvesUp ? (sum + 2) >> 2 : rounded(Math.fround(Math.fround(sum) * part));
      }
    }
  }
  return { data: out, height, width, channels };
}

/** Each pixel is the mean of an area whose border covers parts of pixels, summed in 32 bits: rows, then columns. */
function byParts({ data, height: rows, width: columns, channels }, height, width) {
  const out = new Uint8Array(height * width * channels);
  const across = areaTaps(columns, width);
  const down = areaTaps(rows, height);
  const line = new Float32Array(width * channels);
  const sum = new Float32Array(width * channels);
  let next = 0;
  for (let y = 0; y < height; y++) {
    for (; next < down.target.length && down.target[next] === y; next++) {
      weightedRow(data, down.source[next] * columns * channels, across, channels, line);
      const part = down.part[next];
      const first = next === 0 || down.target[next - 1] !== y;
      for (let i = 0; i < line.length; i++) {
        const weighted = Math.fround(line[i] * part);
        sum[i] = first ? weighted : sum[i] + weighted;
      }
    }
    for (let i = 0; i < sum.length; i++) out[y * sum.length + i] = Math.min(rounded(sum[i]), 255);
  }
  return { data: out, height, width, channels };
}

function weightedRow(data, start, taps, channels, line) {
  line.fill(0);
  for (let tap = 0; tap < taps.target.length; tap++) {
    const from = start + taps.source[tap] * channels;
    const to = taps.target[tap] * channels;
    const part = taps.part[tap];
    for (let c = 0; c < channels; c++) line[to + c] += Math.fround(data[from + c] * part);
  }
}

/** Along one axis: the source pixels of each result pixel, and their weights. */
function areaTaps(from, to) {
  const scale = ratio(from, to);
  const taps = { source: [], target: [], part: [] };
  const add = (target, source, part) => {
    taps.target.push(target);
    taps.source.push(source);
    taps.part.push(Math.fround(part));
  };
  for (let target = 0; target < to; target++) {
    const start = target * scale;
    const end = start + scale;
    const cell = Math.min(scale, from - start);
    const last = Math.min(Math.floor(end), from - 1);
    const first = Math.min(Math.ceil(start), last);
    if (first - start > 1e-3) add(target, first - 1, (first - start) / cell);
    for (let source = first; source < last; source++) add(target, source, 1 / cell);
    if (end - last > 1e-3) add(target, last, Math.min(end - last, 1, cell) / cell);
  }
  return taps;
}

/** Bilinear interpolation in integers with 11-bit weights; the vertical step drops some bits. */
function bilinear({ data, height: rows, width: columns, channels }, height, width) {
  const out = new Uint8Array(height * width * channels);
  const across = linearTaps(columns, width, true);
  const down = linearTaps(rows, height, false);
  const above = new Int32Array(width * channels);
  const below = new Int32Array(width * channels);
  for (let y = 0; y < height; y++) {
    blendedRow(data, down.first[y] * columns * channels, across, channels, above);
    blendedRow(data, down.second[y] * columns * channels, across, channels, below);
    const [a, b] = [down.near[y], down.far[y]];
    for (let i = 0; i < above.length; i++) {
      const value = (((a * (above[i] >> 4)) >> 16) + ((b * (below[i] >> 4)) >> 16) + 2) >> 2;
      out[y * above.length + i] = Math.max(0, Math.min(value, 255));
    }
  }
  return { data: out, height, width, channels };
}

function blendedRow(data, start, taps, channels, line) {
  for (let x = 0; x < taps.first.length; x++) {
    const left = start + taps.first[x] * channels;
    const right = start + taps.second[x] * channels;
    for (let c = 0; c < channels; c++) {
      line[x * channels + c] = data[left + c] * taps.near[x] + data[right + c] * taps.far[x];
    }
  }
}

/** Along one axis: the two neighbours of each pixel and their weights; OpenCV clips those of columns at the border. */
function linearTaps(from, to, cut) {
  const scale = ratio(from, to);
  const taps = { first: [], second: [], near: [], far: [] };
  for (let target = 0; target < to; target++) {
    const place = Math.fround((target + 0.5) * scale - 0.5);
    let first = Math.floor(place);
    let part = Math.fround(place - first);
    if (cut && (first < 0 || first >= from - 1)) {
      first = first < 0 ? 0 : from - 1;
      part = 0;
    }
    taps.first.push(Math.max(0, Math.min(first, from - 1)));
    taps.second.push(Math.max(0, Math.min(first + 1, from - 1)));
    taps.near.push(rounded(Math.fround(Math.fround(1 - part) * 2048)));
    taps.far.push(rounded(Math.fround(part * 2048)));
  }
  return taps;
}
