"""The comparison as one HTML file: no script, nothing from elsewhere, images inside."""

from __future__ import annotations

import base64
import hashlib
import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from pathlib import PurePath
from typing import Final

import numpy as np

from onnx_gradcam import __version__
from onnx_gradcam.images.decoding import resized
from onnx_gradcam.images.drawing import encode_image, overlay

from .comparison import METRICS, Agreement, Compared, Laid, spreads

__all__ = ["Report", "worst"]

_SHOWN: Final = 24
"""How many images are shown at most; the table has all."""
_SIDE: Final = 320
"""Longer side of a shown image, in pixels."""
_IN_CARD: Final = ("pearson", "overlap", "ssim", "shift")


def worst(agreements: Sequence[Agreement], metric: str) -> float:
    """The value of a metric, of which larger is better, where an image's agreement is least."""
    return min(value for a in agreements if (value := a.numbers[metric]) is not None)


class _Html(str):
    """Text that is HTML already; every other text is escaped where it is put in."""

    __slots__ = ()


def _element(tag: str, *parts: str, **attributes: str) -> _Html:
    """An element; an underscore at the end of an attribute's name is dropped, others become hyphens."""
    named = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(value, quote=True)}"' for name, value in attributes.items()
    )
    if tag in {"img", "meta"}:
        return _Html(f"<{tag}{named}>")
    return _Html(f"<{tag}{named}>{_join(parts)}</{tag}>")


def _join(parts: Sequence[str]) -> _Html:
    return _Html("".join(part if isinstance(part, _Html) else escape(part) for part in parts))


