"""Methods that change the image or its activation maps and watch the score S; only gScoreCAM needs a gradient.

Recipro-CAM runs the head again as a part of the graph; the others run the model many times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product

import numpy as np
import numpy.typing as npt

from onnx_gradcam.errors import UnsupportedError
from onnx_gradcam.graph.builder import Builder, Value

from .catalogue import method
from .maps import Matrix, corner, half_pixel
from .probe import Array, Probe

Numbers = npt.NDArray[np.int64]

_TINY = 1e-8
"""Added to the range of a map, as in pytorch-grad-cam and torch-cam."""

_SAMPLES, _NOISE = 35, 2.0
"""SS-CAM: noisy masks per channel, and the standard deviation of their noise."""

_STEPS = 10
"""IS-CAM: steps of the integral."""

_STRONGEST = 300
"""gScoreCAM: channels that are run."""

_MASKS, _CELLS, _SEEN = 4000, 7, 0.5
"""RISE, section 4: number of masks, cells per side, and share of visible cells."""

_BOX_MASKS, _BOX_CELLS = 5000, 16
"""D-RISE: number of masks and cells per side in its experiments; objects are smaller than what classifiers see."""

_WINDOWS = 8
"""Occlusion: windows side by side along each side of the image; they move by half their size."""

_perturbation = partial(method, family="perturbation", outside="runs the model many times")
_with_masks = partial(_perturbation, uses=("A", "total"), passes="one forward pass and one more for each channel")


@_perturbation(
    "ablationcam",
    title="Ablation-CAM",
    reference="Desai and Ramaswamy 2020, eq. 4; channels set to zero, as pytorch-grad-cam ablation_layer.py behind a "
    "ReLU",
    uses=("A", "head", "total"),
    passes="one forward pass and the head once for each channel",
)
def ablation_cam(probe: Probe) -> Array:
    """sum_k w_k A_k with w_k = (S - S_k) / S, where S_k is the score without channel k."""
    maps = probe.maps
    (score,) = probe.head(maps[None])
    lost = np.empty(len(maps), np.float64)
    for chunk in probe.steps(len(maps)):
        ablated = np.repeat(maps[None], len(chunk), axis=0)
        ablated[np.arange(len(chunk)), list(chunk)] = 0
        lost[list(chunk)] = score - probe.head(ablated)
    # A score of zero makes the weights infinite, which the check of all results refuses.
    with np.errstate(divide="ignore", invalid="ignore"):
        weights: Array = lost / score
        return probe.total(maps, weights)


@_with_masks(
    "scorecam",
    title="Score-CAM",
    reference="Wang et al. 2020, eq. 4 to 6; pytorch-grad-cam score_cam.py: aligned corners, raw scores",
)
def score_cam(probe: Probe) -> Array:
    """sum_k w_k A_k with w = softmax_k(S(x m_k)), where m_k is the map of channel k, resized and scaled to [0, 1]."""
    return probe.total(probe.maps, _softmax(_mean_scores(probe.scores, probe, 1, _corner_masks(probe, probe.maps))))


@_with_masks(
    "scorecam-tf-keras-vis",
    title="Score-CAM of tf-keras-vis",
    reference="Wang et al. 2020, eq. 4 and 6; tf-keras-vis 0.8.7 scorecam.py: probabilities instead of a softmax over "
    "channels",
    uses=("A", "probability", "total"),
)
def score_cam_tf_keras_vis(probe: Probe) -> Array:
    """sum_k w_k A_k with w_k the probability of the class for x m_k."""
    return probe.total(probe.maps, _mean_scores(probe.probabilities, probe, 1, _corner_masks(probe, probe.maps)))


@_with_masks(
    "scorecam-torch-cam",
    title="Score-CAM of torch-cam",
    reference="Wang et al. 2020, eq. 4 to 6; torch-cam 0.5.0 activation.py: masks scaled before they are resized",
)
def score_cam_torch_cam(probe: Probe) -> Array:
    """Score-CAM with masks scaled to [0, 1] at the layer's size."""
    masks = _masks_of_channels(probe)
    return probe.total(probe.maps, _softmax(_mean_scores(probe.scores, probe, 1, lambda _, channels: masks(channels))))


