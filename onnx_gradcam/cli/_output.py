"""What every command prints with: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from pathlib import Path

    from onnx_gradcam.metadata import Metadata

__all__ = ["check_page_name", "complain", "finite", "layers", "say", "say_json", "shape", "table", "warn"]

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def say(text: str = "") -> None:
    """A line of the result."""
    typer.echo(_safe(text))


def warn(text: str) -> None:
    """A warning, on stderr."""
    typer.echo(_safe(f"warning: {text}"), err=True)


def complain(text: str) -> None:
    """An error, on stderr, in one line."""
    typer.echo(_safe(f"error: {' '.join(text.split())}"), err=True)


def say_json(value: Any) -> None:
    """One JSON document."""
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


def finite(number: float) -> float | None:
    """A number that JSON can hold; `None` for infinities and for what is not a number."""
    return number if math.isfinite(number) else None


def table(rows: Sequence[Sequence[str]], indent: str = "  ", right: Sequence[int] = ()) -> str:
    """Rows in aligned columns; those whose index is in `right` are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            text.rjust(width) if i in right else text.ljust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append((indent + "  ".join(cells)).rstrip())
    return "\n".join(lines)


def check_page_name(path: Path | None, flag: str) -> None:
    """Refuse a name for a page that does not end in .html."""
    if path is not None and path.suffix.lower() not in {".html", ".htm"}:
        raise typer.BadParameter(f"{str(path)!r} does not end in .html.", param_hint=flag)


def layers(metadata: Metadata) -> str:
    """The explained layers in words: `layer 'conv5'`, `layers 'p3', 'p4'`."""
    names = ", ".join(map(repr, metadata.layers))
    return f"layers {names}" if len(metadata.layers) > 1 else f"layer {names}"


def shape(sizes: Sequence[int | str | None] | None) -> str:
    """A shape such as `[N, 3, 224, 224]`, with `?` for free sizes."""
    if sizes is None:
        return "of unknown shape"
    return "[" + ", ".join("?" if size is None else str(size) for size in sizes) + "]"


def _safe(text: str) -> str:
    """Names come from untrusted files: control characters would steer the terminal."""
    return _CONTROL.sub("?", text)
