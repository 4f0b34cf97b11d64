"""Methods that change the image, or its activation maps, and watch the score; no gradient is needed.

Methods that run the head again, inside of the model, on activation maps of which only a part is left.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from onnx_gradcam.errors import UnsupportedError
from onnx_gradcam.graph.builder import Builder, Value

from .catalogue import method
from .maps import Matrix, corner, half_pixel
from .probe import Array, Probe

Numbers = npt.NDArray[np.int64]

_TINY = 1e-8
"""Added to the range of a map; the same in pytorch-grad-cam and torch-cam."""

_SAMPLES, _NOISE = 35, 2.0
"""Noisy masks a channel and the standard deviation of their noise, for SS-CAM."""

_STEPS = 10
"""Of the integral of IS-CAM."""

_MASKS, _CELLS, _SEEN = 4000, 7, 0.5
"""RISE, section 4: how many masks, of how many cells a side, and the part of the cells that is seen."""

_WINDOWS = 8
"""Occlusion: how many windows lie side by side along each side of the image; they move by half of their size."""


# ----- channels of a layer -----------------------------------------------------


@method(
    "ablationcam",
    title="Ablation-CAM",
    reference="Desai and Ramaswamy 2020, eq. 4; channels set to zero, as pytorch-grad-cam ablation_layer.py behind a "
    "ReLU",
    family="perturbation",
    uses=("A", "head", "total"),
    passes="one forward pass, and the head once a channel",
)
def ablation_cam(probe: Probe) -> Array:
    """sum_k w_k A_k, where w_k is the part of the score that is lost without channel k."""
    maps = probe.maps
    (score,) = probe.head(maps[None])
    lost = np.empty(len(maps), np.float64)
    for chunk in probe.steps(len(maps)):
        ablated = np.repeat(maps[None], len(chunk), axis=0)
        ablated[np.arange(len(chunk)), list(chunk)] = 0
        lost[list(chunk)] = score - probe.head(ablated)
    # A score of zero makes every part infinite, which is refused where all results are checked.
    with np.errstate(divide="ignore", invalid="ignore"):
        weights: Array = lost / score
        return probe.total(maps, weights)


@method(
    "scorecam",
    title="Score-CAM",
    reference="Wang et al. 2020, eq. 4 to 6; pytorch-grad-cam score_cam.py: corners on each other, raw scores",
    family="perturbation",
    uses=("A", "total"),
    passes="one forward pass, and another a channel",
)
def score_cam(probe: Probe) -> Array:
    """sum_k w_k A_k, where w_k is the softmax of the score when only what channel k shows is seen."""
    return probe.total(probe.maps, _softmax(_mean_scores(probe.scores, probe, 1, _corner_masks(probe))))


@method(
    "scorecam-tf-keras-vis",
    title="Score-CAM of tf-keras-vis",
    reference="Wang et al. 2020, eq. 4 and 6; tf-keras-vis 0.8.7 scorecam.py: probabilities in place of a softmax over "
    "channels",
    family="perturbation",
    uses=("A", "probability", "total"),
    passes="one forward pass, and another a channel",
)
def score_cam_tf_keras_vis(probe: Probe) -> Array:
    """sum_k w_k A_k, where w_k is the probability of the class when only what channel k shows is seen."""
    return probe.total(probe.maps, _mean_scores(probe.probabilities, probe, 1, _corner_masks(probe)))


@method(
    "scorecam-torch-cam",
    title="Score-CAM of torch-cam",
    reference="Wang et al. 2020, eq. 4 to 6; torch-cam 0.5.0 activation.py: masks scaled before they are enlarged",
    family="perturbation",
    uses=("A", "total"),
    passes="one forward pass, and another a channel",
)
def score_cam_torch_cam(probe: Probe) -> Array:
    """Score-CAM with masks that are scaled to [0, 1] at the layer's size."""
    masks = _masks_of_channels(probe)
    return probe.total(probe.maps, _softmax(_mean_scores(probe.scores, probe, 1, lambda _, channels: masks(channels))))


@method(
    "sscam",
    title="SS-CAM",
    reference="Wang et al. 2020 (SS-CAM), section 3; torch-cam 0.5.0 activation.py: noise on the masks",
    family="perturbation",
    uses=("A", "total"),
    passes=f"one forward pass, and {_SAMPLES} more a channel",
)
def ss_cam(probe: Probe) -> Array:
    """Score-CAM with the mean score of noisy masks."""
    masks = _masks_of_channels(probe)

    def noisy(_: Numbers, channels: Numbers) -> Array:
        noise = _NOISE * probe.rng.standard_normal((len(channels), *probe.size))
        return masks(channels) + noise.astype(np.float32)

    return probe.total(probe.maps, _softmax(_mean_scores(probe.scores, probe, _SAMPLES, noisy)))


