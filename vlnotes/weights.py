"""Small trained weights that ship with the course, and how to make each of them again.

`load(name)` reads a folder of `data/weights`; `python -m vlnotes weights make NAME` trains what is in it from nothing
but a seed. model.json beside the weights says how they were made and what they score.
"""

import hashlib
import json
import os
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from platform import python_version
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlnotes import __version__, world
from vlnotes.albef import ALBEF
from vlnotes.clip import CLIP, encode_images, encode_texts
from vlnotes.codis import CODIS
from vlnotes.metrics import any_true_recall
from vlnotes.records import records_file
from vlnotes.scoring import binding_scores, expression_scores, word_scores
from vlnotes.text import check_vocabulary, encode, load_tokenizer, save_tokenizer, train_tokenizer
from vlnotes.train import pair_batches, train

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

LARGEST = 4 * 2**20  # bytes a file of weights may have
KS = (1, 10)


@dataclass(frozen=True)
class Recipe:
    """Everything that makes one set of weights what it is.

    Args:
        about: one line for people.
        domain: of the pictures.
        pictures: how many scenes of train are drawn; all five kinds of captions go with them.
        size: pixels a side.
        length: L, most tokens a caption.
        batch_size: B.
        steps: of training.
        learning_rate: of AdamW, at its peak.
        seed: of the initial weights and the shuffles; the world's own seed is 0.
        vocabulary: scenes of every domain whose captions the tokenizer counts.
        gallery: pictures of test for the recorded scores.
        part: pictures of test for the scores that `check` looks at again.
        method: "clip", "albef" or "codis".
        start: the weights that are taken over, the towers of a CLIP or all of an ALBEF; "" for random ones. Their
            tokenizer is taken, too.
        neighbours: share of the scenes, in [0, 1], that are followed by a one-edit neighbour, which shares their
            batches; these pictures come on top of `pictures`.
        options: more keyword arguments of the model's `tiny`.
    """

    about: str
    domain: str = "paper"
    pictures: int = 20_000
    size: int = 64
    length: int = 40
    batch_size: int = 128
    steps: int = 6000
    learning_rate: float = 3e-3
    seed: int = 0
    vocabulary: int = 1000
    gallery: int = 1000
    part: int = 200
    method: str = "clip"
    start: str = ""
    neighbours: float = 0.0
    options: dict = field(default_factory=dict)


RECIPES = {
    "clip-paper": Recipe("CLIP.tiny on the paper domain, where the streams over domains begin"),
    "albef-paper": Recipe(
        "ALBEF.tiny on the paper domain, from the towers of clip-paper; every other scene has a neighbour in its batch",
        method="albef",
        start="clip-paper",
        neighbours=0.5,
        pictures=16_000,
        batch_size=48,
        steps=4800,
        learning_rate=1e-3,
        options={"layers": 3, "mask_probability": 0.3, "ramp_steps": 400},
    ),
    "codis-paper": Recipe(
        "CODIS.tiny on the paper domain, from albef-paper: alignment in four directions and a codebook on top",
        method="codis",
        start="albef-paper",
        neighbours=0.5,
        pictures=16_000,
        batch_size=48,
        steps=600,
        learning_rate=5e-4,
        options={"layers": 3, "mask_probability": 0.3, "ramp_steps": 100, "codewords": 64},
    ),
}
MODELS = {"clip": CLIP, "albef": ALBEF, "codis": CODIS}


def folder_of(name: str, root: str | Path | None = None) -> Path:
    """Where the weights of a name live.

    Args:
        name: a key of `RECIPES`.
        root: default `data/weights` of the course, see `vlnotes.records.records_file`.

    Returns:
        root / name; it need not be there.

    Raises:
        ValueError: an unknown name.
    """
    if name not in RECIPES:
        raise ValueError(f"there are no weights {name!r}; there are {', '.join(RECIPES)}")
    return (records_file().parent / "weights" if root is None else Path(root)) / name


