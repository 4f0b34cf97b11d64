"""Methods that change the picture, or its activation maps, and watch the score; no gradient is needed."""

from __future__ import annotations

import numpy as np

from .probe import Array, Probe
from .registry import method


@method(
    "ablationcam",
    title="Ablation-CAM",
    reference="Desai and Ramaswamy 2020, eq. 4; channels set to zero",
    family="perturbation",
    uses=("A", "head"),
    passes="one forward pass, and the head once a channel",
)
def ablation_cam(probe: Probe) -> Array:
    """sum_k w_k A_k, where w_k is the part of the score that is lost without channel k."""
    maps = probe.maps
    (score,) = probe.head(maps[None])
    weights = np.empty(len(maps), np.float64)
    for chunk in probe.steps(len(maps)):
        ablated = np.repeat(maps[None], len(chunk), axis=0)
        ablated[np.arange(len(chunk)), list(chunk)] = 0
        weights[list(chunk)] = (score - probe.head(ablated)) / score
    return np.tensordot(weights, maps, 1).astype(np.float32)


@method(
    "scorecam",
    title="Score-CAM",
    reference="Wang et al. 2020, eq. 4 to 6 and algorithm 1, with probabilities",
    family="perturbation",
    uses=("A",),
    passes="one forward pass a channel and two more",
)
def score_cam(probe: Probe) -> Array:
    """sum_k w_k A_k, where w_k is the softmax of the score's rise when only what channel k shows is seen."""
    maps = probe.maps
    rise = np.empty(len(maps), np.float64)
    for chunk in probe.steps(len(maps)):
        masks = probe.enlarged(maps[list(chunk)])
        low, high = masks.min((1, 2), keepdims=True), masks.max((1, 2), keepdims=True)
        masks = (masks - low) / np.maximum(high - low, 1e-8)
        rise[list(chunk)] = probe.probabilities(probe.x * masks[:, None])
    weights = np.exp(rise - rise.max())
    return np.tensordot(weights / weights.sum(), maps, 1).astype(np.float32)
