"""Runs the methods that ask a model many times."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_gradcam.editor.methods.catalogue import find_method
from onnx_gradcam.editor.methods.probe import chunks, leading_projection
from onnx_gradcam.editor.probes import COTANGENT, GRADIENT, HEATMAP, MAPS, PROBABILITY, SCORE, Probed, finisher
from onnx_gradcam.errors import ModelError, UnsupportedError
from onnx_gradcam.graph.model import Model

from .runners import fixed_size, in_batches, in_type
from .session import Session

__all__ = ["Prober"]

Array = npt.NDArray[Any]


class Prober:
    """Explains one row after another with a method that runs the model many times.

    Args:
        models: what the method asks.
        where: arguments of `Session`.
        batch_size: rows to run at once.
        seed: of the random numbers; each row starts with it anew, so that no row depends on another.
        channels: how the channels of an attribution become one map, `max` or `sum`.
        progress: called with `(done, total)` while a row is worked on.
    """

    def __init__(
        self,
        models: Probed,
        *,
        batch_size: int = 16,
        seed: int = 0,
        channels: str | None = None,
        progress: Callable[[int, int], None] | None = None,
        **where: Any,
    ) -> None:
        self.metadata = models.metadata
        self.method = method = find_method(models.metadata.method)
        self.batch_size, self.seed = batch_size, seed
        self._channels = channels or ("max" if method.absolute else "sum")
        self.progress = progress
        where["disabled_optimizers"] = models.metadata.disabled_optimizers
        self.session = _session(models.model, where)
        self.head = None if models.head is None else _session(models.head, where)
        self.fixed = fixed_size(next(i for i in self.session.inputs if i.name == self.metadata.image_input))
        self._finishers: dict[tuple[int, ...], Session] = {}

    def run(self, batch: Array, classes: Sequence[int]) -> dict[str, Array]:
        """What an explained model would give, row by row.

        Args:
            batch: the model's input, one row a sample.
            classes: the class to explain in each row; -1 for the one with the highest score.
        """
        rows = [self._row(batch[i : i + 1], index) for i, index in enumerate(classes)]
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

    def _row(self, x: Array, index: int) -> dict[str, Array]:
        facts = self.metadata
        first = self.answers(x, [index], [facts.scores_output, facts.heatmap_class])
        probe = self.probe(x, int(first[facts.heatmap_class][0]))
        result = np.asarray(self.method.function(probe), np.float32)
        if not np.isfinite(result).all():
            raise ModelError(f"{self.method.title} gives NaN or infinity for this image; choose another method")
        found = dict(first)
        if facts.attribution:
            found[facts.attribution] = probe.as_input(result[None])
            result = result.max(0) if self._channels == "max" else result.sum(0)
        found[facts.cam] = result[None]
        found[facts.heatmap] = self._finished(result[None], probe.size)
        return found

    def probe(self, row: Array, index: int) -> _Probe:
        """One row of the model's input, ``[1, ...]``, and the class of that index, ready to be asked about."""
        return _Probe(self, row, index)

    def answers(self, rows: Array, classes: Sequence[int], outputs: Sequence[str]) -> dict[str, Array]:
        """Some outputs of the model for rows of its input."""
        facts = self.metadata

        def run(some: Array, wanted: Sequence[int]) -> dict[str, Array]:
            feeds = {facts.image_input: some, facts.class_input: np.array(wanted, np.int64)}
            return self.session.run(feeds, outputs)

        return in_batches(run, rows, classes, self.fixed)

    def behind(self, maps: Array, index: int) -> Array:
        """The explained score for activation maps in place of the image's own."""
        head = self.head
        if head is None:
            raise UnsupportedError(f"{self.method.title} does not say that it uses the head")

        def run(some: Array, wanted: Sequence[int]) -> dict[str, Array]:
            return head.run({MAPS: some, self.metadata.class_input: np.array(wanted, np.int64)})

        scores: Array = in_batches(run, maps.astype(np.float32), [index] * len(maps), self.fixed)[SCORE]
        return scores

    def _finished(self, cam: Array, size: tuple[int, int]) -> Array:
        key = (*cam.shape[1:], *size)
        if key not in self._finishers:
            self._finishers[key] = Session(finisher(self.metadata.preset, cam.shape[1:], size))
        heatmap: Array = self._finishers[key].run({"cam": cam})[HEATMAP]
        return heatmap


class _Probe:
    """One row of a `Prober`; see `onnx_gradcam.editor.methods.probe.Probe`."""

    def __init__(self, prober: Prober, row: Array, index: int) -> None:
        self._prober, self._index = prober, index
        self._last = prober.metadata.layout == "NHWC"
        self._dtype = row.dtype
        self.x: Array = (row.transpose(0, 3, 1, 2) if self._last else row)[0].astype(np.float32)
        self.size: tuple[int, int] = (self.x.shape[1], self.x.shape[2])
        self.rng = np.random.default_rng(prober.seed)
        self.batch_size = prober.batch_size

    @cached_property
    def maps(self) -> Array:
        maps: Array = self._ask(self.x[None], MAPS)[0]
        return maps

    def scores(self, images: Array) -> Array:
        return self._ask(images, SCORE)

    def probabilities(self, images: Array) -> Array:
        return self._ask(images, PROBABILITY)

    def gradients(self, images: Array) -> Array:
        return self._ask(images, GRADIENT)

    def maps_and_cotangents(self, images: Array) -> tuple[Array, Array]:
        results = self._run(images, [MAPS, COTANGENT])
        return results[MAPS], results[COTANGENT]

    def head(self, maps: Array) -> Array:
        return self._prober.behind(maps, self._index)

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

    def as_input(self, images: Array) -> Array:
        """Images, channels first, with the axes of the model's input."""
        return images.transpose(0, 2, 3, 1) if self._last else images

    def _ask(self, images: Array, name: str) -> Array:
        return self._run(images, [name])[name]

    def _run(self, images: Array, outputs: Sequence[str]) -> dict[str, Array]:
        batch = in_type(self.as_input(np.asarray(images, np.float32)), self._dtype)
        return self._prober.answers(batch, [self._index] * len(batch), outputs)


def _session(model: Model, where: Mapping[str, Any]) -> Session:
    return Session(model.to_proto().SerializeToString(), folder=model.folder, **where)
