"""Rows of many threads run together, each gets its own, and neither failures nor waiting spread."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from onnx_gradcam.errors import ExplainError, ModelError, ServerError
from onnx_gradcam.runtime.explainer import Explainer
from onnx_gradcam.runtime.runners import Attached
from onnx_gradcam.serve.answering import Answerer
from onnx_gradcam.serve.limits import Limits
from onnx_gradcam.serve.query import Query, Tensor
from onnx_gradcam.serve.queueing import DEADLINE, BatchingExplainer


@pytest.fixture
def batches() -> list[int]:
    return []


@pytest.fixture
def batching(explained, batches):
    made = BatchingExplainer(explained, batch=4, on_batch=batches.append, threads=1)
    yield made
    made.close()


class Held:
    """Every run of the model waits for an event, and says that it has begun."""

    def __init__(self, monkeypatch) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        run = Attached.run

        def slow(runner, *arguments, **tables):
            self.begun.set()
            assert self.go.wait(20)
            return run(runner, *arguments, **tables)

        monkeypatch.setattr(Attached, "run", slow)


def waiting(batching: BatchingExplainer, count: int) -> None:
    for _ in range(2000):
        if batching.runner.waiting >= count:
            return
        time.sleep(0.005)
    raise AssertionError("they do not wait")


def test_rows_that_wait_run_together_and_each_gets_its_own(batching, batches, explainer, rows, monkeypatch):
    expected = explainer.run(rows, [0, 1, 2, 3, -1])
    held = Held(monkeypatch)
    with ThreadPoolExecutor(5) as pool:
        asked = [pool.submit(batching.run, rows[:1], [0])]
        assert held.begun.wait(20)
        asked += [pool.submit(batching.run, rows[i : i + 1], [c]) for i, c in ((1, 1), (2, 2), (3, 3), (4, -1))]
        waiting(batching, 4)
        held.go.set()
        for i, one in enumerate(asked):
            for name, values in one.result(20).items():
                np.testing.assert_allclose(values, expected[name][i : i + 1], atol=1e-5, rtol=1e-5)
    assert batches == [1, 4]


def test_a_request_larger_than_a_batch_runs_in_parts(batching, batches, explainer, rows):
    many = np.concatenate([rows, rows])
    got = batching.run(many, [1] * 10)
    assert batches == [4, 4, 2]
    np.testing.assert_allclose(got["heatmap"], explainer.run(many, [1] * 10)["heatmap"], atol=1e-5)


def test_large_rows_run_one_by_one(explained, batches, rows):
    made = BatchingExplainer(explained, batch=4, pixels=2 * 96 * 96, on_batch=batches.append, threads=1)
    made.run(rows, [0] * 5)
    made.close()
    assert batches == [2, 2, 1]


def test_a_failure_is_that_of_one_request(batching, explainer, rows, monkeypatch):
    """Class 99 makes ONNX Runtime refuse the whole batch."""
    held = Held(monkeypatch)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(batching.run, rows[:1], [0])
        assert held.begun.wait(20)
        asked = [pool.submit(batching.run, rows[i : i + 1], [c]) for i, c in enumerate([1, 99, 2])]
        waiting(batching, 3)
        held.go.set()
        first.result(20)
        np.testing.assert_allclose(asked[0].result(20)["heatmap"], explainer.run(rows[:1], [1])["heatmap"], atol=1e-5)
        with pytest.raises(ModelError):
            asked[1].result(20)
        np.testing.assert_allclose(asked[2].result(20)["heatmap"], explainer.run(rows[2:3], [2])["heatmap"], atol=1e-5)


def test_time_that_is_over_is_said_and_the_rows_do_not_run(batching, batches, rows, monkeypatch):
    held = Held(monkeypatch)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(batching.run, rows[:1], [0])
        assert held.begun.wait(20)

        def late() -> object:
            DEADLINE.set(time.monotonic() + 0.1)
            return batching.run(rows[1:2], [0])

        start = time.monotonic()
        with pytest.raises(ServerError, match="took too long") as caught:
            pool.submit(late).result(20)
        assert caught.value.status == 504
        assert time.monotonic() - start < 2
        held.go.set()
        first.result(20)
    batching.run(rows[2:3], [0])
    assert batches == [1, 1], "what nobody waits for ran"


@pytest.fixture
def answerer(batching) -> Answerer:
    return Answerer(batching, Limits(rows=8, batch=4))


def image(values: np.ndarray) -> Tensor:
    return Tensor("image", "FP32", list(values.shape), values.astype("<f4").tobytes())


def test_tensors_with_classes_of_all_kinds(answerer, explainer, rows):
    for parameters, classes in (
        ({}, [-1, -1]),
        ({"target": 3}, [3, 3]),
        ({"target": explainer.labels[2]}, [2, 2]),
        ({"target": [1, explainer.labels[0]]}, [1, 0]),
        ({"target": '[4, "circle"]'}, [4, explainer.labels.index("circle")]),
    ):
        results, kind, count = answerer.answer(Query([image(rows[:2])], parameters, ["heatmap"]))
        assert (kind, count, [r.name for r in results]) == ("tensor", 2, ["heatmap"])
        np.testing.assert_allclose(results[0].data, explainer.run(rows[:2], classes)["heatmap"], atol=1e-5)


def test_a_method_that_runs_the_model_many_times_is_served_alike(repository, rows, photo):
    model = repository / "models" / "shapes.onnx"
    batching = BatchingExplainer(model, batch=4, method="ablationcam", threads=1)
    expected = Explainer(model, method="ablationcam", threads=1)
    answerer = Answerer(batching, Limits())
    names = [result.name for result in batching.results]
    assert sorted(names) == ["cam", "heatmap", "heatmap_class", "logits"]
    results, _, _ = answerer.answer(Query([image(rows[:2])], {"target": 1}, names))
    for result in results:
        np.testing.assert_allclose(result.data, expected.run(rows[:2], [1, 1])[result.name], atol=1e-5, rtol=1e-5)
    with pytest.raises(ServerError, match="unknown output 'probe_maps'"):
        answerer.answer(Query([image(rows[:2])], {}, ["probe_maps"]))
    heatmap = answerer.answer(Query([Tensor("image_bytes", "BYTES", [1], [photo])], {"target": 1}, ["heatmap"]))[0][0]
    np.testing.assert_allclose(heatmap.data[0], expected(photo, 1).heatmap, atol=1e-5)
    batching.close()


@pytest.mark.parametrize(
    ("limits", "status", "says"),
    [
        (Limits(rows=1), 413, "exceed the limit of 1 heatmaps"),
        (Limits(input_pixels=1000), 413, "exceeds the limit of 1000"),
    ],
)
def test_limits_on_tensors(batching, rows, limits, status, says):
    with pytest.raises(ServerError, match=says) as caught:
        Answerer(batching, limits).answer(Query([image(rows[:2])]))
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        (Limits(image_bytes=100), "exceeds the limit of 100"),
        (Limits(image_pixels=100), "exceeds the limit of 100 pixels"),
        (Limits(input_pixels=2 * 96 * 96), "27648 pixels in 3 rows, which exceeds the limit of 18432"),
        (Limits(rows=2), "exceed the limit of 2 heatmaps"),
    ],
)
def test_limits_on_images(batching, photo, limits, says):
    with pytest.raises(ExplainError, match=says):
        Answerer(batching, limits).answer(Query([Tensor("image_bytes", "BYTES", [1], [photo])], {"target": "top3"}))


@pytest.mark.parametrize(
    "settings", [{"rows": 0}, {"rows": -1}, {"rows": 1.5}, {"rows": True}, {"seconds": "1"}, {"row": 1}]
)
def test_limits_that_are_none(settings):
    with pytest.raises(ServerError, match="limit"):
        Limits.from_settings(settings)
