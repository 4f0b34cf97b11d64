"""From the frameworks' own files to ONNX, every layer's tensor under the name that the framework gave the layer."""
