"""Export models of Keras, MXNet, PyTorch and TFLite to ONNX; every layer's tensor keeps the framework's layer name."""
