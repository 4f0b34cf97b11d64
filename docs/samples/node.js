// Explains one image with onnxruntime-node:  node node.js MODEL INPUT CLASS OUTPUT
//
// MODEL is written by `onnx-gradcam attach --for node`, INPUT holds the preprocessed image as float32 numbers in the order
// of the model's input. The heatmap is written to OUTPUT as float32, row by row.

const { readFileSync, writeFileSync } = require("node:fs");
const ort = require("onnxruntime-node");

async function explain(model, input, chosen, output) {
  const session = await ort.InferenceSession.create(model);
  const [image] = session.inputMetadata;
  const shape = image.shape.map((size, axis) => (axis === 0 ? 1 : size));
  const data = new Float32Array(new Uint8Array(readFileSync(input)).buffer);
  const { heatmap, heatmap_class } = await session.run({
    [image.name]: new ort.Tensor("float32", data, shape),
    target_class: new ort.Tensor("int64", BigInt64Array.of(BigInt(chosen)), [1]),
  });
  writeFileSync(output, Buffer.from(heatmap.data.buffer, heatmap.data.byteOffset, heatmap.data.byteLength));
  console.log(`class ${heatmap_class.data[0]}, heatmap [${heatmap.dims.join(",")}]`);
}

if (process.argv.length !== 6) {
  console.error("usage: node node.js MODEL INPUT CLASS OUTPUT");
  process.exitCode = 2;
} else {
  explain(...process.argv.slice(2)).catch((error) => {
    console.error(`error: ${error.message}`);
    process.exitCode = 1;
  });
}
