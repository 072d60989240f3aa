"""Scores of binding, hidden words and pointing: models whose answers are known."""

import pytest
import torch

from vlnotes.albef import ALBEF
from vlnotes.clip import CLIP
from vlnotes.fusion import Fused
from vlnotes.scoring import binding_scores, expression_scores, pointing_scores, word_scores
from vlnotes.text import encode, train_tokenizer
from vlnotes.world import World, captions, draw, grounded_words, masks, task_texts, winoground

SCENES = World("paper").scenes(24, "test", neighbours=False)


def tokens_of(scenes):
    return train_tokenizer([c.text for s in scenes for c in captions(s, synonyms=3)] + list(task_texts("paper")))


class Knows(torch.nn.Module):
    """A dual encoder that looks up which sentence belongs to which picture; wrong where it is told to be."""

    def __init__(self, kind, wrong=()):
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        self.items, self.wrong = winoground(SCENES, kind), set(wrong)
        tokenizer = tokens_of(SCENES)
        self.pictures, self.sentences = {}, {}
        for at, (a, said_a, b, said_b) in enumerate(self.items):
            for side, (scene, said) in enumerate(((a, said_a), (b, said_b))):
                self.pictures[draw([scene])[0].numpy().tobytes()] = 2 * at + side
                ids = encode(tokenizer, [said.text], 40)["input_ids"]
                self.sentences[ids.numpy().tobytes()] = 2 * at + ((1 - side) if at in self.wrong else side)

    def image_features(self, image):
        return torch.eye(2 * len(self.items))[[self.pictures[one.numpy().tobytes()] for one in image]]

    def text_features(self, input_ids, attention_mask):
        return torch.eye(2 * len(self.items))[[self.sentences[row[None].numpy().tobytes()] for row in input_ids]]


@pytest.mark.parametrize("kind", ["swap_colours", "flip_relation"])
def test_who_knows_binds_and_who_errs_is_counted(kind):
    tokenizer, count = tokens_of(SCENES), len(winoground(SCENES, kind))
    assert count >= 8
    right = binding_scores(Knows(kind), tokenizer, SCENES, (kind,))["itc"][kind]
    assert right == {"choice": 1.0, "text": 1.0, "image": 1.0, "group": 1.0}
    some = binding_scores(Knows(kind, wrong=(0, 2)), tokenizer, SCENES, (kind,))["itc"][kind]
    assert some["group"] == some["choice"] == pytest.approx(1 - 2 / count)
    few = binding_scores(Knows(kind, wrong=(0, 2)), tokenizer, SCENES, (kind,), most=4)["itc"][kind]
    assert few["group"] == 0.5


def test_a_model_without_fusion_has_the_cosine_alone():
    tokenizer = tokens_of(SCENES)
    clip = CLIP.tiny(len(tokenizer)).train()
    found = binding_scores(clip, tokenizer, SCENES[:6])
    assert list(found) == ["itc"] and clip.training
    found = binding_scores(ALBEF.tiny(len(tokenizer), layers=1, queue_size=0), tokenizer, SCENES[:6])
    assert list(found) == ["itc", "itm"]


def oracle_of(model, tokenizer, synonyms):
    """Says a synonym of the right word if the picture is the scene's own, nonsense if not; and what it was asked."""
    asked = []

    def oracle(ids, mask, image_tokens, labels):
        own = model.student.see(draw(SCENES)).tokens
        out = torch.zeros(int((labels != -100).sum()), len(tokenizer))
        for at, (row, place) in enumerate((labels != -100).nonzero().tolist()):
            hidden = tokenizer.convert_ids_to_tokens(int(labels[row, place]))
            assert ids[row, place] == tokenizer.mask_token_id
            asked.append(hidden)
            match = torch.equal(image_tokens[row], own[row])
            names = next(s for s in synonyms if hidden in s)
            guess = next((n for n in names if n != hidden and n in tokenizer.get_vocab()), hidden)
            out[at, tokenizer.convert_tokens_to_ids(guess if match else "[PAD]")] = 1
        return out

    return oracle, asked


def test_a_hidden_word_counts_with_any_synonym(monkeypatch):
    from vlnotes.world.domains import domain_named

    tokenizer = tokens_of(SCENES)
    model = ALBEF.tiny(len(tokenizer), layers=1, queue_size=0)
    words = ("noun", "colour")
    synonyms = [set(names) for role in words for names in domain_named("paper").words[role].values()]
    monkeypatch.setattr(model.student, "hidden_words", oracle_of(model, tokenizer, synonyms)[0])
    found = word_scores(model, tokenizer, SCENES, words)
    for role in words:
        assert found[role]["true"] == 1.0 and found[role]["shuffled"] == 0.0 and found[role]["words"] > 15
    with pytest.raises(ValueError, match="2 or more"):
        word_scores(model, tokenizer, SCENES[:1])