@_perturbation(
    "gscorecam",
    title="gScoreCAM",
    reference="Chen et al. 2022 (ACCV): the 300 channels of the largest mean gradient; masks as `scorecam`, and a "
    "softmax over these channels",
    uses=("A", "G", "total"),
    passes=f"one forward and backward pass and one forward pass for each of the {_STRONGEST} strongest channels",
)
def gscore_cam(probe: Probe) -> Array:
    """sum_k w_k A_k as Score-CAM, over the 300 channels k of the largest mean of dS/dA_k alone."""
    maps, gradients = (rows[0] for rows in probe.maps_and_cotangents(probe.x[None]))
    # The sign counts: a channel that speaks against the class is not run.
    strongest = np.argsort(-gradients.mean((1, 2)), kind="stable")[:_STRONGEST]
    masks = _corner_masks(probe, maps[strongest])
    scores = _mean_scores(probe.scores, probe, 1, masks, len(strongest))
    return probe.total(maps[strongest], _softmax(scores))


@_perturbation(
    "sscam",
    title="SS-CAM",
    reference="Wang et al. 2020 (SS-CAM), section 3; torch-cam 0.5.0 activation.py: noise on the masks",
    uses=("A", "total"),
    passes=f"one forward pass and {_SAMPLES} more for each channel",
)
def ss_cam(probe: Probe) -> Array:
    """Score-CAM with the mean of S(x (m_k + noise)) over the noise."""
    masks = _masks_of_channels(probe)

    def noisy(_: Numbers, channels: Numbers) -> Array:
        noise = _NOISE * probe.rng.standard_normal((len(channels), *probe.size))
        return masks(channels) + noise.astype(np.float32)

    return probe.total(probe.maps, _softmax(_mean_scores(probe.scores, probe, _SAMPLES, noisy)))


@_perturbation(
    "iscam",
    title="IS-CAM",
    reference="Naidu et al. 2020, section 3; torch-cam 0.5.0 activation.py: step i of n times the sum of 1/n to i/n",
    uses=("A", "total"),
    passes=f"one forward pass and {_STEPS} more for each channel",
)
def is_cam(probe: Probe) -> Array:
    """Score-CAM with the mean of S(x a m_k) over growing strengths a."""
    masks = _masks_of_channels(probe)
    strengths = np.cumsum(np.arange(1, _STEPS + 1) / _STEPS).astype(np.float32)

    def scaled(steps: Numbers, channels: Numbers) -> Array:
        return strengths[steps][:, None, None] * masks(channels)

    return probe.total(probe.maps, _softmax(_mean_scores(probe.scores, probe, _STEPS, scaled)))


def _mean_scores(
    score: Callable[[Array], Array],
    probe: Probe,
    rounds: int,
    masks: Callable[[Numbers, Numbers], Array],
    channels: int | None = None,
) -> Array:
    """The mean score of each channel, `[C]`; `masks` makes masks `[M, H, W]` from M rounds and M channels."""
    count = len(probe.maps) if channels is None else channels
    total = np.zeros(count, np.float64)
    for chunk in probe.steps(rounds * count):
        number, channel = np.divmod(np.array(chunk), count)
        np.add.at(total, channel, score(probe.x * masks(number, channel)[:, None]))
    mean: Array = total / rounds
    return mean


def _corner_masks(probe: Probe, maps: Array) -> Callable[[Numbers, Numbers], Array]:
    """A function from rounds and channels of `maps` to masks: resized, then scaled to [0, 1]."""
    return lambda _, channels: _laid(probe, _unit(_resized(maps[channels], _covered(probe), corner)))


