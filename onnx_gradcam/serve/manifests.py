"""An InferenceService for KServe, which runs a model on Triton, as YAML."""

from __future__ import annotations

import json
import re
from typing import Any, Final

from onnx_gradcam.errors import ServerError

__all__ = ["manifest"]

_NAME: Final = re.compile(r"[a-z]([-a-z0-9]{0,51}[a-z0-9])?")
_URI: Final = re.compile(r"(gs|s3|pvc|hf|oci|https|hdfs|webhdfs)://[^\s\"'\\]+")
_QUANTITY: Final = re.compile(r"[0-9]{1,6}(\.[0-9]{1,3})?(m|Ki|Mi|Gi|Ti|k|M|G|T)?")
_TRITON: Final = "26.02-py3"
"""The first release of Triton without known holes; what a cluster runs by itself may be older."""


def manifest(
    name: str,
    uri: str,
    *,
    namespace: str | None = None,
    cpu: str = "2",
    memory: str = "2Gi",
    gpus: int = 0,
    replicas: int = 1,
) -> str:
    """An InferenceService of the API `serving.kserve.io/v1beta1`.

    Args:
        name: of the service, a DNS label.
        uri: where the repository lies that `onnx_gradcam.serve.repository` has written.
        namespace: Kubernetes' namespace; by default that of whoever applies it.
        cpu: CPUs, asked for and at most, as Kubernetes writes them.
        memory: as `cpu`.
        gpus: NVIDIA GPUs.
        replicas: the least and the most.

    Raises:
        ServerError: a value that Kubernetes or KServe would not take.
    """
    _check("name", name, _NAME, "lower-case letters, digits and '-', at most 53, a letter first")
    _check("uri", uri, _URI, "gs://, s3://, pvc://, hf://, oci:// or https:// with a path")
    if namespace is not None:
        _check("namespace", namespace, _NAME, "lower-case letters, digits and '-', a letter first")
    for what, quantity in (("cpu", cpu), ("memory", memory)):
        _check(what, quantity, _QUANTITY, "a number with a unit of Kubernetes, like 500m or 2Gi")
    if gpus < 0 or replicas < 1:
        raise ServerError("there have to be 0 GPUs or more, and 1 replica or more")
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


def _check(what: str, value: str, pattern: re.Pattern[str], allowed: str) -> None:
    if not pattern.fullmatch(value):
        raise ServerError(f"the {what} {value!r} is not what Kubernetes takes: {allowed}")


def _yaml(value: dict[str, Any], indent: str = "") -> list[str]:
    """Mappings of mappings and scalars; strings are quoted as in JSON, which YAML contains."""
    lines = []
    for key, one in value.items():
        if isinstance(one, dict):
            lines += [f"{indent}{key}:", *_yaml(one, indent + "  ")]
        else:
            lines.append(f"{indent}{key}: {json.dumps(one)}")
    return lines
