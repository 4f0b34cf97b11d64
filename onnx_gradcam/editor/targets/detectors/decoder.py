"""The part of a detector behind its last convolutions, run by itself on numbers that stand for what they compute."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_gradcam.graph.builder import Builder, Value
from onnx_gradcam.graph.fold import evaluate_node
from onnx_gradcam.graph.paths import between, carries_content

from .columns import producer_of

__all__ = ["Decoder", "single_positions"]

Array = npt.NDArray[Any]

_LINEAR = {
    *("AveragePool", "BatchNormalization", "Conv", "ConvInteger", "ConvTranspose", "DynamicQuantizeLinear", "Einsum"),
    *("GRU", "Gemm", "GlobalAveragePool", "GridSample", "InstanceNormalization", "LSTM", "LayerNormalization"),
    *("MatMul", "MatMulInteger", "MaxPool", "QLinearConv", "QLinearMatMul", "Resize", "RoiAlign"),
}
_CHOOSING = {"ArgMax", "ArgMin", "TopK", "NonZero", "NonMaxSuppression", "Unique", "Compress"}
_VIEWS = {"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Cast", "Flatten", "Slice"}
_LARGEST = 2**24
"""Numbers in the largest tensor of a decoder that is run."""
_FEWEST = 64
"""Rows from which on one that reads several positions would be noticed: each of them is with a chance of a half."""


@dataclass(frozen=True, eq=False)
class Decoder:
    """The nodes between the last convolutions and a tensor.

    Attributes:
        t: the graph.
        value: the tensor.
        nodes: the nodes, in order.
        leaves: what they read that others compute, constants included.
    """

    t: Builder
    value: Value
    nodes: Sequence[ir.Node]
    leaves: Sequence[ir.Value]

    @classmethod
    def of(cls, t: Builder, value: Value) -> Decoder:
        """The decoder of a tensor."""
        wanted, leaves = {value.core}, []
        nodes = []
        for node in reversed(t.nodes):
            outputs = [o for o in node.outputs if o in wanted]
            if not outputs:
                continue
            if _is_leaf(t, node):
                leaves += outputs
            else:
                nodes.append(node)
                wanted.update(i for i in node.inputs if i is not None)
        leaves += [v for v in wanted if v.producer() is None]
        return cls(t, value, nodes[::-1], leaves)

    @property
    def chooses(self) -> bool:
        """Whether scores choose what the decoder reads."""
        producers = (leaf.producer() for leaf in self.leaves)
        return any(node is not None and node.op_type in _CHOOSING for node in producers)

    def contents(self, free: int | None, rng: np.random.Generator | None) -> dict[str, Array] | None:
        """Numbers for all leaves: constants, and zeros or with `rng` random ones for what is computed.

        A batch of the size that stands for a `free` one is one. `None` where a size is unknown or too large.
        """
        found: dict[str, Array] = {}
        for leaf in self.leaves:
            content = _content(self.t.wrap(leaf), free, rng)
            if content is None:
                return None
            found[str(leaf.name)] = content
        return found

    def run(self, contents: Mapping[str, Array]) -> Array | None:
        """The tensor; `None` if it cannot be computed."""
        known = dict(contents)
        opsets = dict(self.t.model.core.opset_imports)
        for node in self.nodes:
            inputs = {str(i.name): known[str(i.name)] for i in node.inputs if i}
            results = evaluate_node(ir.to_proto(node), inputs, opsets)
            if results is None or sum(r.size for r in results) > _LARGEST:
                return None
            known.update((str(o.name), r) for o, r in zip(node.outputs, results, strict=True))
        return known[self.value.name]


def _content(tensor: Value, free: int | None, rng: np.random.Generator | None) -> Array | None:
    constant, shape = tensor.array(), tensor.probe_shape
    if constant is not None:
        return constant
    if shape is None or tensor.dtype is None:
        return None
    shape = tuple(1 if axis == 0 and size == free else size for axis, size in enumerate(shape))
    if math.prod(shape) > _LARGEST:
        return None
    if rng is None or tensor.dtype.kind == "b":
        return np.zeros(shape, tensor.dtype)
    numbers = rng.integers(0, 3, shape) if tensor.dtype.kind in "iu" else rng.standard_normal(shape) * 0.1
    return np.asarray(numbers, tensor.dtype)


def _is_leaf(t: Builder, node: ir.Node) -> bool:
    """Whether a node belongs to the network and not to the decoder; the mean of bins of a softmax is of the decoder."""
    if node.domain or node.op_type in _CHOOSING:
        return True
    if node.op_type not in _LINEAR or node.inputs[0] is None:
        return False
    if t.wrap(node.outputs[0]).array() is not None:
        return False
    source = t.wrap(node.inputs[0])
    while producer_of(source) in _VIEWS:
        before = source.core.producer()
        assert before is not None  # noqa: S101 - it has an operator
        if before.inputs[0] is None:
            break
        source = t.wrap(before.inputs[0])
    return producer_of(source) != "Softmax"


def single_positions(t: Builder, table: Value, free: int | None) -> set[ir.Value]:
    """The maps `[N, C, H, W]` of which every row of a table `[N, rows, K]` reads one position; empty if not of all.

    The decoder is run three times: on random maps, with a random half of all positions changed, and with the other half
    changed. A row that reads several positions, which with many rows there are many of, differs in both.
    """
    decoder = Decoder.of(t, table)
    maps = [leaf for leaf in decoder.leaves if leaf.producer() is not None]
    maps = [leaf for leaf in maps if t.wrap(leaf).is_float and t.wrap(leaf).known_shape is not None]
    maps = [leaf for leaf in maps if t.wrap(leaf).rank == 4]
    contents = decoder.contents(free, np.random.default_rng(0))
    if not maps or decoder.chooses or contents is None:
        return set()
    tables = [decoder.run(contents), *(decoder.run(_half_changed(contents, maps, side)) for side in (0, 1))]
    known = [table for table in tables if table is not None]
    if len(known) < len(tables) or len({table.shape for table in known}) > 1 or known[0].shape[1] < _FEWEST:
        return set()
    first, second = ((table != known[0]).any(axis=(0, 2)) for table in known[1:])
    return set() if (first & second).any() else _read_directly(t, decoder, maps)


def _read_directly(t: Builder, decoder: Decoder, maps: Sequence[ir.Value]) -> set[ir.Value]:
    """The maps whose numbers the decoder reads, and not only their sizes, and that nothing else it reads comes from."""
    read = [leaf for leaf in maps if between(decoder.nodes, [leaf], [decoder.value.core], carries_content)[0]]
    computed = {leaf for leaf in decoder.leaves if leaf.producer() is not None}
    return {leaf for leaf in read if not between(t.nodes, [leaf], computed - {leaf}, carries_content)[0]}


def _half_changed(contents: Mapping[str, Array], maps: Sequence[ir.Value], side: int) -> dict[str, Array]:
    """The contents with one half of the positions of maps changed; maps of one size share their halves."""
    changed = dict(contents)
    for leaf in maps:
        content = contents[str(leaf.name)]
        half = np.random.default_rng(content.shape[2:]).integers(0, 2, content.shape[2:])
        changed[str(leaf.name)] = (content + (half == side)).astype(content.dtype)
    return changed
