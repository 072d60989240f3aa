"""How good is it, beside chance and beside a baseline that only counts colours."""

import torch
from torch import Tensor, nn

from vlnotes import metrics
from vlnotes.albef import Reranked, rerank
from vlnotes.clip import encode_images, encode_texts
from vlnotes.datasets import CaptionDataset, caption_targets, load_pictures
from vlnotes.experiment.run import Run
from vlnotes.text import check_vocabulary, encode

KS = (1, 5, 10)
BASELINE = 5000  # training pictures are enough to count colours
ROWS = {  # how a row of the table is called
    "itm": "  ITM re-ranks",
    "sum": "  ITM + cosine",
    "colours": "  colour histograms",
    "chance": "  chance",
}


def retrieval_scores(
    model: nn.Module, tokenizer, run: Run, length: int, *, k: int = 0, gallery: int | None = None
) -> dict:
    """Recall in the test part: of the model, of colour histograms and of chance.

    Args:
        model: has `image_features` and `text_features`; an `ALBEF` where k > 0.
        tokenizer: the one that it learnt with.
        run: with the pictures and captions.
        length: L, tokens a caption.
        k: how many of each query ITM looks at again; 0 for none. Costs k passes of the fusion encoder a query.
        gallery: at most that many test pictures, drawn at random; None for all.

    Returns:
        "by picture" and, where there are concepts, "by concept": the model's features alone; with k the same names
        and ", itm" (ITM's logit alone ranks the first k) or ", sum" (logit + cosine, as BLIP does); with ", colours"
        and ", chance" what to compare with. Each is {"i2t@1": share in [0, 1], ...}. "gallery" counts pictures and
        captions, and says of how many pictures they were drawn.

    Raises:
        ValueError: the tokenizer of another model.
    """
    check_vocabulary(tokenizer, model.built["vocab_size"])
    test, images = run.test_data, run.test_images
    if gallery is not None and gallery < len(test):
        chosen = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:gallery].sort().values
        test, images = test.subset(chosen.tolist()), images[chosen]
    targets = caption_targets(test)
    tokens, owner = encode(tokenizer, targets.captions, length), targets.text_to_image
    image_features, text_features = encode_images(model, images), encode_texts(model, tokens)
    ranked: dict[str, Reranked] = {}
    if k:
        again = rerank(model, images, tokens, k, progress=run.progress)
        cosine = image_features @ text_features.T  # (N, M)
        # Added everywhere: what was not looked at stays behind, in its own order.
        ranked = {"itm": again, "sum": Reranked(again.texts + cosine, again.images + cosine)}
    baseline_images, baseline_texts = _colours(run, images, targets)

    def by_picture(similarity: Tensor) -> dict[str, float]:
        return metrics.recall_at_k(similarity, owner, ks=KS)

    scores = {
        "by picture": metrics.recall_from_features(image_features, text_features, owner, ks=KS),
        **{f"by picture, {way}": _both(found, by_picture) for way, found in ranked.items()},
        "by picture, colours": metrics.recall_from_features(baseline_images, baseline_texts, owner, ks=KS),
        "by picture, chance": metrics.chance_recall(len(images), owner, ks=KS),
    }
    if test.concepts:
        same = metrics.truth_from_labels(targets.image_concept, targets.text_concept)  # (N, M)

        def by_concept(similarity: Tensor) -> dict[str, float]:
            return metrics.any_true_recall(similarity, same, ks=KS)

        scores |= {
            "by concept": by_concept(image_features @ text_features.T),
            **{f"by concept, {way}": _both(found, by_concept) for way, found in ranked.items()},
            "by concept, colours": by_concept(baseline_images @ baseline_texts.T),
            "by concept, chance": metrics.chance_recall(truth=same, ks=KS),
        }
    scores["gallery"] = {"pictures": len(images), "captions": len(targets.captions)}
    if len(images) < len(run.test_data):
        scores["gallery"]["of"] = len(run.test_data)
    return scores


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
            itc = f"{name}, ITC alone" if f"{name}, itm" in scores else name
            name = ROWS.get(name.partition(", ")[2], itc)
            lines.append(f"{name:<24}" + "".join(f"{100 * row[c]:8.1f}%" for c in columns))
    return "\n".join(lines)


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


def concept_numbers(data: CaptionDataset) -> Tensor | None:
    """One number a picture, equal where pictures show the same.

    Args:
        data: N pictures.

    Returns:
        (N,) int64, or None where no two show the same.
    """
    if not data.concepts:
        return None
    labels = caption_targets(data).image_concept  # (N,)
    return labels if len(labels.unique()) < len(labels) else None


def _colours(run: Run, images: Tensor, targets) -> tuple[Tensor, Tensor]:
    """Features (N, .) and (M, .) of the colour-histogram baseline, learnt from the training part."""
    known, pictures = run.train_data, run.images
    if pictures is None:
        few = torch.randperm(len(known), generator=torch.Generator().manual_seed(0))[:BASELINE].sort().values.tolist()
        known = known.subset(few)
        pictures = load_pictures(known, run.size)
    learnt = caption_targets(known)
    return metrics.histogram_baseline(pictures, learnt.captions, learnt.text_to_image, images, targets.captions)


def _both(found: Reranked, recall) -> dict[str, float]:
    """Texts of a picture by one ranking, pictures of a text by the other."""
    texts, images = recall(found.texts), recall(found.images)
    return {key: (texts if key.startswith("i2t") else images)[key] for key in texts}
