"""Worlds on disk: COCO and Karpathy layouts, whole or not there at all, and the sample in the repository."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vlnotes.world import (
    DOMAINS,
    KINDS,
    SAMPLE,
    World,
    boxes,
    captions,
    ceilings,
    draw,
    export,
    from_json,
    make,
    to_json,
)
from vlnotes.world import holds as holds_
from vlnotes.world.export import cache_folder, contact_sheet

SAMPLES = Path(__file__).parents[1] / "data" / "sample"
SMALL = {"train": 6, "val": 3, "test": 4}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("cache"), "paper", SMALL, size=32, progress=False)


def test_images_are_rows_of_one_array(made):
    images = np.load(made / "images.npy", mmap_mode="r")
    assert images.shape == (13, 32, 32, 3) and images.dtype == np.uint8
    scenes = [from_json(line) for line in (made / "scenes.jsonl").read_text().splitlines()]
    assert scenes == [s for split, n in SMALL.items() for s in World("paper").scenes(n, split)]
    drawn = draw(scenes, 32).permute(0, 2, 3, 1)
    assert (torch.from_numpy(images.astype(int)) - drawn.int()).abs().max() <= 1
    assert sorted(p.name for p in made.iterdir()) == sorted(
        ["images.npy", "scenes.jsonl", "manifest.json", "dataset_paper.json"]
        + [f"{kind}_{split}.json" for kind in ("captions", "instances") for split in SMALL]
    )


def test_coco_layout(made):
    scenes = [from_json(line) for line in (made / "scenes.jsonl").read_text().splitlines()]
    ids = []
    for split, n in SMALL.items():
        said = json.loads((made / f"captions_{split}.json").read_text())
        assert len(said["images"]) == n and len(said["annotations"]) == 5 * n
        ids += [image["id"] for image in said["images"]]
        for k, note in enumerate(said["annotations"]):
            scene = scenes[note["image_id"]]
            assert note["caption"] == captions(scene)[k % 5].text and note["kind"] == KINDS[k % 5]
            assert note["noise"] is None and holds_(scene, note["predicate"]) is True
        things = json.loads((made / f"instances_{split}.json").read_text())
        assert things["images"] == said["images"]
        names = {c["id"]: c["name"] for c in things["categories"]}
        of_scene = {}
        for note in things["annotations"]:
            of_scene.setdefault(note["image_id"], []).append(note)
        for image in things["images"]:
            scene, notes = scenes[image["id"]], of_scene[image["id"]]
            expected = boxes(scene, 32)[list(scene.visible)]
            found = torch.tensor([n["bbox"] for n in notes], dtype=torch.float32)
            found[:, 2:] += found[:, :2]
            assert torch.equal(found, expected)
            assert [names[n["category_id"]] for n in notes] == [scene.objects[i].shape for i in scene.visible]
            assert all(0 < n["area"] <= n["bbox"][2] * n["bbox"][3] for n in notes)
    assert ids == list(range(13))


def test_karpathy_layout(made):
    data = json.loads((made / "dataset_paper.json").read_text())
    assert [i["split"] for i in data["images"]] == [s for s, n in SMALL.items() for _ in range(n)]
    sentids = [k for i in data["images"] for k in i["sentids"]]
    assert sentids == list(range(65))
    for image in data["images"]:
        assert [s["sentid"] for s in image["sentences"]] == image["sentids"]
        assert all(s["raw"].replace(",", "").replace(":", "").split() == s["tokens"] for s in image["sentences"])
        assert image["filepath"] == "images" and image["filename"] == f"{image['imgid']:06d}.png"


def test_make_again_returns_at_once_and_never_mixes_settings(made):
    before = (made / "images.npy").stat().st_mtime_ns
    assert make(made.parent, "paper", SMALL, size=32, progress=False) == made
    assert (made / "images.npy").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="was asked for"):
        make(made.parent, "paper", SMALL, size=64, progress=False)
    with pytest.raises(ValueError, match="was asked for"):
        export(made.parent, "paper", SMALL, size=32, progress=False)


def test_an_interrupted_make_goes_on_where_it_stopped(tmp_path, monkeypatch, made):
    module = sys.modules["vlnotes.world.export"]  # the name `export` in the package is the function
    monkeypatch.setattr(module, "_CHUNK", 4)
    drawn = []

    def failing(scenes, size):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(len(scenes))
        return draw(scenes, size)

    monkeypatch.setattr(module, "draw", failing)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, "paper", SMALL, size=32, progress=False)
    assert not (tmp_path / "paper").exists()  # no half-written folder counts as done
    assert json.loads((tmp_path / "paper.partial" / "progress.json").read_text())["done"] == 8
    drawn.clear()
    folder = make(tmp_path, "paper", SMALL, size=32, progress=False)
    assert drawn == [4, 1]  # 8 of 13 were there
    for path in made.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes(), path.name
    assert not (tmp_path / "paper.partial").exists()


def test_a_partial_folder_of_other_settings_is_not_continued(tmp_path):
    part = tmp_path / "paper.partial"
    part.mkdir()
    (part / "progress.json").write_text(json.dumps({"asked": {"size": 96}, "done": 8}))
    folder = make(tmp_path, "paper", SMALL, size=32, progress=False)
    assert np.load(folder / "images.npy").min(axis=(1, 2, 3)).max() < 255
    assert np.load(folder / "images.npy").max(axis=(1, 2, 3)).min() > 0  # no row was left out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": {"dev": 3}}, "n maps splits"),
        ({"n": {"train": 0}}, "at least 1"),
        ({"n": {}}, "at least one split"),
        ({"size": 8}, "16 to 512"),
        ({"domain": "oil"}, "unknown domain"),
    ],
)
def test_errors(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path, progress=False, **arguments)
    (tmp_path / "neon").mkdir()
    with pytest.raises(ValueError, match="no manifest"):
        make(tmp_path, "neon", SMALL, progress=False)


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("VLNOTES_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    assert make(None, "neon", {"test": 2}, size=16, progress=False) == tmp_path / "neon"
    monkeypatch.delenv("VLNOTES_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "vlnotes"


def test_the_progress_bar_goes_to_stdout(tmp_path, capsys):
    make(tmp_path, "paper", {"val": 2}, size=16)
    out = capsys.readouterr()
    assert "2/2" in out.out and out.err == ""


@pytest.mark.parametrize("name", sorted(DOMAINS))
def test_the_sample_can_be_made_again(tmp_path, name):
    folder, old = export(tmp_path, name, SAMPLE, progress=False), SAMPLES / name
    for path in sorted(old.glob("*.json*")):
        assert (folder / path.name).read_text() == path.read_text(), path.name
    text = (old / "scenes.jsonl").read_text()
    assert hashlib.sha256(text.encode()).hexdigest() == json.loads((old / "manifest.json").read_text())["scenes_sha256"]
    files = sorted((old / "images").iterdir())
    assert [f.name for f in files] == [f"{i:06d}.png" for i in range(sum(SAMPLE.values()))]
    for file in files:
        a, b = (np.asarray(Image.open(f)).astype(int) for f in (file, folder / "images" / file.name))
        assert a.shape == (64, 64, 3) and np.abs(a - b).max() <= 1


def test_the_sample_is_small():
    assert sum(p.stat().st_size for p in SAMPLES.rglob("*") if p.is_file()) < 1.5 * 2**20


def test_ceilings_by_hand():
    table = ceilings("paper", 60, "val")
    scenes = World("paper").scenes(60, "val")
    assert list(table) == list(KINDS)
    for k, kind in enumerate(KINDS):
        said = [captions(s)[k] for s in scenes]
        true = [sum(holds_(s, c.predicate) is True for s in scenes) for c in said]
        assert table[kind]["true_images"] == pytest.approx(sum(true) / 60)
        assert table[kind]["ceiling"] == pytest.approx(sum(1 / t for t in true) / 60)
        texts = [c.text for c in said]
        assert table[kind]["distinct"] == pytest.approx(sum(texts.count(t) == 1 for t in texts) / 60)


def test_contact_sheet(tmp_path):
    contact_sheet(tmp_path / "sheet.png", columns=3, rows=1)
    assert Image.open(tmp_path / "sheet.png").size == (3 * 128, len(DOMAINS) * 128)


def test_card_says_what_is_measured():
    """The table of ceilings in the card is what `ceilings` gives."""
    card = (SAMPLES.parent / "DATASET_CARD.md").read_text()
    for name in DOMAINS:
        for kind, row in ceilings(name).items():
            numbers = f"{row['true_images']:.2f} | {row['distinct']:.0%} | {row['ceiling']:.1%}"
            line = f"| {name} | {kind} | {numbers} |"
            assert line in card, line


def test_scene_lines_are_stable():
    (scene,) = World("paper").scenes(1)
    assert to_json(from_json(to_json(scene))) == to_json(scene)
