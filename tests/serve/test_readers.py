"""Google's and KServe's own client code reads the answers of the verbs."""

from __future__ import annotations

import asyncio
import base64
import importlib
import importlib.util
import json
import sys
import types

import numpy as np
import pytest

pytestmark = pytest.mark.kserve


def document(photo: bytes, **parameters) -> dict:
    return {"instances": [{"image": {"b64": base64.b64encode(photo).decode()}}], "parameters": parameters}


@pytest.fixture
def attribution(monkeypatch):
    """`explainable_ai_sdk.common.attribution`; the package itself imports TensorFlow, this module does not."""
    found = importlib.util.find_spec("explainable_ai_sdk")
    if found is None:
        pytest.skip("explainable_ai_sdk is not installed")
    bare = types.ModuleType("explainable_ai_sdk")
    bare.__path__ = list(found.submodule_search_locations)
    monkeypatch.setitem(sys.modules, "explainable_ai_sdk", bare)
    return importlib.import_module("explainable_ai_sdk.common.attribution")


def test_google_reads_the_explanation(server, explainer, photo, attribution):
    status, answer = server.request(f"/v1/models/{server.name}:explain", json.dumps(document(photo)).encode())
    assert status == 200
    attributions = json.loads(answer)["explanations"][0]["attributions"]
    read = attribution.LabelIndexToAttribution.from_vertex_response(attributions)
    expected = explainer(photo).maps[0].target
    one = read[expected.index]
    assert (one.output_name, one.label_name) == ("scores", expected.label)
    assert one.example_score == pytest.approx(expected.score, rel=1e-5)
    assert base64.b64decode(one.post_processed_attributions["image"]["b64_jpeg"]).startswith(b"\xff\xd8\xff")


def test_google_refuses_another_key(server, photo, attribution):
    _, answer = server.request(f"/v1/models/{server.name}:explain", json.dumps(document(photo)).encode())
    attributions = json.loads(answer)["explanations"][0]["attributions"]
    with pytest.raises(KeyError):
        attribution.LabelIndexToAttribution.from_vertex_response([{**attributions[0], "heatmap": 1}])


def test_kserve_reads_all_verbs(server, explainer, photo, rows):
    kserve = pytest.importorskip("kserve", reason="kserve is not installed")
    base = f"http://127.0.0.1:{server.http}"

    async def ask() -> tuple:
        v1 = kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v1"))
        v2 = kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v2"))
        tensor = kserve.InferInput("image", [1, 3, 96, 96], "FP32")
        tensor.set_data_from_numpy(rows[:1], binary_data=True)
        request = kserve.InferRequest(server.name, [tensor], request_id="seven")
        answers = (
            await v1.explain(base, server.name, document(photo, target="star")),
            await v1.infer(base, document(photo), model_name=server.name),
            await v2.infer(base, request, model_name=server.name),
            await v2.is_server_ready(base),
        )
        await v1.close()
        await v2.close()
        return answers

    explained, predicted, inferred, ready = asyncio.run(ask())
    assert explained["explanations"][0]["attributions"][0]["outputDisplayName"] == "star"
    assert predicted["predictions"][0]["label"] == explainer(photo).maps[0].target.label
    outputs = {one.name: one.as_numpy() for one in inferred.outputs}
    np.testing.assert_allclose(outputs["heatmap"], explainer.run(rows[:1], [-1])["heatmap"], atol=1e-5)
    assert ready
