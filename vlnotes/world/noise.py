"""Captions as the web writes them: of the wrong picture, lazy, half right, or only about what is large.

Every noisy caption says in `noise` what was done to it, and its predicate is what it now says, so that
`truth(pairs.scenes, pairs.captions)` is still the true matrix and methods can be scored on finding the noise. False
means here what it means there: not true of what can be seen.
A caption is rewritten by editing its scene and speaking again with the same seed: the sentence stays, one word
changes.
"""

from collections.abc import Callable
from dataclasses import replace
from random import Random

from vlnotes.world.captions import KINDS, Caption, captions
from vlnotes.world.domains import domain_named
from vlnotes.world.drawing import masks
from vlnotes.world.edits import edits
from vlnotes.world.pairs import Pairs
from vlnotes.world.predicates import holds
from vlnotes.world.scenes import Scene

NOISES = ("mismatch", "near_duplicate", "wrong_attribute", "generic", "partial", "saliency")
_SALT = 0x0D1A_15E5
_TRIES = 50


def with_noise(
    pairs: Pairs,
    *,
    mismatch: float = 0.0,
    wrong_attribute: float = 0.0,
    generic: float = 0.0,
    partial: float = 0.0,
    saliency: float = 0.0,
    synonyms: int = 2,
    seed: int = 0,
) -> Pairs:
    """Turn the noise dials: each caption gets one kind of noise at most, by its own dice.

    A caption's dice depend on the seed, its scene and its kind alone, so a higher dial adds noisy captions and
    keeps those that there were. Captions that cannot get a noise stay as they are: a generic one has nothing
    below it, and a partial one only the generic.

    Args:
        pairs: clean pairs, as `vlnotes.world.pairs` makes them.
        mismatch: share of captions that speak of another picture and are false of their own, one half taken
            from a random other picture (noise "mismatch"), one half from a one-edit neighbour
            ("near_duplicate"; where no neighbour makes the caption false, a random one).
        wrong_attribute: share with one colour, shape or relation wrong; in captions that say none of
            these, the place.
        generic: share of the captions above generic that say the place alone.
        partial: share of the captions above partial that say one thing alone.
        saliency: s >= 0; what is left names things with probability proportional to area ** s, see
            `salient`. 0 is off.
        synonyms: how many words a concept may have in what is rewritten; the number given to `pairs`.
        seed: any int >= 0.

    Returns:
        `Pairs` with the same scenes, pictures and owners, and captions whose `noise` is None or one of
        `NOISES`.

    Raises:
        ValueError: shares outside 0..1 or above 1 in sum, a negative saliency or seed, captions that are noisy
            already, or a mismatch asked of fewer than two scenes.

    Notebook: 01_picture_world, section 4.
    """
    shares = {
        "mismatch": mismatch,
        "wrong_attribute": wrong_attribute,
        "generic": generic,
        "partial": partial,
    }
    if any(not 0 <= p <= 1 for p in shares.values()) or sum(shares.values()) > 1 + 1e-9:
        raise ValueError(f"noise rates are shares of the captions, each 0 to 1 and 1 at most in sum, got {shares}")
    if not 0 <= saliency < float("inf") or seed < 0:
        raise ValueError(f"saliency and seed must be at least 0 and finite, got saliency={saliency}, seed={seed}")
    if any(c.noise for c in pairs.captions):
        raise ValueError("these pairs are noisy already: start from clean ones, as vlnotes.world.pairs makes them")
    if mismatch and len(pairs.scenes) < 2:
        raise ValueError(f"mismatch takes captions of other pictures; there is only {len(pairs.scenes)} scene")
    owners = pairs.text_to_image.tolist()
    areas = masks(pairs.scenes).flatten(2).sum(-1).tolist() if saliency else []  # N lists of 4
    pools = {kind: [(c, i) for c, i in zip(pairs.captions, owners, strict=True) if c.kind == kind] for kind in KINDS}
    told = []
    for clean, i in zip(pairs.captions, owners, strict=True):
        scene = pairs.scenes[i]
        u = dice(scene, clean.kind, seed)
        roll, near, noisy = u(), u() < 0.5, None
        for name, share in shares.items():
            if roll < share:
                if name == "mismatch":
                    noisy = near_duplicate(clean, scene, u, synonyms) if near else None
                    noisy = noisy or mismatched(scene, pools[clean.kind], u)
                elif name == "wrong_attribute":
                    noisy = wrongly(clean, scene, u, synonyms)
                else:
                    noisy = lower(clean, scene, name, u, synonyms)
                break
            roll -= share
        if noisy is None and saliency:
            noisy = salient(clean, scene, areas[i], saliency, u, synonyms)
        told.append(noisy or clean)
    return pairs._replace(captions=told)


def dice(scene: Scene, kind: str, seed: int = 0) -> Callable[[], float]:
    """The dice that decide about one caption; they know nothing of the other pictures.

    Args:
        scene: the scene of the caption.
        kind: the kind of the caption.
        seed: any int >= 0.

    Returns:
        A function that gives the next number in 0..1, the same sequence for equal arguments.
    """
    return Random(scene.seed << 72 ^ seed << 32 ^ KINDS.index(kind) << 28 ^ _SALT).random


