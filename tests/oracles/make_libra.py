"""LibraGrad (Mehri et al. 2025) by hand in PyTorch, on two small vision transformers: `libra.npz`.

The networks prune and scale their own gradients with `detach` and a factor, module by module, in float64. Run with
torch 2.13, onnx 1.23 and onnxscript::

    python tests/oracles/make_libra.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

HEADS, WIDTH, PATCH, SIDE = 2, 8, 4, 16


class Half(torch.autograd.Function):
    """The identity, with half of the gradient."""

    @staticmethod
    def forward(ctx, x):  # noqa: ARG004
        return x.clone()

    @staticmethod
    def backward(ctx, g):  # noqa: ARG004
        return g / 2


class Network(nn.Module):
    """Two blocks: if `gated`, SwiGLU, RMS normalization and a mean over tokens; else GELU, LayerNorm, a class token."""

    libra = False

    def __init__(self, *, gated: bool) -> None:
        super().__init__()
        self.gated = gated
        self.patch = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.place = nn.Parameter(torch.randn(1, (SIDE // PATCH) ** 2 + (not gated), WIDTH))
        self.scales = nn.ParameterList(nn.Parameter(1 + 0.3 * torch.randn(WIDTH)) for _ in range(5))
        self.shifts = nn.ParameterList(nn.Parameter(0.3 * torch.randn(WIDTH)) for _ in range(5))
        self.attend = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(2))
        self.mix = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.wide = nn.ModuleList(nn.Linear(WIDTH, 4 * WIDTH) for _ in range(2))
        self.narrow = nn.ModuleList(nn.Linear((2 if gated else 4) * WIDTH, WIDTH) for _ in range(2))
        self.head = nn.Linear(WIDTH, 5)

    def cut(self, x: torch.Tensor) -> torch.Tensor:
        """A constant of the backward pass."""
        return x.detach() if self.libra else x

    def norm(self, x: torch.Tensor, i: int) -> torch.Tensor:
        """RMS or layer normalization."""
        centred = x if self.gated else x - x.mean(-1, keepdim=True)
        scaled = centred / self.cut(torch.sqrt((centred * centred).mean(-1, keepdim=True) + 1e-5)) * self.scales[i]
        return scaled if self.gated else scaled + self.shifts[i]

    def block(self, x: torch.Tensor, i: int) -> torch.Tensor:
        """Attention, then the perceptron."""
        n, t, _ = x.shape
        q, k, v = self.attend[i](self.norm(x, 2 * i)).reshape(n, t, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        attention = self.cut(torch.softmax(2 * q @ k.transpose(-1, -2), -1))
        x = x + self.mix[i]((attention @ v).transpose(1, 2).reshape(n, t, WIDTH))
        z = self.wide[i](self.norm(x, 2 * i + 1))
        if not self.gated:
            return x + self.narrow[i](z * self.cut(0.5 * (1 + torch.erf(z / 2**0.5))))
        a, b = z.chunk(2, -1)
        product = b * (a * self.cut(torch.sigmoid(a)))
        return x + self.narrow[i](Half.apply(product) if self.libra else product)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits `[N, 5]`."""
        x = self.patch(x).flatten(2).transpose(1, 2)
        if not self.gated:
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        x = x + self.place
        for i in range(2):
            x = self.block(x, i)
        x = self.norm(x, 4)
        return self.head(x.mean(1) if self.gated else x[:, 0])


def main() -> None:
    """Write models, inputs, gradients and shares."""
    arrays = {}
    for name, gated in (("class_gelu", False), ("mean_swiglu", True)):
        torch.manual_seed(4)
        network = Network(gated=gated).eval()
        x = torch.randn(1, 3, SIDE, SIDE)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "m.onnx"
            names = {"input_names": ["x"], "output_names": ["y"], "opset_version": 20, "external_data": False}
            torch.onnx.export(network, (x,), path, dynamo=True, **names)
            arrays[f"{name}/model"] = np.frombuffer(path.read_bytes(), np.uint8)
        network, image = network.double(), x.double().requires_grad_()
        network.libra = True
        score = network(image)[0, 1]
        constants = [network.token, network.place, *network.shifts]
        constants += [p for key, p in network.named_parameters() if key.endswith("bias")]
        gradient, *others = torch.autograd.grad(score, [image, *constants], allow_unused=True)
        pairs = zip(constants, others, strict=True)
        shares = sum(float((b * g).sum()) for b, g in pairs if g is not None)
        arrays |= {f"{name}/x": x.numpy(), f"{name}/gradient": gradient.numpy(), f"{name}/score": score.item()}
        arrays[f"{name}/shares"] = [float((image * gradient).sum()), shares]
    np.savez_compressed(Path(__file__).parent / "libra.npz", **arrays)


if __name__ == "__main__":
    main()