def _masks_of_channels(probe: Probe) -> Callable[[Numbers], Array]:
    """A function from channels to masks: scaled to [0, 1] at the layer's size, then resized."""
    scaled = _unit(probe.maps)
    return lambda channels: _laid(probe, _resized(scaled[channels], _covered(probe), half_pixel))


def _unit(maps: Array) -> Array:
    """Scale each map to [0, 1]."""
    lifted = maps - maps.min((1, 2), keepdims=True)
    unit: Array = lifted / (lifted.max((1, 2), keepdims=True) + _TINY)
    return unit


def _resized(maps: Array, size: Sequence[int], matrix: Matrix) -> Array:
    """Maps `[M, *grid]` at another size, `[M, *size]`."""
    *front, last = (matrix(cells, pixels) for cells, pixels in zip(maps.shape[1:], size, strict=True))
    for axis, along in enumerate(front, 1):
        before, behind = maps.shape[:axis], maps.shape[axis + 1 :]
        maps = (along @ maps.reshape(*maps.shape[: axis + 1], -1)).reshape(*before, len(along), *behind)
    resized: Array = maps @ last.T
    return resized


def _covered(probe: Probe) -> tuple[int, int]:
    """Height and width of the part of the image that the maps cover."""
    top, left, bottom, right = probe.box
    return bottom - top, right - left