def load(
    name: str, from_scratch: bool = False, root: str | Path | None = None
) -> "tuple[CLIP | ALBEF | CODIS, PreTrainedTokenizerFast]":
    """The trained model and its tokenizer.

    Args:
        name: a key of `RECIPES`.
        from_scratch: train anew, into the cache folder, in place of reading what ships. That takes minutes and shows
            a bar; a training that was stopped goes on.
        root: see `folder_of`.

    Returns:
        The model, in eval mode on the CPU, and the tokenizer, which knows the words of all domains.

    Raises:
        ValueError: an unknown name, or weights that are missing, damaged or beside the tokenizer of others; names the
            command that makes them.
    """
    folder = folder_of(name, root)
    if from_scratch:
        if RECIPES[name].start:
            load(RECIPES[name].start, from_scratch=True)
        folder = make(name, world.cache_folder() / "weights")
    try:
        model, tokenizer = MODELS[RECIPES[name].method].load(folder), load_tokenizer(folder / "tokenizer")
        check_vocabulary(tokenizer, model.built["vocab_size"])
    except ValueError as error:
        raise ValueError(f"{error}. `python -m vlnotes weights make {name}` makes them again") from error
    return model, tokenizer


def make(
    name: str, root: str | Path | None = None, *, device: str | None = None, progress: bool = True, **changes
) -> Path:
    """Train the weights of a name from nothing, score them on test, and write them with a record of both.

    A training that was stopped goes on where it was: its checkpoint is in the cache folder until all is written.

    Args:
        name: a key of `RECIPES`.
        root: see `folder_of`.
        device: see `vlnotes.train.pick_device`.
        progress: show bars, and say what was made.
        changes: fields of `Recipe`, for weights of another size or length of training.

    Returns:
        The folder, with weights.safetensors, model.json and tokenizer/.

    Raises:
        ValueError: an unknown name, weights of more than 4 MB.
        TypeError: an unknown field.
    """
    folder = folder_of(name, root)
    recipe = replace(RECIPES[name], **changes)
    model, tokenizer = _begun(recipe, root)
    if sum(p.numel() * p.element_size() for p in _kept(model).values()) > LARGEST - 2**16:  # and a header
        raise ValueError(f"weights {name!r} would be over {LARGEST / 2**20:.0f} MB; ship a smaller model")
    started = time.perf_counter()
    images, texts, owner = _drawn(recipe, progress)
    drawing = time.perf_counter() - started
    tokens, together = encode(tokenizer, texts, recipe.length), 2 if recipe.neighbours else 1
    batches = pair_batches(images, tokens, owner, recipe.batch_size, recipe.seed, together=together)
    digest = hashlib.sha256(json.dumps([name, asdict(recipe), world.VERSION]).encode()).hexdigest()[:12]
    checkpoint = world.cache_folder() / "weights" / f"{name}-{digest}.unfinished.safetensors"
    history = train(
        model,
        batches,
        steps=recipe.steps,
        learning_rate=recipe.learning_rate,
        device=device,
        seed=recipe.seed,
        checkpoint=checkpoint,
        checkpoint_seconds=30.0,
        settings={"weights": name, "recipe": digest},
        progress=progress,
    )
    model.to("cpu")
    started = time.perf_counter()
    others = [domain for domain in world.DOMAINS if domain != recipe.domain]
    found = {recipe.domain: scores(model, tokenizer, recipe.domain, recipe.gallery, recipe.size, recipe.length)}
    for domain in others:
        found[domain] = scores(model, tokenizer, domain, recipe.gallery, recipe.size, recipe.length, ("full",))
    part = scores(model, tokenizer, recipe.domain, recipe.part, recipe.size, recipe.length)
    looked = _looked(model, tokenizer, recipe)
    record = {
        "made_by": f"python -m vlnotes weights make {name}",
        "recipe": asdict(recipe),
        "made_with": _versions(),
        "machine": {key: history.attrs[key] for key in ("device", "precision", "threads")},
        "seconds": {
            "drawing": round(drawing, 1),
            "training": round(float(history["seconds"].iloc[-1]), 1),
            "scoring": round(time.perf_counter() - started, 1),
        },
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "loss": {"first": round(history["loss"].iloc[0], 4), "last 50": round(history["loss"].iloc[-50:].mean(), 4)},
        "temperature": round(float(model.temperature.detach()), 4),
        "scores": found,
        "scores_of_part": part,
        **looked,
    }
    _write(model, tokenizer, folder, record)
    checkpoint.unlink(missing_ok=True)
    if progress:
        print(f"{folder}: {_line(record)}")
    return folder


