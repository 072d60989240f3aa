"""From a path with captions to a trained model and an honest table: what `python -m vlnotes train` does."""

import hashlib
import json
import os
import time
from pathlib import Path

import torch
from torch import Tensor

from vlnotes import __version__, metrics
from vlnotes.clip import CLIP, encode_images, encode_texts
from vlnotes.datasets import CaptionDataset, PairDataset, caption_targets, load_pictures, open_captions
from vlnotes.moco import MoCo, probe_features
from vlnotes.text import encode, save_tokenizer, train_tokenizer, unknown_rate
from vlnotes.train import epoch_indices, pick_device, pick_precision, train, trim_padding

IN_MEMORY = 4 * 2**30  # bytes of pictures that are kept in memory rather than read again every epoch
KS = (1, 5, 10)


def train_on(
    path: str | Path,
    out: str | Path,
    *,
    minutes: float | None = 5.0,
    steps: int | None = None,
    image: str = "conv",
    size: int = 64,
    length: int = 32,
    batch_size: int = 128,
    learning_rate: float = 3e-3,
    device: str | None = None,
    seed: int = 0,
    skip_bad: bool = False,
    resume: bool = True,
    progress: bool = True,
) -> dict:
    """Train a small CLIP on pictures with captions, and say how good it is beside chance and a simple baseline.

    Args:
        path: anything that `open_captions` reads.
        out: folder for weights.safetensors, model.json, the tokenizer, history.csv and record.json.
        minutes: time budget of the training; None for no limit (then `steps` is needed).
        steps: number of steps; None for as many as fit the minutes.
        image: the image tower, see `CLIP.tiny`.
        size: pixels a side.
        length: L, tokens a caption; longer ones are cut.
        batch_size: B; made smaller where the data has fewer training pictures.
        learning_rate: of AdamW, at its peak.
        device: see `vlnotes.train.pick_device`.
        seed: of the weights, the shuffles and the split, where the data has none.
        skip_bad: go on without entries that cannot be used; they are counted and listed.
        resume: go on with an unfinished run of the same settings in `out`.
        progress: print what happens and show bars.

    Returns:
        The record that is also written to record.json: settings, data, times and the scores (shares in [0, 1]).

    Raises:
        ValueError: data that cannot be used, named by file and entry.
    """
    if batch_size < 2 or size < 16 or length < 3:
        raise ValueError(f"expected batch_size >= 2, size >= 16, length >= 3; got {batch_size}, {size}, {length}")
    say = print if progress else (lambda *words: None)
    out = Path(out)
    parts, how, images, test_images = _opened(path, skip_bad, seed, size, progress)
    fit, test = parts["train"], parts["test"]

    words = [caption for captions in fit.captions for caption in captions]
    letters = len({letter for caption in words for letter in caption})  # some scripts have thousands
    tokenizer = train_tokenizer(words, vocab_size=8000 + 2 * letters, kind="wordpiece")
    unknown = unknown_rate(tokenizer, [c for captions in test.captions for c in captions])
    say(f"words  {len(tokenizer)} pieces from the training captions; {unknown:.1%} of the test tokens are unknown")

    model = CLIP.tiny(len(tokenizer), image=image, seed=seed)
    batch_size = min(batch_size, len(fit))
    batches = batches_of(PairDataset(fit, tokenizer, images, size=size, length=length), batch_size, seed)

    checkpoint = out / "unfinished.safetensors"
    if not resume:
        checkpoint.unlink(missing_ok=True)
    elif checkpoint.exists():
        say(f"going on with the unfinished run in {checkpoint}")
    device = pick_device(device)
    precision = pick_precision(device)
    history = train(
        model,
        batches,
        steps=steps,
        minutes=minutes,
        learning_rate=learning_rate,
        device=device,
        precision=precision,
        seed=seed,
        checkpoint=checkpoint,
        checkpoint_seconds=30.0,
        settings={"image": image, "size": size, "length": length, "batch_size": batch_size, "data": _digest(fit)},
        workers=0 if images is not None else 4,
        progress=progress,
    )

    start = time.perf_counter()
    scores = _scores(model, tokenizer, fit, test, images, test_images, size, length)
    record = {
        "vlnotes": __version__,
        "torch": torch.__version__,
        "method": "clip",
        "data": {
            "name": Path(path).name,
            "layout": fit.layout,
            **{n: len(p) for n, p in parts.items()},
            "split": how,
        },
        "settings": {
            **{"image": image, "size": size, "length": length, "batch_size": batch_size},
            **{"learning_rate": learning_rate, "seed": seed, "precision": precision},
        },
        "machine": {"device": device.type, "threads": torch.get_num_threads()},
        "steps": len(history),
        "epochs": round(len(history) * batch_size / len(fit), 2),
        "seconds": {"training": float(history["seconds"].iloc[-1]), "scoring": time.perf_counter() - start},
        "parameters": sum(p.numel() for p in model.parameters()),
        "unknown_test_tokens": unknown,
        "skipped": [list(item) for item in dict.fromkeys(item for part in parts.values() for item in part.skipped)],
        "scores": scores,
    }
    model.save(out)
    save_tokenizer(tokenizer, out / "tokenizer")
    history.to_csv(out / "history.csv", index=False)
    (out / "record.json").write_text(json.dumps(record, indent=1) + "\n")
    checkpoint.unlink(missing_ok=True)
    say(f"\n{scores_table(scores)}\n")
    if record["epochs"] > 100:
        times = f"every picture was seen {record['epochs']:.0f} times"
        say(f"note   {times}: so small a set is learnt by heart, not understood\n")
    say(
        f"{len(history)} steps ({record['epochs']} epochs) in {record['seconds']['training']:.0f} s on {device.type}, "
        f"{precision}; gallery: {scores['gallery']['pictures']} pictures, {scores['gallery']['captions']} captions\n"
        f"weights, tokenizer, history.csv and record.json are in {out}"
    )
    return record


