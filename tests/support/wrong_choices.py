"""Choices that every way into the package refuses, with a part of the sentence that says so."""

from __future__ import annotations

from typing import Any

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "combine": ({"combine": "median"}, "combine is 'median'"),
    "channels": ({"method": "input-x-gradient", "channels": "mean"}, "channels is 'mean'"),
    "score softmax": ({"score": "softmax"}, "score is 'softmax'"),
    "score probability": ({"score": "probability"}, "score is 'probability'"),
    "weights closed": ({"weights": "closed"}, "weights is 'closed'"),
    "weights lin": ({"weights": "lin"}, "did you mean 'linear'"),
    "weights with a space": ({"weights": "auto "}, "did you mean 'auto'"),
    "grad_dtype": ({"grad_dtype": "float16"}, "did you mean 'float32'"),
    "class_input": ({"class_input": "fixed"}, "class_input is 'fixed'"),
    "task": ({"task": "segment"}, "did you mean 'segmentation'"),
    "modifier": ({"modifier": "guide"}, "did you mean 'guided'"),
    "unknown option": ({"lay": "x"}, "did you mean 'layer'"),
    "method": ({"method": "gradcan"}, "did you mean 'gradcam'"),
    "preset": ({"preset": "pytorch-grad-camm"}, "did you mean 'pytorch-grad-cam'"),
    "profile": ({"profile": "cudda"}, "did you mean 'cuda'"),
}
CLASSES = {5: "background", 3: "", 12: ""}
"""Numbers of class names for four classes, and a word of the remedy."""
