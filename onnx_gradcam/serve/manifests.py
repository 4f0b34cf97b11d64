"""KServe InferenceService manifests: this package's server in a container, Triton, or one beside the other."""

from __future__ import annotations

import json
import re
from typing import Any, Final

from onnx_gradcam.errors import ServerError

__all__ = ["write_manifest"]

_NAME: Final = re.compile(r"[a-z]([-a-z0-9]{0,51}[a-z0-9])?")
_URI: Final = re.compile(r"(gs|s3|pvc|hf|oci|https|hdfs|webhdfs)://[^\s\"'\\]+")
_IMAGE: Final = re.compile(r"[a-zA-Z0-9][\w.:/@-]{0,254}")
_QUANTITY: Final = re.compile(r"[0-9]{1,6}(\.[0-9]{1,3})?(m|Ki|Mi|Gi|Ti|k|M|G|T)?")
_TRITON: Final = "26.02-py3"
"""The first release of Triton without known vulnerabilities; the default of a cluster may be older."""
_PORT: Final = 8080
_MODELS: Final = "/mnt/models"
"""Where KServe puts what STORAGE_URI names."""


def write_manifest(
    name: str,
    uri: str,
    *,
    image: str | None = None,
    repository: str | None = None,
    namespace: str | None = None,
    cpu: str = "2",
    memory: str = "2Gi",
    gpus: int = 0,
    replicas: int = 1,
) -> str:
    """Write a KServe InferenceService manifest, as YAML of the API `serving.kserve.io/v1beta1`.

    Args:
        name: name of the service, a DNS label, and of the model in requests.
        uri: location of a model file, or of a folder with it; without `image`, of a model repository that
            `write_repository` has written, for Triton.
        image: container image whose entry point is `onnx-gradcam`; it answers all requests.
        repository: location of a model repository for Triton, which then answers all requests but `:explain`.
        namespace: Kubernetes namespace; by default, the current one when the manifest is applied.
        cpu: CPUs to request, which is also the limit, as a Kubernetes quantity.
        memory: memory to request, which is also the limit, as a Kubernetes quantity.
        gpus: number of NVIDIA GPUs of each container.
        replicas: minimum and maximum number of replicas.

    Raises:
        ServerError: a value that Kubernetes or KServe would reject, or a repository without an image.

    Example::

        Path("service.yaml").write_text(write_manifest("shapes", "s3://models/repository"))
    """
    _check("name", name, _NAME, "at most 53 lower-case letters, digits and '-', starting with a letter")
    for what, location in (("uri", uri), ("repository", repository)):
        if location is not None:
            _check(what, location, _URI, "gs://, s3://, pvc://, hf://, oci:// or https:// with a path")
    if image is not None:
        _check("image", image, _IMAGE, "REGISTRY/NAME:TAG")
    elif repository is not None:
        raise ServerError("a repository is served beside an explainer, which needs a container image; give --image")
    if namespace is not None:
        _check("namespace", namespace, _NAME, "lower-case letters, digits and '-', starting with a letter")
    for resource, quantity in (("cpu", cpu), ("memory", memory)):
        _check(resource, quantity, _QUANTITY, "a Kubernetes quantity such as 500m or 2Gi")
    if gpus < 0 or replicas < 1:
        raise ServerError(f"there are {gpus} GPUs and {replicas} replicas; choose at least 0 GPUs and 1 replica")
    most = {"cpu": cpu, "memory": memory, **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
    resources = {"requests": most, "limits": most}
    pod = {
        "minReplicas": replicas,
        "maxReplicas": replicas,
        "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 1000},
    }
    # Without an explainer in the manifest, KServe sends every request to the predictor, `:explain` too.
    if image is None:
        spec = {"predictor": {**pod, "model": _triton(uri, resources)}}
    elif repository is None:
        spec = {"predictor": {**pod, "containers": [_container(image, uri, resources, name, gpus)]}}
    else:
        spec = {
            "predictor": {**pod, "model": _triton(repository, resources)},
            # KServe appends --model_name and --http_port to its arguments.
            "explainer": {**pod, "containers": [_container(image, uri, resources, None, gpus)]},
        }
    service = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name, **({"namespace": namespace} if namespace else {})},
        "spec": spec,
    }
    return "\n".join(_yaml(service)) + "\n"


def _triton(uri: str, resources: dict[str, Any]) -> dict[str, Any]:
    return {
        "modelFormat": {"name": "onnx"},
        "runtime": "kserve-tritonserver",
        "runtimeVersion": _TRITON,
        "protocolVersion": "v2",
        "storageUri": uri,
        "resources": resources,
    }


def _container(image: str, uri: str, resources: dict[str, Any], name: str | None, gpus: int) -> dict[str, Any]:
    """A container of this package's server; `name` is left out where KServe appends it."""
    arguments = ["serve", _MODELS, "--host", "0.0.0.0"]  # noqa: S104 - KServe asks from another pod
    arguments += ["--name", name, "--port", str(_PORT)] if name else []
    return {
        "name": "kserve-container",
        "image": image,
        "args": [*arguments, *(["--provider", "cuda"] if gpus else [])],
        "env": [{"name": "STORAGE_URI", "value": uri}],
        "ports": [{"containerPort": _PORT, "name": "http1", "protocol": "TCP"}],
        "readinessProbe": {"httpGet": {"path": "/v2/health/ready", "port": _PORT}},
        "livenessProbe": {"httpGet": {"path": "/v2/health/live", "port": _PORT}},
        "resources": resources,
    }


def _check(name: str, value: str, pattern: re.Pattern[str], allowed: str) -> None:
    if not pattern.fullmatch(value):
        raise ServerError(f"the {name} {value!r} is not valid in Kubernetes; use {allowed}")


def _yaml(value: dict[str, Any], indent: str = "") -> list[str]:
    """Lines of nested mappings, lists and scalars; strings are quoted as in JSON, which YAML includes."""
    lines = []
    for key, one in value.items():
        if isinstance(one, dict):
            lines += [f"{indent}{key}:", *_yaml(one, indent + "  ")]
        elif isinstance(one, list) and isinstance(one[0], dict):
            lines.append(f"{indent}{key}:")
            for entry in one:
                first, *rest = _yaml(entry, indent + "    ")
                lines += [f"{indent}  - {first.lstrip()}", *rest]
        else:
            lines.append(f"{indent}{key}: {json.dumps(one)}")
    return lines
