"""Methods for vision transformers alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

from onnx_gradcam.graph.builder import Builder, Value

from .gradient import as_map
from .registry import method


@method("legrad", title="LeGrad", reference="Bousselham et al. 2024, eq. 5 to 8; its own minimum and maximum left out")
def le_grad(t: Builder, A: Value, attentions: Sequence[tuple[Value, int]]) -> Value:
    """How much attention to each token raises the score that each block's output alone would have.

    Positive derivatives by every block's attention maps, averaged over heads and over the tokens that attend, summed
    over the blocks; the columns of class and register tokens are left out.
    """
    terms = []
    for gradient, before in attentions:
        columns = t.mean(t.op("Relu", gradient), [1, 2], keepdims=False)
        count = math.prod(A.dims_behind_batch()[1:])
        terms.append(t.op("Slice", columns, t.ints(before), t.ints(before + count), t.ints(1)))
    return as_map(t, terms[0] if len(terms) == 1 else t.op("Sum", *terms), A)
