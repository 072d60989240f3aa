"""The tasks: every answer is right by another way of counting, and no text gives its answer away.

The answers here are worked out from the words of the text and the objects of the scene alone, by code that shares
nothing with the generators but the tables of words.
"""

import re
from collections import Counter, defaultdict
from dataclasses import replace
from functools import cache
from itertools import permutations

import pytest

from vlnotes import blind
from vlnotes.text import train_tokenizer, unknown_rate
from vlnotes.world import (
    ANSWERS,
    DOMAINS,
    EDITS,
    LABELS,
    QUANTIFIERS,
    QUESTION_KINDS,
    SIZES,
    World,
    answers,
    assignments,
    captions,
    holds,
    hypotheses,
    pairs,
    questions,
    statements,
    task_texts,
    truth,
    winoground,
)

NAMES = sorted(DOMAINS)
ASKED = ("paper", "garden", "harbour", "chalk", "digits")
ROLES = {"noun": "shape", "colour": "colour", "size": "size", "texture": "texture"}


# An evaluation of its own: words back to meanings, meanings against objects.


@cache
def meanings(name):
    """word -> (attribute, value), and relation phrases, longest first."""
    words = {w: (ROLES[r], c) for r in ROLES for c, several in DOMAINS[name].words[r].items() for w in several}
    table = DOMAINS[name].words["relation"]
    return words, sorted(((w, c) for c, several in table.items() for w in several), key=lambda pair: -len(pair[0]))


def wanted(name, said):
    """{"colour": "red", "shape": "ring"} of "the red ring"; every word must mean something."""
    words, _ = meanings(name)
    found = [words[w] for w in said.split() if w not in ("a", "an", "the", "thing", "things")]
    assert len(dict(found)) == len(found), said
    return dict(found)


def visible(scene):
    return [thing for i, thing in enumerate(scene.objects) if i not in scene.hidden]


def fits(thing, want):
    return all(getattr(thing, name) == value for name, value in want.items())


def shown(scene, want):
    return [thing for thing in visible(scene) if fits(thing, want)]


def the_one(scene, said):
    found = shown(scene, wanted(scene.domain, said))
    assert len(found) == 1, f"{said!r} names {len(found)} things of {scene}"
    return found[0]


def beside(a, b):
    """Where a is, seen from b."""
    sides = {"left": b.x - a.x, "right": a.x - b.x, "above": b.y - a.y, "below": a.y - b.y}
    return {side for side, gap in sides.items() if gap >= 10}


def number(scene, n):
    return {0: "zero", 1: "one"}.get(n) or DOMAINS[scene.domain].words["count"][str(n)][0]


def answer_of(scene, text):
    """What is right, worked out from the words."""
    table, (_, relations) = DOMAINS[scene.domain].words, meanings(scene.domain)
    if found := re.fullmatch(r"(?:is there|do you see) (.+)\?", text):
        some = shown(scene, wanted(scene.domain, found[1]))
        assert some or scene.cloud is None, "who knows what the cloud hides"
        return "yes" if some else "no"
    if text == "how many things do you see?":
        return number(scene, len(visible(scene)))
    if found := re.fullmatch(r"how many (\S+) things do you see\?|how many things are (\S+)\?", text):
        return number(scene, len(shown(scene, wanted(scene.domain, found[1] or found[2]))))
    if found := re.fullmatch(r"how many things are (.+)\?", text):
        said, concept = next(pair for pair in relations if found[1].startswith(pair[0] + " "))
        anchor = the_one(scene, found[1][len(said) :])
        return number(scene, sum(concept in beside(thing, anchor) for thing in visible(scene)))
    if found := re.fullmatch(r"(?:what|which) (colour|shape|texture|size) (?:is|does) (.+?)(?: have)?\?", text):
        name, thing = found[1], the_one(scene, found[2])
        assert name not in wanted(scene.domain, found[2])
        value = getattr(thing, name)
        return value if value in ("plain", "medium") else table["noun" if name == "shape" else name][value][0]
    if found := re.fullmatch(r"how big is (.+)\?", text):
        return answer_of(scene, f"what size is {found[1]}?")
    if found := re.fullmatch(r"on which side of (?P<b>.+) is (?P<a>.+)\?|where is (.+), seen from (.+)\?", text):
        a, b = (the_one(scene, said) for said in (found["a"] or found[3], found["b"] or found[4]))
        (side,) = beside(a, b)  # two would be two answers
        return [w for w in table["relation"][side][0].split() if w not in ("to", "the", "of", "than")][0]
    found = re.fullmatch(r"is (.+) larger than (.+), smaller or the same\?", text)
    a, b = (SIZES[the_one(scene, said).size] for said in found.groups())
    return "larger" if a > b else "smaller" if a < b else "same"