@dataclass(eq=False)
class Report:
    """Collects results one by one: the numbers of all images, the pixels of the worst only.

    Attributes:
        sides: facts about each side by its name, the first what the others are compared with.
        metric: one of `METRICS` of which larger is better: the images' order.
        folder: what the images' paths are shown less, if all begin with it.
        limit: the least mean of it that was asked for, if any.
    """

    sides: Mapping[str, Mapping[str, str]]
    metric: str
    folder: str = ""
    limit: float | None = None
    _rows: list[tuple[float, int, str, str, Sequence[Agreement]]] = field(default_factory=list)
    _failed: list[tuple[str, str]] = field(default_factory=list)
    _cards: list[tuple[float, int, _Html]] = field(default_factory=list)

    def add(self, result: Compared) -> None:
        """Take the numbers of an image; draw it if it is among the worst so far."""
        rank = worst(result.agreements, self.metric)
        number = len(self._rows)
        self._rows.append((rank, number, self._short(result.path), result.target.label, result.agreements))
        if len(self._cards) < _SHOWN or -rank > self._cards[0][0]:
            heapq.heappush(self._cards, (-rank, number, self._card(result, number)))
            if len(self._cards) > _SHOWN:
                heapq.heappop(self._cards)

    def fail(self, image: str, reason: str) -> None:
        """Note an image that could not be compared."""
        self._failed.append((self._short(image), reason))

    def html(self) -> str:
        """The whole page."""
        style = resources.files(__package__).joinpath("report.css").read_text(encoding="utf-8")
        digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
        title = "How far the models agree"
        head = _element(
            "head",
            _element("meta", charset="utf-8"),
            _element("meta", http_equiv="Content-Security-Policy", content=policy),
            _element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            _element("meta", name="referrer", content="no-referrer"),
            _element("title", title),
            _Html(f"<style>{style}</style>"),
        )
        main = _element(
            "main",
            _element("h1", title),
            self._verdict(),
            _element("h2", "Models"),
            _element("p", "The first is what the others are compared with."),
            self._models(),
            _element("h2", "In sum"),
            *(part for side in list(self.sides)[1:] for part in self._summary(side)),
            _element("h2", "Largest disagreements"),
            *self._worst_cards(),
            _element("h2", "All images", id="all"),
            _element("p", f"By {METRICS[self.metric].title}, the least first."),
            self._all(),
            *self._left_out(),
            _element(
                "footer",
                "A blank heatmap, zero everywhere, agrees fully with another blank one and in nothing with any other. "
                "Heatmaps are compared where at least one of the two models looked. "
                f"Written by onnx-gradcam {__version__}.",
            ),
        )
        return f"<!DOCTYPE html>\n{_element('html', head, _element('body', main), lang='en')}\n"

    def _short(self, image: str) -> str:
        path = PurePath(image)
        return str(path.relative_to(self.folder)) if self.folder and path.is_relative_to(self.folder) else image

    def _of(self, side: str) -> list[Agreement]:
        return [a for row in self._rows for a in row[4] if a.side == side]

    def _verdict(self) -> _Html:
        first = next(iter(self.sides))
        metric = METRICS[self.metric]
        where = [" of ", _name(self.folder)] if self.folder else []
        sentences: list[str] = [_count(len(self._rows), "image"), *where, " compared"]
        sentences.append(f", {len(self._failed)} left out. " if self._failed else ". ")
        for side in list(self.sides)[1:]:
            spread = spreads(self._of(side))[self.metric]
            if spread is None:
                continue
            sentences += [_name(side), " against ", _name(first), f": mean {metric.title} {spread.mean:.3f}"]
            if self.limit is not None:
                passed = spread.mean >= self.limit
                verdict = f"{'at least' if passed else 'below'} {self.limit:g}"
                sentences += [", ", _element("span", verdict, class_="good" if passed else "bad")]
            sentences.append(". ")
        return _element("p", *sentences)

    def _models(self) -> _Html:
        columns = list(dict.fromkeys(key for facts in self.sides.values() for key in facts))
        rows = [
            [
                _element("th", _name(name), scope="row"),
                *(_element("td", facts.get(c, "–"), class_="text") for c in columns),
            ]
            for name, facts in self.sides.items()
        ]
        return _table("Models", ["name", *columns], rows)

    def _summary(self, side: str) -> tuple[_Html, _Html]:
        agreements = self._of(side)
        known = [a.same_top for a in agreements if a.same_top is not None]
        rows = []
        if known:
            share = _element("td", f"{sum(known)} of {len(known)}", class_="number")
            empty = [_element("td", class_="number")] * 2
            rows.append([_explained("same best class", "images of which both hold the same class for the best"), share])
            rows[0] += empty
        for name, spread in spreads(agreements).items():
            if spread is not None:
                cells = [_number(name, value) for value in (spread.mean, spread.median, spread.worst)]
                rows.append([_explained(METRICS[name].title, METRICS[name].meaning), *cells])
        first = next(iter(self.sides))
        columns = ["agreement", "mean", "median", "worst"]
        return _element("h3", _name(side), " against ", _name(first)), _table(
            f"{side} against {first}", columns, rows, numbers=(1, 2, 3)
        )

    def _worst_cards(self) -> list[_Html]:
        count = len(self._cards)
        if not count:
            return [_element("p", "No image could be compared.")]
        which = "All images" if count == len(self._rows) else f"The {count} of {len(self._rows)} images with the least"
        order = f"{which}{', by' if count == len(self._rows) else ''} {METRICS[self.metric].title}, the least first."
        ranked = sorted(self._cards, key=lambda card: (-card[0], card[1]))
        return [_element("p", order), *(card for _, _, card in ranked)]

    def _all(self) -> _Html:
        several = len(self.sides) > 2
        names = list(METRICS)
        shown = {number for _, number, _ in self._cards}
        rows = []
        for _, number, image, label, agreements in sorted(self._rows, key=lambda row: row[:2]):
            for a in agreements:
                name = _element("a", _name(image), href=f"#p{number}") if number in shown else _name(image)
                cells = [_element("th", name, scope="row"), _element("td", _name(label), class_="text")]
                if several:
                    cells.append(_element("td", _name(a.side), class_="text"))
                cells.append(_same_best(a))
                cells += [_number(n, a.numbers[n]) for n in names]
                rows.append(cells)
        columns = [
            "image",
            "class",
            *(["model"] if several else []),
            "same best class",
            *(METRICS[n].title for n in names),
        ]
        start = len(columns) - len(names)
        return _table("All images", columns, rows, numbers=range(start, len(columns)))

    def _left_out(self) -> list[_Html]:
        if not self._failed:
            return []
        rows = [[_element("th", _name(p), scope="row"), _element("td", why, class_="text")] for p, why in self._failed]
        return [_element("h2", "Images left out"), _table("Images left out", ["image", "reason"], rows)]

    def _card(self, result: Compared, number: int) -> _Html:
        height, width = result.image.shape[:2]
        factor = _SIDE / max(height, width)
        tall, wide = max(1, round(height * factor)), max(1, round(width * factor))
        photo = resized(result.image, tall, wide)
        name = PurePath(result.path).name
        figures = [_element("figure", _image(photo, f"The image {name}"), _element("figcaption", "image"))]
        for i, (side, laid) in enumerate(zip(self.sides, result.laid, strict=True)):
            heatmap = laid.on(tall, wide)
            seen = _image(overlay(photo, heatmap), _in_words(side, name, laid, heatmap))
            caption: list[str] = [_element("strong", _name(side))]
            if laid.target is not None:
                caption += [_name(laid.target.label), f", score {laid.target.score:.4g}"]
            details = [_details(result.agreements[i - 1])] if i else []
            figures.append(_element("figure", seen, _element("figcaption", *caption, *details)))
        title = f"t{number}"
        return _element(
            "article",
            _element("h3", _name(self._short(result.path)), ": ", _name(result.target.label), id=title),
            _element("div", *figures, class_="images"),
            id=f"p{number}",
            aria_labelledby=title,
        )


