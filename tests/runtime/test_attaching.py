"""The run that compares an explained model with the original: its sizes, what it warns of, what it refuses."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from support.graphs import graph

from onnx_gradcam import Explainer, Options, attach
from onnx_gradcam.editor.engines import ENGINES
from onnx_gradcam.errors import ModelError, TargetError
from onnx_gradcam.runtime import attaching
from onnx_gradcam.runtime.session import Session

BODY = "c = Conv<kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]>(x, K) a = Relu(c)"
POOLED = f"{BODY} p = GlobalAveragePool(a) f = Flatten(p) y = Gemm(f, W)"
# Height and width are declared free, but the classifier takes 6 maps of 10 x 8.
FIXED_GRID = f"{BODY} f = Flatten(a) y = MatMul(f, W)"


def free(body: str = FIXED_GRID, rows: int = 6 * 10 * 8) -> onnx.ModelProto:
    return graph(body, inputs="float[N,3,H,W] x", K=(6, 3, 3, 3), W=(rows, 4))


def test_the_size_is_that_of_the_preprocessing():
    explained = attach(free(), preprocess={"size": [20, 16]}, check=True)
    assert explained.difference is not None
    assert explained.warnings == []


def test_a_size_that_is_given_and_does_not_fit_is_refused():
    with pytest.raises(ModelError, match="the original does not run"):
        attach(free(), preprocess={"size": [24, 16]}, check=True)


def test_without_a_size_the_check_is_left_out_and_that_is_said():
    explained = attach(free(), check=True)
    assert explained.difference is None
    (warning,) = explained.warnings
    assert warning.startswith("not checked against the original, which does not run on images of 193x191 or 224x224 (")
    assert warning.endswith('); give their size with --preprocess, as "size": [height, width]')


def test_a_model_of_any_size_is_checked_at_an_odd_one(monkeypatch):
    sizes = []
    run = Session.run
    monkeypatch.setattr(Session, "run", lambda self, feeds: sizes.append(feeds["x"].shape) or run(self, feeds))
    assert attach(free(POOLED, 6), check=True).difference is not None
    assert sizes == [(3, 3, 193, 191)] * 2


def test_models_that_only_optimizations_tell_apart_agree(monkeypatch):
    """ONNX Runtime fuses other nodes beside more outputs: a rounding in 8 bits may then fall elsewhere."""
    build = attaching.Session

    class Fused(build):
        """An explained model whose fused nodes round differently."""

        def __init__(self, model, *, optimized=True, **kwargs):
            super().__init__(model, optimized=optimized, **kwargs)
            self.apart = optimized and any(o.name == "heatmap" for o in self.outputs)

        def run(self, feeds, outputs=None):
            results = super().run(feeds, outputs)
            return results | {"y": results["y"] * np.float32(1.03)} if self.apart else results

    monkeypatch.setattr(attaching, "Session", Fused)
    explained = attach(free(POOLED, 6), check=True)
    assert explained.difference == 0
    (warning,) = explained.warnings
    assert "optimizations change the model's own outputs by up to 3.0e-02" in warning
    assert "without optimizations, both models agree" in warning


def test_models_that_differ_without_optimizations_too_are_refused(monkeypatch):
    build = attaching.Session

    class Different(build):
        """An explained model that computes something else."""

        def run(self, feeds, outputs=None):
            results = super().run(feeds, outputs)
            return results | {"y": results["y"] + 1} if "heatmap" in results else results

    monkeypatch.setattr(attaching, "Session", Different)
    with pytest.raises(ModelError, match=r"output 'y' differs .* nothing was written"):
        attach(free(POOLED, 6), check=True)


def test_a_model_that_gives_nan_is_attached_with_a_warning():
    source = free(POOLED, 6)
    (weight,) = (t for t in source.graph.initializer if t.name == "W")
    weight.CopyFrom(onnx.numpy_helper.from_array(np.full((6, 4), np.nan, np.float32), "W"))
    assert attach(source, check=True).warnings == ["the heatmap of a random input is NaN; check the model's weights"]
    with pytest.raises(ModelError, match="gives NaN"):
        Explainer(source, preprocess={"size": [20, 16]})(np.zeros((20, 16, 3), np.uint8))


def test_a_model_whose_maps_are_all_zero_is_attached_with_a_warning():
    source = free(POOLED, 6)
    (weight,) = (t for t in source.graph.initializer if t.name == "W")
    weight.CopyFrom(onnx.numpy_helper.from_array(np.zeros((6, 4), np.float32), "W"))
    (sentence,) = attach(source, check=True).warnings
    assert sentence.startswith("the raw map of a random input is zero everywhere")
    explanation = Explainer(source, preprocess={"size": [20, 16]})(np.zeros((20, 16, 3), np.uint8))
    assert explanation.warnings == [
        "the heatmap of 'class 0' is zero everywhere: nothing in the image speaks for this class"
    ]
    assert not attach(free(POOLED, 6), check=True).warnings


def test_preprocessing_given_to_attach_need_not_be_repeated():
    image = np.random.default_rng(0).integers(0, 256, (20, 16, 3), np.uint8)
    explained = attach(free(), preprocess={"size": [20, 16], "scale": 0.01})
    proto = explained.to_proto()
    expected = Explainer(free(), preprocess={"size": [20, 16], "scale": 0.01})(image)
    for model in (proto, proto.SerializeToString()):
        np.testing.assert_array_equal(Explainer(model)(image).cam, expected.cam)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_model_is_attached_for_an_engine_and_choices_win(engine):
    suited = ENGINES[engine]
    model = free(POOLED, 6)
    fixed = {"target": 1} if suited.class_input == "none" else {}
    metadata = attach(model, engine=engine, **fixed).metadata
    assert (metadata.profile, bool(metadata.class_input)) == (suited.profile, suited.class_input != "none")
    assert attach(model, Options(profile="cuda"), engine=engine, profile="cpu").metadata.profile == "cpu"


def test_an_unknown_engine_is_refused_with_near_matches():
    with pytest.raises(TargetError, match="there is no engine 'nod'; did you mean 'node'"):
        attach(free(POOLED, 6), engine="nod")
