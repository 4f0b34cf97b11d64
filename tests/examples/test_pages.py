"""The commands, code, output and images on the pages of `docs/examples` are correct."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

pytest.importorskip("h5py", reason="reading Keras files takes h5py")

from examples import pages

from onnx_gradcam.cli import app


@pytest.fixture
def furnished(tmp_path, monkeypatch):
    """A folder with the files that the pages need, as the working directory."""
    pages.furnish(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", pages.EXAMPLES, ids=lambda page: page.stem)
def test_page(page, furnished):
    pages.run_page(page)
    for stored in pages.shown(page):
        assert pages.image_gap(stored, furnished / stored.name) < 5, f"run tests/examples/pages.py: {stored.name}"


@pytest.mark.parametrize("page", pages.WRITTEN, ids=lambda page: page.stem)
def test_written_page(page, tmp_path, monkeypatch):
    if not pages.blocks(page):
        pytest.skip("it has no code")
    pages.furnish_reader(tmp_path)
    monkeypatch.chdir(tmp_path)
    pages.run_page(page)


@pytest.mark.parametrize(
    "block",
    [
        "```\nonnx-gradcam inspect nothing.onnx\n```\n",
        "```\nonnx-gradcam methods --presets\n```\n```text\npreset  title\n```\n",
        "```python\nprint('0.50 of it')\n```\n```text\n0.60 of it\n```\n",
        "```python\nprint('more')\nprint('than that')\n```\n```text\nmore\n```\n",
        "```python alone\nimport onnx_gradcam\n```\n",
        "```pyton\n1\n```\n",
        "```bash yours\nonnx-gradcam explain mine.onnx photo.jpg --no-such-option\n```\n",
        "```bash yours\nonnx-gradcam export caffe mine.caffe | less\n```\n",
        "```python yours\nmodel(\n```\n",
        "```json\n{size: 3}\n```\n",
    ],
)
def test_a_page_that_drifted_fails(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    page.write_text(block, "utf-8")
    with pytest.raises((AssertionError, SystemExit, SyntaxError, ValueError)):
        pages.run_page(page)


@pytest.mark.keras
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ["dogs_and_cats", "pooled_logits", "inceptionv3", "vgg16"])
def test_the_full_network_goes_the_same_way(name, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    pytest.importorskip("keras", reason="Keras makes the original files")
    monkeypatch.chdir(tmp_path)
    pages.make_originals(pages.ROOT / "docs" / "examples" / f"{name}.md")
    (made,) = tmp_path.glob("*.keras")
    image = pages.ROOT / "models" / "circle_and_star.png"
    for arguments in (
        ["export", "keras", made, "-o", "out.onnx", *(["--layer", "block5_conv3"] if name == "vgg16" else [])],
        ["inspect", "out.onnx"],
        ["explain", "out.onnx", image, "--target", "0", "--preprocess", "none", "-o", "out.png"],
    ):
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        assert result.exit_code == 0, result.output
    layer = {"vgg16": "block5_conv3", "inceptionv3": "mixed10"}.get(name)
    assert layer is None or f"layer '{layer}'" in result.stderr + result.stdout
