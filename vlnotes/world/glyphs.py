"""Shapes that nobody here drew: symbols of the DejaVu font that matplotlib ships, as distance fields.

A glyph is drawn once, large, by the font's own renderer; the distance to its nearest edge pixel is kept on a grid and
read off between the grid's points, so that it serves like any function of `shapes.py`.
"""

from functools import cache, partial

import torch
from torch import Tensor

# What a symbol is called here -> its character; its Unicode name says so too.
GLYPHS = {
    "star": "\u2605",
    "heart": "\u2665",
    "diamond": "\u2666",
    "flower": "\u273f",
    "anchor": "\u2693",
    "spade": "\u2660",
    "club": "\u2663",
    "knight": "\u265e",
    "umbrella": "\u2602",
    "telephone": "\u260e",
    "plane": "\u2708",
    "note": "\u266b",
    "flag": "\u2691",
    "sun": "\u2600",
}
_SIDE = 128  # points of the grid a side
REACH = 1.75  # the grid spans -1.75 .. 1.75 radii


def glyph(name: str, x: Tensor, y: Tensor) -> Tensor:
    """Distance to the edge of a symbol, negative inside; see `shapes.py`."""
    field = _field(name).to(x)[None, None]
    at = torch.stack((x, y), -1).view(1, 1, -1, 2) / REACH
    d = torch.nn.functional.grid_sample(field, at, align_corners=True, padding_mode="border")
    return d.view_as(x)


@cache
def _field(name: str) -> Tensor:
    """Distances of one symbol, see `field_of`."""
    from pathlib import Path

    import numpy as np
    from matplotlib import get_data_path
    from matplotlib.ft2font import FT2Font, LoadFlags

    font = FT2Font(str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"))
    font.set_size(200, 72)
    font.set_text(GLYPHS[name], flags=LoadFlags.NO_HINTING)
    font.draw_glyphs_to_bitmap(antialiased=True)
    ink = torch.from_numpy(np.array(font.get_image())).double() > 127  # (H, W)
    return field_of(torch.nn.functional.pad(ink, (2, 2, 2, 2)), _SIDE)


def field_of(ink: Tensor, side: int) -> Tensor:
    """(side, side) float64 distances in radii to the edge of the ink, (H, W) bool with an empty rim.

    The farthest ink lies at radius 1; the grid spans -REACH .. REACH.
    """
    rows, columns = ink.nonzero().T
    # The middle of the box, then a radius that reaches the farthest pixel.
    cy, cx = (rows.min() + rows.max()) / 2, (columns.min() + columns.max()) / 2
    radius = torch.hypot(rows - cy, columns - cx).max() + 0.5
    edges = []  # middles between a pixel with ink and a neighbour without
    for axis in (0, 1):
        a, b = ink.narrow(axis, 0, ink.shape[axis] - 1), ink.narrow(axis, 1, ink.shape[axis] - 1)
        where = (a != b).nonzero().double()
        where[:, axis] += 0.5
        edges.append(where)
    edges = (torch.cat(edges) - torch.stack((cy, cx))) / radius  # (E, 2)
    line = torch.linspace(-REACH, REACH, side, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)  # (side ** 2, 2): y, x
    away = torch.cat([torch.cdist(part, edges).amin(1) for part in grid.split(2048)])
    pixel = (grid * radius + torch.stack((cy, cx))).round().long()
    inside = ((pixel >= 0) & (pixel < torch.tensor(ink.shape))).all(1)
    pixel = pixel.minimum(torch.tensor(ink.shape) - 1).clamp(min=0)
    inside &= ink[pixel[:, 0], pixel[:, 1]]
    return torch.where(inside, -away, away).view(side, side)


GLYPH_DISTANCES = {name: partial(glyph, name) for name in GLYPHS}
