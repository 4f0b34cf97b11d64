"""What a run is: written before its first shard, and compared before it is continued."""

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
from onnx_gradcam.runtime.explainer import Explainer

from .job import Job
from .records import read_json, write_json

__all__ = ["MANIFEST", "Manifest", "begin_run", "model_digest"]

MANIFEST = "_manifest.json"
_CHUNK = 1 << 20
_ELSEWHERE = ("labels", "preprocess")
"""Choices that may be files: what is in them is compared."""


@dataclass(frozen=True)
class Manifest:
    """What has to be the same for two runs to give the same explanations.

    Attributes:
        version: of this package.
        model: SHA-256 of the model file and the files of its weights.
        explanation: method, layer, preset ... as the explained model says them.
        choices: what else was chosen for `Explainer`.
        preprocessing: how an image becomes the input.
        labels: SHA-256 of the class names.
        target: the classes asked for.
        format: of the results.
        shard_size: images in a shard.
    """

    version: str
    model: str
    explanation: dict[str, Any]
    choices: dict[str, Any]
    preprocessing: dict[str, Any]
    labels: str
    target: Any
    format: str
    shard_size: int

    @classmethod
    def of(cls, job: Job, explainer: Explainer) -> Manifest:
        """The manifest of a run.

        Raises:
            ModelError: the model cannot be read.
        """
        facts = asdict(explainer.metadata)
        for name in ("version", "labels", "preprocessing"):
            del facts[name]
        found = cls(
            version=__version__,
            model=model_digest(job.model),
            explanation=facts,
            choices={name: value for name, value in job.choices.items() if name not in _ELSEWHERE},
            preprocessing=json.loads(explainer.preprocessing.to_json()),
            labels=hashlib.sha256("\n".join(explainer.labels or ()).encode("utf-8", "backslashreplace")).hexdigest(),
            target=job.target,
            format=job.format,
            shard_size=job.shard_size,
        )
        # As a file gives it back: tuples are lists there.
        return cls(**json.loads(json.dumps(asdict(found), default=str)))

    def check(self, there: dict[str, Any], out: Path) -> None:
        """Refuse to continue another run.

        Raises:
            InputError: `there`, what the folder `out` holds, is of another run.
        """
        mine = asdict(self)
        for name in (field.name for field in dataclasses.fields(self)):
            if there.get(name) != mine[name]:
                raise InputError(
                    f"{str(out)!r} holds a run with another {_difference(name, there.get(name), mine[name])}; repeat "
                    "the command as it was, or choose another folder with -o"
                )


def _difference(name: str, there: Any, mine: Any) -> str:
    if isinstance(there, dict) and isinstance(mine, dict):
        key = next(k for k in {**mine, **there} if there.get(k) != mine.get(k))
        return f"{name} ({key} {_short(there.get(key))} there, {_short(mine.get(key))} now)"
    return f"{name.replace('_', ' ')} ({_short(there)} there, {_short(mine)} now)"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 80 else f"{text[:20]}..."


def begin_run(out: Path, manifest: Manifest, *, resume: bool) -> None:
    """Make the folder of a run, or see that the one there is the same run's.

    Raises:
        InputError: it holds something else, or a run that was not to be continued.
    """
    file = out / MANIFEST
    if file.is_file():
        if not resume:
            raise InputError(f"{str(out)!r} holds a run already; continue it with --resume, or choose another folder")
        manifest.check(read_json(file), out)
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        # A run that was killed at once leaves no more than a hidden draft of its manifest.
        if any(not entry.name.startswith(".") for entry in out.iterdir()):
            raise InputError(f"{str(out)!r} is not empty, and holds no run; choose another folder with -o")
        write_json(file, asdict(manifest))
    except OSError as exc:
        raise InputError(f"{str(out)!r} cannot be written ({exc.strerror}); choose another folder with -o") from exc


def model_digest(model: Path) -> str:
    """SHA-256 of a model file, and of the files of its weights where they lie outside of it.

    Raises:
        ModelError: one of the files cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for file in (model, *_weights(model)):
            with file.open("rb") as stream:
                while chunk := stream.read(_CHUNK):
                    digest.update(chunk)
    except OSError as exc:
        raise ModelError(f"{exc.filename}: cannot be read ({exc.strerror}); check who may read it") from exc
    return digest.hexdigest()


def _weights(model: Path) -> Iterator[Path]:
    """The files of external weights, in a fixed order; that they lie in the model's folder was seen to before."""
    proto = onnx.load(model, load_external_data=False)
    tensors = external_data_helper._get_all_tensors(proto)  # noqa: SLF001 - there is no public walk
    places = {
        external_data_helper.ExternalDataInfo(tensor).location
        for tensor in tensors
        if external_data_helper.uses_external_data(tensor)
    }
    yield from (model.resolve().parent / place for place in sorted(places))
