"""Tokenizer and masking: equal captions give equal ids, nothing precious is cut, masks follow the rule."""

import random
import subprocess
import sys
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlnotes.text import (
    check_vocabulary,
    encode,
    load_tokenizer,
    mask_tokens,
    save_tokenizer,
    train_tokenizer,
    unknown_rate,
)

CAPTIONS = [
    "A red circle above a blue square.",
    "a large red circle",
    "two small blue squares, left of a circle",
    "Blue square under the red circle!",
    "a circle",
]


@pytest.fixture(scope="module")
def words():
    return train_tokenizer(CAPTIONS)


@pytest.fixture(scope="module")
def pieces():
    return train_tokenizer(CAPTIONS, 120, kind="wordpiece")


def tokens(tokenizer, caption):
    return tokenizer.convert_ids_to_tokens(tokenizer(caption)["input_ids"])


def test_words_are_split_lowered_and_framed(words):
    assert tokens(words, "A RED circle, left!") == ["[CLS]", "a", "red", "circle", ",", "left", "!", "[SEP]"]


def test_special_tokens_have_the_first_ids(words, pieces):
    for tokenizer in (words, pieces):
        assert [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.cls_token_id] == [0, 1, 2]
        assert [tokenizer.sep_token_id, tokenizer.mask_token_id] == [3, 4]


def test_words_are_numbered_by_count_then_alphabet():
    tokenizer = train_tokenizer(["b a c", "b a", "d b"])  # b 3, a 2, c 1, d 1
    assert tokenizer.convert_ids_to_tokens([5, 6, 7, 8]) == ["b", "a", "c", "d"]
    assert len(tokenizer) == 9


def test_the_vocabulary_is_cut_at_its_size():
    tokenizer = train_tokenizer(["b a c", "b a", "d b"], vocab_size=7)
    assert len(tokenizer) == 7
    assert tokens(tokenizer, "a b c") == ["[CLS]", "a", "b", "[UNK]", "[SEP]"]


def test_an_unknown_word_is_unknown_or_falls_into_pieces(words, pieces):
    assert tokens(words, "circles")[1:-1] == ["[UNK]"]
    parts = tokens(pieces, "circles")[1:-1]
    assert len(parts) > 1 and "[UNK]" not in parts
    assert "".join(part.removeprefix("##") for part in parts) == "circles"
    assert tokens(pieces, "żaba")[1:-1] == ["[UNK]"]
    assert pieces.decode(pieces("a red circle")["input_ids"], skip_special_tokens=True) == "a red circle"


@pytest.mark.parametrize("kind", ["word", "wordpiece"])
def test_order_of_captions_does_not_matter(kind):
    shuffled = CAPTIONS * 3
    random.Random(0).shuffle(shuffled)
    one = train_tokenizer(CAPTIONS * 3, 100, kind).get_vocab()
    assert one == train_tokenizer(shuffled, 100, kind).get_vocab()
    assert train_tokenizer(set(CAPTIONS), 100, kind).get_vocab() == train_tokenizer(CAPTIONS, 100, kind).get_vocab()


def test_another_process_finds_the_same_pieces(pieces):
    """The trainer of the library alone does not: it numbers letters in the order of a hash map."""
    script = (
        "from vlnotes.text import train_tokenizer;"
        f"print(sorted(train_tokenizer({CAPTIONS!r}, 120, 'wordpiece').get_vocab().items()))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == str(sorted(pieces.get_vocab().items()))


@pytest.mark.parametrize("kind", ["word", "wordpiece"])
def test_saving_and_loading_keeps_everything(tmp_path, kind):
    from transformers import AutoTokenizer

    tokenizer = train_tokenizer(CAPTIONS, 120, kind)
    folder = save_tokenizer(tokenizer, tmp_path / "deep" / "folder")
    for again in (load_tokenizer(folder), AutoTokenizer.from_pretrained(folder, local_files_only=True)):
        assert again.get_vocab() == tokenizer.get_vocab()
        assert again.is_fast and again.mask_token_id == 4
        assert torch.equal(encode(again, CAPTIONS)["input_ids"], encode(tokenizer, CAPTIONS)["input_ids"])


def test_a_bert_tokenizer_folder_loads(tmp_path):
    from transformers import BertTokenizerFast

    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "##s"]))
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    loaded = load_tokenizer(tmp_path / "bert")
    assert tokens(loaded, "a reds blue") == ["[CLS]", "a", "red", "##s", "[UNK]", "[SEP]"]
    assert encode(loaded, ["a red"], 6)["attention_mask"].tolist() == [[1, 1, 1, 1, 0, 0]]