@method(
    "iscam",
    title="IS-CAM",
    reference="Naidu et al. 2020, section 3; torch-cam 0.5.0 activation.py: step i of n times the sum of 1/n to i/n",
    family="perturbation",
    uses=("A", "total"),
    passes=f"one forward pass, and {_STEPS} more a channel",
)
def is_cam(probe: Probe) -> Array:
    """Score-CAM with the mean score of masks of growing strength."""
    masks = _masks_of_channels(probe)
    strengths = np.cumsum(np.arange(1, _STEPS + 1) / _STEPS).astype(np.float32)

    def grown(steps: Numbers, channels: Numbers) -> Array:
        return strengths[steps][:, None, None] * masks(channels)

    return probe.total(probe.maps, _softmax(_mean_scores(probe.scores, probe, _STEPS, grown)))


def _mean_scores(
    ask: Callable[[Array], Array], probe: Probe, rounds: int, masks: Callable[[Numbers, Numbers], Array]
) -> Array:
    """The mean score of every channel, `[C]`, over several rounds of masks on the image.

    Args:
        ask: from images to scores.
        probe: the image.
        rounds: how many masks each channel has.
        masks: from rounds and channels, `[M]` each, to masks `[M, H, W]`; round by round, channel by channel.
    """
    count = len(probe.maps)
    total = np.zeros(count, np.float64)
    for chunk in probe.steps(rounds * count):
        turn, channel = np.divmod(np.array(chunk), count)
        np.add.at(total, channel, ask(probe.x * masks(turn, channel)[:, None]))
    mean: Array = total / rounds
    return mean


def _corner_masks(probe: Probe) -> Callable[[Numbers, Numbers], Array]:
    """A function from rounds and channels to masks: enlarged, then scaled to [0, 1]."""
    return lambda _, channels: _unit(_enlarged(probe.maps[channels], probe.size, corner))


def _masks_of_channels(probe: Probe) -> Callable[[Numbers], Array]:
    """A function from channels to their masks: scaled to [0, 1] at the layer's size, then enlarged."""
    scaled = _unit(probe.maps)
    return lambda channels: _enlarged(scaled[channels], probe.size, half_pixel)


def _unit(maps: Array) -> Array:
    """Each map from its minimum to its maximum."""
    lifted = maps - maps.min((1, 2), keepdims=True)
    unit: Array = lifted / (lifted.max((1, 2), keepdims=True) + _TINY)
    return unit


def _enlarged(maps: Array, size: tuple[int, int], matrix: Matrix) -> Array:
    """Maps `[M, h, w]` at another size, `[M, H, W]`."""
    rows, columns = (matrix(cells, pixels) for cells, pixels in zip(maps.shape[1:], size, strict=True))
    enlarged: Array = rows @ maps @ columns.T
    return enlarged


def _softmax(values: Array) -> Array:
    grown = np.exp(values - values.max())
    softmax: Array = grown / grown.sum()
    return softmax


# ----- places of the image ---------------------------------------------------


