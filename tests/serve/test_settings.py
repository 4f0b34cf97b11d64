"""Settings of a server refuse every wrong choice as Python does, and models of a folder have their own."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from support.graphs import graph
from support.wrong_choices import WRONG

pytest.importorskip("prometheus_client", reason="onnx-gradcam[serve] is not installed")

from onnx_gradcam import Explainer
from onnx_gradcam.errors import ExplainError, InputError, ServerError
from onnx_gradcam.serve.hosting import read_sources
from onnx_gradcam.serve.limits import Limits
from onnx_gradcam.serve.service import Service

pytestmark = pytest.mark.serve


def message(model: Path, settings: dict) -> str:
    with pytest.raises(ExplainError) as refused:
        Service(lambda: read_sources(model, settings=settings))
    return str(refused.value)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_word_is_refused_as_python_does(repository, name):
    choices, expected = WRONG[name]
    model = repository / "models" / "shapes.onnx"
    with pytest.raises(ExplainError) as python:
        Explainer(model, **choices)
    got = message(model, choices)
    assert expected in got
    assert got == str(python.value)


@pytest.mark.parametrize(
    ("explained_already", "settings", "says"),
    [
        (False, {"pixels": 3}, "there is no option 'pixels'"),
        (False, {"labels": list("abcdefg")}, "there are 7 class names for 6 classes; the first, often 'background'"),
        (True, {"labels": list("abcdefg")}, "there are 7 class names for 6 classes; the first, often 'background'"),
        (True, {"layer": "x"}, "the model is explained already"),
    ],
)
def test_what_settings_refuse(repository, explained, explained_already, settings, says):
    assert says in message(explained if explained_already else repository / "models" / "shapes.onnx", settings)


@pytest.fixture
def folder(repository, explained, tmp_path) -> Path:
    """Three models: a file, a folder, and one of two versions."""
    shutil.copy(repository / "models" / "shapes.onnx", tmp_path / "plain.onnx")
    for place in ("alone", "several/1", "several/10"):
        (tmp_path / place).mkdir(parents=True)
        shutil.copy(explained, tmp_path / place / "model.onnx")
    (tmp_path / "step" / "1").mkdir(parents=True)  # of Triton's Python backend
    return tmp_path


def test_models_of_a_folder_have_names_versions_and_settings_of_their_own(folder):
    (folder / "names.txt").write_text("a\nb\nc\nd\ne\nf\n", "utf-8")
    (folder / "models.toml").write_text(
        '[plain]\nmethod = "hirescam"\nlabels = "names.txt"\n[plain.limits]\nrows = 3\n', "utf-8"
    )
    sources = read_sources(folder, limits=Limits(rows=7, batch=2), settings={"threads": 1})
    assert [(s.name, s.version) for s in sources] == [
        ("alone", ""),
        ("plain", ""),
        ("several", "1"),
        ("several", "10"),
    ]
    plain = sources[1]
    assert plain.settings == {"threads": 1, "method": "hirescam", "labels": folder / "names.txt"}
    assert (plain.limits.rows, plain.limits.batch, sources[0].limits.rows) == (3, 2, 7)
    service = Service(lambda: sources)
    assert service.find("plain").explainer.metadata.method == "hirescam"
    assert service.find("plain").explainer.labels == list("abcdef")
    assert service.find("several").version == "10"
    assert service.find("several", "1").version == "1"
    assert service.limits.rows == 7
    for name, version in (("other", None), ("several", "2"), ("plain", "1"), (None, None)):
        with pytest.raises(ServerError) as refused:
            service.find(name, version)
        assert refused.value.status == 404
    service.close()


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ("[plian]\n", "has settings of 'plian', which is not in the folder; did you mean 'plain'?"),
        ("threads = 1\n", "'threads' in .* is not in the table of a model"),
        ("[plain\n", "models.toml is not TOML"),
        ("[plain]\nlimits = 3\n", r"the limits of 'plain' are not a table; write \[plain.limits\]"),
        ("[plain.limits]\nrow = 3\n", "unknown limit 'row'; did you mean 'rows'?"),
        ("[plain.limits]\nrows = 0\n", "the limit 'rows' is '0'; choose a whole number above 0"),
        ('[plain]\nmethd = "x"\n', "there is no option 'methd'; did you mean 'method'"),
    ],
)
def test_settings_files_that_are_wrong(folder, toml, says):
    (folder / "models.toml").write_text(toml, "utf-8")
    with pytest.raises(ExplainError, match=says):
        read_sources(folder)


def test_folders_that_are_wrong(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ExplainError, match="there is no model in"):
        read_sources(tmp_path / "empty")
    with pytest.raises(ExplainError, match="leave --name out"):
        read_sources(folder, name="one")
    shutil.copy(folder / "plain.onnx", folder / "alone.onnx")
    with pytest.raises(ExplainError, match=r"has both alone\.onnx and alone/; remove one of them"):
        read_sources(folder)


def test_a_reload_loads_what_changed_and_a_failed_one_changes_nothing(folder):
    service = Service(lambda: read_sources(folder, settings={"threads": 1}))
    kept, changed = service.find("alone"), service.find("plain")
    (folder / "models.toml").write_text('[plain]\nmethod = "hirescam"\n', "utf-8")
    shutil.rmtree(folder / "several" / "10")
    shutil.copy(folder / "plain.onnx", folder / "new.onnx")
    service.reload()
    assert service.find("alone") is kept
    assert service.find("plain") is not changed
    assert service.find("plain").explainer.metadata.method == "hirescam"
    assert service.find("several").version == "1"
    assert service.find("new").name == "new"
    (folder / "new.onnx").write_bytes(b"no model")
    before = service.models
    service.reload()
    assert service.models == before
    assert "the last reload failed" in service.problem
    (folder / "new.onnx").unlink()
    service.reload()
    assert service.problem == ""
    service.close()


def test_one_model_with_several_methods_is_one_file_under_several_names(repository, tmp_path):
    """Links to one file, with a method each in the settings; requests choose by name."""
    original = repository / "models" / "shapes.onnx"
    for name in ("gradcam", "layercam"):
        (tmp_path / f"{name}.onnx").symlink_to(original)
    (tmp_path / "models.toml").write_text('[layercam]\nmethod = "layercam"\n', "utf-8")
    service = Service(lambda: read_sources(tmp_path, settings={"threads": 1}))
    photo = repository / "models" / "circle_and_star.png"
    for name in ("gradcam", "layercam"):
        cam = service.find(name).explainer(photo).maps[0].cam
        np.testing.assert_allclose(cam, Explainer(original, method=name, threads=1)(photo).maps[0].cam, rtol=1e-5)
    service.close()


@pytest.fixture
def with_table() -> onnx.ModelProto:
    return graph(
        "c = Conv(x, K) a = Relu(c) p = GlobalAveragePool(a) f = Flatten(p) g = Gemm(table, G) m = Mul(f, g) "
        "n = Mul(m, gain) y = Gemm(n, W)",
        inputs="float[N,3,12,12] x, float[N,3] table, float gain",
        K=(5, 3, 3, 3), G=(3, 5), W=(5, 4),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("feeds", "says"),
    [
        ({"gian": 1}, "no other input 'gian'.*'gain'"),
        ({"table": [[1, 2, 3], [4, 5, 6]]}, "'table' got 2 rows"),
        ({"table": [1, 2]}, "give 3 numbers"),
    ],
)
def test_values_of_a_server_that_do_not_fit_are_refused_when_it_starts(with_table, tmp_path, feeds, says):
    onnx.save(with_table, tmp_path / "m.onnx")
    settings = {"feeds": feeds, "preprocess": {"scale": 1 / 64}}
    with pytest.raises(InputError, match=says):
        Service(lambda: read_sources(tmp_path / "m.onnx", settings=settings))
    (tmp_path / "models.toml").write_text("m.feeds = 3\n", "utf-8")
    with pytest.raises(InputError, match=r"write \[m.feeds\]"):
        read_sources(tmp_path)
