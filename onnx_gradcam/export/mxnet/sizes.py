"""The size of the picture, where a network fixes it and only its weights know."""

from __future__ import annotations

from collections.abc import Callable

from onnx_gradcam.errors import ExplainError, ShapeError, UnsupportedError
from onnx_gradcam.graph.builder import Value

__all__ = ["FeatureMismatchError", "FreeSizeError", "fitting_side", "fixed", "fixed_sizes"]

_REMEDY = "pass input_shape=(channels, height, width)"
_USUAL_SIDES = (224, 227, 299, 28, 32, 64, 96, 112, 128, 256)
_LARGEST_SIDE = 2048


class FreeSizeError(UnsupportedError):
    """A node that needs a number where the size of the picture is free."""


class FeatureMismatchError(ShapeError):
    """A dense layer whose weights want more or fewer features than the picture gives."""

    def __init__(self, have: int, want: int) -> None:
        super().__init__(
            f"its weights take {want} features, but the picture gives {have}; give the size that the network was "
            "trained for as input_shape=(channels, height, width)"
        )
        self.excess = have - want


def fixed(dim: int | str | None, what: str) -> int:
    """A dimension that has to be a number.

    Raises:
        FreeSizeError: it is free.
    """
    if not isinstance(dim, int):
        raise FreeSizeError(f"{what} depends on the size of the picture, which is free; {_REMEDY}")
    return dim


def fixed_sizes(x: Value, what: str) -> tuple[int, ...]:
    """The spatial sizes of a tensor in channels-first layout.

    Raises:
        FreeSizeError: one of them is free.
    """
    return tuple(fixed(dim, what) for dim in x.shape[2:])


def fitting_side(attempt: Callable[[int], object]) -> int | None:
    """The side of a square picture that fits the weights; `None` where they do not tell.

    Pooling and strides round, so that several sides may fit: a usual one is preferred, then a multiple of 8.

    Args:
        attempt: writes the network for a picture of that side.

    Raises:
        ExplainError: the attempt fails for another reason than the size.
    """

    def excess(side: int) -> int:
        try:
            attempt(side)
        except FeatureMismatchError as exc:
            return exc.excess
        except UnsupportedError:
            raise
        except ExplainError:
            return -1
        return 0

    low, high = 1, _LARGEST_SIDE  # what is below low is too small, what is from high on too large
    if excess(high) <= 0:
        return None
    for side in _USUAL_SIDES:
        if low <= side < high:
            difference = excess(side)
            if difference == 0:
                return side
            low, high = (side + 1, high) if difference < 0 else (low, side)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if excess(middle) < 0 else (low, middle)
    round_side = -(-low // 8) * 8
    return next((side for side in (round_side, low) if excess(side) == 0), None)
