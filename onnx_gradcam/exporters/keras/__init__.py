"""Keras files to ONNX without Keras or TensorFlow."""

from .reader import read_keras

__all__ = ["read_keras"]
