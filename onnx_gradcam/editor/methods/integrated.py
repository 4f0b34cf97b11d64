"""Path methods: gradients of the score on the way from images that stand for no information to the image.

Their values add up to what the score changes by on the way, the closer the finer the steps; with IDGI exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from onnx_gradcam.graph.builder import Builder, Value

from .averaged import sampling
from .baselines import blurred
from .catalogue import Method
from .probe import Array, Probe

_STEPS = 50
"""Steps of the integral; section 5 of Sundararajan et al. finds 20 to 300 enough."""

_STEPS_IN_GRAPH = 16
"""Steps of the integral as rows of one batch."""

_BLUR, _BLURS, _BLUR_STEP = 50.0, 100, 0.01
"""Widest blur in pixels, steps to it and the step of its derivative, as the authors' library by default."""

_GUIDED_STEPS, _SHARE, _LEEWAY = 200, 0.25, 0.02
"""Guided IG: steps, the share of values that moves at a time, and the distance from the straight path."""

_ZERO = ("zero",)
_PER_BASELINE = "forward and backward passes for each baseline"

_path = partial(sampling, uses=("gx",))


def integrated_gradients_in_graph(
    t: Builder,
    x: Value,
    baselines: Sequence[Value],
    gradients: Callable[[Value, int], Value],
    settings: Mapping[str, Any],
) -> Value:
    """As `integrated_gradients`, with all steps from all baselines as rows of one batch."""
    nodes, weights = np.polynomial.legendre.leggauss(settings["steps"])
    ones = [1] * (x.rank - 1)
    places = t.const(((1 + nodes) / 2).astype(np.float32).reshape(1, -1, *ones))
    ways = [x - start for start in baselines]
    on_path = [
        t.op("Add", t.op("Unsqueeze", start, t.ints(1)), t.op("Mul", places, t.op("Unsqueeze", way, t.ints(1))))
        for start, way in zip(baselines, ways, strict=True)
    ]
    joined = on_path[0] if len(on_path) == 1 else t.op("Concat", *on_path, axis=1)
    count = len(nodes) * len(baselines)
    behind = t.op("Shape", x, start=1)
    flat = t.op("Reshape", joined, t.op("Concat", t.ints(-1), behind, axis=0), shape=(None, *x.shape[1:]))
    found = gradients(flat, count)
    apart = t.op("Concat", t.ints(-1, len(baselines), len(nodes)), behind, axis=0)
    by_step = t.op("Reshape", found, apart, shape=(x.shape[0], len(baselines), len(nodes), *x.shape[1:]))
    shares = (weights / 2 / len(baselines)).astype(np.float32).reshape(1, 1, -1, *ones)
    means = t.sum(t.op("Mul", by_step, t.const(shares)), [2], keepdims=False)
    way = [t.op("Unsqueeze", way, t.ints(1)) for way in ways]
    return t.sum(t.op("Mul", way[0] if len(way) == 1 else t.op("Concat", *way, axis=1), means), [1], keepdims=False)


@_path(
    "integrated-gradients",
    inside=Method(
        name="integrated-gradients",
        title="Integrated gradients",
        reference="Sundararajan et al. 2017, eq. 1; Gauss-Legendre quadrature, as captum",
        family="attribution",
        function=integrated_gradients_in_graph,
        takes={"baseline": _ZERO, "steps": _STEPS_IN_GRAPH},
    ),
    title="Integrated gradients",
    reference="Sundararajan et al. 2017, eq. 1; Gauss-Legendre quadrature, as captum",
    passes=f"{_STEPS} {_PER_BASELINE}; as a part of a model {_STEPS_IN_GRAPH} in one call",
    takes={"baseline": _ZERO, "steps": _STEPS, "idgi": False, "smooth": 0},
)
def integrated_gradients(probe: Probe) -> Array:
    """The product of x - b and the integral of dS/dx at b + a (x - b) over a from 0 to 1, averaged over baselines b.

    With IDGI the steps are equal.
    """
    if probe.settings["idgi"]:
        nodes = np.linspace(0, 1, probe.settings["steps"] + 1)
        return _over_baselines(probe, lambda b: important_directions(_answers(probe, b, nodes)))
    roots, weights = np.polynomial.legendre.leggauss(probe.settings["steps"])
    return _over_baselines(probe, lambda b: _integral(probe, b, (1 + roots) / 2, weights / 2))


