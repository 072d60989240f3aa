"""Caption noise: as much as asked for, marked, and with predicates that still say what the captions say."""

from collections import Counter

import pytest
import torch

from vlnotes.world import DOMAINS, KINDS, NOISES, World, captions, holds, masks, pairs, truth, with_noise
from vlnotes.world.noise import lower, mismatched, near_duplicate, salient, wrongly

N = 700
DIALS = {"mismatch": 0.2, "wrong_attribute": 0.15, "generic": 0.1, "partial": 0.2}


@pytest.fixture(scope="module")
def clean():
    return pairs(World("paper", 3).scenes(N), size=16)


@pytest.fixture(scope="module")
def noisy(clean):
    return with_noise(clean, **DIALS)


def test_rates_are_within_two_points_of_the_dials(clean, noisy):
    assert len(noisy.captions) == 5 * N and {c.noise for c in clean.captions} == {None}
    found = Counter(c.noise for c in noisy.captions)
    kinds = Counter((a.kind, b.noise) for a, b in zip(clean.captions, noisy.captions, strict=True))
    assert abs((found["mismatch"] + found["near_duplicate"]) / (5 * N) - 0.2) < 0.02
    assert abs(found["wrong_attribute"] / (5 * N) - 0.15) < 0.02
    above = [kind for kind in KINDS if kind != "generic"]
    assert abs(sum(kinds[k, "generic"] for k in above) / (4 * N) - 0.1) < 0.02
    assert abs(sum(kinds[k, "partial"] for k in ("full", "rel", "count")) / (3 * N) - 0.2) < 0.02
    # Half of the mismatches are near-duplicates, where there are any: full captions always have some.
    near, far = kinds["full", "near_duplicate"], kinds["full", "mismatch"]
    assert abs(near / (near + far) - 0.5) < 0.1
    assert kinds["generic", "near_duplicate"] == kinds["generic", "generic"] == kinds["partial", "partial"] == 0


@pytest.mark.parametrize("dial", DIALS)
def test_one_dial_alone(clean, dial):
    made = with_noise(clean, **{dial: 0.4}, seed=5)
    able = KINDS[: KINDS.index(dial)] if dial in KINDS else KINDS
    marks = [b.noise for a, b in zip(clean.captions, made.captions, strict=True) if a.kind in able]
    assert abs(sum(mark is not None for mark in marks) / len(marks) - 0.4) < 0.02
    assert {c.noise for c in made.captions} <= {None, dial, "near_duplicate" if dial == "mismatch" else None}


def test_what_is_marked_false_is_false_and_all_else_is_true(noisy):
    true = truth(noisy.scenes, noisy.captions)[noisy.text_to_image, torch.arange(5 * N)]
    for caption, is_true in zip(noisy.captions, true.tolist(), strict=True):
        assert is_true == (caption.noise not in ("mismatch", "near_duplicate", "wrong_attribute")), caption


def test_everything_else_stays(clean, noisy):
    assert noisy.scenes is clean.scenes and noisy.images is clean.images
    assert torch.equal(noisy.text_to_image, clean.text_to_image)
    for before, after in zip(clean.captions, noisy.captions, strict=True):
        assert (before == after) == (after.noise is None)
        assert after.noise is None or after.noise in NOISES
        assert after.kind == (after.noise if after.noise in ("generic", "partial") else before.kind)


def test_the_same_seed_gives_the_same_noise_and_a_larger_dial_keeps_the_smaller(clean, noisy):
    assert with_noise(clean, **DIALS).captions == noisy.captions
    assert with_noise(clean, **DIALS, seed=1).captions != noisy.captions
    assert with_noise(clean).captions == clean.captions
    few, many = (with_noise(clean, mismatch=p).captions for p in (0.2, 0.6))
    assert all(a == b for a, b in zip(few, many, strict=True) if a.noise)
    part = with_noise(pairs(clean.scenes[100:200], size=16), wrong_attribute=0.3).captions
    assert part == with_noise(clean, wrong_attribute=0.3).captions[500:1000]  # no matter in which company


