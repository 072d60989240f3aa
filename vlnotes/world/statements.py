"""Statements about two pictures, and texts that belong to one of two pictures or to neither.

Each statement comes with four pairs of pictures, two of which make it true: the text alone says nothing. Where it can
be done the same pictures serve on both sides, exchanged, so that one picture alone says nothing either.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from vlnotes.world.asking import QUANTIFIERS, SIDES, STATEMENTS, phrase
from vlnotes.world.captions import word_for
from vlnotes.world.pairs import Pairs
from vlnotes.world.predicates import holds, matches, term_of
from vlnotes.world.scenes import Scene, Thing, domain_of

_SALT = 0x57A7
_TRIES = 200
_TERMS = (("shape",), ("colour",), ("colour", "shape"), ("texture", "shape"), ("size", "shape"), ("colour", "texture"))
_Key = tuple[tuple[str, str], ...]  # a term that can be looked up


@dataclass(frozen=True)
class Statement:
    """A statement about two pictures that is true or false.

    Args:
        left, right: positions of the two scenes in the list.
        text: in the words of the scenes' domain.
        answer: is it true?
        kind: one of `QUANTIFIERS`.
        group: statements of one group have the same text; two of the four are true.
    """

    left: int
    right: int
    text: str
    answer: bool
    kind: str
    group: int


@dataclass(frozen=True)
class Assignment:
    """A caption and two pictures.

    Args:
        left, right: positions of the two scenes in the list.
        text: a caption.
        answer: 0 if it is true of the left picture, 1 of the right one, 2 of neither; never true of both.
        kind: that of the caption.
    """

    left: int
    right: int
    text: str
    answer: int
    kind: str


def statements(
    scenes: Sequence[Scene],
    groups: int = 250,
    *,
    kinds: Sequence[str] = QUANTIFIERS,
    synonyms: int = 2,
    seed: int = 0,
) -> list[Statement]:
    """Statements with quantifiers, four pairs of pictures each, as NLVR2 has them; the same for the same seed.

    Of what a cloud may hide nothing is claimed. Pictures that make "a red ring" false show a ring or something red
    where the list has such a picture.

    Args:
        scenes: N scenes of one domain; some hundreds, so that the same thing is to be found in several.
        groups: number of texts; kinds take turns.
        kinds: some of `QUANTIFIERS`.
        synonyms: how many words a concept may have.
        seed: any int >= 0.

    Returns:
        4 * groups `Statement`s; those of a group stand together, in random order.

    Raises:
        ValueError: scenes of several domains or none, unknown kinds, groups or synonyms below 1, a negative seed, or
            too few scenes for a statement of some kind.
    """
    domain = domain_of(scenes)
    unknown = set(kinds) - set(QUANTIFIERS)
    if unknown or not kinds:
        raise ValueError(f"kinds must be some of {', '.join(QUANTIFIERS)}, not {sorted(unknown) or 'none'}")
    if groups < 1 or synonyms < 1 or seed < 0:
        raise ValueError(f"expected groups >= 1, synonyms >= 1 and seed >= 0, got {groups}, {synonyms} and {seed}")
    u = Random(seed << 16 ^ _SALT).random
    shelf = _Shelf(scenes, u)
    made = []
    for group in range(groups):
        kind = kinds[group % len(kinds)]
        for _ in range(_TRIES):
            if found := _FOUND[kind](shelf):
                break
        else:
            raise ValueError(
                f"no four pairs for a statement with {kind!r} among {len(scenes)} scenes; expected some hundreds"
            )
        slots, true, false = found
        words = {k: v for k, v in slots.items() if isinstance(v, str)}
        words |= {k: phrase(domain, slots[k], u, synonyms, definite=k == "the") for k in ("a", "the") if k in slots}
        if "what" in slots:
            words["what"] = "".join(word_for(domain, r, c, u(), synonyms) + " " for r, c in slots["what"].items())
        text = shelf.one_of(STATEMENTS[kind]).format(**words)
        four = [(pair, True) for pair in true] + [(pair, False) for pair in false]
        for (left, right), answer in sorted(four, key=lambda _: u()):
            made.append(Statement(left, right, text, answer, kind, group))
    return made


class _Shelf:
    """Which scenes show what, and random draws from them."""

    def __init__(self, scenes: Sequence[Scene], u: Callable[[], float]):
        self.scenes, self.u = scenes, u
        self.clear = [i for i, scene in enumerate(scenes) if scene.cloud is None]
        self.showing: dict[_Key, list[int]] = defaultdict(list)  # what -> scenes that show it
        self.alone: dict[_Key, list[tuple[int, Thing]]] = defaultdict(list)  # what -> clear scenes that show one of it
        for position, scene in enumerate(scenes):
            found = defaultdict(list)
            for thing in (scene.objects[i] for i in scene.visible):
                for attributes in _TERMS:
                    term = term_of(thing, attributes)
                    if len(term) == len(attributes):
                        found[_key(term)].append(thing)
            for key, things in found.items():
                self.showing[key].append(position)
                if len(things) == 1 and scene.cloud is None:
                    self.alone[key].append((position, things[0]))
        self.keys: dict[tuple, list[_Key]] = defaultdict(list)  # names of attributes -> what is shown
        for key in sorted(self.showing):
            self.keys[tuple(name for name, _ in key)].append(key)

    def term(self, without: str | None = None) -> dict[str, str]:
        """Something that some scene shows, of a random kind, not told by one attribute."""
        return dict(self.one_of(self.one_of([keys for names, keys in self.keys.items() if without not in names])))

    def one_of(self, values: Sequence):
        return values[int(self.u() * len(values))]

    def some(self, values: Sequence, n: int) -> list:
        """n different ones of several, [] if there are fewer."""
        values, chosen = list(values), []
        if len(values) < n:
            return []
        for k in range(n):
            other = k + int(self.u() * (len(values) - k))
            values[k], values[other] = values[other], values[k]
            chosen.append(values[k])
        return chosen

    def with_and_without(self, term: dict[str, str], n: int, m: int) -> tuple[list[int], list[int]] | None:
        """n scenes that show the thing and m that surely do not, rather such as show half of it; all different."""
        shown = self.some(self.showing[_key(term)], n)
        near = sorted({i for pair in term.items() for i in self.showing[(pair,)]}) if len(term) > 1 else []
        absent: list[int] = []
        for trial in range(_TRIES):
            if len(absent) == m:
                break
            position = self.one_of(near if near and trial < _TRIES // 2 else range(len(self.scenes)))
            if position not in absent and holds(self.scenes[position], {"things": [term]}) is False:
                absent.append(position)
        return (shown, absent) if shown and len(absent) == m else None


def _both(shelf: _Shelf):
    term = shelf.term()
    if found := shelf.with_and_without(term, 4, 2):
        (a, b, c, d), (x, y) = found
        return {"a": term}, [(a, b), (c, d)], [(x, b), (c, y)]


def _one(shelf: _Shelf):
    term = shelf.term()
    if found := shelf.with_and_without(term, 2, 2):
        (a, b), (x, y) = found
        return {"a": term}, [(a, x), (y, b)], [(a, b), (y, x)]


def _neither(shelf: _Shelf):
    term = shelf.term()
    if found := shelf.with_and_without(term, 2, 4):
        (a, b), (w, x, y, z) = found
        return {"a": term}, [(w, x), (y, z)], [(a, x), (y, b)]


def _only(shelf: _Shelf):
    """False once because both show it and once because neither does: who looks at one picture is often wrong."""
    term, side = shelf.term(), shelf.one_of(SIDES)
    if found := shelf.with_and_without(term, 2, 2):
        (a, b), (x, y) = found
        return {"a": term, "side": side}, _turned([(a, x), (b, y)], side), _turned([(a, b), (x, y)], side)


def _more(shelf: _Shelf):
    """False once because there are fewer and once because there are as many."""
    side, names = shelf.one_of(SIDES), shelf.one_of(((), ("colour",), ("size",), ("texture",)))
    what = term_of(shelf.one_of(shelf.one_of(shelf.scenes).objects), names)
    if len(what) < len(names):
        return None
    levels: dict[int, list[int]] = defaultdict(list)
    for i in shelf.clear:
        levels[sum(matches(thing, what) for thing in shelf.scenes[i].objects)].append(i)
    twice = [level for level in sorted(levels) if len(levels[level]) > 1]
    if len(twice) < 2:
        return None
    low, high = sorted(shelf.some(twice, 2))
    (a, b), (x, y) = shelf.some(levels[high], 2), shelf.some(levels[low], 2)
    equal = (a, b) if shelf.u() < 0.5 else (x, y)
    return {"what": what, "side": side}, _turned([(a, x), (b, y)], side), _turned([(x, a), equal], side)


def _same(shelf: _Shelf):
    """Two pairs that agree; exchanging their partners gives two that do not."""
    attribute = shelf.one_of(("colour", "shape", "size", "texture"))
    term = shelf.term(without=attribute)
    values: dict[str, list[int]] = defaultdict(list)
    for position, thing in shelf.alone[_key(term)]:
        values[getattr(thing, attribute)].append(position)
    twice = [value for value in sorted(values) if len(values[value]) > 1]
    if len(twice) < 2:
        return None
    (a, b), (c, d) = (shelf.some(values[value], 2) for value in shelf.some(twice, 2))
    return {"the": term, "attribute": attribute}, [(a, b), (c, d)], [(a, d), (c, b)]


_FOUND = {"both": _both, "one": _one, "neither": _neither, "only": _only, "more": _more, "same": _same}


def _turned(pairs: list[tuple[int, int]], side: str) -> list[tuple[int, int]]:
    return pairs if side == "left" else [(right, left) for left, right in pairs]


def _key(term: dict[str, str]) -> _Key:
    return tuple(sorted(term.items()))


def assignments(pairs: Pairs, n: int = 1000, *, seed: int = 0) -> list[Assignment]:
    """Text assignment, the pre-training for two pictures: is a caption of the left one, the right one, or neither?

    Each caption comes three times, once with each answer, so that a third of the answers is each of them and the
    text says nothing.

    Args:
        pairs: pictures with captions, from `vlnotes.world.pairs`; captions that are not true of their own picture
            are not used.
        n: how many captions to use, each three times.
        seed: any int >= 0.

    Returns:
        3 * n `Assignment`s in random order.

    Raises:
        ValueError: n below 1, a negative seed, or no caption that tells two pictures apart.

    Equation: ALBEF (Li et al. 2021), section 5, text assignment.
    """
    if n < 1 or seed < 0:
        raise ValueError(f"expected n >= 1 and seed >= 0, got n={n} and seed={seed}")
    u = Random(seed << 16 ^ _SALT ^ 1).random
    scenes, owners = pairs.scenes, pairs.text_to_image.tolist()
    made: list[Assignment] = []
    failed = 0
    while len(made) < 3 * n:
        j = int(u() * len(owners))
        caption, own = pairs.captions[j], owners[j]
        others: list[int] = []
        for _ in range(_TRIES):
            i = int(u() * len(scenes))
            if i not in others and holds(scenes[i], caption.predicate) is False:
                others.append(i)
            if len(others) == 4:
                break
        if len(others) < 4 or holds(scenes[own], caption.predicate) is not True:
            failed += 1
            if failed > _TRIES:
                raise ValueError(f"the captions of these {len(scenes)} pictures do not tell them apart")
            continue
        failed, (a, b, c, d) = 0, others
        for left, right, answer in ((own, a, 0), (b, own, 1), (c, d, 2)):
            made.append(Assignment(left, right, caption.text, answer, caption.kind))
    return sorted(made, key=lambda _: u())
