"""The manifest for KServe: every field is one of the published schema, of the right type, and says what was asked."""

from __future__ import annotations

import pytest

from onnx_gradcam.errors import ServerError
from onnx_gradcam.serve.manifests import write_manifest

URI = "s3://models/repository"
SERVE = "serve /mnt/models --host 0.0.0.0"
CONTAINER = {"image": "registry.example:5000/onnx-gradcam:0.1.0", "gpus": 1}
BESIDE = {"image": "onnx-gradcam@sha256:" + "0" * 64, "repository": "gs://models/repository"}


def read(text: str) -> dict:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    return yaml.safe_load(text)


def check(value: object, kind: str, where: str, models: list) -> None:
    """That a value is of a type of the OpenAPI schema, which the generated classes carry; unknown fields are errors."""
    if kind.lower().startswith("dict"):  # `dict(str, str)` of older generators, `Dict[str, str]` of newer ones
        assert isinstance(value, dict), where
        inner = kind[len("dict(") : -1].split(", ")[1]
        for key, one in value.items():
            check(one, inner, f"{where}.{key}", models)
        return
    if kind.lower().startswith("list"):
        assert isinstance(value, list), where
        for number, one in enumerate(value):
            check(one, kind[len("list[") : -1], f"{where}[{number}]", models)
        return
    plain = {"str": str, "int": int, "bool": bool, "object": object}
    if kind in plain:
        assert isinstance(value, plain[kind]), f"{where} is no {kind}"
        assert kind != "int" or not isinstance(value, bool), where
        return
    schema = next(getattr(m, kind) for m in models if hasattr(m, kind))
    fields = {json_name: schema.openapi_types[name] for name, json_name in schema.attribute_map.items()}
    assert isinstance(value, dict), where
    for key, one in value.items():
        assert key in fields, f"{where}.{key} is not in the schema"
        check(one, fields[key], f"{where}.{key}", models)


@pytest.mark.kserve
@pytest.mark.parametrize(
    "options", [{}, {"namespace": "vision", "gpus": 2, "replicas": 3, "cpu": "500m"}, CONTAINER, BESIDE]
)
def test_every_field_is_of_the_published_schema(options):
    kserve = pytest.importorskip("kserve", reason="kserve is not installed")
    kubernetes = pytest.importorskip("kubernetes.client", reason="kubernetes is not installed")
    document = read(write_manifest("shapes", URI, **options))
    check(document, "V1beta1InferenceService", "manifest", [kserve, kserve.models, kubernetes])
    model = document["spec"]["predictor"].get("model")
    if model is None:
        return
    made = kserve.V1beta1ModelSpec(
        model_format=kserve.models.V1beta1ModelFormat(name=model["modelFormat"]["name"]),
        storage_uri=model["storageUri"],
        protocol_version=model["protocolVersion"],
    )
    assert made.storage_uri == options.get("repository", URI)


@pytest.mark.kserve
def test_the_check_finds_what_is_not_in_the_schema():
    kserve = pytest.importorskip("kserve", reason="kserve is not installed")
    kubernetes = pytest.importorskip("kubernetes.client", reason="kubernetes is not installed")
    for old, new in (("storageUri", "storageURI"), ("minReplicas: 1", 'minReplicas: "1"')):
        document = read(write_manifest("shapes", URI).replace(old, new))
        with pytest.raises(AssertionError, match=r"is not in the schema|is no int"):
            check(document, "V1beta1InferenceService", "manifest", [kserve, kserve.models, kubernetes])


def test_a_container_alone_takes_all_requests():
    predictor = read(write_manifest("shapes", URI, **CONTAINER))["spec"]["predictor"]
    (container,) = predictor["containers"]
    assert " ".join(container["args"]) == SERVE + " --name shapes --port 8080 --provider cuda"
    assert container["env"] == [{"name": "STORAGE_URI", "value": URI}]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_an_explainer_stands_beside_triton():
    spec = read(write_manifest("shapes", URI, **BESIDE))["spec"]
    assert set(spec) == {"predictor", "explainer"}
    assert spec["predictor"]["model"]["storageUri"] == BESIDE["repository"]
    (container,) = spec["explainer"]["containers"]
    assert " ".join(container["args"]) == SERVE


@pytest.mark.serve
def test_the_arguments_that_kserve_appends_are_taken(explained, start_server):
    """`onnx-gradcam serve MODELS --host ... --model_name NAME --predictor_host HOST --http_port 8080 --workers 2`."""
    appended = ["--model_name=renamed", "--predictor_host=shapes-predictor.default", "--workers=2", "--threads=1"]
    server = start_server(explained, *appended, name="", port_option="--http_port")
    assert server.get("/v1/models/renamed")[0] == 200


def test_it_says_what_was_asked():
    text = write_manifest("shapes", URI, namespace="vision", gpus=1, replicas=2, memory="4Gi")
    for line in (
        'kind: "InferenceService"',
        '  namespace: "vision"',
        "    minReplicas: 2",
        '      storageUri: "s3://models/repository"',
        '      protocolVersion: "v2"',
        '      runtime: "kserve-tritonserver"',
        '          memory: "4Gi"',
        '          nvidia.com/gpu: "1"',
        "      runAsNonRoot: true",
    ):
        assert line in text.splitlines(), line
    assert "nvidia.com/gpu" not in write_manifest("shapes", URI)


@pytest.mark.parametrize(
    ("arguments", "options", "says"),
    [
        (("Shapes", URI), {}, "name"),
        (("a" * 54, URI), {}, "name"),
        (("shapes\n", URI), {}, "name"),
        (("shapes", "/models"), {}, "uri"),
        (("shapes", 's3://x"\nkind: "Pod'), {}, "uri"),
        (("shapes", URI), {"namespace": "a b"}, "namespace"),
        (("shapes", URI), {"memory": "much"}, "memory"),
        (("shapes", URI), {"replicas": 0}, "replica"),
        (("shapes", URI), {"image": "a b"}, "image"),
        (("shapes", URI), {"image": 'x"\n'}, "image"),
        (("shapes", URI), {"image": "x", "repository": "/models"}, "repository"),
        (("shapes", URI), {"repository": URI}, "give --image"),
    ],
)
def test_what_kubernetes_would_not_take_is_refused(arguments, options, says):
    with pytest.raises(ServerError, match=says):
        write_manifest(*arguments, **options)
