"""Rules of losses; class weights count as constants. A file of its own: one family of rules."""

from __future__ import annotations

from collections.abc import Sequence

from onnx_gradcam.autodiff.registry import Cotangent, vjp
from onnx_gradcam.graph.builder import Builder, Value

from ._sizes import index_along


def _log_likelihood(
    t: Builder, g: Value, x: Value, target: Value, weight: Value | None, ignore_index: int | None, reduction: str
) -> Value:
    """The cotangent of the log-probabilities `x`: minus the weight at the target class, zero elsewhere.

    A target outside of the classes is ignored, as `ignore_index` is: no class equals it.
    """
    chosen = t.op("Equal", t.op("Unsqueeze", target, t.ints(1)), t.cast(index_along(t, x, 1), target.dtype))
    if ignore_index is not None:
        kept = t.op("Not", t.op("Equal", target, t.const(ignore_index, target.dtype)))
        chosen = t.op("And", chosen, t.op("Unsqueeze", kept, t.ints(1)))
    if weight is None:
        picked = t.cast(chosen, x.dtype)
    else:
        picked = t.op("Where", chosen, t.op("Reshape", weight, t.ints(-1, *[1] * (x.rank - 2))), 0.0)
    if reduction == "none":
        g = t.op("Unsqueeze", g, t.ints(1))
    elif reduction == "mean":
        g = g / t.sum(picked)
    return -(picked * g)


@vjp("NegativeLogLikelihoodLoss", stops=(2,))
def negative_log_likelihood(
    t: Builder, g: Value, y: Value, x: Value, target: Value, weight: Value | None = None,
    *, ignore_index: int | None = None, reduction: str = "mean",
) -> Sequence[Cotangent]:  # fmt: skip
    """Minus the log-probability of the target class."""
    return [_log_likelihood(t, g, x, target, weight, ignore_index, reduction), None, None]


@vjp("SoftmaxCrossEntropyLoss", stops=(2,), all_outputs=True)
def softmax_cross_entropy(
    t: Builder, gs: Sequence[Value | None], ys: Sequence[Value], scores: Value, labels: Value,
    weights: Value | None = None,
    *, ignore_index: int | None = None, reduction: str = "mean",
) -> Sequence[Cotangent]:  # fmt: skip
    """The loss of the log-softmax, which is the second output and may have a cotangent too."""
    log_prob = ys[1] if len(ys) > 1 else t.op("LogSoftmax", scores, axis=1)
    parts = [g for g in gs[1:] if g is not None]
    if gs[0] is not None:
        parts.append(_log_likelihood(t, gs[0], scores, labels, weights, ignore_index, reduction))
    g = parts[0] if len(parts) == 1 else parts[0] + parts[1]
    return [g - t.op("Exp", log_prob) * t.sum(g, [1]), None, None]
