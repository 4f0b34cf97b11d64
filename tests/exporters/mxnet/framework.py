"""MXNet itself, where it is installed: networks with random weights, and what it computes."""

from __future__ import annotations

import copy
import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def imported() -> Any:
    """The module; a test that asks where it is not installed is skipped.

    MXNet 1.9.1 uses a name that NumPy 1.24 dropped, and deprecated parts of the standard library. Its oneDNN subgraphs
    fuse an addition with the ReLU behind it even where the sum is an output, which then shows the ReLU's values.
    """
    os.environ.setdefault("MXNET_SUBGRAPH_BACKEND", "NONE")
    if "bool" not in vars(np):
        np.bool = np.bool_
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("mxnet", reason="MXNet is not installed")


def exported(name: str, folder: Path, x: np.ndarray) -> tuple[Path, Path]:
    """A network of the model zoo as two files, its weights and statistics random."""
    mx = imported()
    net = mx.gluon.model_zoo.vision.get_model(name, classes=10)
    mx.random.seed(0)
    net.initialize(mx.init.Xavier())
    net.hybridize()
    net(mx.nd.array(x[:1]))
    rng = np.random.default_rng(1)
    draws = {
        "running_mean": lambda shape: rng.normal(0, 0.3, shape),
        "running_var": lambda shape: rng.uniform(0.5, 1.5, shape),
        "gamma": lambda shape: rng.uniform(0.5, 1.5, shape),
        "beta": lambda shape: rng.normal(0, 0.3, shape),
        "bias": lambda shape: rng.normal(0, 0.3, shape),
    }
    for key, parameter in net.collect_params().items():
        for ending, draw in draws.items():
            if key.endswith(ending):
                parameter.set_data(mx.nd.array(draw(parameter.shape)))
    net.export(str(folder / "net"))
    return folder / "net-symbol.json", folder / "net-0000.params"


def _bound(symbol: Any, params: Path, grad_req: Any = "null", **inputs: np.ndarray) -> Any:
    """An executor of a symbol over its weights."""
    mx = imported()
    weights = {key.partition(":")[2]: value for key, value in mx.nd.load(str(params)).items()}
    wanted = {*symbol.list_arguments(), *symbol.list_auxiliary_states()}
    executor = symbol.simple_bind(mx.cpu(), grad_req=grad_req, **{k: v.shape for k, v in inputs.items() if k in wanted})
    known = {k: v for k, v in weights.items() if k in wanted} | {
        k: mx.nd.array(v) for k, v in inputs.items() if k in wanted
    }
    executor.copy_params_from(
        {k: v for k, v in known.items() if k in symbol.list_arguments()},
        {k: v for k, v in known.items() if k in symbol.list_auxiliary_states()},
    )
    return executor


def computed(files: tuple[Path, Path], x: np.ndarray, nodes: list[str]) -> dict[str, np.ndarray]:
    """The outputs in prediction, and those of some nodes inside."""
    mx = imported()
    symbol = mx.sym.load(str(files[0]))
    inside = symbol.get_internals()
    group = mx.sym.Group([symbol, *(inside[f"{node}_output"] for node in nodes)])
    outputs = _bound(group, files[1], data=x).forward(is_train=False)
    names = [name.removesuffix("_output") for name in group.list_outputs()]
    return {name: output.asnumpy() for name, output in zip(names, outputs, strict=True)}


def grad_cam(files: tuple[Path, Path], node: str, target: int, x: np.ndarray) -> np.ndarray:
    """The raw signed map: sum_k mean(d score / d A_k) A_k, by MXNet's own backward pass.

    The consumers of the node read a variable in its place, whose gradient is an ordinary one then.
    """
    mx = imported()
    activation = computed(files, x, [node])[node]
    tree = json.loads(mx.sym.load(str(files[0])).tojson())
    cut = next(i for i, n in enumerate(tree["nodes"]) if n["name"] == node and n["op"] != "null")

    def moved(entry: list[int]) -> list[int]:
        return [0, 0, 0] if entry[:2] == [cut, 0] else [entry[0] + 1, *entry[1:]]

    nodes = copy.deepcopy(tree["nodes"])
    for each in nodes:
        each["inputs"] = [moved(entry) for entry in each["inputs"]]
    edited = {
        "nodes": [{"op": "null", "name": "activation", "inputs": []}, *nodes],
        "arg_nodes": [0, *(i + 1 for i in tree["arg_nodes"])],
        "heads": [[head[0] + 1, *head[1:]] for head in tree["heads"]],
        "attrs": tree["attrs"],
    }
    tail = mx.sym.load_json(json.dumps(edited))
    wanted = {name: "write" if name == "activation" else "null" for name in tail.list_arguments()}
    executor = _bound(tail, files[1], wanted, activation=activation, data=x)
    # Statistics stay fixed and Dropout idle only where gradients are wanted of a network in prediction.
    (scores,) = executor.forward(is_train=False)
    seed = np.zeros(scores.shape, np.float32)
    seed[:, target] = 1
    executor.backward(mx.nd.array(seed), is_train=False)
    gradient = executor.grad_dict["activation"].asnumpy()
    return (gradient.mean((2, 3), keepdims=True) * activation).sum(1)
