"""Rows of a batch, one for each class or box of each image: running them, and noting what comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_gradcam.editor.targets.classes import check_class
from onnx_gradcam.errors import ModelError, NothingFoundError
from onnx_gradcam.feeds import Fed, Feeds

from .answers import class_of, probabilities
from .detections import EMPTY_TABLE, Detections
from .explanation import ClassMap
from .pending import Pending, Prepared
from .runners import Choice, Halved, Runner

__all__ = ["NO_BOX", "Rows", "run_rows"]

Array = npt.NDArray[Any]

NO_BOX = "the model does not find anything in this image: it has no box"
_NAN = "the model gives NaN for this image; check --preprocess and the model's weights"


def run_rows(
    runner: Runner,
    batch: Array,
    classes: Sequence[int],
    boxes: Sequence[int] | None,
    fed: Fed,
    *,
    tables: bool,
    maps: bool,
) -> dict[str, Array]:
    """Run a batch; a runner need not know of other inputs where there are none."""
    others = {"fed": fed} if fed else {}
    return runner.run(batch, classes, boxes, tables=tables, maps=maps, **others)


class Rows:
    """Runs the rows of images that are being explained.

    Args:
        runner: what runs them.
        labels: class names, or `None`.
        feeds: what the model's other inputs take.
    """

    def __init__(self, runner: Runner, labels: Sequence[str] | None, feeds: Feeds) -> None:
        self._runner, self._metadata, self._labels, self._feeds = runner, runner.metadata, labels, feeds

    def explain(
        self,
        pending: Sequence[Pending],
        chosen: Sequence[Sequence[Choice]],
        batch_size: int,
        halved: Halved | None = None,
        *,
        maps: bool = True,
    ) -> None:
        """Run one row for each class or box of each image, at most `batch_size` rows of one size at once.

        Where a model in two parts is given, the first runs once for each image. Without `maps`, only what an image
        contains is noted.
        """
        if halved is not None:
            for one, choices in zip(pending, chosen, strict=True):
                self._explain_sharing(halved, one, choices, maps=maps)
            return
        by_size: dict[Any, list[tuple[Pending, Choice]]] = {}
        for one, choices in zip(pending, chosen, strict=True):
            alike = one.prepared.tensor.shape, self._feeds.alike(one.feeds)
            by_size.setdefault(alike, []).extend((one, choice) for choice in choices)
        for rows in by_size.values():
            for start in range(0, len(rows), batch_size):
                self._explain_rows(rows[start : start + batch_size], maps=maps)

    def _explain_sharing(self, halved: Halved, one: Pending, choices: Sequence[Choice], *, maps: bool) -> None:
        """Explain the boxes of one image, whose forward pass is kept for more of them."""
        if not choices:
            return
        try:
            one.shared = one.shared or halved.forward(one.prepared.tensor[None], self._feeds.fed([one.feeds]))
            results = halved.run(one.shared, choices, tables=choices[0][1] is None)
        except ModelError as exc:
            if EMPTY_TABLE not in str(exc):
                raise
            one.problem = NothingFoundError(NO_BOX)
            return
        self._keep([(one, choice) for choice in choices], results, maps=maps)

    def _explain_rows(self, rows: Sequence[tuple[Pending, Choice]], *, maps: bool) -> None:
        names = self._metadata
        boxes = [box for _, (_, box) in rows if box is not None]
        try:
            results = run_rows(
                self._runner,
                np.stack([one.prepared.tensor for one, _ in rows]),
                [target for _, (target, _) in rows],
                boxes or None,
                self._feeds.fed([one.feeds for one, _ in rows]),
                tables=bool(names.detection_scores) and not boxes,
                maps=maps,
            )
        except ModelError as exc:
            if not names.detection_scores or EMPTY_TABLE not in str(exc):
                raise
            self._explain_apart(rows, maps=maps)
            return
        self._keep(rows, results, maps=maps)

    def _keep(self, rows: Sequence[tuple[Pending, Choice]], results: Mapping[str, Array], *, maps: bool) -> None:
        """Note the results of rows, each in the explanation it belongs to."""
        names = self._metadata
        boxes = [box for _, (_, box) in rows if box is not None]
        for i, (one, (target, _)) in enumerate(rows):
            scores = self._scores(results[names.scores_output][i])
            index = int(results[names.heatmap_class][i])
            check_class(index, len(scores))
            if np.isnan(scores).any():
                raise ModelError(_NAN)
            if not boxes:
                one.scores, one.best = scores, index
            if names.detection_scores and not boxes:
                one.table = self.table(one.prepared, results, i)
                one.boxes = one.table.listed()
            if not maps:
                continue
            heatmap, cam = results[names.heatmap][i], results[names.cam][i]
            if names.all_classes:
                one.heatmaps, one.cams = heatmap, cam
                index = target if target >= 0 else index
                heatmap, cam = heatmap[index], cam[index]
            attribution = results[names.attribution][i] if names.attribution else None
            # A score may be minus infinity: the logarithm of a probability of 0.
            if not (np.isfinite(heatmap).all() and np.isfinite(cam).all()):
                raise ModelError(_NAN)
            explained = self.class_map(one, index, heatmap, cam, attribution, scores)
            if names.heatmap_box and one.table is not None:
                explained = replace(explained, boxes=[one.listed(int(results[names.heatmap_box][i]), index)])
            if names.completeness:
                explained = replace(explained, completeness=float(results[names.completeness][i]))
            one.maps.append(explained)

    def _explain_apart(self, rows: Sequence[tuple[Pending, Choice]], *, maps: bool) -> None:
        """Explain the images one by one where one of them leaves the table of boxes empty."""
        if len(rows) == 1:
            rows[0][0].problem = NothingFoundError(NO_BOX)
            return
        for row in rows:
            self._explain_rows([row], maps=maps)

    def table(self, prepared: Prepared, results: Mapping[str, Array], row: int) -> Detections:
        """The table of all boxes in one image."""
        names, shape = self._metadata, dict(zip(self._metadata.batch_layout[1:], prepared.tensor.shape, strict=True))
        boxes = results[names.detection_boxes][row] if names.detection_boxes else None
        return Detections.of(
            results[names.detection_scores][row], boxes, (shape["H"], shape["W"]), prepared.placement, self._labels
        )

    def class_map(
        self,
        one: Pending,
        index: int,
        heatmap: Array,
        cam: Array,
        attribution: Array | None = None,
        scores: Array | None = None,
    ) -> ClassMap:
        """The map of a class, with its name, score and probability."""
        scores = one.scores if scores is None else scores
        shares = probabilities(scores, self._metadata)
        return ClassMap(class_of(index, scores, self._labels, shares), heatmap, cam, attribution)

    def _scores(self, row: Array) -> Array:
        """One score for each class; a single logit also gives the score of its complement."""
        scores = row.reshape(-1)
        if not self._metadata.single_logit:
            return scores
        complement = 1 - scores if self._metadata.activation == "sigmoid" else -scores
        return np.concatenate([complement, scores])
