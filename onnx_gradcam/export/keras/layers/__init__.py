"""The layer classes, one file a family; importing this fills the registry."""

from . import activation, convolution, core, merging, normalization, operations, pooling, preprocessing, reshaping

__all__ = [
    "activation",
    "convolution",
    "core",
    "merging",
    "normalization",
    "operations",
    "pooling",
    "preprocessing",
    "reshaping",
]
