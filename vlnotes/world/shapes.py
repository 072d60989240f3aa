"""Signed distance functions: how far a point is from the edge of a shape, negative inside.

All shapes live in a circle of radius 1 around the origin; x points right, y points down. `x` and `y` are
tensors of one shape and so is the result. Distances are exact near straight edges and good enough elsewhere:
they only have to be right within a pixel or two of the edge, where they become anti-aliasing, rims, shadows
and glow.

Unions are minima, intersections maxima, and a mirror symmetry is an absolute value.
"""

import math

import torch
from torch import Tensor

from vlnotes.world.glyphs import GLYPH_DISTANCES
from vlnotes.world.scans import SCAN_DISTANCES


def circle(x: Tensor, y: Tensor) -> Tensor:
    """A full disc."""
    return torch.hypot(x, y) - 0.92


def square(x: Tensor, y: Tensor) -> Tensor:
    """Upright square; corners by the larger of two distances."""
    return torch.maximum(x.abs(), y.abs()) - 0.77


def triangle(x: Tensor, y: Tensor) -> Tensor:
    """Equilateral, one side below."""
    y = y - 0.06
    return torch.maximum(y, 0.866 * x.abs() - 0.5 * y) - 0.52


def star(x: Tensor, y: Tensor) -> Tensor:
    """Five tips."""
    # Fold the plane into a tenth of the star, then one edge from a tip to a notch is left.
    c1, s1 = math.cos(math.pi / 5), math.sin(math.pi / 5)
    x, y = x.abs(), -y + 0.03
    t = 2 * (c1 * x - s1 * y).clamp(min=0)
    x, y = x - t * c1, y + t * s1
    t = 2 * (-c1 * x - s1 * y).clamp(min=0)
    x, y = x + t * c1, y + t * s1
    tip, notch = (0.0, 1.06), (0.5 * math.sin(math.pi / 5), 0.5 * math.cos(math.pi / 5))
    nx, ny = tip[1] - notch[1], notch[0] - tip[0]
    length = math.hypot(nx, ny)
    return (x.abs() - tip[0]) * (nx / length) + (y - tip[1]) * (ny / length)


def hexagon(x: Tensor, y: Tensor) -> Tensor:
    """Regular, flat above and below."""
    x, y = x.abs(), y.abs()
    return torch.maximum(0.866 * x + 0.5 * y, y) - 0.84


def cross(x: Tensor, y: Tensor) -> Tensor:
    """Two bars of equal length."""
    x, y = x.abs(), y.abs()
    return torch.maximum(torch.maximum(x, y) - 0.94, torch.minimum(x, y) - 0.31)


def ring(x: Tensor, y: Tensor) -> Tensor:
    """A circle's own distance folded at its middle line."""
    return (torch.hypot(x, y) - 0.69).abs() - 0.25


def moon(x: Tensor, y: Tensor) -> Tensor:
    """A disc with a disc bitten out."""
    x = x - 0.12
    horns = 0.957 * x - 0.291 * y - 0.48  # beyond the chord between the horns there is no moon
    bite = torch.maximum(0.82 - torch.hypot(x - 0.46, y + 0.14), horns)
    return torch.maximum(torch.hypot(x, y) - 0.95, bite)


def _teardrop(x: Tensor, y: Tensor, cx: float, cy: float, r: float, tip: float) -> Tensor:
    """A circle at (+-cx, cy) with a straight tangent down or up to the point (0, tip)."""
    x = x.abs()
    # Unit vector from the circle's centre to the tip, and the tangent on the outer side.
    length = math.hypot(cx, tip - cy)
    dx, dy = -cx / length, (tip - cy) / length
    cosine = r / length
    sine = math.sqrt(1 - cosine * cosine)
    turn = math.copysign(1.0, dy)
    nx = cosine * dx + turn * sine * dy
    ny = cosine * dy - turn * sine * dx
    tx, ty = -turn * ny, turn * nx
    px, py = x - cx, y - cy
    wedge = torch.maximum(nx * px + ny * py - r, -(tx * px + ty * py))
    if cx:
        wedge = torch.maximum(wedge, cy - y)
    return torch.minimum(torch.hypot(px, py) - r, wedge)


