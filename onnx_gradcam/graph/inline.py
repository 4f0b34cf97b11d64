"""Replace control flow that does not depend on the input by plain nodes.

An If whose condition follows from constants and fixed sizes becomes the nodes of its branch; a Loop whose trip count
does becomes one copy of its body an iteration. `constant` computes such conditions and counts without running the
model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_gradcam.errors import UnsupportedError

from .builder import Builder, Value
from .fold import evaluate_node
from .model import Model
from .shapes import Shape, TensorInfo

__all__ = ["MOST_ITERATIONS", "MOST_NODES", "Array", "constant", "inline_known_branches", "loop_iterations", "unroll"]

Array = npt.NDArray[Any]

_LARGEST = 100
"""Elements of the largest tensor to read or compute."""

_ARITHMETIC = {
    *("Add", "And", "Cast", "Concat", "Div", "Equal", "Gather", "Greater", "GreaterOrEqual", "Identity", "Less"),
    *("LessOrEqual", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "ReduceMax", "ReduceMin", "ReduceProd"),
    *("ReduceSum", "Reshape", "Slice", "Squeeze", "Sub", "Unsqueeze", "Where", "Xor"),
}
"""Operators with outputs about as small as their inputs."""


def constant(t: Builder, result: ir.Value, assumed: Mapping[ir.Value, Array] | None = None) -> Array | None:
    """The content of a small tensor that follows from constants and fixed sizes alone, else `None`.

    `result` may be in a subgraph; `assumed` are contents to assume, e.g. of the inputs of the subgraph.
    """
    contents = dict(assumed or {})
    sizes: dict[ir.Value, Shape] = {}
    for value in _ancestors(result):
        node, content = value.producer(), None if value in contents else _small(t.wrap(value))
        if content is not None:
            contents[value] = content
        if value in contents or node is None:
            continue
        x = node.inputs[0] if node.inputs else None
        if node.op_type == "Shape" and x is not None:
            shape = t.wrap(x).known_shape
            if shape is not None:
                sizes[value] = shape[_limit(node, "start") : _limit(node, "end")]
                _pick(contents, value, sizes[value], np.arange(len(sizes[value])))
        elif node.op_type == "Gather" and x in sizes and node.inputs[1] in contents:
            # The other dimensions may be free.
            _pick(contents, value, sizes[x], contents[node.inputs[1]])
        elif all(i is None or i in contents for i in node.inputs):
            contents.update(_evaluated(t, node, contents))
    return contents.get(result)


def _ancestors(value: ir.Value) -> list[ir.Value]:
    """The tensors that `value` is computed from by arithmetic, in topological order, `value` last."""
    order: list[ir.Value] = []
    seen: set[ir.Value] = set()
    stack = [(value, False)]
    while stack:
        v, finished = stack.pop()
        if finished:
            order.append(v)
        elif v not in seen:
            seen.add(v)
            stack.append((v, True))
            node = v.producer()
            if node is not None and not node.domain and node.op_type in _ARITHMETIC:
                stack.extend((i, False) for i in node.inputs if i is not None)
    return order


def _small(value: Value) -> Array | None:
    """The content of a small constant of the graph."""
    try:
        tensor = ir.convenience.get_const_tensor(value.core)
    except ValueError:  # a sparse one
        return None
    return tensor.numpy() if tensor is not None and tensor.size <= _LARGEST else None


def _limit(node: ir.Node, name: str) -> int | None:
    attribute = node.attributes.get(name)
    return None if attribute is None else attribute.as_int()


def _pick(contents: dict[ir.Value, Array], y: ir.Value, shape: Shape, indices: Array) -> None:
    if all(-len(shape) <= i < len(shape) for i in indices.flat):
        picked = [shape[int(i)] for i in indices.flat]
        if all(isinstance(d, int) for d in picked):
            contents[y] = np.array(picked, np.int64).reshape(indices.shape)


def _evaluated(t: Builder, node: ir.Node, contents: Mapping[ir.Value, Array]) -> dict[ir.Value, Array]:
    if node.domain or node.op_type not in _ARITHMETIC:
        return {}
    feeds = {str(i.name): contents[i] for i in node.inputs if i is not None}
    results = evaluate_node(ir.to_proto(node), feeds, {"": t.opset})
    if results is None:
        return {}
    return {o: array for o, array in zip(node.outputs, results, strict=True) if array.size <= _LARGEST}


MOST_ITERATIONS = 1000
"""Iterations of the longest Loop to unroll."""

MOST_NODES = 20_000
"""Nodes of the largest model that unrolling a Loop may produce."""


def inline_known_branches(model: Model) -> bool:
    """Replace, in place, every If of the main graph whose condition follows from constants and fixed sizes.

    Tensors of the branch keep their names if these are free. Returns whether the model changed.
    """
    changed = False
    while any(_is(node, "If") for node in model.core.graph):
        t = Builder(model)
        decided = []
        for node in t.nodes:
            condition = _scalar(t, node.inputs[0]) if _is(node, "If") else None
            if condition is not None:
                decided.append((node, "then_branch" if condition else "else_branch"))
        if not decided:
            break
        names = _names(model)
        for node, branch in decided:
            _inline(t, node, branch, names)
        # A sharper shape may decide the next condition.
        model.infer()
        changed = True
    return changed


def _inline(t: Builder, node: ir.Node, branch: str, names: Mapping[str, int]) -> None:
    outside = set(t.graph)
    graph = node.attributes[branch].as_graph()
    outputs = _splice(t, graph, [], node, lambda name: name if names[name] == 1 else t.unique(name))
    _replace(t, node, outputs, outside)


def loop_iterations(t: Builder, node: ir.Node) -> int:
    """How often a Loop runs.

    Raises:
        UnsupportedError: its trip count or condition is not constant, it never runs, or it is too long to unroll.
    """
    where = f"node {node.name!r} producing {node.outputs[0].name!r}"
    trips, condition = node.inputs[0], node.inputs[1]
    body = node.attributes["body"].as_graph()
    goes_on = _scalar(t, body.outputs[0], {body.inputs[1]: np.ones((), np.bool_)})
    if not goes_on or not (condition is None or _scalar(t, condition)):
        raise UnsupportedError(f"the condition of a Loop is not constant ({where}), so it cannot be differentiated")
    count = _scalar(t, trips)
    if count is None:
        raise UnsupportedError(f"the trip count of a Loop is not constant ({where}), so it cannot be differentiated")
    size = t.graph.num_nodes() + count * sum(1 for _ in body.all_nodes())
    if count > MOST_ITERATIONS or size > MOST_NODES:
        raise UnsupportedError(
            f"a Loop of {count} iterations is too long to unroll ({where}): at most {MOST_ITERATIONS} iterations and "
            f"{MOST_NODES} nodes are possible; choose a layer after it"
        )
    if count < 1:
        raise UnsupportedError(f"a Loop never runs ({where}), so it cannot be differentiated")
    return count


def unroll(t: Builder, node: ir.Node) -> None:
    """Unroll a Loop, in place: one copy of its body an iteration; see `loop_iterations` for its errors.

    Its outputs keep their names.
    """
    body = node.attributes["body"].as_graph()
    count, carried = loop_iterations(t, node), len(body.inputs) - 2
    outside = set(t.graph)
    states: Sequence[ir.Value | None] = node.inputs[2:]
    steps: list[Sequence[ir.Value]] = []
    for i in range(count):
        copy = body.clone(allow_outer_scope_values=True)
        ins = [t.const(i, np.int64).core, t.const(1, np.bool_).core, *states]
        _, *outputs = _splice(t, copy, ins, node, t.unique)
        states = outputs[:carried]
        steps.append(outputs[carried:])
    stacked = [_stack(t, rows, node) for rows in zip(*steps, strict=True)]
    _replace(t, node, [*(s for s in states if s is not None), *stacked], outside)


def _is(node: ir.Node, op_type: str) -> bool:
    return node.domain == "" and node.op_type == op_type


def _scalar(t: Builder, value: ir.Value | None, assumed: Mapping[ir.Value, Array] | None = None) -> int | None:
    """The content of a constant of one element."""
    content = None if value is None else constant(t, value, assumed)
    return int(content.item()) if content is not None and content.size == 1 else None


def _names(model: Model) -> Counter[str]:
    """How many tensors have each name: subgraphs may share names with each other, not with the main graph."""
    main = model.core.graph
    graphs = [main, *main.subgraphs()]
    values = [v for g in graphs for v in (*g.inputs, *g.initializers.values())]
    return Counter(str(v.name) for v in (*values, *(o for g in graphs for node in g for o in node.outputs)))


def _splice(
    t: Builder, body: ir.Graph, inputs: Sequence[ir.Value | None], before: ir.Node, named: Callable[[str], str]
) -> list[ir.Value]:
    """Move the nodes and initializers of a subgraph into the main graph; returns its outputs there."""
    ins = dict(zip(body.inputs, inputs, strict=True))
    outputs = [new if (new := ins.get(o)) is not None else o for o in body.outputs]
    body.outputs.clear()
    for old, new in ins.items():
        if new is not None:
            ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    for value in list(body.initializers.values()):
        body.initializers.pop(str(value.name))
        value.name = named(str(value.name))
        t.graph.register_initializer(value)
    nodes = list(body)
    body.remove(nodes)
    for node in nodes:
        node.name = t.unique(node.name or node.op_type)
        for value in node.outputs:
            # A symbol may mean another size outside of the subgraph.
            value.name, value.shape = named(value.name) if value.name else "", None
    t.graph.insert_before(before, nodes)
    return outputs


def _stack(t: Builder, values: Sequence[ir.Value], before: ir.Node) -> ir.Value:
    """The values stacked along a new first dimension."""
    axis = t.ints(0).core
    rows = [ir.node("Unsqueeze", [v, axis], name=t.unique("Unsqueeze")) for v in values]
    whole = ir.node("Concat", [r.outputs[0] for r in rows], {"axis": 0}, name=t.unique("Concat"))
    for node in (*rows, whole):
        node.outputs[0].name = node.name
    t.graph.insert_before(before, [*rows, whole])
    return whole.outputs[0]


def _replace(t: Builder, node: ir.Node, outputs: Sequence[ir.Value], outside: Container[ir.Node]) -> None:
    """Put `outputs` in the places of the outputs of `node`, under their names, and remove it."""
    named: set[ir.Value] = set()
    for old, new in zip(node.outputs, outputs, strict=True):
        if not old.name:
            continue
        name, producer = old.name, new.producer()
        old.name = t.unique("replaced")
        # A tensor from outside has a name already, and so has one that is two outputs at once.
        if new in named or producer is None or producer in outside:
            copy = ir.node("Identity", [new], name=t.unique("Identity"))
            t.graph.insert_before(node, copy)
            new = copy.outputs[0]  # noqa: PLW2901
        named.add(new)
        new.name, new.type, new.shape = name, old.type or new.type, old.shape
        TensorInfo.of(old).keep_on(new)
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    t.graph.remove(node, safe=True)
