"""From a folder of pictures to a scored model; the command line; the environment check."""

import json
import random
import subprocess
import sys

import pytest
import torch
from PIL import Image

from vlnotes.__main__ import main
from vlnotes.albef import ALBEF, Read, rerank
from vlnotes.clip import CLIP
from vlnotes.codis import CODIS
from vlnotes.environment import check
from vlnotes.experiment import (
    neighbour_scores,
    scores_table,
    train_albef_on,
    train_codis_on,
    train_moco_on,
    train_modx_on,
    train_on,
)
from vlnotes.experiment.run import Run
from vlnotes.experiment.scoring import retrieval_scores
from vlnotes.experiment.stream import stream_table
from vlnotes.metrics import continual_scores, recall_at_k
from vlnotes.moco import MoCo
from vlnotes.modx import Continual, ModX
from vlnotes.psd import PSD
from vlnotes.rivals import EWC, Replay
from vlnotes.text import encode, load_tokenizer, train_tokenizer
from vlnotes.xclip import NCLIP, XCLIP

COLOURS = {"red": (220, 40, 40), "green": (40, 180, 70), "blue": (40, 70, 210), "yellow": (230, 210, 50)}


@pytest.fixture
def folder(tmp_path):
    """40 plain pictures in four colours, two captions each, as a CSV without splits."""
    lines = ["image,caption"]
    for i in range(40):
        name = list(COLOURS)[i % 4]
        Image.new("RGB", (40 + i, 40), COLOURS[name]).save(tmp_path / f"{i}.png")
        lines += [f"{i}.png,a {name} square", f"{i}.png,number {i % 4} in {name}"]
    (tmp_path / "captions.csv").write_text("\n".join(lines))
    return tmp_path


OPTIONS = dict(steps=30, minutes=None, size=32, batch_size=16, device="cpu", progress=False)


def test_it_learns_and_leaves_everything_behind(folder, tmp_path):
    out = tmp_path / "run"
    record = train_on(folder, out, **OPTIONS)
    assert record == json.loads((out / "record.json").read_text())
    assert record["data"]["train"] == 32 and record["data"]["test"] == 8
    assert record["steps"] == 30
    assert not list(out.glob("*.part")) and not (out / "unfinished.safetensors").exists()
    scores = record["scores"]
    assert scores["by picture, chance"]["t2i@1"] == pytest.approx(1 / 8)
    # any model that sees colour beats chance, and so does counting colours
    assert scores["by picture"]["t2i@1"] > 0.15 and scores["by picture, colours"]["t2i@1"] > 0.15
    assert "by picture" in scores_table(scores) and "%" in scores_table(scores)
    model, tokenizer = CLIP.load(out), load_tokenizer(out / "tokenizer")
    words = tokenizer(["a red square"], return_tensors="pt")
    assert model.text_features(words["input_ids"], words["attention_mask"]).shape == (1, 128)


def train_psd_on(*given, **options):
    return train_on(*given, kind=PSD, momentum=0.9, **options)


def train_xclip_on(*given, **options):
    return train_on(*given, kind=XCLIP, mean_momentum=0.5, **options)


@pytest.mark.parametrize("start", [train_on, train_albef_on, train_codis_on, train_psd_on, train_xclip_on])
def test_an_interrupted_run_goes_on(folder, tmp_path, monkeypatch, capsys, start):
    options = {**OPTIONS, "steps": 30 if start is train_on else 6}
    third = 2 * options["steps"] // 3
    whole = start(folder, tmp_path / "a", **options)
    from vlnotes import experiment

    real = experiment.batches_of

    def killed(*given):
        inner = real(*given)

        def batch_at(step):
            if step == third:
                raise KeyboardInterrupt
            return inner(step)

        return batch_at

    real_train = experiment.run.train
    monkeypatch.setattr(experiment.run, "train", lambda *a, **k: real_train(*a, **{**k, "checkpoint_seconds": 0}))
    monkeypatch.setattr(experiment, "batches_of", killed)
    with pytest.raises(KeyboardInterrupt):
        start(folder, tmp_path / "b", **options)
    assert (tmp_path / "b" / "unfinished.safetensors").exists()
    asked = []
    monkeypatch.setattr(experiment, "batches_of", lambda *given: lambda step: asked.append(step) or real(*given)(step))
    again = start(folder, tmp_path / "b", **{**options, "progress": True})
    assert "going on with the unfinished run" in capsys.readouterr().out
    assert asked == list(range(third, options["steps"]))  # and not from the start
    assert again["scores"] == whole["scores"]
    assert again["last"] == pytest.approx(whole["last"], rel=1e-5)  # sums in another order differ in the last digits