def heart(x: Tensor, y: Tensor) -> Tensor:
    """Two discs and their tangents to one point."""
    return _teardrop(x, y, 0.45, -0.3, 0.49, 0.95)


def drop(x: Tensor, y: Tensor) -> Tensor:
    """A disc and its tangents to a point above."""
    return _teardrop(x, y, 0.0, 0.3, 0.62, -1.0)


def house(x: Tensor, y: Tensor) -> Tensor:
    """A box under a roof, with an open door."""
    x = x.abs()
    body = torch.maximum(x - 0.66, (y - 0.38).abs() - 0.5)
    roof = torch.maximum(y + 0.06, 0.68 * x - 0.733 * (y + 0.98))
    return torch.maximum(torch.minimum(body, roof), -torch.maximum(x - 0.17, 0.34 - y))


def arrow(x: Tensor, y: Tensor) -> Tensor:
    """Points to the right."""
    y = y.abs()
    shaft = torch.maximum((x + 0.4).abs() - 0.58, y - 0.24)
    head = torch.maximum(0.02 - x, 0.66 * (x - 0.98) + 0.75 * y)
    return torch.minimum(shaft, head)


def flower(x: Tensor, y: Tensor) -> Tensor:
    """Five petals and an open middle, in polar form."""
    r = torch.hypot(x, y)
    petals = 0.7 * (r - 0.68 - 0.26 * torch.cos(5 * torch.atan2(x, -y)))
    return torch.maximum(petals, 0.2 - r)


def diamond(x: Tensor, y: Tensor) -> Tensor:
    """A tall rhombus."""
    return 0.84 * x.abs() + 0.54 * y.abs() - 0.55


def tree(x: Tensor, y: Tensor) -> Tensor:
    """A trunk under three round crowns."""
    x = x.abs()
    trunk = torch.maximum(x - 0.15, (y - 0.58).abs() - 0.4)
    crown = torch.minimum(torch.hypot(x, y + 0.46) - 0.52, torch.hypot(x - 0.44, y + 0.06) - 0.46)
    return torch.minimum(trunk, crown)


def leaf(x: Tensor, y: Tensor) -> Tensor:
    """Two arcs, a cut for the vein, a stem; leans to the right."""
    x, y = 0.77 * x + 0.64 * y, 0.77 * y - 0.64 * x
    blade = torch.hypot(x.abs() + 0.3, y + 0.16) - 0.88
    vein = 0.06 - torch.maximum(x.abs(), -0.15 - y)
    stem = torch.maximum(x.abs() - 0.09, (y - 0.82).abs() - 0.22)
    return torch.minimum(torch.maximum(blade, vein), stem)


def mushroom(x: Tensor, y: Tensor) -> Tensor:
    """Half a disc on a stem."""
    x = x.abs()
    cap = torch.maximum(torch.hypot(x, 1.08 * (y - 0.05)) - 0.96, y - 0.1)
    stem = torch.maximum(x - 0.26 - 0.12 * y, (y - 0.45).abs() - 0.47)
    return torch.minimum(cap, stem)


def butterfly(x: Tensor, y: Tensor) -> Tensor:
    """Two pairs of wings and a body."""
    x = x.abs()
    p, q = x - 0.47, y + 0.31
    upper = torch.hypot(0.62 * (p - q), 0.86 * (p + q)) - 0.47
    lower = torch.hypot(x - 0.4, y - 0.46) - 0.37
    body = torch.hypot(x, (y.abs() - 0.6).clamp(min=0)) - 0.11
    return torch.minimum(torch.minimum(upper, lower), body)


def bird(x: Tensor, y: Tensor) -> Tensor:
    """Looks to the right."""
    body = 0.85 * (torch.hypot(x + 0.05, 1.3 * (y - 0.2)) - 0.66)
    head = torch.hypot(x - 0.45, y + 0.34) - 0.36
    beak = torch.maximum(0.9 * (y + 0.3).abs() + 0.42 * (x - 1.04), 0.6 - x)
    tail = torch.maximum((y + 0.02 - 0.55 * (x + 0.7)).abs() - 0.19, (x + 0.72).abs() - 0.3)
    return torch.minimum(torch.minimum(body, head), torch.minimum(beak, tail))


