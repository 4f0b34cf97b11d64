"""What figures of several images allow to say: paired differences, agreement of metrics, and where both say nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Mean", "Paired", "kendall_w", "mean_of", "paired", "sign_test", "told_apart"]


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A metric over images.

    Attributes:
        mean: mean of the values.
        error: its standard error; `None` for a single value.
        count: number of values.
    """

    mean: float
    error: float | None
    count: int


@dataclass(frozen=True, kw_only=True)
class Paired:
    """A method against a baseline, image by image; positive differences are better.

    Attributes:
        difference: mean of the differences.
        error: its standard error; `None` for a single image.
        better: number of images on which the method is better.
        worse: number of those on which it is worse; it may be neither.
        p: probability of a split at least as uneven if both were equally often better (two-sided sign test).
    """

    difference: float
    error: float | None
    better: int
    worse: int
    p: float


def mean_of(numbers: Sequence[float]) -> Mean:
    """Mean, standard error and count of some numbers."""
    error = float(np.std(numbers, ddof=1)) / math.sqrt(len(numbers)) if len(numbers) > 1 else None
    return Mean(mean=float(np.mean(numbers)), error=error, count=len(numbers))


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Paired:
    """Compare values of the same images, of which higher ones are better.

    Example::

        paired([0.9, 0.8, 0.7], [0.1, 0.2, 0.9]).better  # 2
    """
    differences = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    mean = mean_of(differences.tolist())
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    return Paired(difference=mean.mean, error=mean.error, better=better, worse=worse, p=sign_test(better, worse))


def sign_test(better: int, worse: int) -> float:
    """Two-sided probability of a split at least as uneven of a fair coin; ties are left out (Dixon and Mood 1946)."""
    count = better + worse
    tail: float = sum(math.comb(count, k) for k in range(min(better, worse) + 1)) / 2**count
    return min(1.0, 2 * tail)


def kendall_w(table: Mapping[str, Sequence[float]]) -> float | None:
    """Kendall's W: how far metrics agree on the order of methods, from 0 (not at all) to 1 (fully).

    `table` has for each metric the worth of every method, higher being better. Kendall and Babington Smith 1939, with
    the correction for ties. `None` with fewer than two metrics or three methods, of which no order can be told.
    """
    ranks = np.array([_ranks(np.asarray(values, np.float64)) for values in table.values()])
    if ranks.ndim != 2 or len(ranks) < 2 or ranks.shape[1] < 3:
        return None
    judges, count = ranks.shape
    ties = sum(
        float((repeats**3 - repeats).sum()) for row in ranks for repeats in [np.unique(row, return_counts=True)[1]]
    )
    squares = float(((ranks.sum(0) - judges * (count + 1) / 2) ** 2).sum())
    whole = judges**2 * (count**3 - count) - judges * ties
    return 12 * squares / whole if whole > 0 else None


def told_apart(columns: Mapping[str, Sequence[float]]) -> bool:
    """Whether the best and the worst of several methods differ by two standard errors of their paired difference."""
    means = {name: float(np.mean(values)) for name, values in columns.items()}
    best, worst = (pick(means, key=lambda name: means[name]) for pick in (max, min))
    result = paired(columns[best], columns[worst])
    return result.error is not None and result.difference >= 2 * result.error and best != worst


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1 for the highest; equal values share their mean rank."""
    _, which, counts = np.unique(-values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[which])
