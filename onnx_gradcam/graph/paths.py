"""Find the nodes and tensors on the paths between two tensors of a graph.

A path leads from a tensor to the outputs of the nodes that read it. `carries` decides which of these steps count: for a
gradient only the differentiable ones, so not those through shapes, axes, indices and bounds. Some nodes on a path only
show the same numbers in another shape or type (`VIEWS`); `keeps_order` tells whether their order stays the same.
`halves` cuts a model at what depends on some of its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from .builder import Builder
from .read import skeleton
from .shapes import Shape

__all__ = [
    "QUANTISATION",
    "RESHAPES",
    "VIEWS",
    "Carries",
    "Halves",
    "between",
    "captured",
    "carries_content",
    "dominators",
    "halves",
    "keeps_order",
    "node_inputs",
    "reached_from",
    "row_coupling",
]

Carries = Callable[[ir.Node, ir.Value], bool]
"""Whether a path leads from this input of this node to its outputs."""


_SHAPE_ONLY = {"ConstantOfShape", "EyeLike", "RandomNormalLike", "RandomUniformLike", "Shape", "Size"}
"""Operators that look at the shape of their input only."""


def carries_content(node: ir.Node, value: ir.Value) -> bool:  # noqa: ARG001 - it is one of `Carries`
    """Whether the content of an input changes the outputs, smoothly or by steps; its shape is no content."""
    return bool(node.domain) or node.op_type not in _SHAPE_ONLY


def node_inputs(node: ir.Node) -> Iterator[ir.Value]:
    """The tensors that a node reads, including those that its subgraphs capture from outside."""
    yield from (i for i in node.inputs if i is not None)
    yield from captured(node)


def captured(node: ir.Node) -> Iterator[ir.Value]:
    """The tensors that the subgraphs of a node read from outside, perhaps several times."""
    for attribute in node.attributes.values():
        if isinstance(attribute, ir.Attr) and attribute.type == ir.AttributeType.GRAPH:
            yield from _captured(attribute.as_graph())
        elif isinstance(attribute, ir.Attr) and attribute.type == ir.AttributeType.GRAPHS:
            for graph in attribute.as_graphs():
                yield from _captured(graph)


def _captured(graph: ir.Graph) -> Iterator[ir.Value]:
    for node in graph:
        for value in node_inputs(node):
            producer = value.producer()
            if value.graph is not graph and (producer is None or producer.graph is not graph):
                yield value
    yield from (o for o in graph.outputs if o.graph is not graph)


def reached_from(nodes: Sequence[ir.Node], sources: Iterable[ir.Value], carries: Carries) -> set[ir.Value]:
    """The tensors that paths from `sources` lead to, these included; the nodes are in topological order."""
    reached = set(sources)
    for node in nodes:
        if any(i in reached and carries(node, i) for i in node_inputs(node)):
            reached.update(node.outputs)
    return reached


def between(
    nodes: Sequence[ir.Node], sources: Iterable[ir.Value], sinks: Iterable[ir.Value], carries: Carries
) -> tuple[list[ir.Node], set[ir.Value]]:
    """The nodes and tensors on any path from `sources` to `sinks`; the nodes are and stay in topological order."""
    reached = reached_from(nodes, sources, carries)
    needed = {s for s in sinks if s in reached}
    path: list[ir.Node] = []
    for node in reversed(nodes):
        if any(o in needed for o in node.outputs):
            inputs = [i for i in node_inputs(node) if i in reached and carries(node, i)]
            if inputs:
                path.append(node)
                needed.update(inputs)
    return path[::-1], needed


def dominators(
    nodes: Sequence[ir.Node], source: ir.Value, sinks: Sequence[ir.Value], carries: Carries
) -> list[ir.Value]:
    """The tensors on *every* path from `source` to any of `sinks`, in order; empty where a sink has no path.

    The source is the first; a single sink is the last.

    Immediate dominators of a directed acyclic graph in one topological sweep, after Cooper, Harvey and Kennedy,
    "A Simple, Fast Dominance Algorithm", 2001.
    """
    path, alive = between(nodes, [source], sinks, carries)
    if not alive.issuperset(sinks):
        return []
    above: dict[ir.Value, ir.Value] = {}
    depth = {source: 0}
    for node in path:
        inputs = [i for i in node_inputs(node) if i in alive and i in depth and carries(node, i)]
        common = inputs[0]
        for other in inputs[1:]:
            common = _meet(common, other, above, depth)
        for output in node.outputs:
            if output in alive:
                above[output], depth[output] = common, depth[common] + 1
    last = sinks[0]
    for other in sinks[1:]:
        last = _meet(last, other, above, depth)
    chain = [last]
    while chain[-1] is not source:
        chain.append(above[chain[-1]])
    return chain[::-1]


def _meet(a: ir.Value, b: ir.Value, above: dict[ir.Value, ir.Value], depth: dict[ir.Value, int]) -> ir.Value:
    while a is not b:
        if depth[a] < depth[b]:
            a, b = b, a
        a = above[a]
    return a


RESHAPES = {"Reshape", "Flatten", "Squeeze", "Unsqueeze"}
VIEWS = {*RESHAPES, "Identity", "Dropout", "Cast", "Transpose"}
QUANTISATION = {"QuantizeLinear", "DequantizeLinear"}


def row_coupling(nodes: Iterable[ir.Node]) -> ir.Node | None:
    """The first node, also in subgraphs, that computes a range or a mean over the whole batch; `None` for none.

    DynamicQuantizeLinear takes the range of its tensor, BatchNormalization in training mode the statistics.
    """
    for node in nodes:
        training = node.op_type == "BatchNormalization" and node.attributes.get_int("training_mode", 0) != 0
        if training or node.op_type.startswith("DynamicQuantize"):
            return node
        graphs = [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
        inside = next(filter(None, map(row_coupling, graphs)), None)
        if inside is not None:
            return inside
    return None


def keeps_order(t: Builder, node: ir.Node, index: int = 0) -> bool:
    """Whether an elementwise node, or one that moves elements, keeps the order of the elements of its input `index`.

    A Reshape or Transpose does if its input and output are one vector per sample, of the same size. A Cast does unless
    it leaves floating point.
    """
    x, y = node.inputs[index], node.outputs[0]
    if x is None:
        return False
    before, after = t.wrap(x), t.wrap(y)
    if node.op_type == "Cast" and before.is_float and not after.is_float:
        return False
    if node.op_type in {"Identity", "Dropout", "Cast", *QUANTISATION}:
        return True
    if before.known_shape is None or after.known_shape is None:
        return False
    width = _vector(before.shape)
    return width is not None and width == _vector(after.shape) and before.shape[0] == after.shape[0]


def _vector(shape: Shape) -> int | str | None:
    """The size of the only axis after the batch that is not of size one; `None` if there are several."""
    wide = [d for d in shape[1:] if d != 1]
    return None if not shape or len(wide) > 1 else wide[0] if wide else 1


@dataclass(frozen=True, eq=False)
class Halves:
    """A model in two parts.

    Attributes:
        first: from the inputs that do not choose to `between`, and to the outputs `shared`.
        second: from `between` and the choices to all other outputs.
        between: the tensors that the second part takes from the first.
        shared: the outputs of the model that do not depend on the choices.
    """

    first: onnx.ModelProto
    second: onnx.ModelProto
    between: list[str]
    shared: list[str]


def halves(model: onnx.ModelProto, choices: Collection[str]) -> Halves | None:
    """Cut a model at what depends on some of its inputs, so that the rest runs once for several choices.

    Of an explained detector the first part is the forward pass, the second the way back from the score of a box to the
    layers.

    Args:
        model: a model whose nodes are in order; its large weights may be in other files.
        choices: names of the inputs that choose; they keep their defaults.

    Returns:
        The two parts, which share no node; `None` where a tensor between them has no known type, which an input of the
        second part has to declare.

    Example::

        parts = halves(attach("detector.onnx").to_proto(), {"target_class", "target_box"})
    """
    graph = model.graph
    reads = [{str(value.name) for value in node_inputs(node)} for node in ir.from_proto(model).graph]
    late, parts = set(choices), _Parts(model)
    for node, names in zip(graph.node, reads, strict=True):
        is_late = not late.isdisjoint(names)
        parts.add(node, names, is_late=is_late)
        late.update(node.output if is_late else ())
    declared = {info.name: info for info in (*graph.value_info, *graph.input, *graph.output)}
    inputs = [info.name for info in graph.input if info.name not in choices]
    computed = {name for node in graph.node for name in node.output} - late
    between = sorted(parts.read[True] & {*computed, *inputs})
    _declare(model, between, declared)
    if any(name not in declared for name in between):
        return None
    shared = [info.name for info in graph.output if info.name not in late]
    ends = [*shared, *(name for name in between if name in computed and name not in shared)]
    chosen = [info.name for info in graph.input if info.name in choices]
    others = [info.name for info in graph.output if info.name in late]
    first = parts.model([declared[n] for n in inputs], [declared[n] for n in ends], is_late=False)
    second = parts.model([declared[n] for n in (*between, *chosen)], [declared[n] for n in others], is_late=True)
    return Halves(first, second, between, shared)


def _declare(model: onnx.ModelProto, names: Sequence[str], declared: dict[str, onnx.ValueInfoProto]) -> None:
    """Add, in place, the inferred types of tensors that the model does not declare, such as numbers without a shape."""
    if all(name in declared for name in names):
        return
    for info in onnx.shape_inference.infer_shapes(skeleton(model)).graph.value_info:
        if info.type.tensor_type.elem_type:
            declared.setdefault(info.name, info)


class _Parts:
    """Collects the nodes of the two parts, and the tensors they read."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._whole = model
        self._nodes: dict[bool, list[onnx.NodeProto]] = {False: [], True: []}
        self.read: dict[bool, set[str]] = {False: set(), True: set()}

    def add(self, node: onnx.NodeProto, names: Collection[str], *, is_late: bool) -> None:
        self._nodes[is_late].append(node)
        self.read[is_late].update(names)

    def model(
        self, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto], *, is_late: bool
    ) -> onnx.ModelProto:
        """One part as a model, with the weights it reads and the defaults of its inputs."""
        whole, needed = self._whole, self.read[is_late] | {info.name for info in inputs}
        part = onnx.ModelProto(ir_version=whole.ir_version, opset_import=whole.opset_import, functions=whole.functions)
        part.graph.name = whole.graph.name
        part.graph.node.extend(self._nodes[is_late])
        part.graph.input.extend(inputs)
        part.graph.output.extend(outputs)
        part.graph.initializer.extend(tensor for tensor in whole.graph.initializer if tensor.name in needed)
        return part
