"""Claims N1 to N8 of nCLIP and xCLIP (Zhou et al. 2023), the corners of collapse, and how many codes a batch can fill.

Clean close-ups of single things with one full caption each. Zero-shot, retrieval and probes are those of PSD's runs.
"""

from functools import lru_cache

import torch
from torch import Tensor

from vlnotes import metrics, world
from vlnotes.claims import psd
from vlnotes.claims.codis import _data
from vlnotes.claims.engine import Claim, Study, loss_curves
from vlnotes.clip import CLIP, encode_images
from vlnotes.text import encode
from vlnotes.train import pair_batches, train
from vlnotes.weights import load
from vlnotes.xclip import NCLIP, XCLIP

TINY = {
    **{"domain": "paper", "pictures": 4000, "size": 32, "length": 24, "batch_size": 128, "steps": 400},
    **{"learning_rate": 3e-3, "method": "nclip", "codewords": 64, "norm": "cosine", "eh_weight": 0.0},
    **{"he_weight": 2.0, "weight": 0.3},
}
PROBED = 1000  # close-ups whose codes are looked at


@lru_cache(maxsize=4)
def _asked(domain: str, size: int) -> world.Pairs:
    return _data(domain, PROBED, "test", size, True)


def build(settings: dict, seed: int) -> tuple[CLIP | NCLIP, object]:
    """The model of a run before it learns, and its tokenizer.

    Args:
        settings: as `TINY`; "method" is "clip", "nclip" or "xclip".
        seed: of the weights.

    Returns:
        The model and the tokenizer of the shipped weights.

    Raises:
        ValueError: another method.
    """
    tokenizer, method = load("clip-paper")[1], settings["method"]
    if method == "clip":
        return CLIP.tiny(len(tokenizer), seed=seed), tokenizer
    if method not in ("nclip", "xclip"):
        raise ValueError(f"method is {method!r}; expected clip, nclip or xclip")
    options = {name: settings[name] for name in ("codewords", "norm", "eh_weight", "he_weight")}
    if method == "xclip":
        return XCLIP.tiny(len(tokenizer), seed=seed, weight=settings["weight"], **options), tokenizer
    return NCLIP.tiny(len(tokenizer), seed=seed, **options), tokenizer


def run(settings: dict, seed: int) -> dict:
    """One training run and its scores.

    Args:
        settings: as `TINY`.
        seed: of the weights and the shuffles; all runs see the same pictures and captions.

    Returns:
        See `vlnotes.claims.psd.scores` and `codes`; curves of the losses (means of twentieths of the run); device.
    """
    model, tokenizer = build(settings, seed)
    data = _data(settings["domain"], settings["pictures"], "train", settings["size"], True)
    tokens = encode(tokenizer, data.texts, settings["length"])
    batches = pair_batches(data.images, tokens, data.text_to_image, settings["batch_size"], seed)
    steps = settings["steps"]
    history = train(model, batches, steps=steps, learning_rate=settings["learning_rate"], seed=seed, progress=False)
    curves = loss_curves(history, "loss", "cross_entropy", "mean_entropy", "entropy_of_mean")
    found = psd.scores(model.eval(), tokenizer, settings | {"mismatch": 0.0})
    return found | codes(model, tokenizer, settings, seed) | curves | {"device": history.attrs["device"]}


@torch.no_grad()
def codes(model: CLIP | NCLIP, tokenizer, settings: dict, seed: int = 0) -> dict[str, float]:
    """What the codes of a model are worth; of a CLIP, those of k-means.

    Args:
        model: a `CLIP`, an `NCLIP` or an `XCLIP`, in eval mode.
        tokenizer: of the shipped weights.
        settings: domain, size, length, codewords.
        seed: of k-means.

    Returns:
        On 1,000 close-ups of test, each with its likeliest code. nmi: with colour and shape in one; nmi_place: with the
        ground. With heads also perplexity, the codes in use, mean of pictures and texts; spread, that as a share of C;
        sure, 1 - the mean entropy as a share of log C; agreement, the share of pairs that name one code; nmi_kmeans:
        of k-means with C clusters on what the image tower pools, where there are two close-ups or more for each.
    """
    from sklearn.cluster import KMeans

    data, count = _asked(settings["domain"], settings["size"]), settings["codewords"]
    colour, shape = (world.factor_labels(data.scenes, factor)[0] for factor in ("colour", "shape"))
    places = sorted({scene.place for scene in data.scenes})
    labels = {"nmi": colour * 1000 + shape}
    labels["nmi_place"] = torch.tensor([places.index(scene.place) for scene in data.scenes])

    def told(of: Tensor) -> dict[str, float]:
        return {name: metrics.cluster_agreement(of, label)["nmi"] for name, label in labels.items()}

    def clusters(features: Tensor) -> Tensor:
        return torch.from_numpy(KMeans(count, n_init=3, random_state=seed).fit_predict(features.numpy())).long()

    if not hasattr(model, "heads"):
        return told(clusters(encode_images(model, data.images)))
    device = next(model.parameters()).device
    tokens = encode(tokenizer, data.texts, settings["length"])
    images = torch.cat([model.image_logits(part.to(device)).cpu() for part in data.images.split(256)])
    both = zip(tokens["input_ids"].split(256), tokens["attention_mask"].split(256), strict=True)
    texts = torch.cat([model.text_logits(ids.to(device), mask.to(device)).cpu() for ids, mask in both])
    of_images, of_texts = images.argmax(1), texts.argmax(1)
    perplexity = sum(metrics.code_usage(of, count)["perplexity"] for of in (of_images, of_texts)) / 2
    entropy = torch.special.entr(images.softmax(1)).sum(1).mean() / torch.tensor(float(count)).log()
    found = {"perplexity": perplexity, "spread": perplexity / count, "sure": 1 - float(entropy)}
    found["agreement"] = float((of_images == of_texts).float().mean())
    found |= told(of_images)
    if 2 * count <= len(data.images):
        found["nmi_kmeans"] = told(clusters(psd.pooled(model, data.images)))["nmi"]
    return found