def test_encode_pads_and_cuts_but_keeps_the_end(words):
    with pytest.warns(UserWarning, match="1 of 2 captions is longer than 6 tokens and was cut"):
        rows = encode(words, ["a circle", "a " * 50], length=6)
    assert rows["input_ids"].dtype == rows["attention_mask"].dtype == torch.long
    assert rows["input_ids"].shape == rows["attention_mask"].shape == (2, 6)
    assert rows["attention_mask"].tolist() == [[1, 1, 1, 1, 0, 0], [1] * 6]
    assert rows["input_ids"][0, 4:].tolist() == [0, 0]
    assert rows["input_ids"][1, [0, 5]].tolist() == [2, 3]
    assert encode(words, ["a"])["input_ids"].shape == (1, 40)


def test_what_is_cut_is_counted_and_said_once(words, monkeypatch):
    long, fits = "a " * 50, "a red circle"  # 52 and 5 tokens
    with pytest.warns(UserWarning) as said:
        rows = encode(words, [long, fits, long, long, fits], length=5)
    assert [str(one.message) for one in said] == ["3 of 5 captions are longer than 5 tokens and were cut"]
    assert said[0].filename == __file__
    monkeypatch.setattr("vlnotes.text.AT_ONCE", 2)  # however many go through the tokenizer at a time
    with pytest.warns(UserWarning) as said:
        parts = encode(words, [long, fits, long, long, fits], length=5)
    assert [str(one.message)[:6] for one in said] == ["3 of 5"]
    assert all(torch.equal(parts[name], rows[name]) for name in rows)


def test_what_fits_exactly_is_not_cut(words, pieces, recwarn):
    for tokenizer in (words, pieces):
        length = max(len(tokenizer(caption)["input_ids"]) for caption in CAPTIONS)
        encode(tokenizer, CAPTIONS, length)
    assert not recwarn.list


def test_captions_of_the_world_are_not_cut(recwarn):
    from vlnotes.world import World, captions

    texts = [caption.text for scene in World().scenes(400) for caption in captions(scene, synonyms=3)]
    encode(train_tokenizer(texts), texts)
    assert not recwarn.list


def test_another_vocabulary_is_refused(words, pieces):
    check_vocabulary(words, len(words))
    for size in (len(words) - 1, len(words) + 1):  # too many words for the model, and too few
        with pytest.raises(ValueError, match=f"the tokenizer has {len(words)} ids and the model knows {size}"):
            check_vocabulary(words, size)


def test_encode_does_not_depend_on_earlier_calls(words):
    before = encode(words, CAPTIONS, 16)["input_ids"]
    with pytest.warns(UserWarning, match="4 of 5"):
        encode(words, CAPTIONS, 4)
    assert torch.equal(before, encode(words, CAPTIONS, 16)["input_ids"])
    assert len(words("a " * 50)["input_ids"]) == 52


def test_unknown_rate_counts_tokens(words, pieces):
    assert unknown_rate(words, ["a red dragon", "a wyvern above dragons"]) == pytest.approx(3 / 7)
    assert unknown_rate(words, CAPTIONS) == 0
    assert unknown_rate(pieces, ["circles"]) == 0


def test_masking_never_touches_padding_or_the_class_token(words):
    ids = encode(words, CAPTIONS, 20)["input_ids"]
    masked, labels = mask_tokens(ids, words, probability=1.0, generator=torch.Generator().manual_seed(0))
    frame = (ids == 0) | (ids == 2)
    assert (labels[frame] == -100).all() and torch.equal(masked[frame], ids[frame])
    assert torch.equal(labels[~frame], ids[~frame])  # everything else is chosen, [SEP] included
    assert (labels == 3).any()


