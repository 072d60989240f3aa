"""What a sentence claims, as data, and whether a scene makes it true.

A predicate is a conjunction in plain JSON; every key may be missing:

    {"place": "night", "count": 2,
     "things": [{"shape": "drop", "colour": "red"}, {"shape": "ring", "size": "large"}],
     "relations": [["left", 0, 1]]}

says: it is night, two things are to be seen, there is a red drop and, another one, a large ring, and the drop
is to the left of the ring. Nothing says that there is nothing else.
"""

from itertools import permutations

import torch

from vlnotes.world.domains import COLOURS, DIRECTIONS, DOMAINS, RELATIONS, SHAPES, SIZES, TEXTURES
from vlnotes.world.scenes import Scene, Thing

GAP = 10.0  # a relation needs this many units between the centres
ATTRIBUTES = {
    "shape": SHAPES,
    "colour": COLOURS,
    "size": tuple(SIZES),
    "texture": TEXTURES,
    "direction": DIRECTIONS,
}
_PLACES = tuple(dict.fromkeys(place for domain in DOMAINS.values() for place in domain.places))


def related(relation: str, ax: float, ay: float, bx: float, by: float) -> bool:
    """Is (ax, ay) left of, right of, above or below (bx, by), by at least 10 units?

    Args:
        relation: a name from `RELATIONS`.
        ax, ay, bx, by: centres in the 64-unit frame, y down.

    Returns:
        True or False.
    """
    return {"left": bx - ax, "right": ax - bx, "above": by - ay, "below": ay - by}[relation] >= GAP


def matches(thing: Thing, term: dict[str, str]) -> bool:
    """Has the thing every attribute that the term names?

    Args:
        thing: a `Thing`.
        term: attribute -> value.

    Returns:
        True or False.
    """
    return all(getattr(thing, name) == value for name, value in term.items())


def holds(scene: Scene, predicate: dict) -> bool | None:
    """Is the statement true of the scene, as far as can be seen?

    Each term must find a thing of its own. What the cloud hides is unknown: a statement that only something
    behind the cloud could make true is neither true nor false.

    Args:
        scene: a `Scene`.
        predicate: a conjunction as described at the top of this module.

    Returns:
        True, False, or None where the cloud hides the answer.

    Raises:
        ValueError: an unknown key, attribute or relation.

    Notebook: 01_picture_world, section 3.
    """
    _check(predicate)
    if predicate.get("place", scene.place) != scene.place:
        return False
    seen = [scene.objects[i] for i in scene.visible]
    if predicate.get("count", len(seen)) != len(seen):
        return False
    if _assign(seen, predicate):
        return True
    if scene.cloud is not None and _assign([*seen, scene.cloud], predicate):
        return None
    return False


def _assign(things: list, predicate: dict) -> bool:
    terms, relations = predicate.get("things", ()), predicate.get("relations", ())
    at = [t if isinstance(t, tuple) else (t.x, t.y) for t in things]
    # A tuple is the cloud: it may hide anything, so it fits every term, but we know where it is.
    fits = [[isinstance(t, tuple) or matches(t, term) for t in things] for term in terms]
    for chosen in permutations(range(len(things)), len(terms)):
        if all(fits[k][i] for k, i in enumerate(chosen)):
            if all(related(name, *at[chosen[a]], *at[chosen[b]]) for name, a, b in relations):
                return True
    return False


def _check(predicate: dict) -> None:
    unknown = set(predicate) - {"place", "count", "things", "relations"}
    if unknown:
        raise ValueError(f"unknown key {sorted(unknown)} in predicate; known: place, count, things, relations")
    for term in predicate.get("things", ()):
        for name in term:
            if name not in ATTRIBUTES:
                raise ValueError(f"unknown attribute {name!r} in predicate; known: {', '.join(ATTRIBUTES)}")
    for name, a, b in predicate.get("relations", ()):
        if name not in RELATIONS:
            raise ValueError(f"unknown relation {name!r} in predicate; known: {', '.join(RELATIONS)}")
        if not (0 <= a < len(predicate["things"]) and 0 <= b < len(predicate["things"])):
            raise ValueError(f"relation {[name, a, b]} points outside the {len(predicate['things'])} things")


