// Boxes of a detector in one image: listed after suppressing overlaps, as `onnx_gradcam.runtime.detections`.

const LEAST_SCORE = 2 ** -126; // the smallest normal number of 32 bits
const LEAST_AREA = 1e-12;

/**
 * A box: its number in the list, its index in the model's table, its class, the probability of that class, and
 * [x0, y0, x1, y1] in pixels of the image, null where the model does not tell.
 * @typedef {{n: number, index: number, target: number, score: number, xyxy: number[] | null}} Box
 */

/**
 * The boxes with a score of at least `least`, the surest first, each of its best class. Of two boxes of one class whose
 * intersection over union is larger than `overlap`, only the surer one is kept.
 * @param {{scores: Float32Array, corners: Float32Array | null, rows: number, classes: number}} table all boxes; corners
 *   are in pixels of the model's input.
 * @param {{height: number, width: number}} input the size of the model's input.
 * @param {number[]} seen the part of the image that the model sees, [x0, y0, x1, y1] in pixels of the image.
 * @param {{height: number, width: number}} image
 * @param {{least: number, overlap: number}} limits
 * @returns {{boxes: Box[], highest: number}} the boxes, and the highest score of the table.
 */
export function listed(table, input, seen, image, { least, overlap }) {
  const best = Array.from({ length: table.rows }, (_, index) => ({ index, ...bestOf(table, index) }));
  const highest = best.reduce((most, { score }) => Math.max(most, score || 0), 0);
  const place = placed(table, input, seen);
  let left = best
    .filter(({ score }) => score >= Math.max(least, LEAST_SCORE))
    .sort((a, b) => b.score - a.score)
    .map((box) => ({ ...box, corners: place(box.index) }));
  const kept = [];
  while (left.length > 0) {
    const [surest, ...others] = left;
    kept.push(surest);
    left = others.filter(
      (other) =>
        surest.corners === null || other.target !== surest.target || shared(surest.corners, other.corners) <= overlap,
    );
  }
  const boxes = kept.map(({ corners, ...box }, n) => ({ n, ...box, xyxy: inside(corners, image) }));
  return { boxes, highest };
}

/** The class with the highest score in a row of the table; its score is NaN if one of them is. */
function bestOf({ scores, classes }, row) {
  let [target, score] = [0, -Infinity];
  for (let k = 0; k < classes; k++) {
    const value = scores[row * classes + k];
    if (value > score || Number.isNaN(value)) [target, score] = [k, value];
  }
  return { target, score };
}

/** A function from the index of a box to its corners in pixels of the image, null for all where they are unknown. */
function placed({ corners }, input, [left, top, right, bottom]) {
  if (corners === null) return () => null;
  const [across, down] = [(right - left) / input.width, (bottom - top) / input.height];
  return (index) => {
    const [x0, y0, x1, y1] = corners.subarray(4 * index, 4 * index + 4);
    return [x0 * across + left, y0 * down + top, x1 * across + left, y1 * down + top];
  };
}

function shared(box, other) {
  const area = ([x0, y0, x1, y1]) => Math.max(x1 - x0, 0) * Math.max(y1 - y0, 0);
  const common = area([
    Math.max(box[0], other[0]),
    Math.max(box[1], other[1]),
    Math.min(box[2], other[2]),
    Math.min(box[3], other[3]),
  ]);
  return common / Math.max(area(other) + area(box) - common, LEAST_AREA);
}

function inside(corners, { height, width }) {
  if (corners === null || !corners.every(Number.isFinite)) return null;
  return corners.map((place, i) => Math.max(0, Math.min(place, i % 2 ? height : width)));
}
