"""What the explorer's page needs, in few bytes: matrices as whole numbers, small pictures, orders, colours."""

import io
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from PIL import Image

LARGEST = 1024  # rows or columns
MOST_CELLS = 2**25  # cells of all steps and models together
FINE_CELLS = 2**19  # up to here values are kept in 16 bits, beyond in 8
PICTURE_BYTES = 4400  # a picture as a file; in base64 under 6 kB
SIDE = 128  # pixels that a picture keeps
MOST_GROUPS = 40  # more groups than this have no names along the side
COSINES, SIGNED = "magma", "RdBu_r"  # both can be read by the colour-blind
# Okabe and Ito's colours, those first that can be seen on every shade of magma.
OVERLAYS = ("#56b4e9", "#009e73", "#f0e442", "#d55e00", "#cc79a7", "#0072b2")


def plain(values: Any) -> np.ndarray:
    """A tensor on any device, or anything like an array, as a numpy array."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() else values
    return np.asarray(values)


def matrices(values: Any, name: str) -> np.ndarray:
    """A matrix, or one a step, checked.

    Args:
        values: (N, M) or (steps, N, M), real numbers; a list of matrices counts as steps.
        name: what the caller calls it; messages start with it.

    Returns:
        (steps, N, M) float32.

    Raises:
        ValueError: matrices of several shapes, not two or three axes, empty, more than 1,024 rows or columns, NaN or
            infinity.
        TypeError: no numbers.
    """
    if isinstance(values, Sequence) and len(values) and all(hasattr(part, "shape") for part in values):
        shapes = sorted({tuple(part.shape) for part in values})
        if len(shapes) > 1:
            raise ValueError(
                f"{name}: the matrices of all steps must have one shape, got {' and '.join(map(str, shapes))}"
            )
        values = np.stack([plain(part) for part in values])
    try:
        array = plain(values)
    except ValueError:
        raise ValueError(f"{name}: expected a matrix, got rows or steps of unequal length") from None
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name}: expected numbers, got {array.dtype}")
    array = array.astype(np.float32)
    if array.ndim not in (2, 3) or not array.size:
        raise ValueError(f"{name}: expected shape (N, M) or (steps, N, M) and not empty, got {array.shape}")
    array = array.reshape(-1, *array.shape[-2:])
    if max(array.shape[1:]) > LARGEST:
        raise ValueError(
            f"{name}: expected at most {LARGEST:,} rows and columns, got {array.shape[1:]}; show a part of it"
        )
    if array.size > MOST_CELLS:
        raise ValueError(
            f"{name}: {array.size:,} numbers in {len(array)} steps, at most {MOST_CELLS:,}; show fewer steps"
        )
    if not np.isfinite(array).all():
        bad = np.argwhere(~np.isfinite(array))
        raise ValueError(
            f"{name}: {len(bad):,} of {array.size:,} numbers are NaN or infinite, the first at step {bad[0][0]}, "
            f"row {bad[0][1]}, column {bad[0][2]}"
        )
    return array


def quantise(values: np.ndarray, low: float, high: float, bits: int) -> np.ndarray:
    """Real numbers as whole ones: value = low + code * (high - low) / (2^bits - 1), right to half a step.

    Args:
        values: any shape, between low and high.
        low: the value of code 0.
        high: the value of the largest code.
        bits: 8 or 16.

    Returns:
        uint8 or uint16 of the same shape.
    """
    top = 2**bits - 1
    kind = np.uint8 if bits == 8 else np.uint16
    if not high > low:
        return np.zeros(values.shape, kind)
    scaled = (values.astype(np.float32 if bits == 8 else np.float64) - low) * (top / (high - low))
    np.rint(scaled, out=scaled)
    return np.clip(scaled, 0, top, out=scaled).astype(kind)


def truth_codes(truth: Any, shape: tuple[int, int]) -> np.ndarray:
    """What is known of every pair: 0 not true, 1 true, 2 unknown.

    Args:
        truth: (N, M), bool; or 0, 1 and NaN or -1 for unknown; or True, False and None, as `vlnotes.world.holds`
            answers.
        shape: (N, M).

    Returns:
        (N, M) uint8.

    Raises:
        ValueError: another shape, or other values.
    """
    array = plain(truth)
    if array.shape != shape:
        raise ValueError(f"truth: expected shape {shape}, as the matrix, got {array.shape}")
    if array.dtype.kind == "O":
        array = np.array([[np.nan if x is None else x for x in row] for row in array], dtype=float)
    array = array.astype(float)
    codes = np.where(np.isnan(array) | (array == -1), 2, array)
    if not np.isin(codes, (0, 1, 2)).all() or (array == 2).any():
        raise ValueError("truth: expected True, False, and None, NaN or -1 where nobody knows")
    return codes.astype(np.uint8)


def overlay(values: Any, name: str, steps: int, shape: tuple[int, int]) -> tuple[dict, np.ndarray]:
    """A layer over the matrix: marks, or amounts.

    Args:
        values: (N, M) or (steps, N, M); bool marks cells, real numbers are amounts.
        name: for messages.
        steps: of the matrix.
        shape: (N, M).

    Returns:
        Its description and its codes, uint8 for marks, uint16 for amounts.

    Raises:
        ValueError: another shape, NaN or infinity.
        TypeError: neither bool nor real.
    """
    array = plain(values)
    if array.shape not in (shape, (steps, *shape)):
        raise ValueError(f"overlay {name!r}: expected shape {shape} or {(steps, *shape)}, got {array.shape}")
    about = {"steps": array.ndim == 3}
    if array.dtype == bool:
        return about | {"kind": "bool"}, array.astype(np.uint8)
    array = matrices(array, f"overlay {name!r}")
    low, high = min(0.0, float(array.min())), float(array.max())
    return about | {"kind": "real", "low": low, "high": high}, quantise(array, low, high, 16)


def picture(image: Any, most: int = PICTURE_BYTES) -> bytes:
    """One picture as a small JPEG file.

    Args:
        image: (3, H, W) uint8, or a PIL picture.
        most: bytes that the file may have.

    Returns:
        The file.
    """
    if not isinstance(image, Image.Image):
        image = Image.fromarray(np.ascontiguousarray(plain(image).transpose(1, 2, 0)))
    image = image.convert("RGB")
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    while True:
        for quality in (88, 75, 60, 45):
            file = io.BytesIO()
            image.save(file, "jpeg", quality=quality, optimize=True, subsampling=0 if quality > 60 else 2)
            if file.tell() <= most or max(image.size) <= 8:
                return file.getvalue()
        image = image.resize([max(1, round(0.75 * side)) for side in image.size], Image.Resampling.LANCZOS)


def colour_table(name: str) -> np.ndarray:
    """The 256 colours of a matplotlib map, (256, 3) uint8."""
    return (colormaps[name].resampled(256)(np.arange(256), bytes=True))[:, :3]


def still(matrix: np.ndarray, low: float, high: float, side: int = 360) -> bytes:
    """The matrix as a PNG file, for those who cannot run the page.

    Args:
        matrix: (N, M) real.
        low: the value of the darkest colour.
        high: the value of the brightest.
        side: pixels of the longer side.

    Returns:
        The file.
    """
    shown = Image.fromarray(quantise(matrix, low, high, 8))
    shown.putpalette(colour_table(COSINES).tobytes())
    factor = side / max(matrix.shape)
    rows, columns = (max(6, round(factor * count)) for count in matrix.shape)
    file = io.BytesIO()
    shown.resize((columns, rows), Image.Resampling.NEAREST).save(file, "png", optimize=True)
    return file.getvalue()


def orders(
    matrix: np.ndarray,
    rows: Mapping[str, Sequence],
    columns: Mapping[str, Sequence],
    owner: np.ndarray | None,
) -> list[dict]:
    """The orders in which the matrix can be shown: as given, by cluster, by own pair, by each attribute.

    Columns without an attribute of that name follow the rows of their own pictures, so that the diagonal stays one.

    Args:
        matrix: (N, M), the last step.
        rows: name -> N values.
        columns: name -> M values.
        owner: (M,) the picture of each caption, -1 where it has none; None where nothing is known.

    Returns:
        For each a dict(name, rows (N,) and columns (M,) uint16: the given index at each shown place, row_groups and
        column_groups: [start, name] of each run of equal attributes, or None).
    """
    n, m = matrix.shape
    straight = np.arange(n), np.arange(m)
    found = [_order("as given", *straight)]
    if min(n, m) > 2:
        lines = _leaves(matrix)
        found.append(_order("by cluster", lines, _follow(lines, owner, m) if owner is not None else _leaves(matrix.T)))
    if owner is not None and n > 1:
        own = np.full(n, -np.inf)
        has = owner >= 0
        np.maximum.at(own, owner[has], matrix[owner[has], straight[1][has]])
        lines = np.argsort(-own, kind="stable")
        found.append(_order("by cosine of the own pair", lines, _follow(lines, owner, m)))
    for name in [*rows, *(name for name in columns if name not in rows)]:
        down = _sorted(rows[name]) if name in rows else straight[0]
        if name in columns:
            along = _sorted(columns[name])
        else:
            along = _follow(down, owner, m) if owner is not None else straight[1]
        found.append(
            _order(
                f"by {name}",
                down,
                along,
                _groups(rows[name], down) if name in rows else None,
                _groups(columns[name], along)
                if name in columns
                else _groups([rows[name][i] if i >= 0 else "" for i in owner], along)
                if owner is not None
                else None,
            )
        )
    return found


def _order(name, rows, columns, row_groups=None, column_groups=None) -> dict:
    return {
        "name": name,
        "rows": np.asarray(rows, np.uint16),
        "columns": np.asarray(columns, np.uint16),
        "row_groups": row_groups,
        "column_groups": column_groups,
    }


def _leaves(matrix: np.ndarray) -> np.ndarray:
    """Rows that are alike beside each other: the leaves of an average-linkage tree."""
    if len(matrix) < 3:
        return np.arange(len(matrix))
    from scipy.cluster.hierarchy import leaves_list, linkage

    return leaves_list(linkage(matrix.astype(np.float64), "average"))


def _follow(rows: np.ndarray, owner: np.ndarray, m: int) -> np.ndarray:
    """Columns in the order of their pictures; those without a picture come last."""
    at = np.argsort(rows)
    key = np.where(owner >= 0, at[owner], len(rows))
    return np.argsort(key, kind="stable")


def _key(value) -> tuple:
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return (value is None, not number, float(value) if number else 0.0, str(value))


def _sorted(values: Sequence) -> np.ndarray:
    return np.array(sorted(range(len(values)), key=lambda i: _key(values[i])), dtype=int)


def _groups(values: Sequence, order: np.ndarray) -> list | None:
    runs = []
    for at, index in enumerate(order):
        word = "" if values[index] is None else str(values[index])
        if not runs or runs[-1][1] != word:
            runs.append([at, word])
    return runs if len(runs) <= MOST_GROUPS else None


def pack(arrays: Mapping[str, np.ndarray], files: Sequence[bytes]) -> tuple[dict, list, bytes]:
    """Arrays and files in one run of bytes, deflated.

    Args:
        arrays: uint8 or uint16.
        files: pictures.

    Returns:
        (name -> [kind, offset, length], [[offset, bytes] of each file], the deflated bytes).
    """
    where, places, parts, at = {}, [], [], 0
    for name, array in arrays.items():
        raw = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
        where[name] = ["u1" if array.dtype == np.uint8 else "u2", at, array.size]
        raw += bytes(-len(raw) % 8)
        parts.append(raw)
        at += len(raw)
    for file in files:
        places.append([at, len(file)])
        parts.append(file)
        at += len(file)
    return where, places, zlib.compress(b"".join(parts), 6)
