"""The network of several oracles: two convolutions and two linear layers with ReLUs between them, random weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import nn

CLASSES = [1, 4]
SEED = 7
"""Seed of the noise; `numpy.random.default_rng` draws the same numbers on both sides."""


class Network(nn.Module):
    """Every ReLU is a module, and used once: libraries hook and replace modules."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2)
        self.rectified = nn.ReLU()
        self.second = nn.Conv2d(8, 12, 3)
        self.last_rectified = nn.ReLU()
        self.hidden = nn.Linear(12 * 5 * 5, 16)
        self.hidden_rectified = nn.ReLU()
        self.last = nn.Linear(16, 5)

    def forward(self, x):
        x = self.last_rectified(self.second(self.rectified(self.first(x))))
        return self.last(self.hidden_rectified(self.hidden(x.flatten(1))))


def network():
    """The network, two images, and what is stored of both."""
    torch.manual_seed(11)
    made = Network().eval()
    with torch.no_grad():
        # Scores of a few units, so that a softmax over channels has something to choose from.
        made.last.weight *= 20
    x = torch.randn(2, 3, 15, 15)
    facts = {"x": x.numpy(), "classes": np.array(CLASSES), "scores": made(x).detach().numpy()}
    facts |= {f"weight/{name}": value.detach().numpy() for name, value in made.named_parameters()}
    return made, x, facts


def store(name, facts, library):
    """Write the oracle beside this file."""
    said = {"library": library, "torch": torch.__version__, "network": "tests/oracles/rectified.py", "noise": SEED}
    facts["provenance"] = np.array(json.dumps(said))
    np.savez_compressed(Path(__file__).with_name(name), **facts)