def _name(text: str) -> _Html:
    """A name from a file: its writing direction does not touch what stands beside it."""
    return _element("bdi", text)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _written(metric: str, value: float) -> str:
    if metric == "shift":
        return f"{value:.0f}"
    return f"{value:.2g}" if metric == "divergence" else f"{value:.3f}"


def _number(metric: str, value: float | None) -> _Html:
    return _element("td", "–" if value is None else _written(metric, value), class_="number")


def _same_best(agreement: Agreement) -> _Html:
    if agreement.same_top is None:
        return _element("td", "–")
    return _element("td", "yes") if agreement.same_top else _element("td", "no", class_="bad")


def _explained(title: str, meaning: str) -> _Html:
    """The head of a row: what it is called, and below what it is."""
    return _element("th", title, _element("small", meaning), scope="row")


def _details(agreement: Agreement) -> _Html:
    pairs: list[_Html] = []
    for name in _IN_CARD:
        value = agreement.numbers[name]
        if value is not None:
            pairs += [_element("dt", METRICS[name].title), _element("dd", _written(name, value))]
    if agreement.same_top is False:
        pairs += [_element("dt", "best class"), _element("dd", "another", class_="bad")]
    if any(agreement.maps.blank):
        pairs += [_element("dt", "blank"), _element("dd", _blank(agreement.maps.blank), class_="bad")]
    return _element("dl", *pairs)


def _blank(blank: tuple[bool, bool]) -> str:
    return "both heatmaps" if all(blank) else "the first model's heatmap" if blank[0] else "this heatmap"


def _in_words(side: str, image: str, laid: Laid, heatmap: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> str:
    """What a heatmap shows, for those who do not see it."""
    of = f" for {laid.target.label}" if laid.target is not None else ""
    if not heatmap.any():
        return f"Heatmap of {side}{of} over {image}: blank"
    row, column = np.unravel_index(int(heatmap.argmax()), heatmap.shape)
    right, down = (column + 0.5) / heatmap.shape[1], (row + 0.5) / heatmap.shape[0]
    return f"Heatmap of {side}{of} over {image}: hottest {right:.0%} from the left and {down:.0%} from the top"


def _image(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], alt: str) -> _Html:
    data = base64.b64encode(encode_image(pixels, ".jpg")).decode("ascii")
    height, width = pixels.shape[:2]
    return _element(
        "img", src=f"data:image/jpeg;base64,{data}", alt=alt, width=str(width), height=str(height), decoding="async"
    )


def _table(label: str, columns: Sequence[str], rows: Sequence[Sequence[_Html]], numbers: Sequence[int] = ()) -> _Html:
    """A table that scrolls sideways where it is too wide, by keyboard as well."""
    heads = [
        _element("th", name, scope="col", **({"class_": "number"} if i in numbers else {}))
        for i, name in enumerate(columns)
    ]
    body = _element("tbody", *(_element("tr", *row) for row in rows))
    table = _element("table", _element("thead", _element("tr", *heads)), body, aria_label=label)
    return _element("div", table, class_="wide", role="region", tabindex="0", aria_label=label)
