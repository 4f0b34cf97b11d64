"""Writes `quantus.npz`: what Quantus makes of stored maps of a small network, four images in one call.

Needs torch 2.13, quantus 0.6.0 and scikit-image: `python tests/oracles/make_quantus.py`. Quantus divides maps by the
largest value of all images of a call, as the tests do. NumPy 2.4 has no `trapz`, which it calls.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from skimage import data, transform
from torch import nn

if not hasattr(np, "trapz"):
    np.trapz = np.trapezoid  # noqa: NPY201 - the library calls it
import quantus

SIZE, BLOCK = 48, 144


def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 5, 2, 2), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU()]
    made = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 5)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(2)
    return made


def explain(model, inputs, targets, **_):
    """Input x gradient, summed over channels."""
    x = torch.tensor(np.asarray(inputs, np.float32)).requires_grad_()
    score = model(x)[range(len(x)), list(map(int, targets))].sum()
    (gradient,) = torch.autograd.grad(score, [x])
    return (gradient * x).sum(1, keepdim=True).detach().numpy()


def main():
    made = network()
    pictures = [
        transform.resize(p(), (SIZE, SIZE), anti_aliasing=True)
        for p in (data.astronaut, data.chelsea, data.coffee, data.rocket)
    ]
    x = (np.stack(pictures).astype(np.float32).transpose(0, 3, 1, 2) - 0.5) / 0.25
    y = made(torch.tensor(x)).detach().numpy().argmax(1)
    inside = np.zeros((4, 1, SIZE, SIZE), bool)
    for i in range(4):
        inside[i, 0, 8 + i : 30, 10 : 36 - i] = True
    common = {"disable_warnings": True, "display_progressbar": False, "return_aggregate": False}
    flips = {"features_in_step": BLOCK, "perturb_baseline": "black"}
    metrics = {
        "faithfulness_correlation": quantus.FaithfulnessCorrelation(nr_runs=100, subset_size=224, **common),
        "faithfulness_estimate": quantus.FaithfulnessEstimate(**flips, **common),
        "pixel_flipping_auc": quantus.PixelFlipping(**flips, return_auc_per_sample=True, **common),
        "region_perturbation": quantus.RegionPerturbation(
            patch_size=8, regions_evaluation=10, perturb_baseline="black", **common
        ),
        "infidelity_black": quantus.Infidelity(
            perturb_baseline="black", perturb_patch_sizes=[8], n_perturb_samples=1, **common
        ),
        "max_sensitivity": quantus.MaxSensitivity(nr_samples=10, lower_bound=0.2, **common),
        "avg_sensitivity": quantus.AvgSensitivity(nr_samples=10, lower_bound=0.2, **common),
        "local_lipschitz": quantus.LocalLipschitzEstimate(nr_samples=10, perturb_std=0.1, **common),
        "sparseness": quantus.Sparseness(**common),
        "complexity": quantus.Complexity(**common),
        "effective_complexity": quantus.EffectiveComplexity(eps=0.01, **common),
        "relevance_rank": quantus.RelevanceRankAccuracy(**common),
        "relevance_mass": quantus.RelevanceMassAccuracy(**common),
        "attribution_localisation": quantus.AttributionLocalisation(**common),
        "auc": quantus.AUC(**common),
        "pointing_game": quantus.PointingGame(**common),
        "top_k_100": quantus.TopKIntersection(k=100, **common),
    }
    facts = {"x": x, "y": y, "s": inside, "a": explain(made, x, y)}
    for name, metric in metrics.items():
        np.random.seed(0)  # noqa: NPY002 - the library draws from it
        given = {"x_batch": x.copy(), "y_batch": y.copy(), "a_batch": facts["a"].copy(), "s_batch": inside}
        value = metric(model=made, device="cpu", softmax=False, explain_func=explain, **given)
        facts[name] = np.asarray(value, np.float64)
    buffer = io.BytesIO()
    example = (torch.tensor(x),)
    shapes = ({0: torch.export.Dim("n")},)
    path = Path("quantus.onnx")
    torch.onnx.export(
        made, example, path, input_names=["x"], output_names=["logits"], external_data=False, dynamic_shapes=shapes
    )
    facts["model"] = np.frombuffer(path.read_bytes(), np.uint8)
    path.unlink()
    np.savez_compressed(buffer, **facts, versions=np.array("quantus 0.6.0, torch 2.13.0"))
    (Path(__file__).parent / "quantus.npz").write_bytes(buffer.getvalue())


if __name__ == "__main__":
    main()
