"""Captions and predicates: what is said is true, and false as soon as it is edited."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlnotes.world import (
    CONCEPTS,
    DOMAINS,
    EDITS,
    KINDS,
    Scene,
    Thing,
    World,
    beside_neighbours,
    captions,
    describe,
    edits,
    hard_gallery,
    holds,
    inks,
    prompts,
    truth,
)
from vlnotes.world.captions import rel_pair
from vlnotes.world.predicates import term_of

NAMES = sorted(DOMAINS)


def thing(shape, colour, x, y, size="medium", texture="plain"):
    return Thing(shape, colour, size, texture, x, y, 0.0, "up" if shape == "arrow" else None)


RED_LEFT = Scene(
    "s",
    "paper",
    "sea",
    (thing("circle", "red", 12.0, 30.0), thing("star", "blue", 50.0, 31.0, "large")),
    None,
    (),
    1,
)


def any_scene():
    return st.builds(
        lambda name, seed, split, index: World(name, seed)._scene(split, index, False, True),
        st.sampled_from(NAMES),
        st.integers(0, 50),
        st.sampled_from(["train", "val", "test"]),
        st.integers(0, 10_000),
    )


@given(any_scene())
@settings(max_examples=150, deadline=None)
def test_every_caption_is_true_of_its_scene(scene):
    said = captions(scene)
    assert tuple(c.kind for c in said) == KINDS and said == captions(scene)
    for c in said:
        assert holds(scene, c.predicate) is True
        assert json.loads(json.dumps(c.predicate)) == c.predicate
        assert c.noise is None


@given(any_scene())
@settings(max_examples=150, deadline=None)
def test_spans_point_at_words_of_the_right_concept(scene):
    for c in captions(scene):
        assert c.text == c.text.strip() and "  " not in c.text and "{" not in c.text
        assert c.tokens == tuple(c.text.replace(",", "").replace(":", "").split())
        assert len(c.tokens) <= 40
        for start, end, objects, role in c.spans:
            for word in c.text[start:end].split():
                if word in ("to", "the", "of", "than"):
                    continue
                found, concept = CONCEPTS[word]
                assert found == role
                if role == "place":
                    assert concept == scene.place
                elif role == "count":
                    assert int(concept) == len(scene.visible) and objects == scene.visible
                elif role == "relation":
                    assert [concept, 0, 1] in c.predicate["relations"] and objects == rel_pair(scene)
                else:
                    attribute = "shape" if role == "noun" else role
                    assert getattr(scene.objects[objects[0]], attribute) == concept
            assert not set(objects) & set(scene.hidden)


@given(any_scene())
@settings(max_examples=200, deadline=None)
def test_one_edit_makes_a_caption_false_if_it_touches_what_the_caption_says(scene):
    full, rel, *_ = captions(scene)
    for kind, other in edits(scene).items():
        assert kind in EDITS and other.seed == scene.seed
        changed = [k for k, (a, b) in enumerate(zip(scene.objects, other.objects, strict=True)) if a != b]
        assert 1 <= len(changed) <= 2
        if kind == "flip_relation":
            said = {"things": [term_of(scene.objects[k]) for k in rel_pair(scene)]}
            assert holds(other, said) is True  # the same things are there
            if rel.predicate["things"] == said["things"]:  # no attribute was dropped
                assert holds(other, rel.predicate) is False
        else:
            assert holds(other, full.predicate) is False
            assert holds(scene, captions(other)[0].predicate) is False


@given(any_scene())
@settings(max_examples=60, deadline=None)
def test_an_edited_scene_gets_the_same_sentence_with_few_words_changed(scene):
    before = captions(scene)[0].tokens
    made = edits(scene)
    if "replace_colour" in made:
        after = captions(made["replace_colour"])[0].tokens
        # one colour word, and the article in front of it
        assert len(after) == len(before) and 1 <= sum(a != b for a, b in zip(after, before, strict=True)) <= 2


def test_all_edits_occur():
    found = {kind for scene in World().scenes(200) for kind in edits(scene)}
    assert found == set(EDITS)


def test_holds_by_hand():
    red, blue = {"shape": "circle", "colour": "red"}, {"colour": "blue"}
    yes = [
        {},
        {"place": "sea"},
        {"count": 2},
        {"things": [red]},
        {"things": [blue, red]},
        {"things": [red, blue], "relations": [["left", 0, 1]]},
        {"things": [red, blue], "relations": [["right", 1, 0]]},
        {"things": [{}, {}]},
    ]
    no = [
        {"place": "sky"},
        {"count": 3},
        {"things": [{"shape": "circle", "colour": "blue"}]},
        {"things": [red, red]},  # two different things are asked for
        {"things": [red, blue], "relations": [["left", 1, 0]]},
        {"things": [red, blue], "relations": [["above", 0, 1]]},  # one unit is no relation
        {"things": [{}, {}, {}]},
        {"things": [{"size": "large", "colour": "red"}]},
    ]
    assert [holds(RED_LEFT, p) for p in yes] == [True] * len(yes)
    assert [holds(RED_LEFT, p) for p in no] == [False] * len(no)


def test_the_cloud_makes_unknown():
    scene = Scene("s", "paper", "sea", RED_LEFT.objects, (32.0, 12.5), (), 1)
    green, red = {"colour": "green"}, {"colour": "red"}
    assert holds(scene, {"things": [green]}) is None
    assert holds(scene, {"things": [green, red], "relations": [["above", 0, 1]]}) is None
    assert holds(scene, {"things": [green, red], "relations": [["below", 0, 1]]}) is False  # the cloud is above
    assert holds(scene, {"things": [green, green]}) is False  # it hides one thing at most
    assert holds(scene, {"things": [red]}) is True
    assert holds(scene, {"count": 2}) is True  # counts speak of what can be seen
    hidden = Scene("s", "paper", "sea", RED_LEFT.objects, (50.0, 31.0), (1,), 1)
    assert holds(hidden, {"things": [{"colour": "blue"}]}) is None
    assert holds(hidden, {"count": 2}) is False


@pytest.mark.parametrize(
    ("predicate", "message"),
    [
        ({"thing": []}, "unknown key"),
        ({"things": [{"weight": "heavy"}]}, "unknown attribute 'weight'"),
        ({"things": [{}], "relations": [["near", 0, 0]]}, "unknown relation 'near'"),
        ({"things": [{}], "relations": [["left", 0, 1]]}, "outside the 1 things"),
    ],
)
def test_bad_predicates_are_refused(predicate, message):
    with pytest.raises(ValueError, match=message):
        holds(RED_LEFT, predicate)
    with pytest.raises(ValueError, match=message):
        truth([RED_LEFT], [predicate])


@pytest.mark.parametrize("name", NAMES)
def test_truth_is_the_double_loop(name):
    scenes = World(name, seed=2).scenes(60, "test")
    said = [c for s in scenes[:30] for c in captions(s)]
    extra = [
        {},
        {"things": [{}] * 4},
        {"things": [{}] * 5},
        {"place": "nowhere"},
        {"things": [{"colour": "teal"}]},
    ]
    extra += [{"things": [{}, {}, {}], "relations": [["left", 0, 1], ["above", 1, 2]]}, describe(scenes[0])]
    claims = [c.predicate for c in said] + extra
    expected = torch.tensor([[holds(s, p) is True for p in claims] for s in scenes])
    assert torch.equal(truth(scenes, claims), expected)
    assert torch.equal(truth(scenes, said), expected[:, : len(said)])
    own = [i // 5 for i in range(len(said))]
    assert expected[own, range(len(said))].all()


def test_every_scene_stands_beside_one_of_its_neighbours():
    scenes = World("paper").scenes(60)
    both = beside_neighbours(scenes)
    assert both == beside_neighbours(scenes) and len(both) % 2 == 0
    with_edits = [scene for scene in scenes if edits(scene)]
    assert both[::2] == with_edits
    parted = zip(both[::2], both[1::2], strict=True)
    kinds = [next(kind for kind, other in edits(scene).items() if other == near) for scene, near in parted]
    assert set(kinds) == set(EDITS)  # all kinds are drawn


def test_hard_gallery():
    world = World("paper")
    scenes, said = hard_gallery(world, 40)
    assert len(scenes) == len(said) == 160 and len({s.id for s in scenes}) == 160
    true = truth(scenes, said)
    for g in range(0, 160, 4):
        assert torch.equal(true[g : g + 4, g : g + 4], torch.eye(4, dtype=torch.bool))
        for other in scenes[g + 1 : g + 4]:
            assert other.place == scenes[g].place and other.seed == scenes[g].seed
            assert 1 <= sum(a != b for a, b in zip(scenes[g].objects, other.objects, strict=True)) <= 2
    assert hard_gallery(world, 5)[0] == scenes[:20]
    with pytest.raises(ValueError, match="groups"):
        hard_gallery(world, 0)


def test_a_quarter_of_val_and_test_are_neighbours():
    scenes = World("paper").scenes(400, "test")
    edited = [s for s in scenes if any(s.id.endswith(kind) for kind in EDITS)]
    assert 0.2 <= len(edited) / 400 <= 0.25
    assert all(s.id.startswith(scenes[scenes.index(s) - 1].id) for s in edited)
    assert len({s.seed for s in scenes}) == 400
    plain = World("paper").scenes(400, "test", neighbours=False)
    assert plain[:3] == scenes[:3] and not any("-re" in s.id or "-swap" in s.id for s in plain)


def test_words_mean_one_thing_each():
    meaning = {}
    for domain in DOMAINS.values():
        for role, table in domain.words.items():
            for concept, words in table.items():
                for word in words:
                    for part in set(word.split()) - {"to", "the", "of", "than"}:
                        assert meaning.setdefault(part, (role, concept)) == (role, concept), part
        for concept, pairs in domain.phrases.items():
            for _, word in pairs:
                assert meaning.setdefault(word, ("place", concept)) == ("place", concept), word
    assert meaning == CONCEPTS


def test_articles():
    for name in NAMES:
        for scene in World(name).scenes(60):
            for c in captions(scene):
                for a, b in zip(c.tokens, c.tokens[1:], strict=False):
                    if a in ("a", "an"):
                        assert (a == "an") == (b[0] in "aeiou8"), c.text


def test_vocabulary_stays_small():
    words = {w for s in World("paper").scenes(1500) for c in captions(s) for w in c.tokens}
    assert 80 <= len(words) <= 110
    canonical = {w for s in World("paper").scenes(1500) for c in captions(s, synonyms=1) for w in c.tokens}
    assert "crimson" in words and "crimson" not in canonical and canonical < words
    with pytest.raises(ValueError, match="synonyms"):
        captions(RED_LEFT, synonyms=0)


def test_prompts():
    assert len(prompts("paper", "colour")) == 10 and len(prompts("neon", "colour")) == 9
    assert len(prompts("paper", "shape")) == 14 and len(prompts("garden", "shape")) == 11
    both = prompts("paper", "colour-shape")
    assert len(both) == 140 and both["orange star"] == "a picture of an orange star"
    assert prompts("neon", "shape")["moon"] == "a picture of a crescent"
    with pytest.raises(ValueError, match="colour-shape"):
        prompts("paper", "size")


def test_single_objects_are_described_too():
    kinds = {tuple(c.kind for c in captions(s)) for s in World().single(30)}
    assert kinds == {("full", "partial", "generic")}


def test_world_methods_are_the_functions():
    world = World("paper")
    (scene,) = world.scenes(1)
    assert world.captions(scene) == captions(scene)
    assert world.holds(scene, {"count": 9}) is False
    assert world.draw([scene], 32).shape == (1, 3, 32, 32)


def test_words_are_inked_in_the_colours_of_the_scene():
    scene = World("paper").scenes(1)[0]
    domain, seen = DOMAINS["paper"], 0
    for caption in captions(scene):
        for (start, end, colour), span in zip(inks(scene, caption), caption.spans, strict=True):
            assert (start, end) == (span.start, span.end)
            if span.role == "place":
                top, bottom = domain.places[scene.place]
                assert all(min(a, b) <= c <= max(a, b) for a, b, c in zip(top, bottom, _rgb(colour), strict=True))
            elif len(span.objects) == 1:
                assert _rgb(colour) == domain.palette[scene.objects[span.objects[0]].colour]
                seen += 1
            else:
                assert colour is None
    assert seen > 5


def _rgb(colour):
    return tuple(int(colour[k : k + 2], 16) for k in (1, 3, 5))
