"""Keras's layer classes, one function a layer; importing this package fills `layer_table`.

Short because it only imports the modules: a layer in a new module would be unknown otherwise.
"""

from . import activations, attention, convolutions, normalizations, operations, rearranging, structure

__all__ = ["activations", "attention", "convolutions", "normalizations", "operations", "rearranging", "structure"]
