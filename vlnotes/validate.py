"""The few checks that every loss shares: wrong kinds, wrong shapes and bad numbers are named before they
hurt.

Shapes are checked first, because that is free. Numbers are checked last, on the finished scalar: a NaN or an
infinity among the inputs shows up there, so only a loss that went bad pays for the search for the one at
fault.
"""

import math
import numbers
from functools import reduce

import torch
from torch import Tensor


def check_float(x: Tensor, name: str) -> None:
    """Insist on a tensor of floating point numbers.

    Args:
        x: any tensor.
        name: what the caller calls it; the message starts with it.

    Raises:
        TypeError: not a tensor, or not floating point.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"{name}: expected floating point numbers, got {x.dtype}; call .float() on it first")


def check_features(x: Tensor, name: str, width: int | None = None) -> None:
    """Insist on a non-empty float matrix whose rows are samples.

    Args:
        x: (N, D) float.
        name: what the caller calls it; the message starts with it.
        width: the D that is expected, if the caller knows one.

    Raises:
        TypeError: not a tensor, or not floating point.
        ValueError: not two-dimensional, empty, or of another width.
    """
    check_float(x, name)
    if x.ndim != 2:
        raise ValueError(f"{name}: expected shape (rows, features), got {tuple(x.shape)}")
    if x.numel() == 0:
        raise ValueError(f"{name}: expected at least one row and one feature, got shape {tuple(x.shape)}")
    if width is not None and x.shape[1] != width:
        raise ValueError(f"{name}: expected {width} features a row, got shape {tuple(x.shape)}")


def check_pairs(x: Tensor, y: Tensor, names: tuple[str, str]) -> None:
    """Insist on two feature matrices whose row i belongs together: same rows, same width, same device.

    Args:
        x: (N, D) float.
        y: (N, D) float.
        names: what the caller calls them.

    Raises:
        TypeError: one of them is not a float tensor.
        ValueError: shapes or devices do not match.
    """
    for tensor, name in zip((x, y), names, strict=True):
        check_features(tensor, name)
    if x.shape != y.shape:
        raise ValueError(
            f"{names[0]} and {names[1]}: row i of one belongs to row i of the other, so expected one shape, "
            f"got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    check_device(x, y, names)


def check_device(x: Tensor, y: Tensor, names: tuple[str, str]) -> None:
    """Insist that both tensors live on one device.

    Args:
        x: any tensor.
        y: any tensor.
        names: what the caller calls them.

    Raises:
        ValueError: they do not.
    """
    if x.device != y.device:
        raise ValueError(f"{names[0]} is on {x.device} but {names[1]} on {y.device}: move one of them")


def check_temperature(temperature: float | Tensor, name: str = "temperature") -> None:
    """Insist on one positive, finite number.

    Args:
        temperature: a float, or a tensor with one element that may learn.
        name: what the caller calls it.

    Raises:
        TypeError: neither a number nor a float tensor.
        ValueError: more than one element, zero, negative, NaN or infinite.
    """
    if isinstance(temperature, Tensor):
        check_float(temperature, name)
        if temperature.numel() != 1:
            raise ValueError(f"{name}: expected one number, got a tensor of shape {tuple(temperature.shape)}")
    elif isinstance(temperature, bool) or not isinstance(temperature, numbers.Real):
        raise TypeError(f"{name}: expected a float or a scalar tensor, got {type(temperature).__name__}")
    value = float(temperature.detach()) if isinstance(temperature, Tensor) else float(temperature)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}: it divides the cosines, so it must be positive and finite; got {value:g}")


def check_fraction(value: float, name: str) -> None:
    """Insist on a number in [0, 1].

    Args:
        value: a plain number.
        name: what the caller calls it.

    Raises:
        TypeError: not a plain number.
        ValueError: outside [0, 1] or NaN.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: expected a float in [0, 1], got {type(value).__name__}")
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: expected a number in [0, 1], got {value:g}")


def check_weight(value: float, name: str = "weight") -> None:
    """Insist on a finite number of 0 or more.

    Args:
        value: a plain number.
        name: what the caller calls it.

    Raises:
        TypeError: not a plain number.
        ValueError: negative, NaN or infinite.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: expected a number of 0 or more, got {type(value).__name__}")
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name}: expected a number of 0 or more, got {value:g}")


def wide_dtype(*tensors: Tensor) -> torch.dtype:
    """What a loss computes in: at least float32. Near 100, a cosine of 1 at temperature 0.01, bfloat16 numbers are 0.5
    apart.

    Args:
        tensors: of floating point numbers.

    Returns:
        The widest of their dtypes and float32.
    """
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)


def check_finite(result: Tensor, name: str, **inputs: Tensor | None) -> None:
    """Insist on a finite result; where it is not, look through the inputs and name the one at fault.

    Args:
        result: the finished value; a scalar makes this check nearly free.
        name: the function that made it.
        inputs: its tensors by name; None is skipped. They are read only after the result turned out bad.

    Raises:
        ValueError: the result holds NaN or infinity.
    """
    if bool(result.detach().isfinite().all()):
        return
    for key, tensor in inputs.items():
        if tensor is None:
            continue
        bad = ~tensor.detach().isfinite()
        if bool(bad.any()):
            row = int(bad.reshape(bad.shape[0], -1).any(1).nonzero()[0]) if bad.ndim else 0
            raise ValueError(
                f"{key}: expected finite numbers, got {int(bad.sum())} NaN or infinite of {bad.numel()} "
                f"(first in row {row}, shape {tuple(tensor.shape)})"
            )
    raise ValueError(
        f"{name}: every input is finite, but the result is not; too large for {result.dtype}: "
        "are the features L2-normalised, and is the temperature not far too small?"
    )
