"""Pictures, boxes and masks from scenes: signed distances in torch, painted back to front.

Every object is drawn in its own window of 32 x 32 units. Its distance field becomes three maps: how much of
the picture behind stays, how much of its colour and how much of its second tone is laid on. One small
function per look makes them. Noise is an integer hash of the scene's seed and the coordinates, so a scene
looks the same alone, in a batch, anywhere.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from vlnotes.world.domains import DIRECTIONS, DOMAINS, FRAME, SIZES, TEXTURES, blend, tone
from vlnotes.world.scenes import Scene
from vlnotes.world.shapes import DISTANCES

WINDOW = 32.0  # side of an object's window in frame units
CLOUD_RADIUS = 12.5
CLOUD_SLOT = 4
_CODES = {name: k for k, name in enumerate(DISTANCES)}
_SHAPES = tuple(DISTANCES.values())
_CLOUD = (232, 233, 238), (206, 209, 220)
_CLOUD_NEON = (74, 78, 96), (120, 126, 150)


def draw(scenes: list[Scene], size: int = 64, device: str | torch.device = "cpu") -> Tensor:
    """Paint scenes; the same scene gives the same picture alone, in any batch and on any device, to +-1 grey
    level.

    alpha = clamp(1/2 - d, 0, 1) with d the signed distance to the edge in pixels: anti-aliasing without
    supersampling.

    Args:
        scenes: B scenes, of any domains.
        size: side of the picture in pixels, 16 to 512; 32 to 96 is what networks see, 256 is for people.
        device: where to draw.

    Returns:
        (B, 3, size, size) uint8.

    Raises:
        ValueError: no scenes, or a size outside 16..512.

    Notebook: 01_picture_world, section 1.
    """
    _check(scenes, size)
    device = torch.device(device)
    # Small chunks stay in the cache of one core; a GPU wants large ones.
    step = 1024 if device.type == "cuda" else max(1, 64 * 64 * 64 // (size * size))
    pictures = torch.empty(len(scenes), 3, size, size, dtype=torch.uint8, device=device)
    looks: dict[str, list[int]] = {}
    for i, scene in enumerate(scenes):
        looks.setdefault(scene.domain, []).append(i)
    for name, rows in looks.items():
        for at in range(0, len(rows), step):
            part = rows[at : at + step]
            painted = _paint([scenes[i] for i in part], name, size, device)
            if len(part) == part[-1] - part[0] + 1:
                pictures[part[0] : part[-1] + 1] = painted
            else:
                pictures[torch.tensor(part, device=device)] = painted
    return pictures


def _check(scenes: list[Scene], size: int) -> None:
    if not scenes:
        raise ValueError("expected at least one scene, got an empty list")
    if not 16 <= size <= 512:
        raise ValueError(f"size must be 16 to 512 pixels, got {size}")


class _Objects:
    """All drawn objects of some scenes, sorted by shape so that each distance runs once over one slice."""

    def __init__(self, scenes: list[Scene], size: int, device: torch.device):
        rows = []
        for b, scene in enumerate(scenes):
            palette, look = DOMAINS[scene.domain].palette, DOMAINS[scene.domain].look
            for k, t in enumerate(scene.objects):
                if k not in scene.hidden:
                    turn = t.rotation + (90 * DIRECTIONS.index(t.direction) if t.direction else 0)
                    colour = palette[t.colour]
                    rows.append(
                        (
                            _CODES[t.shape],
                            b,
                            k,
                            t.x,
                            t.y,
                            SIZES[t.size],
                            turn,
                            TEXTURES.index(t.texture),
                            *colour,
                        )
                        + _second(look, t.colour, colour)
                    )
            if scene.cloud is not None:
                pair = _CLOUD_NEON if look == "neon" else _CLOUD
                rows.append((_CODES["cloud"], b, CLOUD_SLOT, *scene.cloud, CLOUD_RADIUS, 0.0, 0, *pair[0], *pair[1]))
        rows.sort(key=lambda r: r[0])
        data = torch.tensor(rows, dtype=torch.float32).to(device)  # (O, 14)
        self.shape = [r[0] for r in rows]
        self.scene, self.slot = data[:, 1].long(), data[:, 2].long()
        self.slots = sorted({r[2] for r in rows})
        self.x, self.y, self.r, self.texture = data[:, 3], data[:, 4], data[:, 5], data[:, 7]
        self.colours = data[:, 8:14].view(-1, 2, 3).mT  # (O, 3, 2)
        scale = size / FRAME
        self.scale, self.side = scale, min(size, math.ceil(WINDOW * scale))
        self.left = (self.x * scale - self.side / 2).round().clamp(0, size - self.side)
        self.top = (self.y * scale - self.side / 2).round().clamp(0, size - self.side)
        pixel = torch.arange(self.side, device=device) + 0.5
        gx = ((self.left[:, None] + pixel) / scale - self.x[:, None]) / self.r[:, None]  # (O, W), units of the radius
        gy = ((self.top[:, None] + pixel) / scale - self.y[:, None]) / self.r[:, None]
        self.height = gy[:, :, None]  # (O, W, 1)
        angle = torch.deg2rad(data[:, 6:7])
        c, s = angle.cos(), angle.sin()
        self.u = (c * gx)[:, None, :] + (s * gy)[:, :, None]  # (O, W, W)
        self.v = (c * gy)[:, :, None] - (s * gx)[:, None, :]
        self.d = torch.empty_like(self.u)
        at = 0
        while at < len(rows):
            end = at + self.shape[at:].count(self.shape[at])
            torch.mul(
                _SHAPES[self.shape[at]](self.u[at:end], self.v[at:end]),
                (self.r[at:end] * scale)[:, None, None],
                out=self.d[at:end],
            )
            at = end
        # Two planes that meet in a sharp tip stay close to each other far outside it; the tip ends where the
        # shape does.
        outside = torch.hypot(self.u, self.v).sub_(1.11).mul_((self.r * scale)[:, None, None])
        torch.maximum(self.d, outside, out=self.d)


def _second(look: str, name: str, colour: tuple[int, int, int]) -> tuple[float, float, float]:
    # A neon tube has a pale core; paint has a darker or lighter tone of itself.
    return tuple(c + (255 - c) * 0.6 for c in colour) if look == "neon" else tone(name, colour)


def _pattern(o: _Objects, rows: Tensor, kind: int) -> Tensor:
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


def _textures(o: _Objects) -> Tensor:
    second = torch.zeros_like(o.d)
    for kind in (1, 2, 3):
        rows = (o.texture == kind).nonzero()[:, 0]
        if len(rows):
            second[rows] = _pattern(o, rows, kind)
    return second


def _flat(o: _Objects, rim: float, shade: float, gradient: float) -> tuple[Tensor, Tensor, Tensor]:
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


def _glow(o: _Objects) -> tuple[Tensor, Tensor, Tensor]:
    """Neon: no fill, a bright tube along the edge, light that falls off as exp(-|d| / 2)."""
    s = o.scale
    inside = (0.5 - o.d).clamp_(0, 1)
    away = (o.d.abs() - 0.6 * s).clamp_(min=0)
    first = (away / (-2.0 * s)).exp_().mul_((1.4 - away / (4.0 * s)).clamp_(0, 0.9))  # dark before the window ends
    first.add_(_textures(o).mul_(inside), alpha=0.55)
    core = (1 - away / (0.8 * s)).clamp_(0, 1).mul_(0.45)
    return 1 - 0.4 * inside, first.sub_(core).clamp_(min=0), core.mul_(1.25)


def _maps(o: _Objects, look: str) -> tuple[Tensor, Tensor, Tensor]:
    if look == "neon":
        return _glow(o)
    if look == "garden":
        return _flat(o, rim=0.16, shade=0.06, gradient=0.28)
    return _flat(o, rim=0.24, shade=0.07, gradient=0.0)


def _paint(scenes: list[Scene], name: str, size: int, device: torch.device) -> Tensor:
    canvas = _ground(scenes, name, size, device)  # (B, 3, H, W)
    o = _Objects(scenes, size, device)
    stay, first, second = _maps(o, DOMAINS[name].look)
    laid = o.colours @ torch.stack((first, second), 1).flatten(2)  # (O, 3, W * W)
    laid = laid.view(-1, 3, o.side, o.side)
    left, top = o.left.long(), o.top.long()
    windows = canvas.unfold(2, o.side, 1).unfold(3, o.side, 1)  # every window as a view, (B, 3, ., ., W, W)
    channel = torch.arange(3, device=device)
    for slot in o.slots:  # painter's order
        rows = (o.slot == slot).nonzero()[:, 0]
        at = (o.scene[rows, None], channel, top[rows, None], left[rows, None])
        windows[at] = torch.addcmul(laid[rows], windows[at], stay[rows, None])
    return canvas.add_(0.5).clamp_(0, 255).to(torch.uint8)


def _mix(h: Tensor) -> Tensor:
    """A 32-bit integer hash on int64 tensors, so that no product overflows unseen."""
    h = h & 0xFFFFFFFF
    h = ((h ^ (h >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    h = ((h ^ (h >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return h ^ (h >> 16)


@lru_cache(maxsize=64)
def _spline(size: int, nodes: int, device: torch.device) -> Tensor:
    """(size, nodes + 3) weights of the cubic B-spline: smooth noise is a product of two small matrices."""
    t = (torch.arange(size, dtype=torch.float64) + 0.5) / size * nodes
    away = (t[:, None] - torch.arange(-1, nodes + 2)).abs()
    near = 2 / 3 - away**2 + away**3 / 2
    far = (2 - away).clamp(min=0) ** 3 / 6
    return torch.where(away < 1, near, far).float().to(device)


def _noise(seeds: Tensor, size: int, nodes: int) -> Tensor:
    """Value noise (B, size, size) in about -1..1 with `nodes` bumps a side."""
    n = torch.arange(nodes + 3, device=seeds.device)
    lattice = _mix(_mix(seeds[:, None, None] + 7919 * nodes + n[:, None] * 257) + n * 65537)  # (B, n, n)
    lattice = (lattice & 0xFFFF).float().div_(32767.5).sub_(1)
    weights = _spline(size, nodes, seeds.device)
    return (weights @ lattice @ weights.T).mul_(1.6)


def _grain(seeds: Tensor, size: int) -> Tensor:
    """A speck of -1, 0 or 1 grey levels for every pixel, most of them 0, (B, size, size)."""
    n = torch.arange(size, device=seeds.device)
    row = (_mix(seeds[:, None] + n * 9781) - (1 << 31)).int()  # (B, H)
    column = (_mix(seeds[:, None] * 3 + n * 6271) - (1 << 31)).int()
    h = row[:, :, None] ^ column[:, None, :]  # (B, H, W) int32; products wrap around, as a hash should
    h *= 0x2C1B3C6D
    h ^= h >> 15
    h *= 0x297A2D39
    h >>= 28  # -8 .. 7
    return ((h > 6).int() - (h < -7).int()).float()


def _ground(scenes: list[Scene], name: str, size: int, device: torch.device) -> Tensor:
    domain = DOMAINS[name]
    ends = torch.tensor([domain.places[s.place] for s in scenes], dtype=torch.float32).to(device)  # (B, 2, 3)
    ramp = [blend(domain.horizon, (k + 0.5) / size) for k in range(size)]
    ramp = torch.tensor(ramp, dtype=torch.float32).to(device)
    base = torch.lerp(ends[:, 0, :, None], ends[:, 1, :, None], ramp)  # (B, 3, H)
    seeds = torch.tensor([(s.seed ^ s.seed >> 21) & 0x7FFFFFFF for s in scenes]).to(device)
    rough = _noise(seeds, size, 5).mul_(2.5 if domain.look == "neon" else 6.0)
    if domain.leaves:
        step = 20
        rough.add_(_noise(seeds, size, step).mul_((domain.leaves * ramp)[:, None]))
    if domain.look != "neon":  # glass has no grain
        rough.add_(_grain(seeds, size))
    # Whole grey levels, the same in all channels: nothing is lost in uint8, and PNG files are a third
    # smaller.
    rough.round_()
    return base.round_()[..., None] + rough[:, None]  # (B, 3, H, W)


def masks(scenes: list[Scene], size: int = 64, device: str | torch.device = "cpu") -> Tensor:
    """Which pixels show which object, later objects covering earlier ones: inside means alpha > 1/2.

    Args:
        scenes: B scenes.
        size: side in pixels, 16 to 512.

    Returns:
        (B, 4, size, size) bool, one mask a place in `scene.objects`; empty for missing and hidden objects.

    Raises:
        ValueError: no scenes, or a size outside 16..512.
    """
    _check(scenes, size)
    device = torch.device(device)
    made = []
    for at in range(0, len(scenes), 256):
        part = scenes[at : at + 256]
        o = _Objects(part, size, device)
        owner = torch.full((len(part), size, size), -1, dtype=torch.int8, device=device)
        windows = owner.unfold(1, o.side, 1).unfold(2, o.side, 1)
        for slot in o.slots:
            rows = (o.slot == slot).nonzero()[:, 0]
            index = (o.scene[rows], o.top[rows].long(), o.left[rows].long())
            windows[index] = torch.where(o.d[rows] < 0, slot, windows[index]).to(torch.int8)
        made.append(owner[:, None] == torch.arange(4, device=device)[:, None, None])
    return torch.cat(made)  # (B, 4, H, W)


def boxes(scene: Scene, size: int = 64) -> Tensor:
    """The smallest box around what can be seen of each object.

    Args:
        scene: a `Scene`.
        size: side of the picture in pixels.

    Returns:
        (objects, 4) float: left, top, right, bottom in pixels; zeros for what cannot be seen.
    """
    return boxes_of(masks([scene], size))[0, : len(scene.objects)]


def boxes_of(seen: Tensor) -> Tensor:
    """The smallest box around each mask.

    Args:
        seen: (..., H, W) bool.

    Returns:
        (..., 4) float: left, top, right, bottom in pixels, the last two exclusive; zeros for an empty mask.
    """
    columns, rows = seen.any(-2).int(), seen.any(-1).int()
    ends = [
        columns.argmax(-1),
        rows.argmax(-1),
        columns.shape[-1] - columns.flip(-1).argmax(-1),
        rows.shape[-1] - rows.flip(-1).argmax(-1),
    ]
    return torch.stack(ends, -1) * seen.flatten(-2).any(-1)[..., None].float()
