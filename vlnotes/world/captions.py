"""Five captions a scene, one of each kind, as five people would write them: some thorough, some lazy, all
true.

Every random choice is drawn in a fixed order from the scene's own seed, so that a one-edit neighbour with the
same seed gets the same sentence with one word changed.
"""

from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from vlnotes.world.domains import COLOURS, RELATIONS, Domain, domain_named
from vlnotes.world.predicates import related, term_of
from vlnotes.world.scenes import Scene, Thing

KINDS = ("full", "rel", "count", "partial", "generic")
_SALT = 0x5EED_CA97


class Span(NamedTuple):
    """text[start:end] speaks of these objects of the scene in this role."""

    start: int
    end: int
    objects: tuple[int, ...]
    role: str


@dataclass(frozen=True)
class Caption:
    """A sentence and everything that is known about it.

    Args:
        kind: full, rel, count, partial or generic.
        tokens: lower-case words without punctuation.
        spans: character offsets into `text`, with the objects a word speaks of and its role
            (noun, colour, size, texture, direction, relation, place, count).
        predicate: what the sentence claims, see `predicates.py`.
        noise: None, or what was done to the caption.
    """

    text: str
    kind: str
    tokens: tuple[str, ...]
    spans: tuple[Span, ...]
    predicate: dict
    noise: str | None = None


def relations_between(a: Thing, b: Thing) -> list[str]:
    """Every relation that is true of a pair of objects.

    Args:
        a: one object.
        b: another.

    Returns:
        Names from `RELATIONS`, left or right before above or below; exchanging the places gives the opposite
        words in the same order.
    """
    return [name for name in RELATIONS if related(name, a.x, a.y, b.x, b.y)]


def rel_pair(scene: Scene) -> tuple[int, int]:
    """The two visible objects that the relation caption speaks of.

    Args:
        scene: a `Scene` with at least two visible objects.

    Returns:
        Two different positions in `scene.objects`.
    """
    u = Random(scene.seed ^ _SALT).random
    seen = scene.visible
    first = int(u() * len(seen))
    second = int(u() * (len(seen) - 1))
    return seen[first], seen[second + (second >= first)]


def captions(scene: Scene, synonyms: int = 2) -> tuple[Caption, ...]:
    """Five captions, in the order full, rel, count, partial, generic; the same five for the same scene.

    Args:
        scene: a `Scene`.
        synonyms: how many words a concept may have, 1 for the canonical word only.

    Returns:
        Five `Caption`s; for a scene with a single visible object three, without rel and count.

    Raises:
        ValueError: `synonyms` below 1.
    """
    if synonyms < 1:
        raise ValueError(f"synonyms is the number of words a concept may have, at least 1, got {synonyms}")
    domain = domain_named(scene.domain)
    rng = Random(scene.seed ^ _SALT)
    rng.random(), rng.random()  # rel_pair's two
    made = []
    for kind in KINDS:
        if kind in ("rel", "count") and len(scene.visible) < 2:
            continue
        made.append(_caption(scene, domain, kind, rng.random, synonyms))
    return tuple(made)


def _caption(scene: Scene, domain: Domain, kind: str, u, synonyms: int) -> Caption:
    seen = scene.visible
    template = _pick(domain.templates[kind], u())
    before, ground = domain.phrases[scene.place][int(u() * min(synonyms, len(domain.phrases[scene.place])))]
    place = [(w, None, ()) for w in before.split()] + [(ground, "place", ())]
    predicate: dict = {}
    slots = {"place": place, "ground": [("the", None, ()), (ground, "place", ())]}
    if kind == "full":
        order = _shuffled(seen, u)
        parts = [_phrase(scene, domain, i, u, synonyms, 1.0, 1.0) for i in order]
        slots["things"] = _listing([words for words, _ in parts])
        predicate["things"] = [term for _, term in parts]
    elif kind == "rel":
        a, b = rel_pair(scene)
        parts = [_phrase(scene, domain, i, u, synonyms, 0.9, 0.9) for i in (a, b)]
        options = relations_between(scene.objects[a], scene.objects[b])
        name = _pick(options, u())
        phrase = word_for(domain, "relation", name, u(), synonyms)
        slots |= {"a": parts[0][0], "b": parts[1][0], "relation": [(phrase, "relation", (a, b))]}
        predicate = {"things": [parts[0][1], parts[1][1]], "relations": [[name, 0, 1]]}
    elif kind in ("count", "partial"):
        i = _pick(seen, u())
        words, term = _phrase(scene, domain, i, u, synonyms, 0.9, 0.5 if kind == "count" else 0.25)
        slots["a"] = words
        predicate = {"things": [term]}
        if kind == "count":
            number = domain.words["count"].get(str(len(seen)), (str(len(seen)),))[0]
            slots["count"] = [(number, "count", seen)]
            predicate["count"] = len(seen)
    if "{place}" in template or "{ground}" in template:
        predicate["place"] = scene.place
    pieces = []
    for word in template.split():
        if word[0] == "{":
            pieces += slots[word[1:-1]]
        else:
            pieces.append((word, None, ()))
    return _write(pieces, kind, predicate)