def boat(x: Tensor, y: Tensor) -> Tensor:
    """A hull, a mast and one sail to the right of it."""
    hull = torch.maximum(0.89 * x.abs() + 0.45 * y - 0.94, (y - 0.54).abs() - 0.27)
    mast = torch.maximum((x + 0.12).abs() - 0.07, (y + 0.3).abs() - 0.68)
    sail = torch.maximum(torch.maximum(0.02 - x, y - 0.12), 0.83 * x - 0.56 * (y + 0.96))
    jib = torch.maximum(torch.maximum(x + 0.26, y - 0.12), -0.87 * x - 0.5 * (y + 0.94))
    return torch.minimum(torch.minimum(hull, mast), torch.minimum(sail, jib))


def fish(x: Tensor, y: Tensor) -> Tensor:
    """Swims to the right, with an open eye."""
    body = 0.8 * (torch.hypot(x - 0.2, 1.45 * y) - 0.76)
    tail = torch.maximum(0.78 * y.abs() + 0.62 * (x + 0.36), -0.92 - x)
    eye = torch.hypot(x - 0.52, y + 0.12) - 0.11
    return torch.maximum(torch.minimum(body, tail), -eye)


def anchor(x: Tensor, y: Tensor) -> Tensor:
    """A ring, a stock, a shank, and arms that end in flukes."""
    x = x.abs()
    eye = (torch.hypot(x, y + 0.74) - 0.17).abs() - 0.09
    shank = torch.maximum(x - 0.11, (y - 0.14).abs() - 0.72)
    stock = torch.maximum(x - 0.45, (y + 0.34).abs() - 0.1)
    arms = torch.maximum((torch.hypot(x, y - 0.1) - 0.72).abs() - 0.12, 0.28 - y)
    fluke = 0.71 * ((x - 0.7).abs() + (y - 0.24).abs() - 0.27)
    return torch.minimum(torch.minimum(torch.minimum(eye, shank), torch.minimum(stock, arms)), fluke)


def wave(x: Tensor, y: Tensor) -> Tensor:
    """Two wavy lines."""
    swing = 0.17 * torch.sin(5.7 * x)
    lines = 0.72 * (((y - swing).abs() - 0.37).abs() - 0.21)
    return torch.maximum(lines, x.abs() - 0.79)


def lighthouse(x: Tensor, y: Tensor) -> Tensor:
    """A tapered tower with a bright band, a lamp between gallery and roof."""
    x = x.abs()
    tower = torch.maximum(0.97 * x - 0.24 * y - 0.32, (y - 0.27).abs() - 0.66)
    tower = torch.maximum(tower, 0.1 - (y - 0.22).abs())
    gallery = torch.maximum(x - 0.37, (y + 0.38).abs() - 0.06)
    lamp = torch.maximum(x - 0.2, (y + 0.6).abs() - 0.2)
    roof = torch.maximum(y + 0.66, 0.64 * x - 0.77 * (y + 1.0))
    return torch.minimum(torch.minimum(tower, gallery), torch.minimum(lamp, roof))


def cloud(x: Tensor, y: Tensor) -> Tensor:
    """Three puffs on a flat base."""
    x = x.abs()
    puffs = torch.minimum(torch.hypot(x, y + 0.22) - 0.62, torch.hypot(x - 0.55, y - 0.12) - 0.46)
    return torch.maximum(puffs, y - 0.5)


_ALL = (
    circle,
    square,
    triangle,
    star,
    hexagon,
    cross,
    ring,
    moon,
    heart,
    drop,
    house,
    arrow,
    flower,
    diamond,
    tree,
    leaf,
    mushroom,
    butterfly,
    bird,
    boat,
    fish,
    anchor,
    wave,
    lighthouse,
    cloud,
)
DISTANCES = {shape.__name__: shape for shape in _ALL}
# A glyph whose noun is drawn here too has its domain's look in front of its name.
DISTANCES |= {f"glyphs {name}" if name in DISTANCES else name: shape for name, shape in GLYPH_DISTANCES.items()}
DISTANCES |= SCAN_DISTANCES