def statement_of(left, right, text):
    """Is the statement true? None where a cloud may hide the answer."""
    here = left.domain

    def shows(scene, said):
        return True if shown(scene, wanted(here, said)) else None if scene.cloud else False

    if found := re.fullmatch(
        r"both pictures show the same (\w+) of (.+)|(.+) has the same (\w+) in both pictures", text
    ):
        name, said = found[1] or found[4], found[2] or found[3]
        assert left.cloud is right.cloud is None and name not in wanted(here, said)
        return getattr(the_one(left, said), name) == getattr(the_one(right, said), name)
    more = r"there are more (.*)things in the (\w+) picture|the (?P<side>\w+) picture shows more (?P<what>.*)things"
    if found := re.fullmatch(more, text):
        want = wanted(here, (found[1] or found["what"] or "").strip())
        a, b = (len(shown(scene, want)) for scene in (left, right))
        return a > b if (found[2] or found["side"]) == "left" else b > a
    side = re.search(r"the (left|right) picture", text)
    said = " ".join(word for word in text.split() if word in meanings(here)[0])
    a, b = shows(left, said), shows(right, said)
    if None in (a, b):
        return None
    if side:
        return (a and not b) if side[1] == "left" else (b and not a)
    word = re.search(r"both|exactly one|neither", text)[0]
    return {"both": a and b, "exactly one": a != b, "neither": not a and not b}[word]


def label_of(scene, predicate):
    """By possible worlds: whatever could stand behind the cloud is put there, and the statement tried."""

    def true_of(things):
        if predicate.get("place", scene.place) != scene.place:
            return False
        if predicate.get("count", len(visible(scene))) != len(visible(scene)):
            return False
        return any(
            all(fits(thing, term) for thing, term in zip(chosen, predicate["things"], strict=True))
            and all(side in beside(chosen[a], chosen[b]) for side, a, b in predicate.get("relations", ()))
            for chosen in permutations(things, len(predicate["things"]))
        )

    if true_of(visible(scene)):
        return "entailment"
    behind = [replace(scene.objects[0], x=scene.cloud[0], y=scene.cloud[1], **term) for term in predicate["things"]]
    return "neutral" if any(true_of([*visible(scene), thing]) for thing in behind) else "contradiction"


@cache
def some(name, n=300, split="train"):
    return World(name).scenes(n, split)


@cache
def asked(name, n=300, split="train"):
    return questions(some(name, n, split))


# Questions.


@pytest.mark.parametrize("name", ASKED)
def test_every_answer_is_right(name):
    scenes = [*some(name, 150), *World(name).scenes(60, "test", held_out=True)]
    for question in questions(scenes):
        assert question.answer == answer_of(scenes[question.picture], question.text), question
        assert question.answer in answers(name)


def test_questions_speak_of_what_can_be_seen():
    cloudy = [scene for scene in some("paper", 3000) if scene.hidden][:100]
    for question in questions(cloudy):
        scene = cloudy[question.picture]
        assert set(question.about) <= set(scene.visible)
        assert question.answer == answer_of(scene, question.text)
    spoken = {question.kind for question in asked("paper") if not question.about}
    assert spoken == {"exist", "count"}  # all other kinds ask of something


def test_six_different_questions_a_picture_of_six_kinds():
    made = asked("paper")
    assert [question.picture for question in made] == [i for i in range(300) for _ in range(6)]
    for i in range(300):
        mine = made[6 * i : 6 * i + 6]
        assert len({question.text for question in mine}) == 6
    few = questions(some("paper", 100), kinds=("exist", "count"))
    assert all(len({question.text for question in few[6 * i : 6 * i + 6]}) == 6 for i in range(100))
    kinds = Counter(question.kind for question in made)
    assert set(kinds) == set(QUESTION_KINDS) and max(kinds.values()) - min(kinds.values()) <= 0.1 * 225
    assert sum(len({q.kind for q in made[6 * i : 6 * i + 6]}) == 6 for i in range(300)) > 290
    assert len({question.text.split(" ")[0] for question in made}) > 5


