"""ONNX files as a source of exports."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from support.graphs import graph, images, run

from onnx_gradcam import attach
from onnx_gradcam.errors import ExportError, InputError, ModelError, TargetError
from onnx_gradcam.exporters.finishing import finish_export
from onnx_gradcam.exporters.sources import export, read_onnx
from onnx_gradcam.metadata import Carried

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


@pytest.mark.parametrize("biases", ["apart", "merged", ""])
def test_what_an_earlier_export_recorded_of_biases_is_kept(path, biases):
    source = onnx.load(path)
    onnx.helper.set_model_props(source, Carried(biases=biases).to_props())
    onnx.save(source, path)
    assert export(path).carried.biases == biases


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


HEADS = {
    "detection": (
        """
        maps = Conv<pads=[1,1,1,1]>(x, w)
        active = Relu(maps)
        raw = Conv(active, k)
        flat = Reshape(raw, s)
        turned = Transpose<perm=[0,2,1]>(flat)
        y = Sigmoid(turned)
        b = Relu(turned)
        """,
        "float[N,64,4] y, float[N,64,4] b",
        {"w": (5, 3, 3, 3), "k": (4, 5, 1, 1), "s": [0, 4, 64]},
        {"task": "detection", "output": "y", "labels": list("abcd")},
        "active",
    ),
    "detection, whose output is clear": (
        """
        maps = Conv<pads=[1,1,1,1]>(x, w)
        active = Relu(maps)
        flat = Reshape(active, s)
        b = Transpose<perm=[0,2,1]>(flat)
        raw = Conv(active, k)
        rows = Reshape(raw, r)
        y = Transpose<perm=[0,2,1]>(rows)
        """,
        "float[N,64,4] b, float[N,64,3] y",
        {"w": (4, 3, 3, 3), "k": (3, 4, 1, 1), "s": [0, 4, 64], "r": [0, 3, 64]},
        {"task": "detection", "labels": list("abc")},
        "active",
    ),
    "segmentation": (
        """
        maps = Conv<pads=[1,1,1,1]>(x, w)
        active = Relu(maps)
        raw = Conv(active, k)
        y = ArgMax<axis=1, keepdims=0>(raw)
        """,
        "int64[N,8,8] y",
        {"w": (5, 3, 3, 3), "k": (4, 5, 1, 1)},
        {"task": "segmentation", "labels": list("abcd")},
        "active",
    ),
    "embedding": (BODY, "float[N,4] y", {"w": (5, 3, 3, 3), "d": (5, 4)}, {"task": "embedding"}, "active"),
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_model_of_another_task_is_exported(kind, tmp_path):
    body, outputs, constants, choices, layer = HEADS[kind]
    model = graph(body, outputs=outputs, **constants)
    onnx.save(model, tmp_path / "m.onnx")
    made = export(tmp_path / "m.onnx", tmp_path / "out.onnx", **choices)
    assert (made.task, made.outputs, made.target) == (choices["task"], ["y"], layer)
    x = images()
    before, after = run(model, x=x), run(onnx.load(tmp_path / "out.onnx"), x=x)
    assert list(after) == [*before, layer], "nothing that served to find the layer is left"
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert len(made.to_proto().graph.node) == len(model.graph.node)
    reference = {"reference": np.arange(4) + 1.0} if made.task == "embedding" else {}
    explained = attach(tmp_path / "out.onnx", **reference)
    metadata = explained.metadata
    assert (metadata.task, metadata.target_tensor, metadata.labels) == (made.task, layer, choices.get("labels"))


def test_one_of_two_images_is_named(tmp_path):
    body = BODY.replace("Conv<pads=[1,1,1,1]>(x, w)", "Conv<pads=[1,1,1,1]>(both, w)")
    model = graph(
        f"both = Concat<axis=1>(x, other) {body}",
        inputs="float[N,3,8,8] x, float[N,3,8,8] other",
        w=(5, 6, 3, 3),
        d=(5, 4),
    )
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(TargetError, match="name one with --input"):
        export(tmp_path / "m.onnx")
    made = export(tmp_path / "m.onnx", image="other")
    assert (made.image, made.target) == ("other", "active")
    assert attach(made.to_proto()).metadata.image_input == "other", "the choice is carried"
    assert attach(made.to_proto(), image="x").metadata.image_input == "x", "and can be made again"


def test_the_output_that_was_named_is_carried(tmp_path):
    body = BODY + "z = Gemm(f, e)"
    model = graph(body, outputs="float[N,4] y, float[N,3] z", w=(5, 3, 3, 3), d=(5, 4), e=(5, 3))
    onnx.save(model, tmp_path / "m.onnx")
    made = export(tmp_path / "m.onnx", output="z").to_proto()
    assert attach(made).metadata.scores_output == "z"
    assert attach(made, output="y").metadata.scores_output == "y"
    onnx.save(made, tmp_path / "again.onnx")
    assert export(tmp_path / "again.onnx").outputs == ["z"]
    unnamed = export(tmp_path / "m.onnx", task="regression", output="z").to_proto()
    assert (attach(unnamed).metadata.task, attach(unnamed, task="classification", output="y").metadata.task) == (
        "regression",
        "classification",
    )


def test_every_branch_of_an_ensemble_is_exposed(tmp_path):
    body = "a = Conv(x, A) ga = GlobalAveragePool(a) b = Conv(x, B) gb = GlobalAveragePool(b) "
    body += "j = Concat<axis=1>(ga, gb) f = Flatten(j) y = Gemm(f, d)"
    model = graph(body, A=(3, 3, 3, 3), B=(3, 3, 5, 5), d=(6, 4))
    onnx.save(model, tmp_path / "m.onnx")
    made = export(tmp_path / "m.onnx", tmp_path / "out.onnx")
    assert [o.name for o in made.to_proto().graph.output] == ["y", "a", "b"]
    assert attach(tmp_path / "out.onnx").metadata.layers == attach(model).metadata.layers == ["a", "b"]
    before, after = run(model, x=images()), run(made.to_proto(), x=images())
    assert np.array_equal(before["y"], after["y"])


def test_an_embedding_takes_no_class_names(path):
    with pytest.raises(InputError, match="class names do not apply to the task embedding"):
        export(path, task="embedding", labels=list("abcd"))


def test_what_no_task_explains_is_refused_by_name(path):
    with pytest.raises(TargetError, match="no task 'detect'; did you mean 'detection'"):
        export(path, task="detect")
    with pytest.raises(TargetError, match="which output holds the scores of the boxes cannot be told"):
        export(path, task="detection")
    with pytest.raises(TargetError, match="output 'z' holds no map"):
        export(path, task="segmentation", output="z")
