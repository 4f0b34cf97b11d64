"""The studio: a local page to look at a model; see `onnx_gradcam.studio.application`."""
