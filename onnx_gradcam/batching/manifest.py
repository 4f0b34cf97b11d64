"""The manifest of a batch run: written before its first shard, and compared before the run is resumed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import external_data_helper

from onnx_gradcam import __version__
from onnx_gradcam.errors import InputError, ModelError

from .job import Crew
from .records import read_json, write_json

__all__ = ["MANIFEST", "Manifest", "begin_run", "model_digest"]

MANIFEST = "_manifest.json"
_CHUNK = 1 << 20
_FILES = ("labels", "preprocess")
"""Choices that may be files: their contents are compared, under other names."""


@dataclass(frozen=True)
class Manifest:
    """Everything that two runs must have in common to produce the same results.

    `model` and `labels` are the SHA-256 of the model's files and of the class names, `feed_table` that of its text;
    `explanation` is from the metadata of the explained model, `choices` the other arguments of `Explainer`.
    """

    version: str
    model: str
    explanation: dict[str, Any]
    choices: dict[str, Any]
    preprocessing: dict[str, Any]
    labels: str
    target: Any
    box: Any
    format: str
    shard_size: int
    feed_table: str | None

    @classmethod
    def of(cls, crew: Crew) -> Manifest:
        """The manifest of a run."""
        job, explainer = crew.job, crew.explainer
        explanation = asdict(explainer.metadata)
        for name in ("version", "labels", "preprocessing"):
            del explanation[name]
        manifest = cls(
            version=__version__,
            model=model_digest(job.model),
            explanation=explanation,
            choices={name: value for name, value in job.choices.items() if name not in _FILES},
            preprocessing=explainer.preprocessing.to_dict(),
            labels=hashlib.sha256("\n".join(explainer.labels or ()).encode("utf-8", "backslashreplace")).hexdigest(),
            target=job.target,
            box=job.box and asdict(job.box),
            format=job.format,
            shard_size=job.shard_size,
            feed_table=None if crew.table is None else crew.table.digest,
        )
        # As a JSON file returns it: tuples become lists.
        return cls(**json.loads(json.dumps(asdict(manifest), default=str)))

    def check(self, stored: dict[str, Any], out: Path) -> None:
        """Refuse to resume another run, whose manifest `stored` in the folder `out` differs."""
        current = asdict(self)
        for name in (field.name for field in dataclasses.fields(self)):
            if stored.get(name) != current[name]:
                raise InputError(
                    f"{str(out)!r} contains a run with another {_difference(name, stored.get(name), current[name])}; "
                    "repeat the original command, or choose another folder with -o"
                )


def _difference(name: str, stored: Any, current: Any) -> str:
    if isinstance(stored, dict) and isinstance(current, dict):
        key = next(k for k in {**current, **stored} if stored.get(k) != current.get(k))
        return f"{name} ({key} was {_short(stored.get(key))}, is now {_short(current.get(key))})"
    return f"{name.replace('_', ' ')} (was {_short(stored)}, is now {_short(current)})"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 80 else f"{text[:20]}..."


def begin_run(out: Path, manifest: Manifest, *, resume: bool) -> None:
    """Create the folder of a run, or check that an existing one is of the same run and is to be resumed."""
    file = out / MANIFEST
    if file.is_file():
        if not resume:
            raise InputError(
                f"{str(out)!r} already contains a run; continue it with --resume, or choose another folder"
            )
        manifest.check(read_json(file), out)
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        # A run that is killed immediately leaves only a hidden draft of its manifest.
        if any(not entry.name.startswith(".") for entry in out.iterdir()):
            raise InputError(f"{str(out)!r} is not empty and does not contain a run; choose another folder with -o")
        write_json(file, asdict(manifest))
    except OSError as exc:
        raise InputError(f"{str(out)!r} cannot be written ({exc.strerror}); choose another folder with -o") from exc


def model_digest(model: Path) -> str:
    """SHA-256 of a model file and of the files of its external weights."""
    digest = hashlib.sha256()
    try:
        for file in (model, *_weights(model)):
            with file.open("rb") as stream:
                while chunk := stream.read(_CHUNK):
                    digest.update(chunk)
    except OSError as exc:
        raise ModelError(f"{exc.filename}: cannot be read ({exc.strerror}); check its permissions") from exc
    return digest.hexdigest()


def _weights(model: Path) -> Iterator[Path]:
    """The files of external weights, in a fixed order; loading has checked that they are in the model's folder."""
    proto = onnx.load(model, load_external_data=False)
    tensors = external_data_helper._get_all_tensors(proto)  # noqa: SLF001 - there is no public walk
    external = filter(external_data_helper.uses_external_data, tensors)
    locations = {external_data_helper.ExternalDataInfo(tensor).location for tensor in external}
    yield from (model.resolve().parent / place for place in sorted(locations))
