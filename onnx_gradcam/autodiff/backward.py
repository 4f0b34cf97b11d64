"""The one reverse pass."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from onnx_gradcam.errors import ModelError, UnsupportedError
from onnx_gradcam.graph.builder import Builder, Value
from onnx_gradcam.graph.inline import loop_iterations
from onnx_gradcam.graph.paths import Carries, between, captured, node_inputs

from .registry import ZERO, Cotangent, Rule, Table, attributes, rules

__all__ = ["backward", "carries_gradient", "cotangents_or_zero", "missing_rules"]

_CASTS = {"Cast", "CastLike"}


def carries_gradient(t: Builder, table: Table | None = None) -> Carries:
    """Which edges of the graph a gradient can cross.

    Wide integers and Booleans carry none (axes, indices, masks, shapes); small integers stand for the real numbers they
    quantise, and their cotangents are floating-point. None is carried by the inputs that a rule declares as
    stops, nor operators of zero derivative. An operator without a rule counts as differentiable, and so does a tensor
    of unknown type or one that a subgraph captures where no rule follows it: on the path they are refused, never
    skipped.
    """
    table = rules() if table is None else table

    def carries(node: ir.Node, value: ir.Value) -> bool:
        key = node.domain, node.op_type
        tensor = t.wrap(value)
        if key in ZERO or not (tensor.is_real or tensor.dtype is None):
            return False
        if node.op_type in _CASTS and tensor.is_float and not t.wrap(node.outputs[0]).is_float:
            return False  # cutting off decimals is a step function
        rule = table.get(key)
        if rule is None or any(v is value and i not in rule.stops for i, v in enumerate(node.inputs)):
            return True
        return any(v is value for v in captured(node))

    return carries


def missing_rules(t: Builder, score: Value, wrt: Sequence[Value], table: Table | None = None) -> list[str]:
    """One line for every node between `wrt` and `score` that the backward pass would refuse."""
    table = rules() if table is None else table
    path, alive = between(t.nodes, [v.core for v in wrt], [score.core], carries_gradient(t, table))
    problems = [problem for node in path if (problem := _problem(t, node, table, alive)) is not None]
    # Behind an operator that is not known no type is known either: that is worth a line only on its own.
    return problems or [problem for node in path if (problem := _untyped(t, node, alive)) is not None]


def _problem(t: Builder, node: ir.Node, table: Table, alive: Container[ir.Value]) -> str | None:
    where = f"node {node.name!r} producing {node.outputs[0].name!r}, opset {t.opset}"
    rule = table.get((node.domain, node.op_type))
    if rule is None:
        if (node.domain, node.op_type) == ("", "Loop"):
            return _loop_problem(t, node) or f"a Loop has not been written out ({where})"
        domain = f"{node.domain}." if node.domain else ""
        return f"no VJP rule for {domain}{node.op_type} ({where})"
    unknown = rule.unknown_attributes(node)
    if unknown:
        return f"the VJP rule of {node.op_type} does not know the attribute {unknown[0]!r} ({where})"
    for x in () if rule.subgraphs else captured(node):
        if x in alive:
            return f"{node.op_type} reads {x.name!r} inside of a subgraph, where no gradient follows it ({where})"
    return None


def _loop_problem(t: Builder, node: ir.Node) -> str | None:
    """Why a Loop cannot be written out."""
    try:
        loop_iterations(t, node)
    except UnsupportedError as exc:
        return str(exc)
    return None


def _untyped(t: Builder, node: ir.Node, alive: Container[ir.Value]) -> str | None:
    for x in node_inputs(node):
        if x in alive and t.wrap(x).dtype is None:
            return f"inference cannot find the type of {x.name!r}, an input of {node.op_type} (node {node.name!r})"
    return None


def backward(
    t: Builder,
    seeds: Mapping[Value, Value],
    wrt: Sequence[Value],
    table: Table | None = None,
    dtype: npt.DTypeLike | None = None,
    nodes: Sequence[ir.Node] | None = None,
) -> list[Value]:
    """Append the nodes that compute the cotangents of `wrt` from those of the scores.

    Args:
        t: the builder; only nodes that were in the graph when it was made are differentiated.
        seeds: score -> its cotangent, of the score's own shape, and of its type or `dtype`.
        wrt: the tensors whose cotangents are wanted.
        table: rules to use instead of the registered ones (guided backpropagation, deconvnet).
        dtype: the floating-point type to compute in, whatever the model's is: rules see the model's tensors cast to
            it, and know of no other.
        nodes: those of the graph that may lie on the path, in order, where the caller knows.

    Returns:
        One cotangent for each tensor of `wrt`, of its shape, and of its type or `dtype`.

    Raises:
        UnsupportedError: a node on the path has no rule, or the scores do not depend on a tensor of `wrt`.
    """
    table = rules() if table is None else table
    carries = carries_gradient(t, table)
    path, alive = between(t.nodes if nodes is None else nodes, [v.core for v in wrt], [v.core for v in seeds], carries)
    for node in path:
        problem = _problem(t, node, table, alive) or _untyped(t, node, alive)
        if problem is not None:
            raise UnsupportedError(f"{problem}; choose a later layer, or --weights finite where the head is pooled")
    pending: dict[ir.Value, list[Value]] = {v.core: [g] for v, g in seeds.items()}
    for node in reversed(path):
        gs = [_total(t, pending, o) for o in node.outputs]
        if all(g is None for g in gs):
            continue
        rule = table[node.domain, node.op_type]
        inside = [x for x in dict.fromkeys(captured(node)) if x in alive and carries(node, x)]
        inputs = [*node.inputs, *inside]
        within = {"captured": [t.wrap(x) for x in inside], "table": table, "dtype": dtype}
        cotangents = _cotangents(t, rule, node, gs, within)
        if len(cotangents) < len(inputs):
            raise ModelError(
                f"the VJP rule of {node.op_type} gave {len(cotangents)} cotangents for {len(inputs)} inputs"
            )
        for i, (x, g) in enumerate(zip(inputs, cotangents, strict=False)):
            if x is None or x not in alive or i in rule.stops or not carries(node, x):
                continue
            if g is None:
                raise UnsupportedError(
                    f"the VJP rule of {node.op_type} cannot serve its input {x.name!r} "
                    f"(node {node.name!r}); choose a later layer"
                )
            value = g if isinstance(g, Value) else g()
            pending.setdefault(x, []).append(_checked(t, rule, node, value, t.wrap(x), dtype))
    totals = [_total(t, pending, v.core) for v in wrt]
    for v, total in zip(wrt, totals, strict=True):
        if total is None:
            raise UnsupportedError(f"the score does not depend on tensor {v.name!r}; choose a layer on its path")
    return [total for total in totals if total is not None]


def cotangents_or_zero(
    t: Builder,
    seeds: Mapping[Value, Value],
    wrt: Sequence[Value],
    table: Table | None = None,
    dtype: npt.DTypeLike | None = None,
) -> list[Value]:
    """The cotangents of `wrt`, as `backward` gives them; zero for what the seeds do not depend on."""
    _, alive = between(t.nodes, [v.core for v in wrt], [v.core for v in seeds], carries_gradient(t, table))
    reached = [v for v in wrt if v.core in alive]
    found = dict(zip(reached, backward(t, seeds, reached, table, dtype), strict=True))
    return [found[v] if v in found else t.full_like(v, 0.0, dtype) for v in wrt]


def _cotangents(
    t: Builder, rule: Rule, node: ir.Node, gs: list[Value | None], within: Mapping[str, Any]
) -> Sequence[Cotangent]:
    # Subgraphs run on the model's own tensors, whatever their backward pass computes in.
    dtype = None if rule.subgraphs else within["dtype"]
    inputs = [None if i is None else _seen(t, t.wrap(i), dtype) for i in node.inputs]
    outputs = [_seen(t, t.wrap(o), dtype) for o in node.outputs]
    options = {**attributes(node), **(within if rule.subgraphs else {})}
    if rule.all_outputs:
        return rule.function(t, tuple(gs), tuple(outputs), *inputs, **options)
    if any(g is not None for g in gs[1:]):
        raise UnsupportedError(
            f"the VJP rule of {node.op_type} serves its first output only (node {node.name!r}); choose a later layer"
        )
    return rule.function(t, gs[0], outputs[0], *inputs, **options)


def _seen(t: Builder, x: Value, dtype: npt.DTypeLike | None) -> Value:
    """`x` as a rule sees it: floating-point numbers in the type that the pass computes in."""
    return t.cast(x, dtype) if dtype is not None and x.is_float else x


def _total(t: Builder, pending: dict[ir.Value, list[Value]], value: ir.Value) -> Value | None:
    """The sum of the cotangents that have reached `value`; kept, so that it is added up once."""
    parts = pending.get(value)
    if parts is None:
        return None
    if len(parts) > 1:
        shape = t.wrap(value).known_shape
        pending[value] = parts = [t.op("Sum" if len(parts) > 2 else "Add", *parts, shape=shape)]
    return parts[0]


def _checked(t: Builder, rule: Rule, node: ir.Node, g: Value, x: Value, dtype: npt.DTypeLike | None) -> Value:
    """`g` as the cotangent of `x`: broadcasting undone, the shape that of `x`, the type too or `dtype`."""
    if rule.broadcasts:
        g = unbroadcast(t, g, x)
    wanted = x.dtype if dtype is None else dtype
    if x.is_float and g.dtype != wanted:
        raise ModelError(f"the VJP rule of {node.op_type} gave {g.dtype} for {x.name!r}, which is {wanted}")
    if x.known_shape is not None:
        try:
            t.refine(g, x.known_shape)
        except ModelError as exc:
            raise ModelError(f"the VJP rule of {node.op_type} gave a wrong shape for {x.name!r}: {exc}") from exc
    return g


def unbroadcast(t: Builder, g: Value, x: Value) -> Value:
    """Sum `g` to the shape of `x`: NumPy broadcasting, reversed."""
    lead = g.rank - x.rank
    if lead < 0:
        raise ModelError(f"a cotangent of rank {g.rank} cannot be that of {x.name!r}, which has rank {x.rank}")
    if lead:
        g = t.sum(g, range(lead), keepdims=False)
    sure, unsure = [], False
    for axis, (have, want) in enumerate(zip(g.shape, x.shape, strict=True)):
        if want == 1 and have != 1:
            sure.append(axis)
        elif have != want or have is None:
            unsure = True
    g = t.sum(g, sure)
    return _fold(t, g, x) if unsure else g


def _fold(t: Builder, g: Value, x: Value) -> Value:
    """Sum `g` to `x` where a dimension of `x` may or may not be one: only the running model knows.

    Every dimension of `g` is split into (repeats, size of `x`) and the repeats are summed.
    """
    want = t.op("Max", t.op("Shape", x), t.ints(1))
    repeats = t.op("Div", t.op("Shape", g), want)
    axes = t.ints(1)
    pairs = t.op("Concat", t.op("Unsqueeze", repeats, axes), t.op("Unsqueeze", t.op("Shape", x), axes), axis=1)
    rank = x.rank
    split = t.op("Reshape", g, t.op("Reshape", pairs, t.ints(-1)), allowzero=1, shape=(None,) * (2 * rank))
    return t.reshape_like(t.sum(split, range(0, 2 * rank, 2), keepdims=False), x)
