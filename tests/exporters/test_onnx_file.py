"""ONNX files as a source of exports."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from support.graphs import graph, images, run

from onnx_gradcam import attach
from onnx_gradcam.errors import ExportError, ModelError
from onnx_gradcam.exporters.finishing import finish_export
from onnx_gradcam.exporters.sources import read_onnx

BODY = """
    maps = Conv<pads=[1,1,1,1]>(x, w)
    active = Relu(maps)
    p = GlobalAveragePool(active)
    f = Flatten(p)
    y = Gemm(f, d)
"""


@pytest.fixture
def path(tmp_path):
    model = graph(BODY, w=(5, 3, 3, 3), d=(5, 4))
    model.producer_name, model.producer_version = "pytorch", "2.13"
    onnx.save(model, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_a_file_is_read_with_what_it_says_of_itself(path):
    read = read_onnx(path)
    assert (read.framework, read.version, dict(read.layers)) == ("onnx", "pytorch 2.13", {})


def test_exported_twice_is_exported_once(path, tmp_path):
    first = finish_export(read_onnx(path), "maps", labels=list("abcd"), preprocessing={"scale": 0.5})
    first.save(tmp_path / "one.onnx")
    second = finish_export(read_onnx(tmp_path / "one.onnx"), "maps")
    assert second.carried == first.carried
    x = images()
    one, two = run(first.to_proto(), x=x), run(second.to_proto(), x=x)
    assert list(one) == list(two) == ["y", "maps"]
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_an_explained_model_is_refused(path, tmp_path):
    attach(path).save(tmp_path / "e.onnx")
    with pytest.raises(ExportError, match="explained already"):
        read_onnx(tmp_path / "e.onnx")


@pytest.mark.parametrize("content", [None, b"", b"\x08\x07junk", "half"])
def test_files_that_are_no_models(content, path, tmp_path):
    other = tmp_path / "other.onnx"
    if content is not None:
        other.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content == "half" else content)
    with pytest.raises(ModelError, match=r"other\.onnx"):
        read_onnx(other)


@pytest.mark.real
@pytest.mark.parametrize(
    "name",
    [
        "squeezenet1_1_imagenet_fp16.onnx",
        "mobilenet_v2_imagenet_qdq_int8.onnx",
        "emotion_cnn_fer2013_nhwc.onnx",
        "vit_pgd_2_3_16_cifar10.onnx",
        "resnet_4b_cifar10.onnx",
    ],
)
def test_real_models_compute_what_they_did(name, real_data):
    path = real_data / "models" / "onnx_native" / name
    made = finish_export(read_onnx(path))
    original = onnx.load(path)
    (info,) = [i for i in original.graph.input if i.name not in {t.name for t in original.graph.initializer}]
    sizes = [d.dim_value or 1 for d in info.type.tensor_type.shape.dim]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
    x = np.random.default_rng(0).random(sizes).astype(dtype)
    # Fused products of 8 bits saturate on processors without VNNI, and an exposed tensor is not fused over.
    optimized = "int8" not in name
    before, after = (run(m, optimized=optimized, **{info.name: x}) for m in (original, made.to_proto()))
    assert list(after) == [*before, made.target]
    for output, value in before.items():
        # Exposing a tensor keeps ONNX Runtime from fusing over it: half floats may round another way.
        bound = 1e-5 if value.dtype == np.float32 else np.finfo(np.float16).eps
        assert np.abs(after[output].astype(float) - value).max() <= bound * np.abs(value.astype(float)).max()
