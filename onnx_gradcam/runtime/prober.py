"""Explains with methods that run the model many times, such as Score-CAM, RISE or occlusion."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_gradcam.editor.methods.averaged import smoothed
from onnx_gradcam.editor.methods.baselines import baseline
from onnx_gradcam.editor.methods.catalogue import find_method
from onnx_gradcam.editor.methods.probe import Probe, chunks, leading_projection
from onnx_gradcam.editor.presets import find_preset
from onnx_gradcam.editor.probes import COTANGENT, GRADIENT, HEATMAP, MAPS, PROBABILITY, SCORE, Probed, finisher
from onnx_gradcam.errors import InputError, ModelError, UnsupportedError
from onnx_gradcam.feeds import NOTHING, Fed, read_input
from onnx_gradcam.graph.model import Model
from onnx_gradcam.images.decoding import prepare, read_image
from onnx_gradcam.images.preprocessing import parse_preprocessing
from onnx_gradcam.metadata import Metadata

from .detections import overlaps
from .runners import Choice, chosen_inputs, fixed_size, image_feed, image_input, in_batches, in_type, paired
from .session import InputInfo, Session

__all__ = ["Prober", "as_channels_first", "as_input"]

Array = npt.NDArray[Any]


_TINY = 1e-12


class Prober:
    """Explains one row after another with a method that runs the model many times.

    Every row starts from the random `seed`, so that no row depends on another. `channels` says how the channels of an
    attribution become one map, `max` or `sum`, by default as preset and method say.
    """

    def __init__(
        self,
        models: Probed,
        *,
        batch_size: int = 16,
        seed: int = 0,
        channels: str | None = None,
        progress: Callable[[int, int], None] | None = None,
        provider: str = "cpu",
        threads: int | None = None,
    ) -> None:
        self.metadata = models.metadata
        self.method = method = find_method(models.metadata.method)
        self.batch_size, self.seed, self.progress = batch_size, seed, progress
        self._channels = channels or find_preset(models.metadata.preset).channels or method.channels

        def session(model: Model) -> Session:
            return Session(
                model.to_proto().SerializeToString(),
                provider=provider,
                folder=model.folder,
                disabled_optimizers=models.metadata.disabled_optimizers,
                threads=threads,
            )

        self.session = session(models.model)
        self.head = None if models.head is None else session(models.head)
        self.results = _results(self.metadata, self.session)
        self.settings = method.settings(models.options)
        self._size = fixed_size(image_input(self.metadata, self.session))
        self._finishers: dict[tuple[int, ...], Session] = {}

    def run(
        self,
        batch: Array,
        classes: Sequence[int],
        boxes: Sequence[int] | None = None,
        *,
        tables: bool = False,
        maps: bool = True,
        fed: Fed = NOTHING,
    ) -> dict[str, Array]:
        """See `onnx_gradcam.runtime.runners.Runner`."""
        chosen, metadata = paired(classes, boxes), self.metadata
        detections = [metadata.heatmap_box, metadata.heatmap_score]
        detections += [metadata.detection_scores, metadata.detection_boxes] if tables else []
        names = [metadata.scores_output, metadata.heatmap_class, *filter(None, detections)]
        if not maps:
            return self.answers(batch, chosen, names, fed)
        each = [fed.at(i) for i in range(len(chosen))]
        rows = [self._row(batch[i : i + 1], choice, names, each[i]) for i, choice in enumerate(chosen)]
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

    def _row(self, row: Array, choice: Choice, names: Sequence[str], fed: Fed) -> dict[str, Array]:
        metadata = self.metadata
        outputs = self.answers(row, [choice], names, fed)
        probe = self.probe(row, int(outputs[metadata.heatmap_class][0]), choice[1], fed)
        result = np.asarray(smoothed(self.method.function, probe), np.float32)
        if not np.isfinite(result).all():
            raise ModelError(f"{self.method.title} gives NaN or infinity for this image; choose another method")
        if metadata.attribution:
            outputs[metadata.attribution] = as_input(result[None], metadata.batch_layout)
            result = result.max(0) if self._channels == "max" else result.sum(0)
        outputs[metadata.cam] = result[None]
        outputs[metadata.heatmap] = self._finished(result[None], probe.size)
        return outputs

    def probe(self, row: Array, index: int, box: int | None = None, fed: Fed = NOTHING) -> Probe:
        """One row of the model's input, `[1, ...]`, and the class of an index, for a method to query."""
        return _ImageProbe(self, row, (index, box), fed)

    def answers(
        self, rows: Array, chosen: Sequence[Choice], outputs: Sequence[str], fed: Fed = NOTHING
    ) -> dict[str, Array]:
        """Some outputs of the model for rows of its input."""
        metadata = self.metadata

        def run(some: Array, some_chosen: Sequence[Choice], others: dict[str, Array]) -> dict[str, Array]:
            chosen_of = chosen_inputs(metadata, some_chosen, self.session)
            return self.session.run({**image_feed(metadata, some), **chosen_of, **others}, outputs)

        return in_batches(run, rows, chosen, self._size, fed, apart=metadata.couples_rows)

    def behind(self, maps: Array, choice: Choice) -> Array:
        """The score `[M]` for activation maps `[M, C, h, w]` in place of the image's, if the method uses the head."""
        head = self.head
        if head is None:
            raise UnsupportedError(f"{self.method.title} does not declare that it uses the head")

        def run(some: Array, chosen: Sequence[Choice], _others: dict[str, Array]) -> dict[str, Array]:
            return head.run({MAPS: some, **chosen_inputs(self.metadata, chosen, head)})

        rows, apart = maps.astype(np.float32), self.metadata.couples_rows
        scores: Array = in_batches(run, rows, [choice] * len(maps), self._size, apart=apart)[SCORE]
        return scores

    def _finished(self, cam: Array, size: tuple[int, ...]) -> Array:
        key = (*cam.shape[1:], *size)
        if key not in self._finishers:
            self._finishers[key] = Session(finisher(self.metadata.preset, cam.shape[1:], size, self.metadata.extent))
        heatmap: Array = self._finishers[key].run({"cam": cam})[HEATMAP]
        return heatmap