def _phrase(scene: Scene, domain: Domain, i: int, u, synonyms: int, keep_colour: float, keep: float):
    """Words and term of one object; always eight draws, whatever is said."""
    thing = scene.objects[i]
    said, colour_said, size_first = u() < keep, u() < keep_colour, u() < 0.5
    attributes = ["shape"] + ["colour"] * colour_said + ["size", "texture", "direction"] * said
    term = term_of(thing, attributes)
    at = {role: u() for role in ("size", "texture", "colour", "noun", "direction")}
    size = [(word_for(domain, "size", thing.size, at["size"], synonyms), "size", (i,))] if "size" in term else []
    texture = (
        [(word_for(domain, "texture", thing.texture, at["texture"], synonyms), "texture", (i,))]
        if "texture" in term
        else []
    )
    words = size + texture if size_first else texture + size
    if colour_said:
        words.append((word_for(domain, "colour", thing.colour, at["colour"], synonyms), "colour", (i,)))
    words.append((word_for(domain, "noun", thing.shape, at["noun"], synonyms), "noun", (i,)))
    if "direction" in term:
        words.append(("pointing", None, ()))
        words.append((word_for(domain, "direction", thing.direction, at["direction"], synonyms), "direction", (i,)))
    if domain.articles:
        words.insert(0, (article(words[0][0]), None, ()))
    return words, term


def word_for(domain: Domain, role: str, concept: str, u: float, synonyms: int = 2) -> str:
    """One of a domain's words for a concept.

    Args:
        domain: whose words.
        role: "noun", "colour", "size", "texture", "relation", "direction" or "count".
        concept: a value of that role.
        u: 0 <= u < 1, which of the words.
        synonyms: how many of them are in use, the most common first.

    Returns:
        A word; for a relation a phrase such as "to the left of".
    """
    words = domain.words[role][concept]
    return words[int(u * min(synonyms, len(words)))]


def article(word: str) -> str:
    """a or an, as the next word asks for it."""
    return "an" if word[0] in "aeiou8" else "a"


def _pick(values, u: float):
    return values[int(u * len(values))]


def _shuffled(values, u) -> list:
    values = list(values)
    for k in range(len(values) - 1, 0, -1):
        other = int(u() * (k + 1))
        values[k], values[other] = values[other], values[k]
    return values


def _listing(parts: list[list]) -> list:
    """a, b and c."""
    pieces = list(parts[0])
    for k, part in enumerate(parts[1:], start=1):
        pieces.append(("and", None, ()) if k == len(parts) - 1 else (",", None, ()))
        pieces += part
    return pieces


def _write(pieces: list, kind: str, predicate: dict) -> Caption:
    spans, tokens, text, at = [], [], [], 0
    for word, role, objects in pieces:
        if word in ",:":
            text[-1] += word
            at += 1
            continue
        start = at + (at > 0)
        at = start + len(word)
        if role:
            spans.append(Span(start, at, tuple(objects), role))
        text.append(word)
        tokens += word.split() if " " in word else (word,)
    return Caption(" ".join(text), kind, tuple(tokens), tuple(spans), predicate)


def inks(scene: Scene, caption: Caption) -> list[tuple[int, int, str | None]]:
    """In which colour to mark the words of a caption: those of a thing in the thing's own, the place in its ground's.

    The colours are those of the scene, whatever the caption says: a wrong colour word stands out.

    Args:
        scene: a `Scene`.
        caption: what is said of it, true or not.

    Returns:
        (start, end, colour) of each span, offsets into `caption.text`, colour as "#rrggbb"; None for words that
        speak of no thing or of several, such as counts and relations. `vlnotes.plots.described` takes them.
    """
    domain, marked = domain_named(scene.domain), []
    for start, end, objects, role in caption.spans:
        rgb = None
        if role == "place":
            rgb = [(a + b) // 2 for a, b in zip(*domain.places[scene.place], strict=True)]
        elif len(objects) == 1:
            rgb = domain.palette[scene.objects[objects[0]].colour]
        marked.append((start, end, None if rgb is None else "#{:02x}{:02x}{:02x}".format(*rgb)))
    return marked


def prompts(domain: str, of: str = "colour-shape", template: str = "a picture of {}") -> dict[str, str]:
    """Zero-shot prompts in the canonical words of a domain, from concept to sentence.

    Args:
        domain: name of a domain.
        of: "colour", "shape" or "colour-shape".
        template: where the words go.

    Returns:
        Mapping from "red", "ring" or "red ring" to a sentence.

    Raises:
        ValueError: an unknown domain or `of`.
    """
    world = domain_named(domain)
    colours = [c for c in COLOURS if c in world.palette]
    noun = {s: world.words["noun"][s][0] for s in world.shapes}
    colour = {c: world.words["colour"][c][0] for c in colours}
    if of == "colour":
        pairs = {c: f"{colour[c]} shape" for c in colours}
    elif of == "shape":
        pairs = dict(noun)
    elif of == "colour-shape":
        pairs = {f"{c} {s}": f"{colour[c]} {noun[s]}" for s in world.shapes for c in colours}
    else:
        raise ValueError(f'prompts are of "colour", "shape" or "colour-shape", got {of!r}')
    return {key: template.format(f"{article(words)} {words}") for key, words in pairs.items()}
