"""Grounds: two-colour gradients under value noise, and what lies over a whole picture (fog, stitches).

Noise is an integer hash of a scene's seed and the coordinates, so a scene looks the same alone, in a batch,
anywhere.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from vlnotes.world.domains import DOMAINS, FRAME, blend
from vlnotes.world.scenes import Scene

_BAYER = ((0, 8, 2, 10), (12, 4, 14, 6), (3, 11, 1, 9), (15, 7, 13, 5))  # thresholds of ordered dithering


def mix(h: Tensor) -> Tensor:
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


def noise(seeds: Tensor, size: int, nodes: int) -> Tensor:
    """Value noise (B, size, size) in about -1..1 with `nodes` bumps a side."""
    n = torch.arange(nodes + 3, device=seeds.device)
    lattice = mix(mix(seeds[:, None, None] + 7919 * nodes + n[:, None] * 257) + n * 65537)  # (B, n, n)
    lattice = (lattice & 0xFFFF).float().div_(32767.5).sub_(1)
    weights = _spline(size, nodes, seeds.device)
    return (weights @ lattice @ weights.T).mul_(1.6)


def grain(seeds: Tensor, size: int) -> Tensor:
    """A speck of -1, 0 or 1 grey levels for every pixel, most of them 0, (B, size, size)."""
    n = torch.arange(size, device=seeds.device)
    row = (mix(seeds[:, None] + n * 9781) - (1 << 31)).int()  # (B, H)
    column = (mix(seeds[:, None] * 3 + n * 6271) - (1 << 31)).int()
    h = row[:, :, None] ^ column[:, None, :]  # (B, H, W) int32; products wrap around, as a hash should
    h *= 0x2C1B3C6D
    h ^= h >> 15
    h *= 0x297A2D39
    h >>= 28  # -8 .. 7
    return ((h > 6).int() - (h < -7).int()).float()


def seeds_of(scenes: list[Scene], device: torch.device) -> Tensor:
    """(B,) int64, 31 bits of each scene's seed."""
    return torch.tensor([(s.seed ^ s.seed >> 21) & 0x7FFFFFFF for s in scenes]).to(device)


def ground_of(scenes: list[Scene], name: str, size: int, device: torch.device) -> Tensor:
    """The empty places, (B, 3, size, size) float in grey levels."""
    domain = DOMAINS[name]
    ends = torch.tensor([domain.places[s.place] for s in scenes], dtype=torch.float32).to(device)  # (B, 2, 3)
    ramp = [blend(domain.horizon, (k + 0.5) / size) for k in range(size)]
    ramp = torch.tensor(ramp, dtype=torch.float32).to(device)
    seeds = seeds_of(scenes, device)
    if domain.look == "pixel":
        return _dithered(ends, ramp, seeds, size)
    base = torch.lerp(ends[:, 0, :, None], ends[:, 1, :, None], ramp)  # (B, 3, H)
    rough = noise(seeds, size, 5).mul_(2.5 if domain.look == "neon" else 6.0)
    if domain.leaves:
        step = 20
        rough.add_(noise(seeds, size, step).mul_((domain.leaves * ramp)[:, None]))
    if domain.look == "harbour":
        rough.add_(_ripples(seeds, size, domain.horizon))
    if domain.look != "neon":  # glass has no grain
        rough.add_(grain(seeds, size))
    # Whole grey levels, the same in all channels: nothing is lost in uint8, and PNG files are a third
    # smaller.
    rough.round_()
    return base.round_()[..., None] + rough[:, None]  # (B, 3, H, W)


def _dithered(ends: Tensor, ramp: Tensor, seeds: Tensor, size: int) -> Tensor:
    """Two colours and nothing between them: the gradient becomes a share of pixels."""
    bayer = torch.tensor(_BAYER, dtype=torch.float32, device=seeds.device)
    tiles = -(-size // 4)
    threshold = (bayer.repeat(tiles, tiles)[:size, :size] + 0.5) / 16
    share = 0.15 + 0.7 * ramp[:, None] + noise(seeds, size, 3) * 0.25  # (B, H, W)
    below = (share > threshold).float()[:, None]
    return torch.lerp(ends[:, 0, :, None, None], ends[:, 1, :, None, None], below)


def _ripples(seeds: Tensor, size: int, horizon: float) -> Tensor:
    """Waves that grow towards the front, (B, size, size) in grey levels."""
    y = (torch.arange(size, device=seeds.device) + 0.5) / size
    near = ((y - horizon - 0.04) / (1 - horizon)).clamp(0, 1)  # 0 at the horizon, 1 in front
    phase = 2 * math.pi * 17 * near.sqrt()
    bend = noise(seeds, size, 6) * 2.2
    return torch.sin(phase[:, None] + bend) * (9 * near.sqrt())[:, None]


def fog(canvas: Tensor, scenes: list[Scene], name: str) -> Tensor:
    """A thin bank of fog along the horizon, over everything, (B, 3, H, W)."""
    domain, size = DOMAINS[name], canvas.shape[-1]
    ends = torch.tensor([domain.places[s.place] for s in scenes], dtype=torch.float32).to(canvas.device)
    white = ends.mean(1).mul_(0.6).add_(0.4 * 236)  # (B, 3)
    y = (torch.arange(size, device=canvas.device) + 0.5) / size
    bank = torch.exp(-(((y - domain.horizon) / 0.13) ** 2))
    alpha = (noise(seeds_of(scenes, canvas.device), size, 3) * 0.12 + 0.14).clamp_(0, 0.24) * bank[:, None]
    return torch.lerp(canvas, white[:, :, None, None].expand_as(canvas), alpha[:, None])


@lru_cache(maxsize=16)
def _stitches(size: int, device: torch.device) -> Tensor:
    """Brightness of a knitted fabric, (size, size) around 1: columns of V, 4 by 4 units each."""
    at = (torch.arange(size, dtype=torch.float64) + 0.5) * (FRAME / size)
    away = (at % 4 - 2).abs()  # 0 in the middle of a column of V, 2 between columns
    legs = torch.cos(2 * math.pi * (at[:, None] + 0.9 * away) / 4)
    return (1 + 0.045 * legs - 0.05 * (away > 1.6) - 0.03 * (away < 0.4)).float().to(device)


def knitted(canvas: Tensor) -> Tensor:
    """Every colour of the picture as stitches, (B, 3, H, W)."""
    return canvas.mul_(_stitches(canvas.shape[-1], canvas.device))
