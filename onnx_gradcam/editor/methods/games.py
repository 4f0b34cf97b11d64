"""Games: parts of the image as players, whose shares of the score tell what it depends on; only scores are needed.

Players are cells of a grid or segments by color; an absent one is replaced by a baseline. These methods serve quantised
models and those without gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import numpy as np
import numpy.typing as npt

from onnx_gradcam.errors import InputError, UnsupportedError

from .catalogue import method
from .probe import Array, Probe
from .regions import players

Coalitions = npt.NDArray[np.bool_]

_MOST_PLAYERS = 12
"""Exact Shapley values take 2^n passes."""

_PERMUTATIONS, _KERNEL, _LIME = 50, 2048, 1000
"""Default passes or permutations of the estimators."""

_WIDTH, _RIDGE = 0.25, 1.0
"""LIME: width of the kernel of cosine distances, and the penalty of the ridge regression."""

_SIDE, _SOBOL, _HSIC = 8, 32, 500
"""Sobol and HSIC: cells a side, and masks."""

_OVER_GRID = {"baseline": ("zero",), "players": "grid:7x7", "max_passes": None}

_game = partial(method, family="perturbation", outside="runs the model many times", uses=("score",))


class _Game:
    """The players of an image, and the scores of coalitions of them."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self.labels = players(probe.x, probe.settings["players"])
        self.count = int(self.labels.max()) + 1
        self._absent = probe.baselines

    def values(self, coalitions: Coalitions) -> Array:
        """The score of each coalition `[M, n]`, averaged over baselines, `float64 [M]`."""
        total = np.zeros(len(coalitions), np.float64)
        for absent in self._absent:
            for chunk in self.probe.steps(len(coalitions)):
                seen = coalitions[list(chunk)][:, self.labels]
                total[list(chunk)] += self.probe.scores(np.where(seen[:, None], self.probe.x, absent))
        mean: Array = total / len(self._absent)
        return mean

    def shown(self, shares: Array) -> Array:
        """Shares of players `[n]` as a map `[H, W]`, spread over the pixels of each, so that it adds up the same."""
        spread: Array = (shares / np.bincount(self.labels.ravel(), minlength=self.count))[self.labels]
        return spread

    def passes(self, default: int) -> int:
        """The coalitions that may be run: as many as the user allows passes, or the default."""
        most = self.probe.settings["max_passes"] or default * len(self._absent)
        return int(most) // len(self._absent)


@_game(
    "shapley",
    title="Shapley values",
    reference="Shapley 1953: phi_i = sum_s |s|! (n - |s| - 1)! / n! (v(s + i) - v(s)), over all coalitions s",
    passes="2^9 forward passes for each baseline",
    takes={"baseline": ("zero",), "players": "grid:3x3"},
)
def shapley(probe: Probe) -> Array:
    """The exact Shapley value of each player, for at most 12 players."""
    game = _Game(probe)
    n = game.count
    if n > _MOST_PLAYERS:
        raise UnsupportedError(
            f"exact Shapley values of {n} players take {2.0**n:.0e} passes; choose --players grid:3x3, or --method "
            "kernel-shap"
        )
    codes = np.arange(2**n)
    coalitions = (codes[:, None] >> np.arange(n) & 1).astype(bool)
    values, sizes = game.values(coalitions), coalitions.sum(1)
    weights = np.array([math.factorial(s) * math.factorial(n - s - 1) / math.factorial(n) for s in range(n)])
    shares = np.empty(n)
    for i in range(n):
        without = codes[~coalitions[:, i]]
        shares[i] = (weights[sizes[without]] * (values[without | 1 << i] - values[without])).sum()
    return game.shown(shares)


