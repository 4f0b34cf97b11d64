"""PyTorch networks to ONNX: any network that PyTorch's exporters take, tensors named after their modules."""

from .exporter import export_pytorch

__all__ = ["export_pytorch"]
