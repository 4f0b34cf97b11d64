"""Export one network and accept the graph only if ONNX Runtime computes PyTorch's values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from onnx_gradcam.editor.targets.layer_names import biases_of, innermost
from onnx_gradcam.errors import ExportError, InputError, TargetError, near_matches, reason
from onnx_gradcam.exporters.parity import TOLERANCE, ParityError, compare, difference, run
from onnx_gradcam.exporters.writer import Product
from onnx_gradcam.graph.builder import Builder
from onnx_gradcam.graph.inline import constant
from onnx_gradcam.graph.model import Model
from onnx_gradcam.metadata import CarriedLayer
from onnx_gradcam.options import Biases

from .capture import TARGET, Array, Captured, module_outputs, submodule
from .conversion import ConversionError, Exporter, convert
from .programs import Source
from .scopes import match, name_after_modules, on_path, scripted_layers, strip_notes, take_target

__all__ = ["Verified"]

_USUAL_SIZE = (224, 224)
_BATCHES = (1, 3)
_EXAMPLE_BATCH = 2  # PyTorch takes a batch of one for fixed
_OTHER_SIDES = (32, 64)
"""Added to height and width for the second size; divisible by patches and strides of up to 32."""

_LOUD = np.float32(30)
"""Scales the image that layers are matched with, so that values reach limits that they did not reach before."""


_BIASES = {"merged": "merged", "unknown": "", "apart": "apart"}
"""The model's biases by those of its nodes; what is true of one decides, in this order."""


