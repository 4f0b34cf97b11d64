"""The snippets of docs/serving.md run as they are printed, at the ports of a server."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from support.serve_ports import free_ports

pytestmark = pytest.mark.serve


@pytest.fixture(scope="module")
def snippets(repository) -> list[tuple[str, str]]:
    """Language and text of each block about a server that runs."""
    page = (repository / "docs" / "serving.md").read_text("utf-8")
    page = page[page.index("## The server") : page.index("## Triton")]
    blocks = re.findall(r"^```(bash|python|javascript)(?: yours)?\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return [(language, text) for language, text in blocks if "127.0.0.1" in text]


def run(server, repository, folder, command: list[str], text: str) -> str:
    text = text.replace("127.0.0.1:8080", f"127.0.0.1:{server.http}").replace(
        "127.0.0.1:8081", f"127.0.0.1:{server.grpc}"
    )
    text = text.replace("models/circle_and_star.png", str(repository / "models" / "circle_and_star.png"))
    done = subprocess.run(command, input=text, capture_output=True, text=True, cwd=folder, timeout=60, check=False)
    assert done.returncode == 0, (text, done.stderr)
    return done.stdout


def test_every_kind_of_client_is_shown(snippets):
    assert [language for language, _ in snippets].count("python") == 4
    assert {"requests", "urllib.request", "tritonclient.http", "tritonclient.grpc"} == {
        module
        for module in ("requests", "urllib.request", "tritonclient.http", "tritonclient.grpc")
        if any(re.search(rf"^(import|from) .*\b{re.escape(module)}\b", text, re.MULTILINE) for _, text in snippets)
    }


def test_curl(server, repository, snippets, tmp_path):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    shown = ""
    for text in (text for language, text in snippets if language == "bash"):
        shown += run(server, repository, tmp_path, ["bash", "-euo", "pipefail", "-s"], text)
    assert '"outputDisplayName":"star"' in shown
    assert cv2.imread(str(tmp_path / "overlay.png")).shape == (256, 256, 3)
    assert np.load(tmp_path / "heatmaps.npy").shape == (2, 96, 96)


@pytest.mark.parametrize("number", range(4))
def test_python(server, repository, snippets, tmp_path, number):
    text = [text for language, text in snippets if language == "python"][number]
    for module in ("requests", "tritonclient.http", "tritonclient.grpc"):
        if f"{module} " in text.replace("\n", " "):
            pytest.importorskip(module, reason=f"{module} is not installed")
    run(server, repository, tmp_path, [sys.executable, "-"], text)


def test_javascript(server, repository, snippets, tmp_path):
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is not installed")
    (text,) = (text for language, text in snippets if language == "javascript")
    assert run(server, repository, tmp_path, [node, "--input-type=module", "-"], text) == "star\n"


def test_the_health_check_of_the_container_passes_and_fails(server, repository):
    text = (repository / "docs" / "samples" / "Containerfile").read_text("utf-8")
    command = json.loads(re.search(r"^HEALTHCHECK .*\n +CMD (\[.*\])$", text, re.MULTILINE)[1])
    assert command[0] == "python"
    for port, passes in ((server.http, True), (free_ports(1)[0], False)):
        code = command[2].replace(":8080/", f":{port}/")
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=20, check=False)
        assert (done.returncode == 0) == passes
    assert re.search(r"^USER (?!0$|root$)", text, re.MULTILINE), "not as root"
    assert all("--no-index" in line for line in text.splitlines() if "pip install" in line), "without a network"
