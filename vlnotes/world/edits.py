"""One-edit neighbours: scenes that differ in one thing only, for binding tests and hard galleries."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from random import Random
from typing import NamedTuple

from vlnotes.world.captions import Caption, captions, rel_pair, relations_between
from vlnotes.world.domains import CELLS, DIRECTIONS, DOMAINS, allowed
from vlnotes.world.predicates import describe, holds, term_of
from vlnotes.world.scenes import HELD_OUT, Scene, Thing

EDITS = ("swap_colours", "swap_textures", "swap_shapes", "flip_relation", "replace_colour", "replace_shape")
CAPTION_OF = {"flip_relation": "rel"}  # a full caption does not say where things are; other edits change the full one
_SALT = 0xED17


def edits(scene: Scene, pair: tuple[int, int] | None = None) -> dict[str, Scene]:
    """The one-edit neighbours of a scene, by kind of edit; the same ones for the same scene.

    Swaps exchange an attribute of the pair, a flip exchanges their places, a replacement gives the first of
    the pair another colour or shape. A neighbour is kept only if each scene's own description (of the pair
    and its relation, for a flip) is false of the other, if its colours stand out from the ground, and if it
    makes no held-out pair. Neighbours keep the seed: their captions are the same sentences with the edited
    words changed.

    Args:
        scene: a scene with two visible objects or more.
        pair: the two objects to edit; default: those of the relation caption.

    Returns:
        Mapping from names in `EDITS` to scenes; kinds that would change nothing are missing.
    """
    a, b = pair or rel_pair(scene)
    first, second = scene.objects[a], scene.objects[b]
    u = Random(scene.seed ^ _SALT).random
    colours = [c for c in allowed(scene.domain, scene.place, _row(first)) if c != first.colour]
    colours = [c for c in colours if (c, first.shape) not in HELD_OUT]
    shapes = [s for s in DOMAINS[scene.domain].shapes if s != first.shape and (first.colour, s) not in HELD_OUT]
    new = _pick(shapes, u())
    new_direction = _pick(DIRECTIONS, u()) if new == "arrow" else None
    pairs = {
        "swap_colours": (replace(first, colour=second.colour), replace(second, colour=first.colour)),
        "swap_textures": (replace(first, texture=second.texture), replace(second, texture=first.texture)),
        "swap_shapes": (
            replace(first, shape=second.shape, direction=second.direction),
            replace(second, shape=first.shape, direction=first.direction),
        ),
        "flip_relation": (replace(first, x=second.x, y=second.y), replace(second, x=first.x, y=first.y)),
        "replace_colour": (replace(first, colour=_pick(colours, u())), second),
        "replace_shape": (replace(first, shape=new, direction=new_direction), second),
    }
    made = {}
    for kind, (x, y) in pairs.items():
        objects = list(scene.objects)
        objects[a], objects[b] = x, y
        other = replace(scene, id=f"{scene.id}-{kind}", objects=tuple(objects))
        if drawable(scene, other) and _differ(scene, other, kind, a, b):
            made[kind] = other
    return made


def _differ(scene: Scene, other: Scene, kind: str, a: int, b: int) -> bool:
    if kind == "flip_relation":
        mine, theirs = _pair_claims(scene, a, b), _pair_claims(other, a, b)
    else:
        mine, theirs = [describe(scene)], [describe(other)]
    return all(holds(other, p) is False for p in mine) and all(holds(scene, p) is False for p in theirs)


def _pair_claims(scene: Scene, a: int, b: int) -> list[dict]:
    x, y = scene.objects[a], scene.objects[b]
    return [{"things": [term_of(x), term_of(y)], "relations": [[r, 0, 1]]} for r in relations_between(x, y)]


def drawable(scene: Scene, other: Scene) -> bool:
    """May an edited scene be drawn: do all colours stand out, and is no held-out pair new?

    Args:
        scene: the scene before the edit.
        other: after it.

    Returns:
        True or False.
    """
    before = {(t.colour, t.shape) for t in scene.objects}
    return all(
        t.colour in allowed(other.domain, other.place, _row(t))
        and ((t.colour, t.shape) not in HELD_OUT or (t.colour, t.shape) in before)
        for t in other.objects
    )


def beside_neighbours(scenes: Sequence[Scene]) -> list[Scene]:
    """Each scene, followed by one of its one-edit neighbours: data in which a bag of words cannot tell all pairs apart.

    Args:
        scenes: any scenes; those without a neighbour are left out.

    Returns:
        scene, neighbour, scene, neighbour, ...: the same ones for the same scenes.
    """
    both = []
    for scene in scenes:
        options = list(edits(scene).values())
        if options:
            both += [scene, _pick(options, Random(scene.seed ^ _SALT ^ 1).random())]
    return both


class Binding(NamedTuple):
    """Two scenes that differ in one edit, and the same sentence for each: caption a is true of scene a alone."""

    scene_a: Scene
    caption_a: Caption
    scene_b: Scene
    caption_b: Caption


def winoground(scenes: Sequence[Scene], kind: str, *, synonyms: int = 2) -> list[Binding]:
    """Two pictures and two sentences that differ in one edit, as Winoground has them; see `winoground_scores`.

    Full captions; relation captions for flips, of which full captions say nothing.

    Args:
        scenes: any scenes; those without such a neighbour, or where either sentence does not tell the two apart, are
            left out. Scenes of val and test hold neighbours already: ask `World.scenes` for them without.
        kind: one of `EDITS`.
        synonyms: how many words a concept may have.

    Returns:
        `Binding`s in the order of the scenes.

    Raises:
        ValueError: an unknown kind, synonyms below 1.
    """
    if kind not in EDITS:
        raise ValueError(f"unknown edit {kind!r}; there are {', '.join(EDITS)}")
    caption_kind, made = CAPTION_OF.get(kind, "full"), []
    for scene in scenes:
        other = edits(scene).get(kind) if len(scene.visible) > 1 else None
        if other is None:
            continue
        a, b = (next(c for c in captions(s, synonyms) if c.kind == caption_kind) for s in (scene, other))
        if holds(other, a.predicate) is False and holds(scene, b.predicate) is False:
            made.append(Binding(scene, a, other, b))
    return made


def _row(thing: Thing) -> int:
    return min(range(3), key=lambda k: abs(thing.y - CELLS[k]))


def _pick(values, u: float):
    return values[int(u * len(values))]


def hard_gallery(world, groups: int = 250, split: str = "test") -> tuple[list[Scene], list[Caption]]:
    """Groups of four: a scene and three one-edit neighbours, each with a full caption true of it alone in its
    group.

    Args:
        world: a `World`.
        groups: number of groups.
        split: which split the originals come from.

    Returns:
        4 * groups scenes and as many captions, in step; rows 4g to 4g + 3 are group g, the original first.

    Raises:
        ValueError: `groups` below 1.
    """
    if groups < 1:
        raise ValueError(f"groups must be at least 1, got {groups}")
    scenes: list[Scene] = []
    said: list[Caption] = []
    start, step = 0, 4 * groups
    while len(scenes) < 4 * groups:
        for scene in world.scenes(step, split, start=start, neighbours=False):
            group = _group(scene)
            if group and len(scenes) < 4 * groups:
                scenes += group
                said += [captions(s)[0] for s in group]
        start += step
    return scenes, said


def _group(scene: Scene) -> list[Scene] | None:
    """The original and three neighbours of different kinds whose descriptions exclude each other."""
    if scene.cloud is not None:
        return None
    u = Random(scene.seed ^ _SALT ^ 1).random
    pairs = list(combinations(scene.visible, 2))
    pairs = sorted(pairs, key=lambda _: u())
    group, kinds = [scene], set()
    for pair in pairs:
        options = sorted(((u(), kind, s) for kind, s in edits(scene, pair).items()), key=lambda o: o[:2])
        for _, kind, other in options:
            # A full caption does not speak of places, so a flip would leave it true.
            if kind == "flip_relation" or kind in kinds:
                continue
            claims = describe(other)
            if all(not holds(s, claims) and not holds(other, describe(s)) for s in group):
                group.append(other)
                kinds.add(kind)
            if len(group) == 4:
                return group
    return None
