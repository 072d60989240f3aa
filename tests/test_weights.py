"""Weights that ship: made from a recipe, read back equal, as good as their record says, and small."""

import pytest
import torch

from vlnotes import weights, world
from vlnotes.__main__ import main
from vlnotes.clip import encode_images, encode_texts
from vlnotes.scoring import ATTRIBUTE
from vlnotes.text import encode, save_tokenizer, train_tokenizer, unknown_rate
from vlnotes.train import train
from vlnotes.world.domains import CONCEPTS

SMALL = dict(pictures=40, size=32, batch_size=8, steps=3, vocabulary=3, gallery=12, part=8)
SHIPPED = sorted(p.name for p in (weights.folder_of("clip-paper").parent).glob("*") if p.is_dir())


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("VLNOTES_CACHE", str(folder))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("weights")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLNOTES_CACHE", str(root / "cache"))
        weights.make("clip-paper", root, device="cpu", progress=False, **SMALL)
    return root


def test_made_weights_are_read_back_and_score_what_the_record_says(made):
    model, tokenizer = weights.load("clip-paper", root=made)
    assert not model.training and len(tokenizer) == model.built["vocab_size"]
    record = weights.read_record("clip-paper", made)
    assert record["recipe"] | SMALL == record["recipe"] and record["machine"]["device"] == "cpu"
    assert set(record["scores"]) == set(world.DOMAINS) and set(record["scores"]["paper"]) == set(world.KINDS)
    assert set(record["scores"]["neon"]) == {"full"}
    assert record["scores_of_part"] == weights.scores(model, tokenizer, "paper", 8, 32)
    assert record["scores"]["knit"] == weights.scores(model, tokenizer, "knit", 12, 32, kinds=("full",))
    assert {"torch", "vlnotes", "python", "world"} <= set(record["made_with"])
    assert sorted(p.name for p in (made / "clip-paper").iterdir()) == ["model.json", "tokenizer", "weights.safetensors"]
    assert not list((made / "cache").rglob("*.safetensors"))  # the checkpoint is gone


def test_scores_by_hand(made):
    model, tokenizer = weights.load("clip-paper", root=made)
    scenes = world.World("knit").scenes(30, "test")
    said = [world.captions(scene)[2] for scene in scenes]  # counts: true of several pictures
    texts = encode_texts(model, encode(tokenizer, [caption.text for caption in said], 40))
    similarity = encode_images(model, world.draw(scenes, 32)) @ texts.T  # (N, M)
    hits = [
        any(world.holds(scenes[i], caption.predicate) is True for i in similarity[:, j].topk(10).indices)
        for j, caption in enumerate(said)
    ]
    found = weights.scores(model, tokenizer, "knit", 30, 32, kinds=("count",))
    assert list(found) == ["count"] and found["count"]["t2i@10"] == pytest.approx(sum(hits) / 30, abs=1e-4)


def test_pictures_and_captions_stay_together_however_they_are_drawn():
    images, texts, owner = weights._drawn(weights.Recipe("small", pictures=503, size=16), progress=False)
    whole = world.pairs(world.World().scenes(503), size=16)
    assert torch.equal(images, whole.images) and texts == whole.texts and torch.equal(owner, whole.text_to_image)
    images, texts, owner = weights._drawn(weights.Recipe("x", pictures=8, size=16, neighbours=0.5), progress=False)
    scenes = world.World().scenes(8)
    whole = world.pairs(world.beside_neighbours(scenes[:4]) + scenes[4:], size=16)
    assert len(images) == 12 and torch.equal(images, whole.images) and texts == whole.texts


@pytest.fixture
def began(monkeypatch):
    """What every model was before its first step."""
    states = []

    def trained(model, *a, **k):
        states.append({name: value.clone() for name, value in model.state_dict().items()})
        return train(model, *a, **k)

    monkeypatch.setattr(weights, "train", trained)
    return states


