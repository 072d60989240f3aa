"""How things are painted: one small function a look, from distance fields to three maps.

The maps say how much of the picture behind stays, how much of a thing's colour and how much of its second tone is
laid on, each (O, W, W) for O things in windows of W x W pixels. `o` holds what `drawing.py` knows about the
things: distances d in pixels, shape coordinates u and v, radius r, texture, pixels a unit.
"""

import math

import torch
from torch import Tensor

from vlnotes.world.domains import tone


def second_tone(look: str, name: str, colour: tuple[int, int, int]) -> tuple[float, float, float]:
    """A neon tube has a pale core, chalk pressed hard is paler; paint has a darker or lighter tone of itself."""
    pale = {"neon": 0.6, "chalk": 0.4}.get(look)
    return tuple(c + (255 - c) * pale for c in colour) if pale else tone(name, colour)


def _pattern(o, rows: Tensor, kind: int) -> Tensor:
    """Share of the second tone (rows, W, W) for striped 1, dotted 2, checked 3; sizes in frame units."""
    r = o.r[rows, None, None]
    soft = 1.2 * o.scale
    if kind == 1:
        wave = torch.sin((o.u[rows] + o.v[rows]) * r * (2 * math.pi / 6.2)) * (soft * 1.4)
    elif kind == 2:
        f = 2 * math.pi / 4.9
        wave = (torch.cos(o.u[rows] * r * f) + torch.cos(o.v[rows] * r * f) - 0.45) * soft
    else:
        f = math.pi / 3.4
        wave = torch.sin(o.u[rows] * r * f) * torch.sin(o.v[rows] * r * f) * (soft * 2.5)
    return (wave + 0.5).clamp_(0, 1)


def _textures(o) -> Tensor:
    second = torch.zeros_like(o.d)
    for kind in (1, 2, 3):
        rows = (o.texture == kind).nonzero()[:, 0]
        if len(rows):
            second[rows] = _pattern(o, rows, kind)
    return second


def _flat(o, rim: float, shade: float, gradient: float) -> tuple[Tensor, Tensor, Tensor]:
    """Paper and garden: filled, dark rim, soft shadow; `gradient` mixes the second tone in from below."""
    s = o.scale
    alpha = (0.5 - o.d).clamp_(0, 1)
    light = (o.d + 1.9 * s).div_(1.5 * s).clamp_(0, 1).mul_(-rim).add_(1.04 - shade * o.height)
    first = light.mul_(alpha)
    second = _textures(o)
    if gradient:
        second = (second * (1 - gradient)).add_((gradient * 0.5) * (1 + o.height)).clamp_(0, 1)
    second.mul_(first)
    first.sub_(second)
    dark = (0.62 - o.d / (4.5 * s)).clamp_(0, 1).square_().mul_(0.42)
    stay = torch.ones_like(dark)
    dx, dy = round(2 * s), round(1.5 * s)
    stay[:, dy:, dx:] -= dark[:, : o.side - dy, : o.side - dx]
    return stay.mul_(1 - alpha), first, second


def _glow(o) -> tuple[Tensor, Tensor, Tensor]:
    """Neon: no fill, a bright tube along the edge, light that falls off as exp(-|d| / 2)."""
    s = o.scale
    inside = (0.5 - o.d).clamp_(0, 1)
    away = (o.d.abs() - 0.6 * s).clamp_(min=0)
    first = (away / (-2.0 * s)).exp_().mul_((1.4 - away / (4.0 * s)).clamp_(0, 0.9))  # dark before the window ends
    first.add_(_textures(o).mul_(inside), alpha=0.55)
    core = (1 - away / (0.8 * s)).clamp_(0, 1).mul_(0.45)
    return 1 - 0.4 * inside, first.sub_(core).clamp_(min=0), core.mul_(1.25)


def _chalk(o) -> tuple[Tensor, Tensor, Tensor]:
    """Chalk: a grainy stroke along the edge and a smear inside, which a texture presses into the board."""
    s = o.scale
    inside = (0.5 - o.d).clamp_(0, 1)
    stroke = (0.5 + 1.35 * s - (o.d + 0.95 * s).abs()).clamp_(0, 1)
    marks = _textures(o).mul_(inside)
    cover = torch.maximum(stroke, 0.2 * inside + 0.62 * marks)
    cover.mul_((0.84 + 0.42 * o.rough).clamp_(0.25, 1))  # the board shows through
    second = cover * marks * 0.5
    return 1 - cover, cover - second, second


def _felt(o) -> tuple[Tensor, Tensor, Tensor]:
    """Knit: filled up to a woolly edge, with a pale seam just inside it."""
    s = o.scale
    d = o.d + 0.3 * s * o.rough
    alpha = (0.5 - d).clamp_(0, 1)
    seam = (0.5 + 0.5 * s - (d + 1.9 * s).abs()).clamp_(0, 1)
    dashes = torch.sin((o.u - o.v) * o.r[:, None, None] * 1.6) * torch.sin((o.u + o.v) * o.r[:, None, None] * 1.6) > 0
    light = (0.98 - 0.05 * o.height + 0.16 * seam * dashes).mul_(alpha)
    second = _textures(o).mul_(light)
    dark = (0.55 - o.d / (2.6 * s)).clamp_(0, 1).square_().mul_(0.4)
    stay = torch.ones_like(dark)
    by = max(1, round(s))
    stay[:, by:, by:] -= dark[:, :-by, :-by]
    return stay.mul_(1 - alpha), light - second, second


def _sprite(o) -> tuple[Tensor, Tensor, Tensor]:
    """Pixel: no half-covered pixels, a dark outline inside the edge, textures of whole pixels."""
    inside = (o.d < 0).float()
    column = o.left.long()[:, None, None] + torch.arange(o.side, device=o.d.device)  # (O, 1, W)
    row = o.top.long()[:, None, None] + torch.arange(o.side, device=o.d.device)[:, None]  # (O, W, 1)
    patterns = (
        torch.zeros_like(column + row, dtype=torch.bool),
        (row + column) % 4 < 2,
        (row % 3 == 0) & (column % 3 == 0),
        (row // 2 + column // 2) % 2 == 0,
    )
    second = torch.stack(patterns).take_along_dim(o.texture.long()[None, :, None, None], 0)[0].float()
    near = torch.nn.functional.pad(inside, (1, 1, 1, 1))
    core = near[:, :-2, 1:-1] * near[:, 2:, 1:-1] * near[:, 1:-1, :-2] * near[:, 1:-1, 2:]
    shade = inside * (0.66 + 0.34 * core)  # the outline is the colour itself, darker
    second = second * shade
    return 1 - inside, shade - second, second


_PAINTERS = {
    "paper": lambda o: _flat(o, rim=0.24, shade=0.07, gradient=0.0),
    "neon": _glow,
    "chalk": _chalk,
    "knit": _felt,
    "garden": lambda o: _flat(o, rim=0.16, shade=0.06, gradient=0.28),
    "harbour": lambda o: _flat(o, rim=0.2, shade=0.1, gradient=0.0),
    "pixel": _sprite,
    "digits": lambda o: _flat(o, rim=0.06, shade=0.0, gradient=0.0),
    "glyphs": lambda o: _flat(o, rim=0.1, shade=0.02, gradient=0.0),
}


def maps(o, look: str) -> tuple[Tensor, Tensor, Tensor]:
    """What stays, what gets the colour, what gets the second tone, each (O, W, W)."""
    return _PAINTERS[look](o)