@pytest.mark.parametrize("name", ["paper", "harbour"])
def test_answers_of_a_kind_come_equally_often(name):
    counts = defaultdict(Counter)
    for question in asked(name, 1000):  # all things are asked for with another range of answers
        counts["number" if question.text == "how many things do you see?" else question.kind][question.answer] += 1
    for kind, found in counts.items():
        mean = found.total() / len(found)
        assert max(found.values()) <= 1.15 * mean + 3 and min(found.values()) >= 0.75 * mean - 3, (kind, found)
    assert set(counts["exist"]) == {"yes", "no"} and len(counts["count"]) == 3 and len(counts["number"]) == 3
    assert len(counts["colour-of"]) == len(DOMAINS[name].palette) and len(counts["shape-of"]) == len(
        DOMAINS[name].shapes
    )
    assert len(counts["texture-of"]) == 4 and len(counts["size-of"]) == 3


@pytest.mark.parametrize("name", ["paper", "garden"])
def test_no_word_of_a_question_leans_to_an_answer(name):
    """Given a kind and one word of the text, answers come as they do without the word."""
    words, _ = meanings(name)
    counts = defaultdict(Counter)
    for question in asked(name, 1000):
        if question.text != "how many things do you see?":
            for word in set(re.findall(r"\w+", question.text)) & set(words):
                counts[question.kind, words[word]][question.answer] += 1
    looked_at = 0
    for (kind, concept), found in counts.items():
        if found.total() >= 30:
            looked_at += 1
            mean = found.total() / {"exist": 2, "count": 3, "compare": 3, "size-of": 3}.get(kind, max(len(found), 4))
            assert max(found.values()) <= 1.3 * mean + 3, (kind, concept, found)
    assert looked_at > 60


def test_who_reads_the_questions_alone_is_no_better_than_the_prior():
    learnt, fresh = defaultdict(Counter), asked("paper", 1000, "test")
    for kind in QUESTION_KINDS:
        sides = [[one for one in asked("paper", 1000, split) if one.kind == kind] for split in ("train", "test")]
        lists = [part for side in sides for part in ([one.text for one in side], [one.answer for one in side])]
        guess = blind.guessed(*lists)
        assert guess.alone <= guess.prior + 0.05, (kind, guess)
    for question in asked("paper", 1000):
        learnt[question.kind, question.text][question.answer] += 1
        learnt[question.kind][question.answer] += 1
    hits = defaultdict(list)
    for question in fresh:  # the commonest answer to this very text
        known = learnt.get((question.kind, question.text), learnt[question.kind])
        hits[question.kind].append(known.most_common(1)[0][0] == question.answer)
    for kind, right in hits.items():
        prior = max(Counter(q.answer for q in fresh if q.kind == kind).values()) / len(right)
        assert sum(right) / len(right) <= prior + 0.05, kind


def test_answers_are_different_words_in_every_domain():
    assert answers("paper") == ANSWERS and len(ANSWERS) == 45
    for name in NAMES:
        assert len(set(answers(name))) == len(answers(name)) and all(" " not in answer for answer in answers(name))
    assert {"port", "starboard", "lighthouse"} <= set(answers("harbour"))
    assert not {"right", "left"} & set(answers("harbour")) and "black" not in answers("neon")


def test_single_things_have_questions_too_and_too_many_are_refused():
    alone = World("paper").single(5)
    for question in questions(alone, 5):
        assert question.answer == answer_of(alone[question.picture], question.text)
    with pytest.raises(ValueError, match=r"allows \d questions of these kinds, not 6"):
        questions(alone, kinds=("which-side",))


# Statements about two pictures.


@pytest.mark.parametrize("name", ["paper", "harbour", "pixel"])
def test_every_statement_is_judged_rightly_and_half_of_them_are_true(name):
    scenes = some(name)
    made = statements(scenes, 120)
    assert len(made) == 480
    for g in range(120):
        four = made[4 * g : 4 * g + 4]
        assert {one.group for one in four} == {g} and len({one.text for one in four}) == 1
        assert sorted(one.answer for one in four) == [False, False, True, True]
        assert len({(one.left, one.right) for one in four}) == 4 and all(one.left != one.right for one in four)
        for one in four:
            assert one.answer is statement_of(scenes[one.left], scenes[one.right], one.text), one
    assert Counter(one.kind for one in made) == dict.fromkeys(QUANTIFIERS, 80)
    assert len({one.text for one in made}) > 110
    places = Counter(one.answer for one in made[::4])
    assert 40 < places[True] < 80  # the order says nothing


