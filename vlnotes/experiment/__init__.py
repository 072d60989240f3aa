"""From a path with captions to a trained model and an honest table: what `python -m vlnotes train` does."""

from pathlib import Path

from torch import Tensor

from vlnotes import metrics
from vlnotes.albef import ALBEF
from vlnotes.clip import CLIP, encode_images, encode_texts
from vlnotes.codis import CODIS
from vlnotes.datasets import PairDataset, caption_targets, load_pictures
from vlnotes.experiment.run import Run, batches_of
from vlnotes.experiment.scoring import concept_numbers, neighbour_scores, retrieval_scores, scores_table
from vlnotes.experiment.stream import train_modx_on
from vlnotes.moco import MoCo, probe_features
from vlnotes.psd import PSD
from vlnotes.text import encode
from vlnotes.train import epoch_indices
from vlnotes.xclip import NCLIP, XCLIP

__all__ = [
    "batches_of",
    "neighbour_scores",
    "scores_table",
    "train_albef_on",
    "train_codis_on",
    "train_moco_on",
    "train_modx_on",
    "train_on",
]
HOUSEKEEPING = {  # of a history; no losses
    *("step", "loss", "temperature", "distill_weight", "unaligned_fraction", "learning_rate", "seconds")
}
RAMP = 10  # epochs after which PSD doubts most, where the number of steps is not known