@_path(
    "integrated-gradients-pair-saliency",
    title="Integrated gradients of saliency, by PAIR",
    reference="Sundararajan et al. 2017, eq. 3; saliency 0.2.1 integrated_gradients.py: equal steps with both ends",
    passes=f"25 {_PER_BASELINE}",
    takes={"baseline": _ZERO, "steps": 25, "smooth": 0},
)
def integrated_gradients_of_pair(probe: Probe) -> Array:
    """As integrated gradients, with the mean of the gradients at equally spaced points, both ends included."""
    return _over_baselines(probe, lambda b: evenly(probe, b, probe.settings["steps"]))


def evenly(probe: Probe, start: Array, count: int) -> Array:
    """X - b times the mean of the gradients at `count` equally spaced points from b to x, both ends included."""
    return _integral(probe, start, np.linspace(0, 1, count), np.full(count, 1 / count))


def _over_baselines(probe: Probe, attributed: Callable[[Array], Array]) -> Array:
    """The mean of an attribution over the baselines."""
    mean: Array = np.mean([attributed(start) for start in probe.baselines], axis=0, dtype=np.float64)
    return mean


def _integral(probe: Probe, start: Array, places: Array, weights: Array) -> Array:
    """X - b times the weighted sum of the gradients at places between b (0) and x (1)."""
    total = np.zeros_like(probe.x, np.float64)
    for chunk in probe.steps(len(places)):
        gradients = probe.gradients(_between(probe, start, places[list(chunk)]))
        total += np.tensordot(weights[list(chunk)], gradients, 1)
    return (probe.x - start) * total


def _between(probe: Probe, start: Array, places: Array) -> Array:
    """Images on the straight path from a baseline (0) to the image (1), `[M, C, H, W]`."""
    images: Array = start + np.multiply.outer(places.astype(np.float32), probe.x - start)
    return images


def _answers(probe: Probe, start: Array, places: Array) -> Iterator[tuple[Array, float]]:
    """Gradient and score at places between a baseline (0) and the image (1)."""
    for chunk in probe.steps(len(places)):
        yield from zip(*probe.gradients_and_scores(_between(probe, start, places[list(chunk)])), strict=True)


def important_directions(answers: Iterable[tuple[Array, float]]) -> Array:
    """IDGI: sum_j g_j^2 / |g_j|^2 (S_(j+1) - S_j) over the points of a path, from gradients g_j and scores S_j.

    The values add up to the difference of the scores at both ends. A point without a gradient leaves its change to the
    next; what none takes at the end goes to the last point with a gradient. Yang et al. 2023, eq. 8.
    """
    points = iter(answers)
    gradient, score = next(points)
    total, carried, last = np.zeros(gradient.shape, np.float64), 0.0, np.zeros(gradient.shape, np.float64)
    for following, reached in points:
        carried += float(reached) - float(score)
        square = gradient.astype(np.float64) ** 2
        if (size := square.sum()) > 0:
            last = square / size
            total += last * carried
            carried = 0.0
        gradient, score = following, reached
    return total + last * carried


@_path(
    "guided-ig",
    title="Guided integrated gradients",
    reference="Kapishnikov et al. 2021, algorithm 1 with anchors (section 3.3); saliency 0.2.1 guided_ig.py, whose "
    "defaults it takes",
    passes=f"{_GUIDED_STEPS} {_PER_BASELINE}, one at a time",
    takes={"baseline": _ZERO, "steps": _GUIDED_STEPS, "idgi": False, "smooth": 0},
)
def guided_integrated_gradients(probe: Probe) -> Array:
    """Integrated gradients on a path that moves the values of smallest |dS/dx| first, near the straight one."""
    return _over_baselines(probe, partial(_guided, probe))


