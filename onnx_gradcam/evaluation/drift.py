"""Whether heatmaps of two batch runs are alike: where heat is, and how concentrated, class by class."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from onnx_gradcam.errors import InputError
from onnx_gradcam.files import make_folder, write_file
from onnx_gradcam.images.drawing import overlay

from .pages import Figure, Row, Section, check_page, tables_page
from .report import jpeg

__all__ = ["ClassDrift", "Drift", "drift", "energy_test", "holm"]

Array = npt.NDArray[np.float64]

_GRID: Final = 8
"""Cells along each side of the map of where heat is."""
_LEAST: Final = 8
"""Heatmaps of a class that either run needs: fewer tell nothing."""
_MOST: Final = 500
_CHUNK: Final = 500
_FIGURES: Final = 12
_LEAST_DRAWS, _MOST_DRAWS = 999, 19_999

NOT_SAID: Final = (
    "A difference says that heat moved, not why: other images, another camera and another model look the same here.",
    "No difference says that none was seen with so many images: small changes need more.",
    "Classes are those that were explained. Whether they became more or less frequent is another question.",
)


@dataclass(frozen=True, kw_only=True)
class ClassDrift:
    """The heatmaps of one class in two runs.

    Attributes:
        label: name of the class.
        counts: number of heatmaps of the reference and of the current run, without blank ones.
        where: probability, by chance alone, of so large a difference in where heat is.
        concentration: the same of how concentrated it is; both corrected for all tests of the run (Holm).
        centres: centre of heat of both, down and right, in shares of the sides.
        sparsity: mean Gini index of both.
        drifted: whether either probability is below the level.
    """

    label: str
    counts: tuple[int, int]
    where: float
    concentration: float
    centres: tuple[tuple[float, float], tuple[float, float]]
    sparsity: tuple[float, float]
    drifted: bool


@dataclass(frozen=True, eq=False, kw_only=True)
class Drift:
    """What `drift` found.

    Attributes:
        level: the level of significance of the run as a whole.
        classes: the classes that both runs have enough heatmaps of, those with the lowest probability first.
        skipped: classes that were not compared, and why.
        means: mean share of heat in 8x8 cells of both, by class.
    """

    level: float
    classes: Sequence[ClassDrift]
    skipped: Mapping[str, str]
    means: Mapping[str, tuple[Array, Array]] = field(repr=False)

    @property
    def drifted(self) -> bool:
        """Whether any class drifted."""
        return any(one.drifted for one in self.classes)

    def to_dict(self) -> dict[str, Any]:
        """Every figure, as JSON values."""
        return {
            "level": self.level,
            "drifted": self.drifted,
            "classes": [asdict(one) for one in self.classes],
            "skipped": dict(self.skipped),
            "limits": list(NOT_SAID),
        }

    def write(self, path: str | Path) -> None:
        """Write the page to a file."""
        check_page(path, [])
        make_folder(Path(path).parent)
        write_file(path, self._html().encode("utf-8", "replace"))

    def _html(self) -> str:
        rows = [
            Row(
                [
                    one.label,
                    "drifted" if one.drifted else "no difference seen",
                    f"{one.counts[0]}, {one.counts[1]}",
                    f"{one.where:.2g}",
                    f"{one.concentration:.2g}",
                    *(f"{before:.2f} → {after:.2f}" for before, after in _pairs(one)),
                ],
                verdict="bad" if one.drifted else "good",
            )
            for one in self.classes
        ]
        head = ["class", "result", "heatmaps", "p where", "p how concentrated", "down", "right", "sparsity"]
        figures = [
            Figure(_drawn(mean, self.means[one.label], f"Mean heat of {one.label}, {side}"), one.label, side)
            for one in self.classes[: _FIGURES // 2]
            for side, mean in zip(("reference", "current"), self.means[one.label], strict=True)
        ]
        count = sum(one.drifted for one in self.classes)
        lead = f"{count} of {len(self.classes)} classes drifted, at a level of {self.level:g} for all tests together."
        skipped = [f"Not compared: {label} ({why})." for label, why in self.skipped.items()]
        return tables_page(
            "Have the heatmaps drifted?",
            lead,
            [
                Section("Classes", skipped, head, rows),
                Section("Mean heat", ["Share of heat in 8x8 cells, each pair on one scale."], figures=figures),
                Section("What this page does not say", NOT_SAID),
            ],
        )


def _pairs(one: ClassDrift) -> list[tuple[float, float]]:
    (down, right), (down_now, right_now) = one.centres
    return [(down, down_now), (right, right_now), one.sparsity]


def _drawn(mean: Array, both: tuple[Array, Array], alt: str) -> Mapping[str, Any]:
    large = np.kron(mean / max(float(np.max(both)), 1e-12), np.ones((24, 24))).astype(np.float32)
    return jpeg(overlay(np.full((*large.shape, 3), 128, np.uint8), large), alt)


def drift(reference: str | Path, current: str | Path, *, level: float = 0.01, seed: int = 0) -> Drift:
    """Compare the heatmaps of two runs of `batch`, class by class.

    Two-sample tests by permutation of the energy distance (Szekely and Rizzo 2004): of the shares of heat in 8x8
    cells, and of the Gini index of the heatmaps. Probabilities are corrected for the number of tests (Holm 1979). Of
    each class and run at most 500 heatmaps are compared, chosen at random.

    Args:
        reference: folder of a run with `npz` or `parquet` results.
        current: folder of another.
        level: probability of a false alarm, of the run as a whole.
        seed: random seed.

    Returns:
        The classes, and the page by `Drift.write`.

    Raises:
        InputError: a folder holds no such results, or the runs have no class in common with enough heatmaps.

    Example::

        found = drift("reference/", "current/")
        print([one.label for one in found.classes if one.drifted])
    """
    if not 0 < level < 1:
        raise InputError(f"the level is {level:g}; give a probability between 0 and 1")
    before, after = (_Run.read(Path(folder)) for folder in (reference, current))
    rng = np.random.default_rng(seed)
    skipped: dict[str, str] = {}
    chosen: dict[str, tuple[_Part, _Part]] = {}
    for label in sorted({*before.maps, *after.maps}):
        counts = tuple(len(run.maps.get(label, ())) for run in (before, after))
        if min(counts) < _LEAST:
            skipped[label] = f"{counts[0]} and {counts[1]} heatmaps; both runs need {_LEAST}"
        else:
            chosen[label] = (_sample(before, label, rng), _sample(after, label, rng))
    if not chosen:
        raise InputError(f"no class has {_LEAST} heatmaps in both runs; explain more images of the same classes")
    draws = min(_MOST_DRAWS, max(_LEAST_DRAWS, math.ceil(4 * len(chosen) / level)))
    found = [energy_test(pair[0][i], pair[1][i], rng, draws) for pair in chosen.values() for i in (0, 1)]
    corrected = iter(holm(found))
    classes = [_class_drift(label, pair, next(corrected), next(corrected), level) for label, pair in chosen.items()]
    return Drift(
        level=level,
        classes=sorted(classes, key=lambda one: min(one.where, one.concentration)),
        skipped=skipped,
        means={label: (_mean(first), _mean(second)) for label, (first, second) in chosen.items()},
    )


_Part = tuple[Array, Array]
"""Shares of heat ``[n, 64]`` and Gini indices ``[n, 1]``."""


def _class_drift(label: str, pair: tuple[_Part, _Part], where: float, concentration: float, level: float) -> ClassDrift:
    rows = (np.arange(_GRID) + 0.5) / _GRID
    first, second = ((float(m.sum(1) @ rows), float(m.sum(0) @ rows)) for m in map(_mean, pair))
    return ClassDrift(
        label=label,
        counts=(len(pair[0][0]), len(pair[1][0])),
        where=where,
        concentration=concentration,
        centres=(first, second),
        sparsity=(float(pair[0][1].mean()), float(pair[1][1].mean())),
        drifted=min(where, concentration) < level,
    )


def _mean(part: _Part) -> Array:
    """Mean share of heat in each cell, ``[8, 8]``."""
    return np.asarray(part[0].mean(0).reshape(_GRID, _GRID))


def _sample(run: _Run, label: str, rng: np.random.Generator) -> _Part:
    rows = run.maps[label]
    kept = rng.permutation(len(rows))[:_MOST]
    values = np.stack([rows[i] for i in kept])
    return values[:, :-1], values[:, -1:]


def energy_test(first: Array, second: Array, rng: np.random.Generator, draws: int) -> float:
    """Probability, by chance alone, of so large an energy distance between two samples ``[n, d]`` and ``[m, d]``.

    Twice the mean distance between the samples less the mean distances within each, against those of `draws` random
    splits of both together (Szekely and Rizzo 2004).
    """
    both = np.concatenate([first, second])
    squares = (both**2).sum(1)
    distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * both @ both.T, 0))
    count, total = len(first), len(both)

    def statistics(inside: npt.NDArray[np.bool_]) -> Array:
        mine = inside.astype(np.float64)
        reach = mine @ distances
        within = (reach * mine).sum(1)
        across = (reach * (1 - mine)).sum(1)
        others = distances.sum() - within - 2 * across
        rest = total - count
        result: Array = 2 * across / (count * rest) - within / count**2 - others / rest**2
        return result

    own = statistics((np.arange(total) < count)[None])[0]
    larger = 0
    for start in range(0, draws, _CHUNK):
        order = rng.random((min(_CHUNK, draws - start), total)).argsort(1)
        larger += int((statistics(order < count) >= own * (1 - 1e-12)).sum())
    return (1 + larger) / (1 + draws)


def holm(probabilities: Sequence[float]) -> list[float]:
    """Probabilities of several tests, corrected so that the level holds for all together (Holm 1979)."""
    corrected, least = [0.0] * len(probabilities), 0.0
    for done, i in enumerate(np.argsort(probabilities, kind="stable").tolist()):
        least = max(least, min(1.0, (len(probabilities) - done) * probabilities[i]))
        corrected[i] = least
    return corrected


@dataclass(frozen=True, eq=False)
class _Run:
    """What is kept of a run: of each heatmap the shares of heat in 8x8 cells and its Gini index, ``[65]``, by label."""

    maps: Mapping[str, Sequence[Array]]

    @classmethod
    def read(cls, folder: Path) -> _Run:
        maps: dict[str, list[Array]] = {}
        shards = sorted(folder.glob("part-*"))
        if not shards:
            raise InputError(f"the folder {str(folder)!r} holds no results of batch; give the folder of its --out")
        for shard in shards:
            for label, heatmap in _records(shard):
                if heatmap.any():
                    maps.setdefault(label, []).append(_features(heatmap.astype(np.float64)))
        return cls(maps)


def _features(heatmap: Array) -> Array:
    shares = heatmap
    for axis in (0, 1):
        edges = np.linspace(0, heatmap.shape[axis], _GRID + 1)
        shares = np.stack([_between(shares, axis, *edges[i : i + 2]) for i in range(_GRID)], axis)
    values = np.sort(heatmap, axis=None)
    ranks = np.arange(values.size, 0, -1) - 0.5
    gini = 1 - 2 * float((values * ranks).sum()) / (values.sum() * values.size)
    return np.append(shares / shares.sum(), gini)


def _between(values: Array, axis: int, start: float, end: float) -> Array:
    """The sum of values along an axis from one place to another; a pixel on an edge counts in part."""
    places = np.arange(values.shape[axis])
    weights = np.clip(np.minimum(places + 1, end) - np.maximum(places, start), 0, 1)
    total: Array = np.tensordot(weights, values, (0, axis))
    return total


def _records(shard: Path) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """The label and the heatmap of every record of a shard."""
    if (shard / "explanations.parquet").is_file():
        try:
            parquet = importlib.import_module("pyarrow.parquet")
        except ModuleNotFoundError as exc:
            raise InputError("results in Parquet take PyArrow; pip install pyarrow") from exc
        names = ["class", "label", "heatmap", "heatmap_height", "heatmap_width"]
        for batch in parquet.ParquetFile(shard / "explanations.parquet").iter_batches(columns=names):
            for row in batch.to_pylist():
                heatmap = np.reshape(row["heatmap"], (row["heatmap_height"], row["heatmap_width"]))
                yield row["label"] or f"class {row['class']}", heatmap
        return
    index = shard / "index.jsonl"
    if not index.is_file():
        raise InputError(f"{str(shard)!r} holds no results of batch; give the folder of its --out")
    for line in index.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        file = shard / entry["file"]
        if file.suffix != ".npz":
            raise InputError(f"{str(file)!r} is an image, not a heatmap; run batch with --format npz or parquet")
        with np.load(file, allow_pickle=False) as arrays:
            for i, heatmap in enumerate(arrays["heatmap"]):
                yield entry["labels"][i] or f"class {entry['classes'][i]}", heatmap
