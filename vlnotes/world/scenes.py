"""Scenes: the only truth of the picture world. Pictures, captions, boxes and answers all follow from them."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from random import Random

import numpy as np

from vlnotes.world.domains import (
    CELLS,
    COLOURS,
    DIGITS,
    DIRECTIONS,
    JITTER,
    SHARED_SHAPES,
    SIZES,
    TEXTURES,
    Domain,
    allowed,
    domain_named,
)

VERSION = 1
SPLITS = {"train": 0, "val": 1, "test": 2}
SIZE_NAMES = tuple(SIZES)
# Colour-shape pairs that no training scene shows: one for every shared shape, one for every digit.
HELD_OUT = frozenset(
    (COLOURS[(3 * k + 1) % 10], shape) for names in (SHARED_SHAPES, DIGITS) for k, shape in enumerate(names)
)


@dataclass(frozen=True)
class Thing:
    """One object.

    Args:
        x, y: centre in a 64 x 64 frame, y down.
        rotation: degrees clockwise, -15 to 15.
        direction: where an arrow points; None for everything else.
    """

    shape: str
    colour: str
    size: str
    texture: str
    x: float
    y: float
    rotation: float
    direction: str | None = None

    @property
    def radius(self) -> float:
        """Radius in the 64-unit frame."""
        return SIZES[self.size]


@dataclass(frozen=True)
class Scene:
    """One picture's worth of truth: objects in painting order, the place, perhaps a cloud.

    Args:
        id: domain-split-index; neighbours made by `edits` carry the kind of edit behind it.
        cloud: None, or the centre (x, y) of a cloud that hides one cell of the grid.
        hidden: positions in `objects` of what the cloud hides (at most one).
        seed: drives captions and pixel noise, nothing else.
    """

    id: str
    domain: str
    place: str
    objects: tuple[Thing, ...]
    cloud: tuple[float, float] | None
    hidden: tuple[int, ...]
    seed: int

    @property
    def visible(self) -> tuple[int, ...]:
        """Positions in `objects` of what can be seen; captions and counts speak of these."""
        return tuple(i for i in range(len(self.objects)) if i not in self.hidden)


def scene_seed(domain: Domain, seed: int, split: str, index: int, stream: int = 0) -> int:
    """48 reproducible bits for scene `index`; they depend on the arguments and the world's version alone."""
    words = [VERSION, seed, domain.number, SPLITS[split], stream, index]
    high, low = np.random.SeedSequence(words).generate_state(2).tolist()
    return (high & 0xFFFF) << 32 | low


def sample(
    name: str,
    seed: int,
    split: str,
    index: int,
    held_out: bool = False,
    single: bool = False,
    stream: int = 0,
) -> Scene:
    """Draw one scene; every attribute independent and uniform (textures .55 plain, .15 each for the others).

    A colour that would not stand out from the ground, or that makes a held-out pair, is drawn again.

    Args:
        held_out: object 0 gets one of the held-out colour-shape pairs; the others are free.
        single: one object, no cloud.
        stream: a number for independent draws with the same other arguments.

    Returns:
        A `Scene`.
    """
    domain = domain_named(name)
    own = scene_seed(domain, seed, split, index, stream + 2 * held_out + 4 * single)
    u = Random(own).random  # only .random() is used: its sequence is promised to stay the same in every Python
    place = _pick(tuple(domain.places), u())
    roll = u()
    count = 1 if single else 2 if roll < 0.3 else 3 if roll < 0.7 else 4
    cells = list(range(9))
    for k in range(count + 1):  # the first `count` go to objects, one more may hide an empty cell
        other = k + int(u() * (9 - k))
        cells[k], cells[other] = cells[other], cells[k]
    objects = []
    for k in range(count):
        row, column = divmod(cells[k], 3)
        colours = allowed(name, place, row)
        shape, colour = _pick(domain.shapes, u()), _pick(colours, u())
        if held_out:
            if k == 0:
                shape, colour = _pick([p for p in _held_pairs(domain) if p[1] in colours], u())
        else:
            while (colour, shape) in HELD_OUT:
                colour = _pick(colours, u())
        roll = u()
        objects.append(
            Thing(
                shape=shape,
                colour=colour,
                size=_pick(SIZE_NAMES, u()),
                texture="plain" if roll < 0.55 else TEXTURES[1 + min(int((roll - 0.55) / 0.15), 2)],
                x=round(CELLS[column] + (2 * u() - 1) * JITTER, 2),
                y=round(CELLS[row] + (2 * u() - 1) * JITTER, 2),
                rotation=round((2 * u() - 1) * 15, 1),
                direction=_pick(DIRECTIONS, u()) if shape == "arrow" else None,
            )
        )
    cloud, hidden = None, ()
    if not single and u() < 0.1:
        # Two things must stay in sight, so only fuller scenes may lose one.
        k = 0 if count > 2 and u() < 0.5 else count
        row, column = divmod(cells[k], 3)
        cloud, hidden = (CELLS[column], CELLS[row]), (0,) if k == 0 else ()
    extra = ("-unseen" if held_out else "") + ("-single" if single else "")
    return Scene(f"{name}-{split}{extra}-{index:06d}", name, place, tuple(objects), cloud, hidden, own)


def _pick(values, u: float):
    return values[int(u * len(values))]


def _held_pairs(domain: Domain) -> list[tuple[str, str]]:
    return [(s, c) for s in domain.shapes for c in COLOURS if (c, s) in HELD_OUT and c in domain.palette]


def domain_of(scenes: Sequence[Scene]) -> Domain:
    """The domain that all these scenes are of.

    Args:
        scenes: at least one scene.

    Returns:
        Their `Domain`.

    Raises:
        ValueError: no scenes, or scenes of several domains.
    """
    names = {scene.domain for scene in scenes}
    if len(names) != 1:
        raise ValueError(f"expected scenes of one domain, got {sorted(names) or 'none'}")
    return domain_named(names.pop())


def to_json(scene: Scene) -> str:
    """One line of JSON that says everything about the scene; `from_json` reads it back.

    Args:
        scene: a `Scene`.

    Returns:
        JSON without line breaks, the same for equal scenes.
    """
    return json.dumps(asdict(scene), separators=(",", ":"))


def from_json(line: str) -> Scene:
    """The scene of one line written by `to_json`.

    Args:
        line: one line of scenes.jsonl.

    Returns:
        A `Scene` equal to the one that was written.
    """
    data = json.loads(line)
    data["objects"] = tuple(Thing(**thing) for thing in data["objects"])
    data["cloud"] = tuple(data["cloud"]) if data["cloud"] else None
    data["hidden"] = tuple(data["hidden"])
    return Scene(**data)
