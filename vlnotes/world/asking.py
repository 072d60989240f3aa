"""The words in which the tasks speak: frames of questions and statements, answers, and what a tokenizer must know.

Frames are the same in every domain; what is put into them are the domain's own words, and domains without articles do
without here too.
"""

import re
from collections.abc import Callable

from vlnotes.world.captions import article, word_for
from vlnotes.world.domains import COLOURS, FILLERS, RELATIONS, SIZES, TEXTURES, Domain, domain_named

QUESTION_KINDS = ("exist", "count", "colour-of", "shape-of", "texture-of", "size-of", "which-side", "compare")
QUANTIFIERS = ("both", "one", "neither", "only", "more", "same")
LABELS = ("entailment", "neutral", "contradiction")
SIDES = ("left", "right")

# "count" asks for all things, for things of one attribute, or for what stands on one side of a thing.
QUESTIONS = {
    "exist": ("is there {a}?", "do you see {a}?"),
    "count": ("how many things do you see?",),
    "count-of": ("how many things are {what}?", "how many {what} things do you see?"),
    "count-beside": ("how many things are {relation} {the}?",),
    "colour-of": ("what colour is {the}?", "which colour does {the} have?"),
    "shape-of": ("what shape is {the}?", "which shape does {the} have?"),
    "texture-of": ("what texture is {the}?", "which texture does {the} have?"),
    "size-of": ("what size is {the}?", "how big is {the}?"),
    "which-side": ("on which side of {other} is {the}?", "where is {the}, seen from {other}?"),
    "compare": ("is {the} larger than {other}, smaller or the same?",),
}
STATEMENTS = {
    "both": ("both pictures show {a}", "there is {a} in both pictures"),
    "one": ("exactly one picture shows {a}", "there is {a} in exactly one picture"),
    "neither": ("neither picture shows {a}", "there is {a} in neither picture"),
    "only": ("only the {side} picture shows {a}", "there is {a} in the {side} picture alone"),
    "more": ("there are more {what}things in the {side} picture", "the {side} picture shows more {what}things"),
    "same": ("{the} has the same {attribute} in both pictures", "both pictures show the same {attribute} of {the}"),
}
_BESIDES = {"size": {"medium": "medium"}, "texture": {"plain": "plain"}, "count": {"0": "zero", "1": "one"}}


def phrase(domain: Domain, term: dict[str, str], u: Callable[[], float], synonyms: int = 2, definite=False) -> str:
    """A thing in words, with the attributes of the term: "a small striped ring", "the red thing".

    Args:
        domain: whose words.
        term: attribute -> value, of shape, colour, size and texture; at least one.
        u: gives numbers in 0..1; they choose among synonyms.
        synonyms: how many words a concept may have.
        definite: "the" in place of "a".

    Returns:
        Words with single spaces.
    """
    words = [
        word_for(domain, role, term[role], u(), synonyms) for role in ("size", "texture", "colour") if role in term
    ]
    words.append(word_for(domain, "noun", term["shape"], u(), synonyms) if "shape" in term else "thing")
    if domain.articles:
        words.insert(0, "the" if definite else article(words[0]))
    return " ".join(words)


def answer_word(domain: Domain, role: str, concept: str) -> str:
    """How a domain answers: its most common word for the concept.

    Args:
        domain: whose words.
        role: "noun", "colour", "size", "texture", "relation", "count"; with any other the concept is its own word.
        concept: a value of that role; plain, medium, 0 and 1 are answers though no caption says them.

    Returns:
        One word; for a relation the telling one of its phrase, such as "left" or "port".
    """
    if concept in _BESIDES.get(role, ()):
        return _BESIDES[role][concept]
    if role not in domain.words:
        return concept
    return next(word for word in word_for(domain, role, concept, 0.0).split() if word not in FILLERS)


def answers(domain: str = "paper") -> tuple[str, ...]:
    """Every answer to a question of a domain, in a fixed order.

    Args:
        domain: name of a domain.

    Returns:
        Different words: yes and no, numbers, colours, shapes, textures, sizes, sides, and what a comparison gives.

    Raises:
        ValueError: an unknown domain.
    """
    world = domain_named(domain)
    concepts = [("", "yes"), ("", "no"), *(("count", str(n)) for n in range(5))]
    concepts += [("colour", c) for c in COLOURS if c in world.palette] + [("noun", s) for s in world.shapes]
    concepts += [("texture", t) for t in TEXTURES] + [("size", s) for s in SIZES]
    concepts += [("relation", r) for r in RELATIONS] + [("", c) for c in ("larger", "smaller", "same")]
    return tuple(answer_word(world, role, concept) for role, concept in concepts)


ANSWERS = answers("paper")


def task_texts(domain: str = "paper") -> list[str]:
    """Texts that hold every word of the tasks of a domain: questions, answers, statements and hypotheses.

    A tokenizer that learnt from these and from the captions knows all that a task may say.

    Args:
        domain: name of a domain.

    Returns:
        Non-empty texts: the empty frames, the domain's words, and its answers.

    Raises:
        ValueError: an unknown domain.
    """
    world = domain_named(domain)
    frames = [f for table in (QUESTIONS, STATEMENTS, world.templates) for frames in table.values() for f in frames]
    texts = [re.sub(r"\{\w+\}", " ", frame) for frame in frames]
    texts += [word for table in world.words.values() for words in table.values() for word in words]
    texts += [f"{before} {ground}" for pairs in world.phrases.values() for before, ground in pairs]
    texts += ["a thing and an other thing, the thing pointing", " ".join(SIDES), "colour shape texture size"]
    return [" ".join(text.split()) for text in texts if text.strip()] + list(answers(domain))
