"""Methods that differentiate the score at many pictures near the one that is explained."""

from __future__ import annotations

import numpy as np

from .probe import Array, Probe
from .registry import method

_SAMPLES = 50
"""Of SmoothGrad and its relatives, as its section 3.2 advises."""

_NOISE = 0.15
"""Standard deviation of the noise relative to the range of the picture's values; SmoothGrad, section 3.2."""

_STEPS = 50
"""Of the integral; the paper's section 5 finds 20 to 300 enough."""


@method(
    "smoothgrad",
    title="SmoothGrad",
    reference="Smilkov et al. 2017, eq. 1, signed",
    family="sampling",
    uses=("gx",),
    passes=f"{_SAMPLES} forward and backward passes",
)
def smooth_grad(probe: Probe) -> Array:
    """The mean of the gradients at noisy copies of the picture."""
    spread = _NOISE * float(np.ptp(probe.x))
    total = np.zeros_like(probe.x, np.float64)
    for chunk in probe.steps(_SAMPLES):
        noise = probe.rng.standard_normal((len(chunk), *probe.x.shape))
        total += probe.gradients((probe.x + spread * noise).astype(np.float32)).sum(0, dtype=np.float64)
    return (total / _SAMPLES).astype(np.float32)


@method(
    "integrated-gradients",
    title="Integrated gradients",
    reference="Sundararajan et al. 2017, eq. 1 and 3, from the input zero; midpoints",
    family="sampling",
    uses=("gx",),
    passes=f"{_STEPS} forward and backward passes",
)
def integrated_gradients(probe: Probe) -> Array:
    """The picture times the mean gradient on the straight way from zero to it."""
    total = np.zeros_like(probe.x, np.float64)
    for chunk in probe.steps(_STEPS):
        part = (np.array(chunk, np.float32) + 0.5) / _STEPS
        total += probe.gradients(part[:, None, None, None] * probe.x).sum(0, dtype=np.float64)
    return (probe.x * total / _STEPS).astype(np.float32)