def test_one_picture_alone_tells_little_about_a_statement():
    """For "exactly one" and "same" nothing at all: each picture is in one true and one false pair, on the same side."""
    made = statements(some("paper"), 60, kinds=("one", "same"))
    for g in range(60):
        four = made[4 * g : 4 * g + 4]
        for side in ("left", "right"):
            seen = defaultdict(set)
            for one in four:
                seen[getattr(one, side)].add(one.answer)
            assert set(map(frozenset, seen.values())) == {frozenset((True, False))}


def test_pictures_without_a_thing_often_show_half_of_it():
    scenes = some("paper")
    near = []
    for one in statements(scenes, 200, kinds=("one",)):
        found = re.search(r"shows an? (.+)|there is an? (.+) in exactly", one.text)
        want = wanted("paper", found[1] or found[2])
        if len(want) == 2:
            absent = [s for s in (scenes[one.left], scenes[one.right]) if not shown(s, want)]
            near += [any(shown(scene, {name: want[name]}) for name in want) for scene in absent]
    assert sum(near) / len(near) > 0.95


@pytest.mark.parametrize("name", ["paper", "garden"])
def test_texts_are_assigned_to_left_right_and_neither(name):
    told = pairs([*World(name).scenes(50), *[scene for scene in some(name, 3000) if scene.cloud][:20]])
    made = assignments(told, 100)
    right = truth(told.scenes, told.captions)
    index = {caption.text: j for j, caption in enumerate(told.captions)}
    assert Counter(one.answer for one in made) == {0: 100, 1: 100, 2: 100}
    for one in made:
        true = [bool(right[picture, index[one.text]]) for picture in (one.left, one.right)]
        assert true == [one.answer == 0, one.answer == 1] and one.left != one.right
        claim = told.captions[index[one.text]].predicate
        assert None not in (holds(told.scenes[one.left], claim), holds(told.scenes[one.right], claim))
    said = Counter((one.text, one.answer) for one in made)
    assert all(said[text, 0] == said[text, 1] == said[text, 2] for text, _ in said)
    assert {one.kind for one in made} == {caption.kind for caption in told.captions}


def test_captions_that_are_not_true_are_not_assigned():
    told = pairs(World("paper").scenes(40), ("full",))
    wrong = told._replace(captions=[*told.captions[20:], *told.captions[:20]])
    with pytest.raises(ValueError, match="do not tell them apart"):
        assignments(wrong, 5)
    same = pairs([told.scenes[0]] * 3, ("full",))
    with pytest.raises(ValueError, match="do not tell them apart"):
        assignments(same, 5)


# Hypotheses.


@pytest.mark.parametrize("name", ["paper", "garden", "harbour", "chalk"])
def test_every_label_is_right_whatever_the_cloud_hides(name):
    made = hypotheses(some(name))
    assert len(made) > 450  # of 300 scenes, about two thirds with three labels each
    words, _ = meanings(name)
    for one in made:
        assert one.label == label_of(one.scene, one.predicate), one
        said = Counter(words[w][1] for w in re.findall(r"\w+", one.text) if w in words)
        claimed = Counter(v for term in one.predicate["things"] for k, v in term.items() if k != "direction")
        assert said >= claimed and set(said - claimed) <= {"blue", "white"}  # under blue sky, in white snow
    assert Counter(one.kind for one in made).keys() == {"rel", "count"}


