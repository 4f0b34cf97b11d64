"""Rollout, Chefer's relevance and LeGrad of small vision transformers, in float64: write `attention.npz`.

Needs torch 2.13: `python tests/oracles/make_attention.py`. The models are random, from a seed. Formulas: Abnar and
Zuidema 2020, section 3; Gildenblat's `vit_rollout.py`; Chefer, Gur and Wolf, ICCV 2021, eq. 5 and 6; Bousselham et al.
2024, eq. 5 to 8.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn
from torch.nn import functional

GRID, WIDTH, HEADS, BLOCKS, CLASSES = (4, 3), 12, 3, 3, 5


class Mixing(nn.Module):
    """Attention of `heads` heads; `queries` are those of a pooling one."""

    def __init__(self, *, fused: bool, queries: int = 0) -> None:
        super().__init__()
        self.fused = fused
        self.query = nn.Parameter(torch.randn(1, queries, WIDTH)) if queries else None
        self.q, self.kv, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        source = x if self.query is None else self.query.expand(x.shape[0], -1, -1)
        q, (k, v) = self.q(source) * 3, self.kv(x).chunk(2, -1)
        q, k, v = (z.unflatten(-1, (HEADS, -1)).transpose(1, 2) for z in (q, k, v))
        if self.fused:
            return self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        self.map = torch.softmax(q @ k.transpose(-1, -2) * (WIDTH // HEADS) ** -0.5, -1)
        return self.out((self.map @ v).transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    """Patches behind `prefix` tokens, blocks, and a head for a class token, a mean, or an attention that pools."""

    def __init__(self, pool: str, prefix: int, *, fused: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.pool, count = pool, prefix + GRID[0] * GRID[1]
        self.patches = nn.Conv2d(3, WIDTH, 8, 8)
        self.prefix = nn.Parameter(torch.randn(1, prefix, WIDTH)) if prefix else None
        self.places = nn.Parameter(torch.randn(1, count, WIDTH) / 2)
        self.mixing = nn.ModuleList(Mixing(fused=fused) for _ in range(BLOCKS))
        self.wide = nn.ModuleList(nn.Linear(WIDTH, 2 * WIDTH) for _ in range(BLOCKS))
        self.narrow = nn.ModuleList(nn.Linear(2 * WIDTH, WIDTH) for _ in range(BLOCKS))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2 * BLOCKS + 1))
        for norm in self.norms:  # equal weights would be one initializer with copies of it
            nn.init.normal_(norm.weight, 1, 0.3)
        self.pooling = Mixing(fused=fused, queries=1) if pool == "map" else None
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        if self.prefix is not None:
            x = torch.cat([self.prefix.expand(x.shape[0], -1, -1), x], 1)
        x = x + self.places
        self.after = []
        for i, mixing in enumerate(self.mixing):
            x = x + mixing(self.norms[2 * i](x))
            x = x + self.narrow[i](functional.gelu(self.wide[i](self.norms[2 * i + 1](x))))
            self.after.append(x)
        return self.answer(x)

    def answer(self, x: torch.Tensor) -> torch.Tensor:
        """The scores of tokens behind a block."""
        x = self.norms[-1](x)
        if self.pooling is not None:
            return self.head(self.pooling(x)[:, 0])
        return self.head(x[:, 0] if self.pool == "class" else x.mean(1))

    def maps(self) -> list[torch.Tensor]:
        return [m.map for m in (*self.mixing, *([self.pooling] if self.pooling else []))]


def rolled_out(maps: list[np.ndarray], fusion: str, discard: float) -> np.ndarray:
    """The product of row-normalised fused maps plus the identity, last block first."""
    size = maps[0].shape[-1]
    product = np.eye(size)
    for one in maps:
        fused = one.mean(0) if fusion == "mean" else one.max(0)
        flat = fused.reshape(-1).copy()
        lowest = np.argsort(flat, kind="stable")[: int(flat.size * discard)]
        flat[lowest[lowest != 0]] = 0
        mixed = (flat.reshape(size, size) + np.eye(size)) / 2
        product = mixed / mixed.sum(-1, keepdims=True) @ product
    return product


def relevance(maps: list[np.ndarray], gradients: list[np.ndarray]) -> np.ndarray:
    product = np.eye(maps[0].shape[-1])
    for one, gradient in zip(maps, gradients, strict=True):
        product = product + np.maximum(one * gradient, 0).mean(0) @ product
    return product


def le_grad(model: Transformer, x: torch.Tensor, chosen: int) -> np.ndarray:
    """The positive derivatives by the last map of the score of each block's tokens, mean over heads and rows, summed.

    The last map is the pooling one, of the tokens that are scored, or else the block's own.
    """
    model(x)
    total = 0
    for mixing, after in zip(model.mixing, list(model.after), strict=True):
        score = model.answer(after)[0, chosen]
        last = mixing.map if model.pooling is None else model.pooling.map
        total = total + torch.autograd.grad(score, last, retain_graph=True)[0][0].clamp(min=0).mean((0, 1)).numpy()
    return total


KINDS = {
    "class": {"pool": "class", "prefix": 3, "how": {"dynamo": True, "opset_version": 18}},
    "fused": {"pool": "class", "prefix": 1, "how": {"dynamo": True, "opset_version": 23}},
    "mean": {"pool": "mean", "prefix": 0, "how": {"dynamo": False, "opset_version": 17}},
    "map": {"pool": "map", "prefix": 0, "how": {"dynamo": True, "opset_version": 20}},
}


def row(kind: dict, product: np.ndarray, pooled: np.ndarray) -> np.ndarray:
    """What the answer takes from the grid."""
    picked = {"class": lambda: product[0], "mean": lambda: product.mean(0), "map": lambda: (pooled @ product)[0]}
    return picked[kind["pool"]]()[kind["prefix"] :].reshape(GRID)


def main() -> None:
    """Write the models, an image each, and the maps."""
    x = torch.tensor(np.random.default_rng(0).standard_normal((1, 3, 32, 24)))
    stored = {"x": x.numpy().astype(np.float32)}
    for name, kind in KINDS.items():
        model = Transformer(kind["pool"], kind["prefix"]).double().eval()
        scores = model(x)
        chosen = int(scores.argmax())
        gradients = [g[0].numpy() for g in torch.autograd.grad(scores[0, chosen], model.maps())]
        maps = [m[0].detach().numpy() for m in model.maps()]
        start, pooled = (maps[-1].mean(0), np.maximum(maps[-1] * gradients[-1], 0).mean(0)) if model.pooling else (0, 0)
        blocks = slice(0, BLOCKS)
        stored[f"{name}/class"] = np.array(chosen)
        stored[f"{name}/rollout"] = row(kind, rolled_out(maps[blocks], "mean", 0), start)
        stored[f"{name}/rollout-max"] = row(kind, rolled_out(maps[blocks], "max", 0.9), maps[-1].max(0))
        stored[f"{name}/chefer"] = row(kind, relevance(maps[blocks], gradients[blocks]), pooled)
        stored[f"{name}/chefer-last"] = row(
            kind, relevance(maps[BLOCKS - 1 : BLOCKS], gradients[BLOCKS - 1 : BLOCKS]), pooled
        )
        stored[f"{name}/legrad"] = le_grad(model, x, chosen)[kind["prefix"] :].reshape(GRID)
        exported = Transformer(kind["pool"], kind["prefix"], fused=name == "fused").eval()
        exported.load_state_dict({key: value.float() for key, value in model.state_dict().items()})
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.onnx"
            torch.onnx.export(exported, (x.float(),), str(file), input_names=["x"], output_names=["y"], **kind["how"])
            written = onnx.load(file)
        for node in written.graph.node:  # where in the code a node is from
            del node.metadata_props[:]
            node.doc_string = ""
        stored[f"{name}/model"] = np.frombuffer(written.SerializeToString(), np.uint8)
    np.savez_compressed(Path(__file__).with_name("attention.npz"), **stored)


if __name__ == "__main__":
    main()
