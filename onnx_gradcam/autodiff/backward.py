"""The reverse pass: append to a graph the nodes that compute a gradient.

`backward` checks every node on the path first, then walks it from the scores back. Rules compute the cotangents of one
node each; the pass undoes broadcasting, adds cotangents up and checks their shapes and types. The separation of the
check from the accumulation follows HIPS/autograd (`autograd/core.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy.typing as npt
import onnx_ir as ir

from onnx_gradcam.errors import ModelError, UnsupportedError
from onnx_gradcam.graph.builder import Builder, Value
from onnx_gradcam.graph.inline import loop_iterations
from onnx_gradcam.graph.paths import Carries, between, captured, node_inputs

from .cropping import Window, added, crop_of, cut_out, through_convolution
from .registry import ZERO, Cotangent, Rule, Table, attributes, rule_of, rules

_Pending = dict[ir.Value, list[Value | Window]]
"""The cotangents that have reached each tensor."""

__all__ = ["backward", "carries_gradient", "cotangents_or_zero", "missing_rules"]

_CASTS = {"Cast", "CastLike"}


def carries_gradient(t: Builder, table: Table | None = None) -> Carries:
    """Which edges of the graph a gradient can cross.

    Wide integers and Booleans carry none (axes, indices, masks, shapes), nor do operators of zero derivative and the
    inputs that a rule declares as stops. Small integers carry one: they stand for the real numbers that they quantise.
    Operators without a rule, tensors of unknown type and captured tensors that no rule follows count as differentiable:
    on the path they are refused, never skipped.
    """
    table = rules() if table is None else table

    def carries(node: ir.Node, value: ir.Value) -> bool:
        key = node.domain, node.op_type
        tensor = t.wrap(value)
        if key in ZERO or not (tensor.is_real or tensor.dtype is None):
            return False
        if node.op_type in _CASTS and tensor.is_float and not t.wrap(node.outputs[0]).is_float:
            return False  # truncation is a step function
        rule = rule_of(table, node)
        if rule is not None and not rule.applies_to(node):
            return False
        if rule is None or any(v is value and i not in rule.stops for i, v in enumerate(node.inputs)):
            return True
        return any(v is value for v in captured(node))

    return carries


def missing_rules(t: Builder, score: Value, wrt: Sequence[Value], table: Table | None = None) -> list[str]:
    """One line for every node between `wrt` and `score` that `backward` would refuse."""
    table = rules() if table is None else table
    path, alive = between(t.nodes, [v.core for v in wrt], [score.core], carries_gradient(t, table))
    problems = [problem for node in path if (problem := _problem(t, node, table, alive)) is not None]
    # An unknown operator leaves the types behind it unknown as well: report those only where they come alone.
    return problems or [problem for node in path if (problem := _untyped(t, node, alive)) is not None]


def _problem(t: Builder, node: ir.Node, table: Table, alive: Container[ir.Value]) -> str | None:
    """Why no rule differentiates a node; `None` where one does."""
    where = f"node {node.name!r} producing {node.outputs[0].name!r}, opset {t.opset}"
    rule = rule_of(table, node)
    if rule is None:
        if (node.domain, node.op_type) == ("", "Loop"):
            return _loop_problem(t, node) or f"a Loop is not unrolled ({where})"
        domain = f"{node.domain}." if node.domain else ""
        return f"no VJP rule for {domain}{node.op_type} ({where})"
    if rule.problem:
        return f"{rule.problem} ({where})"
    unknown = rule.unknown_attributes(node)
    if unknown:
        return f"the VJP rule of {node.op_type} does not know the attribute {unknown[0]!r} ({where})"
    for x in () if rule.subgraphs else captured(node):
        if x in alive:
            return f"{node.op_type} reads {x.name!r} inside of a subgraph, where no rule follows it ({where})"
    return None


def _loop_problem(t: Builder, node: ir.Node) -> str | None:
    """Why a Loop cannot be unrolled."""
    try:
        loop_iterations(t, node)
    except UnsupportedError as exc:
        return str(exc)
    return None


def _untyped(t: Builder, node: ir.Node, alive: Container[ir.Value]) -> str | None:
    """Which input on the path has no known type; `None` where all have."""
    for x in node_inputs(node):
        if x in alive and t.wrap(x).dtype is None:
            return f"inference cannot find the type of {x.name!r}, an input of {node.op_type} (node {node.name!r})"
    return None


@dataclass(frozen=True)
class _Path:
    """The nodes between `wrt` and the scores, the tensors on the way (`alive`), and how to differentiate the nodes.

    `dtype` is the floating-point type to compute in; `None` for that of each tensor. The cotangents of `points` have a
    single position.
    """

    nodes: Sequence[ir.Node]
    alive: Container[ir.Value]
    carries: Carries
    table: Table
    dtype: npt.DTypeLike | None
    points: Collection[ir.Value] = ()

    def rule(self, node: ir.Node) -> Rule:
        """The rule of a node on the path, which was found to have one."""
        rule = rule_of(self.table, node)
        assert rule is not None  # noqa: S101 - `_check` refuses the others
        return rule


def backward(
    t: Builder,
    seeds: Mapping[Value, Value],
    wrt: Sequence[Value],
    table: Table | None = None,
    dtype: npt.DTypeLike | None = None,
    nodes: Sequence[ir.Node] | None = None,
    points: Collection[ir.Value] = (),
) -> list[Value]:
    """Append the nodes that compute the cotangents of `wrt` from those of the scores, and return these cotangents.

    Args:
        t: the builder; only nodes that were in the graph when it was made are differentiated.
        seeds: score -> its cotangent, of the score's own shape, and of its type or `dtype`.
        wrt: the tensors to differentiate by.
        table: rules to use instead of the registered ones (guided backpropagation, deconvnet).
        dtype: the floating-point type to compute in, to which the model's tensors are cast; by default that of each.
        nodes: the nodes that can be on the path, in order; by default all.
        points: tensors `[N, C, H, W]` whose cotangents are known to be zero but at one position of every sample. From
            there on only a window around it is computed.

    Raises:
        UnsupportedError: a node on the path has no rule, or the scores do not depend on a tensor of `wrt`.

    Example:
        >>> t = Builder(load("model.onnx"))
        >>> x, y = t.find("input"), t.find("logits")
        >>> (gradient,) = backward(t, {y: t.full_like(y, 1.0)}, [x])
    """
    table = rules() if table is None else table
    carries = carries_gradient(t, table)
    on_path, alive = between(
        t.nodes if nodes is None else nodes, [v.core for v in wrt], [v.core for v in seeds], carries
    )
    path = _Path(on_path, alive, carries, table, dtype, points)
    _check(t, path)
    totals = _accumulate(t, path, seeds, wrt)
    for v, total in zip(wrt, totals, strict=True):
        if total is None:
            raise UnsupportedError(f"the score does not depend on tensor {v.name!r}; choose a layer on its path")
    return [total for total in totals if total is not None]


def _check(t: Builder, path: _Path) -> None:
    """Refuse a node that cannot be differentiated, before anything is appended."""
    for node in path.nodes:
        problem = _problem(t, node, path.table, path.alive) or _untyped(t, node, path.alive)
        if problem is not None:
            raise UnsupportedError(f"{problem}; choose a later layer, or --weights finite where the head is pooled")


def _accumulate(t: Builder, path: _Path, seeds: Mapping[Value, Value], wrt: Sequence[Value]) -> list[Value | None]:
    """The pass itself: from the scores to `wrt`, every node hands its cotangents to its inputs, where they add up."""
    pending: _Pending = {v.core: [g] for v, g in seeds.items()}
    for node in reversed(path.nodes):
        window = _window(t, path, pending, node)
        if window is not None and (within := _within(t, path, pending, node, window)) is not None:
            handed = within
        else:
            gs = [_whole(t, pending, o) for o in node.outputs]
            handed = list(_cotangents(t, path, node, gs)) if any(g is not None for g in gs) else []
        for x, g in handed:
            pending.setdefault(x, []).append(g)
    return [_whole(t, pending, v.core) for v in wrt]


def _window(t: Builder, path: _Path, pending: _Pending, node: ir.Node) -> Window | None:
    """The cotangent of a node's first output, if it is zero outside of a window."""
    total = _total(t, pending, node.outputs[0])
    if isinstance(total, Value) and node.outputs[0] in path.points:
        total = cut_out(t, total)
        pending[node.outputs[0]] = [total]
    return total if isinstance(total, Window) else None


