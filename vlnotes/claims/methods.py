"""CLIP, PSD, nCLIP and xCLIP side by side, as the papers' tables have it: zero-shot, probes, retrieval, five domains.

All four learn the same close-ups of four domains, with some captions that speak of another thing. Then they are asked
about each of the four and about a domain that they have never seen.
"""

import torch
from torch import Tensor

from vlnotes import metrics, world
from vlnotes.claims.codis import _data
from vlnotes.claims.engine import Study
from vlnotes.claims.psd import pooled
from vlnotes.claims.retrieval import _batches
from vlnotes.clip import CLIP, encode_images, encode_texts
from vlnotes.psd import PSD
from vlnotes.text import encode
from vlnotes.train import pair_batches, train
from vlnotes.weights import load
from vlnotes.world.domains import CONCEPTS
from vlnotes.xclip import NCLIP, XCLIP

TINY = {
    **{"method": "clip", "domains": ["paper", "knit", "garden", "harbour"], "unseen": "pixel", "pictures": 2000},
    **{"size": 32, "length": 24, "mismatch": 0.2, "batch_size": 128, "steps": 500, "learning_rate": 3e-3},
    **{"maximum": 0.8, "codewords": 64, "he_weight": 2.0, "weight": 0.3},
}
GALLERY = 300  # pictures in which is searched, a domain
NAMED = 1000  # close-ups that are classified, and probed, a domain
FACTORS = ("shape", "colour", "size", "texture")


def build(settings: dict, seed: int) -> tuple[CLIP | NCLIP, object]:
    """The model of a run before it learns, and its tokenizer.

    Args:
        settings: as `TINY`; "method" is "clip", "psd", "nclip" or "xclip".
        seed: of the weights and of PSD's partitions.

    Returns:
        The model and the tokenizer of the shipped weights.

    Raises:
        ValueError: another method.
    """
    tokenizer, method = load("clip-paper")[1], settings["method"]
    codes = {"codewords": settings["codewords"], "norm": "cosine", "eh_weight": 0.0, "he_weight": settings["he_weight"]}
    soft = {"maximum": settings["maximum"], "ramp_steps": settings["steps"]}
    kinds = {
        "clip": (CLIP, {}),
        "psd": (PSD, soft),
        "nclip": (NCLIP, codes),
        "xclip": (XCLIP, codes | {"weight": settings["weight"]}),
    }
    if method not in kinds:
        raise ValueError(f"method is {method!r}; expected one of {', '.join(kinds)}")
    kind, options = kinds[method]
    return kind.tiny(len(tokenizer), seed=seed, **options), tokenizer


def run(settings: dict, seed: int) -> dict:
    """One training run and its scores.

    Args:
        settings: as `TINY`; pictures are those of each domain.
        seed: of the weights, the shuffles and partitions; all runs see the same pictures and captions.

    Returns:
        See `scores`; device.
    """
    model, tokenizer = build(settings, seed)
    parts = [
        world.with_noise(
            _data(domain, settings["pictures"], "train", settings["size"], True), mismatch=settings["mismatch"]
        )
        for domain in settings["domains"]
    ]
    batches = pair_batches(*_batches(parts, tokenizer, settings["length"]), settings["batch_size"], seed)
    options = {"learning_rate": settings["learning_rate"], "seed": seed, "progress": False}
    history = train(model, batches, steps=settings["steps"], **options)
    return scores(model.eval(), tokenizer, settings) | {"device": history.attrs["device"]}


@torch.no_grad()
def scores(model: CLIP | NCLIP, tokenizer, settings: dict) -> dict[str, float]:
    """What `run` says about a trained model.

    Args:
        model: a `CLIP`, a `PSD`, an `NCLIP` or an `XCLIP`, in eval mode.
        tokenizer: of the shipped weights.
        settings: domains, unseen, size, length.

    Returns:
        On clean test close-ups of DOMAIN, each of the domains and the unseen one, in [0, 1]: "DOMAIN zero",
        "DOMAIN zero_shape", "DOMAIN zero_colour", zero-shot accuracy among all prompts of colour and shape, of shapes,
        of colours; "DOMAIN r1" and "DOMAIN strict r1", recall at 1 in a gallery of 300, mean of both directions, where
        any true caption counts and where the own one does. Their means over the seen domains, without DOMAIN in front.
        On the first domain: image_F and text_F, what a linear probe reads of factor F from what a tower pools; and
        overlap, the rank correlation of the cosine of two texts with the number of things that both say, in [-1, 1].
    """
    found: dict[str, float] = {}
    for domain in (*settings["domains"], settings["unseen"]):
        found |= {f"{domain} {name}": value for name, value in _domain(model, tokenizer, settings, domain).items()}
    for name in ("zero", "zero_shape", "zero_colour", "r1", "strict r1"):
        found[name] = sum(found[f"{domain} {name}"] for domain in settings["domains"]) / len(settings["domains"])
    return found | _probes(model, tokenizer, settings)


