"""Killed at ten random moments and continued: every image exactly once, nothing done twice."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from support.batch_runs import PREPROCESS, classifier, draw, listed

import onnx_gradcam

COUNT = 1000
SHARD = 20

SCRIPT = """
import json, sys
from pathlib import Path
from onnx_gradcam.batching.job import Job
from onnx_gradcam.batching.running import run_batch

model, paths, out, shard = sys.argv[1:]
begun = []
summary = run_batch(
    Job(model=Path(model), format="npz", shard_size=int(shard), threads=2, choices={"preprocess": %r}),
    Path(paths).read_text("utf-8").splitlines(), Path(out), resume=True,
    progress=lambda count: begun or begun.append(print("begun", flush=True)),
)
print(json.dumps([summary.images, summary.failures]))
"""


class Killed:
    """Runs that are killed, and what they left."""

    def __init__(self, folder: Path) -> None:
        self.out = folder / "out"
        model = classifier(folder / "model.onnx")
        files = draw(folder / "images", 50)
        # Some are missing: failures are kept as well as explanations are.
        self.paths = ["/nowhere.png" if i % 100 == 7 else files[i % 50] for i in range(COUNT)]
        (folder / "paths.txt").write_text("\n".join(self.paths), "utf-8")
        self.command = [sys.executable, "-c", SCRIPT % PREPROCESS, str(model), str(folder / "paths.txt")]
        self.command += [str(self.out), str(SHARD)]
        self.environment = {"PYTHONPATH": str(Path(onnx_gradcam.__file__).parents[1])}

    def shards(self) -> dict[Path, tuple[int, int]]:
        """The files of finished shards, and when they were made."""
        return {f: (f.stat().st_ino, f.stat().st_mtime_ns) for f in self.out.glob("part-*/*")}

    def kill_after(self, seconds: float, *, begun: bool) -> bool:
        """Start, wait, kill; whether it was still running."""
        with subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True, env=self.environment) as process:
            if begun:
                process.stdout.readline()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
            running = process.poll() is None
            process.kill()
        return running and process.returncode == -signal.SIGKILL

    def finish(self) -> str:
        """Go on to the end; the last line."""
        done = subprocess.run(self.command, capture_output=True, text=True, check=False, env=self.environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[-1]


def test_ten_kills_lose_and_repeat_nothing(tmp_path):
    runs = Killed(tmp_path)
    chance = random.Random(time.time_ns())  # noqa: S311
    moments = [chance.uniform(0, 0.12) for _ in range(9)]
    killed = runs.kill_after(chance.uniform(0.2, 0.8), begun=False)  # once before anything has begun, perhaps
    progress = []
    for moment in moments:
        before = runs.shards()
        killed += runs.kill_after(moment, begun=True)
        after = runs.shards()
        assert {file: after.get(file) for file in before} == before
        progress.append(len({file.parent for file in after}))
        for shard in {file.parent for file in after}:
            assert {"_record.json", "index.jsonl"} <= {file.name for file in shard.iterdir()}, (moments, shard)
    assert killed == 10, (moments, progress)
    assert 0 < progress[-1] < COUNT // SHARD, (moments, progress)
    before = runs.shards()
    assert runs.finish() == f"[{COUNT}, {COUNT // 100}]"
    assert {file: runs.shards().get(file) for file in before} == before
    done, failed = listed(runs.out)
    assert failed == list(range(7, COUNT, 100))
    assert sorted(done + failed) == list(range(COUNT))
    assert not (runs.out / ".drafts").exists()