def world_tokenizer(scenes: int = 1000) -> "PreTrainedTokenizerFast":
    """A tokenizer that knows every word of every domain and of its tasks, whichever of them a model sees first.

    Args:
        scenes: of train, of each domain; all their captions are counted, with all synonyms, the prompts and the
            words of questions and answers, too.

    Returns:
        A word-level tokenizer, the same one for the same number.

    Raises:
        ValueError: scenes below 1.
    """
    texts = []
    for domain in world.DOMAINS:
        for scene in world.World(domain).scenes(scenes):
            texts += [caption.text for caption in world.captions(scene, synonyms=3)]
        for of in ("colour", "shape", "colour-shape"):
            texts += world.prompts(domain, of).values()
        texts += world.task_texts(domain)
    return train_tokenizer(texts)


def scores(
    model: CLIP,
    tokenizer: "PreTrainedTokenizerFast",
    domain: str = "paper",
    gallery: int = 1000,
    size: int = 64,
    length: int = 40,
    kinds: tuple[str, ...] = world.KINDS,
) -> dict[str, dict[str, float]]:
    """Any-true recall in the first pictures of test, for each kind of caption.

    Args:
        model: any with `image_features` and `text_features`.
        tokenizer: the one that it learnt with.
        domain: of the pictures.
        gallery: how many.
        size: pixels a side.
        length: L, most tokens a caption.
        kinds: of captions.

    Returns:
        kind -> {"i2t@1": share, "i2t@10": ..., "t2i@1": ..., "t2i@10": ...}, in [0, 1], to four decimals.
    """
    data = world.pairs(world.World(domain).scenes(gallery, "test"), kinds, size)
    images = encode_images(model, data.images)
    table = {}
    for kind in kinds:
        said = [caption for caption in data.captions if caption.kind == kind]
        texts = encode_texts(model, encode(tokenizer, [caption.text for caption in said], length))
        found = any_true_recall(images @ texts.T, world.truth(data.scenes, said), ks=KS)
        table[kind] = {key: round(share, 4) for key, share in found.items()}
    return table


def read_record(name: str, root: str | Path | None = None) -> dict:
    """What model.json says: the recipe, versions, machine, seconds and scores.

    Args:
        name: a key of `RECIPES`.
        root: see `folder_of`.

    Returns:
        The record.

    Raises:
        ValueError: it is not there, or no JSON; names the command that makes it.
    """
    file = folder_of(name, root) / "model.json"
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: {error}; `python -m vlnotes weights make {name}` makes it") from error


def main(action: str, name: str | None = None, out: str | Path | None = None) -> int:
    """`python -m vlnotes weights list | make [NAME] [--out FOLDER]`.

    Args:
        action: list or make.
        name: which weights; None means all.
        out: the folder that holds a folder a name; default `data/weights`.

    Returns:
        0.
    """
    for one in RECIPES if name is None else (name,):
        folder = folder_of(one, out)
        if action == "make":
            make(one, out)
        else:
            there = (folder / "model.json").is_file()
            print(f"{one:<12} {RECIPES[one].about}")
            print(f"{'':<12} {_line(read_record(one, out)) if there else f'not there: {folder}'}")
    return 0


