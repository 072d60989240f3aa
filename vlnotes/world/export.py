"""Worlds on disk: one folder a domain, in the layouts that loaders of real data read (COCO and Karpathy).

`make` writes one array of pictures for training; `export` writes PNG files. Both write the same JSON:

    scenes.jsonl                 one scene a line; everything else follows from it
    captions_{split}.json        COCO captions, each with its kind, noise and predicate
    instances_{split}.json       COCO instances: boxes and areas of what can be seen
    dataset_{domain}.json        Karpathy layout
    manifest.json                version, seed, counts, sha256 of scenes.jsonl; written last

Picture ids are row numbers: train first, then val, then test.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch

from vlnotes.world.captions import KINDS, Caption, captions
from vlnotes.world.domains import DOMAINS, SHAPES, domain_named
from vlnotes.world.drawing import boxes_of, draw, masks
from vlnotes.world.predicates import truth
from vlnotes.world.scenes import SPLITS, VERSION, Scene, to_json
from vlnotes.world.world import World

COUNTS = {"train": 20_000, "val": 1_000, "test": 1_000}
SAMPLE = {"train": 12, "val": 6, "test": 6}  # what data/sample holds of each domain, seed 0
_CHUNK = 512


def cache_folder() -> Path:
    """Where made worlds live.

    Returns:
        The folder named by the environment variable VLNOTES_CACHE, or ~/.cache/vlnotes.
    """
    return Path(os.environ.get("VLNOTES_CACHE") or Path.home() / ".cache" / "vlnotes")


def make(
    folder: str | Path | None = None,
    domain: str = "paper",
    n: dict[str, int] | None = None,
    *,
    size: int = 64,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Draw a domain once: images.npy (uint8, (N, size, size, 3), open it with mmap_mode="r") and all JSON.

    The work happens in a folder ending in .partial, which gets its name when it is whole; a second call
    returns at once, a call after an interruption goes on where that one stopped.

    Args:
        folder: where the domain's folder goes; default `cache_folder()`.
        domain: name of a domain.
        n: pictures a split, default 20,000 / 1,000 / 1,000.
        size: side in pixels.
        seed: seed of the `World`.
        progress: show a progress bar.

    Returns:
        The finished folder.

    Raises:
        ValueError: a bad argument, or the folder holds a world made with other settings.
    """
    return _build(folder, domain, n, size, seed, progress, png=False)


