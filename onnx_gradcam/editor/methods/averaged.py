"""Methods that average over noisy copies of the image; and the average of any method over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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

sampling = partial(method, family="sampling", outside="runs the model many times")
"""Registers a method that takes gradients at many images."""

_over_noise = partial(sampling, uses=("gx",), passes=f"{_SAMPLES} forward and backward passes")


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


def smoothed(function: Callable[[Probe], Array], probe: Probe) -> Array:
    """A method's result for the image, or its mean over as many noisy copies as the setting `smooth` says."""
    count = probe.settings.get("smooth", 0)
    if not count:
        return function(probe)
    image, deviation, total = probe.x, _relative_noise(probe), np.zeros((), np.float64)
    for _ in range(count):
        noise = deviation * probe.rng.standard_normal(image.shape)
        total = total + function(probe.at((image + noise).astype(np.float32)))
    mean: Array = total / count
    return mean


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


@sampling(
    "smooth-gradcam++",
    title="Smooth Grad-CAM++",
    reference="Omeiza et al. 2019, eq. 3 and 4; D1 for the first of its D2, G for exp(S) G; noise as SmoothGrad",
    uses=("A", "G", "total"),
    passes=f"{_SAMPLES + 1} forward passes and {_SAMPLES} gradients of the head",
)
def smooth_grad_cam_plus_plus(probe: Probe) -> Array:
    """Grad-CAM++ with E[G], E[G^2] and E[G^3] over noisy copies of the image for G, G^2 and G^3."""
    powers = np.zeros((3, *probe.maps.shape), np.float64)
    for images in _noisy(probe, _SAMPLES, _relative_noise(probe)):
        powers += _powers(probe.maps_and_cotangents(images)[1])
    first, second, third = powers / _SAMPLES
    return _plus_plus(probe, probe.maps, probe.maps, first, second, third)


@sampling(
    "smooth-gradcam++-torch-cam",
    title="Smooth Grad-CAM++ of torch-cam",
    reference="torch-cam 0.5.0 gradient.py: maps and gradient of the last noisy copy instead of the image's maps and "
    "the mean gradient",
    uses=("A", "G", "total"),
    passes=f"{_FEW_SAMPLES + 1} forward passes and {_FEW_SAMPLES} gradients of the head",
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
