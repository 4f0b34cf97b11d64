"""Writes `preset_methods_torch.npz`: what pytorch-grad-cam, torch-cam and captum return, method by method.

Needs torch 2.13, grad-cam 1.5.7 with scikit-learn, torchcam 0.5.0 and captum 0.9.0:
`python tests/oracles/make_preset_methods_torch.py`. The network is that of `preset_network.py`, its ReLU a module. For
each case, `PRESET/METHOD` is the library's own result: a map of the image's size of pytorch-grad-cam, a normalized map
of the layer's size of torch-cam, an attribution `[3, H, W]` of captum. `drawn/captum/METHOD` is captum's drawing. Some
results are of methods that the presets refuse: they show why.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import torch
from captum import attr
from make_presets_torch import blended
from preset_network import CASES, HEIGHT, WIDTH, images, inputs, weights
from torch import nn
from torchcam import methods as torchcam

import pytorch_grad_cam as library  # isort: skip - torchvision's operators are declared by make_presets_torch
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget  # isort: skip

SEED = 7
"""Seed of the noise; `numpy.random.default_rng` draws the same numbers on both sides."""

SAMPLES, NOISE = 50, 0.15
WINDOW, STEP = (2, 3), (1, 1)
"""Window and step of captum's occlusion: an eighth of a side of this image, and half of that, as in this project."""

CLASS_MAPS = {
    "gradcam": library.GradCAM,
    "hirescam": library.HiResCAM,
    "gradcam-elementwise": library.GradCAMElementWise,
    "layercam": library.LayerCAM,
    "xgradcam": library.XGradCAM,
    "gradcam++": library.GradCAMPlusPlus,
    "shapleycam": library.ShapleyCAM,
    "finercam": library.FinerCAM,
    "refinecam": library.RefineCAM,
    "eigencam-pytorch-grad-cam": library.EigenCAM,
    "eigengradcam-pytorch-grad-cam": library.EigenGradCAM,
    "segeigencam": library.SegEigenCAM,
    "kpcacam": library.KPCA_CAM,
    "fem": library.FEM,
    "fullgrad": library.FullGrad,
    "scorecam": library.ScoreCAM,
    "ablationcam": library.AblationCAM,
}
TORCH_CAM = {
    "gradcam": torchcam.GradCAM,
    "gradcam++-torch-cam": torchcam.GradCAMpp,
    "layercam": torchcam.LayerCAM,
    "xgradcam": torchcam.XGradCAM,
    "cam": torchcam.CAM,
    "finercam": torchcam.FinerCAM,
    "refinecam": torchcam.RefineCAM,
    "scorecam-torch-cam": torchcam.ScoreCAM,
    "sscam": torchcam.SSCAM,
    "iscam": torchcam.ISCAM,
    "smooth-gradcam++-torch-cam": torchcam.SmoothGradCAMpp,
}
LAYERS = {"ablationcam": ["rectified"], "refinecam": ["first", "second"], "fullgrad": [], "cam": ["squashed"]}
"""The layers where they are not the second convolution."""


class Network(nn.Module):
    """Logits; every activation is a module, and used once: libraries hook and replace modules."""

    def __init__(self):
        super().__init__()
        self.first, self.rectified = nn.Conv2d(3, 8, 3, stride=2), nn.ReLU()
        self.second, self.gate = nn.Conv2d(8, 12, 3), nn.Sigmoid()
        self.third, self.squashed = nn.Conv2d(12, 16, 3), nn.Sigmoid()
        self.last = nn.Linear(16, 5)
        numbers = {name: torch.from_numpy(value) for name, value in weights().items()}
        for name in ("first", "second", "third", "last"):
            getattr(self, name).load_state_dict({"weight": numbers[name], "bias": numbers[f"{name}_bias"]})

    def forward(self, x):
        maps = self.second(self.rectified(self.first(x)))
        return self.last(self.squashed(self.third(self.gate(maps))).mean((2, 3)))


class Noise:
    """In place of a distribution of torch: NumPy's random numbers."""

    def __init__(self, deviation):
        self.deviation, self.rng = deviation, np.random.default_rng(SEED)

    def sample(self, size):
        return torch.from_numpy((self.deviation * self.rng.standard_normal(tuple(size))).astype(np.float32))


