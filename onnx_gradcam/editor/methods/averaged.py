"""Methods that average gradients of the score at many images: noisy copies, or a path that ends at the image."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from .catalogue import method
from .probe import Array, Probe

_SAMPLES = 50
"""Noisy copies for SmoothGrad and its relatives, as its section 3.2 advises."""

_NOISE = 0.15
"""Standard deviation of the noise relative to the range of the image's values; SmoothGrad, section 3.2."""

_FEW_SAMPLES, _FIXED_NOISE = 4, 0.3
"""Smooth Grad-CAM++ of torch-cam; its noise does not depend on the image."""

_STEPS = 50
"""Steps of the integral; section 5 of the paper finds 20 to 300 enough."""

_BLUR, _BLURS, _BLUR_STEP = 50.0, 100, 0.01
"""Widest blur in pixels, steps to it and the step of its derivative, as the authors' library by default."""

_sampling = partial(method, family="sampling", outside="runs the model many times")
_over_noise = partial(_sampling, uses=("gx",), passes=f"{_SAMPLES} forward and backward passes")


@_over_noise("smoothgrad", title="SmoothGrad", reference="Smilkov et al. 2017, eq. 1, signed; captum's NoiseTunnel")
def smooth_grad(probe: Probe) -> Array:
    """E[dS/dx] at x + noise."""
    return _moments(probe)[0].astype(np.float32)


@_over_noise(
    "smoothgrad-squared",
    title="SmoothGrad squared",
    reference="Hooker et al. 2019, section 4.2; captum's NoiseTunnel, smoothgrad_sq",
    absolute=True,
)
def smooth_grad_squared(probe: Probe) -> Array:
    """E[(dS/dx)^2] at x + noise."""
    return _moments(probe)[1].astype(np.float32)


@_over_noise(
    "vargrad",
    title="VarGrad",
    reference="Adebayo et al. 2018, section 3.2; captum's NoiseTunnel, vargrad",
    absolute=True,
)
def var_grad(probe: Probe) -> Array:
    """Var[dS/dx] at x + noise."""
    mean, square = _moments(probe)
    return np.maximum(square - mean**2, 0).astype(np.float32)


@_sampling(
    "integrated-gradients",
    title="Integrated gradients",
    reference="Sundararajan et al. 2017, eq. 1, from the input zero; Gauss-Legendre quadrature, as captum",
    uses=("gx",),
    passes=f"{_STEPS} forward and backward passes",
)
def integrated_gradients(probe: Probe) -> Array:
    """The product of x and the integral of dS/dx at a x over a from 0 to 1."""
    nodes, weights = np.polynomial.legendre.leggauss(_STEPS)
    total = np.zeros_like(probe.x, np.float64)
    for chunk in probe.steps(_STEPS):
        part = ((1 + nodes[list(chunk)]) / 2).astype(np.float32)
        total += np.tensordot(weights[list(chunk)] / 2, probe.gradients(np.multiply.outer(part, probe.x)), 1)
    return (probe.x * total).astype(np.float32)


@_sampling(
    "blur-ig",
    title="Blur integrated gradients",
    reference="Xu et al. 2020, eq. 6; saliency 0.2.1 blur_ig.py, whose defaults it takes",
    uses=("gx",),
    passes=f"{_BLURS} forward and backward passes",
)
def blur_integrated_gradients(probe: Probe) -> Array:
    """The integral of -dS/dB dB/ds over the width s of a Gaussian blur B(x, s), from 0 to 50 pixels.

    The finer the steps, the closer the values of the map add up to S(x) - S(B(x, 50)).
    """
    widths = np.linspace(0, _BLUR, _BLURS, endpoint=False)
    total = np.zeros_like(probe.x, np.float64)
    for chunk in probe.steps(_BLURS):
        blurred = np.stack([_blurred(probe.x, widths[i]) for i in chunk])
        change = np.stack([_blurred(probe.x, widths[i] + _BLUR_STEP) for i in chunk]) - blurred
        total -= np.einsum("n...,n...->...", change, probe.gradients(blurred.astype(np.float32)))
    return (total * (_BLUR / _BLURS / _BLUR_STEP)).astype(np.float32)


