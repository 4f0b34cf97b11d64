"""KServe InferenceService manifests, which run a model repository on Triton."""

from __future__ import annotations

import json
import re
from typing import Any, Final

from onnx_gradcam.errors import ServerError

__all__ = ["write_manifest"]

_NAME: Final = re.compile(r"[a-z]([-a-z0-9]{0,51}[a-z0-9])?")
_URI: Final = re.compile(r"(gs|s3|pvc|hf|oci|https|hdfs|webhdfs)://[^\s\"'\\]+")
_QUANTITY: Final = re.compile(r"[0-9]{1,6}(\.[0-9]{1,3})?(m|Ki|Mi|Gi|Ti|k|M|G|T)?")
_TRITON: Final = "26.02-py3"
"""The first release of Triton without known vulnerabilities; the default of a cluster may be older."""


def write_manifest(
    name: str,
    uri: str,
    *,
    namespace: str | None = None,
    cpu: str = "2",
    memory: str = "2Gi",
    gpus: int = 0,
    replicas: int = 1,
) -> str:
    """Write a KServe InferenceService manifest, as YAML of the API `serving.kserve.io/v1beta1`.

    Args:
        name: name of the service, a DNS label.
        uri: location of a model repository that `write_repository` has written.
        namespace: Kubernetes namespace; by default, the current one when the manifest is applied.
        cpu: CPUs to request, which is also the limit, as a Kubernetes quantity.
        memory: memory to request, which is also the limit, as a Kubernetes quantity.
        gpus: number of NVIDIA GPUs.
        replicas: minimum and maximum number of replicas.

    Raises:
        ServerError: a value that Kubernetes or KServe would reject.

    Example::

        Path("service.yaml").write_text(write_manifest("shapes", "s3://models/repository"))
    """
    _check("name", name, _NAME, "at most 53 lower-case letters, digits and '-', starting with a letter")
    _check("uri", uri, _URI, "gs://, s3://, pvc://, hf://, oci:// or https:// with a path")
    if namespace is not None:
        _check("namespace", namespace, _NAME, "lower-case letters, digits and '-', starting with a letter")
    for resource, quantity in (("cpu", cpu), ("memory", memory)):
        _check(resource, quantity, _QUANTITY, "a Kubernetes quantity such as 500m or 2Gi")
    if gpus < 0 or replicas < 1:
        raise ServerError(f"there are {gpus} GPUs and {replicas} replicas; choose at least 0 GPUs and 1 replica")
    resources = {"cpu": cpu, "memory": memory, **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
    service = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name, **({"namespace": namespace} if namespace else {})},
        "spec": {
            "predictor": {
                "minReplicas": replicas,
                "maxReplicas": replicas,
                "automountServiceAccountToken": False,
                "securityContext": {"runAsNonRoot": True, "runAsUser": 1000},
                "model": {
                    "modelFormat": {"name": "onnx"},
                    "runtime": "kserve-tritonserver",
                    "runtimeVersion": _TRITON,
                    "protocolVersion": "v2",
                    "storageUri": uri,
                    "resources": {"requests": resources, "limits": resources},
                },
            }
        },
    }
    return "\n".join(_yaml(service)) + "\n"


def _check(name: str, value: str, pattern: re.Pattern[str], allowed: str) -> None:
    if not pattern.fullmatch(value):
        raise ServerError(f"the {name} {value!r} is not valid in Kubernetes; use {allowed}")


def _yaml(value: dict[str, Any], indent: str = "") -> list[str]:
    """Lines of nested mappings and scalars; strings are quoted as in JSON, which YAML includes."""
    lines = []
    for key, one in value.items():
        if isinstance(one, dict):
            lines += [f"{indent}{key}:", *_yaml(one, indent + "  ")]
        else:
            lines.append(f"{indent}{key}: {json.dumps(one)}")
    return lines