def export(
    folder: str | Path,
    domain: str = "paper",
    n: dict[str, int] | None = None,
    *,
    size: int = 64,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """The same as `make`, with PNG files under images/ in place of one array: for eyes and for other people's
    loaders.

    Args:
        folder: where the domain's folder goes.
        domain: name of a domain.
        n: pictures a split, default 20,000 / 1,000 / 1,000.
        size: side in pixels.
        seed: seed of the `World`.
        progress: show a progress bar.

    Returns:
        The finished folder.

    Raises:
        ValueError: a bad argument, or the folder holds a world made with other settings.
    """
    return _build(folder, domain, n, size, seed, progress, png=True)


def _build(folder, domain: str, n, size: int, seed: int, progress: bool, png: bool) -> Path:
    from tqdm import tqdm

    world = World(domain, seed)
    n = dict(COUNTS if n is None else n)
    for split, count in n.items():
        if split not in SPLITS or count < 1:
            raise ValueError(f"n maps splits ({', '.join(SPLITS)}) to counts of at least 1, got {n}")
    n = {split: n[split] for split in SPLITS if split in n}
    if not n or not 16 <= size <= 512:
        raise ValueError(f"expected at least one split and a size of 16 to 512 pixels, got n={n}, size={size}")
    asked = {"version": VERSION, "domain": domain, "seed": seed, "size": size, "n": n, "png": png}
    whole = (cache_folder() if folder is None else Path(folder)) / domain
    if (whole / "manifest.json").exists():
        found = json.loads((whole / "manifest.json").read_text())
        if {k: found.get(k) for k in asked} != asked:
            raise ValueError(f"{whole} holds {found}, but {asked} was asked for: remove it or choose another folder")
        return whole
    if whole.exists():
        raise ValueError(f"{whole} exists but has no manifest.json: remove it or choose another folder")

    part = whole.with_name(domain + ".partial")
    part.mkdir(parents=True, exist_ok=True)
    _keep_or_clear(part, asked)
    scenes = {split: world.scenes(count, split) for split, count in n.items()}
    every = [scene for group in scenes.values() for scene in group]
    lines = "".join(to_json(scene) + "\n" for scene in every)
    (part / "scenes.jsonl").write_text(lines)
    boxes = _pictures(
        part, every, size, png, tqdm(total=len(every), disable=not progress, desc=domain, file=sys.stdout)
    )
    _write_json(part, domain, scenes, boxes, size)
    (part / "progress.json").unlink()
    (part / "boxes.npy").unlink()
    digest = hashlib.sha256(lines.encode()).hexdigest()
    (part / "manifest.json").write_text(json.dumps(asked | {"scenes_sha256": digest}, indent=1) + "\n")
    os.replace(part, whole)
    return whole


def _keep_or_clear(part: Path, asked: dict) -> None:
    """Go on only with a half-made folder of the same settings."""
    state = part / "progress.json"
    if not state.exists() or json.loads(state.read_text())["asked"] != asked:
        for name in ("images.npy", "boxes.npy"):
            (part / name).unlink(missing_ok=True)
        state.write_text(json.dumps({"asked": asked, "done": 0}))


def _pictures(part: Path, scenes: list[Scene], size: int, png: bool, bar) -> np.ndarray:
    """Draw what is missing; returns boxes and areas (N, 4, 5) of all objects."""
    state = json.loads((part / "progress.json").read_text())
    # A file is opened for going on only if the note says that it was begun in full.
    mode = "r+" if state["done"] else "w+"
    boxes = np.lib.format.open_memmap(part / "boxes.npy", mode, np.float32, (len(scenes), 4, 5))
    images = None
    if png:
        from PIL import Image

        (part / "images").mkdir(exist_ok=True)
    else:
        images = np.lib.format.open_memmap(part / "images.npy", mode, np.uint8, (len(scenes), size, size, 3))
    bar.update(state["done"])
    for at in range(state["done"], len(scenes), _CHUNK):
        chunk = scenes[at : at + _CHUNK]
        drawn = draw(chunk, size).permute(0, 2, 3, 1).numpy()
        seen = masks(chunk, size)
        area = seen.flatten(2).sum(-1, keepdim=True).float()
        boxes[at : at + len(chunk)] = torch.cat((boxes_of(seen), area), -1).numpy()
        if png:
            for k, picture in enumerate(drawn):
                Image.fromarray(picture).save(part / "images" / _file(at + k), optimize=True)
        else:
            images[at : at + len(chunk)] = drawn
            images.flush()
        boxes.flush()
        note = part / "progress.tmp"
        note.write_text(json.dumps(state | {"done": at + len(chunk)}))
        os.replace(note, part / "progress.json")
        bar.update(len(chunk))
    bar.close()
    return np.array(boxes)


def _file(row: int) -> str:
    return f"{row:06d}.png"


def _dump(path: Path, data: dict) -> None:
    path.write_text(json.dumps(data, separators=(",", ":")) + "\n")


def _write_json(part: Path, domain: str, scenes: dict[str, list[Scene]], boxes: np.ndarray, size: int) -> None:
    info = {"description": f"vlnotes picture world, domain {domain}", "version": str(VERSION)}
    categories = [{"id": SHAPES.index(s) + 1, "name": s} for s in domain_named(domain).shapes]
    karpathy, row, sentence, box = [], 0, 0, 0
    for split, group in scenes.items():
        images, said, things = [], [], []
        for scene in group:
            images.append({"id": row, "file_name": _file(row), "height": size, "width": size})
            entry = {
                "filepath": "images",
                "filename": _file(row),
                "imgid": row,
                "cocoid": row,
                "split": split,
            }
            entry |= {"sentids": [], "sentences": []}
            for c in captions(scene):
                said.append({"id": sentence, "image_id": row, "caption": c.text})
                said[-1] |= {"kind": c.kind, "noise": c.noise, "predicate": c.predicate}
                entry["sentids"].append(sentence)
                words = {"raw": c.text, "tokens": list(c.tokens), "imgid": row, "sentid": sentence}
                entry["sentences"].append(words)
                sentence += 1
            for k, thing in enumerate(scene.objects):
                left, top, right, bottom, area = boxes[row, k].astype(int).tolist()
                if area:  # what the cloud hides has no box
                    things.append({"id": box, "image_id": row, "category_id": SHAPES.index(thing.shape) + 1})
                    things[-1] |= {
                        "bbox": [left, top, right - left, bottom - top],
                        "area": area,
                        "iscrowd": 0,
                    }
                    things[-1] |= {"colour": thing.colour, "size": thing.size, "texture": thing.texture}
                    box += 1
            karpathy.append(entry)
            row += 1
        _dump(part / f"captions_{split}.json", {"info": info, "images": images, "annotations": said})
        boxed = {"info": info, "images": images, "annotations": things, "categories": categories}
        _dump(part / f"instances_{split}.json", boxed)
    _dump(part / f"dataset_{domain}.json", {"images": karpathy, "dataset": domain})


def ceilings(domain: str = "paper", n: int = 1000, split: str = "test", seed: int = 0) -> dict[str, dict[str, float]]:
    """How well retrieval could be done at all: a perfect model must still guess among pictures of which a
    text is true.

    ceiling R@1 = mean over captions of 1 / (number of pictures in the gallery for which the caption is true)

    Args:
        domain: name of a domain.
        n: gallery size.
        split: which split.
        seed: seed of the `World`.

    Returns:
        Mapping from caption kind to "true_images" (mean over captions), "distinct" (share of texts that occur
        once) and "ceiling" (strict text-to-image R@1).
    """
    scenes = World(domain, seed).scenes(n, split)
    by_kind: dict[str, list[Caption]] = {kind: [] for kind in KINDS}
    for scene in scenes:
        for c in captions(scene):
            by_kind[c.kind].append(c)
    table = {}
    for kind, said in by_kind.items():
        true = truth(scenes, said).sum(0).double()  # (M,)
        texts = [c.text for c in said]
        counts = {t: 0 for t in texts}
        for t in texts:
            counts[t] += 1
        table[kind] = {
            "true_images": true.mean().item(),
            "distinct": sum(counts[t] == 1 for t in texts) / len(texts),
            "ceiling": (1 / true).mean().item(),
        }
    return table


def contact_sheet(path: str | Path, columns: int = 7, rows: int = 1, zoom: int = 2) -> None:
    """Write one PNG with the first training scenes of every domain, `rows` rows of 64-pixel pictures for
    each.

    Args:
        path: where the PNG goes.
        columns: pictures a row.
        rows: rows a domain.
        zoom: every pixel is repeated this often, so that one sees what a network sees.
    """
    from PIL import Image

    scenes = [scene for name in DOMAINS for scene in World(name).scenes(columns * rows)]
    pictures = draw(scenes, 64).unflatten(0, (-1, columns))  # (rows, columns, 3, 64, 64)
    sheet = pictures.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)  # (rows * 64, columns * 64, 3)
    sheet = sheet.repeat_interleave(zoom, 0).repeat_interleave(zoom, 1)
    Image.fromarray(sheet.numpy()).save(path, optimize=True)
