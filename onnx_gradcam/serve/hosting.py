"""Which models a server has: one file, or a folder of them with their versions and settings."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from onnx_gradcam.errors import InputError, ModelError, ServerError, near_matches, reason
from onnx_gradcam.feeds import in_folder
from onnx_gradcam.files import read_text
from onnx_gradcam.options import check_choices

from .limits import Limits

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["SETTINGS", "Source", "read_sources"]

SETTINGS_FILE: Final = "models.toml"
"""The file of settings in a folder of models: one table per model."""
SETTINGS: Final = ("provider", "threads", "region", "feeds", "augment", "seed")
"""Settings of `Explainer`, beside fields of `Options`."""
_FILES: Final = ("labels", "preprocess", "reference", "region")
"""Settings that may name a file, relative to the folder."""
_LIMITS: Final = "limits"
_FEEDS: Final = "feeds"
_LARGEST: Final = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Source:
    """A version of a model: its file, its settings, and when the file was changed.

    Attributes:
        name: name in requests.
        version: number in requests as text, empty if it has none.
        path: the ONNX file.
        limits: upper bounds on its requests.
        settings: keyword arguments of `Explainer`.
        stamp: size and time of change of the file; two sources that are equal need not be loaded twice.
    """

    name: str
    version: str
    path: Path
    limits: Limits
    settings: Mapping[str, Any] = field(default_factory=dict)
    stamp: tuple[int, int] = (0, 0)


def read_sources(
    model: str | Path,
    *,
    name: str | None = None,
    limits: Limits | None = None,
    settings: Mapping[str, Any] | None = None,
) -> list[Source]:
    """Find the models of a file or folder.

    A folder has `NAME.onnx`, `NAME/model.onnx` or `NAME/VERSION/model.onnx`, as Triton's repositories do, and may have
    `models.toml`: one table per model with fields of `Options`, arguments of `Explainer`, and a table `limits`.

    Args:
        model: path of an ONNX file or of a folder.
        name: name of the model in requests, if there is one only; by default, that of its file or folder.
        limits: upper bounds on requests of every model; those of the settings file come first.
        settings: keyword arguments of `Explainer` for every model; those of the settings file come first.

    Raises:
        ModelError: there is no such file, or no model in the folder.
        ServerError: an unknown limit or model in the settings file.
        InputError: an unknown setting, or the settings file is not TOML.

    Example::

        read_sources("models", limits=Limits(rows=8))
    """
    path, limits, settings = Path(model), limits or Limits(), dict(settings or {})
    check_choices(settings, more=SETTINGS)
    if not path.is_dir():
        if not path.exists():
            raise ModelError(f"no model file for {name or path.stem!r} ({path} does not exist); check the path")
        return [_source(name or path.stem, "", path, limits, settings)]
    files = sorted(_model_files(path), key=lambda one: one[:2])
    names = list(dict.fromkeys(one[0] for one in files))
    if not files:
        raise ModelError(f"there is no model in {path}; put NAME.onnx or NAME/1/model.onnx there")
    if name is not None and len(names) > 1:
        raise ServerError(f"{path} has {len(names)} models, {', '.join(names[:9])}; leave --name out")
    tables = _tables(path)
    for other in tables:
        if other not in names:
            raise ServerError(
                f"{path / SETTINGS_FILE} has settings of {other!r}, which is not in the folder"
                f"{near_matches(other, names) or '; the models are ' + ', '.join(names[:9])}"
            )
    sources = []
    for own, version, file in files:
        table = _resolved(tables.get(own, {}), path)
        given = table.pop(_LIMITS, {})
        if not isinstance(given, dict):
            raise ServerError(f"the limits of {own!r} are not a table; write [{own}.limits]")
        check_choices(table, more=SETTINGS)
        if not isinstance(table.get(_FEEDS, {}), dict):
            raise InputError(f"the feeds of {own!r} are not a table; write [{own}.feeds] with NAME = VALUE")
        bounds = Limits.from_settings({**vars(limits), **given})
        sources.append(_source(name or own, version, file, bounds, {**settings, **table}))
    return sources


def _source(name: str, version: str, path: Path, limits: Limits, settings: Mapping[str, Any]) -> Source:
    found = path.stat()
    stamp = found.st_size, found.st_mtime_ns
    return Source(name=name, version=version, path=path, limits=limits, settings=settings, stamp=stamp)


def _model_files(folder: Path) -> list[tuple[str, str, Path]]:
    """Name, version and file of every model in a folder."""
    found = [(file.stem, "", file) for file in folder.glob("*.onnx") if file.is_file()]
    taken = {name for name, _, _ in found}
    for inner in (one for one in folder.iterdir() if one.is_dir()):
        plain = inner / "model.onnx"
        versions = [(inner.name, one.parent.name, one) for one in inner.glob("*/model.onnx")]
        versions = [one for one in versions if one[1].isascii() and one[1].isdigit()]
        own = [(inner.name, "", plain)] if plain.is_file() else versions
        if own and inner.name in taken:
            raise ServerError(f"{folder} has both {inner.name}.onnx and {inner.name}/; remove one of them")
        found += own
    return found


def _tables(folder: Path) -> dict[str, dict[str, Any]]:
    """The tables of the settings file; none if there is no such file."""
    file = folder / SETTINGS_FILE
    if not file.exists():
        return {}
    try:
        document: dict[str, Any] = tomllib.loads(read_text(file, _LARGEST, "settings of models"))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{file} is not TOML ({reason(error)}); write one table [NAME] per model") from error
    for name, table in document.items():
        if not isinstance(table, dict):
            raise InputError(f"{name!r} in {file} is not in the table of a model; write it under [NAME]")
    return document


def _resolved(table: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A table with paths of files that are beside it."""

    def path(value: Any) -> Any:
        return folder / value if isinstance(value, str) and (folder / value).is_file() else value

    resolved = {key: path(value) if key in _FILES else value for key, value in table.items()}
    if isinstance(feeds := table.get(_FEEDS), dict):
        resolved[_FEEDS] = {
            name: in_folder(one, folder) if isinstance(one, str) else one for name, one in feeds.items()
        }
    return resolved
