"""Networks that were trained to tell planted evidence: `python make_planted.py`.

`planted.npz` holds the weights of two small networks, both in ONNX by their names in `tests/runtime/test_planted.py`:
`lesion_*` tells volumes with a bright ball from those without, `beat_*` signals of 12 leads with a wide beat from those
without. Volumes and signals are those of `tests/support/planted.py`. PyTorch 2.13.0, about a minute.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.planted import beats, lesions


def trained(make, convolution, pool, channels, steps):
    torch.manual_seed(0)
    network = nn.Sequential(
        convolution(channels, 8, 3, padding=1), nn.ReLU(), pool(2), convolution(8, 16, 3, padding=1), nn.ReLU(),
        convolution(16, 16, 3, padding=1), nn.ReLU(),
    )  # fmt: skip
    head = nn.Linear(16, 2)
    optimiser = torch.optim.Adam([*network.parameters(), *head.parameters()], 3e-3)
    for step in range(steps):
        x, labels, _ = make(16, 1000 + step)
        maps = network(torch.from_numpy(x))
        loss = nn.functional.cross_entropy(head(maps.flatten(2).mean(2)), torch.from_numpy(labels))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    x, labels, _ = make(200, 1)
    with torch.no_grad():
        right = head(network(torch.from_numpy(x)).flatten(2).mean(2)).argmax(1).numpy() == labels
    assert right.mean() >= 0.95, make.__name__
    parts = [network[0], network[3], network[5], head]
    named = [
        (f"{name}{kind}", getattr(part, kind))
        for name, part in zip("KLMW", parts, strict=True)
        for kind in ("weight", "bias")
    ]
    return {name: values.detach().numpy() for name, values in named}


torch.set_num_threads(1)
results = {}
for name, made in (
    ("lesion", trained(lesions, nn.Conv3d, nn.MaxPool3d, 1, 300)),
    ("beat", trained(beats, nn.Conv1d, nn.MaxPool1d, 12, 400)),
):
    results |= {f"{name}_{key}": value.astype(np.float32) for key, value in made.items()}
np.savez_compressed(Path(__file__).with_name("planted.npz"), **results)
