"""Find each layer's variables in a Keras file, and read them when the exported model is saved."""

from __future__ import annotations

import math
import re
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_gradcam.errors import ExportError

from .archive import checked

if TYPE_CHECKING:
    import h5py

__all__ = ["ByOrder", "ByPath", "LayerList", "Slot", "Source", "Stored"]

_LARGEST_RATIO = 1100
"""Deflate packs no more than 1032 to 1: a dataset of more bytes than this for each stored one is a lie."""


@dataclass(frozen=True)
class Slot:
    """A variable of a layer class; slots are in the order of creation."""

    name: str
    when: str = ""  # the configuration key that decides whether the layer has it; empty for always
    trained: bool = True  # whether it is a weight, not a statistic
    part: str = ""  # the layer inside the layer that has it; empty for the layer itself


class Stored:
    """A variable in the file."""

    def __init__(self, dataset: h5py.Dataset, label: str) -> None:
        self._dataset, self._label = dataset, label
        self.shape: tuple[int, ...] = tuple(dataset.shape)
        kind = dataset.dtype
        self._is_bfloat16 = kind.itemsize == 2 and kind.kind in "Vu" and dataset.attrs.get("dtype") == "bfloat16"
        if kind.kind not in "fiu" and not self._is_bfloat16:
            raise ExportError(f"{label} has the dtype {kind}, which is not numeric; save the model again")
        size = math.prod(self.shape) * int(kind.itemsize)
        if dataset.external or dataset.is_virtual:
            raise ExportError(f"{label} is stored in another file; save the model again")
        if size > _LARGEST_RATIO * dataset.id.get_storage_size():
            raise ExportError(f"{label} claims the shape {self.shape}, but fewer values are stored; refused")

    def read(self) -> npt.NDArray[np.float32]:
        """The content, in float32."""
        with checked(f"{self._label} cannot be read"):
            content = self._dataset[()]
        if self._is_bfloat16:
            wide = np.frombuffer(np.ascontiguousarray(content).tobytes(), np.uint16).astype(np.uint32) << 16
            return self._checked(wide.view(np.float32).reshape(self.shape))
        return self._checked(np.asarray(content, np.float32))

    def _checked(self, content: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if np.isnan(content).any():
            raise ExportError(f"{self._label} contains NaN; did the training diverge? save a model with finite weights")
        return content

    def arranged(self, perm: Sequence[int] | None, shape: Sequence[int] | None) -> ir.LazyTensor:
        """A tensor that is read when it is saved: transposed by `perm`, then reshaped to `shape`."""
        order = tuple(range(len(self.shape))) if perm is None else tuple(perm)
        final = tuple(self.shape[i] for i in order) if shape is None else tuple(shape)

        def read() -> ir.TensorProtocol:
            return ir.tensor(np.ascontiguousarray(self.read().transpose(order).reshape(final)))

        return ir.LazyTensor(read, ir.DataType.FLOAT, ir.Shape(final))


class Source(Protocol):
    """The variables of a layer, or of a model and its layers."""

    def child(self, entry: Mapping[str, Any]) -> Source:
        """The source of the next layer of a model, in the order of the configuration."""

    def variables(self, slots: Sequence[Slot], label: str) -> list[Stored]:
        """The variables of a layer, named `label` in messages; `slots` are those that it should have."""


def _member(group: h5py.Group, path: str, label: str) -> Any:
    """An object below a group; links, which may lead out of the file, are not followed."""
    import h5py  # noqa: PLC0415 - an optional dependency

    member: Any = group
    for part in path.split("/"):
        with checked(f"{label}: {path!r} cannot be read"):
            link = member.get(part, getlink=True) if isinstance(member, h5py.Group) else None
            if link is not None and not isinstance(link, h5py.HardLink):
                raise ExportError(f"{label}: {path!r} is a link; save the model again")
            member = None if link is None else member[part]
        if member is None:
            return None
    return member


def _stored(member: Any, label: str) -> Stored:
    import h5py  # noqa: PLC0415 - an optional dependency

    if not isinstance(member, h5py.Dataset):
        raise ExportError(f"{label} is missing in the file; save the model again")
    with checked(f"{label} cannot be read"):
        return Stored(member, label)


def _check_count(count: int, slots: Sequence[Slot], label: str) -> None:
    if count != len(slots):
        names = ", ".join(slot.name for slot in slots) or "none"
        raise ExportError(f"{label} should have {len(slots)} variables ({names}), but the file has {count}")


class ByPath:
    """The `.keras` format: `layers/<class>_<n>/vars/<i>`, the layers of each class counted in their model.

    Source: `keras/src/saving/saving_lib.py`, `_save_container_state` and `Layer.save_own_variables`. Keras 2 writes
    `_layer_checkpoint_dependencies` for `layers`.
    """

    _CONTAINERS = ("layers", "_layer_checkpoint_dependencies")

    def __init__(self, group: h5py.Group | None) -> None:
        self._group = group
        self._counter: Counter[str] = Counter()

    def child(self, entry: Mapping[str, Any]) -> ByPath:
        """See `Source`."""
        kind = _snake_case(str(entry.get("class_name")))
        number = self._counter[kind]
        self._counter[kind] += 1
        key = f"{kind}_{number}" if number else kind
        if self._group is None:
            return ByPath(None)
        places = (_member(self._group, f"{container}/{key}", key) for container in self._CONTAINERS)
        return ByPath(next((place for place in places if place is not None), None))

    def variables(self, slots: Sequence[Slot], label: str) -> list[Stored]:
        """See `Source`."""
        parts: dict[str, list[Slot]] = {}
        for slot in slots:
            parts.setdefault(slot.part, []).append(slot)
        stored = {}
        for part, own in (parts or {"": []}).items():
            group = self._variables_of(part, label)
            with checked(f"{label}: its variables cannot be read"):
                count = 0 if group is None else len(group)
            _check_count(count, own, f"part {part!r} of {label}" if part else label)
            for i, slot in enumerate(own):
                stored[slot.name] = _stored(_member(group, str(i), label), f"variable {slot.name!r} of {label}")
        return [stored[slot.name] for slot in slots]

    def _variables_of(self, part: str, label: str) -> Any:
        """The group of a layer's own variables, or of those of a layer inside it; Keras 2 keeps the underscore."""
        if self._group is None:
            return None
        places = [part, f"_{part}"] if part else [""]
        groups = (_member(self._group, f"{place}/vars".strip("/"), label) for place in places)
        return next((group for group in groups if group is not None), None)


def _snake_case(name: str) -> str:
    """The name of a class as Keras writes it in paths (`keras/src/utils/naming.py`, `to_snake_case`)."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _listed(group: h5py.Group, label: str) -> list[str]:
    """The names in the attribute `weight_names`, which is split into parts if long."""
    names: list[Any] = []
    with checked(f"{label}: its list of variables is damaged"):
        keys = ["weight_names"] if "weight_names" in group.attrs else []
        while f"weight_names{len(keys)}" in group.attrs:
            keys.append(f"weight_names{len(keys)}")
        for key in keys:
            names.extend(group.attrs[key])
    return [name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name) for name in names]


class LayerList:
    """The `.h5` format: one group per layer, under the layer's name.

    An inner model has one flat list: all trained variables, then all others (`count`; frozen ones are not trained), see
    `keras/src/legacy/saving/legacy_h5_format.py`, `_legacy_weights`.
    """

    def __init__(self, group: h5py.Group, count: Any) -> None:
        self._group, self._count = group, count

    def child(self, entry: Mapping[str, Any]) -> ByOrder:
        """See `Source`."""
        name = str(entry["config"]["name"])
        label = f"layer {name!r}"
        group = _member(self._group, name, label)
        names = [] if group is None else _listed(group, label)
        stored = [_stored(_member(group, path, label), f"variable {path!r} of {label}") for path in names]
        trained, others = self._count(entry)
        if len(stored) != trained + others:
            raise ExportError(f"{label} should have {trained + others} variables, but the file has {len(stored)}")
        frozen = entry["config"].get("trainable") is False
        return ByOrder(deque(stored[:trained]), deque(stored[trained:]), frozen=frozen)

    def variables(self, slots: Sequence[Slot], label: str) -> list[Stored]:
        """See `Source`; the model itself has none."""
        _check_count(0, slots, label)
        return []


class ByOrder:
    """The flat list of a layer, or of an inner model, whose layers take the next variables in turn."""

    def __init__(self, trained: deque[Stored], others: deque[Stored], *, frozen: bool = False) -> None:
        self._trained, self._others, self._frozen = trained, others, frozen

    def child(self, entry: Mapping[str, Any]) -> ByOrder:
        """See `Source`."""
        frozen = self._frozen or entry["config"].get("trainable") is False
        return ByOrder(self._trained, self._others, frozen=frozen)

    def variables(self, slots: Sequence[Slot], label: str) -> list[Stored]:
        """See `Source`."""
        del label  # `LayerList` has counted
        return [(self._trained if slot.trained and not self._frozen else self._others).popleft() for slot in slots]