def test_an_albef_starts_from_a_clip_and_is_kept_compact(made, began):
    recipe = weights.RECIPES["albef-paper"]
    small = SMALL | {"options": {"layers": 1, "queue_size": 16}}
    weights.make("albef-paper", made, device="cpu", progress=False, **small)
    clip, own = weights.load("clip-paper", root=made)
    towers = {name: value for name, value in clip.state_dict().items() if name.startswith(("image_", "text_"))}
    assert all(torch.equal(began[0][f"student.{name}"], value) for name, value in towers.items())
    model, tokenizer = weights.load("albef-paper", root=made)
    assert tokenizer.get_vocab() == own.get_vocab() and not model.training
    record = weights.read_record("albef-paper", made)
    assert record["recipe"]["start"] == recipe.start and record["recipe"]["neighbours"] == 0.5
    assert set(record["binding"]) == {"itc", "itm"}
    assert "relation" in record["words"] and set(record["words"]) <= {*ATTRIBUTE, "relation"}
    assert {"itc", "itm 0"} == set(record["pointing"]) and 0 <= record["pointing"]["itc"] <= 1
    assert record["scores_of_part"] == weights.scores(model, tokenizer, "paper", 8, 32)
    from safetensors.torch import load_file

    kept = load_file(made / "albef-paper" / "weights.safetensors")
    assert not any(name.startswith(("teacher.", "image_queue")) for name in kept)
    assert {value.dtype for value in kept.values() if value.is_floating_point()} == {torch.float16}


def test_a_codis_starts_from_an_albef_and_keeps_its_codebook(made, began):
    small = SMALL | {"options": {"layers": 1, "queue_size": 16}}
    weights.make("albef-paper", made, device="cpu", progress=False, **small)
    albef, own = weights.load("albef-paper", root=made)
    began.clear()
    small["options"] = small["options"] | {"codewords": 5}
    weights.make("codis-paper", made, device="cpu", progress=False, **small)
    for name, value in albef.student.state_dict().items():
        assert torch.equal(began[0][f"student.{name}"], value), name
    model, tokenizer = weights.load("codis-paper", root=made)
    assert type(model).__name__ == "CODIS" and model.codebook.shape[0] == 5
    assert not torch.equal(model.codebook, began[0]["codebook"])  # it has learnt
    assert tokenizer.get_vocab() == own.get_vocab()
    record = weights.read_record("codis-paper", made)
    assert record["recipe"]["start"] == "albef-paper" and {"itc", "itm 0"} == set(record["pointing"])


def features(model, tokenizer):
    data = world.pairs(world.World().scenes(4, "test"), size=32)
    return torch.cat([encode_images(model, data.images), encode_texts(model, encode(tokenizer, data.texts))])


def test_from_scratch_gives_the_same_features_without_touching_what_ships(made, cache, monkeypatch):
    shipped = weights.load("clip-paper", root=made)
    monkeypatch.setattr(weights, "RECIPES", {"clip-paper": weights.Recipe("small", **SMALL)})
    monkeypatch.setattr("vlnotes.train.pick_device", lambda device=None: torch.device("cpu"))
    before = (made / "clip-paper" / "weights.safetensors").stat().st_mtime_ns
    anew = weights.load("clip-paper", from_scratch=True, root=made)
    assert torch.allclose(features(*anew), features(*shipped), atol=1e-5)
    assert anew[1].get_vocab() == shipped[1].get_vocab()
    assert (made / "clip-paper" / "weights.safetensors").stat().st_mtime_ns == before
    assert (cache / "weights" / "clip-paper" / "model.json").is_file()


