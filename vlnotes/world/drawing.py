"""Pictures, boxes and masks from scenes: signed distances in torch, painted back to front.

Every object is drawn in its own window of 32 x 32 units. Its distance field becomes three maps: how much of
the picture behind stays, how much of its colour and how much of its second tone is laid on; `looks.py` makes
them, `grounds.py` what is behind.
"""

import math
from functools import partial

import torch
from torch import Tensor

from vlnotes.world.domains import DIRECTIONS, DOMAINS, FRAME, SIZES, TEXTURES
from vlnotes.world.grounds import fog, ground_of, knitted, noise, seeds_of
from vlnotes.world.looks import maps, second_tone
from vlnotes.world.scans import SCAN_DISTANCES
from vlnotes.world.scenes import Scene
from vlnotes.world.shapes import DISTANCES

WINDOW = 32.0  # side of an object's window in frame units
CLOUD_RADIUS = 12.5
CLOUD_SLOT = 4
SPRITE_SIDE = 32  # the pixel domain is drawn at this size, then enlarged
_CODES = {name: k for k, name in enumerate(DISTANCES)}
_NAMES, _SHAPES = tuple(DISTANCES), tuple(DISTANCES.values())
_CLOUD = (232, 233, 238), (206, 209, 220)
_CLOUD_DARK = (74, 78, 96), (120, 126, 150)


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
                    turn = 90 * DIRECTIONS.index(t.direction) if t.direction else 0
                    x, y = t.x, t.y
                    if look == "pixel":  # sprites stand upright, on the middle of a pixel
                        x, y = (2 * math.floor(v / 2) + 1.0 for v in (x, y))
                    else:
                        turn += t.rotation
                    colour = palette[t.colour]
                    rows.append(
                        (
                            _CODES[f"{look} {t.shape}" if f"{look} {t.shape}" in _CODES else t.shape],
                            b,
                            k,
                            x,
                            y,
                            SIZES[t.size],
                            turn,
                            TEXTURES.index(t.texture),
                            *colour,
                        )
                        + second_tone(look, t.colour, colour)
                    )
            if scene.cloud is not None:
                pair = _CLOUD_DARK if look in ("neon", "chalk") else _CLOUD
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
            shape = _SHAPES[self.shape[at]]
            if _NAMES[self.shape[at]] in SCAN_DISTANCES:  # whose hand wrote it follows from the scene
                seeds = torch.tensor([scenes[r[1]].seed + 7 * r[2] for r in rows[at:end]], device=device)
                shape = partial(shape, hand=seeds)
            torch.mul(
                shape(self.u[at:end], self.v[at:end]),
                (self.r[at:end] * scale)[:, None, None],
                out=self.d[at:end],
            )
            at = end
        # Two planes that meet in a sharp tip stay close to each other far outside it; the tip ends where the
        # shape does.
        outside = torch.hypot(self.u, self.v).sub_(1.11).mul_((self.r * scale)[:, None, None])
        torch.maximum(self.d, outside, out=self.d)


def _paint(scenes: list[Scene], name: str, size: int, device: torch.device) -> Tensor:
    look = DOMAINS[name].look
    if look == "pixel" and size > SPRITE_SIDE:
        small = _paint(scenes, name, SPRITE_SIDE, device)
        nearest = torch.arange(size, device=device) * SPRITE_SIDE // size
        return small[:, :, nearest][..., nearest]
    canvas = ground_of(scenes, name, size, device)  # (B, 3, H, W)
    o = _Objects(scenes, size, device)
    left, top = o.left.long(), o.top.long()
    if look in ("chalk", "knit"):
        rough = noise(seeds_of(scenes, device), size, 32)  # (B, H, W)
        o.rough = rough.unfold(1, o.side, 1).unfold(2, o.side, 1)[o.scene, top, left]  # (O, W, W)
    stay, first, second = maps(o, look)
    laid = o.colours @ torch.stack((first, second), 1).flatten(2)  # (O, 3, W * W)
    laid = laid.view(-1, 3, o.side, o.side)
    windows = canvas.unfold(2, o.side, 1).unfold(3, o.side, 1)  # every window as a view, (B, 3, ., ., W, W)
    channel = torch.arange(3, device=device)
    for slot in o.slots:  # painter's order
        rows = (o.slot == slot).nonzero()[:, 0]
        at = (o.scene[rows, None], channel, top[rows, None], left[rows, None])
        windows[at] = torch.addcmul(laid[rows], windows[at], stay[rows, None])
    if look == "knit":
        canvas = knitted(canvas)
    elif look == "harbour":
        canvas = fog(canvas, scenes, name)
    return canvas.add_(0.5).clamp_(0, 255).to(torch.uint8)


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
