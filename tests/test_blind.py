"""Baselines without eyes: they find a fingerprint that was planted, and none in the world."""

import re
from pathlib import Path

import pytest

from vlnotes import blind
from vlnotes.world import DOMAINS, EDITS, World, captions, edits

CARD = (Path(__file__).parents[1] / "data" / "DATASET_CARD.md").read_text()


def test_edited_captions_are_those_of_neighbours():
    said = blind.edit_captions("paper", 30)
    assert list(said) == list(EDITS)
    scenes = World().scenes(30)
    full = [
        (captions(s)[0].text, captions(e["swap_colours"])[0].text) for s in scenes if "swap_colours" in (e := edits(s))
    ]
    assert list(zip(*said["swap_colours"], strict=True)) == full and len(full) > 10
    rel = [
        (captions(s)[1].text, captions(e["flip_relation"])[1].text)
        for s in scenes
        if "flip_relation" in (e := edits(s))
    ]
    assert list(zip(*said["flip_relation"], strict=True)) == [pair for pair in rel if pair[0] != pair[1]]
    for true, false in said.values():
        assert all(a != b for a, b in zip(true, false, strict=True))


@pytest.mark.parametrize("words", [1, 2])
def test_a_planted_word_is_found_and_without_it_there_is_none(words):
    fit = blind.edit_captions("paper", 500)["replace_colour"]
    asked = blind.edit_captions("paper", 1000, "test")["replace_colour"]
    honest = blind.told_apart(*fit, *asked, words=words)
    assert abs(honest.choice - 0.5) < 0.06 and abs(honest.single - 0.5) < 0.06  # three standard errors

    def planted(pair):
        return pair[0], [f"{text} indeed" for text in pair[1]]

    found = blind.told_apart(*planted(fit), *planted(asked), words=words)
    assert found.single > 0.99 and found.choice > 0.99


def test_an_order_of_words_is_found_by_pairs_of_words_alone():
    true, false = ["red and blue", "blue and red"] * 30, ["red blue and", "blue red and"] * 30
    assert blind.told_apart(true, false, true, false, words=1) == (0.5, 0.5)
    assert blind.told_apart(true, false, true, false, words=2) == (1.0, 1.0)


def test_a_reader_who_learnt_the_wrong_way_round_is_below_a_coin():
    assert blind.told_apart(["a b"] * 9, ["a c"] * 9, ["a c"] * 4, ["a b"] * 4) == (0.0, 0.0)


def test_bad_lists_are_named():
    with pytest.raises(ValueError, match="got 1 and 2 to learn from, 1 and 1 to test on"):
        blind.told_apart(["a"], ["b", "c"], ["a"], ["b"])
    with pytest.raises(ValueError, match="at least one pair"):
        blind.told_apart([], [], ["a"], ["b"])
    with pytest.raises(ValueError, match="words is 3"):
        blind.told_apart(["a"], ["b"], ["a"], ["b"], words=3)


def test_colours_find_pictures_and_less_among_neighbours():
    found = blind.colour_recall("paper", train=500, test=200, groups=50)
    assert set(found["test"]) == set(found["hard"]) == {"i2t@1", "i2t@10", "t2i@1", "t2i@10"}
    assert found["test"]["t2i@1"] > 0.3  # far above chance
    assert found["hard"]["t2i@1"] < found["test"]["t2i@1"] and found["hard"]["t2i@10"] > 0.6  # the group, not the one


def rows_of(name: str) -> list[list[float]]:
    """The percentages of the two rows of a domain, in the order of the card."""
    lines = [line for line in CARD.splitlines() if line.startswith(f"| {name} |")]
    return [numbers for line in lines if len(numbers := percentages(line)) == 6]


def tasks_of(row: str) -> list[tuple[float, float]]:
    """(words alone, commonest answer) of each task, in percent."""
    return [(float(alone), float(prior)) for alone, prior in re.findall(r"([\d.]+) \(([\d.]+)\)", row)]


def percentages(row: str) -> list[float]:
    return [float(cell) for cell in re.findall(r"([\d.]+)%", row)]


@pytest.mark.parametrize("name", ["paper"])
def test_the_card_says_what_is_measured(name):
    """Within half a point: pixels may differ by a grey level from machine to machine."""
    *measured, tasks = blind.card_rows(name)
    for written, row in zip(rows_of(name), measured, strict=True):
        assert written == pytest.approx(percentages(row), abs=0.5)
    (written,) = (found for line in CARD.splitlines() if line.startswith(f"| {name} |") and (found := tasks_of(line)))
    for said, found in zip(written, tasks_of(tasks), strict=True):
        assert said == pytest.approx(found, abs=0.5)


def test_the_card_has_the_tasks_of_every_domain_and_none_gives_itself_away():
    rows = {line.split(" | ")[0][2:]: found for line in CARD.splitlines() if len(found := tasks_of(line)) == 11}
    assert list(rows) == list(DOMAINS)
    for guesses in rows.values():
        assert all(alone <= prior + 5 for alone, prior in guesses)
        assert guesses[-3:] == [(50.0, 50.0), (33.3, 33.3), (33.3, 33.3)]


def test_an_answer_in_the_words_is_guessed_and_a_coin_is_not():
    texts, tail = ["is it red?", "is it blue?"] * 20, ["yes", "no"] * 20
    assert blind.guessed(texts, tail, texts, tail, words=1) == (0.5, 1.0)
    assert blind.guessed(texts * 2, [*tail, *tail[::-1]], texts, tail).alone == 0.5
    assert blind.guessed(texts, ["yes"] * 30 + ["no"] * 10, texts[:4], ["no"] * 4).prior == 0
    with pytest.raises(ValueError, match="got 1 and 2 to learn from, 1 and 1 to test on"):
        blind.guessed(["a"], [1, 2], ["a"], [1])


def test_the_card_has_both_rows_of_every_domain_and_no_text_gives_itself_away():
    for name in DOMAINS:
        _, text = rows_of(name)
        assert all(abs(share - 50) < 4 for share in text)  # four standard errors
