"""The network and the images that other libraries were run on; the same numbers wherever they are made.

Three convolutions, so that the maps behind the second one are of mixed sign and cotangents differ from place to place.
The third has no negative weight, and the last class less of everything than any other one: its cotangents are negative
everywhere, of the logit and of the probability.
"""

from __future__ import annotations

import numpy as np

HEIGHT, WIDTH = 20, 26
CASES = {"mixed": (0, 1), "second": (1, 2), "negative": (0, 4)}
"""Sample and class."""


def weights() -> dict[str, np.ndarray]:
    """Kernels `[out, in, 3, 3]`, the last weight `[classes, channels]`, and biases."""
    random = np.random.RandomState(11)

    def drawn(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    found = {"first": 2 * drawn(8, 3, 3, 3), "first_bias": 0.3 * drawn(8)}
    found |= {"second": 2 * drawn(12, 8, 3, 3), "second_bias": 0.3 * drawn(12)}
    found["third"] = 4 * np.abs(drawn(16, 12, 3, 3))
    last = 8 * drawn(5, 16)
    last[4] = last[:4].min(axis=0) - 0.1
    # Inputs of these two are about a half, and the biases take that back.
    halves = {"third_bias": -found["third"].sum((1, 2, 3)) / 2, "last_bias": -last.sum(1) / 2}
    return {name: value.astype(np.float32) for name, value in {**found, "last": last, **halves}.items()}


def images() -> np.ndarray:
    """`uint8 [2, HEIGHT, WIDTH, 3]`: blobs of colour."""
    random = np.random.RandomState(5)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    found = np.full((2, HEIGHT, WIDTH, 3), 60.0)
    for image in found:
        for _ in range(7):
            y, x, size = random.uniform(0, HEIGHT), random.uniform(0, WIDTH), random.uniform(2, 6)
            blob = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * size**2))
            image[:] += blob[..., None] * random.uniform(-80, 190, 3)
    return np.clip(np.rint(found), 0, 255).astype(np.uint8)


def inputs() -> np.ndarray:
    """`float32 [2, 3, HEIGHT, WIDTH]` in [-1, 1]."""
    return (images().transpose(0, 3, 1, 2) / 127.5 - 1).astype(np.float32)
