"""Write a dynamically quantised model with real weights instead: `python benchmarks/dequantised.py MODEL OUTPUT`.

Each ConvInteger between a DynamicQuantizeLinear and the product with the scales becomes one Conv of the weights times
their scale, with the bias that is added behind it. Activations are no longer rounded, so that outputs differ a little;
the model is meant for measuring how long a float model of this architecture takes where only the quantised file is at
hand.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper


def dequantised(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with a Conv in place of every dynamically quantised one.

    Raises:
        SystemExit: a ConvInteger whose surroundings are not those that ONNX Runtime's quantizer writes.
    """
    graph = model.graph
    producers = {output: node for node in graph.node for output in node.output}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "ConvInteger"]:
        source = producers[node.input[0]]
        cast = _reader(graph, node.output[0])
        product = _reader(graph, cast.output[0])
        scales = producers[next(name for name in product.input if name != cast.output[0])]
        scale = next((constants[name] for name in scales.input if name in constants), None)
        if source.op_type != "DynamicQuantizeLinear" or cast.op_type != "Cast" or scale is None:
            raise SystemExit(f"{node.name!r} is not quantised dynamically, with scales of its weights as constants")
        zero = constants[node.input[3]] if len(node.input) > 3 and node.input[3] else np.zeros((), np.uint8)
        per_channel = (-1, *[1] * (constants[node.input[1]].ndim - 1))
        weights = constants[node.input[1]].astype(np.float32) - zero.astype(np.float32).reshape(per_channel)
        name = f"{node.name}/real_weights"
        weights = weights * np.reshape(scale, per_channel).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(weights, np.float32), name))
        inputs, last, bias = [source.input[0], name], product, _bias(graph, product, producers, constants)
        if bias is not None:
            last, values = bias
            inputs.append(f"{node.name}/real_bias")
            graph.initializer.append(numpy_helper.from_array(values, inputs[2]))
        real = onnx.helper.make_node("Conv", inputs, [last.output[0]], f"{node.name}/real")
        real.attribute.extend(node.attribute)
        place = list(graph.node).index(last)
        graph.node.remove(last)
        graph.node.insert(place, real)
    return _without_the_unread(model)


def _bias(
    graph: onnx.GraphProto,
    product: onnx.NodeProto,
    producers: dict[str, onnx.NodeProto],
    constants: dict[str, np.ndarray[Any, Any]],
) -> tuple[onnx.NodeProto, np.ndarray[Any, Any]] | None:
    """The Add behind a convolution, and the values that it adds to the channels."""
    readers = [node for node in graph.node if product.output[0] in node.input]
    if len(readers) != 1 or readers[0].op_type != "Add":
        return None
    other = next(name for name in readers[0].input if name != product.output[0])
    node = producers.get(other)
    source = node.input[0] if node is not None and node.op_type == "Reshape" else other
    return (readers[0], constants[source].reshape(-1)) if source in constants else None


def _reader(graph: onnx.GraphProto, name: str) -> onnx.NodeProto:
    (node,) = [node for node in graph.node if name in node.input]
    return node


def _without_the_unread(model: onnx.ModelProto) -> onnx.ModelProto:
    graph, read = model.graph, {output.name for output in model.graph.output}
    for node in reversed(list(graph.node)):
        if read.isdisjoint(node.output):
            graph.node.remove(node)
        else:
            read.update(node.input)
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    onnx.checker.check_model(model)
    return model


def main(arguments: Sequence[str] | None = None) -> None:
    """Read one model and write the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("output")
    options = parser.parse_args(arguments)
    onnx.save(dequantised(onnx.load(options.model)), options.output)


if __name__ == "__main__":
    main()
