"""What an execution provider runs by its own documents, and how appended nodes are brought within that.

A provider has a list of operators, each with the limits that its documents name. A node outside of the list is replaced
by a lowering: nodes in the list that compute the same numbers. Where there is none, the gradient is refused before
anything is written. Arithmetic on shapes and class numbers is left alone: ONNX Runtime computes it on the host.

Limits that documents of several providers name.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_gradcam.errors import UnsupportedError
from onnx_gradcam.graph.builder import Builder, Value
from onnx_gradcam.graph.fold import evaluate_node

__all__ = [
    "Limit",
    "Lowering",
    "Provider",
    "absent",
    "all_of",
    "conform",
    "constant",
    "listed",
    "rank",
    "single_output",
]

Limit = Callable[[Builder, ir.Node], str | None]
"""What about a node is beyond the documented limits of its operator; `None` for nothing."""

Lowering = Callable[[Builder, ir.Node, Sequence[Value | None]], Value | None]
"""The value of a node's one output, computed by other nodes; `None` where this lowering does not apply."""

_LARGEST = 2**22
"""Elements of the largest tensor that is computed in advance."""


@dataclass(frozen=True)
class Provider:
    """An execution provider as documented.

    Attributes:
        name: the profile's name.
        source: the document that lists the operators.
        operators: every operator that is listed.
        limits: what the document says of some of them.
        lowerings: what an operator that is not listed, or beyond its limits, is computed by.
        floats: the floating-point types that gradients may have.
        host: integers that stand for shapes are computed by the runtime around the provider.
    """

    name: str
    source: str
    operators: frozenset[str]
    limits: Mapping[str, Limit] = field(default_factory=dict)
    lowerings: Mapping[str, Lowering] = field(default_factory=dict)
    floats: frozenset[str] = frozenset({"float16", "float32"})
    host: bool = True

    def problem(self, t: Builder, node: ir.Node) -> str | None:
        """Why the provider does not run an appended node, as documented; `None` where it does."""
        if node.op_type == "Identity" or (self.host and _is_host(t, node)):
            return None  # copies are taken out by every runtime
        inner = [n for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH for n in a.as_graph()]
        missing = next((n.op_type for n in (node, *inner) if n.domain or n.op_type not in self.operators), None)
        if missing is not None:
            return f"{missing} is not among the documented operators"
        for value in (*node.inputs, *node.outputs):
            dtype = None if value is None else t.wrap(value).dtype
            if value is not None and t.wrap(value).is_float and str(dtype) not in self.floats:
                return f"{dtype} is not among the documented types"
        limit = self.limits.get(node.op_type)
        why = None if limit is None else limit(t, node)
        return None if why is None else f"{node.op_type} {why}"


def _is_host(t: Builder, node: ir.Node) -> bool:
    """Whether a node computes with shapes or class numbers: nothing of it is a floating-point tensor."""
    return not any(v is not None and t.wrap(v).is_float for v in (*node.inputs, *node.outputs)) and any(
        v is not None and t.wrap(v).dtype == np.int64 for v in (*node.inputs, *node.outputs)
    )


def conform(
    t: Builder, provider: Provider, values: Sequence[Value], since: int = 0, *, strict: bool = True
) -> tuple[list[Value], list[str]]:
    """Bring the appended nodes that compute `values` within what the provider documents.

    Args:
        t: the builder.
        provider: the provider.
        values: what is wanted of the appended nodes.
        since: how many appended nodes, from the first, are left as they are.
        strict: refuse what cannot be brought within; else leave it to the runtime's other providers.

    Returns:
        The values, computed by operators of the list; and why, once for each reason, nodes were left.

    Raises:
        UnsupportedError: a node has no equivalent within the list.
    """
    found, left = {v.core: v for v in values}, []
    queue = deque(_live(t.appended[since:], found))
    changed = False
    while queue:
        node = queue.popleft()
        why = provider.problem(t, node)
        if why is None:
            continue
        before = len(t.appended)
        new = _equivalent(t, provider, node)
        if new is None:
            where = f"node {node.name!r}, {_shapes(t, node)}"
            if strict:
                raise UnsupportedError(
                    f"the gradient cannot be written for --profile {provider.name}: {why} ({where}) and no lowering "
                    "serves it; choose a later layer, or --profile portable"
                )
            left.append(why)
            continue
        changed = True
        queue.extendleft(reversed(t.appended[before:]))
        old = node.outputs[0]
        found = {k: new if v.core is old else v for k, v in found.items()}
        t.substitute(old, new)
    if changed:
        t.graph.sort()
    return [found[v.core] for v in values], list(dict.fromkeys(left))