def train_on(
    path: str | Path,
    out: str | Path,
    *,
    minutes: float | None = 5.0,
    steps: int | None = None,
    image: str = "conv",
    size: int = 64,
    length: int = 40,
    batch_size: int = 128,
    learning_rate: float = 3e-3,
    device: str | None = None,
    seed: int = 0,
    skip_bad: bool = False,
    resume: bool = True,
    progress: bool = True,
    kind: type[CLIP] | type[NCLIP] = CLIP,
    **options,
) -> dict:
    """Train a small CLIP on pictures with captions, and say how good it is beside chance and a simple baseline.

    The same course for what stands on CLIP's towers: `PSD`, `NCLIP` and `XCLIP`. PSD's unaligned share grows until the
    last of the `steps`; where only the minutes are known, over ten epochs.

    Args:
        path: anything that `open_captions` reads.
        out: folder for weights.safetensors, model.json, the tokenizer, history.csv and record.json.
        minutes: time budget of the training; None for no limit (then `steps` is needed).
        steps: number of steps; None for as many as fit the minutes.
        image: the image tower, see `CLIP.tiny`.
        size: pixels a side.
        length: L, tokens a caption; longer ones are cut, and counted in a warning.
        batch_size: B; made smaller where the data has fewer training pictures.
        learning_rate: of AdamW, at its peak.
        device: see `vlnotes.train.pick_device`.
        seed: of the weights, the shuffles and the split, where the data has none.
        skip_bad: go on without entries that cannot be used; they are counted and listed.
        resume: go on with an unfinished run of the same settings in `out`.
        progress: print what happens and show bars.
        kind: CLIP, PSD, NCLIP or XCLIP.
        options: more of `kind.tiny`, JSON values.

    Returns:
        The record that is also written to record.json: settings, data, times and the scores (shares in [0, 1]). Where
        the model has codes, "codebook" says how the test part uses them, as in `train_codis_on`.

    Raises:
        ValueError: data that cannot be used, named by file and entry, and what `kind` refuses.
    """
    method = kind.__name__.lower()
    run = Run(path, out, method, size=size, batch_size=batch_size, seed=seed, skip_bad=skip_bad, progress=progress)
    tokenizer, unknown = run.tokenizer()
    more = options
    if kind is PSD:
        more = {"ramp_steps": steps or RAMP * -(-len(run.train_data) // run.batch_size), **options}
    model = kind.tiny(len(tokenizer), image=image, seed=seed, **more)
    pairs = PairDataset(run.train_data, tokenizer, run.images, size=size, length=length)
    history = run.fit(
        model,
        batches_of(pairs, run.batch_size, seed),
        {"image": image, "size": size, "length": length, "batch_size": run.batch_size, **options},
        **{"steps": steps, "minutes": minutes, "learning_rate": learning_rate, "device": device, "resume": resume},
    )
    scores = retrieval_scores(model, tokenizer, run, length)
    record = run.finish(
        model,
        history,
        scores,
        tokenizer=tokenizer,
        last=[name for name in history if name not in HOUSEKEEPING],
        unknown_test_tokens=unknown,
        **_codebook(model, tokenizer, run, length),
    )
    run.tell(record, f"\n{scores_table(scores)}{_used(record)}\n", _gallery(scores))
    return record


def train_albef_on(
    path: str | Path,
    out: str | Path,
    *,
    minutes: float | None = 5.0,
    steps: int | None = None,
    image: str = "conv",
    size: int = 64,
    length: int = 40,
    batch_size: int = 128,
    learning_rate: float = 3e-3,
    rerank: int = 16,
    gallery: int | None = 1000,
    device: str | None = None,
    seed: int = 0,
    skip_bad: bool = False,
    resume: bool = True,
    progress: bool = True,
    kind: type[ALBEF] = ALBEF,
    **options,
) -> dict:
    """Train a small ALBEF on pictures with captions, and say what a second, closer look adds to retrieval.

    ITC, ITM and MLM together, with a teacher whose share in the targets grows over the first epoch, as in the paper.
    The queues hold at most half of the training pictures, so that they seldom hold a picture's own old features.

    Args:
        path: anything that `open_captions` reads.
        out: folder for weights.safetensors, model.json, the tokenizer, history.csv and record.json.
        minutes: time budget of the training; None for no limit (then `steps` is needed).
        steps: number of steps; None for as many as fit the minutes.
        image: the image tower, see `ALBEF.tiny`.
        size: pixels a side.
        length: L, tokens a caption; longer ones are cut, and counted in a warning.
        batch_size: B; made smaller where the data has fewer training pictures.
        learning_rate: of AdamW, at its peak.
        rerank: k, how many candidates of each query ITM looks at, at most the gallery; 0 for ITC alone.
        gallery: most test pictures that are ranked, drawn at random where there are more, since re-ranking takes k
            passes of the fusion encoder for every picture and every caption; None for all of them.
        device: see `vlnotes.train.pick_device`.
        seed: of the weights, the shuffles, the masks, the negatives and the split, where the data has none.
        skip_bad: go on without entries that cannot be used; they are counted and listed.
        resume: go on with an unfinished run of the same settings in `out`.
        progress: print what happens and show bars.
        kind: ALBEF, or what is built on it.
        options: more of `kind.tiny`, JSON values.

    Returns:
        The record that is also written to record.json: settings, data, times and the scores (shares in [0, 1]).

    Raises:
        ValueError: data that cannot be used, named by file and entry; a negative k or an empty gallery.
    """
    if rerank < 0 or (gallery is not None and gallery < 1):
        raise ValueError(f"expected rerank >= 0 and a gallery of at least 1 picture; got {rerank}, {gallery}")
    method = kind.__name__.lower()
    run = Run(path, out, method, size=size, batch_size=batch_size, seed=seed, skip_bad=skip_bad, progress=progress)
    tokenizer, unknown = run.tokenizer()
    count = len(run.train_data)
    more = {"queue_size": min(1024, count // 2), "ramp_steps": count // run.batch_size, **options}
    model = kind.tiny(len(tokenizer), image=image, size=size, seed=seed, **more)
    pairs = PairDataset(run.train_data, tokenizer, run.images, size=size, length=length)
    history = run.fit(
        model,
        batches_of(pairs, run.batch_size, seed),
        {"image": image, "size": size, "length": length, "batch_size": run.batch_size, **options},
        **{"steps": steps, "minutes": minutes, "learning_rate": learning_rate, "device": device, "resume": resume},
    )
    shown = len(run.test_data) if gallery is None else min(gallery, len(run.test_data))
    if shown < len(run.test_data):
        run.say(f"note   {shown:,} of {len(run.test_data):,} test pictures are ranked; --gallery N takes more")
    scores = retrieval_scores(model, tokenizer, run, length, k=rerank, gallery=gallery)
    record = run.finish(
        model,
        history,
        scores,
        tokenizer=tokenizer,
        last=[name for name in history if name not in HOUSEKEEPING],
        unknown_test_tokens=unknown,
        rerank={"texts": min(rerank, scores["gallery"]["captions"]), "images": min(rerank, shown)},
        **_codebook(model, tokenizer, run, length),
    )
    close = f"ITM looked at the best {record['rerank']['texts']} texts and {record['rerank']['images']} pictures; "
    run.tell(record, f"\n{scores_table(scores)}{_used(record)}\n", (close if rerank else "") + _gallery(scores))
    return record


def train_codis_on(path: str | Path, out: str | Path, *, codewords: int = 64, **options) -> dict:
    """Train a small CODIS on pictures with captions: ALBEF's course, with four directions, two views and a codebook.

    Args:
        path: anything that `open_captions` reads.
        out: folder for weights.safetensors, model.json, the tokenizer, history.csv and record.json.
        codewords: C.
        options: those of `train_albef_on`, and of `CODIS`.

    Returns:
        As `train_albef_on`; "codebook" holds the perplexity of the codewords that test pictures and texts are nearest
        to, of C, and, where pictures share concepts, how well codewords tell these apart (see `cluster_agreement`).

    Raises:
        ValueError: what `train_albef_on` and `CODIS` refuse.
    """
    return train_albef_on(path, out, kind=CODIS, codewords=codewords, **options)


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
    run = Run(path, out, "moco", size=size, batch_size=batch_size, seed=seed, skip_bad=skip_bad, progress=progress)
    count = len(run.train_data)
    model = MoCo.tiny(image=image, queue_size=min(2048, count // 2), seed=seed)

    def batch_at(step: int) -> dict[str, Tensor]:
        ids = epoch_indices(step, count, run.batch_size, seed)
        from_disk = run.images is None
        pictures = load_pictures(run.train_data, size, ids.tolist(), workers=1) if from_disk else run.images[ids]
        return {"image": pictures, "ids": ids}

    labels = concept_numbers(run.test_data)
    scores = {}
    if labels is not None:
        scores["untrained"] = neighbour_scores(probe_features(model, run.test_images), labels)
        scores["colours"] = neighbour_scores(metrics.colour_histogram(run.test_images).sqrt(), labels)
    history = run.fit(
        model,
        batch_at,
        {"image": image, "size": size, "batch_size": run.batch_size},
        **{"steps": steps, "minutes": minutes, "learning_rate": learning_rate, "device": device, "resume": resume},
    )
    if labels is not None:
        scores = {"MoCo": neighbour_scores(probe_features(model, run.test_images), labels), **scores}
    record = run.finish(model, history, scores, last=("accuracy",))
    lines = [
        f"{name:<10} the nearest other test picture shows the same concept: "
        f"{row['nearest']:6.1%} (chance {row['chance']:.1%})"
        for name, row in scores.items()
    ]
    nothing = "no two test pictures share a concept, so neighbours cannot be scored"
    found = f"a picture finds itself among {model.queue_size} others: {record['last']['accuracy']:.1%}"
    run.tell(record, "\n".join(lines) or nothing, found)
    return record


def _codebook(model, tokenizer, run: Run, length: int) -> dict[str, dict[str, float]]:
    """How the test part uses the codewords; nothing for a model that has none."""
    if not isinstance(model, CODIS | NCLIP | XCLIP):
        return {}
    targets = caption_targets(run.test_data)
    tokens = encode(tokenizer, targets.captions, length)
    if isinstance(model, CODIS):
        pictures, texts = model.codes(encode_images(model, run.test_images)), model.codes(encode_texts(model, tokens))
    else:
        pictures = encode_images(model, run.test_images, way="image_logits").argmax(1)  # (N,)
        texts = encode_texts(model, tokens, way="text_logits").argmax(1)  # (M,)
    used = {"images": pictures, "texts": texts}
    count = model.built["codewords"]
    found = {name: metrics.code_usage(codes, count)["perplexity"] for name, codes in used.items()}
    labels = concept_numbers(run.test_data)
    return {"codebook": found | (metrics.cluster_agreement(pictures, labels) if labels is not None else {})}


def _used(record: dict) -> str:
    """A line about the codewords, where there are any."""
    used = record.get("codebook")
    return f"\ncodewords in use: {used['images']:.0f} by pictures, {used['texts']:.0f} by texts" if used else ""


def _gallery(scores: dict) -> str:
    size = scores["gallery"]
    return f"gallery: {size['pictures']} pictures, {size['captions']} captions"