class _ImageProbe:
    """One row and one class of a `Prober`; see `onnx_gradcam.editor.methods.probe.Probe`."""

    def __init__(self, prober: Prober, row: Array, choice: Choice, fed: Fed) -> None:
        self._prober, self._choice, self._fed = prober, choice, fed
        self._layout, self._dtype = prober.metadata.batch_layout, row.dtype
        self._letters = f"C{prober.metadata.positions}"
        self.x: Array = as_channels_first(row, prober.metadata)[0]
        # Methods that mask parts of an image are refused for other inputs.
        self.size: tuple[int, ...] = self.x.shape[1:]
        self.box: tuple[int, ...] = prober.metadata.box_in(*self.size) if len(self.size) == 2 else ()
        self.rng = np.random.default_rng(prober.seed)
        self.batch_size = prober.batch_size
        self.settings: Mapping[str, Any] = prober.settings

    @cached_property
    def maps(self) -> Array:
        maps: Array = self._output(self.x[None], MAPS)[0]
        return maps

    def scores(self, images: Array) -> Array:
        return self._output(images, SCORE)

    def probabilities(self, images: Array) -> Array:
        return self._output(images, PROBABILITY)

    def at(self, image: Array) -> Probe:
        other = copy(self)
        for made in ("baselines", "maps"):
            other.__dict__.pop(made, None)
        other.x = image
        return other

    @cached_property
    def baselines(self) -> Sequence[Array]:
        return [baseline(word, self.x, self._prepared) for word in self.settings["baseline"]]

    def gradients(self, images: Array) -> Array:
        return self._output(images, GRADIENT)

    def gradients_and_scores(self, images: Array) -> tuple[Array, Array]:
        results = self._run(images, [GRADIENT, SCORE])
        return results[GRADIENT], results[SCORE]

    def similarities(self, images: Array) -> Array:
        place, classes = self._target_box
        names = self._prober.metadata
        results = self._run(images, [names.detection_boxes, names.detection_scores])
        places, scores = results[names.detection_boxes], results[names.detection_scores]
        norms = np.linalg.norm(scores, axis=-1) * np.linalg.norm(classes)
        same_class = scores @ classes / np.maximum(norms, _TINY)
        overlap = np.stack([overlaps(place, some) for some in places])
        similarity: Array = (overlap * same_class * scores.max(-1)).max(-1)
        return similarity

    def box_scores(self, images: Array) -> Array:
        return self._output(images, self._prober.metadata.heatmap_score)

    @cached_property
    def _target_box(self) -> tuple[Array, Array]:
        """The corners `[4]` and the class scores `[K]` of the explained box."""
        names = self._prober.metadata
        results = self._run(self.x[None], [names.detection_boxes, names.detection_scores, names.heatmap_box])
        index = int(results[names.heatmap_box][0])
        return results[names.detection_boxes][0, index], results[names.detection_scores][0, index]

    def maps_and_cotangents(self, images: Array) -> tuple[Array, Array]:
        results = self._run(images, [MAPS, COTANGENT])
        return results[MAPS], results[COTANGENT]

    def head(self, maps: Array) -> Array:
        return self._prober.behind(maps, self._choice)

    def total(self, maps: Array, weights: Array) -> Array:
        if self._prober.metadata.eigen_smooth:
            return leading_projection(maps * weights[:, None, None])
        total: Array = np.tensordot(weights, maps, 1)
        return total

    def steps(self, total: int) -> Iterator[range]:
        done = 0
        for chunk in chunks(range(total), self.batch_size):
            yield range(chunk[0], chunk[-1] + 1)
            done += len(chunk)
            if self._prober.progress is not None:
                self._prober.progress(done, total)

    def _prepared(self, source: Path | int) -> Array:
        """A file, or an image of one level from 0 to 255, as the model takes it, `float32 [C, *spatial]`."""
        metadata = self._prober.metadata
        info = image_input(metadata, self._prober.session)
        if isinstance(source, Path) and source.suffix == ".npy":
            tensor = read_input(source, info, metadata.batch_layout)
        else:
            if metadata.preprocessing is None:
                what = "a file" if isinstance(source, Path) else {0: "a black image", 255: "a white image"}[source]
                raise InputError(
                    f"the model carries no preprocessing, so it is not known what {what} is to it; give it with "
                    "--preprocess, or take the baseline darkest, lightest or mean, or a .npy file"
                )
            sizes = dict(zip(self._letters, self.x.shape, strict=True))
            shape = [sizes.get(letter, 1) for letter in metadata.batch_layout]
            how = parse_preprocessing(metadata.preprocessing).for_input(metadata.batch_layout, shape, info.dtype)
            level = np.full((*self.size, 3), source, np.uint8) if isinstance(source, int) else read_image(source)
            tensor = prepare(level, how)[0]
        axes = [metadata.batch_layout.replace("N", "").index(letter) for letter in self._letters]
        prepared: Array = tensor.transpose(axes).astype(np.float32)
        return prepared

    def _output(self, images: Array, name: str) -> Array:
        return self._run(images, [name])[name]

    def _run(self, images: Array, outputs: Sequence[str]) -> dict[str, Array]:
        batch = in_type(as_input(np.asarray(images, np.float32), self._layout), self._dtype)
        return self._prober.answers(batch, [self._choice] * len(batch), outputs, self._fed.repeated(len(batch)))