class Verified:
    """An export of one network, with the module `layer` exposed at one of its calls; `report` takes each step."""

    def __init__(
        self,
        source: Source,
        layer: str | None,
        call: int,
        size: tuple[int, int] | None,
        report: Callable[[str], None],
        *,
        keep_normalization: bool,
    ) -> None:
        self.source, self.layer, self.call, self.report = source, layer, call, report
        self.keep_normalization = keep_normalization
        self.network = source.network.eval()
        self.scripted = isinstance(self.network, torch.jit.ScriptModule)
        self.hooked = None if self.scripted else layer
        if layer is not None:
            submodule(self.network, layer)
        self.sides = self._sides(size)
        self.channels = source.channels or _first_channels(self.network)
        self.batches = _BATCHES if source.batch is None else (source.batch,)
        report("running it in PyTorch")
        # All modules are observed once, for the table of layers.
        only = ["" if batch == self.batches[0] and not self.scripted else self.hooked for batch in self.batches]
        images = [self._image(batch, self.sides) for batch in self.batches]
        self.references = [self._reference(x, modules) for x, modules in zip(images, only, strict=True)]
        self.other = tuple(side + more for side, more in zip(self.sides, _OTHER_SIDES, strict=True))
        self.free = size is None and source.free and self._takes_other_sides()

    def exported(self, ways: Sequence[Exporter]) -> Product:
        """The first exporter's graph that computes PyTorch's values, or an `ExportError` with the reason of each."""
        if self.scripted and "torchscript" not in ways:
            raise InputError("PyTorch's dynamo exporter takes no TorchScript; use --exporter torchscript")
        ways = ["torchscript"] if self.scripted else ways
        failures: dict[str, ExportError] = {}
        fixed = (0,) if self.source.batch is None else ()
        for way in ways:
            for free in ((*fixed, 2, 3), fixed) if self.free else (fixed,):
                self.report(f"exporting with {way}")
                try:
                    product = self._product(way, free)
                except (ConversionError, ParityError) as exc:
                    failures[way] = exc
                    continue
                others = [
                    f"the {way} exporter was used because {exc}" for other, exc in failures.items() if other != way
                ]
                product.warnings.extend(others)
                return product
        raise ExportError("; ".join(map(str, failures.values())))

    def _product(self, way: Exporter, free: Sequence[int]) -> Product:
        model = self._graph(way, free)
        if 2 in free and _computes_with_sides(model):
            raise ConversionError("the network computes with the height or width of its input")
        self.report("comparing with PyTorch")
        worst = max(self._difference(model, batch, self.sides) for batch in self.batches)
        if 2 in free:
            self._difference(model, self.batches[-1], self.other)
        biases = self._biases(model, way)
        layers = self._layers(model)
        batches = " and ".join(map(str, self.batches))
        warnings = []
        if self.source.batch is not None:
            warnings.append(f"the batch size is fixed at {self.source.batch}, as in the program")
        return Product(
            model=model,
            framework="pytorch",
            version=str(torch.__version__),
            layers=layers,
            labels=self.source.labels,
            preprocessing=self._preprocessing(),
            parity=f"{way} exporter; within {worst:.0e} of PyTorch's values, relative, at batch {batches}",
            biases=biases,
            warnings=warnings,
        )

    def _biases(self, model: Model, way: Exporter) -> str:
        """As in `Carried`."""
        states = {self._biases_of(node) for node in model.core.graph}
        if self.keep_normalization and states != {"apart"}:
            raise ConversionError(
                f"PyTorch's {way} exporter merged batch normalizations that were to be kept; try the other one"
            )
        return next(word for state, word in _BIASES.items() if state in states)

    def _biases_of(self, node: ir.Node) -> Biases:
        """Whether a convolution's bias was merged with another; its module tells where its names do not."""
        state = biases_of(node)
        module = dict(self.network.named_modules()).get(innermost(node).removeprefix("network."))
        if state != "unknown" or not hasattr(module, "weight"):
            return state
        return "apart" if getattr(module, "bias", None) is None else "merged"

    def _graph(self, way: Exporter, free: Sequence[int]) -> Model:
        x = torch.from_numpy(self._image(self.source.batch or _EXAMPLE_BATCH, self.sides))
        if isinstance(self.network, torch.jit.ScriptModule):
            return convert(self.network, x, way, free, keep_normalization=self.keep_normalization)
        captured = Captured(self.network, self.layer, self.call).eval()
        try:
            model = convert(captured, x, way, free, keep_normalization=self.keep_normalization)
        finally:
            captured.release()
        for weight in list(model.core.graph.initializers.values()):
            weight.name = str(weight.name).removeprefix("network.")
        model.infer()
        return model

    def _difference(self, model: Model, batch: int, sides: tuple[int, ...]) -> float:
        """The largest difference from PyTorch over outputs and target; a `ParityError` if it is more than rounding."""
        x = self._image(batch, sides)
        if sides == self.sides:
            reference, calls = self.references[self.batches.index(batch)]
        else:
            reference, calls = self._reference(x, self.hooked)
        if self.hooked is not None:
            reference = {**reference, TARGET: calls[self.hooked][self.call]}
        return compare(run(model, x), reference, f"batch {batch}, {sides[0]} x {sides[1]}", "PyTorch")

    def _layers(self, model: Model) -> dict[str, CarriedLayer]:
        """The modules whose output is still a tensor of the graph; the exposed one always is."""
        self.report("finding the layers")
        x = self._image(self.batches[0], self.sides)
        if isinstance(self.network, torch.jit.ScriptModule):
            layers = scripted_layers(model, self.network, x)
            if self.layer is not None and self.layer not in layers:
                raise TargetError(
                    f"cannot find the output of {self.layer!r} in the TorchScript; export the network itself, as .pt2 "
                    f"or module:factory{near_matches(self.layer, layers)}"
                )
        else:
            target = take_target(model, TARGET) if self.layer is not None else None
            tensors = on_path(model)
            layers = match(self.references[0][1], tensors, run(model, x, [str(t.name) for t in tensors]))
            layers = self._still_equal(model, layers, x * _LOUD)
            if self.layer is not None and target is not None:
                layers[self.layer] = target
        name_after_modules(model, layers)
        strip_notes(model)
        kinds = self.source.kinds
        return {path: CarriedLayer(tensor=str(t.name), kind=kinds.get(path, "")) for path, t in layers.items()}

    def _still_equal(self, model: Model, layers: dict[str, ir.Value], x: Array) -> dict[str, ir.Value]:
        """Those modules whose tensors have their values for a louder image too, where limits take effect."""
        _, calls = self._reference(x, "")
        values = run(model, x, sorted({str(t.name) for t in layers.values()}))
        return {
            path: tensor
            for path, tensor in layers.items()
            if difference(values[str(tensor.name)], calls[path][-1]) <= TOLERANCE
        }

    def _reference(self, x: Array, only: str | None) -> tuple[dict[str, Array], dict[str, list[Array]]]:
        """PyTorch's values; `only` as in `module_outputs`."""
        try:
            outputs, calls = module_outputs(self.network, torch.from_numpy(x), only)
        except (RuntimeError, ValueError, TypeError, AssertionError, IndexError, AttributeError) as exc:
            raise ExportError(
                f"the network does not run on an input of shape {list(x.shape)} ({reason(exc)}); give its --size, and "
                "a network that takes a batch of images only"
            ) from exc
        if self.hooked is not None and only is not None:
            count = len(calls.get(self.hooked, ()))
            if not -count <= self.call < count:
                raise TargetError(
                    f"the module {self.hooked!r} ({self.source.kinds.get(self.hooked, 'module')}) returns a tensor "
                    f"{count} time(s) per run, so there is no call {self.call}; give another layer or call"
                )
        return outputs, calls

    def _takes_other_sides(self) -> bool:
        """Whether to try leaving height and width free.

        Attention and pooling to a fixed grid compute with the size, which would fill the graph for any size.
        """
        for module in self.network.modules():
            if "attention" in type(module).__name__.lower():
                return False
            if isinstance(module, torch.nn.AdaptiveAvgPool2d) and module.output_size not in {1, (1, 1)}:
                return False
        try:
            self._reference(self._image(self.batches[0], self.other), None)
        except ExportError:
            return False
        return True

    def _sides(self, size: tuple[int, int] | None) -> tuple[int, int]:
        fixed = self.source.size
        if size is not None and fixed is not None and size != fixed and not self.source.free:
            raise InputError(
                f"the program takes images of {fixed[0]} x {fixed[1]} only; export it for {size[0]} x {size[1]}"
            )
        own = getattr(self.network, "image_size", None)
        return size or fixed or ((own, own) if isinstance(own, int) else _USUAL_SIZE)

    def _image(self, batch: int, sides: tuple[int, ...]) -> Array:
        """Noise in the range of a normalized image, always the same."""
        shape = (batch, self.channels, *sides)
        return np.random.default_rng(0).standard_normal(shape, np.float32)

    def _preprocessing(self) -> Any:
        """The source's description, if it is for the exported size."""
        described = self.source.preprocessing
        return described if described is None or tuple(described["size"]) == self.sides else None


def _first_channels(network: torch.nn.Module) -> int:
    """The input channels of a network's first convolution; 3 without one."""
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            return int(module.in_channels)
    weights = [weight for weight in network.parameters() if weight.ndim == 4]
    return int(weights[0].shape[1]) if weights else 3


def _computes_with_sides(model: Model) -> bool:
    """Whether the graph reads a size other than the batch's."""
    t = Builder(model)
    return any(
        node.op_type == "Shape"
        and node.attributes.get_int("end", 0) != 1
        and not all(_takes_first(t, user) for user, _ in node.outputs[0].uses())
        for node in t.nodes
    )


def _takes_first(t: Builder, node: ir.Node) -> bool:
    index = constant(t, node.inputs[1]) if node.op_type == "Gather" and node.inputs[1] is not None else None
    return index is not None and not index.any()