def train_moco_on(
    path: str | Path,
    out: str | Path,
    *,
    minutes: float | None = 5.0,
    steps: int | None = None,
    image: str = "conv",
    size: int = 64,
    batch_size: int = 128,
    learning_rate: float = 3e-3,
    device: str | None = None,
    seed: int = 0,
    skip_bad: bool = False,
    resume: bool = True,
    progress: bool = True,
) -> dict:
    """Train a small MoCo on pictures alone; where the data has concepts, say how well neighbours share them.

    The queue holds at most half of the training pictures, so that it seldom holds a query's own old key.

    Args:
        path: anything that `open_captions` reads; the captions are not used.
        out: folder for weights.safetensors, model.json, history.csv and record.json.
        minutes: time budget of the training; None for no limit (then `steps` is needed).
        steps: number of steps; None for as many as fit the minutes.
        image: the image tower, see `MoCo.tiny`.
        size: pixels a side.
        batch_size: B; made smaller where the data has fewer training pictures.
        learning_rate: of AdamW, at its peak.
        device: see `vlnotes.train.pick_device`.
        seed: of the weights, the shuffles, the views and the split, where the data has none.
        skip_bad: go on without entries that cannot be used; they are counted and listed.
        resume: go on with an unfinished run of the same settings in `out`.
        progress: print what happens and show bars.

    Returns:
        The record that is also written to record.json; `scores` is {} for data without concepts, else the
        `neighbour_scores` of the test pictures by the trained model, by the untrained one and by colour histograms.

    Raises:
        ValueError: data that cannot be used, named by file and entry.
    """
    if batch_size < 2 or size < 16:
        raise ValueError(f"expected batch_size >= 2 and size >= 16; got {batch_size}, {size}")
    say = print if progress else (lambda *words: None)
    out = Path(out)
    parts, how, images, test_images = _opened(path, skip_bad, seed, size, progress)
    fit, test = parts["train"], parts["test"]
    batch_size = min(batch_size, len(fit))
    model = MoCo.tiny(image=image, queue_size=min(2048, len(fit) // 2), seed=seed)

    def batch_at(step: int) -> dict[str, Tensor]:
        ids = epoch_indices(step, len(fit), batch_size, seed)
        pictures = load_pictures(fit, size, ids.tolist(), workers=1) if images is None else images[ids]
        return {"image": pictures, "ids": ids}

    labels = _concept_numbers(test)
    scores = {}
    if labels is not None:
        scores["untrained"] = neighbour_scores(probe_features(model, test_images), labels)
        scores["colours"] = neighbour_scores(metrics.colour_histogram(test_images).sqrt(), labels)

    checkpoint = out / "unfinished.safetensors"
    if not resume:
        checkpoint.unlink(missing_ok=True)
    elif checkpoint.exists():
        say(f"going on with the unfinished run in {checkpoint}")
    device = pick_device(device)
    precision = pick_precision(device)
    settings = {"image": image, "size": size, "batch_size": batch_size}
    history = train(
        model,
        batch_at,
        steps=steps,
        minutes=minutes,
        learning_rate=learning_rate,
        device=device,
        precision=precision,
        seed=seed,
        checkpoint=checkpoint,
        checkpoint_seconds=30.0,
        settings={"method": "moco", **settings, "data": _digest(fit)},
        workers=0 if images is not None else 4,
        progress=progress,
    )
    if labels is not None:
        scores = {"MoCo": neighbour_scores(probe_features(model, test_images), labels), **scores}
    record = {
        "vlnotes": __version__,
        "torch": torch.__version__,
        "method": "moco",
        "data": {
            "name": Path(path).name,
            "layout": fit.layout,
            **{n: len(p) for n, p in parts.items()},
            "split": how,
        },
        "settings": {**settings, **model.built, "learning_rate": learning_rate, "precision": precision},
        "machine": {"device": device.type, "threads": torch.get_num_threads()},
        "steps": len(history),
        "epochs": round(len(history) * batch_size / len(fit), 2),
        "seconds": {"training": float(history["seconds"].iloc[-1])},
        "parameters": sum(p.numel() for p in model.student.parameters()),
        "skipped": [list(item) for item in dict.fromkeys(item for part in parts.values() for item in part.skipped)],
        "last": {name: float(history[name].iloc[-50:].mean()) for name in ("loss", "accuracy")},
        "scores": scores,
    }
    model.save(out)
    history.to_csv(out / "history.csv", index=False)
    (out / "record.json").write_text(json.dumps(record, indent=1) + "\n")
    checkpoint.unlink(missing_ok=True)
    for name, row in scores.items():
        line = f"{row['nearest']:6.1%} (chance {row['chance']:.1%})"
        say(f"{name:<10} the nearest other test picture shows the same concept: {line}")
    if not scores:
        say("no two test pictures share a concept, so neighbours cannot be scored")
    say(
        f"{len(history)} steps ({record['epochs']} epochs) in {record['seconds']['training']:.0f} s on {device.type}, "
        f"{precision}; a picture finds itself among {model.queue_size} others: {record['last']['accuracy']:.1%}\n"
        f"weights, history.csv and record.json are in {out}"
    )
    return record


def neighbour_scores(features: Tensor, labels: Tensor) -> dict[str, float]:
    """Nearest neighbours judged without a training set: does the closest other picture show the same?

    Args:
        features: (N, D) float; normalised inside.
        labels: (N,) integers; pictures whose label no other one has are candidates, but are not asked.

    Returns:
        dict(nearest, chance, pictures): two shares in [0, 1], and how many were asked.

    Raises:
        ValueError: no two pictures share a label.
    """
    same = labels[:, None] == labels  # (N, N)
    others = same.sum(1) - 1  # (N,)
    asked = others > 0
    if not bool(asked.any()):
        raise ValueError(f"labels: no two of {len(labels)} pictures share one, so no neighbour can be right")
    features = torch.nn.functional.normalize(features.float(), dim=1)
    cosine = (features @ features.T).fill_diagonal_(-torch.inf)  # (N, N)
    right = same.gather(1, cosine.argmax(1, keepdim=True)).squeeze(1)[asked]
    chance = others[asked].float().mean() / (len(labels) - 1)
    return {"nearest": float(right.float().mean()), "chance": float(chance), "pictures": int(asked.sum())}


def scores_table(scores: dict) -> str:
    """The scores as text: one line a way of counting, percentages.

    Args:
        scores: `train_on(...)["scores"]`.

    Returns:
        An aligned table.
    """
    columns = [f"{way}@{k}" for way in ("i2t", "t2i") for k in KS]
    lines = [" " * 24 + "".join(f"{c:>9}" for c in columns)]
    for name, row in scores.items():
        if name != "gallery":
            name = {"colours": "  colour histograms", "chance": "  chance"}.get(name.partition(", ")[2], name)
            lines.append(f"{name:<24}" + "".join(f"{100 * row[c]:8.1f}%" for c in columns))
    return "\n".join(lines)


def _opened(path, skip_bad: bool, seed: int, size: int, progress: bool):
    """Training and test part, how they were made, and their pictures (None for training pictures that do not fit)."""
    say = print if progress else (lambda *words: None)
    parts, how = _parts(path, skip_bad, seed)
    for name, part in parts.items():
        say(f"{name:<6} {part.report()}")
    say(f"split  {how}")
    fit, test = parts["train"], parts["test"]
    # All pictures are opened now: a bad one should stop us, or be left out, before the training and not after it.
    fits = 3 * size * size * len(fit) <= IN_MEMORY
    images, test_images = load_pictures(fit, size) if fits else None, load_pictures(test, size)
    if not fits:
        fit.verify(progress)
    if len(fit) < 2:
        raise ValueError(f"{path}: {len(fit)} training pictures; contrast needs at least 2; {how}")
    return parts, how, images, test_images


def _digest(fit: CaptionDataset) -> str:
    """A short name for exactly this data, so that a run never goes on with another."""
    sizes = [os.path.getsize(file) for file in fit.files]
    return hashlib.sha256(json.dumps([fit.ids, fit.captions, sizes]).encode()).hexdigest()[:12]


def _concept_numbers(data: CaptionDataset) -> Tensor | None:
    """One number a picture, equal where pictures show the same; None where no two do."""
    if not data.concepts:
        return None
    labels = caption_targets(data).image_concept  # (N,)
    return labels if len(labels.unique()) < len(labels) else None


def _parts(path, skip_bad: bool, seed: int) -> tuple[dict[str, CaptionDataset], str]:
    """Training and test part: those of the data, or a split by concept (by picture where there are none)."""
    whole = open_captions(path, skip_bad=skip_bad)
    names = set(whole.splits)

    def part(name: str) -> CaptionDataset:
        return whole.subset([index for index, split in enumerate(whole.splits) if split == name])

    held = [name for name in ("test", "val") if name in names]
    if "train" in names and held:
        return {"train": part("train"), "test": part(held[0])}, f"as in the data: train, {held[0]}"
    if whole.skipped and names <= {"test", "val"}:
        raise ValueError(
            f"{path}: only {sorted(names)} is left after skipping {len(whole.skipped)}; nothing to train on"
        )
    keys = whole.concepts or list(range(len(whole)))
    kinds = sorted(set(keys), key=str)
    dice = torch.randperm(len(kinds), generator=torch.Generator().manual_seed(seed)).tolist()
    held = {kinds[i] for i in dice[: max(1, len(kinds) // 5)]}
    chosen = [i for i, key in enumerate(keys) if key in held]
    others = [i for i, key in enumerate(keys) if key not in held]
    unit = "concept" if whole.concepts else "picture"
    how = f"ours: a fifth held out by {unit}, seed {seed} (the data has {sorted(names)})"
    return {"train": whole.subset(others), "test": whole.subset(chosen)}, how


def batches_of(pairs: PairDataset, batch_size: int, seed: int = 0):
    """Batches as a function of the step, from memory or from disk.

    Args:
        pairs: pictures with tokenised captions.
        batch_size: B.
        seed: of the shuffles and of the choice among a picture's captions.

    Returns:
        A function step -> batch, for `vlnotes.train.train`.
    """

    def batch_at(step: int) -> dict[str, Tensor]:
        dice = torch.Generator().manual_seed(seed * 7_368_787 + step)
        return trim_padding(pairs.batch(epoch_indices(step, len(pairs), batch_size, seed), generator=dice))

    return batch_at


def _scores(model, tokenizer, fit, test, fit_images, images, size: int, length: int) -> dict:
    """Recall of the model, of chance and of the colour-histogram baseline on the test part."""
    targets = caption_targets(test)
    image_features = encode_images(model, images)
    text_features = encode_texts(model, encode(tokenizer, targets.captions, length))
    owner = targets.text_to_image
    scores = {"by picture": metrics.recall_from_features(image_features, text_features, owner, ks=KS)}
    if fit_images is None:  # the baseline needs no more than a few thousand pictures
        few = torch.randperm(len(fit), generator=torch.Generator().manual_seed(0))[:5000].sort().values.tolist()
        fit = fit.subset(few)
        fit_images = load_pictures(fit, size)
    fit_targets = caption_targets(fit)
    baseline_images, baseline_texts = metrics.histogram_baseline(
        fit_images, fit_targets.captions, fit_targets.text_to_image, images, targets.captions
    )
    scores["by picture, colours"] = metrics.recall_from_features(baseline_images, baseline_texts, owner, ks=KS)
    scores["by picture, chance"] = metrics.chance_recall(len(images), owner, ks=KS)
    if test.concepts:
        same = metrics.truth_from_labels(targets.image_concept, targets.text_concept)
        scores["by concept"] = metrics.any_true_recall(image_features @ text_features.T, same, ks=KS)
        scores["by concept, colours"] = metrics.any_true_recall(baseline_images @ baseline_texts.T, same, ks=KS)
        scores["by concept, chance"] = metrics.chance_recall(truth=same, ks=KS)
    scores["gallery"] = {"pictures": len(images), "captions": len(targets.captions)}
    return scores