def as_channels_first(rows: Array, metadata: Metadata) -> Array:
    """Rows of the model's input as `float32 [M, C, *spatial]`."""
    axes = [metadata.batch_layout.index(letter) for letter in f"NC{metadata.positions}"]
    return np.asarray(rows.transpose(axes).astype(np.float32))


def as_input(images: Array, layout: str) -> Array:
    """Images `[M, C, *spatial]` with the axes of the model's input."""
    letters = "NC" + "".join(letter for letter in layout if letter in "DHW")
    transposed: Array = images.transpose([letters.index(letter) for letter in layout])
    return transposed


def _results(metadata: Metadata, session: Session) -> list[InputInfo]:
    """The outputs of the model that the method leaves alone, and those that it computes."""
    image = image_input(metadata, session)
    sizes = dict(zip(metadata.batch_layout, image.shape, strict=True))
    computed = [
        InputInfo(metadata.cam, "float32", (sizes["N"], *[None] * len(metadata.positions))),
        InputInfo(metadata.heatmap, "float32", (sizes["N"], *(sizes[letter] for letter in metadata.positions))),
        InputInfo(metadata.attribution, image.dtype, image.shape),
    ]
    names = (metadata.scores_output, metadata.heatmap_class, metadata.heatmap_box, metadata.heatmap_score)
    outputs = [session.output(name) for name in names if name]
    return outputs + [info for info in computed if info.name]