def _within(
    t: Builder, path: _Path, pending: _Pending, node: ir.Node, window: Window
) -> list[tuple[ir.Value, Value | Window]] | None:
    """The cotangents of a node's inputs, computed within a window; `None` where other positions are needed."""
    image = node.inputs[0]
    if image is not None and not any(x in path.alive for x in node.inputs[1:]):
        wider = through_convolution(t, window, node)
        if wider is not None:
            return [(image, wider)]
    cropped = crop_of(t, window, node)
    if cropped is None:
        return None
    others = [_whole(t, pending, o) for o in node.outputs[1:]]
    outputs = [window.crop(t, t.wrap(node.outputs[0])), *map(t.wrap, node.outputs[1:])]
    rule = path.rule(node)
    cotangents = _by_rule(t, path, rule, node, ([window.value, *others], outputs, cropped), ())
    whole = {x.core for x in cropped if x is not None}
    handed = _on_path(t, path, rule, node, cropped, cotangents)
    return [(x, g if x in whole else window.with_value(g)) for x, g in handed]


def cotangents_or_zero(
    t: Builder,
    seeds: Mapping[Value, Value],
    wrt: Sequence[Value],
    table: Table | None = None,
    dtype: npt.DTypeLike | None = None,
) -> list[Value]:
    """The cotangents of `wrt`, as `backward` computes them; zeros for tensors that the seeds do not depend on."""
    _, alive = between(t.nodes, [v.core for v in wrt], [v.core for v in seeds], carries_gradient(t, table))
    reached = [v for v in wrt if v.core in alive]
    cotangents = dict(zip(reached, backward(t, seeds, reached, table, dtype), strict=True))
    return [cotangents[v] if v in cotangents else t.full_like(v, 0.0, dtype) for v in wrt]


