"""ONNX graphs: load and normalise a model, append typed nodes, find paths, save."""
