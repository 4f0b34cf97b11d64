// Runs a model in one of ONNX Runtime's JavaScript packages: `node run.js` a job that is written to it, a tab the one
// that it is called with. Bytes travel in base64.

const KINDS = { float32: Float32Array, float16: Uint16Array, uint8: Uint8Array, int8: Int8Array, int32: Int32Array, int64: BigInt64Array };

const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

function base64({ buffer, byteOffset, byteLength }) {
  let text = "";
  for (let i = 0; i < byteLength; i += 8192) {
    text += String.fromCharCode(...new Uint8Array(buffer, byteOffset + i, Math.min(8192, byteLength - i)));
  }
  return btoa(text);
}

/** The outputs of a model for each of several sets of inputs. */
async function run(ort, { model, sets, outputs, options }) {
  const session = await ort.InferenceSession.create(bytes(model), options);
  const answers = [];
  for (const inputs of sets) {
    const feeds = {};
    for (const [name, { type, dims, data }] of Object.entries(inputs)) {
      feeds[name] = new ort.Tensor(type, new KINDS[type](bytes(data).buffer), dims);
    }
    const results = await session.run(feeds, outputs);
    answers.push(outputs.map((name) => results[name]).map(({ type, dims, data }) => ({ type, dims, data: base64(data) })));
  }
  await session.release();
  return answers;
}

if (typeof require === "function") {
  const job = JSON.parse(require("node:fs").readFileSync(0, "utf8"));
  run(require("onnxruntime-node"), job).then((answers) => process.stdout.write(JSON.stringify(answers)));
}
