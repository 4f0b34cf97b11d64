// Draws a heatmap over its image, as `onnx_gradcam.images.drawing.overlay`.

/**
 * Project a heatmap onto the part of the image that the model saw: bilinear between cell centres, NaN outside.
 * @param {{values: Float32Array, height: number, width: number}} heatmap
 * @param {number[]} box [x0, y0, x1, y1] in pixels of the result.
 */
export function projected(heatmap, box, height, width) {
  const rows = taps(height, box[1], box[3], heatmap.height);
  const columns = taps(width, box[0], box[2], heatmap.width);
  const laid = new Float32Array(height * width).fill(NaN);
  const at = (row, column) => heatmap.values[row * heatmap.width + column];
  for (let y = 0; y < height; y++) {
    if (!rows[y].inside) continue;
    const { first: top, second: bottom, part: down } = rows[y];
    for (let x = 0; x < width; x++) {
      const { first: left, second: right, part: across, inside } = columns[x];
      if (!inside) continue;
      const west = at(top, left) + (at(bottom, left) - at(top, left)) * down;
      const east = at(top, right) + (at(bottom, right) - at(top, right)) * down;
      laid[y * width + x] = west + (east - west) * across;
    }
  }
  return laid;
}

function taps(pixels, start, end, cells) {
  return Array.from({ length: pixels }, (_, pixel) => {
    const centre = pixel + 0.5;
    const place = Math.max(0, Math.min((centre - start) * (cells / (end - start)) - 0.5, cells - 1));
    const first = Math.floor(place);
    return {
      first,
      second: Math.min(first + 1, cells - 1),
      part: place - first,
      inside: centre >= start && centre <= end,
    };
  });
}

/**
 * The pixels of `(1 - opacity) * image + opacity * colours`; outside the part that the model saw, those of the image.
 * @param {import("./resizing.js").Image} image RGB.
 * @param {Float32Array} laid
 * @param {Uint8Array} colours 256 colours of three bytes.
 */
export function overlaid(image, laid, colours, opacity) {
  const drawn = new ImageData(image.width, image.height);
  for (let i = 0; i < laid.length; i++) {
    const seen = !Number.isNaN(laid[i]);
    const level = seen ? Math.round(Math.max(0, Math.min(laid[i], 1)) * 255) * 3 : 0;
    for (let c = 0; c < 3; c++) {
      const below = image.data[i * 3 + c];
      drawn.data[i * 4 + c] = seen ? (1 - opacity) * below + opacity * colours[level + c] : below;
    }
    drawn.data[i * 4 + 3] = 255;
  }
  return drawn;
}

/** The position of the maximum of a heatmap, in words; null if it is blank. */
export function hottest(laid, height, width) {
  let best = -1;
  for (let i = 0; i < laid.length; i++) if (laid[i] > (best < 0 ? 0 : laid[best])) best = i;
  if (best < 0) return null;
  const third = (place, size) => Math.min(2, Math.floor((3 * place) / size));
  const row = ["top", "middle", "bottom"][third(Math.floor(best / width), height)];
  const column = ["left", "centre", "right"][third(best % width, width)];
  return row === "middle" && column === "centre" ? "centre" : `${row} ${column}`;
}

/** The bytes of a hexadecimal string. */
export function bytesOf(text) {
  return Uint8Array.from(text.match(/../g), (pair) => parseInt(pair, 16));
}