def test_of_a_relation_the_telling_word_is_hidden(monkeypatch):
    tokenizer = tokens_of(SCENES)
    model = ALBEF.tiny(len(tokenizer), layers=1, queue_size=0)
    oracle, asked = oracle_of(model, tokenizer, [{"left"}, {"right"}, {"above", "over"}, {"below", "under"}])
    monkeypatch.setattr(model.student, "hidden_words", oracle)
    found = word_scores(model, tokenizer, SCENES, ("relation",), kind="rel")["relation"]
    assert found["true"] == 1.0 and found["shuffled"] == 0.0 and found["words"] == len(asked) // 2 > 15
    assert {"left", "right", "above"} <= set(asked)
    assert word_scores(model, tokenizer, SCENES, ("relation",)) == {}  # full captions have none


def test_looking_at_the_thing_scores_and_looking_away_does_not(monkeypatch):
    tokenizer = tokens_of(SCENES)
    model = ALBEF.tiny(len(tokenizer), layers=1, queue_size=0)

    def look(right):
        def inner(image, input_ids, attention_mask):
            """Attention of a word: 1 on the cell that shows most of its thing (or least); a score that is its sum."""
            count, length = input_ids.shape
            maps = torch.zeros(count, 1, length, 65)
            for row, scene in enumerate(SCENES):
                said = captions(scene)[0]
                offsets = tokenizer(said.text, return_offsets_mapping=True)["offset_mapping"]
                shown = masks([scene])[0].float()  # (objects, 64, 64)
                cells = torch.nn.functional.avg_pool2d(shown[None], 8)[0].flatten(1)  # (objects, 64)
                for word in grounded_words(scene, said, ("noun",)):
                    place = next(i for i, (a, b) in enumerate(offsets) if a == word.start and b > a)
                    cell = cells[word.objects[0]]
                    maps[row, 0, place, 1 + int(cell.argmax() if right else cell.argmin())] = 1
            attention = maps.requires_grad_()
            return attention.flatten(1).sum(1), Fused(attention, (attention,))

        return inner

    results = {}
    for right in (True, False):
        monkeypatch.setattr(model, "look", look(right))
        (row,) = pointing_scores(model, tokenizer, SCENES, ("noun",), batch_size=len(SCENES))
        assert row["role"] == "noun" and row["layer"] == 0
        results[right] = row
    assert results[True]["pointing"] > 0.8 > 0.2 > results[False]["pointing"]
    assert results[True]["count"] == results[False]["count"] > 40


def test_an_expression_has_a_map_a_block_and_one_of_the_cosine(monkeypatch):
    tokenizer = tokens_of(SCENES)
    model = ALBEF.tiny(len(tokenizer), layers=2, queue_size=0).train()
    rows = expression_scores(model, tokenizer, SCENES[:8], batch_size=5)
    assert [row["way"] for row in rows] == ["itc", "itm 0", "itm 1"] and model.training
    things = sum(len(scene.visible) for scene in SCENES[:8])
    assert len({row["count"] for row in rows}) == 1 and things - 4 <= rows[0]["count"] <= things

    texts = []
    original = model.look

    def look(image, input_ids, attention_mask):
        texts.extend(tokenizer.batch_decode(input_ids, skip_special_tokens=True))
        return original(image, input_ids, attention_mask)

    monkeypatch.setattr(model, "look", look)
    expression_scores(model, tokenizer, SCENES[:1])
    thing = SCENES[0].objects[SCENES[0].visible[0]]
    assert any(thing.colour in text and text.split()[0] in ("a", "an") for text in texts)


def test_the_map_of_the_cosine_is_that_of_the_thing_that_makes_it(monkeypatch):
    """A tower whose one channel lights up at the thing, and features that are its maximum: the map must point there."""
    tokenizer = tokens_of(SCENES)
    model = ALBEF.tiny(len(tokenizer), layers=1, queue_size=0)
    scene = SCENES[0]
    thing = scene.visible[0]
    cells = torch.nn.functional.avg_pool2d(masks([scene])[:, thing].float()[:, None], 8)  # (1, 1, 8, 8)
    layer = torch.nn.Identity()
    monkeypatch.setattr("vlnotes.scoring._unique", lambda scene: [thing])

    def features(image):
        seen = layer(cells.clone().requires_grad_())
        return seen.flatten(1).amax(1, keepdim=True)

    monkeypatch.setattr(model, "image_features", features)
    monkeypatch.setattr(model, "text_features", lambda input_ids, attention_mask: torch.ones(len(input_ids), 1))
    itc = expression_scores(model, tokenizer, [scene], image_map=layer)[0]
    assert itc["way"] == "itc" and itc["pointing"] == 1 and itc["energy"] > 4 * itc["chance"]


def test_who_sees_no_difference_has_half_of_the_choices_and_no_group(monkeypatch):
    tokenizer, blind = tokens_of(SCENES), Knows("swap_colours")
    monkeypatch.setattr(blind, "image_features", lambda image: torch.ones(len(image), 1))
    monkeypatch.setattr(blind, "text_features", lambda input_ids, attention_mask: torch.ones(len(input_ids), 1))
    found = binding_scores(blind, tokenizer, SCENES, ("swap_colours",))["itc"]["swap_colours"]
    assert found == {"choice": 0.5, "text": 0.0, "image": 0.0, "group": 0.0}
