"""Words and where their objects are: against loops, against pictures with the object taken out, and under noise."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlnotes.world import (
    CONCEPTS,
    DOMAINS,
    ROLES,
    World,
    boxes,
    captions,
    draw,
    grounded_words,
    masks,
    pairs,
    with_noise,
    word_regions,
)
from vlnotes.world.predicates import related

NAMES = sorted(DOMAINS)
ATTRIBUTE = {"noun": "shape", "colour": "colour", "texture": "texture", "size": "size", "direction": "direction"}


def concept(word, domain, role):
    """The concept of a word in a domain, by going through the table."""
    return [name for name, words in DOMAINS[domain].words[role].items() if word in words]


@given(st.sampled_from(NAMES), st.integers(0, 5000))
@settings(max_examples=100, deadline=None)
def test_every_word_of_a_clean_caption_is_grounded(name, index):
    scene = World(name).scenes(1, "test", start=index)[0]
    every = (*ROLES, "direction", "count")
    for caption in captions(scene):
        words = grounded_words(scene, caption, every)
        assert [(w.start, w.end, w.objects, w.role) for w in words] == [s for s in caption.spans if s.role != "place"]
        for word in words:
            assert caption.text[word.start : word.end] == word.word
            assert set(word.objects) <= set(scene.visible)
            if word.role in ATTRIBUTE:
                (k,) = word.objects
                assert getattr(scene.objects[k], ATTRIBUTE[word.role]) in concept(word.word, name, word.role)
        assert [w for w in words if w.role in ROLES] == grounded_words(scene, caption)


@pytest.mark.parametrize("name", NAMES)
def test_regions_equal_loops(name):
    scenes = World(name).scenes(12, "test")
    words = [[w for c in captions(s) for w in grounded_words(s, c)] for s in scenes]
    regions, rows = word_regions(scenes, words, 48)
    assert rows.tolist() == [row for row, said in enumerate(words) for _ in said]
    assert {w.role for said in words for w in said} >= {"noun", "colour", "relation"}
    at = 0
    for scene, said in zip(scenes, words, strict=True):
        seen, frames = masks([scene], 48)[0], boxes(scene, 48).long().tolist()
        for word in said:
            expected = torch.zeros(48, 48, dtype=torch.bool)
            for k in word.objects:
                if word.role == "relation":
                    left, top, right, bottom = frames[k]
                    expected[top:bottom, left:right] = True
                else:
                    expected |= seen[k]
            assert torch.equal(regions[at], expected)
            at += 1


def test_a_region_is_where_the_picture_changes_without_the_object():
    scenes = [s for s in World("paper").scenes(20, "test") if s.cloud is None]
    for scene in scenes:
        words = [w for w in grounded_words(scene, captions(scene)[0]) if w.role == "noun"]
        assert len(words) == len(scene.objects)
        whole = draw([scene])[0].int()
        for word, region in zip(words, word_regions([scene], [words])[0], strict=True):
            rest = replace(scene, objects=tuple(t for k, t in enumerate(scene.objects) if (k,) != word.objects))
            changed = (whole - draw([rest])[0].int()).abs().amax(0) > 8
            assert float(changed[region].float().mean()) > 0.98
            near = torch.nn.functional.max_pool2d(region[None].float(), 11, 1, padding=5)[0] > 0
            assert not bool((changed & ~near).any())  # only its shadow lies beside it


def test_what_lies_in_front_is_cut_out():
    scenes = World("knit").scenes(200, "test")
    words = [[w for w in grounded_words(s, captions(s)[0]) if w.role == "noun"] for s in scenes]
    regions, rows = word_regions(scenes, words)
    total = torch.zeros(len(scenes), 64, 64, dtype=torch.long).index_add_(0, rows, regions.long())
    assert int(total.max()) == 1  # no pixel shows two objects
    alone = [(replace(s, objects=(s.objects[w.objects[0]],), hidden=(), cloud=None)) for s, said in
             zip(scenes, words, strict=True) for w in said]  # fmt: skip
    covered = (masks(alone)[:, 0] & ~regions).flatten(1).any(1)
    assert covered.any()


def test_words_that_noise_made_false_point_nowhere():
    clean = pairs(World("paper").scenes(150))
    noisy = with_noise(clean, wrong_attribute=0.4, mismatch=0.3, seed=3)
    dropped, kept = {}, 0
    for caption, row in zip(noisy.captions, noisy.text_to_image.tolist(), strict=True):
        scene = clean.scenes[row]
        words = {(w.start, w.end) for w in grounded_words(scene, caption)}
        for start, end, objects, role in caption.spans:
            if role not in ROLES:
                continue
            word = caption.text[start:end]
            if role == "relation":
                name = CONCEPTS[next(w for w in word.split() if w in CONCEPTS)][1]
                a, b = (scene.objects[k] for k in objects) if objects else (None, None)
                true = bool(objects) and related(name, a.x, a.y, b.x, b.y)
            else:
                true = bool(objects) and CONCEPTS[word] == (role, getattr(scene.objects[objects[0]], ATTRIBUTE[role]))
            assert ((start, end) in words) == true, (caption, word)
            kept += true
            if not true and objects:
                dropped[role] = dropped.get(role, 0) + 1
    assert kept > 1000 and {"noun", "colour", "relation"} <= set(dropped)


def test_bad_input_is_named():
    scenes = World("paper").scenes(2, "test")
    said = [grounded_words(s, captions(s)[0]) for s in scenes]
    with pytest.raises(ValueError, match=r"some of noun, .* not \['place'\]"):
        grounded_words(scenes[0], captions(scenes[0])[0], ("noun", "place"))
    with pytest.raises(ValueError, match="not none"):
        grounded_words(scenes[0], captions(scenes[0])[0], ())
    with pytest.raises(ValueError, match="1 lists of words for 2 scenes"):
        word_regions(scenes, said[:1])
    with pytest.raises(ValueError, match="no words to look for in 2 scenes"):
        word_regions(scenes, [[], []])
    gone = replace(scenes[0], hidden=said[0][0].objects)
    with pytest.raises(ValueError, match="nothing is to be seen of"):
        word_regions([gone], said[:1])