@_game(
    "sampled-shapley",
    title="Sampled Shapley values",
    reference="Castro et al. 2009, algorithm 1; each random permutation also reversed",
    passes=f"{_PERMUTATIONS} times the players plus one forward passes for each baseline",
    takes=_OVER_GRID,
)
def sampled_shapley(probe: Probe) -> Array:
    """The mean over random permutations of what each player adds to those before it."""
    game = _Game(probe)
    n = game.count
    count = max(game.passes(_PERMUTATIONS * (n + 1)) // (n + 1), 1)
    total = np.zeros(n)
    order = np.arange(n)
    for i in range(count):
        order = order[::-1] if i % 2 else probe.rng.permutation(n)
        rank = np.empty(n, np.int64)
        rank[order] = np.arange(n)
        values = game.values(rank < np.arange(n + 1)[:, None])
        total[order] += np.diff(values)
    return game.shown(total / count)


@_game(
    "kernel-shap",
    title="KernelSHAP",
    reference="Lundberg and Lee 2017, theorem 2; sizes of coalitions filled from both ends, pairs of complements",
    passes=f"{_KERNEL} forward passes for each baseline",
    takes=_OVER_GRID,
)
def kernel_shap(probe: Probe) -> Array:
    """The weighted least squares of a sum over players, exact for none and for all of them."""
    game = _Game(probe)
    count, least = game.passes(_KERNEL), 2 * game.count + 2
    if count < least:
        raise InputError(f"KernelSHAP of {game.count} players needs {least} passes a baseline; raise --max-passes")
    coalitions, weights = _sampled(game.count, count - 2, probe.rng)
    ends = np.array([[False] * game.count, [True] * game.count])
    values = game.values(np.concatenate([ends, coalitions]))
    return game.shown(_least_squares(coalitions, weights, values[2:] - values[0], values[1] - values[0]))


def _sampled(n: int, count: int, rng: np.random.Generator) -> tuple[Coalitions, Array]:
    """At most so many coalitions of n players and their weights: whole sizes where they fit, the rest at random.

    Sizes come in pairs, s and n - s, the outermost first, as these weigh most.
    """
    kernel = np.array([(n - 1) / (s * (n - s)) for s in range(1, n)])
    kernel /= kernel.sum()
    taken: list[Coalitions] = []
    weights: list[Array] = []
    left, sizes = count, list(range(1, n // 2 + 1))
    while sizes:
        s = sizes[0]
        both = 1 if 2 * s == n else 2
        full = math.comb(n, s) * both
        rest = sum(kernel[k - 1] * (1 if 2 * k == n else 2) for k in sizes)
        # As many as its share of the samples that are left would hold: a size that would be drawn whole is taken whole.
        if left * kernel[s - 1] * both / rest < full - 1e-8:
            break
        members = np.array(list(_members(n, s)))
        taken += [members, ~members][:both]
        weights += [np.full(len(members), kernel[s - 1] / len(members))] * both
        left -= full
        sizes.pop(0)
    if sizes and left > 1:
        drawn = _drawn(n, sizes, kernel, left // 2, rng)
        rest = sum(kernel[k - 1] * (1 if 2 * k == n else 2) for k in sizes)
        taken += [drawn, ~drawn]
        weights += [np.full(len(drawn), rest / (2 * len(drawn)))] * 2
    return np.concatenate(taken), np.concatenate(weights)


def _members(n: int, s: int) -> Iterator[Coalitions]:
    """All coalitions of size s."""
    chosen = list(range(s))
    while True:
        row = np.zeros(n, bool)
        row[chosen] = True
        yield row
        i = next((i for i in reversed(range(s)) if chosen[i] != i + n - s), None)
        if i is None:
            return
        chosen[i:] = range(chosen[i] + 1, chosen[i] + 1 + s - i)


def _drawn(n: int, sizes: list[int], kernel: Array, count: int, rng: np.random.Generator) -> Coalitions:
    """Random coalitions of some sizes, as the kernel weighs these."""
    mass = np.array([kernel[s - 1] * (1 if 2 * s == n else 2) for s in sizes])
    rows = np.zeros((count, n), bool)
    for row, s in zip(rows, rng.choice(sizes, count, p=mass / mass.sum()), strict=True):
        row[rng.choice(n, s, replace=False)] = True
    return rows


def _least_squares(coalitions: Coalitions, weights: Array, values: Array, whole: float) -> Array:
    """The shares that sum to `whole` and fit the values of coalitions best; the last player is eliminated."""
    root = np.sqrt(weights)
    last = coalitions[:, -1].astype(np.float64)
    design = (coalitions[:, :-1] - last[:, None]) * root[:, None]
    shares = np.linalg.lstsq(design, (values - last * whole) * root, rcond=None)[0]
    return np.append(shares, whole - shares.sum())


@_game(
    "lime",
    title="LIME",
    reference="Ribeiro et al. 2016, eq. 1, with the ridge regression and kernel of lime 0.2.0.1 lime_image.py",
    passes=f"{_LIME} forward passes for each baseline",
    takes=_OVER_GRID,
)
def lime(probe: Probe) -> Array:
    """The coefficients of a ridge regression on random coalitions, weighted by how like the whole image each is."""
    game = _Game(probe)
    coalitions = probe.rng.random((game.passes(_LIME), game.count)) < 0.5
    coalitions[0] = True
    return game.shown(ridge(coalitions, game.values(coalitions)))


def ridge(coalitions: Coalitions, values: Array) -> Array:
    """LIME's coefficients `[n]` from the scores of coalitions `[M, n]`."""
    present = coalitions.mean(1)
    near = np.sqrt(np.exp(-((1 - np.sqrt(present)) ** 2) / _WIDTH**2))
    rows = coalitions.astype(np.float64)
    share = near / near.sum()
    design, target = rows - share @ rows, values - share @ values
    penalty = _RIDGE * np.eye(rows.shape[1])
    coefficients: Array = np.linalg.solve(design.T @ (design * near[:, None]) + penalty, design.T @ (target * near))
    return coefficients


_cells = partial(_game, takes={"baseline": ("zero",), "max_passes": None})


@_cells(
    "sobol",
    title="Sobol indices",
    reference="Fel et al. 2021, eq. 4, total order by Jansen's estimator; masks of a Latin hypercube",
    passes=f"{_SOBOL * (_SIDE * _SIDE + 2)} forward passes for each baseline",
)
def sobol(probe: Probe) -> Array:
    """The share of the score's variance under masks of 8 x 8 cells that each cell takes part in."""
    cells = _SIDE * _SIDE
    most = _allowed(probe, _SOBOL * (cells + 2))
    count = 2 ** int(math.log2(max(most // (cells + 2), 2)))
    both = _filling(probe, count, 2 * cells)
    one, other = both[:, :cells], both[:, cells:]
    swapped = np.repeat(one[None], cells, axis=0)
    swapped[np.arange(cells), :, np.arange(cells)] = other.T
    answers = _masked(probe, np.concatenate([one, other, swapped.reshape(-1, cells)]))
    return total_order(answers[:count], answers[2 * count :].reshape(cells, count)).reshape(_SIDE, _SIDE)


def total_order(plain: Array, swapped: Array) -> Array:
    """Jansen's total order of each cell, from the scores of masks `[N]` and of those with one cell swapped `[n, N]`."""
    variance = plain.var(ddof=1)
    if variance == 0:
        return np.zeros(len(swapped))
    order: Array = ((plain - swapped) ** 2).sum(1) / (2 * len(plain) * variance)
    return order


@_cells(
    "hsic",
    title="HSIC",
    reference="Novello et al. 2022, eq. 6; kernels as xplique 2.0.2, whose width is the median of the "
    "scores; masks of a Latin hypercube",
    passes=f"{_HSIC} forward passes for each baseline",
)
def hsic(probe: Probe) -> Array:
    """How far the score depends on whether each of 8 x 8 cells is seen: the Hilbert-Schmidt criterion."""
    masks = np.round(_filling(probe, _allowed(probe, _HSIC), _SIDE * _SIDE))
    return dependence(masks, _masked(probe, masks)).reshape(_SIDE, _SIDE)


def dependence(masks: Array, answers: Array) -> Array:
    """The Hilbert-Schmidt criterion of each cell of masks `[N, n]` and scores `[N]`."""
    count, width = len(masks), float(np.median(answers))
    if width == 0:
        raise InputError("the median of the scores of masks is 0, by which HSIC divides; choose another baseline")
    apart = np.exp(-((answers[:, None] - answers[None]) ** 2) / (2 * width**2))
    centred = apart - apart.mean(0) - apart.mean(1, keepdims=True) + apart.mean()
    # The kernel of a cell is 3/2 minus the squared difference of two zeros or ones; centring one side is enough.
    alike = [1.5 - (column[:, None] - column[None]) ** 2 for column in masks.T]
    return np.array([(kernel * centred).sum() / count for kernel in alike])


def _allowed(probe: Probe, default: int) -> int:
    """Masks that may be run."""
    starts = len(probe.baselines)
    return int(probe.settings["max_passes"] or default * starts) // starts


def _masked(probe: Probe, masks: Array) -> Array:
    """The scores of the image under masks of cells `[M, n]`, mixed with each baseline, averaged: `float64 [M]`."""
    if len(probe.size) != 2:
        raise UnsupportedError("games are for images; take integrated-gradients or gradient")
    rows, columns = (np.arange(side) * _SIDE // side for side in probe.size)
    cells, total = masks.reshape(-1, _SIDE, _SIDE), np.zeros(len(masks), np.float64)
    for absent in probe.baselines:
        for chunk in probe.steps(len(masks)):
            seen = cells[list(chunk)][:, rows][:, :, columns][:, None]
            total[list(chunk)] += probe.scores((probe.x * seen + absent * (1 - seen)).astype(np.float32))
    mean: Array = total / len(probe.baselines)
    return mean


def _filling(probe: Probe, count: int, dimensions: int) -> Array:
    """Points `[count, dimensions]` that fill the unit cube evenly along each axis: a Latin hypercube."""
    order = probe.rng.permuted(np.repeat(np.arange(count)[:, None], dimensions, axis=1), axis=0)
    points: Array = (order + probe.rng.random((count, dimensions))) / count
    return points