_FREE = {"eh_weight": 0.0, "he_weight": 0.0}
STUDY = Study(
    name="11.xclip",
    run=run,
    common={"tiny": TINY},
    arms={
        "CLIP": {"method": "clip"},
        "nCLIP": {},
        "xCLIP": {"method": "xclip"},
        "nCLIP, neither term": _FREE,
        "nCLIP, EH alone": _FREE | {"eh_weight": 1.0},
        "nCLIP, both terms": {"eh_weight": 1.0},
        "nCLIP, last BatchNorm": {"norm": "batch", "eh_weight": 0.5, "he_weight": 1.0},
        "nCLIP, last BatchNorm, neither term": _FREE | {"norm": "batch"},
        "nCLIP, HE x 0.5": {"he_weight": 1.0},
        "nCLIP, 16 codes": {"codewords": 16},
        "nCLIP, 256 codes": {"codewords": 256},
        "nCLIP, 1,024 codes": {"codewords": 1024},
        "CLIP, batch 32": {"method": "clip", "batch_size": 32},
        "nCLIP, batch 32": {"batch_size": 32},
    },
)


def _claim(id: str, statement: str, figure: str, more: str, less: str, score: str, **options) -> Claim:
    return Claim(id, statement, figure, study=STUDY.name, contrast={more: 1, less: -1}, score=score, **options)


_WORSE, _BETTER, _NO = "clearly underperforms", "best of both", "no digits known"
CLAIMS = [
    _claim("N1", "nCLIP is worse than CLIP in zero-shot: CLIP minus nCLIP", _WORSE, "CLIP", "nCLIP", "zero"),
    _claim("N2", "and in retrieval: CLIP minus nCLIP", "largest loss", "CLIP", "nCLIP", "r1"),
    _claim("N3", "nCLIP's tower is better in the linear probe (shape)", "helps", "nCLIP", "CLIP", "shape"),
    _claim("N4", "xCLIP beats CLIP in zero-shot", _BETTER, "xCLIP", "CLIP", "zero"),
    _claim("N4b", "and in retrieval", _BETTER, "xCLIP", "CLIP", "r1"),
    _claim("N4c", "and in the linear probe (shape)", _BETTER, "xCLIP", "CLIP", "shape"),
    _claim("N5", "HE keeps codes in use, in % of C", "collapse without", "nCLIP", "nCLIP, neither term", "spread"),
    _claim(
        *("N5b", "which EH alone does not", "collapse"),
        *("nCLIP, EH alone", "nCLIP, neither term", "spread"),
        direction="=",
    ),
    _claim(
        *("N5c", "A last BatchNorm keeps them in use without HE", "not in the paper"),
        *("nCLIP, last BatchNorm, neither term", "nCLIP, neither term", "spread"),
    ),
    _claim("N6", "More codes help up to a point: 64 against 16 (R@1)", _NO, "nCLIP", "nCLIP, 16 codes", "r1"),
    _claim(
        *("N6b", "and beyond the batch they no longer do: 1,024 against 256", _NO),
        *("nCLIP, 1,024 codes", "nCLIP, 256 codes", "r1"),
        direction="=",
    ),
    Claim(
        "N7",
        "nCLIP is less sensitive to the batch: CLIP's loss of zero-shot from batch 128 to 32, minus nCLIP's",
        "the motivation",
        study=STUDY.name,
        contrast={"CLIP": 1, "CLIP, batch 32": -1, "nCLIP": -1, "nCLIP, batch 32": 1},
        score="zero",
    ),
    _claim("N8", "Codes follow classes better than k-means on CLIP's features (NMI)", _NO, "nCLIP", "CLIP", "nmi"),
]
