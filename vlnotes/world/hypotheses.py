"""Sentences that a picture proves, disproves, or leaves open, because a cloud hides what they speak of.

A hypothesis comes with three pictures, one of each label, so the sentence alone says nothing. All three have a cloud
over one thing and show equally many, so the cloud alone says nothing either:

    entailment     the cloud hides something that the sentence does not speak of
    neutral        the cloud hides what the sentence speaks of
    contradiction  as entailment, but one edit made the sentence false, whatever the cloud hides
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

from vlnotes.world.asking import LABELS
from vlnotes.world.captions import Caption, captions
from vlnotes.world.domains import CELLS, domain_named
from vlnotes.world.edits import drawable, edits
from vlnotes.world.predicates import holds
from vlnotes.world.scenes import Scene, domain_of

_SALT = 0x5_0E17
_KINDS = ("rel", "count")  # the captions that a scene can contradict in spite of a cloud


@dataclass(frozen=True)
class Hypothesis:
    """A sentence, a picture, and what the one says about the other.

    Args:
        scene: the premise; draw it with `draw`.
        text: a caption of the world, "rel" or "count".
        label: one of `LABELS`.
        predicate: what the sentence claims: `holds` gives True, None and False for the three labels.
        kind: that of the caption.
        group: hypotheses of one group have the same text, one of each label.
    """

    scene: Scene
    text: str
    label: str
    predicate: dict
    kind: str
    group: int


def hypotheses(scenes: Sequence[Scene], *, synonyms: int = 2, seed: int = 0) -> list[Hypothesis]:
    """Three pictures and one sentence for every scene that has things enough, as SNLI-VE; the same for the same seed.

    Args:
        scenes: scenes of one domain; those with fewer than three things or with a cloud already are passed over.
        synonyms: how many words a concept may have.
        seed: any int >= 0.

    Returns:
        `Hypothesis`, three a group, in random order within it; about two thirds of the scenes make a group.

    Raises:
        ValueError: scenes of several domains or none, synonyms below 1, a negative seed.
    """
    domain_of(scenes)
    if synonyms < 1 or seed < 0:
        raise ValueError(f"expected synonyms >= 1 and seed >= 0, got {synonyms} and {seed}")
    u = Random(seed << 16 ^ _SALT).random
    made: list[Hypothesis] = []
    for scene in scenes:
        if scene.cloud is not None or len(scene.objects) < 3:
            continue
        kinds = _shuffled(_KINDS, u)
        for bystander in _shuffled(range(len(scene.objects)), u):
            found = _three(scene, bystander, kinds[0], synonyms, u) or _three(scene, bystander, kinds[1], synonyms, u)
            if found:
                caption, premises = found
                group = len(made) // 3
                for label, premise in _shuffled(zip(LABELS, premises, strict=True), u):
                    premise = replace(premise, id=f"{scene.id}-{label}")
                    made.append(Hypothesis(premise, caption.text, label, caption.predicate, caption.kind, group))
                break
    return made


def _three(scene: Scene, bystander: int, kind: str, synonyms: int, u) -> tuple[Caption, list[Scene]] | None:
    """A caption that does not speak of the bystander, and the premises in the order of `LABELS`."""
    proof = _clouded(scene, bystander)
    caption = next(c for c in captions(proof, synonyms) if c.kind == kind)
    named = sorted({i for span in caption.spans if span.role == "noun" for i in span.objects})
    unclear = [_clouded(scene, i) for i in _shuffled(named, u)]
    against = edits(scene, tuple(named)).values() if kind == "rel" else _elsewhere(scene)
    against = [_clouded(other, bystander) for other in _shuffled(against, u)]
    premises = [proof]
    for options, truth in ((unclear, None), (against, False)):
        fitting = [option for option in options if holds(option, caption.predicate) is truth]
        if not fitting:
            return None
        premises.append(fitting[0])
    return caption, premises


def _clouded(scene: Scene, i: int) -> Scene:
    """The scene with a cloud over thing i."""
    thing = scene.objects[i]
    x, y = (min(CELLS, key=lambda c: abs(c - at)) for at in (thing.x, thing.y))
    return replace(scene, cloud=(x, y), hidden=(i,))


def _elsewhere(scene: Scene) -> list[Scene]:
    """The same things in every other place where they can be seen."""
    places = (place for place in domain_named(scene.domain).places if place != scene.place)
    return [other for place in places if drawable(scene, other := replace(scene, place=place))]


def _shuffled(values, u: Callable[[], float]) -> list:
    return sorted(values, key=lambda _: u())