def test_masking_follows_80_10_10():
    tokenizer = train_tokenizer([" ".join(f"w{i}" for i in range(995))], 1000)
    ids = torch.randint(5, 1000, (400, 100), generator=torch.Generator().manual_seed(1))
    masked, labels = mask_tokens(ids, tokenizer, generator=torch.Generator().manual_seed(2))
    chosen = labels != -100
    assert torch.equal(masked[~chosen], ids[~chosen])
    assert torch.equal(labels[chosen], ids[chosen])
    assert chosen.float().mean().item() == pytest.approx(0.15, abs=0.006)  # 40,000 draws: 3 sigma = 0.0054
    hidden = masked[chosen]
    assert (hidden == 4).float().mean().item() == pytest.approx(0.8, abs=0.02)
    assert (hidden == ids[chosen]).float().mean().item() == pytest.approx(0.1, abs=0.015)
    other = hidden[(hidden != 4) & (hidden != ids[chosen])]
    assert len(other) / len(hidden) == pytest.approx(0.1, abs=0.015)
    assert len(other.unique()) > 300  # random ids come from the whole vocabulary


def test_masking_repeats_with_its_seed_and_leaves_its_input_alone(words):
    ids = encode(words, CAPTIONS, 12)["input_ids"]
    before, state = ids.clone(), torch.get_rng_state()
    one, two = (mask_tokens(ids, words, generator=torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])
    assert torch.equal(ids, before) and torch.equal(torch.get_rng_state(), state)
    masked, labels = mask_tokens(ids, words, probability=0.0, generator=torch.Generator())
    assert torch.equal(masked, ids) and (labels == -100).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(alphabet="abc .,", min_size=1).filter(lambda text: text.strip()), min_size=1, max_size=6))
def test_any_captions_give_whole_rows(captions):
    tokenizer = train_tokenizer(captions, 64, "wordpiece")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some are cut
        rows = encode(tokenizer, captions, 8)
    ids, mask = rows["input_ids"], rows["attention_mask"]
    assert (ids[:, 0] == 2).all() and ((ids == 3).sum(dim=1) == 1).all()
    assert torch.equal(mask, (ids != 0).long())
    assert unknown_rate(tokenizer, captions) == 0


def test_bad_captions_are_named(words):
    for function in (train_tokenizer, lambda captions: encode(words, captions)):
        with pytest.raises(ValueError, match=r"captions\[1\] is empty"):
            function(["a circle", "  "])
        with pytest.raises(TypeError, match=r"captions\[1\] is NoneType"):
            function(["a circle", None])
        with pytest.raises(TypeError, match="expected a list"):
            function("a circle")
        with pytest.raises(ValueError, match="captions is empty"):
            function([])


def test_bad_settings_are_named(words):
    with pytest.raises(ValueError, match="'word' or 'wordpiece'"):
        train_tokenizer(CAPTIONS, kind="bpe")
    with pytest.raises(ValueError, match="vocab_size is 5.*at least 6.*one word"):
        train_tokenizer(CAPTIONS, 5)
    with pytest.raises(ValueError, match="vocab_size is 20.*letters twice"):
        train_tokenizer(CAPTIONS, 20, "wordpiece")
    with pytest.raises(ValueError, match="length is 2"):
        encode(words, CAPTIONS, 2)


def test_a_tokenizer_without_padding_or_mask_is_refused():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(ValueError, match="no padding token"):
        encode(bare, ["a"])
    with pytest.raises(ValueError, match="no mask token"):
        mask_tokens(torch.zeros(1, 3, dtype=torch.long), bare, generator=torch.Generator())


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match="no tokenizer folder 'bert-base-uncased'.*nothing is downloaded"):
        load_tokenizer("bert-base-uncased")
    with pytest.raises(ValueError, match="holds no tokenizer.*nothing"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{not json")
    with pytest.raises(ValueError, match="cannot be read"):
        load_tokenizer(tmp_path)


def test_bad_ids_to_mask_are_named(words):
    generator = torch.Generator()
    with pytest.raises(TypeError, match="int64"):
        mask_tokens(torch.zeros(1, 3), words, generator=generator)
    with pytest.raises(TypeError, match="torch.Generator"):
        mask_tokens(torch.zeros(1, 3, dtype=torch.long), words, generator=3)
    with pytest.raises(ValueError, match=r"probability is 15"):
        mask_tokens(torch.zeros(1, 3, dtype=torch.long), words, probability=15, generator=generator)
    with pytest.raises(ValueError, match="another one"):
        mask_tokens(torch.full((1, 3), 999), words, generator=generator)
