"""Scenes, drawn and described: pictures in one tensor, captions in one list, and who belongs to whom."""

from typing import NamedTuple

import torch
from torch import Tensor

from vlnotes.world.captions import KINDS, Caption, captions
from vlnotes.world.drawing import draw
from vlnotes.world.scenes import Scene


class Pairs(NamedTuple):
    """N pictures with M captions; caption j was written for picture `text_to_image[j]`."""

    scenes: list[Scene]
    images: Tensor  # (N, 3, H, W) uint8, on the CPU
    captions: list[Caption]  # M
    text_to_image: Tensor  # (M,) int64

    @property
    def texts(self) -> list[str]:
        """The M captions as plain text."""
        return [caption.text for caption in self.captions]


def pairs(
    scenes: list[Scene],
    kinds: tuple[str, ...] = KINDS,
    size: int = 64,
    device: str = "cpu",
    *,
    synonyms: int = 2,
) -> Pairs:
    """Draw and describe scenes.

    Args:
        scenes: N scenes, from `World.scenes`.
        kinds: which captions to keep, of "full", "rel", "count", "partial" and "generic".
        size: pixels a side.
        device: where to draw.
        synonyms: how many words a concept may have, 1 for the canonical word only.

    Returns:
        `Pairs`; the captions of a picture stand together, pictures in the order of the scenes.

    Raises:
        ValueError: an unknown kind, no kinds, `synonyms` below 1, or a scene that has no caption of these kinds.
    """
    unknown = set(kinds) - set(KINDS)
    if unknown or not kinds:
        raise ValueError(f"kinds must be some of {', '.join(KINDS)}, not {sorted(unknown) or 'none'}")
    told, owner = [], []
    for index, scene in enumerate(scenes):
        some = [caption for caption in captions(scene, synonyms) if caption.kind in kinds]
        if not some:
            raise ValueError(f"scene {index} has no caption of the kinds {', '.join(kinds)}")
        told += some
        owner += [index] * len(some)
    parts = [draw(scenes[at : at + 512], size, device).cpu() for at in range(0, len(scenes), 512)]
    return Pairs(scenes, torch.cat(parts), told, torch.tensor(owner))