def _cotangents(t: Builder, path: _Path, node: ir.Node, gs: list[Value | None]) -> Iterator[tuple[ir.Value, Value]]:
    """Those inputs of a node, captured tensors included, that are on the path, each with its cotangent."""
    rule = path.rule(node)
    inside = [x for x in dict.fromkeys(captured(node)) if x in path.alive and path.carries(node, x)]
    inputs = [None if i is None else t.wrap(i) for i in node.inputs]
    cotangents = _by_rule(t, path, rule, node, (gs, [t.wrap(o) for o in node.outputs], inputs), inside)
    return _on_path(t, path, rule, node, [*inputs, *map(t.wrap, inside)], cotangents, inside)


def _on_path(
    t: Builder,
    path: _Path,
    rule: Rule,
    node: ir.Node,
    seen: Sequence[Value | None],
    cotangents: Sequence[Cotangent],
    inside: Sequence[ir.Value] = (),
) -> Iterator[tuple[ir.Value, Value]]:
    """The inputs that are on the path with what a rule returned, as cotangents of the tensors that it has `seen`."""
    inputs = [*node.inputs, *inside]
    if len(cotangents) < len(inputs):
        raise ModelError(f"the VJP rule of {node.op_type} gave {len(cotangents)} cotangents for {len(inputs)} inputs")
    for i, (x, tensor, g) in enumerate(zip(inputs, seen, cotangents, strict=False)):
        if x is None or tensor is None or x not in path.alive or i in rule.stops or not path.carries(node, x):
            continue
        if g is None:
            raise UnsupportedError(
                f"the VJP rule of {node.op_type} cannot serve its input {x.name!r} "
                f"(node {node.name!r}); choose a later layer"
            )
        yield x, _checked(t, rule, node, g if isinstance(g, Value) else g(), tensor, path.dtype)


