"""Digits that people wrote: scans that scikit-learn ships, as distance fields, many hands for each digit."""

from functools import cache, partial

import torch
from torch import Tensor

from vlnotes.world.domain_tables import DIGITS
from vlnotes.world.glyphs import REACH, field_of

HANDS = 24  # scans of each digit
_SIDE = 48  # points of the grid a side


def scan(name: str, x: Tensor, y: Tensor, hand: Tensor | None = None) -> Tensor:
    """Distance to the edge of a written digit, negative inside; see `shapes.py`.

    Args:
        name: a name from `DIGITS`.
        x, y: (O, ...) points in radii.
        hand: (O,) int64, whose writing each of the O things shows, any number; default the first.

    Returns:
        Distances in the shape of x.
    """
    hand = torch.zeros(len(x), dtype=torch.long, device=x.device) if hand is None else hand % HANDS
    fields = _fields(name).to(x)[hand, None]  # (O, 1, _SIDE, _SIDE)
    at = torch.stack((x, y), -1).view(len(x), 1, -1, 2) / REACH
    return torch.nn.functional.grid_sample(fields, at, align_corners=True, padding_mode="border").view_as(x)


@cache
def _fields(name: str) -> Tensor:
    """(HANDS, _SIDE, _SIDE) distances of the first scans of a digit."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pictures = torch.from_numpy(data.images[data.target == DIGITS.index(name)][:HANDS])  # (HANDS, 8, 8), 0..16
    pictures = torch.nn.functional.pad(pictures, (1, 1, 1, 1))[:, None]
    large = torch.nn.functional.interpolate(pictures, 80, mode="bicubic")[:, 0]
    return torch.stack([field_of(picture > 8.5, _SIDE) for picture in large])


SCAN_DISTANCES = {name: partial(scan, name) for name in DIGITS}
