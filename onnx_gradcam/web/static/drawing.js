// Draws a heatmap over its image, as `onnx_gradcam.images.drawing.overlay`, and boxes over both.

const LABEL = { height: 20, margin: 5, baseline: 14 };

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

/**
 * Draw boxes with their names, the chosen one last; a click on a box hits the smallest one there, by its `data-index`.
 * @param {SVGElement} svg
 * @param {{key: number, name: string, xyxy: number[]}[]} boxes
 * @param {number} chosen the key of the chosen box.
 * @param {{scale: number, width: number, height: number}} shown pixels of the screen per pixel of the image, and the
 *   size of the image on the screen.
 */
export function mark(svg, boxes, chosen, shown) {
  const placed = boxes.map((box) => ({ ...box, xyxy: box.xyxy.map((place) => place * shown.scale) }));
  svg.replaceChildren();
  const ordered = [...placed].sort((a, b) => (a.key === chosen) - (b.key === chosen));
  const group = ({ key }) => append(svg, "g", { class: key === chosen ? "chosen" : "" });
  for (const box of ordered) {
    const lines = group(box);
    for (const kind of ["edge", "line"]) append(lines, "rect", { class: kind, ...sides(box.xyxy) });
  }
  const taken = [];
  for (const box of ordered) taken.push(label(group(box), box.name, box.xyxy, shown, taken));
  const area = ({ xyxy: [x0, y0, x1, y1] }) => (x1 - x0) * (y1 - y0);
  for (const box of placed.sort((a, b) => area(b) - area(a))) {
    append(svg, "rect", { class: "hit", "data-index": box.key, ...sides(box.xyxy) });
  }
}

/** Write a name beside a box, within the image and where it covers no other if there is such a place; its corners. */
function label(group, name, [x0, y0, x1, y1], { width, height }, taken) {
  const ground = append(group, "rect", { class: "ground" });
  const text = append(group, "text", {});
  text.textContent = name;
  const wide = text.getComputedTextLength() + 2 * LABEL.margin;
  const tall = LABEL.height;
  const places = [y0 - tall, y0, y1, y1 - tall].flatMap((y) => [x0, x1 - wide].map((x) => [x, y]));
  const fitting = places.filter(([, y]) => y >= 0 && y + tall <= height);
  const corners = [...fitting, [x0, Math.min(y0, height - tall)]].map(([x, y]) => {
    const [left, top] = [Math.max(0, Math.min(x, width - wide)), Math.max(0, y)];
    return [left, top, left + wide, top + tall];
  });
  const covered = corners.map((one) => taken.reduce((sum, other) => sum + common(one, other), 0));
  const best = corners[covered.indexOf(Math.min(...covered))];
  set(ground, sides(best));
  set(text, { x: best[0] + LABEL.margin, y: best[1] + LABEL.baseline });
  return best;
}

/** The area that two rectangles have in common. */
function common(one, other) {
  const across = Math.min(one[2], other[2]) - Math.max(one[0], other[0]);
  const down = Math.min(one[3], other[3]) - Math.max(one[1], other[1]);
  return Math.max(across, 0) * Math.max(down, 0);
}

function sides([x0, y0, x1, y1]) {
  return { x: x0, y: y0, width: Math.max(0, x1 - x0), height: Math.max(0, y1 - y0) };
}

function append(parent, name, attributes) {
  const made = parent.appendChild(document.createElementNS(parent.namespaceURI, name));
  set(made, attributes);
  return made;
}

function set(element, attributes) {
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
}

/** The bytes of a hexadecimal string. */
export function bytesOf(text) {
  return Uint8Array.from(text.match(/../g), (pair) => parseInt(pair, 16));
}