def test_a_hypothesis_has_three_pictures_that_look_alike():
    made = hypotheses(some("paper"))
    for g in range(len(made) // 3):
        three = made[3 * g : 3 * g + 3]
        assert {one.group for one in three} == {g} and len({one.text for one in three}) == 1
        assert {one.label for one in three} == set(LABELS)
        assert len({len(one.scene.visible) for one in three}) == 1 and len(three[0].scene.visible) >= 2
        for one in three:  # the cloud lies on the thing that it hides
            (i,) = one.scene.hidden
            assert (
                max(abs(one.scene.cloud[0] - one.scene.objects[i].x), abs(one.scene.cloud[1] - one.scene.objects[i].y))
                < 2
            )
        scenes = {one.label: one.scene for one in three}
        proof, unclear, against = (scenes[label] for label in LABELS)
        assert proof.objects == unclear.objects and proof.place == unclear.place and proof.hidden != unclear.hidden
        assert proof.hidden == against.hidden
        changed = [a != b for a, b in zip(proof.objects, against.objects, strict=True)]
        assert (sum(changed) in (1, 2) and proof.place == against.place) or (
            not any(changed) and proof.place != against.place
        )
    assert Counter(one.label for one in made[::3]).total() == len(made) // 3
    assert min(Counter(one.label for one in made[::3]).values()) > len(made) / 3 / 5  # the order says nothing


# Binding.


@pytest.mark.parametrize("kind", EDITS)
@pytest.mark.parametrize("name", ["paper", "harbour"])
def test_each_sentence_of_a_binding_item_is_true_of_its_own_scene_alone(kind, name):
    scenes = some(name)
    scenes = [*scenes, *[scene for scene in some(name, 3000) if scene.cloud]]
    items = winoground(scenes, kind)
    assert len(items) > 100
    for a, caption_a, b, caption_b in items:
        right = [[holds(scene, caption.predicate) for caption in (caption_a, caption_b)] for scene in (a, b)]
        assert right == [[True, False], [False, True]]
        assert a in scenes and b.id == f"{a.id}-{kind}" and a.seed == b.seed
        assert caption_a in captions(a) and caption_b in captions(b)
        changed = [(x, y) for x, y in zip(a.objects, b.objects, strict=True) if x != y]
        assert len(changed) == (1 if kind.startswith("replace") else 2)
        if not kind.startswith("replace"):  # the same things and words in another order, up to a and an
            part = {"swap_colours": "colour", "swap_textures": "texture", "swap_shapes": "shape"}.get(kind)
            for attribute in [part] if part else ["x", "y"]:
                assert Counter(getattr(x, attribute) for x, _ in changed) == Counter(
                    getattr(y, attribute) for _, y in changed
                )


def test_an_unknown_edit_is_named():
    with pytest.raises(ValueError, match="unknown edit 'swap_sizes'"):
        winoground(some("paper"), "swap_sizes")


# All of them.


def everything(name, scenes, **dials):
    return (
        questions(scenes, **dials),
        statements(scenes, 18, **dials),
        hypotheses(scenes, **dials),
        [one for kind in EDITS for one in winoground(scenes, kind)],
    )


def test_equal_scenes_and_seeds_give_equal_tasks():
    scenes = World("paper").scenes(100)
    first, again, other = (everything("paper", scenes, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert all(a != b for a, b in zip(first[:3], other[:3], strict=True))
    told = pairs(scenes[:40])
    assert assignments(told, 20, seed=1) == assignments(told, 20, seed=1) != assignments(told, 20, seed=2)


@pytest.mark.parametrize("name", NAMES)
def test_a_tokenizer_that_learnt_the_task_texts_knows_every_word(name):
    scenes = World(name).scenes(100)
    asked, stated, supposed, bound = everything(name, scenes)
    texts = [one.text for one in [*asked, *stated, *supposed]] + [question.answer for question in asked]
    texts += [caption.text for _, a, _, b in bound for caption in (a, b)] + list(answers(name))
    assert unknown_rate(train_tokenizer(task_texts(name)), texts) == 0
    said = {word for text in texts for word in re.findall(r"\w+", text)}
    assert len(said) > 80 and all(text == " ".join(text.split()) for text in texts)


def test_with_one_synonym_only_canonical_words_are_said():
    words = DOMAINS["paper"].words
    spare = {
        w for role in ("noun", "colour", "size", "texture") for several in words[role].values() for w in several[1:]
    }
    scenes = some("paper")
    made = [questions(scenes, synonyms=1), statements(scenes, 60, synonyms=1), hypotheses(scenes, synonyms=1)]
    said = {word for items in made for one in items for word in re.findall(r"\w+", one.text)}
    assert said & spare == {"big"}  # of "how big is"


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda s: questions(s, kinds=("why",)), r"kinds must be some of exist, .*not \['why'\]"),
        (lambda s: questions(s, kinds=()), "not none"),
        (lambda s: questions(s, 0), "per_picture >= 1"),
        (lambda s: questions(s, seed=-1), "seed >= 0"),
        (lambda s: questions([]), "one domain, got none"),
        (lambda s: questions([*s, *World("neon").scenes(1)]), "one domain, got"),
        (lambda s: statements(s, kinds=("all",)), r"kinds must be some of both, .*not \['all'\]"),
        (lambda s: statements(s, 0), "groups >= 1"),
        (lambda s: statements(s[:2], 1), "among 2 scenes; expected some hundreds"),
        (lambda s: hypotheses(s, synonyms=0), "synonyms >= 1"),
        (lambda s: hypotheses([]), "one domain, got none"),
        (lambda s: assignments(pairs(s[:3]), 0), "n >= 1"),
        (lambda s: answers("moon"), "unknown domain 'moon'"),
        (lambda s: task_texts("moon"), "unknown domain 'moon'"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make(some("paper"))