def _blurred(image: Array, width: float) -> Array:
    """An image `[C, H, W]` with a Gaussian blur, four widths wide; beyond the border it is zero."""
    rows, columns = (_gaussian(size, width) for size in image.shape[1:])
    blurred: Array = rows @ image.astype(np.float64) @ columns.T
    return blurred


def _gaussian(size: int, width: float) -> Array:
    """The blur along one axis, as a matrix `[size, size]`."""
    if width == 0:
        return np.eye(size)
    radius = int(4 * width + 0.5)
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / width) ** 2)
    distance = np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
    within = distance <= radius
    return np.where(within, taps[radius + np.where(within, distance, 0)] / taps.sum(), 0.0)


def _moments(probe: Probe) -> tuple[Array, Array]:
    """The mean of the gradients at noisy copies of the image, and of their squares, `[C, H, W]` each."""
    mean, square = np.zeros((2, *probe.x.shape), np.float64)
    for images in _noisy(probe, _SAMPLES, _relative_noise(probe)):
        gradients = probe.gradients(images).astype(np.float64)
        mean += gradients.sum(0)
        square += (gradients**2).sum(0)
    return mean / _SAMPLES, square / _SAMPLES


def _relative_noise(probe: Probe) -> float:
    return _NOISE * float(np.ptp(probe.x))


def _noisy(probe: Probe, count: int, deviation: float) -> Iterator[Array]:
    """Noisy copies of the image, in chunks `[M, C, H, W]`."""
    for chunk in probe.steps(count):
        noise = deviation * probe.rng.standard_normal((len(chunk), *probe.x.shape))
        yield (probe.x + noise).astype(np.float32)


@_sampling(
    "smooth-gradcam++",
    title="Smooth Grad-CAM++",
    reference="Omeiza et al. 2019, eq. 3 and 4; D1 for the first of its D2, G for exp(S) G; noise as SmoothGrad",
    uses=("A", "G", "total"),
    passes=f"{_SAMPLES} forward passes and gradients of the head",
)
def smooth_grad_cam_plus_plus(probe: Probe) -> Array:
    """Grad-CAM++ with E[G], E[G^2] and E[G^3] over noisy copies of the image for G, G^2 and G^3."""
    powers = np.zeros((3, *probe.maps.shape), np.float64)
    for images in _noisy(probe, _SAMPLES, _relative_noise(probe)):
        powers += _powers(probe.maps_and_cotangents(images)[1])
    first, second, third = powers / _SAMPLES
    return _plus_plus(probe, probe.maps, probe.maps, first, second, third)


@_sampling(
    "smooth-gradcam++-torch-cam",
    title="Smooth Grad-CAM++ of torch-cam",
    reference="torch-cam 0.5.0 gradient.py: maps and gradient of the last noisy copy instead of the image's maps and "
    "the mean gradient",
    uses=("A", "G", "total"),
    passes=f"{_FEW_SAMPLES} forward passes and gradients of the head",
)
def smooth_grad_cam_plus_plus_torch_cam(probe: Probe) -> Array:
    """Smooth Grad-CAM++ with A and G of the last noisy copy of the image."""
    powers = np.zeros((3, *probe.maps.shape), np.float64)
    maps = last = probe.maps
    for images in _noisy(probe, _FEW_SAMPLES, _FIXED_NOISE):
        several, cotangents = probe.maps_and_cotangents(images)
        powers += _powers(cotangents)
        maps, last = several[-1], cotangents[-1]
    _, second, third = powers / _FEW_SAMPLES
    return _plus_plus(probe, maps, probe.maps, last, second, third)


def _powers(cotangents: Array) -> Array:
    """The sums of gradients `[M, C, h, w]`, of their squares and of their cubes, `[3, C, h, w]`."""
    wide = cotangents.astype(np.float64)
    return np.stack([wide.sum(0), (wide**2).sum(0), (wide**3).sum(0)])


def _plus_plus(probe: Probe, maps: Array, own: Array, first: Array, second: Array, third: Array) -> Array:
    """Grad-CAM++: `maps` weighted by powers of their gradients; `own` are the activation maps of the image."""
    alpha = second / (2 * second + (third * own).sum((1, 2), keepdims=True) + 1e-8)
    return probe.total(maps, (alpha * np.maximum(first, 0)).sum((1, 2)))
