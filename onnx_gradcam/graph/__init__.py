"""ONNX graphs: load and normalise, append typed nodes, find paths, save."""
