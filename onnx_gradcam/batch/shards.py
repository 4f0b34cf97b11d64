"""How pictures are cut into shards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

__all__ = ["Shard", "cut"]


@dataclass(frozen=True)
class Shard:
    """Some pictures of a run.

    Attributes:
        number: of the shard, from 0.
        first: the number of its first picture in the run.
        paths: the pictures.
    """

    number: int
    first: int
    paths: list[str]

    def folder(self, out: Path) -> Path:
        """Where it is written."""
        return out / f"part-{self.number:08d}"


def cut(paths: Iterable[str], size: int) -> Iterator[Shard]:
    """Shards of `size` pictures, the last one may have fewer; never more than one is held."""
    rest = iter(paths)
    number = 0
    while some := list(islice(rest, size)):
        yield Shard(number, number * size, some)
        number += 1
