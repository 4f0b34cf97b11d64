// Decodes images and runs the model in the background, so that the page stays responsive.

import { decode } from "./decoding.js";
import { Engine } from "./engine.js";
import { resized } from "./resizing.js";

const LARGEST_SHOWN = 1024;
let engine;

const answers = {
  async open({ site }) {
    engine = await Engine.open(site, (done) => postMessage({ progress: done }));
    return {};
  },
  async look({ file }) {
    const image = await decode(file);
    const answer = await engine.look(image);
    return { ...answer, shown: shownAs(image), height: image.height, width: image.width };
  },
  explain: ({ index, row }) => engine.explain(index, row),
};

/** The image, scaled down to the size of a screen. */
function shownAs(image) {
  const factor = Math.min(1, LARGEST_SHOWN / Math.max(image.height, image.width));
  const [height, width] = [image.height, image.width].map((side) => Math.max(1, Math.round(side * factor)));
  return resized(image, height, width);
}

onmessage = async ({ data: { kind, ...request } }) => {
  try {
    postMessage({ answer: await answers[kind](request) });
  } catch (error) {
    postMessage({ error: error.message });
  }
};
