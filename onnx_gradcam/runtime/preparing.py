"""From what a user gives, images, arrays and values of other inputs, to what the inputs of a model take."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_gradcam.errors import InputError
from onnx_gradcam.feeds import (
    Fed,
    Feeds,
    Input,
    View,
    described,
    is_array_file,
    is_signal_file,
    picture_layout,
    read_array,
    read_input,
)
from onnx_gradcam.images.decoding import ImageSource, Placement, as_array, prepare, read_image, unprepared
from onnx_gradcam.images.preprocessing import PRESETS, Preprocessing, parse_preprocessing
from onnx_gradcam.images.views import view_of
from onnx_gradcam.metadata import Metadata
from onnx_gradcam.options import Description

from .pending import Prepared
from .runners import image_input, other_inputs
from .session import Session

__all__ = ["Preparation"]

Array = npt.NDArray[Any]


class Preparation:
    """Makes the inputs of an explained model.

    Args:
        metadata: what the model says about itself.
        session: the model.
        how: the preprocessing; a model of arrays needs none.
        feeds: values of its other inputs, by name, for all images.

    Attributes:
        image: the image input, with the shape of a batch.
        preprocessing: how images become the model's input.
        feeds: what the other inputs take.

    Raises:
        InputError: the model takes images and no preprocessing is known, or it does not fit; a value of another input
            cannot be used.
    """

    def __init__(
        self,
        metadata: Metadata,
        session: Session,
        how: str | Path | Mapping[str, Any] | Description | None,
        feeds: Mapping[str, Any] | None,
    ) -> None:
        self.image, self._metadata = image_input(metadata, session), metadata
        self._described = _parsed(PRESETS["none"] if how is None and self.of_arrays else how)
        self.preprocessing = self._described
        if not self.of_arrays or how is not None:
            self.preprocessing = self._described.for_input(metadata.batch_layout, self.image.shape, self.image.dtype)
        chosen = {metadata.class_input, metadata.box_input}
        self.feeds = Feeds(
            self.image,
            other_inputs(metadata, session),
            session.outputs,
            feeds,
            batched=metadata.batched,
            optional=[info for info in session.optional_inputs if info.name not in chosen],
            picture=self._picture,
        )

    @property
    def of_arrays(self) -> bool:
        """Whether the model takes arrays and no pictures, by its axes or its number of channels."""
        channels = dict(zip(self._metadata.batch_layout, self.image.shape, strict=True)).get("C")
        return not self._metadata.of_images or (isinstance(channels, int) and channels not in {1, 3})

    def prepared(self, source: ImageSource) -> Prepared:
        """Read an image, or an array, and make the model's input from it; safe to call from threads.

        Raises:
            InputError: it cannot be read, or is no input of this model.
        """
        if self.of_arrays:
            return self._prepared_array(source)
        if is_signal_file(source):
            raise InputError(
                f"{str(source)!r} is a signal, and the input {described(self.image)} takes images; give an image, or "
                "the model's input as a .npy file"
            )
        array = read_array(source) if is_array_file(source) else as_array(source)
        if array is not None and array.dtype.kind == "f":
            return self._prepared_by_others(array)
        image = read_image(source if array is None else array)
        return Prepared(image, *prepare(image, self.preprocessing))

    def fed(self, prepared: Prepared) -> Fed:
        """What the model's other inputs take for a prepared image.

        Raises:
            InputError: an input has no value.
        """
        return self.feeds.fed([self.values(prepared)])

    def values(self, prepared: Prepared, feeds: Feeds | None = None, which: int | None = None) -> dict[str, Array]:
        """What the model's other inputs take for an image, by other `feeds` for the image of the index `which`."""
        if feeds is None and prepared.feeds is not None:
            return dict(prepared.feeds)
        return (feeds or self.feeds).of_image(*self.view(prepared.tensor, prepared.placement), which)

    def view(self, tensor: Array, placement: Placement | None) -> tuple[View | None, tuple[int, ...]]:
        """How a photo became an input `tensor`, and the sizes of a batch of it; without placement it is the photo."""
        if self.of_arrays:
            return None, (1, *tensor.shape)
        sides = dict(zip(self._metadata.batch_layout[1:], tensor.shape, strict=True))
        size = sides["H"], sides["W"]
        if placement is None:
            return View(size, size, (1, 1)), (1, *tensor.shape)
        x0, y0, x1, y1 = placement.box
        scale = size[0] / (y1 - y0), size[1] / (x1 - x0)
        return View((placement.height, placement.width), size, scale), (1, *tensor.shape)

    def _prepared_array(self, source: ImageSource) -> Prepared:
        """An array as the model's input, and a drawing of it."""
        layout = self._metadata.batch_layout
        tensor = read_input(source, self.image, layout)
        view = view_of(tensor, layout.replace("N", ""))
        height, width = view.image.shape[:2]
        return Prepared(view.image, tensor, Placement((0.0, 0.0, float(width), float(height)), height, width), view)

    def _prepared_by_others(self, array: Array) -> Prepared:
        """A model's input that was made elsewhere; the image is what it looks like."""
        expected = [d if isinstance(d, int) else None for d in self.image.shape[-3:]]
        tensor = array[0] if array.ndim == 4 and len(array) == 1 else array
        sizes = zip(tensor.shape, expected, strict=False)
        if tensor.ndim != 3 or any(known not in {None, size} for size, known in sizes) or tensor.size == 0:
            shown = ", ".join("any" if d is None else str(d) for d in expected)
            raise InputError(
                f"the image is an array of {array.dtype} of shape {list(array.shape)}, and floating-point arrays are "
                f"inputs of the model, [{shown}] here; give an image as uint8 [height, width, 3]"
            )
        if not np.isfinite(tensor).all():
            raise InputError("the input of the model has numbers that are not finite; check how it was made")
        image = unprepared(tensor, self.preprocessing)
        height, width = image.shape[:2]
        whole = Placement((0.0, 0.0, float(width), float(height)), height, width)
        return Prepared(image, tensor.astype(self.image.dtype), whole)

    def _picture(self, source: ImageSource, info: Input) -> Array:
        """A picture as the value of another input, prepared as images are."""
        layout = picture_layout(info.shape)
        if not layout:
            raise InputError(f"the input {described(info)} takes no picture; give its values as a .npy file")
        try:
            how = self._described.for_input(layout, info.shape, info.dtype)
        except InputError as exc:
            raise InputError(f"a picture cannot be prepared for {described(info)}: {exc}") from exc
        return prepare(read_image(source), how)[0][None]


def _parsed(how: str | Path | Mapping[str, Any] | Description | None) -> Preprocessing:
    if how is None:
        raise InputError(
            "the model carries no preprocessing; give it with --preprocess: one of "
            f"{', '.join(PRESETS)}, or a JSON object with size, color, scale, mean and std"
        )
    return parse_preprocessing(how)