def test_a_stopped_training_goes_on(made, cache, tmp_path, monkeypatch):
    def killed(*arguments, **options):
        history = train(*arguments, **options)
        assert len(history) == 3
        raise KeyboardInterrupt

    monkeypatch.setattr(weights, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        weights.make("clip-paper", tmp_path, device="cpu", progress=False, **SMALL)
    assert not (tmp_path / "clip-paper").exists()  # nothing half-made
    (left,) = (cache / "weights").iterdir()
    monkeypatch.setattr(weights, "train", train)
    monkeypatch.setattr(weights, "pair_batches", lambda *a, **k: lambda step: pytest.fail("trained again"))
    weights.make("clip-paper", tmp_path, device="cpu", progress=False, **SMALL)
    assert torch.equal(
        features(*weights.load("clip-paper", root=tmp_path)), features(*weights.load("clip-paper", root=made))
    )
    assert not left.exists()


def test_missing_and_damaged_weights_name_the_command(made, tmp_path):
    command = "`python -m vlnotes weights make clip-paper`"
    with pytest.raises(ValueError, match=f"has no model.json.*{command}"):
        weights.load("clip-paper", root=tmp_path)
    with pytest.raises(ValueError, match=f"model.json.*{command}"):
        weights.read_record("clip-paper", tmp_path)
    weights.make("clip-paper", tmp_path, device="cpu", progress=False, **SMALL | {"steps": 1})
    file = tmp_path / "clip-paper" / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match=f"does not hold a whole CLIP.*{command}"):
        weights.load("clip-paper", root=tmp_path)
    weights.make("clip-paper", tmp_path, device="cpu", progress=False, **SMALL | {"steps": 1})
    save_tokenizer(train_tokenizer(["a red circle"]), tmp_path / "clip-paper" / "tokenizer")
    with pytest.raises(ValueError, match=f"the tokenizer has 8 ids and the model knows .*{command}"):
        weights.load("clip-paper", root=tmp_path)
    with pytest.raises(ValueError, match="no weights 'clip-oil'; there are clip-paper, albef-paper"):
        weights.load("clip-oil")
    with pytest.raises(TypeError, match="minutes"):
        weights.make("clip-paper", tmp_path, minutes=3)


def test_too_large_weights_are_refused_before_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "LARGEST", 2**20)
    with pytest.raises(ValueError, match="over 1 MB"):
        weights.make("clip-paper", tmp_path, progress=False, **SMALL)


def test_the_tokenizer_knows_the_words_of_all_domains():
    tokenizer = weights.world_tokenizer()
    words = tokenizer.get_vocab()
    assert [word for word in CONCEPTS if word not in words] == []
    for domain in world.DOMAINS:
        texts = [c.text for s in world.World(domain).scenes(200, "test") for c in world.captions(s, synonyms=3)]
        assert unknown_rate(tokenizer, [*texts, *world.prompts(domain, "colour").values()]) == 0
        assert max(map(len, tokenizer(texts)["input_ids"])) <= weights.Recipe.length


def test_the_command_line(made, capsys, monkeypatch):
    assert main(["weights", "list", "--out", str(made)]) == 0
    out = capsys.readouterr().out
    assert "clip-paper" in out and "40 pictures, 3 steps" in out and "t2i@1" in out
    assert main(["weights", "--out", str(made / "none")]) == 0
    assert "not there" in capsys.readouterr().out
    assert main(["weights", "make", "clip-oil"]) == 1
    assert "there are clip-paper" in capsys.readouterr().err
    monkeypatch.setattr(weights, "RECIPES", {"clip-paper": weights.Recipe("small", **SMALL)})
    assert main(["weights", "make", "clip-paper", "--out", str(made / "again")]) == 0
    assert "3/3" in capsys.readouterr().out  # a bar
    assert (made / "again" / "clip-paper" / "model.json").is_file()


# --- what ships -------------------------------------------------------------------------------------


def test_every_recipe_has_its_weights_and_nothing_else_is_there():
    assert SHIPPED == sorted(weights.RECIPES)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_score_what_their_record_says(name):
    model, tokenizer = weights.load(name)
    record = weights.read_record(name)
    recipe = record["recipe"]
    assert weights.Recipe(**recipe) == weights.RECIPES[name]  # the recipe was not changed since
    found = weights.scores(model, tokenizer, recipe["domain"], recipe["part"], recipe["size"], recipe["length"])
    for kind, row in record["scores_of_part"].items():
        assert found[kind] == pytest.approx(row, abs=0.015), kind
    assert model.built["vocab_size"] == len(tokenizer)
    assert tokenizer.get_vocab() == weights.world_tokenizer(recipe["vocabulary"]).get_vocab()


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_are_small(name):
    files = [p for p in weights.folder_of(name).rglob("*") if p.is_file()]
    assert max(p.stat().st_size for p in files) <= weights.LARGEST
    assert sum(p.stat().st_size for p in files) <= weights.LARGEST + 2**18
