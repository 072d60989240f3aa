"""Which pixels does a word speak of? The truth beside which maps of attention are scored."""

from typing import NamedTuple

import torch
from torch import Tensor

from vlnotes.world.captions import Caption, relations_between
from vlnotes.world.domains import domain_named
from vlnotes.world.drawing import boxes_of, masks
from vlnotes.world.scenes import Scene

ROLES = ("noun", "colour", "texture", "size", "relation")
_ATTRIBUTE = {"noun": "shape", "colour": "colour", "texture": "texture", "size": "size", "direction": "direction"}
_KNOWN = (*_ATTRIBUTE, "relation", "count")


class Grounded(NamedTuple):
    """caption.text[start:end] is a word (or a phrase) that is true of these objects of its scene."""

    start: int
    end: int
    word: str
    role: str
    objects: tuple[int, ...]


def grounded_words(scene: Scene, caption: Caption, roles: tuple[str, ...] = ROLES) -> list[Grounded]:
    """The words of a caption that speak of something to be seen, in the order of the text.

    A word that is not true of its object, as noise makes them, points nowhere and is left out.

    Args:
        scene: the `Scene` of the picture.
        caption: what is said of it.
        roles: which words: of "noun", "colour", "texture", "size", "relation", "direction" and "count".

    Returns:
        List of `Grounded`; a relation has two objects, a count all that can be seen, every other word one.

    Raises:
        ValueError: an unknown role (a place is no object), or no roles.
    """
    unknown = set(roles) - set(_KNOWN)
    if unknown or not roles:
        raise ValueError(f"roles must be some of {', '.join(_KNOWN)}, not {sorted(unknown) or 'none'}")
    found = []
    for start, end, objects, role in caption.spans:
        if role in roles and objects and _true(scene, role, caption.text[start:end], objects):
            found.append(Grounded(start, end, caption.text[start:end], role, tuple(objects)))
    return found


def word_regions(scenes: list[Scene], words: list[list[Grounded]], size: int = 64) -> tuple[Tensor, Tensor]:
    """Where in the picture each word's objects are, as far as they can be seen.

    A relation is between two things, so its region is the two boxes around them; every other word has the pixels
    that show its objects (`masks`: what lies in front is cut out).

    Args:
        scenes: B scenes.
        words: for each scene its words, from `grounded_words`.
        size: side in pixels, 16 to 512.

    Returns:
        regions (N, size, size) bool, one a word, scene by scene; rows (N,) int64, the scene of each word.

    Raises:
        ValueError: no scenes, lists of words that are not as many, no words at all, a size outside 16..512, or a
            word of which nothing is to be seen.
    """
    if len(words) != len(scenes):
        raise ValueError(f"{len(words)} lists of words for {len(scenes)} scenes; expected one a scene")
    seen = masks(scenes, size)  # (B, 4, H, W)
    frame = boxes_of(seen)  # (B, 4, 4): left, top, right, bottom
    regions, rows = [], []
    pixel = torch.arange(size)
    for row, said in enumerate(words):
        for word in said:
            if word.role == "relation":
                left, top, right, bottom = frame[row, list(word.objects)].T[:, :, None]  # (objects, 1) each
                down, along = (pixel >= top) & (pixel < bottom), (pixel >= left) & (pixel < right)  # (objects, size)
                region = (down[:, :, None] & along[:, None, :]).any(0)
            else:
                region = seen[row, list(word.objects)].any(0)
            if not bool(region.any()):
                raise ValueError(f"scene {scenes[row].id}: nothing is to be seen of {word.word!r} at {size} pixels")
            regions.append(region)
            rows.append(row)
    if not regions:
        raise ValueError(f"there are no words to look for in {len(scenes)} scenes")
    return torch.stack(regions), torch.tensor(rows)


def _true(scene: Scene, role: str, word: str, objects: tuple[int, ...]) -> bool:
    words, things = domain_named(scene.domain).words[role], [scene.objects[k] for k in objects]
    if role == "count":
        return word in (str(len(objects)), *words.get(str(len(objects)), ())) and objects == scene.visible
    if role == "relation":
        return any(word in words[name] for name in relations_between(*things))
    return all(word in words.get(getattr(thing, _ATTRIBUTE[role]), ()) for thing in things)
