"""PyTorch to ONNX: any network that PyTorch's exporters take, every module's surviving tensor under its path."""

from .exporter import export_pytorch

__all__ = ["export_pytorch"]
