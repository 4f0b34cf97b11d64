"""Every architecture's outputs, target and table of layers in ONNX Runtime, against PyTorch's own in float64.

Every run prints its figures.
"""

from __future__ import annotations

import numpy as np
import pytest
from exporters.pytorch.zoo import ZOO, made, needs

from onnx_gradcam.exporters.finishing import finish_export
from onnx_gradcam.exporters.pytorch import export_pytorch
from onnx_gradcam.runtime.session import Session

TOLERANCE = 1e-5

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore"),  # PyTorch's own
]


@pytest.mark.parametrize("name", ZOO)
def test_outputs_target_and_layers(name, torch, capsys):
    first = name.split()[0]
    needs("torchvision", *({first} & {"timm", "transformers"}))
    entry, network = ZOO[name], made(name)
    product = export_pytorch(network, layer=entry.layer, call=entry.call, size=entry.size, exporter=entry.exporter)
    exported = finish_export(product, entry.layer)
    table = {k: v for k, v in exported.carried.tensors.items() if k != entry.layer}
    proto = exported.to_proto()
    there = {output.name for output in proto.graph.output}
    for tensor in set(table.values()) - there:
        proto.graph.output.add(name=tensor).type.tensor_type.elem_type = exported.model.info(tensor).elem_type
    session = Session(proto.SerializeToString(), threads=1)
    worst = {"outputs": 0.0, "target": 0.0, "layers": 0.0}
    for batch in (1, 3):
        x = np.random.default_rng(batch).standard_normal((batch, 3, entry.size, entry.size), np.float32)
        logits, calls = observed(torch, network.double(), x.astype(np.float64))
        found = session.run({"input": x})
        worst["outputs"] = max(worst["outputs"], gap(found[exported.score], logits))
        worst["target"] = max(worst["target"], gap(found[exported.target], calls[entry.layer][entry.call]))
        layers = {path: gap(found[tensor], calls[path][-1]) for path, tensor in table.items()}
        worst["layers"] = max(worst["layers"], *layers.values())
    modules = sum(1 for path, _ in network.named_modules() if path)
    with capsys.disabled():
        figures = " | ".join(f"{figure:.1e}" for figure in worst.values())
        print(f"\n| {name} | {entry.exporter} | {entry.layer} | {figures} | {len(table) + 1} of {modules} |", end="")  # noqa: T201
    assert max(worst.values()) <= TOLERANCE
    assert len(table) > modules / 3


def observed(torch, network, x):
    """The logits, and every call's output of every module, copied as soon as it is made."""
    calls = {}

    def keep(path):
        def hook(_module, _inputs, output):
            while not isinstance(output, torch.Tensor):
                output = next(iter(output.values())) if isinstance(output, dict) else output[0]
            calls.setdefault(path, []).append(output.clone().numpy())

        return hook

    hooks = [module.register_forward_hook(keep(path)) for path, module in network.named_modules() if path]
    with torch.no_grad():
        y = network(torch.from_numpy(x))
    for hook in hooks:
        hook.remove()
    return getattr(y, "logits", y).numpy(), calls


def gap(found, wanted):
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())
