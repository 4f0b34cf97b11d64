"""Probabilities of classes from the scores that a model outputs."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from onnx_gradcam.metadata import Metadata

__all__ = ["LEAST_PROBABILITY", "distribution", "probabilities"]

LEAST_PROBABILITY: Final = 1e-12
"""Smaller ones count as this in logarithms, so that a class that one model excludes gives no infinity."""

Wide = npt.NDArray[np.float64]


def distribution(scores: npt.NDArray[Any], activation: str, *, single_logit: bool = False) -> Wide | None:
    """Probabilities `float64 [C]` with sum 1 from a model's scores `[C]` and its last activation, empty if it has none.

    With `single_logit`, the scores of two classes come from one logit, class 0 being its complement. Sigmoids of many
    classes are turned into logits before the softmax. `None` for integers, quantised scores of unknown scale.
    """
    if scores.dtype.kind != "f":
        return None
    values = scores.astype(np.float64)
    # Without an activation in the graph these may still be probabilities; logits do not sum to one by chance.
    finished = values.min() >= 0 and abs(values.sum() - 1) < 1e-3
    if activation == "softmax" or (finished and (single_logit or not activation)):
        return np.asarray(values / values.sum())
    if single_logit:
        values = values / 2
    elif activation == "sigmoid":
        inside = np.clip(values, LEAST_PROBABILITY, 1 - 1e-7)
        values = np.log(inside) - np.log1p(-inside)
    exponentials = np.exp(values - values.max())
    return np.asarray(exponentials / exponentials.sum())


def probabilities(scores: npt.NDArray[Any], metadata: Metadata) -> Wide | None:
    """The probabilities `float64 [C]` to show for scores `[C]`: the model's own, else the softmax of its logits.

    Where the model ends in a sigmoid of several classes, each has its own, and they need not sum to 1. `None` for
    other tasks than classification, for integers and for infinite scores.
    """
    if metadata.task != "classification" or not np.max(scores) < np.inf:
        return None
    if metadata.activation == "sigmoid" and not metadata.single_logit and scores.dtype.kind == "f":
        return scores.astype(np.float64)
    return distribution(scores, metadata.activation, single_logit=metadata.single_logit)
