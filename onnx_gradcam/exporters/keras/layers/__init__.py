"""The layer classes, one file a family; importing this fills the registry."""

from . import activations as activation
from . import convolutions as convolution
from . import convolutions as pooling
from . import normalizations as normalization
from . import normalizations as preprocessing
from . import operations
from . import structure as core
from . import structure as merging
from . import structure as reshaping

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
