"""Reverse-mode differentiation of ONNX graphs: a gradient becomes nodes of the same graph."""