@pytest.mark.parametrize("other", [{"batch_size": 8}, {"size": 48}, {"length": 16}, {"image": "resnet18"}])
def test_an_unfinished_run_with_other_settings_is_refused(folder, tmp_path, monkeypatch, other):
    from vlnotes import experiment

    monkeypatch.setattr(experiment, "retrieval_scores", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train_on(folder, tmp_path / "run", **{**OPTIONS, "steps": 2})
    with pytest.raises(ValueError, match="belongs to another run"):
        train_on(folder, tmp_path / "run", **{**OPTIONS, "steps": 2, **other})


def test_from_disk_and_from_memory_are_the_same(folder, tmp_path, monkeypatch):
    a = train_on(folder, tmp_path / "a", **OPTIONS)
    monkeypatch.setattr("vlnotes.experiment.run.IN_MEMORY", 0)
    b = train_on(folder, tmp_path / "b", **OPTIONS)
    assert a["scores"] == b["scores"]


def test_bad_pictures_stop_it_by_name_or_are_listed(folder, tmp_path):
    (folder / "7.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="7.png"):
        train_on(folder, tmp_path / "a", **OPTIONS)
    record = train_on(folder, tmp_path / "b", skip_bad=True, **{**OPTIONS, "steps": 2, "batch_size": 128})
    assert len(record["skipped"]) == 1 and "7.png" in str(record["skipped"][0])
    assert record["data"]["train"] + record["data"]["test"] == 39


def test_concepts_are_kept_apart_and_scored(tmp_path):
    rows = []
    for i in range(30):
        name = list(COLOURS)[i % 4]
        Image.new("RGB", (32, 32), COLOURS[name]).save(tmp_path / f"{i}.png")
        rows.append({"image": f"{i}.png", "caption": f"a {name} square", "concept": f"c{i // 3}"})
    (tmp_path / "captions.json").write_text(json.dumps(rows))
    record = train_on(tmp_path / "captions.json", tmp_path / "run", **{**OPTIONS, "steps": 3})
    assert "by concept" in record["scores"]
    assert record["scores"]["by concept, chance"]["i2t@1"] > record["scores"]["by picture, chance"]["i2t@1"]
    assert record["data"]["test"] == 6  # two whole concepts of three pictures


def test_albef_trains_and_is_judged_in_two_stages(folder, tmp_path, capsys):
    out = tmp_path / "run"
    record = train_albef_on(folder, out, **{**OPTIONS, "progress": True, "rerank": 3})
    shown = capsys.readouterr().out
    assert record == json.loads((out / "record.json").read_text())
    assert sorted(p.name for p in out.iterdir()) == [
        *("history.csv", "model.json", "record.json", "tokenizer", "weights.safetensors")
    ]
    assert (record["method"], record["data"]["train"], record["data"]["test"]) == ("albef", 32, 8)
    assert record["settings"]["ramp_steps"] == 2 and record["settings"]["queue_size"] == 16  # one epoch; half of them
    assert record["rerank"] == {"texts": 3, "images": 3} and set(record["last"]) == {"loss", "itc", "itm", "mlm"}
    assert list(record["scores"]) == [
        "by picture",
        *(f"by picture, {row}" for row in ("itm", "sum", "colours", "chance")),
        "gallery",
    ]
    for line in ("by picture, ITC alone", "ITM re-ranks", "ITM + cosine", "colour histograms", "chance"):
        assert line in shown
    assert "ITM looked at the best 3 texts and 3 pictures; gallery: 8 pictures, 16 captions" in shown
    assert "re-ranking" in shown and "learnt by heart" not in shown
    model = ALBEF.load(out)
    assert int(model.steps) == 30 and model.share() == 0.4 and model.text_queue.filled == 16
    assert not model.same_ids and set(model.image_queue.ids.tolist()) <= set(range(32))


def test_codis_trains_and_says_how_its_codewords_are_used(folder, tmp_path, capsys):
    out = tmp_path / "run"
    record = train_codis_on(folder, out, **{**OPTIONS, "progress": True, "rerank": 3, "steps": 3}, codewords=4)
    shown = capsys.readouterr().out
    assert record == json.loads((out / "record.json").read_text())
    assert record["method"] == "codis" and record["rerank"] == {"texts": 3, "images": 3}
    assert (record["settings"]["codewords"], record["settings"]["queue_size"]) == (4, 16)
    parts = ["transport", "text_to_prototype", "image_to_prototype"]
    assert list(record["last"]) == ["loss", "ica", *parts, "itm", "mlm"]
    assert set(record["codebook"]) == {"images", "texts"} and all(1 <= n <= 4 for n in record["codebook"].values())
    assert "ITM re-ranks" in shown and f"codewords in use: {record['codebook']['images']:.0f} by pictures" in shown
    assert int(CODIS.load(out).steps) == 3


def test_psd_doubts_more_until_the_last_step(folder, tmp_path):
    import pandas as pd

    out = tmp_path / "run"
    record = train_on(folder, out, **{**OPTIONS, "steps": 4}, kind=PSD, maximum=0.6)
    assert record == json.loads((out / "record.json").read_text())
    assert (record["method"], set(record["last"])) == ("psd", {"loss"}) and "codebook" not in record
    assert (record["settings"]["ramp_steps"], record["settings"]["maximum"]) == (4, 0.6)
    shares = pd.read_csv(out / "history.csv")["unaligned_fraction"].tolist()
    assert shares == pytest.approx([0, 0.6 * (1 - 0.5**0.5) / 2, 0.3, 0.6 * (1 + 0.5**0.5) / 2], abs=1e-6)
    assert int(PSD.load(out).steps) == 4
    record = train_on(folder, tmp_path / "timed", **{**OPTIONS, "steps": None, "minutes": 1e-3}, kind=PSD)
    assert record["settings"]["ramp_steps"] == 20  # ten epochs of two batches
    record = train_on(folder, tmp_path / "told", **{**OPTIONS, "steps": 2}, kind=PSD, ramp_steps=0)
    assert record["settings"]["ramp_steps"] == 0


@pytest.mark.parametrize("kind", [NCLIP, XCLIP])
def test_nclip_and_xclip_say_how_their_codes_are_used(concepts, tmp_path, capsys, kind):
    out, parts = tmp_path / "run", {"cross_entropy", "mean_entropy", "entropy_of_mean"}
    record = train_on(concepts, out, **{**OPTIONS, "steps": 2, "progress": True}, kind=kind, codewords=5, norm="cosine")
    assert record == json.loads((out / "record.json").read_text())
    assert record["method"] == kind.__name__.lower() and record["settings"]["norm"] == "cosine"
    assert set(record["last"]) == {"loss", *parts, *(("clip", "nclip") if kind is XCLIP else ())}
    assert record["codebook"].keys() == {"images", "texts", "purity", "nmi"}
    assert all(1 <= record["codebook"][name] <= 5 for name in ("images", "texts"))
    assert f"codewords in use: {record['codebook']['images']:.0f} by pictures" in capsys.readouterr().out
    model = kind.load(out)
    codes = model.image_logits(
        Run(concepts, out, "x", size=32, batch_size=8, seed=0, skip_bad=False, progress=False).test_images
    )
    share = torch.bincount(codes.argmax(1)) / 10
    assert record["codebook"]["images"] == pytest.approx(float(torch.special.entr(share).sum().exp()), rel=1e-4)


def test_an_unfinished_run_of_another_kind_or_setting_is_refused(folder, tmp_path, monkeypatch):
    from vlnotes import experiment

    monkeypatch.setattr(experiment, "retrieval_scores", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train_on(folder, tmp_path / "run", **{**OPTIONS, "steps": 2}, kind=XCLIP, weight=0.1)
    for more in ({"kind": XCLIP, "weight": 0.2}, {"kind": CLIP}):
        with pytest.raises(ValueError, match="belongs to another run"):
            train_on(folder, tmp_path / "run", **{**OPTIONS, "steps": 2}, **more)


@pytest.fixture
def captioned(tmp_path):
    """32 speckled pictures with two captions each, 8 to train and 24 to test; two and two are one concept."""
    rows, dice = [], random.Random(0)
    for i in range(32):
        Image.frombytes("RGB", (8, 8), dice.randbytes(192)).resize((32, 32)).save(tmp_path / f"{i}.png")
        about = {"concept": f"c{i // 2}", "split": "train" if i < 8 else "test"}
        words = [" ".join(dice.choices([*COLOURS, "spot", "dot"], k=5)) for _ in range(2)]
        rows += [{"image": f"{i}.png", "caption": word, **about} for word in words]
    (tmp_path / "captions.json").write_text(json.dumps(rows))
    return tmp_path / "captions.json"


def opened(path, tmp_path):
    return Run(path, tmp_path, "albef", size=32, batch_size=8, seed=0, skip_bad=False, progress=False)


class Planted(torch.nn.Module):
    """Features and matching scores that are random functions of what is seen and read."""

    def __init__(self, vocab_size):
        super().__init__()
        dice, self.built = torch.Generator().manual_seed(0), {"vocab_size": vocab_size}
        shapes = (3 * 32 * 32, 6), (12, 6), (6, 6)
        self.parts = torch.nn.ParameterList(torch.randn(shape, generator=dice) for shape in shapes)

    student = property(lambda self: self)

    def see(self, image):
        raw = (image.flatten(1) / 255 - 0.5) @ self.parts[0]
        return Read(raw[:, None], torch.nn.functional.normalize(raw, dim=1))

    def read(self, input_ids, attention_mask):
        raw = (input_ids / 8 - 0.5) @ self.parts[1]
        return Read(raw[:, None].expand(-1, 12, -1), torch.nn.functional.normalize(raw, dim=1))

    def match(self, image_tokens, text_tokens, attention_mask):
        score = (image_tokens[:, 0] @ self.parts[2] * text_tokens[:, 0]).sum(1).sin()
        return torch.stack([-score, score], dim=1)

    def image_features(self, image):
        return self.see(image).features

    def text_features(self, input_ids, attention_mask):
        return self.read(input_ids, attention_mask).features


def test_two_stage_scores_are_those_of_rerank_itself(captioned, tmp_path):
    run = opened(captioned, tmp_path)
    tokenizer, _ = run.tokenizer()
    model = Planted(len(tokenizer))
    captions = [caption for some in run.test_data.captions for caption in some]
    tokens, owner = encode(tokenizer, captions, 12), torch.arange(24).repeat_interleave(2)
    scores = retrieval_scores(model, tokenizer, run, 12, k=14)
    for name, add in (("itm", False), ("sum", True)):
        found = rerank(model, run.test_images, tokens, 14, add_similarity=add)
        texts, images = recall_at_k(found.texts, owner), recall_at_k(found.images, owner)
        expected = {key: (texts if key.startswith("i2t") else images)[key] for key in texts}
        assert scores[f"by picture, {name}"] == pytest.approx(expected, abs=1e-6)
    rows = [scores[f"by picture{row}"] for row in ("", ", itm", ", sum")]
    for way in ("i2t", "t2i"):  # and nowhere two rows alike
        assert len({tuple(row[f"{way}@{k}"] for k in (1, 5, 10)) for row in rows}) == 3
    assert {"by concept, itm", "by concept, sum", "by concept, chance"} <= scores.keys()
    alone = retrieval_scores(model, tokenizer, run, 12)
    assert alone["by picture"] == scores["by picture"] and "by picture, itm" not in alone
    few = retrieval_scores(model, tokenizer, run, 12, k=100, gallery=3)
    assert few["gallery"] == {"pictures": 3, "captions": 6, "of": 24}
    assert few["by picture, chance"]["t2i@1"] == pytest.approx(1 / 3)


def test_a_model_with_another_tokenizer_is_refused(captioned, tmp_path):
    train_albef_on(captioned, tmp_path / "run", **{**OPTIONS, "steps": 1, "gallery": 2})
    run, model = opened(captioned, tmp_path), ALBEF.load(tmp_path / "run")
    known = model.built["vocab_size"]
    assert "by picture" in retrieval_scores(model, load_tokenizer(tmp_path / "run" / "tokenizer"), run, 12)
    with pytest.raises(ValueError, match=f"the tokenizer has 6 ids and the model knows {known}.*beside the weights"):
        retrieval_scores(model, train_tokenizer(["a"]), run, 12)


def test_albef_names_what_is_wrong(folder, tmp_path):
    with pytest.raises(ValueError, match="rerank >= 0 and a gallery of at least 1 picture; got -1, 1000"):
        train_albef_on(folder, tmp_path / "a", **OPTIONS, rerank=-1)
    with pytest.raises(ValueError, match="got 16, 0"):
        train_albef_on(folder, tmp_path / "a", **OPTIONS, gallery=0)
    (folder / "7.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="7.png"):
        train_albef_on(folder, tmp_path / "a", **OPTIONS)
    with pytest.warns(UserWarning) as said:  # once for each part
        record = train_albef_on(folder, tmp_path / "b", skip_bad=True, **{**OPTIONS, "steps": 2, "length": 4})
    assert "7.png" in str(record["skipped"])
    counts = [str(one.message).partition(" captions are longer than 4 tokens")[0] for one in said]
    assert counts == ["62 of 62", "16 of 16"]


def test_what_is_learnt_by_heart_is_said(captioned, tmp_path, capsys):
    train_on(captioned, tmp_path / "run", **{**OPTIONS, "steps": 101, "progress": True})
    assert "every picture was seen 101 times: so small a set is learnt by heart" in capsys.readouterr().out


@pytest.fixture
def concepts(tmp_path):
    """40 pictures in four colours that are their concepts, 30 to train and 10 to test."""
    rows = []
    for i in range(40):
        name = list(COLOURS)[i % 4]
        Image.new("RGB", (32, 32), COLOURS[name]).save(tmp_path / f"{i}.png")
        split = "train" if i < 30 else "test"
        rows.append({"image": f"{i}.png", "caption": f"a {name} square", "concept": name, "split": split})
    (tmp_path / "captions.json").write_text(json.dumps(rows))
    return tmp_path / "captions.json"


def test_moco_trains_on_the_pictures_alone_and_is_judged_by_neighbours(concepts, tmp_path):
    record = train_moco_on(concepts, tmp_path / "run", **{**OPTIONS, "steps": 4})
    assert record == json.loads((tmp_path / "run" / "record.json").read_text())
    assert (record["method"], record["data"]["train"], record["data"]["test"]) == ("moco", 30, 10)
    assert record["settings"]["queue_size"] == 15 and record["steps"] == 4
    assert set(record["scores"]) == {"MoCo", "untrained", "colours"}
    assert record["scores"]["colours"]["nearest"] == 1.0  # plain colours are all there is
    assert not (tmp_path / "run" / "unfinished.safetensors").exists()
    model = MoCo.load(tmp_path / "run")
    assert int(model.steps) == 4 and model.queue.filled == 15


def test_codis_says_how_well_codewords_tell_concepts_apart(concepts, tmp_path):
    record = train_codis_on(concepts, tmp_path / "run", **{**OPTIONS, "steps": 1, "rerank": 0}, codewords=3)
    assert record["codebook"].keys() == {"images", "texts", "purity", "nmi"}
    assert 0.3 <= record["codebook"]["purity"] <= 1  # the commonest of four colours among ten pictures


MAKERS = ("pencil", "brush", "stamp")
ON_A_STREAM = {**OPTIONS, "steps": 4, "batch_size": 8, "stream": "maker"}


@pytest.fixture
def makers(tmp_path):
    """60 pictures of four colours by three makers, who draw on other grounds; 16 to train and 4 to test by each."""
    rows = []
    for i in range(60):
        name, maker = list(COLOURS)[i % 4], i // 20
        image = Image.new("RGB", (32, 32), (80 * maker, 255 - 100 * maker, 60))
        image.paste(COLOURS[name], (4 + i % 3, 6, 24, 26))
        image.save(tmp_path / f"{i}.png")
        about = {"concept": f"{name} {i // 4}", "split": "train" if i % 20 < 16 else "test", "maker": MAKERS[maker]}
        rows.append({"image": f"{i}.png", "caption": f"number {i // 4} in {name}", **about})
    (tmp_path / "captions.json").write_text(json.dumps(rows))
    return tmp_path / "captions.json"


def edited(path, change):
    """The same data with every entry changed, beside it."""
    rows = json.loads(path.read_text())
    for number, row in enumerate(rows):
        change(number, row)
    path.write_text(json.dumps(rows))
    return path


def test_a_stream_is_trained_phase_by_phase_and_every_domain_is_asked_again(makers, tmp_path):
    out = tmp_path / "run"
    record = train_modx_on(makers, out, **ON_A_STREAM, weight=2.0, order=["brush", "pencil", "stamp"])
    assert record == json.loads((out / "record.json").read_text())
    scores = record["scores"]
    assert scores["phases"] == ["brush", "pencil", "stamp"] and len(scores["after"]) == 3 and record["steps"] == 12
    assert record["method"] == "modx" and record["epochs"] == 2.0
    settings = {"weight": 2.0, "reduction": "sum", "kl_temperature": 1.0, "stream": "maker"}
    assert settings.items() <= record["settings"].items()
    assert not list(out.glob("unfinished*")) and not (out / "stream.json").exists()
    for row in (*scores["after"], scores["untrained"], scores["chance"]):
        assert set(row) == set(MAKERS) and all(set(one) == {"by picture", "by concept"} for one in row.values())
        assert set(row["brush"]["by picture"]) == {f"{way}@{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)}
    assert scores["chance"]["stamp"]["by picture"]["i2t@1"] == pytest.approx(1 / 4)
    shares = [[row[name]["by concept"] for name in scores["phases"]] for row in scores["after"]]
    means = [[(one["i2t@1"] + one["t2i@1"]) / 2 for one in row] for row in shares]
    assert scores["matrix"] == [pytest.approx(row) for row in means]
    start = torch.tensor(
        [
            (one["by concept"]["i2t@1"] + one["by concept"]["t2i@1"]) / 2
            for one in (scores["untrained"][name] for name in scores["phases"])
        ]
    )
    assert scores["continual"] == pytest.approx(continual_scores(torch.tensor(scores["matrix"]), start))
    table = stream_table(scores).splitlines()
    assert len(table) == 6 and table[0].split()[-3:] == scores["phases"] and table[2].count("(") == 2
    # each phase's teacher is the model of the phase before
    models = [ModX.load(out / f"phase-{number}") for number in (1, 2)] + [ModX.load(out)]
    assert [int(model.phase) for model in models] == [0, 1, 2] and models[0].old is None
    for before, after in zip(models, models[1:], strict=False):
        for name, value in after.old.state_dict().items():
            assert torch.equal(value, before.current.state_dict()[name]), name
    lines = (out / "history.csv").read_text().splitlines()
    columns = lines[0].split(",")
    rows = [dict(zip(columns, line.split(","), strict=True)) for line in lines[1:]]
    assert [row["phase"] for row in rows] == [name for name in scores["phases"] for _ in range(4)]
    assert [row["off_diagonal"] == "" for row in rows] == [True] * 4 + [False] * 8
    seconds = [float(row["seconds"]) for row in rows]
    assert seconds == sorted(seconds)


@pytest.mark.parametrize("kind", [ModX, EWC, Replay])
@pytest.mark.parametrize("killed_in", [0, 1, 2])
def test_a_stream_killed_in_the_middle_of_a_phase_goes_on(makers, tmp_path, monkeypatch, capsys, killed_in, kind):
    from vlnotes import experiment
    from vlnotes.experiment import stream

    options = {**ON_A_STREAM, "kind": kind}
    options |= {"memory": 6, "count": 3, "pixels": 32} if kind is Replay else {}
    options |= {"rows": 1, "batches": 1} if kind is EWC else {}
    whole = train_modx_on(makers, tmp_path / "a", **options)
    real, real_train = stream.batches_of, experiment.run.train
    made, asked = [], []

    def watched(pairs, batch_size, seed):
        inner, number = real(pairs, batch_size, seed), seed // 1000
        made.append(number)

        def batch_at(step):
            asked.append((number, step))
            if killing and asked.count((killed_in, 2)) and (number, step) == (killed_in, 2):
                raise KeyboardInterrupt
            return inner(step)

        return batch_at

    killing = True
    monkeypatch.setattr(experiment.run, "train", lambda *a, **k: real_train(*a, **{**k, "checkpoint_seconds": 0}))
    monkeypatch.setattr(stream, "batches_of", watched)
    with pytest.raises(KeyboardInterrupt):
        train_modx_on(makers, tmp_path / "b", **options)
    assert (tmp_path / "b" / f"unfinished-{killed_in + 1}.safetensors").exists()
    asked.clear()
    killing = False
    again = train_modx_on(makers, tmp_path / "b", **{**options, "progress": True})
    told = capsys.readouterr().out
    assert "going on with the unfinished run" in told
    assert ("going on after phase" in told) == (killed_in > 0)
    trained = [pair for pair in asked if pair[0] >= killed_in]
    first = trained[: trained.index((killed_in, 3)) + 1]
    assert first == [(killed_in, 2), (killed_in, 3)]  # and not from the start of the phase
    assert not [pair for pair in asked if pair[0] < killed_in - 1]  # phases that are over are not trained again
    assert again["scores"] == whole["scores"] and again["steps"] == whole["steps"] == 12
    assert again["last"] == pytest.approx(whole["last"], rel=1e-4)
    if kind is Replay:  # every picture of two phases went by once
        assert int(Replay.load(tmp_path / "b").memory.offered) == 32
    ours, theirs = kind.load(tmp_path / "b").state_dict(), kind.load(tmp_path / "a").state_dict()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_a_stream_killed_while_it_writes_its_record_is_not_trained_again(makers, tmp_path, monkeypatch):
    from vlnotes.experiment import stream

    real = stream._joined
    monkeypatch.setattr(stream, "_joined", lambda histories: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train_modx_on(makers, tmp_path / "run", **ON_A_STREAM)
    monkeypatch.setattr(stream, "_joined", real)
    with pytest.raises(ValueError, match=r"belongs to another run; \(there, here\): \{'weight': \(20.0, 1.0\)\}"):
        train_modx_on(makers, tmp_path / "run", **ON_A_STREAM, weight=1.0)
    monkeypatch.setattr(ModX, "forward", lambda *given: pytest.fail("it trained again"))
    assert train_modx_on(makers, tmp_path / "run", **ON_A_STREAM)["steps"] == 12
    monkeypatch.undo()
    (tmp_path / "run" / "stream.json").write_text("{")
    with pytest.raises(ValueError, match="stream.json is damaged"):
        train_modx_on(makers, tmp_path / "run", **ON_A_STREAM)
    assert train_modx_on(makers, tmp_path / "run", **{**ON_A_STREAM, "resume": False})["steps"] == 12


def test_the_matrix_is_the_mean_of_both_directions_by_concept_where_there_are_any():
    concept, picture = {"i2t@1": 0.5, "t2i@1": 0.25}, {"i2t@1": 0.125, "t2i@1": 0.0}
    untrained = {"a": {"by picture": picture, "by concept": concept}, "b": {"by picture": picture}}
    matrix = [[0.5, 0.25], [0.4, 0.6]]
    scores = {"phases": ["a", "b"], "untrained": untrained, "matrix": matrix, "continual": {"forgetting": 0.1}}
    lines = [line.split() for line in stream_table(scores).splitlines()]
    assert lines[1:] == [
        ["untrained", "(37.5%)", "(6.2%)"],
        ["after", "a", "50.0%", "(25.0%)"],
        ["after", "b", "40.0%", "60.0%"],
        ["forgetting", "10.0", "(points)"],
    ]


def test_without_concepts_recall_is_by_picture_and_fine_tuning_is_the_same_course(makers, tmp_path):
    edited(makers, lambda number, row: row.pop("concept"))
    record = train_modx_on(makers, tmp_path / "run", **{**ON_A_STREAM, "steps": 1}, kind=Continual)
    assert record["method"] == "fine-tuning" and set(record["scores"]["after"][0]["stamp"]) == {"by picture"}
    assert set(record["last"]) == {"loss", "clip"}


def test_a_stream_from_disk_is_the_stream_from_memory(makers, tmp_path, monkeypatch):
    a = train_modx_on(makers, tmp_path / "a", **{**ON_A_STREAM, "steps": 2})
    monkeypatch.setattr("vlnotes.experiment.run.IN_MEMORY", 0)
    b = train_modx_on(makers, tmp_path / "b", **{**ON_A_STREAM, "steps": 2})
    assert a["scores"] == b["scores"] and a["last"] == b["last"]


def test_a_small_phase_gets_smaller_batches(makers, tmp_path):
    edited(makers, lambda number, row: row.update(maker="stamp" if 17 > number >= 5 else row["maker"]))
    record = train_modx_on(makers, tmp_path / "run", **{**ON_A_STREAM, "steps": 5})
    assert record["epochs"] == round((5 * 5 / 5 + 5 * 8 / 16 + 5 * 8 / 27) / 3, 2)


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda n, row: n == 7 and row.pop("maker"),
            r"1 of 48 pictures have no 'maker' \(such as .*fields here: .*maker",
        ),
        (lambda n, row: row.pop("maker"), r"48 of 48 pictures have no 'maker'.*fields here: caption, concept, image"),
        (lambda n, row: n == 18 and row.update(maker=""), r"test part: 1 of 12 pictures have no 'maker'"),
        (lambda n, row: row.update(maker=["a"]), r"maker is \['a'\] in one entry; expected a word or a number"),
        (lambda n, row: row.update(maker=1), "maker is '1' everywhere; a stream needs 2 phases or more"),
        (
            lambda n, row: n == 0 and row.update(maker="ink"),
            "phase 'ink' of maker has 1 training picture; .* at least 2",
        ),
        (lambda n, row: n < 2 and row.update(maker="ink"), "phase 'ink' of maker has no test pictures"),
        (lambda n, row: n == 18 and row.update(maker="ink"), "test pictures of maker ink have no training phase"),
    ],
)
def test_a_stream_names_what_its_data_lacks(makers, tmp_path, change, words):
    edited(makers, change)
    with pytest.raises(ValueError, match=words):
        train_modx_on(makers, tmp_path / "run", **ON_A_STREAM)


def test_a_stream_names_other_mistakes(makers, folder, tmp_path):
    with pytest.raises(ValueError, match=r"of no sample: \['ink'\]"):  # an empty phase
        train_modx_on(makers, tmp_path / "run", **ON_A_STREAM, order=[*MAKERS, "ink"])
    with pytest.raises(ValueError, match=r"in no group: \['stamp'\]"):
        train_modx_on(makers, tmp_path / "run", **ON_A_STREAM, order=["pencil", "brush"])
    with pytest.raises(ValueError, match="preset is 'best'; expected one of 'code', 'paper', 'code, any batch'"):
        train_modx_on(makers, tmp_path / "run", **ON_A_STREAM, preset="best")
    with pytest.raises(ValueError, match="weight: expected a number of 0 or more"):
        train_modx_on(makers, tmp_path / "run", **ON_A_STREAM, weight=-1.0)


def test_moco_from_disk_and_from_memory_are_the_same_and_no_concepts_no_score(folder, tmp_path, monkeypatch):
    a = train_moco_on(folder, tmp_path / "a", **{**OPTIONS, "steps": 3})
    monkeypatch.setattr("vlnotes.experiment.run.IN_MEMORY", 0)
    b = train_moco_on(folder, tmp_path / "b", **{**OPTIONS, "steps": 3})
    assert a["last"] == b["last"] and a["scores"] == b["scores"] == {}
    with pytest.raises(ValueError, match="expected batch_size >= 2 and size >= 16; got 1, 32"):
        train_moco_on(folder, tmp_path / "c", **{**OPTIONS, "batch_size": 1})


def test_neighbours_are_counted_without_the_picture_itself():
    features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [1.0, 0.2], [-1.0, 0.0]])
    labels = torch.tensor([0, 0, 1, 1, 2])
    scores = neighbour_scores(features, labels)
    assert scores["pictures"] == 4 and scores["nearest"] == 0.5 and scores["chance"] == pytest.approx(1 / 4)
    with pytest.raises(ValueError, match="no two of 3 pictures share one"):
        neighbour_scores(features[:3], torch.arange(3))


def test_the_command_line(folder, tmp_path, capsys):
    out = tmp_path / "run"
    words = ["train", "clip", "--data", str(folder), "--out", str(out), "--steps", "2", "--size", "32"]
    assert main([*words, "--batch-size", "8", "--device", "cpu"]) == 0
    assert "colour histograms" in capsys.readouterr().out and (out / "record.json").is_file()
    assert main(["train", "clip", "--data", str(tmp_path / "nowhere")]) == 1
    assert "nowhere" in capsys.readouterr().err
    moco = ["train", "moco", *words[2:5], str(tmp_path / "moco"), *words[6:], "--batch-size", "8", "--device", "cpu"]
    assert main(moco) == 0
    assert "a picture finds itself among 16 others" in capsys.readouterr().out
    assert json.loads((tmp_path / "moco" / "model.json").read_text())["model"] == "moco"
    albef = ["train", "albef", *words[2:5], str(tmp_path / "albef"), *words[6:], "--batch-size", "8"]
    assert main([*albef, "--device", "cpu", "--rerank", "2", "--gallery", "5"]) == 0
    out = capsys.readouterr().out
    assert "note   5 of 8 test pictures are ranked; --gallery N takes more" in out and "gallery: 5 pictures" in out
    codis = ["train", "codis", *words[2:5], str(tmp_path / "codis"), *words[6:], "--batch-size", "8"]
    assert main([*codis, "--device", "cpu", "--rerank", "2", "--codewords", "5"]) == 0
    out = capsys.readouterr().out
    assert "codewords in use: " in out and "ITM looked at the best 2 texts and 2 pictures" in out
    assert json.loads((tmp_path / "codis" / "model.json").read_text())["built"]["codewords"] == 5
    for method in ("psd", "nclip", "xclip"):
        more = [] if method == "psd" else ["--codewords", "5"]
        given = ["train", method, *words[2:5], str(tmp_path / method), *words[6:], "--batch-size", "8", *more]
        assert main([*given, "--device", "cpu"]) == 0
        out = capsys.readouterr().out
        assert "gallery: 8 pictures, 16 captions" in out and ("codewords in use: " in out) == (method != "psd")
        told = json.loads((tmp_path / method / "model.json").read_text())
        assert told["model"] == method and told["built"].get("codewords", 5) == 5
    assert main([*words, "--rerank", "2"]) == 1
    assert "--rerank belongs to albef and codis; clip has no ITM" in capsys.readouterr().err
    assert main([*albef, "--codewords", "2"]) == 1
    assert "--codewords belongs to codis and nclip and xclip; albef has no codebook" in capsys.readouterr().err
    modx = ["train", "modx", *words[2:4], "--out", str(tmp_path / "modx")]
    assert main(modx) == 1
    assert "modx trains on a stream: --stream FIELD" in capsys.readouterr().err
    assert main([*words, "--stream", "maker"]) == 1
    assert "--stream belongs to modx; clip trains on everything at once" in capsys.readouterr().err
    assert main([*modx, "--stream", "maker"]) == 1
    assert "have no 'maker'" in capsys.readouterr().err
    assert main([*words, "--device", "cuda:99"]) == 1
    assert "not on this machine" in capsys.readouterr().err
    counts = ["--train", "6", "--val", "2", "--test", "2"]
    assert main(["world", "export", "--out", str(tmp_path / "world"), *counts]) == 0
    assert len(list((tmp_path / "world").rglob("*.png"))) == 10
    with pytest.raises(SystemExit):
        main(["dance"])


def test_check_has_one_line_a_requirement():
    lines = check(speed=False)
    names = [line.name for line in lines]
    assert {"python", "vlnotes", "torch", "device", "threads", "memory", "data", "cache"} <= set(names)
    assert all(str(line).startswith(f"[{line.status}]") and line.status in ("OK", "FAIL", "--") for line in lines)
    assert [line.text for line in lines if line.name == "torch"] == [torch.__version__.split("+")[0]]


def test_check_fails_on_what_is_too_old(monkeypatch):
    from importlib import metadata

    from vlnotes import environment

    monkeypatch.setattr(
        environment.metadata, "version", lambda name: "0.0.1" if name == "torch" else metadata.PathDistribution
    )
    monkeypatch.setattr(environment.metadata, "requires", lambda name: ["torch>=2.8"])
    torch_line = next(line for line in environment._packages() if line.name == "torch")
    assert torch_line.status == "FAIL" and "expected >=2.8" in torch_line.text


def test_the_module_runs():
    run = subprocess.run([sys.executable, "-m", "vlnotes", "check", "--fast"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("[OK]") > 15


def test_real_pictures_open_and_train(realdata, tmp_path):
    record = train_on(realdata / "coco_cc_mini", tmp_path / "run", **{**OPTIONS, "steps": 4})
    assert record["data"]["layout"] == "karpathy"
    assert (record["data"]["train"], record["data"]["test"]) == (66, 21)
    assert record["scores"]["gallery"] == {"pictures": 21, "captions": 105}


def test_a_stream_of_real_makers(realdata, tmp_path, capsys):
    out = tmp_path / "run"
    words = ["train", "modx", "--data", str(realdata / "emoji_dev"), "--stream", "vendor", "--out", str(out)]
    words += ["--steps", "1", "--size", "32", "--batch-size", "32", "--weight", "1", "--device", "cpu"]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "phase 5 of 5" in told and "forgetting" in told
    scores = json.loads((out / "record.json").read_text())["scores"]
    assert scores["phases"] == ["noto", "twemoji", "emojitwo", "fluent3d", "fxemoji"]
    assert len(scores["matrix"]) == 5 and all("by concept" in scores["after"][4][name] for name in scores["phases"])


def test_albef_trains_on_real_pictures(realdata, tmp_path):
    record = train_albef_on(realdata / "coco_cc_mini", tmp_path / "run", **{**OPTIONS, "steps": 2})
    assert record["scores"]["gallery"] == {"pictures": 21, "captions": 105}
    assert record["rerank"] == {"texts": 16, "images": 16} and "by picture, itm" in record["scores"]
