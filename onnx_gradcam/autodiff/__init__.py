"""Reverse-mode differentiation from ONNX to ONNX."""
