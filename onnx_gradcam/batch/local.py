"""Shards on this computer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .job import Crew, in_order
from .records import Record
from .shard import explain_shard
from .shards import Shard

__all__ = ["run_locally"]

_DESKS = 2
"""Shards at the same time: while one is written to its end, the other one keeps the crew busy."""


def run_locally(crew: Crew, shards: Iterator[Shard], out: Path, progress: Callable[[int], None]) -> Iterator[Record]:
    """Explain shards with one crew.

    Args:
        crew: who works on them.
        shards: what to explain; no more of them are asked for than can be worked on.
        out: the folder of the run.
        progress: called with the number of pictures that are done, as they are.

    Returns:
        The records of the shards, in their order.

    Raises:
        ExplainError: as `explain_shard` does.
    """
    desks = ThreadPoolExecutor(_DESKS, "shard")

    def work(shard: Shard) -> Record:
        return explain_shard(shard.paths, shard.folder(out), crew, first=shard.first, progress=progress)

    try:
        yield from in_order(desks, work, shards, _DESKS + 1)
    except BaseException:
        # Also where the run is interrupted: what has begun is not worked on to its end.
        crew.close()
        raise
    finally:
        desks.shutdown(cancel_futures=True)
