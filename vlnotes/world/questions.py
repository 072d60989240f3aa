"""Questions about one picture, with one right answer each, that nobody can answer without the picture.

A question is drawn from what is to be seen: who is asked for is there once only, and what a cloud may hide is not asked
for. Of all questions that a picture allows, the one is asked whose answer has so far been rarest among questions with
the same words: so each answer follows each word about equally often, and the text alone gives nothing away.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from random import Random
from typing import NamedTuple

from vlnotes.world.asking import QUESTION_KINDS, QUESTIONS, answer_word, phrase
from vlnotes.world.captions import relations_between, word_for
from vlnotes.world.domains import RELATIONS, SIZES, TEXTURES, Domain
from vlnotes.world.predicates import holds, matches, related, term_of
from vlnotes.world.scenes import Scene, domain_of

_SALT = 0xA5C
_PAIRS = (("colour", "shape"), ("texture", "shape"), ("size", "shape"), ("texture", "colour"))
_TERMS = (("shape",), ("colour",), ("colour", "shape"), ("texture", "shape"), ("size", "shape"))
_ATTRIBUTE = {"colour-of": "colour", "shape-of": "shape", "texture-of": "texture", "size-of": "size"}
_SLACK = (3.0, 0.15)  # an answer may be ahead of the mean by so many, or by so large a share of it


@dataclass(frozen=True)
class Question:
    """One question, its answer, and what it is about.

    Args:
        picture: position of its scene in the list that was asked about.
        text: the question, in the words of the scene's domain.
        answer: one of `answers(domain)`.
        kind: one of `QUESTION_KINDS`.
        about: positions in `scene.objects` of the things that the question speaks of; empty where there is none.
    """

    picture: int
    text: str
    answer: str
    kind: str
    about: tuple[int, ...]


class _Candidate(NamedTuple):
    frame: str  # a key of QUESTIONS
    slots: dict  # name -> term, attribute or relation
    answer: str  # a concept
    options: tuple[str, ...]  # the answers that a question with these words may have
    about: tuple[int, ...] = ()

    def keys(self) -> list[tuple]:
        """What the text gives away, from coarse to fine: the frame, each informative word, all of them."""
        words = [(slot, *pair) for slot, said in self.slots.items() for pair in said.items()]
        return [(self.frame,), *((self.frame, word) for word in words), (self.frame, *sorted(words))]


def questions(
    scenes: Sequence[Scene],
    per_picture: int = 6,
    *,
    kinds: Sequence[str] = QUESTION_KINDS,
    synonyms: int = 2,
    seed: int = 0,
) -> list[Question]:
    """A balanced set of questions about scenes; the same ones for the same scenes and seed.

    The balance is one of the whole list: ask about all pictures of a split in one call.

    Args:
        scenes: N scenes of one domain.
        per_picture: how many for each, all different; of different kinds as far as there are kinds.
        kinds: some of `QUESTION_KINDS`.
        synonyms: how many words a concept may have.
        seed: any int >= 0.

    Returns:
        N * per_picture `Question`s, picture by picture.

    Raises:
        ValueError: scenes of several domains or none, unknown kinds, per_picture or synonyms below 1, a negative
            seed, or a scene that allows too few questions of these kinds.
    """
    domain = domain_of(scenes)
    unknown = set(kinds) - set(QUESTION_KINDS)
    if unknown or not kinds:
        raise ValueError(f"kinds must be some of {', '.join(QUESTION_KINDS)}, not {sorted(unknown) or 'none'}")
    if per_picture < 1 or synonyms < 1 or seed < 0:
        raise ValueError(
            f"expected per_picture >= 1, synonyms >= 1 and seed >= 0, got {per_picture}, {synonyms} and {seed}"
        )
    u = Random(seed << 16 ^ _SALT).random
    tally: defaultdict = defaultdict(lambda: defaultdict(int))  # words -> answer -> how often
    used = dict.fromkeys(kinds, 0)
    asked = []
    for picture, scene in enumerate(scenes):
        offers = {kind: _ranked(scene, domain, kind, tally, u) for kind in sorted(kinds, key=lambda k: (used[k], u()))}
        chosen: list[tuple[str, _Candidate]] = []
        # First one of each kind that keeps the balance, then more of them, then what there is.
        for strict, again in ((True, False), (True, True), (False, True)):
            for kind, ranked in offers.items():
                taken = [c for k, c in chosen if k == kind]
                for excess, candidate in ranked:
                    if len(chosen) == per_picture or (strict and excess > 0) or (taken and not again):
                        break
                    if all(other.slots != candidate.slots for other in taken):
                        chosen.append((kind, candidate))
                        taken.append(candidate)
        if len(chosen) < per_picture:
            raise ValueError(f"scene {scene.id} allows {len(chosen)} questions of these kinds, not {per_picture}")
        for kind, candidate in chosen:
            used[kind] += 1
            for key in candidate.keys():
                tally[key][candidate.answer] += 1
            asked.append(_worded(picture, domain, kind, candidate, u, synonyms))
    return asked


def _ranked(scene: Scene, domain: Domain, kind: str, tally, u) -> list[tuple[float, _Candidate]]:
    """What could be asked, the most wanted answer first, with how far it is beyond what the balance allows."""
    ranked = []
    for candidate in _CANDIDATES[kind](scene, domain, u):
        total, worst = 0.0, 0.0
        for key in candidate.keys():
            counts = tally[key]
            mean = sum(counts[a] for a in candidate.options) / len(candidate.options)
            ahead = counts[candidate.answer] + 1 - mean
            total += ahead
            worst = max(worst, ahead - max(_SLACK[0], _SLACK[1] * mean))
        ranked.append((worst, total, u(), candidate))
    return [(worst, candidate) for worst, _, _, candidate in sorted(ranked, key=lambda r: (r[0] > 0, *r[1:3]))]


def _worded(picture: int, domain: Domain, kind: str, c: _Candidate, u, synonyms: int) -> Question:
    words = {}
    for slot, said in c.slots.items():
        if slot in ("a", "the", "other"):
            words[slot] = phrase(domain, said, u, synonyms, definite=slot != "a")
        else:  # one bare attribute or relation
            ((role, concept),) = said.items()
            words[slot] = word_for(domain, role, concept, u(), synonyms)
    frames = QUESTIONS[c.frame]
    role = {"shape-of": "noun", "which-side": "relation"}.get(kind, _ATTRIBUTE.get(kind, kind))
    text = frames[int(u() * len(frames))].format(**words)
    return Question(picture, text, answer_word(domain, role, c.answer), kind, c.about)


def _names(scene: Scene, i: int, without: str | None = None) -> list[dict[str, str]]:
    """The terms that fit thing i and nothing else that is to be seen, and leave one attribute out."""
    seen, found = [scene.objects[k] for k in scene.visible], []
    for attributes in _TERMS:
        term = term_of(scene.objects[i], attributes)
        if without not in attributes and len(term) == len(attributes) and sum(matches(t, term) for t in seen) == 1:
            found.append(term)
    return found


def _one_of(values: Sequence, u: Callable[[], float]):
    return values[int(u() * len(values))]


def _exist(scene: Scene, domain: Domain, u) -> Iterator[_Candidate]:
    """What is there, and what would be there if one word were another."""
    values = {"colour": tuple(domain.palette), "shape": domain.shapes}
    values |= {role: tuple(domain.words[role]) for role in ("size", "texture")}
    for i in scene.visible:
        attributes = _one_of(_PAIRS, u)
        term = term_of(scene.objects[i], attributes)
        if len(term) < 2:
            continue
        yield _Candidate("exist", {"a": term}, "yes", ("yes", "no"), (i,))
        for name in attributes:
            for value in values[name]:
                other = term | {name: value}
                if holds(scene, {"things": [other]}) is False:
                    yield _Candidate("exist", {"a": other}, "no", ("yes", "no"))


def _count(scene: Scene, domain: Domain, u) -> Iterator[_Candidate]:
    """How many in all, how many of one attribute, how many on one side of a thing."""
    seen = [scene.objects[i] for i in scene.visible]
    few, all_of = ("0", "1", "2"), ("2", "3", "4")
    offers = [("count", {}, len(seen), all_of, ())]
    for role, values in (("colour", domain.palette), *((r, domain.words[r]) for r in ("size", "texture"))):
        for value in values:
            offers.append(("count-of", {"what": {role: value}}, sum(matches(t, {role: value}) for t in seen), few, ()))
    for i in scene.visible:
        if names := _names(scene, i):
            relation, own = _one_of(RELATIONS, u), scene.objects[i]
            number = sum(related(relation, t.x, t.y, own.x, own.y) for t in seen)
            slots = {"relation": {"relation": relation}, "the": _one_of(names, u)}
            offers.append(("count-beside", slots, number, few, (i,)))
    for frame, slots, number, options, about in offers:
        if str(number) in options:
            yield _Candidate(frame, slots, str(number), options, about)


def _attribute(kind: str) -> Callable:
    name = _ATTRIBUTE[kind]

    def offers(scene: Scene, domain: Domain, u) -> Iterator[_Candidate]:
        options = {"colour": tuple(domain.palette), "shape": domain.shapes, "texture": TEXTURES, "size": tuple(SIZES)}
        for i in scene.visible:
            for term in _names(scene, i, without=name):
                yield _Candidate(kind, {"the": term}, getattr(scene.objects[i], name), options[name], (i,))

    return offers


def _pairs(scene: Scene, u) -> Iterator[tuple[int, int, dict]]:
    """Every two things that can be named, in both orders, each with one of its names."""
    names = {i: _names(scene, i) for i in scene.visible}
    for a, b in permutations([i for i in scene.visible if names[i]], 2):
        yield a, b, {"the": _one_of(names[a], u), "other": _one_of(names[b], u)}


def _which_side(scene: Scene, domain: Domain, u) -> Iterator[_Candidate]:
    for a, b, slots in _pairs(scene, u):
        true = relations_between(scene.objects[a], scene.objects[b])
        if len(true) == 1:  # left and above at once would be two answers
            yield _Candidate("which-side", slots, true[0], RELATIONS, (a, b))


def _compare(scene: Scene, domain: Domain, u) -> Iterator[_Candidate]:
    """Sizes, of two things that are not named by their size."""
    for a, b, slots in _pairs(scene, u):
        if not any("size" in term for term in slots.values()):
            x, y = scene.objects[a].radius, scene.objects[b].radius
            answer = "larger" if x > y else "smaller" if x < y else "same"
            yield _Candidate("compare", slots, answer, ("larger", "smaller", "same"), (a, b))


_CANDIDATES = {
    "exist": _exist,
    "count": _count,
    **{kind: _attribute(kind) for kind in _ATTRIBUTE},
    "which-side": _which_side,
    "compare": _compare,
}