@method(
    "rise",
    title="RISE",
    reference="Petsiuk et al. 2018, eq. 4 and section 3.2, with the masks' own sum for N E[M]; above the lowest value",
    family="perturbation",
    uses=("probability",),
    passes=f"{_MASKS} forward passes",
)
def rise(probe: Probe) -> Array:
    """The mean probability of the class when a place is seen, under random masks."""
    cells = (probe.rng.random((_MASKS, _CELLS, _CELLS)) < _SEEN).astype(np.float32)
    sides = [-(-side // _CELLS) for side in probe.size]
    shifts = probe.rng.integers(0, sides, (_MASKS, 2))
    seen, total = np.zeros((2, *probe.size), np.float64)
    for chunk in probe.steps(_MASKS):
        masks = _shifted(cells[list(chunk)], sides, shifts[list(chunk)], probe.size)
        total += np.tensordot(probe.probabilities(probe.x * masks[:, None]), masks, 1)
        seen += masks.sum(0)
    mean = total / np.maximum(seen, _TINY)
    lifted: Array = mean - mean.min()
    return lifted


def _shifted(cells: Array, sides: list[int], shifts: Numbers, size: tuple[int, int]) -> Array:
    """Masks of the image's size, each cut anywhere out of cells enlarged to one cell more than it takes."""
    wide = _enlarged(cells, ((_CELLS + 1) * sides[0], (_CELLS + 1) * sides[1]), half_pixel)
    pairs = zip(wide, shifts, strict=True)
    return np.stack([mask[top : top + size[0], left : left + size[1]] for mask, (top, left) in pairs])


@method(
    "occlusion",
    title="Occlusion sensitivity",
    reference="Zeiler and Fergus 2014, section 4.2; captum's Occlusion: windows of zeros, the raw score",
    family="perturbation",
    uses=("score",),
    passes=f"about {(2 * _WINDOWS - 1) ** 2} forward passes",
)
def occlusion(probe: Probe) -> Array:
    """How much of the score is lost on average when a window over the place hides what is there."""
    windows = [_windows(side) for side in probe.size]
    places = [(row, column) for row in windows[0] for column in windows[1]]
    (score,) = probe.scores(probe.x[None])
    lost, hidden = np.zeros((2, *probe.size), np.float64)
    for chunk in probe.steps(len(places)):
        images = np.repeat(probe.x[None], len(chunk), axis=0)
        for image, i in zip(images, chunk, strict=True):
            image[:, places[i][0], places[i][1]] = 0
        for less, i in zip(score - probe.scores(images), chunk, strict=True):
            lost[places[i]] += less
            hidden[places[i]] += 1
    mean: Array = lost / hidden
    return mean


def _windows(side: int) -> list[slice]:
    """Where windows lie along one side; the last may reach beyond its end."""
    width = max(side // _WINDOWS, 1)
    step = max(width // 2, 1)
    return [slice(i * step, i * step + width) for i in range(-(-(side - width) // step) + 1)]


_GAUSS = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16


@method(
    "reciprocam",
    title="Recipro-CAM",
    reference="Byun and Lee 2022, eq. 1 to 4, with the Gaussian mask; on tokens it is ViT-ReciproCAM (2023)",
)
def recipro_cam(t: Builder, A: Value, head: Callable[[Value, int], Value]) -> Value:
    """The score when one place of the activation maps and its neighbours are left, above the lowest such score."""
    return _scores(t, A, head, _smooth)


@method(
    "reciprocam-openvino-xai",
    title="Recipro-CAM of OpenVINO XAI",
    reference="OpenVINO XAI 1.1.0 methods/white_box/recipro_cam.py: eq. 1 to 4 with one place for each mask",
)
def recipro_cam_of_openvino_xai(t: Builder, A: Value, head: Callable[[Value, int], Value]) -> Value:
    """The score when one place of the activation maps is left, above the lowest such score."""
    return _scores(t, A, head, _single)


def _scores(
    t: Builder, A: Value, head: Callable[[Value, int], Value], masks_of: Callable[[int, int], npt.NDArray[np.float64]]
) -> Value:
    places = [d for d in A.shape[2:] if isinstance(d, int)]
    if len(places) != 2:
        raise UnsupportedError("Recipro-CAM needs a layer of fixed size; export the model with fixed height and width")
    rows, columns = places
    count = rows * columns
    masks = t.const(masks_of(rows, columns).reshape(1, count, 1, rows, columns).astype(np.float32))
    left = t.op("Mul", t.op("Unsqueeze", A, t.ints(1)), masks)
    scores = head(t.op("Reshape", left, t.ints(-1, *A.dims_behind_batch())), count)
    lifted = scores - t.reduce("ReduceMin", scores, [1])
    return t.op("Reshape", lifted, t.ints(-1, rows, columns), shape=(A.shape[0], rows, columns))


def _single(rows: int, columns: int) -> npt.NDArray[np.float64]:
    """One mask a place, `[rows * columns, rows, columns]`."""
    return np.eye(rows * columns).reshape(-1, rows, columns)


def _smooth(rows: int, columns: int) -> npt.NDArray[np.float64]:
    """As `_single`, with the places around it in the weights of a Gaussian."""
    masks = np.zeros((rows, columns, rows + 2, columns + 2))
    for row in range(rows):
        for column in range(columns):
            masks[row, column, row : row + 3, column : column + 3] = _GAUSS
    return masks[:, :, 1:-1, 1:-1].reshape(-1, rows, columns)
