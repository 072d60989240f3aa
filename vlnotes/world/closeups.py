"""One thing from near: small pictures for learning and probing without captions."""

import torch
from torch import Tensor

from vlnotes.world.domains import FRAME, SIZES, TEXTURES
from vlnotes.world.drawing import draw
from vlnotes.world.scenes import Scene, domain_of

FACTORS = ("shape", "colour", "size", "texture")


def close_ups(scenes: list[Scene], size: int = 32, device: str | torch.device = "cpu") -> Tensor:
    """Scenes cut to a window of half their side around their first visible thing, without scaling it.

    The window stays inside the picture, so a thing near the edge is off the middle.

    Args:
        scenes: B scenes, such as those of `World.single`.
        size: side of the window in pixels, 8 to 256; the scene is drawn at twice that.
        device: where to draw.

    Returns:
        (B, 3, size, size) uint8.

    Raises:
        ValueError: no scenes, a size outside 8..256, or a scene in which nothing can be seen.
    """
    if not 8 <= size <= 256:
        raise ValueError(f"size must be 8 to 256 pixels, got {size}")
    pictures = draw(scenes, 2 * size, device)  # (B, 3, 2 size, 2 size)
    things = [_first_visible(scene) for scene in scenes]
    scale = 2 * size / FRAME
    corner = torch.tensor([[thing.y * scale, thing.x * scale] for thing in things], device=pictures.device)
    corner = (corner - size / 2).round().long().clamp(0, size)  # (B, 2): top, left
    window = torch.arange(size, device=pictures.device)
    rows, columns = corner[:, :1] + window, corner[:, 1:] + window  # (B, size) each
    batch = torch.arange(len(scenes), device=pictures.device)[:, None, None]
    # the channels come last where two index tensors stand apart from the batch's own dimension
    return pictures[batch, :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1).contiguous()


def factor_labels(scenes: list[Scene], factor: str) -> tuple[Tensor, tuple[str, ...]]:
    """What the first visible thing of each scene is, as numbers for a probe.

    Args:
        scenes: B scenes of one domain.
        factor: "shape", "colour", "size" or "texture".

    Returns:
        (B,) int64 labels, and the names they stand for: all that the domain has, in its order.

    Raises:
        ValueError: another factor, no scenes, scenes of several domains, or one in which nothing can be seen.
    """
    if factor not in FACTORS:
        raise ValueError(f"factor must be one of {list(FACTORS)}, not {factor!r}")
    domain = domain_of(scenes)
    names = {"shape": domain.shapes, "colour": tuple(domain.palette), "size": tuple(SIZES), "texture": TEXTURES}[factor]
    return torch.tensor([names.index(getattr(_first_visible(scene), factor)) for scene in scenes]), names


def _first_visible(scene: Scene):
    if not scene.visible:
        raise ValueError(f"scene {scene.id}: nothing can be seen in it")
    return scene.objects[scene.visible[0]]