def _domain(model: CLIP | NCLIP, tokenizer, settings: dict, domain: str) -> dict[str, float]:
    size, length = settings["size"], settings["length"]
    data, found = _data(domain, NAMED, "test", size, True), {}
    features = encode_images(model, data.images)
    for of, name in {"colour-shape": "zero", "shape": "zero_shape", "colour": "zero_colour"}.items():
        prompts = world.prompts(domain, of)
        words = encode_texts(model, encode(tokenizer, list(prompts.values()), length))
        named = [" ".join(getattr(scene.objects[0], part) for part in of.split("-")) for scene in data.scenes]
        right = torch.tensor([list(prompts).index(name) for name in named])
        found[name] = metrics.zero_shot(features, words, right)["top1"]
    texts = encode_texts(model, encode(tokenizer, data.texts[:GALLERY], length))
    cosines = features[:GALLERY] @ texts.T
    truth = world.truth(data.scenes[:GALLERY], data.captions[:GALLERY])
    for name, true in (("r1", truth), ("strict r1", torch.eye(len(cosines), dtype=torch.bool))):
        both = metrics.any_true_recall(cosines, true, ks=(1,))
        found[name] = (both["i2t@1"] + both["t2i@1"]) / 2
    return found


def _probes(model: CLIP | NCLIP, tokenizer, settings: dict) -> dict[str, float]:
    """What a line reads from each tower, and whether texts that say the same lie side by side."""
    from scipy.stats import spearmanr

    size, length = settings["size"], settings["length"]
    known, asked = (_data(settings["domains"][0], NAMED, split, size, True) for split in ("val", "test"))
    towers = {
        "image": [pooled(model, some.images) for some in (known, asked)],
        "text": [pooled_texts(model, encode(tokenizer, some.texts, length)) for some in (known, asked)],
    }
    found = {}
    for factor in FACTORS:
        labels = [world.factor_labels(some.scenes, factor)[0] for some in (known, asked)]
        for tower, (fit, test) in towers.items():
            found[f"{tower}_{factor}"] = metrics.linear_probe(fit, labels[0], test, labels[1])
    said = [{CONCEPTS[word] for word in caption.tokens if word in CONCEPTS} for caption in asked.captions[:GALLERY]]
    shared = torch.tensor([[len(one & other) for other in said] for one in said])
    texts = encode_texts(model, encode(tokenizer, asked.texts[:GALLERY], length))
    rows, columns = torch.triu_indices(len(texts), len(texts), offset=1)
    found["overlap"] = float(spearmanr((texts @ texts.T)[rows, columns], shared[rows, columns])[0])
    return found


def pooled_texts(model: CLIP | NCLIP, tokens: dict[str, Tensor]) -> Tensor:
    """What the text tower pools, for probes.

    Args:
        model: anything with a `text_encoder`; used as it is.
        tokens: input_ids and attention_mask, (N, L) each.

    Returns:
        (N, W) on the CPU.
    """
    device = next(model.parameters()).device
    both = zip(tokens["input_ids"].split(256), tokens["attention_mask"].split(256), strict=True)
    return torch.cat([model.text_encoder(ids.to(device), mask.to(device)).pooled.cpu() for ids, mask in both])


STUDY = Study(
    name="11.methods",
    run=run,
    common={"tiny": TINY},
    arms={
        "CLIP": {},
        "PSD": {"method": "psd"},
        "nCLIP": {"method": "nclip"},
        "xCLIP": {"method": "xclip"},
    },
)
