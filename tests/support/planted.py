"""Volumes with a planted lesion, and signals of 12 leads with a planted beat, from seeds."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

SIDE = 20
LENGTH = 240


def lesions(count: int, seed: int) -> tuple[Array, Array, Array]:
    """Volumes `float32 [count, 1, 20, 20, 20]`, whether each has a lesion, and where, `bool [count, 20, 20, 20]`.

    All volumes have vessels, bright lines of one voxel, which are as bright as the ball that is the lesion.
    """
    rng = np.random.default_rng(seed)
    x = (0.3 * rng.standard_normal((count, 1, SIDE, SIDE, SIDE))).astype(np.float32)
    labels, inside = np.arange(count) % 2, np.zeros((count, SIDE, SIDE, SIDE), bool)
    places = np.indices((SIDE, SIDE, SIDE))
    for i, label in enumerate(labels):
        for _ in range(3):
            line = [int(n) for n in rng.integers(0, SIDE, 3)]
            axis = int(rng.integers(3))
            x[i, 0][tuple(slice(None) if a == axis else n for a, n in enumerate(line))] += 1
        if label:
            centre = rng.integers(4, SIDE - 4, 3).reshape(3, 1, 1, 1)
            inside[i] = np.square(places - centre).sum(0) <= 3**2
            x[i, 0][inside[i]] += 1
    return x, labels, inside


def beats(count: int, seed: int) -> tuple[Array, Array, Array]:
    """Signals `float32 [count, 12, 240]`, whether one beat of each is wide, and where, `bool [count, 240]`.

    Beats come every 40 samples, with jitter; the leads see them with factors of their own.
    """
    rng = np.random.default_rng(seed)
    x = (0.1 * rng.standard_normal((count, 12, LENGTH))).astype(np.float32)
    labels, inside = np.arange(count) % 2, np.zeros((count, LENGTH), bool)
    time = np.arange(LENGTH)
    for i, label in enumerate(labels):
        leads = rng.uniform(0.5, 1.5, (12, 1))
        wide = int(rng.integers(1, 5)) if label else -1
        for beat in range(6):
            middle = 20 + 40 * beat + int(rng.integers(-6, 7))
            width = 6.0 if beat == wide else 1.5
            x[i] += (leads * np.exp(-0.5 * ((time - middle) / width) ** 2)).astype(np.float32)
            if beat == wide:
                inside[i] = abs(time - middle) <= 2 * width
    return x, labels, inside
