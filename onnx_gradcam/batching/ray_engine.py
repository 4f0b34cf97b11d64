"""Shards on a Ray cluster: the same `explain_shard`, by actors that hold one session each.

Images, model and results lie where all nodes see them under the same paths. Reading and writing are done by the
actors' own threads, not by tasks that would wait for a slot of their own: such tasks starved when a node was lost.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnx_gradcam.errors import ExplainError, InputError

from .job import Crew, Job
from .manifest import Manifest, model_digest
from .records import Record, Shard
from .shard import explain_shard

__all__ = ["RayCluster"]

_SHARDS_EACH = 2
"""Shards that an actor works on at the same time, as `run_locally` does."""
_MOST_LOSSES = 5
"""How often a shard is given to another actor: one image may bring every process down that reads it."""
_ON_GPU = {"cuda", "tensorrt", "rocm", "migraphx"}


class _Worker:
    """The actor."""

    def __init__(self, job: Job, out: Path) -> None:
        self._job, self._out = job, out
        self._crew: Crew | None = None

    def start(self) -> str:
        """Make the session; the digest of the model as this node sees it."""
        self._crew = Crew(self._job)
        return model_digest(self._job.model)

    def explain(self, shard: Shard) -> Record:
        assert self._crew is not None, "start comes first"  # noqa: S101
        return explain_shard(shard.paths, shard.folder(self._out), self._crew, first=shard.first)


@dataclass(frozen=True)
class RayCluster:
    """An engine for `run_batch`: the cluster at `RAY_ADDRESS`, the one of this computer, or a new one.

    Args:
        workers: actors; as many as the cluster has room for by default.
        cpus: of each actor, fractions allowed.
        stall_timeout: the most seconds in which no shard is finished and no actor becomes ready.
    """

    workers: int | None = None
    cpus: float = 1.0
    stall_timeout: float = 600.0

    def __call__(
        self, crew: Crew, manifest: Manifest, shards: Iterator[Shard], out: Path, progress: Any
    ) -> Iterator[Record]:
        """Explain shards; see `onnx_gradcam.batching.running.Engine`.

        Raises:
            InputError: Ray is not installed, no actor can start, nothing has happened for `stall_timeout` seconds, or a
                shard brings every actor down.
            ExplainError: what `explain_shard` raised.
        """
        ray = _ray()
        crew.close()  # its session was needed to begin the run; the work is elsewhere
        explainer = crew.explainer
        here = {
            "labels": explainer.labels,
            "preprocess": explainer.preprocessing,
        }  # their files may be on this node alone
        choices = {**crew.job.choices, **{name: value for name, value in here.items() if value is not None}}
        model, threads = crew.job.model.resolve(), max(1, round(self.cpus))
        job = replace(crew.job, model=model, threads=threads, choices=choices)
        fleet = _Fleet(ray, self, job, out.resolve(), manifest.model)
        try:
            for record in fleet.run(shards):
                progress(record.images)
                yield record
        finally:
            fleet.dismiss()


class _Fleet:
    """The actors, and what each is at."""

    def __init__(self, ray: Any, wanted: RayCluster, job: Job, out: Path, digest: str) -> None:
        self._ray, self._wanted, self._digest = ray, wanted, digest
        count = wanted.workers or max(1, int(ray.cluster_resources().get("CPU", 1) / wanted.cpus))
        gpus = 1 if job.provider.lower() in _ON_GPU else 0
        self._make: Callable[[], Any] = lambda: (
            ray.remote(_Worker)
            .options(
                num_cpus=wanted.cpus,
                num_gpus=gpus,
                max_restarts=0,
                max_concurrency=_SHARDS_EACH,
                scheduling_strategy="SPREAD",
            )
            .remote(job, out)
        )
        self._clock = _Clock(wanted.stall_timeout)
        self._actors: set[Any] = set()
        self._starting: dict[Any, Any] = {}
        self._running: dict[Any, tuple[Any, Shard]] = {}
        self._again: deque[Shard] = deque()
        self._losses: dict[int, int] = {}
        for _ in range(count):
            self._hire()

    def run(self, shards: Iterator[Shard]) -> Iterator[Record]:
        """The records, as shards are finished."""
        clock = self._clock
        free: deque[Any] = deque()
        shard = self._next(shards)
        while shard is not None or self._running:
            while shard is not None and free:
                actor = free.popleft()
                if actor in self._actors:
                    self._running[actor.explain.remote(shard)] = (actor, shard)
                    shard = self._next(shards)
            done, _ = self._ray.wait([*self._running, *self._starting], num_returns=1, timeout=clock.left())
            if not done:
                raise InputError(self._stalled())
            for ref in done:
                if ref in self._starting:
                    actor = self._started(ref)
                    if actor is not None:
                        clock.reset()
                        free.extend([actor] * _SHARDS_EACH)
                    continue
                actor, given = self._running.pop(ref)
                try:
                    record = self._result(ref)
                except _Lost as lost:
                    self._lose(actor, given, lost)
                else:
                    clock.reset()
                    free.append(actor)
                    yield record
            shard = shard or self._next(shards)

    def dismiss(self) -> None:
        """Let all actors go."""
        for actor in [*self._actors, *self._starting.values()]:
            self._ray.kill(actor)

    def _next(self, shards: Iterator[Shard]) -> Shard | None:
        if self._again:
            return self._again.popleft()
        shard = next(shards, None)
        if shard is not None:
            self._clock.reset()  # however long the paths took, the workers are not to blame
        return shard

    def _hire(self) -> None:
        actor = self._make()
        self._starting[actor.start.remote()] = actor

    def _started(self, ref: Any) -> Any | None:
        """The actor that is ready now, or `None` where it died before it was: another one is on its way."""
        actor = self._starting.pop(ref)
        try:
            digest = self._result(ref)
        except _Lost:
            self._hire()
            return None
        if digest != self._digest:
            raise InputError("the model on a node is another one than here; put the same file on all nodes")
        self._actors.add(actor)
        return actor

    def _lose(self, actor: Any, shard: Shard, why: Exception) -> None:
        if actor in self._actors:
            self._actors.remove(actor)
            # It may be alive behind a network that is not.
            self._ray.kill(actor)
            self._hire()
        self._again.append(shard)
        self._losses[shard.number] = self._losses.get(shard.number, 0) + 1
        if self._losses[shard.number] > _MOST_LOSSES:
            raise InputError(
                f"shard {shard.number} ({shard.paths[0]!r} to {shard.paths[-1]!r}) brought {_MOST_LOSSES + 1} workers "
                f"down ({why}); see Ray's logs for the reason, then continue with --resume"
            )

    def _result(self, ref: Any) -> Any:
        errors = self._ray.exceptions
        gone = (
            errors.RayActorError,
            errors.WorkerCrashedError,
            errors.NodeDiedError,
            errors.ObjectLostError,
            errors.OutOfMemoryError,
        )
        try:
            return self._ray.get(ref)
        except gone as exc:
            raise _Lost(" ".join(str(exc).split())[:200]) from exc
        except errors.RayTaskError as exc:
            if isinstance(exc.cause, (ExplainError, OSError)):
                raise exc.cause from exc
            raise

    def _stalled(self) -> str:
        return (
            f"no shard was finished for {self._wanted.stall_timeout:g} seconds ({len(self._actors)} workers are ready, "
            f"{len(self._starting)} wait for {self._wanted.cpus:g} CPUs each); see `ray status`, then continue with "
            "--resume"
        )


class _Clock:
    """Says how long nothing may happen any more."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.reset()

    def reset(self) -> None:
        self._end = time.monotonic() + self._seconds

    def left(self) -> float:
        return max(0.0, self._end - time.monotonic())


class _Lost(Exception):  # noqa: N818 - not what went wrong, but where to go on
    """An actor or its node is gone; what it was given can be given to another."""


def _ray() -> Any:
    """Ray, connected to a cluster.

    Raises:
        InputError: it is not installed, or there is no such cluster.
    """
    # Usage statistics go to a third party; nobody asked for that.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray  # noqa: PLC0415 - an optional and heavy dependency
        import ray.exceptions  # noqa: PLC0415
    except ModuleNotFoundError as exc:
        raise InputError(
            "--engine ray needs Ray, which is not installed; run `pip install 'onnx-gradcam[ray]'`"
        ) from exc
    if not ray.is_initialized():
        try:
            ray.init(log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as exc:
            what = " ".join(str(exc).split())[:200]
            raise InputError(f"Ray cannot be reached ({what}); check RAY_ADDRESS, or `ray start --head`") from exc
    return ray
