"""What a model answers: classes with their scores and probabilities, and the boxes of a detector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from onnx_gradcam.metadata import Metadata

__all__ = ["LEAST_PROBABILITY", "Box", "Target", "class_of", "conversion", "distribution"]
__all__ += ["percentage", "probabilities"]

LEAST_PROBABILITY: Final = 1e-12
"""Smaller ones count as this in logarithms, so that a class that one model excludes gives no infinity."""

_GIVEN: Final = {"softmax": "given", "sigmoid": "given", "logsoftmax": "exponential"}
"""How the scores of a model with a final activation become probabilities."""

Wide = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Target:
    """A class: its index, its name, the model's score for it, and its probability.

    The score is the model's own output: a logit, a probability or whatever its last operator computes. The probability
    is that of `probabilities`: the model's own, else the softmax of its logits; `None` where
    there is none, and for the boxes of a detector, whose score it is.
    """

    index: int
    label: str
    score: float
    probability: float | None = None

    @property
    def caption(self) -> str:
        """The name, and the probability or else the score."""
        if self.probability is None:
            return f"{self.label} {self.score:.3g}"
        return f"{self.label} {percentage(self.probability)}"

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values: the score is `None` where it is not finite, an unknown probability left out."""
        entries = {**asdict(self), "score": self.score if math.isfinite(self.score) else None}
        return {name: value for name, value in entries.items() if name != "probability" or value is not None}


@dataclass(frozen=True)
class Box:
    """A box that a detector found in an image.

    Attributes:
        n: its place in the list of boxes, from 0; `None` for one that is not in it.
        index: its index in the detector's own table.
        target: its class, and its score: the probability that the detector's post-processing shows.
        xyxy: x0 y0 x1 y1 in pixels of the image, from its upper left corner; `None` where the model does not tell.

    Example::

        for box in Explainer("detector.onnx").boxes("street.jpg"):
            print(box.n, box.caption, box.xyxy)
    """

    n: int | None
    index: int
    target: Target
    xyxy: tuple[float, float, float, float] | None

    @property
    def caption(self) -> str:
        """Its class and score."""
        return f"{self.target.label} {self.target.score:.2f}"

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {
            "n": self.n,
            "index": self.index,
            "class": self.target.index,
            "name": self.target.label,
            "score": self.target.to_dict()["score"],
            "xyxy": None if self.xyxy is None else [round(side, 2) for side in self.xyxy],
        }


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


def conversion(metadata: Metadata) -> str:
    """How scores become what is shown: `given` as they are, `exponential`, `sigmoid`, `softmax`, or `none`."""
    if metadata.task == "detection":
        return "given"
    final = "sigmoid" if metadata.single_logit else "softmax"
    return metadata.probabilities or _GIVEN.get(metadata.activation, final)


def probabilities(scores: npt.NDArray[Any], metadata: Metadata) -> Wide | None:
    """The probabilities `float64 [C]` to show for scores `[C]`: the model's own, else the softmax of its logits.

    Where several classes may be in one image, as behind a sigmoid, each has its own, and they need not sum to 1. `None`
    for other tasks than classification, for integers, for infinite scores, and where the user wants none.
    """
    way = conversion(metadata)
    if metadata.task != "classification" or way == "none" or not np.max(scores) < np.inf:
        return None
    if scores.dtype.kind == "f" and not metadata.single_logit and "sigmoid" in {way, metadata.activation}:
        wide = scores.astype(np.float64)
        return wide if metadata.activation else np.asarray(1 / (1 + np.exp(-wide)))
    return distribution(scores, metadata.activation, single_logit=metadata.single_logit)


def class_of(index: int, scores: npt.NDArray[Any], labels: Sequence[str] | None, shares: Wide | None = None) -> Target:
    """The class of an index, with its name, its score and its probability."""
    label = labels[index] if labels is not None and index < len(labels) else f"class {index}"
    return Target(index, label, float(scores[index]), None if shares is None else float(shares[index]))


def percentage(share: float) -> str:
    """A probability in percent with one decimal, such as `8.1 %`; it never looks like 0 or 1 unless it is."""
    percent = 100 * share
    if 0 < percent < 0.1:
        return "<0.1 %"
    if 99.9 < percent < 100:
        return ">99.9 %"
    return f"{percent:.1f} %"
