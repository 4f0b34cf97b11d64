"""The samples of `docs/samples` compute the heatmap of the class that they are given."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from support.helpers import quiet_session

from onnx_gradcam import attach

pytestmark = pytest.mark.engines


def node(samples: Path, _: Path) -> list[str]:
    """The command of the sample for Node.js."""
    program = shutil.which("node")
    folders = [Path(folder) for folder in os.environ.get("NODE_PATH", "").split(os.pathsep) if folder]
    if program is None or not any((folder / "onnxruntime-node").is_dir() for folder in folders):
        pytest.skip("Node.js or onnxruntime-node is not installed")
    return [program, str(samples / "node.js")]


def openvino(samples: Path, build: Path) -> list[str]:
    """The command of the compiled sample for OpenVINO."""
    engine = pytest.importorskip("openvino", reason="OpenVINO is not installed")
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        pytest.skip("there is no CMake or C++ compiler")
    cmake = Path(engine.__path__[0]) / "cmake"
    ran(
        ["cmake", "-S", str(samples), "-B", str(build), "-D", f"OpenVINO_DIR={cmake}", "-D", "CMAKE_BUILD_TYPE=Release"]
    )
    ran(["cmake", "--build", str(build)])
    return [str(build / "sample")]


def onnxruntime(samples: Path, build: Path) -> list[str]:
    """The command of the compiled sample for ONNX Runtime in C; no package of the index has its header."""
    header, library = os.environ.get("ORT_HEADER"), os.environ.get("ORT_LIBRARY")
    compiler = shutil.which("cc")
    if compiler is None or not header or not library:
        pytest.skip(
            "ORT_HEADER and ORT_LIBRARY do not name onnxruntime_c_api.h and libonnxruntime.so, or there is no cc"
        )
    build.mkdir()
    include, place = Path(header).parent, Path(library).parent
    command = [compiler, "-std=c11", "-Wall", "-Wextra", "-Werror", "-I", str(include)]
    out = str(build / "sample")
    ran([*command, str(samples / "onnxruntime.c"), "-o", out, library, f"-Wl,-rpath,{place}"])
    return [out]


SAMPLES = [node, openvino, onnxruntime]


def ran(command: list[str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.__name__)
def test_a_sample_writes_the_heatmap_of_its_class(sample, tmp_path, repository):
    command = sample(repository / "docs" / "samples", tmp_path / "build")
    explained = attach(repository / "models" / "shapes.onnx", method="gradient", engine=sample.__name__)
    onnx.save(explained.to_proto(), tmp_path / "e.onnx")
    image = np.random.default_rng(0).random((1, 3, 96, 96), np.float32)
    image.tofile(tmp_path / "input.bin")
    session = quiet_session(explained.to_proto())
    maps = []
    for target in (1, 3):
        done = ran([*command, *map(str, (tmp_path / "e.onnx", tmp_path / "input.bin", target, tmp_path / "map.bin"))])
        assert done.stdout == f"class {target}, heatmap [1,96,96]\n"
        maps.append(np.fromfile(tmp_path / "map.bin", np.float32).reshape(1, 96, 96))
        feeds = {explained.metadata.image_input: image, "target_class": np.array([target])}
        (expected,) = session.run(["heatmap"], feeds)
        np.testing.assert_allclose(maps[-1], expected, rtol=0, atol=1e-5)
    assert np.abs(maps[0] - maps[1]).max() > 0.1


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.__name__)
def test_a_sample_says_what_is_wrong(sample, tmp_path, repository):
    command = sample(repository / "docs" / "samples", tmp_path / "build")
    for arguments, code in ((["e.onnx"], 2), (["missing.onnx", "i", "0", "o"], 1)):
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout) == (code, "")
        assert done.stderr.startswith("usage: " if code == 2 else "error: ")