@pytest.mark.parametrize("name", sorted(DOMAINS))
def test_a_wrong_attribute_is_one_word(name):
    made = 0
    for scene in World(name).scenes(40):
        for caption in captions(scene):
            wrong = wrongly(caption, scene, iter([k / 97 % 1 for k in range(1, 9999, 31)]).__next__)
            if wrong is None:
                continue
            made += 1
            assert wrong.noise == "wrong_attribute" and holds(scene, wrong.predicate) is not True
            if caption.kind == "generic":
                assert wrong.predicate["place"] != scene.place
                continue
            roles = [s.role for s in caption.spans]
            assert roles == [s.role for s in wrong.spans]
            words = [c.text[s.start : s.end] for c in (caption, wrong) for s in c.spans]
            other = [r for r, a, b in zip(roles, words, words[len(roles) :], strict=False) if a != b]
            assert len(other) == 1 and other[0] in ("colour", "noun", "relation"), (caption.text, wrong.text)
    assert made >= 198


def test_mismatches_by_hand():
    a, b = World("paper").scenes(2)
    u = torch.Generator().manual_seed(0)
    dice = lambda: torch.rand((), generator=u).item()  # noqa: E731
    pool = [(captions(a)[0], 0), (captions(b)[0], 1)]
    made = mismatched(a, pool, dice)
    assert made.text == captions(b)[0].text and made.noise == "mismatch"
    assert all(span.objects == () for span in made.spans)  # it speaks of nothing in this picture
    assert mismatched(a, pool[:1], dice) is None
    near = near_duplicate(captions(a)[0], a, dice)
    assert holds(a, near.predicate) is False and near.kind == "full"
    assert near_duplicate(captions(a)[4], a, dice) is None
    assert lower(captions(a)[3], a, "partial", dice) is None
    assert lower(captions(a)[3], a, "generic", dice).predicate == {"place": a.place}


def test_saliency_names_what_is_large(clean):
    areas = masks(clean.scenes).flatten(2).sum(-1)
    shares = []
    for s in (1.0, 3.0):
        made = with_noise(clean, saliency=s)
        true = truth(clean.scenes, made.captions)[made.text_to_image, torch.arange(5 * N)]
        assert true.all()  # less is said, nothing wrong
        assert {c.noise for c in made.captions} == {None, "saliency"}
        expected, found, largest = 0.0, 0, 0
        for i, scene in enumerate(clean.scenes):
            own = areas[i, list(scene.visible)].double()
            expected += ((own / own.max()) ** s).sum().item()
            found += len(made.captions[5 * i].predicate["things"])
            (k,) = {n for span in made.captions[5 * i + 3].spans for n in span.objects}
            largest += areas[i, k] == own.max().int()
            assert made.captions[5 * i + 2 : 5 * i + 5 : 2] == clean.captions[5 * i + 2 : 5 * i + 5 : 2]
        assert abs(found - expected) / expected < 0.04
        shares.append(float(largest) / N)
    assert 0.4 < shares[0] < shares[1] - 0.1


def test_saliency_by_hand():
    scene = next(s for s in World("paper").scenes(50) if len(s.visible) == 3)
    full, _, count, partial, _ = captions(scene)
    areas = [1.0, 1.0, 1.0, 0.0]
    areas[scene.visible[1]] = 4.0
    assert len(salient(full, scene, areas, 1.0, lambda: 0.5).predicate["things"]) == 1  # 1/4 < 0.5
    assert salient(full, scene, areas, 1.0, lambda: 0.2) is None  # everything is named, nothing changed
    assert salient(count, scene, areas, 1.0, lambda: 0.5) is None
    made = salient(partial, scene, areas, 9.0, lambda: 0.5) or partial
    assert {k for span in made.spans for k in span.objects} == {scene.visible[1]}


def test_synonyms_spread(clean):
    words = [{w for c in pairs(clean.scenes[:300], size=16, synonyms=k).captions for w in c.tokens} for k in (1, 2, 3)]
    assert words[0] < words[1] < words[2]


@pytest.mark.parametrize(
    ("dials", "message"),
    [
        ({"mismatch": 1.2}, "1 at most in sum"),
        ({"generic": -0.1}, "0 to 1"),
        ({"generic": 0.6, "partial": 0.6}, "1 at most in sum"),
        ({"mismatch": float("nan")}, "0 to 1"),
        ({"saliency": -1.0}, "saliency"),
        ({"seed": -1}, "seed"),
    ],
)
def test_errors(clean, dials, message):
    with pytest.raises(ValueError, match=message):
        with_noise(clean, **dials)


def test_noise_is_not_laid_on_noise(clean, noisy):
    with pytest.raises(ValueError, match="noisy already"):
        with_noise(noisy, mismatch=0.1)
    one = pairs(clean.scenes[:1], size=16)
    with pytest.raises(ValueError, match="only 1 scene"):
        with_noise(one, mismatch=0.5)