class Tunnel(attr.NoiseTunnel):
    """With NumPy's random numbers."""

    @staticmethod
    def _add_noise_to_input(input, stdev, nt_samples_partition):  # noqa: A002 - the library's own name
        noise = stdev * np.random.default_rng(SEED).standard_normal((nt_samples_partition, *input.shape[1:]))
        return input + torch.from_numpy(noise.astype(np.float32))


def of_pytorch_grad_cam(network, x, index):
    targets = [ClassifierOutputTarget(index)]
    for name, kind in CLASS_MAPS.items():
        layers = [network.get_submodule(layer) for layer in LAYERS.get(name, ["second"])]
        # Finer-CAM takes the class that is compared from the scores, and is asked for the predicted one.
        yield name, kind(network, layers)(x.clone(), None if name == "finercam" else targets)[0]
    for name in ("gradcam", "scorecam"):
        yield f"{name}/eigen", CLASS_MAPS[name](network, [network.second])(x.clone(), targets, eigen_smooth=True)[0]
    both = [network.first, network.second]
    yield "layercam/both", library.LayerCAM(network, both)(x.clone(), targets)[0]


def of_torch_cam(network, x, index):
    for name, kind in TORCH_CAM.items():
        layers = LAYERS.get(name, ["second"])
        with kind(network, layers, input_shape=(3, HEIGHT, WIDTH)) as extractor:
            if hasattr(extractor, "_distrib"):
                extractor._distrib = Noise(extractor.std)
            cams = extractor(index, network(x.clone().requires_grad_()))
            yield name, (extractor.fuse_cams(cams, (HEIGHT, WIDTH)) if len(cams) > 1 else cams[0])[0]
    with torchcam.LayerCAM(network, ["first", "second"], input_shape=(3, HEIGHT, WIDTH)) as extractor:
        yield "layercam/both", extractor.fuse_cams(extractor(index, network(x)), (HEIGHT, WIDTH))[0]


def of_captum(network, x, index):
    gradient = attr.Saliency(network)
    yield "gradient", gradient.attribute(x, target=index, abs=False)
    yield "saliency", gradient.attribute(x, target=index)
    yield "input-x-gradient", attr.InputXGradient(network).attribute(x, target=index)
    yield "guided-backprop", attr.GuidedBackprop(network).attribute(x, target=index)
    yield "deconvnet", attr.Deconvolution(network).attribute(x, target=index)
    yield "guided-gradcam", attr.GuidedGradCam(network, network.second).attribute(x, target=index)
    yield "integrated-gradients", attr.IntegratedGradients(network).attribute(x, target=index)
    yield "occlusion", attr.Occlusion(network).attribute(x, (3, *WINDOW), (3, *STEP), target=index)
    for name, kind in (("smoothgrad", "smoothgrad"), ("smoothgrad-squared", "smoothgrad_sq"), ("vargrad", "vargrad")):
        deviation = NOISE * float(np.ptp(x.detach().numpy()))
        yield (
            name,
            Tunnel(gradient).attribute(x, nt_type=kind, nt_samples=SAMPLES, stdevs=deviation, target=index, abs=False),
        )


def main():
    network = Network().eval()
    facts = {}
    for case, (sample, index) in CASES.items():
        x, image = torch.from_numpy(inputs()[sample : sample + 1]), images()[sample]
        for preset, of in (("pytorch-grad-cam", of_pytorch_grad_cam), ("torch-cam", of_torch_cam)):
            for name, value in of(network, x, index):
                facts[f"{case}/{preset}/{name}"] = np.asarray(
                    value.detach() if isinstance(value, torch.Tensor) else value
                )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            for name, value in of_captum(network, x.clone().requires_grad_(), index):
                attribution = value.detach().numpy()[0].astype(np.float32)
                facts[f"{case}/captum/{name}"] = attribution
                facts[f"{case}/drawn/captum/{name}"] = blended(attribution.sum(0), image)
    versions = {"torch": torch.__version__, "grad-cam": "1.5.7", "torchcam": "0.5.0", "captum": "0.9.0"}
    versions |= {"numpy": np.__version__, "noise": SEED, "network": "preset_network.py"}
    path = Path(__file__).with_name("preset_methods_torch.npz")
    np.savez_compressed(path, provenance=np.array(json.dumps(versions)), **facts)


if __name__ == "__main__":
    main()
