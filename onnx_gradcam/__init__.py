"""Grad-CAM for any ONNX model."""
