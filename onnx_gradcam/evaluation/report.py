"""The page of a comparison: one HTML file without scripts that loads nothing, its images inside."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import PurePath
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from onnx_gradcam import __version__
from onnx_gradcam.images.drawing import encode_image, overlay

from .pairing import Agreement, Compared, Laid
from .similarity import METRICS

__all__ = ["Results", "filled", "jpeg", "render"]

_IN_CARD: Final = ("pearson", "overlap", "ssim", "shift")


class Results(Protocol):
    """What the page shows: a `Comparison`, whose attributes the template reads as well."""

    sides: Mapping[str, Mapping[str, str]]
    metric: str

    @property
    def records(self) -> Sequence[Any]:
        """The numbers of every image."""

    @property
    def shown(self) -> Sequence[tuple[int, Compared]]:
        """The images to show, with their index."""

    def rank(self, record: Any) -> float:
        """The lowest value of the metric on an image."""

    def short(self, path: str) -> str:
        """The path of an image without the common folder."""


def render(comparison: Results) -> str:
    """The page of a comparison, which is computed to its end first.

    Names of files and classes are escaped, and a content security policy allows only the page's own style and images.
    """
    records = [record for record in comparison.records if not record.error]
    shown = comparison.shown
    numbers = {id(record): number for number, record in enumerate(comparison.records)}
    return filled(
        "report.html.jinja",
        comparison=comparison,
        first=next(iter(comparison.sides)),
        metric=METRICS[comparison.metric],
        metrics=METRICS,
        columns=list(dict.fromkeys(key for side in comparison.sides.values() for key in side)),
        records=[(numbers[id(record)], record) for record in sorted(records, key=comparison.rank)],
        failed=[record for record in comparison.records if record.error],
        cards=[_card(comparison, number, result) for number, result in shown],
        shown={number for number, _ in shown},
        in_card=_IN_CARD,
    )


def filled(template: str, **values: Any) -> str:
    """A page of a template, with the style of all pages and a policy that allows it and images alone."""
    from jinja2 import Environment, StrictUndefined  # noqa: PLC0415 - nothing else needs templates

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(number=_number, count=_count)
    style = _resource("report.css")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return environment.from_string(_resource(template)).render(
        **values, style=style, policy=policy, version=__version__
    )


def _resource(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _card(comparison: Results, number: int, result: Compared) -> Mapping[str, Any]:
    name = PurePath(result.path).name
    height, width = result.image.shape[:2]
    return {
        "number": number,
        "path": comparison.short(result.path),
        "target": result.target,
        "top": result.top,
        "photo": jpeg(result.image, f"The image {name}"),
        "sides": [
            {
                "name": side,
                "overlay": jpeg(
                    overlay(result.image, laid.on(height, width, outside=np.nan)),
                    _in_words(side, name, laid, laid.on(height, width)),
                ),
                "target": laid.target,
                "agreement": result.agreements[i - 1] if i else None,
                "blank": _blank(result.agreements[i - 1]) if i else "",
            }
            for i, (side, laid) in enumerate(zip(comparison.sides, result.laid, strict=True))
        ],
    }


def jpeg(pixels: npt.NDArray[np.uint8], alt: str) -> Mapping[str, Any]:
    """An image inside a page, with its text for a screen reader."""
    data = base64.b64encode(encode_image(pixels, ".jpg")).decode("ascii")
    return {"data": data, "alt": alt, "height": pixels.shape[0], "width": pixels.shape[1]}


def _in_words(side: str, image: str, laid: Laid, heatmap: npt.NDArray[np.float32]) -> str:
    """What a heatmap shows, for a screen reader."""
    title = f"Heatmap of {side}{f' for {laid.target.label}' if laid.target is not None else ''} over {image}"
    if not heatmap.any():
        return f"{title}: blank"
    row, column = np.unravel_index(int(heatmap.argmax()), heatmap.shape)
    right, down = (column + 0.5) / heatmap.shape[1], (row + 0.5) / heatmap.shape[0]
    return f"{title}: hottest {right:.0%} from the left and {down:.0%} from the top"


def _blank(agreement: Agreement) -> str:
    first, second = agreement.maps.blank
    if first and second:
        return "both heatmaps"
    return "the first model's heatmap" if first else "this heatmap" if second else ""


def _number(value: float | None, metric: str) -> str:
    return "–" if value is None else format(value, {"shift": ".0f", "divergence": ".2g"}.get(metric, ".3f"))


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
