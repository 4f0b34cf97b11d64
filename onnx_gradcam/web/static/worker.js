// Decodes and runs the model beside the page, which stays responsive.

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
    const picture = await decode(file);
    const found = await engine.look(picture);
    return { ...found, shown: shownAs(picture), height: picture.height, width: picture.width };
  },
  explain: ({ index }) => engine.explain(index),
};

/** The picture at the size of a screen. */
function shownAs(picture) {
  const factor = Math.min(1, LARGEST_SHOWN / Math.max(picture.height, picture.width));
  const [height, width] = [picture.height, picture.width].map((side) => Math.max(1, Math.round(side * factor)));
  return resized(picture, height, width);
}

onmessage = async ({ data: { kind, ...request } }) => {
  try {
    postMessage({ answer: await answers[kind](request) });
  } catch (error) {
    postMessage({ error: error.message });
  }
};