def _drawn(recipe: Recipe, progress: bool) -> tuple[Tensor, list[str], Tensor]:
    """Pictures (N, 3, size, size), their captions, and the picture of each (M,)."""
    from tqdm import tqdm

    scenes = world.World(recipe.domain).scenes(recipe.pictures)
    paired = 2 * round(recipe.neighbours * len(scenes) / 2)
    scenes = world.beside_neighbours(scenes[:paired]) + scenes[paired:]
    images, texts, owner = [], [], []
    bar = tqdm(total=len(scenes), desc="pictures", disable=not progress, file=sys.stdout, ncols=100)
    for at in range(0, len(scenes), 500):
        data = world.pairs(scenes[at : at + 500], size=recipe.size)
        images.append(data.images)
        texts += data.texts
        owner.append(data.text_to_image + at)
        bar.update(len(data.images))
    bar.close()
    return torch.cat(images), texts, torch.cat(owner)


def _begun(recipe: Recipe, root: str | Path | None) -> tuple[CLIP | ALBEF, "PreTrainedTokenizerFast"]:
    """The model before its first step, and its tokenizer."""
    start, tokenizer = None, None
    if recipe.start:
        there = folder_of(recipe.start, root).is_dir()  # beside what is to be made, else what ships
        start, tokenizer = load(recipe.start, root=root if there else None)
    tokenizer = tokenizer or world_tokenizer(recipe.vocabulary)
    model = MODELS[recipe.method].tiny(len(tokenizer), seed=recipe.seed, **recipe.options)
    return model if start is None else model.start_from(start), tokenizer


def _kept(model: CLIP | ALBEF) -> dict[str, Tensor]:
    """The tensors that are written."""
    return model.compact_state() if isinstance(model, ALBEF) else model.state_dict()


def _looked(model: CLIP | ALBEF, tokenizer, recipe: Recipe) -> dict[str, dict]:
    """Scores of what a dual encoder is weak at or cannot do: binding; hidden words and pointing."""
    test = world.World(recipe.domain).scenes(recipe.gallery, "test", neighbours=False)
    shape = {"size": recipe.size, "length": recipe.length}
    found = {"binding": binding_scores(model, tokenizer, test, **shape)}
    if isinstance(model, ALBEF):
        found["words"] = word_scores(model, tokenizer, test, **shape)
        found["words"] |= word_scores(model, tokenizer, test, ("relation",), kind="rel", **shape)
        pointed = expression_scores(model, tokenizer, test[: recipe.part], **shape)
        found["pointing"] = {row["way"]: row["pointing"] for row in pointed}
    return json.loads(json.dumps(found), parse_float=lambda text: round(float(text), 4))


def _versions() -> dict[str, str]:
    names = ("torch", "transformers", "tokenizers", "numpy")
    found = {name: metadata.version(name).split("+")[0] for name in names}
    return {"vlnotes": __version__, "world": str(world.VERSION), "python": python_version(), **found}


def _write(model: CLIP | ALBEF, tokenizer, folder: Path, record: dict) -> None:
    """Into a folder beside it, which then takes its place: old weights never stand beside a new tokenizer."""
    import shutil

    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    save_tokenizer(tokenizer, part / "tokenizer")
    model.save(part, **{"compact": True} if isinstance(model, ALBEF) else {}, **record)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)


def _line(record: dict) -> str:
    recipe, own = record["recipe"], record["scores"][record["recipe"]["domain"]]["full"]
    return (
        f"{record['parameters']:,} weights, {recipe['pictures']:,} pictures, {recipe['steps']:,} steps in "
        f"{record['seconds']['training']:.0f} s on {record['machine']['device']}; full captions, {recipe['gallery']:,} "
        f"test pictures: t2i@1 {own['t2i@1']:.1%}, t2i@10 {own['t2i@10']:.1%}"
    )
