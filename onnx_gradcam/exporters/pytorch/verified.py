"""One export: the network run in PyTorch, exported, and taken only if ONNX Runtime computes the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from onnx_gradcam.errors import TargetError, UnsupportedError, near_matches
from onnx_gradcam.exporters.parity import TOLERANCE, compare, difference, run
from onnx_gradcam.exporters.writer import Product
from onnx_gradcam.graph.builder import Builder
from onnx_gradcam.graph.inline import constant
from onnx_gradcam.graph.model import Model
from onnx_gradcam.metadata import CarriedLayer

from .capture import TARGET, Array, Captured, module_outputs, submodule
from .conversion import Exporter, convert
from .programs import Source
from .scopes import match, name_after_modules, on_path, scripted_layers, strip_notes, take_target

__all__ = ["Verified"]

_USUAL_SIZE = (224, 224)
_BATCHES = (1, 3)
_EXAMPLE_BATCH = 2  # with a batch of one PyTorch takes it for fixed
_OTHER_SIDES = (32, 64)
"""What is added to height and width for the second size; patches and strides of up to 32 divide it."""

_LOUD = np.float32(30)
"""Times the image that layers are found with: limits that no value reached there are reached now."""


class Verified:
    """An export of one network.

    Args:
        source: the network and what is known of it.
        layer: path of the module whose output is wanted.
        call: which of its calls.
        size: height and width that the user fixed.
        report: is told what is being done.
    """

    def __init__(
        self,
        source: Source,
        layer: str | None,
        call: int,
        size: tuple[int, int] | None,
        report: Callable[[str], None],
    ) -> None:
        self.source, self.layer, self.call, self.report = source, layer, call, report
        self.network = source.network.eval()
        self.scripted = isinstance(self.network, torch.jit.ScriptModule)
        self.hooked = None if self.scripted else layer
        if layer is not None:
            submodule(self.network, layer)
        self.sides = self._sides(size)
        self.channels = source.channels or _first_channels(self.network)
        self.batches = _BATCHES if source.batch is None else (source.batch,)
        report("running it in PyTorch")
        self.wanted = [self._reference(self._image(batch, self.sides), self._observed(batch)) for batch in self.batches]
        self.other = tuple(side + more for side, more in zip(self.sides, _OTHER_SIDES, strict=True))
        self.free = size is None and source.free and self._takes_other_sides()

    def _observed(self, batch: int) -> str | None:
        """Which modules are observed in PyTorch: all of them once, for the table of layers."""
        return "" if batch == self.batches[0] and not self.scripted else self.hooked

    def exported(self, ways: Sequence[Exporter]) -> Product:
        """The first of the exporters' graphs that computes what PyTorch does.

        Raises:
            TargetError: the layer is not called, or gives no tensor.
            UnsupportedError: there is none.
        """
        if self.scripted and "torchscript" not in ways:
            raise UnsupportedError("PyTorch's dynamo exporter takes no TorchScript; take --exporter torchscript")
        ways = ["torchscript"] if self.scripted else ways
        failures: dict[str, UnsupportedError] = {}
        fixed = (0,) if self.source.batch is None else ()
        for way in ways:
            for free in ((*fixed, 2, 3), fixed) if self.free else (fixed,):
                self.report(f"exporting with {way}")
                try:
                    product = self._product(way, free)
                except UnsupportedError as exc:
                    failures[way] = exc
                    continue
                others = [
                    f"the {way} exporter was taken because {exc}" for other, exc in failures.items() if other != way
                ]
                product.warnings.extend(others)
                return product
        raise UnsupportedError("; ".join(map(str, failures.values())))

    def _product(self, way: Exporter, free: Sequence[int]) -> Product:
        model = self._graph(way, free)
        if 2 in free and _computes_with_sides(model):
            raise UnsupportedError("the network computes with the height or width of its input")
        self.report("comparing with PyTorch")
        worst = max(self._difference(model, batch, self.sides) for batch in self.batches)
        if 2 in free:
            self._difference(model, self.batches[-1], self.other)
        layers = self._layers(model)
        batches = " and ".join(map(str, self.batches))
        warnings = []
        if self.source.batch is not None:
            warnings.append(f"the program takes {self.source.batch} image(s) at a time, and so does the graph")
        return Product(
            model=model,
            framework="pytorch",
            version=str(torch.__version__),
            layers=layers,
            labels=self.source.labels,
            preprocessing=self._preprocessing(),
            parity=f"{way} exporter; within {worst:.0e} of PyTorch's values, relative, at batch {batches}",
            warnings=warnings,
        )

    def _graph(self, way: Exporter, free: Sequence[int]) -> Model:
        x = torch.from_numpy(self._image(self.source.batch or _EXAMPLE_BATCH, self.sides))
        if isinstance(self.network, torch.jit.ScriptModule):
            return convert(self.network, x, way, free)
        captured = Captured(self.network, self.layer, self.call).eval()
        try:
            model = convert(captured, x, way, free)
        finally:
            captured.release()
        for weight in list(model.core.graph.initializers.values()):
            weight.name = str(weight.name).removeprefix("network.")
        model.infer()
        return model

    def _difference(self, model: Model, batch: int, sides: tuple[int, ...]) -> float:
        """The largest difference from PyTorch over outputs and target.

        Raises:
            UnsupportedError: it is more than rounding.
        """
        x = self._image(batch, sides)
        if sides == self.sides:
            wanted, calls = self.wanted[self.batches.index(batch)]
        else:
            wanted, calls = self._reference(x, self.hooked)
        if self.hooked is not None:
            wanted = {**wanted, TARGET: calls[self.hooked][self.call]}
        return compare(run(model, x), wanted, f"batch {batch}, {sides[0]} x {sides[1]}", "PyTorch")

    def _layers(self, model: Model) -> dict[str, CarriedLayer]:
        """The modules whose tensors survived, the wanted one above all."""
        self.report("finding the layers")
        x = self._image(self.batches[0], self.sides)
        if isinstance(self.network, torch.jit.ScriptModule):
            found = scripted_layers(model, self.network, x)
            if self.layer is not None and self.layer not in found:
                raise TargetError(
                    f"the output of {self.layer!r} cannot be told from the TorchScript"
                    f"{near_matches(self.layer, found)}; export the network itself, as .pt2 or module:factory"
                )
        else:
            target = take_target(model, TARGET) if self.layer is not None else None
            tensors = on_path(model)
            found = match(self.wanted[0][1], tensors, run(model, x, [str(t.name) for t in tensors]))
            found = self._still_equal(model, found, x * _LOUD)
            if self.layer is not None and target is not None:
                found[self.layer] = target
        name_after_modules(model, found)
        strip_notes(model)
        kinds = self.source.kinds
        return {path: CarriedLayer(tensor=str(t.name), kind=kinds.get(path, "")) for path, t in found.items()}

    def _still_equal(self, model: Model, found: dict[str, ir.Value], x: Array) -> dict[str, ir.Value]:
        """Those modules whose tensors have their values for a louder image too, where limits take effect."""
        _, calls = self._reference(x, "")
        values = run(model, x, sorted({str(t.name) for t in found.values()}))
        return {
            path: tensor
            for path, tensor in found.items()
            if difference(values[str(tensor.name)], calls[path][-1]) <= TOLERANCE
        }

    def _reference(self, x: Array, only: str | None) -> tuple[dict[str, Array], dict[str, list[Array]]]:
        """What PyTorch computes; `only` as in `module_outputs`.

        Raises:
            TargetError: the layer is not called, or gives no tensor.
            UnsupportedError: the network does not take this input, or gives something else than tensors.
        """
        try:
            outputs, calls = module_outputs(self.network, torch.from_numpy(x), only)
        except (RuntimeError, ValueError, TypeError, AssertionError, IndexError, AttributeError) as exc:
            reason = " ".join(str(exc).split())[:200]
            raise UnsupportedError(
                f"the network does not run on an input of shape {list(x.shape)} ({reason}); give its --size, and a "
                "network that takes a batch of images alone"
            ) from exc
        if self.hooked is not None and only is not None:
            count = len(calls.get(self.hooked, ()))
            if not -count <= self.call < count:
                raise TargetError(
                    f"the module {self.hooked!r} ({self.source.kinds.get(self.hooked, 'module')}) gives a tensor "
                    f"{count} time(s) on the way to the output, so there is no call {self.call}; give another layer "
                    "or call"
                )
        return outputs, calls

    def _takes_other_sides(self) -> bool:
        """Whether it is worth trying to leave height and width free.

        Attention and pooling to a fixed grid compute with the size, and their graphs for any size are full of that.
        """
        for module in self.network.modules():
            if "attention" in type(module).__name__.lower():
                return False
            if isinstance(module, torch.nn.AdaptiveAvgPool2d) and module.output_size not in {1, (1, 1)}:
                return False
        try:
            self._reference(self._image(self.batches[0], self.other), None)
        except UnsupportedError:
            return False
        return True

    def _sides(self, size: tuple[int, int] | None) -> tuple[int, int]:
        known = self.source.size
        if size is not None and known is not None and size != known and not self.source.free:
            raise UnsupportedError(
                f"the program takes images of {known[0]} x {known[1]} alone; export it for {size[0]} x {size[1]}"
            )
        own = getattr(self.network, "image_size", None)
        return size or known or ((own, own) if isinstance(own, int) else _USUAL_SIZE)

    def _image(self, batch: int, sides: tuple[int, ...]) -> Array:
        """Noise in the range of a normalised photograph, always the same."""
        shape = (batch, self.channels, *sides)
        return np.random.default_rng(0).standard_normal(shape, np.float32)

    def _preprocessing(self) -> Any:
        """As the source describes it, for the size that was exported."""
        described = self.source.preprocessing
        return described if described is None or tuple(described["size"]) == self.sides else None


def _first_channels(network: torch.nn.Module) -> int:
    """The channels that the first convolution of a network takes; 3 without one."""
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            return int(module.in_channels)
    weights = [weight for weight in network.parameters() if weight.ndim == 4]
    return int(weights[0].shape[1]) if weights else 3


def _computes_with_sides(model: Model) -> bool:
    """Whether the graph reads the size of anything but a batch."""
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