def mismatched(scene: Scene, pool: list[tuple[Caption, int]], u: Callable[[], float]) -> Caption | None:
    """The caption of a random other picture, false of this one.

    Args:
        scene: the picture that gets the caption.
        pool: captions with the row of their picture.
        u: gives numbers in 0..1.

    Returns:
        A `Caption` with noise "mismatch" whose spans speak of no object of this scene; None if 50 draws were all
        true.
    """
    for _ in range(_TRIES):
        other, _ = pool[int(u() * len(pool))]
        if not holds(scene, other.predicate):  # its own captions are true of it
            return replace(other, noise="mismatch", spans=tuple(s._replace(objects=()) for s in other.spans))
    return None


def near_duplicate(clean: Caption, scene: Scene, u: Callable[[], float], synonyms: int = 2) -> Caption | None:
    """What a one-edit neighbour's caption says: almost right.

    Args:
        clean: the caption to replace.
        scene: its scene.
        u: gives numbers in 0..1.
        synonyms: as for `captions`.

    Returns:
        A `Caption` of the same kind, false of the scene, with noise "near_duplicate"; None if there is none.
    """
    if clean.kind == "generic" or len(scene.visible) < 2:  # an edit never changes the place
        return None
    for other in _shuffled(edits(scene).values(), u):
        said = _said(other, clean.kind, synonyms)
        if not holds(scene, said.predicate):
            return replace(said, noise="near_duplicate")
    return None


def wrongly(clean: Caption, scene: Scene, u: Callable[[], float], synonyms: int = 2) -> Caption | None:
    """The same sentence with one colour, shape or relation wrong; the place, where it says nothing else.

    Args:
        clean: a caption of the scene.
        scene: its scene.
        u: gives numbers in 0..1.
        synonyms: as for `captions`.

    Returns:
        A `Caption` that is false of the scene, with noise "wrong_attribute"; None if every change stays true.
    """
    spans = [s for s in clean.spans if s.role in ("colour", "noun", "relation")]
    spans = spans or [s for s in clean.spans if s.role == "place"]
    for span in _shuffled(spans, u):
        for other in _shuffled(_changes(scene, span.role, span.objects), u):
            said = _said(other, clean.kind, synonyms)
            if not holds(scene, said.predicate):
                return replace(said, noise="wrong_attribute")
    return None


def _changes(scene: Scene, role: str, objects: tuple[int, ...]) -> list[Scene]:
    """Every scene that differs from this one in the word of one span; nobody has to draw them."""
    domain, things = domain_named(scene.domain), list(scene.objects)
    if role == "place":
        return [replace(scene, place=p) for p in domain.places if p != scene.place]
    if role == "relation":
        a, b = (things[k] for k in objects)
        things[objects[0]], things[objects[1]] = replace(a, x=b.x, y=b.y), replace(b, x=a.x, y=a.y)
        return [replace(scene, objects=tuple(things))]
    (k,), made = objects, []
    own = things[k]
    if role == "colour":
        options = [replace(own, colour=c) for c in domain.palette if c != own.colour]
    else:  # arrows come with a direction, which would be a second word
        options = [replace(own, shape=s) for s in domain.shapes if s not in (own.shape, "arrow") and not own.direction]
    for option in options:
        things[k] = option
        made.append(replace(scene, objects=tuple(things)))
    return made


def lower(clean: Caption, scene: Scene, kind: str, u: Callable[[], float], synonyms: int = 2) -> Caption | None:
    """A lazier caption of the same picture, in fresh words: true, but it says less.

    Args:
        clean: the caption to replace.
        scene: its scene.
        kind: "partial" or "generic".
        u: gives numbers in 0..1.
        synonyms: as for `captions`.

    Returns:
        A `Caption` whose kind and noise are `kind`; None if the caption is no higher than that.
    """
    if KINDS.index(clean.kind) >= KINDS.index(kind):
        return None
    fresh = replace(scene, seed=int(u() * 2**48))
    return replace(_said(fresh, kind, synonyms), noise=kind)


def salient(
    clean: Caption, scene: Scene, areas: list[float], s: float, u: Callable[[], float], synonyms: int = 2
) -> Caption | None:
    """What people write who look at large things first.

    P(thing k is named) ∝ area_k ** s. A full caption keeps each thing with probability
    (area_k / largest area) ** s; relation and partial captions draw their things with these weights. Count and
    generic captions stay.

    Args:
        clean: a caption of the scene.
        scene: its scene.
        areas: pixels that show each object, see `masks`.
        s: >= 0; 0 prefers nothing.
        u: gives numbers in 0..1.
        synonyms: as for `captions`.

    Returns:
        A true `Caption` of the same kind with noise "saliency"; None if it says the same as before.
    """
    if clean.kind in ("count", "generic") or len(scene.visible) < 2:
        return None
    largest = max(areas[k] for k in scene.visible)
    weight = {k: (areas[k] / largest) ** s for k in scene.visible}
    if clean.kind == "full":
        named = [k for k in scene.visible if u() < weight[k]]  # the largest always
    else:
        named = []
        for _ in range(2 if clean.kind == "rel" else 1):
            rest = [k for k in scene.visible if k not in named]
            at = u() * sum(weight[k] for k in rest)
            named.append(next((k for k in rest if (at := at - weight[k]) < 0), rest[-1]))
    silent = tuple(k for k in range(len(scene.objects)) if k not in named)
    said = _said(replace(scene, hidden=silent), clean.kind, synonyms)
    return None if said.predicate == clean.predicate else replace(said, noise="saliency")


def _said(scene: Scene, kind: str, synonyms: int) -> Caption:
    return next(c for c in captions(scene, synonyms) if c.kind == kind)


def _shuffled(values, u: Callable[[], float]) -> list:
    return sorted(values, key=lambda _: u())
