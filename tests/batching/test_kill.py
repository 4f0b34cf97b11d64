"""Killed at ten random moments, or interrupted, and continued: every image exactly once, nothing done twice."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.batch_runs import PREPROCESS, classifier, draw, listed
from typer.testing import CliRunner

import onnx_gradcam
from onnx_gradcam.cli import app

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


# A job in the background of a shell begins with this signal ignored.
COMMAND = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from onnx_gradcam.cli import main; main()"
)


def interrupted(command: list[str], ready: Callable[[], bool]) -> tuple[int, str, float]:
    """The exit code and stderr of a command that gets Ctrl-C as soon as it is `ready`, and how long it took to end."""
    environment = {**os.environ, "PYTHONPATH": str(Path(onnx_gradcam.__file__).parents[1])}
    command = [sys.executable, "-c", COMMAND, *command]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        while not ready():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        begin = time.monotonic()
        try:
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
        return process.returncode, errors, time.monotonic() - begin


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_an_interrupt_ends_a_run_and_resume_goes_on(tmp_path):
    model = classifier(tmp_path / "model.onnx")
    draw(tmp_path / "images", 600)
    out = tmp_path / "out"
    command = ["batch", str(model), str(tmp_path / "images"), "-o", str(out), "--preprocess", json.dumps(PREPROCESS)]
    command += ["--format", "npz", "--shard-size", "10"]
    code, errors, _ = interrupted(command, lambda: any(out.glob("part-*")))
    assert (code, errors) == (130, "")
    before = {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in out.glob("part-*/*")}
    shards = {file.parent for file in before}
    assert 0 < len(shards) < 60
    assert all((shard / "_record.json").is_file() for shard in shards)
    done = CliRunner().invoke(app, [*command, "--resume"])
    assert done.exit_code == 0, done.output
    assert f"600 images explained, {10 * len(shards)} of them by earlier runs" in done.stdout
    assert {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in before} == before
    assert listed(out) == (list(range(600)), [])


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_an_interrupt_does_not_wait_for_the_images_in_progress(tmp_path):
    """RISE runs the model 4000 times for each image."""
    model = classifier(tmp_path / "model.onnx", size=224)
    draw(tmp_path / "images", 16)
    out = tmp_path / "out"
    command = ["batch", str(model), str(tmp_path / "images"), "-o", str(out), "--preprocess", json.dumps(PREPROCESS)]
    begin = time.monotonic()
    ready = lambda: any((out / ".drafts").glob("*")) and time.monotonic() - begin > 4  # noqa: E731
    code, errors, seconds = interrupted([*command, "--method", "rise", "--threads", "1"], ready)
    assert (code, errors) == (130, "")
    assert seconds < 10
    assert not list(out.glob("part-*"))