def term_of(thing: Thing, attributes=("shape", "colour", "size", "texture", "direction")) -> dict[str, str]:
    """The term a careful speaker would use: medium and plain go without saying, only arrows point.

    Args:
        thing: a `Thing`.
        attributes: which ones to mention.

    Returns:
        Mapping from attribute to value.
    """
    term = {name: getattr(thing, name) for name in attributes}
    return {k: v for k, v in term.items() if v not in ("medium", "plain", None)}


def describe(scene: Scene) -> dict:
    """What a full caption claims: every visible thing with every attribute worth saying, and the place.

    Args:
        scene: a `Scene`.

    Returns:
        A predicate.
    """
    return {"place": scene.place, "things": [term_of(scene.objects[i]) for i in scene.visible]}


def truth(scenes: list[Scene], predicates: list) -> torch.Tensor:
    """The true matrix: which statements hold of which scenes.

    truth[i, j] = holds(scenes[i], predicates[j]) is True; unknown counts as not true.

    Args:
        scenes: N scenes.
        predicates: M predicates, or captions that carry one.

    Returns:
        (N, M) bool.
    """
    predicates = [p if isinstance(p, dict) else p.predicate for p in predicates]
    for p in predicates:
        _check(p)
    n, slots = len(scenes), 4
    code = {name: {v: i for i, v in enumerate(values)} for name, values in ATTRIBUTES.items()}
    rows, where, places, counts = [], [], [], []
    for scene in scenes:
        seen = [scene.objects[i] for i in scene.visible]
        if len(seen) > slots:
            raise ValueError(f"scene {scene.id} shows {len(seen)} things; truth() knows up to {slots}")
        pad = slots - len(seen)
        rows.append([[code[a].get(getattr(t, a), -1) for a in code] for t in seen] + [[-2] * len(code)] * pad)
        where.append([[t.x, t.y] for t in seen] + [[0.0, 0.0]] * pad)
        places.append(_PLACES.index(scene.place))
        counts.append(len(seen))
    objects = torch.tensor(rows).view(n, slots, len(code))
    where = torch.tensor(where, dtype=torch.float64).view(n, slots, 2)
    places, counts = torch.tensor(places), torch.tensor(counts)

    # Equal terms are matched once: fits[t] = which of the 4 things of each scene satisfy term t.
    terms: dict[tuple, int] = {}
    for p in predicates:
        for term in p.get("things", ()):
            terms.setdefault(tuple(sorted(term.items())), len(terms))
    fits = torch.zeros(len(terms), slots, n, dtype=torch.bool)
    for key, t in terms.items():
        ok = objects[:, :, 0] >= -1  # padding is nobody
        for name, value in key:
            ok = ok & (objects[:, :, list(code).index(name)] == code[name].get(value, -9))
        fits[t] = ok.T
    dx = where[:, None, :, 0] - where[:, :, None, 0]  # (N, 4, 4): b.x - a.x
    dy = where[:, None, :, 1] - where[:, :, None, 1]
    pairs = {"left": dx, "right": -dx, "above": dy, "below": -dy}
    pairs = torch.stack([(pairs[r] >= GAP).permute(1, 2, 0) for r in RELATIONS])  # (4 relations, 4, 4, N)

    result = torch.ones(len(predicates), n, dtype=torch.bool)
    groups: dict[tuple[int, int], list[int]] = {}
    for j, p in enumerate(predicates):
        groups.setdefault((len(p.get("things", ())), len(p.get("relations", ()))), []).append(j)
        if "place" in p:
            result[j] &= places == (_PLACES.index(p["place"]) if p["place"] in _PLACES else -1)
        if "count" in p:
            result[j] &= counts == p["count"]
    for (k, r), members in groups.items():
        if k == 0:
            continue
        if k > slots:
            result[members] = False
            continue
        ids = [[terms[tuple(sorted(t.items()))] for t in predicates[j]["things"]] for j in members]
        rels = [[[RELATIONS.index(x), a, b] for x, a, b in predicates[j].get("relations", ())] for j in members]
        ids, rels = torch.tensor(ids), torch.tensor(rels).view(len(members), r, 3)
        found = torch.zeros(len(members), n, dtype=torch.bool)
        for chosen in permutations(range(slots), k):
            ok = fits[ids[:, 0], chosen[0]]
            for t in range(1, k):
                ok = ok & fits[ids[:, t], chosen[t]]
            pick = torch.tensor(chosen)
            for q in range(r):
                ok = ok & pairs[rels[:, q, 0], pick[rels[:, q, 1]], pick[rels[:, q, 2]]]
            found |= ok
        result[members] &= found
    return result.T.contiguous()