def _live(nodes: Sequence[ir.Node], wanted: Iterable[ir.Value]) -> list[ir.Node]:
    """Those of `nodes` that `wanted` depends on, in order."""
    needed, live = set(wanted), []
    for node in reversed(nodes):
        if any(o in needed for o in node.outputs):
            live.append(node)
            needed.update(v for v in node.inputs if v is not None)
    return live[::-1]


def _equivalent(t: Builder, provider: Provider, node: ir.Node) -> Value | None:
    array = _computed(t, node.outputs[0])
    if array is not None:
        return t.const(array)
    lower = provider.lowerings.get(node.op_type)
    if lower is None or len(node.outputs) != 1:
        return None
    return lower(t, node, [None if v is None else t.wrap(v) for v in node.inputs])


def _computed(t: Builder, value: ir.Value) -> npt.NDArray[Any] | None:
    """The content of a value that follows from constants alone, in advance; `None` where it does not."""
    given = t.wrap(value).array()
    node = value.producer()
    if given is not None or node is None or len(node.outputs) != 1 or _disputed(node):
        return given
    sizes = [d for d in t.wrap(value).known_shape or () if isinstance(d, int)]
    if np.prod(sizes, dtype=float) > _LARGEST:
        return None
    feeds = {}
    for source in node.inputs:
        if source is not None:
            content = _computed(t, source)
            if content is None:
                return None
            feeds[str(source.name)] = content
    results = evaluate_node(ir.to_proto(node), feeds, dict(t.model.core.opset_imports))
    return None if results is None else results[0].astype(t.wrap(value).dtype or results[0].dtype)


def _disputed(node: ir.Node) -> bool:
    """Corners aligned by scales: ONNX's reference and ONNX Runtime divide by different lengths."""
    aligned = node.attributes.get_string("coordinate_transformation_mode", "") == "align_corners"
    return aligned and len(node.inputs) < 4


def _shapes(t: Builder, node: ir.Node) -> str:
    return ", ".join(str(list(t.wrap(v).known_shape or ())) for v in node.inputs if v is not None)


def listed(names: str) -> frozenset[str]:
    """The operators of a list, separated by blanks."""
    return frozenset(names.split())


def all_of(*limits: Limit) -> Limit:
    """The first thing that any of them finds."""

    def limit(t: Builder, node: ir.Node) -> str | None:
        return next((why for one in limits if (why := one(t, node)) is not None), None)

    return limit


def rank(*ranks: int) -> Limit:
    """The first input has one of these ranks."""

    def limit(t: Builder, node: ir.Node) -> str | None:
        found = node.inputs[0]
        shape = None if found is None else t.wrap(found).known_shape
        if shape is not None and len(shape) in ranks:
            return None
        return f"of a tensor of rank {'unknown' if shape is None else len(shape)} is beyond what it documents"

    return limit


def constant(*positions: int) -> Limit:
    """The inputs at these positions, where they are given, are constants."""

    def limit(t: Builder, node: ir.Node) -> str | None:
        for i in positions:
            value = node.inputs[i] if i < len(node.inputs) else None
            if value is not None and t.wrap(value).array() is None:
                return f"with the computed input {value.name!r} is beyond what it documents"
        return None

    return limit


def single_output(t: Builder, node: ir.Node) -> str | None:
    """No second output, the indices of a MaxPool."""
    return "with indices is beyond what it documents" if len(node.outputs) > 1 else None


def absent(*names: str) -> Limit:
    """None of these attributes is given, unless it is zero."""

    def limit(t: Builder, node: ir.Node) -> str | None:
        for name in names:
            given = node.attributes.get(name)
            if given is not None and not _zeros(given.value):
                return f"with {name} is beyond what it documents"
        return None

    return limit


def _zeros(value: object) -> bool:
    return not any(value) if isinstance(value, Sequence) and not isinstance(value, str) else value == 0
