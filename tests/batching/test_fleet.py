"""What the driver of a cluster does when actors die, by a Ray that is made up: the real one takes a minute."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest

from onnx_gradcam.batching.job import Job
from onnx_gradcam.batching.ray_engine import RayCluster, _Fleet
from onnx_gradcam.batching.records import Record, cut
from onnx_gradcam.errors import InputError, ModelError

DIGEST = "d" * 64


class DiedError(Exception):
    """What Ray raises for an actor that is gone."""


class TaskFailedError(Exception):
    """What Ray raises for an error of the actor's own."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(f"Traceback of many lines\n{cause}")
        self.cause = cause


class MadeUpRay:
    """Runs each task when its result is asked for; `task(actor, name, shard)` gives the result, or raises."""

    def __init__(self, task, cpus: int = 2) -> None:
        self.task, self.cpus = task, cpus
        self.hired, self.killed = itertools.count(), []
        kinds = ("RayActorError", "WorkerCrashedError", "NodeDiedError", "ObjectLostError", "OutOfMemoryError")
        self.exceptions = SimpleNamespace(**dict.fromkeys(kinds, DiedError), RayTaskError=TaskFailedError)

    def cluster_resources(self):
        return {"CPU": self.cpus}

    def remote(self, _):
        def make(*_):
            return Actor(next(self.hired))

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=make))

    def wait(self, refs, *, num_returns, timeout):
        assert num_returns == 1
        if timeout <= 0:
            return [], refs
        return refs[:1], refs[1:]

    def get(self, ref):
        return self.task(ref.actor, ref.name, *ref.given)

    def kill(self, actor):
        self.killed.append(actor.number)


class Actor:
    """An actor's handle."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.start, self.explain = (
            SimpleNamespace(remote=lambda *given, name=name: Ref(number, name, given)) for name in ("start", "explain")
        )


class Ref:
    """What stands for a result that is not there yet; each is only itself."""

    def __init__(self, actor: int, name: str, given: tuple) -> None:
        self.actor, self.name, self.given = actor, name, given


def run(ray, count: int = 40, **options) -> list[Record]:
    fleet = _Fleet(ray, RayCluster(**options), Job(model=Path("m.onnx")), Path("out"), DIGEST)
    return list(fleet.run(cut(map(str, range(count)), 4)))


def works(actor, name, shard=None):
    return DIGEST if name == "start" else Record.of(shard.first, shard.paths, 0, {})


def test_all_shards_once_by_as_many_actors_as_there_is_room_for():
    ray = MadeUpRay(works, cpus=4)
    assert sorted(r.first for r in run(ray, cpus=0.5)) == list(range(0, 40, 4))
    assert next(ray.hired) == 8


def test_actors_that_die_are_replaced_and_their_shards_are_done_by_others():
    dead = set()

    def task(actor, name, shard=None):
        if name == "explain" and shard.number % 3 == 0 and shard.number not in dead:
            dead.add(shard.number)
            raise DiedError
        return works(actor, name, shard)

    ray = MadeUpRay(task)
    assert sorted(r.first for r in run(ray)) == list(range(0, 40, 4))
    assert next(ray.hired) == 2 + len(set(ray.killed))
    assert len(ray.killed) == len(set(ray.killed)) >= 1


def test_a_shard_that_brings_every_actor_down_stops_the_run():
    def task(actor, name, shard=None):
        if name == "explain" and shard.number == 2:
            raise DiedError("out of memory")
        return works(actor, name, shard)

    with pytest.raises(InputError, match=r"shard 2 \('8' to '11'\) crashed 6 workers \(out of memory\)"):
        run(MadeUpRay(task))


def test_actors_that_never_start_are_not_waited_for_for_ever():
    def task(actor, name, shard=None):
        raise DiedError

    with pytest.raises(InputError, match=r"no shard was finished for 0.05 seconds; 0 workers are ready, 2 are wait"):
        run(MadeUpRay(task), stall_timeout=0.05)


def test_an_actor_with_another_model_is_refused():
    def task(actor, name, shard=None):
        return "e" * 64 if name == "start" else works(actor, name, shard)

    with pytest.raises(InputError, match="the model file on a node differs from the one here"):
        run(MadeUpRay(task))


def test_an_actors_own_error_comes_back_as_it_was():
    def task(actor, name, shard=None):
        if name == "explain":
            raise TaskFailedError(ModelError("the model gives NaN"))
        return works(actor, name, shard)

    with pytest.raises(ModelError, match=r"^the model gives NaN$"):
        run(MadeUpRay(task))


def test_paths_that_come_late_are_no_stall(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("onnx_gradcam.batching.ray_engine.time", SimpleNamespace(monotonic=lambda: now[0]))

    def slowly():
        for number in range(12):
            now[0] += 100  # a walk over a slow disk
            yield str(number)

    fleet = _Fleet(MadeUpRay(works), RayCluster(stall_timeout=10), Job(model=Path("m.onnx")), Path("out"), DIGEST)
    assert len(list(fleet.run(cut(slowly(), 4)))) == 3