def _guided(probe: Probe, start: Array) -> Array:
    """Guided IG from one baseline, in float64."""
    count, idgi = probe.settings["steps"], probe.settings["idgi"]
    x, start = probe.x.astype(np.float64), start.astype(np.float64)
    length, at, total = float(np.abs(x - start).sum()), start, np.zeros_like(x)
    answers: list[tuple[Array, float]] = []
    for chunk in _one_by_one(probe, count):
        gradients, scores = probe.gradients_and_scores(at[None].astype(np.float32))
        gradient, share = gradients[0].astype(np.float64), (chunk + 1) / count
        band = max(share - _LEEWAY, 0.0), min(share + _LEEWAY, 1.0)
        moved = _moved(at, x, start, np.abs(gradient), band, length * (1 - share))
        total += (moved - at) * gradient
        at = moved
        answers.append((gradient, float(scores[0])))
    if not idgi:
        return total
    answers.append((np.zeros_like(x), float(probe.scores(at[None].astype(np.float32))[0])))
    return important_directions(answers)


def _one_by_one(probe: Probe, count: int) -> Iterator[int]:
    for chunk in probe.steps(count):
        yield from chunk


def _moved(at: Array, x: Array, start: Array, size: Array, band: tuple[float, float], goal: float) -> Array:
    """The point of the next step: as far from x, in the L1 norm, as `goal`, by moving values of small gradient first.

    Each value stays within `band`, parts of its way from the baseline to x.
    """
    way, size = x - start, size.copy()
    low, high = start + band[0] * way, start + band[1] * way
    moves = way != 0
    while True:
        done = np.full_like(at, band[1])
        np.divide(at - start, way, out=done, where=moves)
        at = np.where(done < band[0], low, at)
        left = float(np.abs(x - at).sum())
        if np.isclose(left, goal, rtol=1e-9, atol=1e-9):
            return at
        size[at == high] = np.inf
        rank = int(np.floor(_SHARE * (size.size - 1)))
        chosen = (size <= np.partition(size, rank, axis=None)[rank]) & np.isfinite(size)
        room = float((np.abs(at - high) * chosen).sum())
        part = (left - goal) / room if room > 0 else np.inf
        at = np.where(chosen, high if part > 1 else at + part * (high - at), at)
        if part <= 1:
            return at


@_path(
    "blur-ig",
    title="Blur integrated gradients",
    reference="Xu et al. 2020, eq. 6; saliency 0.2.1 blur_ig.py, whose defaults it takes",
    passes=f"{_BLURS} forward and backward passes",
    takes={"steps": _BLURS, "idgi": False, "smooth": 0},
)
def blur_integrated_gradients(probe: Probe) -> Array:
    """The integral of -dS/dB dB/ds over the width s of a Gaussian blur B(x, s), from 0 to 50 pixels.

    The finer the steps, the closer the values of the map add up to S(x) - S(B(x, 50)).
    """
    count = probe.settings["steps"]
    if probe.settings["idgi"]:
        return important_directions(_blurred_answers(probe, np.linspace(_BLUR, 0, count + 1)))
    widths = np.linspace(0, _BLUR, count, endpoint=False)
    total = np.zeros_like(probe.x, np.float64)
    for chunk in probe.steps(count):
        images = np.stack([blurred(probe.x, widths[i]) for i in chunk])
        change = np.stack([blurred(probe.x, widths[i] + _BLUR_STEP) for i in chunk]) - images
        total -= np.einsum("n...,n...->...", change, probe.gradients(images.astype(np.float32)))
    integral: Array = total * (_BLUR / count / _BLUR_STEP)
    return integral


def _blurred_answers(probe: Probe, widths: Array) -> Iterator[tuple[Array, float]]:
    """Gradient and score of the image under blurs of some widths."""
    for chunk in probe.steps(len(widths)):
        images = np.stack([blurred(probe.x, widths[i]) for i in chunk]).astype(np.float32)
        yield from zip(*probe.gradients_and_scores(images), strict=True)


@_path(
    "expected-gradients",
    title="Expected gradients (GradientSHAP)",
    reference="Erion et al. 2021, eq. 3; captum's GradientShap without its noise",
    passes=f"{_STEPS} {_PER_BASELINE}",
    takes={"baseline": ("zero", "darkest", "lightest"), "steps": _STEPS, "smooth": 0},
)
def expected_gradients(probe: Probe) -> Array:
    """The mean of (x - b) dS/dx at b + a (x - b) over the baselines b and random places a from 0 to 1."""

    def drawn(start: Array) -> Array:
        count = probe.settings["steps"]
        return _integral(probe, start, probe.rng.random(count), np.full(count, 1 / count))

    return _over_baselines(probe, drawn)
