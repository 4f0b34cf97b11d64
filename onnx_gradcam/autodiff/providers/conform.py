"""Writing a gradient in operators that a runtime documents.

`conform` goes over the appended nodes. A node that the documents do not cover becomes a constant, or a lowering
replaces it: documented nodes that compute the same numbers. Where neither is possible, the gradient is refused before
anything is written. Arithmetic on shapes and class numbers stays: ONNX Runtime computes it on the CPU.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_gradcam.autodiff.registry import Table
from onnx_gradcam.errors import UnsupportedError
from onnx_gradcam.graph.builder import Builder, Value
from onnx_gradcam.graph.fold import evaluate_node

__all__ = [
    "Documented",
    "Limit",
    "Lowering",
    "Profile",
    "all_of",
    "conform",
    "constant",
    "listed",
    "rank",
    "single_output",
]

Limit = Callable[[Builder, ir.Node], str | None]
"""How a node exceeds the documented limits of its operator; `None` where it does not."""

Lowering = Callable[[Builder, ir.Node, Sequence[Value | None]], Value | None]
"""A node's only output, computed by other nodes; `None` where this lowering does not apply."""

_LARGEST = 2**22
"""Elements of the largest constant that is computed in advance."""


@dataclass(frozen=True, kw_only=True)
class Documented:
    """The operators that a runtime computes, by its own documents.

    Attributes:
        source: the document that lists the operators.
        limits: what the document restricts, by operator.
        lowerings: how to compute an operator that is missing, or beyond its limits.
        floats: the floating-point types that gradients may have.
        host: whether integers that stand for shapes are computed outside of the runtime, on the CPU.
    """

    source: str
    operators: frozenset[str]
    limits: Mapping[str, Limit] = field(default_factory=dict)
    lowerings: Mapping[str, Lowering] = field(default_factory=dict)
    floats: frozenset[str] = frozenset({"float16", "float32"})
    host: bool = True

    def problem(self, t: Builder, node: ir.Node) -> str | None:
        """Why the documents do not cover an appended node; `None` where they do."""
        if node.op_type == "Identity" or (self.host and _is_host(t, node)):
            return None  # every runtime removes copies
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


@dataclass(frozen=True, kw_only=True)
class Profile:
    """How a gradient is written for one runtime: `rules` makes the table of VJP rules.

    Without `documented`, no operator is checked. `separate_weights`: the runtime may change a weight that the
    gradient reads too; see `aliasing`. `tested`: a test runs gradients on this runtime; the numbers of the others are
    tested on ONNX Runtime's CPU provider only.
    """

    name: str
    title: str
    rules: Callable[[], Table]
    documented: Documented | None = None
    separate_weights: bool = False
    tested: bool = False


def _is_host(t: Builder, node: ir.Node) -> bool:
    """Whether a node computes shapes or class numbers: none of its tensors is floating-point, and one is `int64`."""
    values = [t.wrap(v) for v in (*node.inputs, *node.outputs) if v is not None]
    return not any(v.is_float for v in values) and any(v.dtype == np.int64 for v in values)


def conform(
    t: Builder, profile: Profile, values: Sequence[Value], since: int = 0, *, strict: bool = True
) -> tuple[list[Value], list[str]]:
    """Bring the nodes after the first `since` appended ones that compute `values` within what the runtime documents.

    A node beyond the documents is refused if `strict`, otherwise left to the runtime's fallback.

    Returns:
        The values, computed by documented operators; and the reasons, each once, why nodes were left as they are.

    Raises:
        UnsupportedError: no documented operators compute a node.
    """
    documented = profile.documented
    if documented is None:
        return list(values), []
    current, left = {v.core: v for v in values}, []
    queue = deque(_live(t.appended[since:], current))
    changed = False
    while queue:
        node = queue.popleft()
        why = documented.problem(t, node)
        if why is None:
            continue
        before = len(t.appended)
        new = _equivalent(t, documented, node)
        if new is None:
            if strict:
                raise UnsupportedError(
                    f"the gradient cannot be written for --profile {profile.name}: {why} (node {node.name!r}, "
                    f"{_shapes(t, node)}) and no lowering serves it; choose a later layer, or --profile portable"
                )
            left.append(why)
            continue
        changed = True
        queue.extendleft(reversed(t.appended[before:]))
        old = node.outputs[0]
        current = {k: new if v.core is old else v for k, v in current.items()}
        t.substitute(old, new)
    if changed:
        t.graph.sort()
    return [current[v.core] for v in values], list(dict.fromkeys(left))


def _live(nodes: Sequence[ir.Node], values: Iterable[ir.Value]) -> list[ir.Node]:
    """Those of `nodes` that `values` depend on, in order."""
    needed, live = set(values), []
    for node in reversed(nodes):
        if any(o in needed for o in node.outputs):
            live.append(node)
            needed.update(v for v in node.inputs if v is not None)
    return live[::-1]


def _equivalent(t: Builder, documented: Documented, node: ir.Node) -> Value | None:
    """The node's output, as a constant or by a lowering; `None` where neither is possible."""
    array = _computed(t, node.outputs[0])
    if array is not None:
        return t.const(array)
    lower = documented.lowerings.get(node.op_type)
    if lower is None or len(node.outputs) != 1:
        return None
    return lower(t, node, [None if v is None else t.wrap(v) for v in node.inputs])


def _computed(t: Builder, value: ir.Value) -> npt.NDArray[Any] | None:
    """The content of a value that depends on constants only; `None` for others."""
    constant = t.wrap(value).array()
    node = value.producer()
    if constant is not None or node is None or len(node.outputs) != 1 or _disputed(node):
        return constant
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
    """Whether corners are aligned by scales: ONNX's reference and ONNX Runtime divide by different lengths there."""
    aligned = node.attributes.get_string("coordinate_transformation_mode", "") == "align_corners"
    return aligned and len(node.inputs) < 4


def _shapes(t: Builder, node: ir.Node) -> str:
    return ", ".join(str(list(t.wrap(v).known_shape or ())) for v in node.inputs if v is not None)


def listed(names: str) -> frozenset[str]:
    """The operators of a list that is separated by blanks."""
    return frozenset(names.split())


def all_of(*limits: Limit) -> Limit:
    """All of these limits."""

    def limit(t: Builder, node: ir.Node) -> str | None:
        return next((why for one in limits if (why := one(t, node)) is not None), None)

    return limit


def rank(*ranks: int) -> Limit:
    """The first input has one of these ranks."""

    def limit(t: Builder, node: ir.Node) -> str | None:
        first = node.inputs[0]
        shape = None if first is None else t.wrap(first).known_shape
        if shape is not None and len(shape) in ranks:
            return None
        return f"of a tensor of rank {'unknown' if shape is None else len(shape)} is beyond what it documents"

    return limit


def constant(*positions: int) -> Limit:
    """The inputs at these positions are constants or omitted."""

    def limit(t: Builder, node: ir.Node) -> str | None:
        for i in positions:
            value = node.inputs[i] if i < len(node.inputs) else None
            if value is not None and t.wrap(value).array() is None:
                return f"with the computed input {value.name!r} is beyond what it documents"
        return None

    return limit


def single_output(t: Builder, node: ir.Node) -> str | None:
    """The node has no second output, such as the indices of a MaxPool."""
    return "with indices is beyond what it documents" if len(node.outputs) > 1 else None


def _zeros(value: object) -> bool:
    return not any(value) if isinstance(value, Sequence) and not isinstance(value, str) else value == 0
