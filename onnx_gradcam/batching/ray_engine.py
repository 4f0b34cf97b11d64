"""Batch runs on a Ray cluster: actors with one session each call `explain_shard`.

All nodes must see the images, the model and the results under the same paths. Actors read and write in threads of
their own, because separate Ray tasks starved, waiting for CPU slots, when a node was lost.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnx_gradcam.errors import ExplainError, InputError, reason

from .job import Crew, Job
from .manifest import model_digest
from .records import Record, Shard
from .shard import explain_shard

__all__ = ["RayCluster"]

_SHARDS_EACH = 2
"""Concurrent shards per actor, as in `run_locally`."""
_MAX_LOSSES = 5
"""How often a shard is retried on another actor: a single image may crash every process that reads it."""
_ON_GPU = {"cuda", "tensorrt", "rocm", "migraphx"}


class _Worker:
    """The actor."""

    def __init__(self, job: Job, out: Path) -> None:
        self._job, self._out = job, out
        self._crew: Crew | None = None

    def start(self) -> str:
        """Create the session, and return the digest of the model file on this node."""
        self._crew = Crew(self._job)
        return model_digest(self._job.model)

    def explain(self, shard: Shard) -> Record:
        assert self._crew is not None, "start comes first"  # noqa: S101
        return explain_shard(shard.paths, shard.folder(self._out), self._crew, first=shard.first)


@dataclass(frozen=True)
class RayCluster:
    """An engine for `batch`: the cluster at `RAY_ADDRESS`, the one on this computer, or a new one.

    Args:
        workers: number of actors; by default, as many as fit into the cluster.
        cpus: CPUs per actor, at least 0.05; fractions are allowed.
        stall_timeout: the run stops when no shard is finished and no actor becomes ready for this many seconds.

    Raises:
        InputError: a number out of range.

    Example::

        batch("/shared/explained.onnx", "/shared/photos", "/shared/heatmaps", engine=RayCluster(workers=4))
    """

    workers: int | None = None
    cpus: float = 1.0
    stall_timeout: float = 600.0

    def __post_init__(self) -> None:
        limits = {"workers": (self.workers, 1), "cpus": (self.cpus, 0.05), "stall_timeout": (self.stall_timeout, 0.01)}
        for name, (value, low) in limits.items():
            if value is not None and not (isinstance(value, (int, float)) and value >= low):
                raise InputError(f"{name} is {value!r}; choose a number from {low} up")

    def __call__(
        self, crew: Crew, shards: Iterator[Shard], out: Path, progress: Callable[[int], None]
    ) -> Iterator[Record]:
        """Explain shards; see `onnx_gradcam.batching.running.Engine`."""
        ray = _ray()
        crew.close()  # its session was needed only to start the run
        explainer = crew.explainer
        # The files of these may exist on this node only.
        contents = {"labels": explainer.labels, "preprocess": explainer.preprocessing}
        choices = {**crew.job.choices, **{name: value for name, value in contents.items() if value is not None}}
        model, threads = crew.job.model.resolve(), max(1, round(self.cpus))
        job = replace(crew.job, model=model, threads=threads, choices=choices)
        fleet = _Fleet(ray, self, job, out.resolve(), model_digest(model))
        try:
            for record in fleet.run(shards):
                progress(record.images)
                yield record
        finally:
            fleet.dismiss()


class _Fleet:
    """The actors, and the shard that each is working on."""

    def __init__(self, ray: Any, cluster: RayCluster, job: Job, out: Path, digest: str) -> None:
        self._ray, self._cluster, self._digest = ray, cluster, digest
        count = cluster.workers or max(1, int(ray.cluster_resources().get("CPU", 1) / cluster.cpus))
        gpus = 1 if job.provider.lower() in _ON_GPU else 0
        options = {"num_cpus": cluster.cpus, "num_gpus": gpus, "max_restarts": 0, "max_concurrency": _SHARDS_EACH}
        worker = ray.remote(_Worker).options(**options, scheduling_strategy="SPREAD")
        self._make: Callable[[], Any] = lambda: worker.remote(job, out)
        self._clock = _Clock(cluster.stall_timeout)
        self._actors: set[Any] = set()
        self._starting: dict[Any, Any] = {}
        self._running: dict[Any, tuple[Any, Shard]] = {}
        self._again: deque[Shard] = deque()
        self._losses: dict[int, int] = {}
        for _ in range(count):
            self._hire()

    def run(self, shards: Iterator[Shard]) -> Iterator[Record]:
        """Yield the records as shards are finished."""
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
                actor, lost_shard = self._running.pop(ref)
                try:
                    record = self._result(ref)
                except _Lost as lost:
                    self._lose(actor, lost_shard, lost)
                else:
                    clock.reset()
                    free.append(actor)
                    yield record
            shard = shard or self._next(shards)

    def dismiss(self) -> None:
        """Stop all actors."""
        for actor in [*self._actors, *self._starting.values()]:
            self._ray.kill(actor)

    def _next(self, shards: Iterator[Shard]) -> Shard | None:
        if self._again:
            return self._again.popleft()
        shard = next(shards, None)
        if shard is not None:
            self._clock.reset()  # time spent on finding images is not a stall
        return shard

    def _hire(self) -> None:
        actor = self._make()
        self._starting[actor.start.remote()] = actor

    def _started(self, ref: Any) -> Any | None:
        """The actor that has become ready; `None` if it died, in which case another one is starting."""
        actor = self._starting.pop(ref)
        try:
            digest = self._result(ref)
        except _Lost:
            self._hire()
            return None
        if digest != self._digest:
            raise InputError("the model file on a node differs from the one here; copy the same file to all nodes")
        self._actors.add(actor)
        return actor

    def _lose(self, actor: Any, shard: Shard, why: Exception) -> None:
        if actor in self._actors:
            self._actors.remove(actor)
            # It may be alive, but unreachable.
            self._ray.kill(actor)
            self._hire()
        self._again.append(shard)
        self._losses[shard.number] = self._losses.get(shard.number, 0) + 1
        if self._losses[shard.number] > _MAX_LOSSES:
            raise InputError(
                f"shard {shard.number} ({shard.paths[0]!r} to {shard.paths[-1]!r}) crashed {_MAX_LOSSES + 1} workers "
                f"({why}); see Ray's logs for the reason, then continue with --resume"
            )

    def _result(self, ref: Any) -> Any:
        errors = self._ray.exceptions
        names = ("RayActorError", "WorkerCrashedError", "NodeDiedError", "ObjectLostError", "OutOfMemoryError")
        gone = tuple(getattr(errors, name) for name in names)
        try:
            return self._ray.get(ref)
        except gone as exc:
            raise _Lost(reason(exc)) from exc
        except errors.RayTaskError as exc:
            if isinstance(exc.cause, (ExplainError, OSError)):
                raise exc.cause from exc
            raise

    def _stalled(self) -> str:
        ready, starting, cpus = len(self._actors), len(self._starting), self._cluster.cpus
        return (
            f"no shard was finished for {self._cluster.stall_timeout:g} seconds; {ready} workers are ready, {starting} "
            f"are waiting for {cpus:g} CPUs each; see `ray status`, then continue with --resume"
        )


class _Clock:
    """The time left until the run counts as stalled."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.reset()

    def reset(self) -> None:
        self._end = time.monotonic() + self._seconds

    def left(self) -> float:
        return max(0.0, self._end - time.monotonic())


class _Lost(Exception):  # noqa: N818 - not an error of the run
    """An actor or its node is gone; its shard is retried on another one."""


def _ray() -> Any:
    """Import Ray and connect it to a cluster."""
    # Usage statistics would be sent to a third party.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray  # noqa: PLC0415 - an optional and heavy dependency
        import ray.exceptions  # noqa: PLC0415
    except ModuleNotFoundError as exc:
        raise InputError(
            "--engine ray needs Ray, which is not installed; run `pip install '.[ray]'` in a clone of onnx-gradcam"
        ) from exc
    if not ray.is_initialized():
        try:
            ray.init(log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as exc:
            raise InputError(
                f"cannot connect to Ray ({reason(exc)}); check RAY_ADDRESS, or run `ray start --head`"
            ) from exc
    return ray