def _by_rule(
    t: Builder,
    path: _Path,
    rule: Rule,
    node: ir.Node,
    tensors: tuple[Sequence[Value | None], Sequence[Value], Sequence[Value | None]],
    inside: Sequence[ir.Value],
) -> Sequence[Cotangent]:
    """What the rule of a node returns for cotangents, outputs and inputs."""
    options = attributes(node)
    if rule.subgraphs:
        options |= {"captured": [t.wrap(x) for x in inside], "table": path.table, "dtype": path.dtype}
    # Subgraphs compute on the model's own tensors, whatever type their backward pass computes in.
    dtype = None if rule.subgraphs else path.dtype
    gs = tensors[0]
    outputs = [_seen(t, y, dtype) for y in tensors[1]]
    inputs = [None if x is None else _seen(t, x, dtype) for x in tensors[2]]
    if rule.all_outputs:
        return rule.function(t, tuple(gs), tuple(outputs), *inputs, **options)
    if any(g is not None for g in gs[1:]):
        raise UnsupportedError(
            f"the VJP rule of {node.op_type} serves its first output only (node {node.name!r}); choose a later layer"
        )
    return rule.function(t, gs[0], outputs[0], *inputs, **options)


def _seen(t: Builder, x: Value, dtype: npt.DTypeLike | None) -> Value:
    """`x` as a rule sees it: floating-point tensors are cast to the type that the pass computes in."""
    return t.cast(x, dtype) if dtype is not None and x.is_float else x


def _total(t: Builder, pending: _Pending, value: ir.Value) -> Value | Window | None:
    """The sum of the cotangents that have reached `value`, which it replaces; `None` where there are none."""
    parts = pending.get(value)
    if parts is None:
        return None
    if len(parts) > 1:
        windows = [part for part in parts if isinstance(part, Window)]
        total: Value | Window | None = added(t, windows) if len(windows) == len(parts) else None
        if total is None:
            whole = [part.placed(t) if isinstance(part, Window) else part for part in parts]
            total = t.op("Sum" if len(whole) > 2 else "Add", *whole, shape=t.wrap(value).known_shape)
        pending[value] = parts = [total]
    return parts[0]


def _whole(t: Builder, pending: _Pending, value: ir.Value) -> Value | None:
    """The same, at all positions."""
    total = _total(t, pending, value)
    if isinstance(total, Window):
        total = total.placed(t)
        shape = t.wrap(value).known_shape
        if shape is not None:
            t.refine(total, shape)
        pending[value] = [total]
    return total


def _checked(t: Builder, rule: Rule, node: ir.Node, g: Value, x: Value, dtype: npt.DTypeLike | None) -> Value:
    """`g` as the cotangent of `x`: with its shape, broadcasting undone; an error for another type or shape."""
    if rule.broadcasts:
        g = unbroadcast(t, g, x)
    expected = x.dtype if dtype is None else dtype
    if x.is_float and g.dtype != expected:
        raise ModelError(f"the VJP rule of {node.op_type} gave {g.dtype} for {x.name!r}, which is {expected}")
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
    repeated, unsure = [], False
    for axis, (size, target) in enumerate(zip(g.shape, x.shape, strict=True)):
        if target == 1 and size != 1:
            repeated.append(axis)
        elif size != target or size is None:
            unsure = True
    g = t.sum(g, repeated)
    return _fold(t, g, x) if unsure else g


def _fold(t: Builder, g: Value, x: Value) -> Value:
    """Sum `g` to the shape of `x` where only the running model knows whether a dimension of `x` is one.

    Every dimension of `g` is split into (repeats, size of `x`), and the repeats are summed.
    """
    target = t.op("Max", t.op("Shape", x), t.ints(1))
    repeats = t.op("Div", t.op("Shape", g), target)
    axes = t.ints(1)
    pairs = t.op("Concat", t.op("Unsqueeze", repeats, axes), t.op("Unsqueeze", t.op("Shape", x), axes), axis=1)
    rank = x.rank
    split = t.op("Reshape", g, t.op("Reshape", pairs, t.ints(-1)), allowzero=1, shape=(None,) * (2 * rank))
    return t.reshape_like(t.sum(split, range(0, 2 * rank, 2), keepdims=False), x)
