"""The same shards on a Ray cluster of two nodes on this computer: a worker killed, a node lost, nothing happening."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from support.batch_runs import PREPROCESS, classifier, draw, failures, listed

from onnx_gradcam.batching.job import Job
from onnx_gradcam.batching.ray_engine import RayCluster
from onnx_gradcam.batching.running import run_batch
from onnx_gradcam.errors import InputError

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]  # Ray's own

SHARD = 10


@pytest.fixture(scope="module")
def ray():
    """Ray, which tells nobody that it was used."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    return pytest.importorskip("ray")


@pytest.fixture
def cluster(ray):
    """Two nodes of one CPU each."""
    from ray.cluster_utils import Cluster  # noqa: PLC0415 - where Ray is not installed

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    made.wait_for_nodes()
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def work(model, tmp_path):
    """A run of images, some of them missing."""
    files = draw(tmp_path / "images", 20)
    paths = ["/nowhere.png" if i % 100 == 7 else files[i % 20] for i in range(600)]
    return Job(model=model, format="npz", shard_size=SHARD, choices={"preprocess": PREPROCESS}), paths


def workers(node) -> list[int]:
    """The processes of actors on a node, by the node's own process."""
    (raylet,) = (info.process.pid for info in node.all_processes["raylet"])
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                title = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if int(parent) == raylet and b"ray::_Worker" in title:
                found.append(int(entry.name))
    return found


def alive(process: int) -> bool:
    """Whether a process still runs after a while; one that only waits for its parent to take notice does not."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        if state in "ZX":
            return False
        time.sleep(0.1)
    return True


def whole(out: Path) -> None:
    """Every image exactly once."""
    done, failed = listed(out)
    assert failed == list(range(7, 600, 100))
    assert sorted(done + failed) == list(range(600))
    assert [f["path"] for f in failures(out)] == ["/nowhere.png"] * 6


def both_at_work(cluster, node) -> tuple[int, int]:
    """The processes of the workers on the head and on the other node, once both are there."""
    for _ in range(600):
        here, there = workers(cluster.head_node), workers(node)
        if here and there:
            return here[0], there[0]
        time.sleep(0.1)
    raise AssertionError("no worker on one of the nodes for a minute")


def test_a_killed_worker_and_a_lost_node_cost_nothing(cluster, work, tmp_path):
    job, paths = work
    node = next(iter(cluster.worker_nodes))
    gone = []

    def eventful():
        yield from paths[:200]
        here, _ = both_at_work(cluster, node)
        os.kill(here, signal.SIGKILL)
        gone.append(here)
        yield from paths[200:400]
        again, there = both_at_work(cluster, node)
        assert again != here
        cluster.remove_node(node, allow_graceful=False)
        gone.append(there)
        yield from paths[400:]

    seen = []
    engine = RayCluster(workers=2, cpus=1, stall_timeout=120)
    summary = run_batch(job, eventful(), tmp_path / "out", engine=engine, progress=seen.append)
    assert len(gone) == 2
    assert not any(alive(process) for process in gone)
    assert (summary.images, summary.failures, summary.resumed, sum(seen)) == (600, 6, 0, 600)
    whole(tmp_path / "out")


def test_what_was_begun_here_is_finished_there_and_no_room_is_said(cluster, work, tmp_path):
    job, paths = work

    def stops():
        yield from paths[:200]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_batch(job, stops(), tmp_path / "out")
    there = {f: f.stat().st_ino for f in (tmp_path / "out").glob("part-*/*")}
    start = time.monotonic()
    with pytest.raises(
        InputError, match=r"no shard was finished for 3 seconds; 0 workers are ready, 1 are waiting for 9"
    ):
        run_batch(job, paths, tmp_path / "out", resume=True, engine=RayCluster(workers=1, cpus=9, stall_timeout=3))
    assert time.monotonic() - start < 20
    summary = run_batch(job, paths, tmp_path / "out", resume=True, engine=RayCluster(cpus=0.5))
    shards = {int(f.parent.name.removeprefix("part-")) for f in there}
    begun = [i for number in shards for i in range(number * SHARD, (number + 1) * SHARD)]
    assert summary.resumed == sum(i % 100 != 7 for i in begun)  # failures are not counted as done
    assert there == {f: f.stat().st_ino for f in there}
    whole(tmp_path / "out")


def test_errors_come_back_in_one_sentence(cluster, work, tmp_path):
    job, paths = work
    gone = Job(**{**job.__dict__, "model": classifier(tmp_path / "gone.onnx")})

    def removes():
        gone.model.unlink()
        yield from paths

    with pytest.raises(Exception, match="no file") as error:
        run_batch(gone, removes(), tmp_path / "out", engine=RayCluster(workers=1))
    assert "\n" not in str(error.value)


def test_without_ray_it_is_said(work, tmp_path, monkeypatch):
    job, paths = work
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(InputError, match=r"needs Ray.*'\.\[ray\]'"):
        run_batch(job, paths, tmp_path / "out", engine=RayCluster())
