"""Serve the plain model with the same server, so that the difference is the cost of explaining.

`serving.py` runs it with the arguments of `onnx-gradcam serve`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from onnx_gradcam.cli import main
from onnx_gradcam.images.decoding import prepare
from onnx_gradcam.metadata import Metadata, peek
from onnx_gradcam.runtime.session import Session
from onnx_gradcam.serve import service
from onnx_gradcam.serve.answering import IMAGES, Answerer
from onnx_gradcam.serve.limits import decode_image
from onnx_gradcam.serve.query import Query, Result, files, numbers


class PlainAnswerer(Answerer):
    """Answers with the scores of `plain.onnx` in the explained model's folder."""

    def __init__(self, *arguments: Any) -> None:
        """Also create the session of the plain model."""
        super().__init__(*arguments)
        explained = Path(sys.argv[2])
        self._metadata = Metadata.from_props(peek(explained))
        self._plain = Session(explained.with_name("plain.onnx"), threads=2)

    def answer(self, query: Query) -> tuple[list[Result], str, int]:
        """Run the plain model."""
        (tensor,) = query.tensors
        described = self.explainer.preprocessing
        if tensor.name == IMAGES:
            pixels = [decode_image(one, self.limits, free_size=False) for one in files(tensor)]
            batch: Any = np.stack([prepare(one, described)[0] for one in pixels])
        else:
            info = self._plain.inputs[0]
            batch = numbers(tensor, info.dtype, info.shape)
        scores = self._plain.run({self._metadata.image_input: batch})[self._metadata.scores_output]
        return [Result.of("scores", scores)], "tensor", 0


if __name__ == "__main__":
    service.Answerer = PlainAnswerer  # the only difference
    sys.argv[1:1] = ["serve"]
    main()
