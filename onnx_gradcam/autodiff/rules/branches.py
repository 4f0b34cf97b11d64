"""If: an If of the branches' cotangents."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy.typing as npt
import onnx_ir as ir

from onnx_gradcam.autodiff.backward import cotangents_or_zero
from onnx_gradcam.autodiff.registry import Cotangent, Table, vjp
from onnx_gradcam.graph.builder import Builder, Value
from onnx_gradcam.graph.subgraph import Inner, copied, either


@vjp("If", all_outputs=True, subgraphs=True)
def if_(
    t: Builder,
    gs: Sequence[Value | None],
    ys: Sequence[Value],
    condition: Value,
    *,
    then_branch: ir.Graph,
    else_branch: ir.Graph,
    captured: Sequence[Value],
    table: Table,
    dtype: npt.DTypeLike | None,
) -> Sequence[Cotangent]:
    """Each branch computes once more what its own cotangents need; what it does not read has the cotangent zero."""

    def reversed_(branch: ir.Graph) -> Callable[[Inner], Sequence[Value]]:
        def write(inner: Inner) -> Sequence[Value]:
            outputs = copied(inner, branch)
            inner.nodes = tuple(inner.graph)
            seeds: dict[Value, Value] = {}
            for output, g in zip(outputs, gs, strict=True):
                if g is not None:
                    # Outside, the shape is what both branches have in common: perhaps not even the rank is known.
                    here = inner.op("Identity", g, shape=output.known_shape)
                    seeds[output] = seeds[output] + here if output in seeds else here
            return cotangents_or_zero(inner, seeds, [inner.wrap(v.core) for v in captured], table, dtype)

        return write

    found = either(t, condition, [reversed_(then_branch), reversed_(else_branch)])
    return [None, *found]