def _laid(probe: Probe, masks: Array) -> Array:
    """Masks over the part of the image that the maps cover as masks over the image, zero around that part."""
    top, left, bottom, right = probe.box
    height, width = probe.size
    if probe.box == (0, 0, height, width):
        return masks
    laid = np.zeros((len(masks), height, width), masks.dtype)
    rows, columns = slice(max(top, 0), min(bottom, height)), slice(max(left, 0), min(right, width))
    laid[:, rows, columns] = masks[:, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    return laid


def _softmax(values: Array) -> Array:
    grown = np.exp(values - values.max())
    softmax: Array = grown / grown.sum()
    return softmax


@_perturbation(
    "rise",
    title="RISE",
    reference="Petsiuk et al. 2018, eq. 4 and section 3.2, with the sum of the masks for N E[M]; minus its minimum",
    uses=("probability",),
    passes=f"{_MASKS} forward passes",
)
def rise(probe: Probe) -> Array:
    """sum_n p(x m_n) m_n / sum_n m_n over random masks m_n, with p the probability of the class."""
    return _where_seen(probe, probe.probabilities, _MASKS, _CELLS)


@_perturbation(
    "drise",
    title="D-RISE",
    reference="Petsiuk et al. 2021, section 3, with 5000 masks of 16 x 16 cells as in its experiments, the sum of the "
    "masks for N E[M], and a box's highest score for its objectness; minus its minimum",
    uses=("similarity",),
    passes=f"{_BOX_MASKS} forward passes",
)
def d_rise(probe: Probe) -> Array:
    """sum_n s(x m_n) m_n / sum_n m_n over random masks m_n, with s = max_j IoU(b, b_j) cos(p, p_j) o_j over boxes j.

    b and p are place and class probabilities of the explained box, and o_j is how sure a box is.
    """
    return _where_seen(probe, probe.similarities, _BOX_MASKS, _BOX_CELLS)


def _where_seen(probe: Probe, answer: Callable[[Array], Array], count: int, width: int) -> Array:
    """The mean answer where a position is seen, over `count` masks of `width` cells a side, minus its minimum."""
    cells = (probe.rng.random((count, *[width] * len(probe.size))) < _SEEN).astype(np.float32)
    sides = [-(-side // width) for side in probe.size]
    shifts = probe.rng.integers(0, sides, (count, len(sides)))
    seen, total = np.zeros((2, *probe.size), np.float64)
    for chunk in probe.steps(count):
        masks = _shifted(cells[list(chunk)], sides, shifts[list(chunk)], probe.size)
        total += np.tensordot(answer(probe.x * masks[:, None]), masks, 1)
        seen += masks.sum(0)
    mean = total / np.maximum(seen, _TINY)
    lifted: Array = mean - mean.min()
    return lifted


def _shifted(cells: Array, sides: list[int], shifts: Numbers, size: tuple[int, ...]) -> Array:
    """Masks of the image's size, each a random crop of cells resized to one cell more than needed."""
    across = cells.shape[1] + 1
    wide = _resized(cells, [across * side for side in sides], half_pixel)
    crops = [tuple(slice(at, at + side) for at, side in zip(shift, size, strict=True)) for shift in shifts]
    return np.stack([mask[crop] for mask, crop in zip(wide, crops, strict=True)])


@_perturbation(
    "occlusion",
    title="Occlusion sensitivity",
    reference="Zeiler and Fergus 2014, section 4.2; captum's Occlusion: windows of zeros, the raw score",
    uses=("score",),
    passes=f"about {(2 * _WINDOWS - 1) ** 2 + 1} forward passes",
)
def occlusion(probe: Probe) -> Array:
    """The mean of S(x) - S(x without window) over the windows that cover a pixel."""
    regions = list(product(*map(_windows, probe.size)))
    (score,) = probe.scores(probe.x[None])
    lost, hidden = np.zeros((2, *probe.size), np.float64)
    for chunk in probe.steps(len(regions)):
        images = np.repeat(probe.x[None], len(chunk), axis=0)
        for image, i in zip(images, chunk, strict=True):
            np.moveaxis(image, 0, -1)[regions[i]] = 0
        for less, i in zip(score - probe.scores(images), chunk, strict=True):
            lost[regions[i]] += less
            hidden[regions[i]] += 1
    mean: Array = lost / hidden
    return mean


def _windows(side: int) -> list[slice]:
    """The windows along one side; the last may reach beyond its end."""
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
    """S_i - min_i S_i, with S_i the score of A times a Gaussian mask around position i."""
    return _scores(t, A, head, _smooth)


@method(
    "reciprocam-openvino-xai",
    title="Recipro-CAM of OpenVINO XAI",
    reference="OpenVINO XAI 1.1.0 methods/white_box/recipro_cam.py: eq. 1 to 4 with one position per mask",
)
def recipro_cam_of_openvino_xai(t: Builder, A: Value, head: Callable[[Value, int], Value]) -> Value:
    """S_i - min_i S_i, with S_i the score of A where all but position i is zero."""
    return _scores(t, A, head, _single)


def _scores(
    t: Builder, A: Value, head: Callable[[Value, int], Value], masks_of: Callable[[int, int], npt.NDArray[np.float64]]
) -> Value:
    sizes = [d for d in A.shape[2:] if isinstance(d, int)]
    if len(sizes) != 2:
        raise UnsupportedError("Recipro-CAM needs a layer of fixed size; export the model with fixed height and width")
    rows, columns = sizes
    count = rows * columns
    masks = t.const(masks_of(rows, columns).reshape(1, count, 1, rows, columns).astype(np.float32))
    masked = t.op("Mul", t.op("Unsqueeze", A, t.ints(1)), masks)
    scores = head(t.op("Reshape", masked, t.ints(-1, *A.dims_behind_batch())), count)
    lifted = scores - t.reduce("ReduceMin", scores, [1])
    return t.op("Reshape", lifted, t.ints(-1, rows, columns), shape=(A.shape[0], rows, columns))


def _single(rows: int, columns: int) -> npt.NDArray[np.float64]:
    """One mask per position, `[rows * columns, rows, columns]`."""
    return np.eye(rows * columns).reshape(-1, rows, columns)


def _smooth(rows: int, columns: int) -> npt.NDArray[np.float64]:
    """As `_single`, with Gaussian weights for the positions around it."""
    masks = np.zeros((rows, columns, rows + 2, columns + 2))
    for row in range(rows):
        for column in range(columns):
            masks[row, column, row : row + 3, column : column + 3] = _GAUSS
    return masks[:, :, 1:-1, 1:-1].reshape(-1, rows, columns)
