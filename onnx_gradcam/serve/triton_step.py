"""The step of a Triton ensemble that turns image files into the model's input.

It runs in Triton's Python backend and needs NumPy, OpenCV and this package, but not ONNX Runtime. Repositories import
it, so it is a module of its own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from onnx_gradcam.errors import ExplainError, ServerError
from onnx_gradcam.images.decoding import prepare
from onnx_gradcam.images.preprocessing import Preprocessing

from .limits import Limits, decode_image

__all__ = ["CHOICES", "ImageStep"]

CHOICES: Final = ("target_class", "target_box")
"""What chooses the explanation of an image: the names of the inputs that may be left out."""


class ImageStep:
    """Turns `image_bytes` [N, 1] and the optional `CHOICES` [N, 1] into the inputs of the model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read preprocessing and limits from the configuration of the step."""
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        self.preprocessing = Preprocessing.from_json(parameters["preprocessing"])
        self.limits = Limits.from_settings(json.loads(parameters["limits"]))
        self.batching = config["max_batch_size"] > 0
        self.image, *chosen = (output["name"] for output in config["output"])
        # The optional inputs are in the order of the outputs that they become.
        self.chosen = dict(zip(CHOICES, chosen, strict=False))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request, or refuse it in one sentence."""
        import triton_python_backend_utils as triton  # noqa: PLC0415 - exists only inside Triton

        return [self._answer(triton, request) for request in requests]

    def _answer(self, triton: Any, request: Any) -> Any:
        try:
            tensors = self._tensors(triton, request)
        except ExplainError as error:
            return triton.InferenceResponse(error=triton.TritonError(str(error), triton.TritonError.INVALID_ARG))
        return triton.InferenceResponse([triton.Tensor(name, values) for name, values in tensors.items()])

    def _tensors(self, triton: Any, request: Any) -> dict[str, Any]:
        files = triton.get_input_tensor_by_name(request, "image_bytes").as_numpy().reshape(-1)
        free = self.preprocessing.size is None
        rows = [prepare(decode_image(bytes(f), self.limits, free_size=free), self.preprocessing)[0] for f in files]
        if len({row.shape for row in rows}) > 1:
            raise ServerError("the inputs of these images have different sizes; send one image per request")
        tensors: dict[str, Any] = {self.image: np.stack(rows)}
        shape = (len(rows), 1) if self.batching else (len(rows),)
        for sent, name in self.chosen.items():
            tensor = triton.get_input_tensor_by_name(request, sent)
            indices = np.full(shape, -1, np.int64) if tensor is None else tensor.as_numpy()
            tensors[name] = np.ascontiguousarray(np.broadcast_to(indices.reshape(-1, *shape[1:]), shape))
        return tensors
