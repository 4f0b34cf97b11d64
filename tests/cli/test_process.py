"""What only a process of its own can show: start-up, signals, pipes, bugs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HEAVY = ("numpy", "onnx", "onnx_ir", "onnxruntime", "cv2", "rich")
FULL = Path("/dev/full")
COMMANDS = (
    *("explain", "attach", "inspect", "studio", "compare", "batch", "evaluate", "report", "drift"),
    *("serve", "triton", "kserve", "web", "verify", "methods", "ops", "doctor", "export"),
)


def python(code: str, *arguments: str, **options) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k != "ONNX_GRADCAM_DEBUG"} | options.pop("env", {})
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        **options,
    )


def main(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "onnx_gradcam", *arguments], check=False, capture_output=True, text=True, **options
    )


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_imports_nothing_heavy(command):
    code = """
import sys
from onnx_gradcam.cli import main
sys.argv = ["onnx-gradcam", *sys.argv[1:]]
try:
    main()
finally:
    print("LOADED", *sys.modules, file=sys.stderr)
"""
    result = python(code, *filter(None, [command]), "-h")
    assert result.returncode == 0
    assert "Usage: onnx-gradcam" in result.stdout
    assert "Example" in result.stdout
    loaded = result.stderr.split("LOADED ")[1].split()
    # The help of a command lists names from registries, which takes the graph code, but nothing that runs a model.
    heavy = ("onnxruntime", "cv2") if command else HEAVY
    assert [name for name in heavy if name in loaded] == []


def test_help_lists_every_command():
    lines = main("--help").stdout.splitlines()
    listed = [line.split()[0] for line in lines[lines.index("Commands:") + 1 :] if line.strip()]
    assert listed == list(COMMANDS)
    assert not any("..." in line for line in lines[lines.index("Commands:") :])


def test_refusal_in_a_process(tmp_path):
    result = main("inspect", str(tmp_path / "missing.onnx"))
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"error: there is no file {str(tmp_path / 'missing.onnx')!r}; check the path\n"


def test_debug_shows_where_a_refusal_arose(tmp_path):
    result = main("--debug", "inspect", str(tmp_path / "missing.onnx"))
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert "ModelError" in result.stderr


BROKEN = """
import sys
import onnx_gradcam.autodiff.coverage as module
def coverage():
    raise {what}
module.coverage = coverage
from onnx_gradcam.cli import main
sys.argv = ["onnx-gradcam", "ops"]
main()
"""


def test_a_bug_is_one_sentence():
    result = python(BROKEN.format(what="ZeroDivisionError('of all things')"))
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: this should not have happened (ZeroDivisionError: of all things)")
    assert "report" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_bug_shows_its_traceback_on_request():
    result = python(BROKEN.format(what="ZeroDivisionError('of all things')"), env={"ONNX_GRADCAM_DEBUG": "1"})
    assert result.returncode == 1
    assert "Traceback" in result.stderr


def test_out_of_memory_is_said():
    result = python(BROKEN.format(what="MemoryError"))
    assert result.returncode == 1
    assert "not enough memory" in result.stderr


def test_interrupt_is_quiet():
    result = python(BROKEN.format(what="KeyboardInterrupt"))
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_real_interrupt_is_quiet():
    # A job in the background of a shell begins with this signal ignored.
    code = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n" + BROKEN.format(what="Slow()")
    code = code.replace(
        "def coverage",
        "import time\nclass Slow(Exception):\n    def __init__(self):\n"
        "        print('ready', flush=True)\n        time.sleep(60)\ndef coverage",
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, b"")


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
def test_a_closed_pipe_is_quiet():
    command = f"{sys.executable} -m onnx_gradcam ops --json | head -n 1; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], check=False, capture_output=True, text=True)
    assert result.stdout == "[\n"
    assert result.stderr == ""
    assert result.returncode in {0, 1}


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
@pytest.mark.parametrize("command", [["methods"], ["ops", "--json"], ["--version"]])
def test_a_full_disk_is_one_sentence(command):
    with FULL.open("w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "onnx_gradcam", *command],
            check=False,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert result.returncode == 1
    assert result.stderr.startswith("error: the system cannot read or write here ([Errno 28]")
    assert len(result.stderr.splitlines()) == 1


def test_plain_output_without_a_terminal():
    result = main("doctor")
    assert "\x1b" not in result.stdout + result.stderr
    assert result.stderr == ""
