"""Zero-shot and fine-tuned retrieval, CLIP and ALBEF side by side, as the papers' tables have them.

Four domains with loose captions to learn from, and a fifth that nobody has seen: first as it comes, then after a short
fine-tuning on its clean captions. Both models begin with what albef-paper knows, and see about as many pictures.
"""

from functools import lru_cache

import torch
from torch import Tensor, nn

from vlnotes import metrics, world
from vlnotes.albef import ALBEF, rerank
from vlnotes.claims.engine import Study
from vlnotes.clip import CLIP
from vlnotes.text import encode
from vlnotes.train import Batch, pair_batches, train
from vlnotes.weights import load

TINY = {
    **{"domains": ["paper", "knit", "garden", "harbour"], "unseen": "pixel", "pictures": 3000, "size": 64},
    **{"length": 40, "mismatch": 0.2, "partial": 0.1, "batch_size": 128, "steps": 300, "learning_rate": 1e-3},
    **{"albef_batch": 32, "albef_steps": 250, "albef_rate": 1e-3, "queue_size": 1024, "momentum": 0.99},
    **{"tuning_pictures": 1500, "tuning_steps": 50, "tuning_rate": 1e-3, "gallery": 300, "k": 16},
}
KS = (1, 5, 10)


@lru_cache(maxsize=8)
def _pairs(domain: str, count: int, split: str, size: int, mismatch: float, partial: float) -> world.Pairs:
    data = world.pairs(world.World(domain).scenes(count, split), size=size)
    return world.with_noise(data, mismatch=mismatch, partial=partial) if mismatch or partial else data


def run(settings: dict, seed: int) -> dict:
    """Pre-train, look, fine-tune, look again.

    A CLIP takes the towers of albef-paper and learns `steps` on all four domains. Then two learn on with about as many
    pictures: the CLIP, and an ALBEF that has the CLIP's towers and the fusion of albef-paper.

    Args:
        settings: as `TINY`.
        seed: of the shuffles, masks, negatives and queues; all runs see the same pictures and captions.

    Returns:
        For MODEL of "clip", "itc" (ALBEF, first stage) and "albef" (re-ranked), and STAGE of "zero" and "tuned":
        "MODEL STAGE i2t@K" and "... t2i@K" for K of 1, 5, 10: any-true recall of full captions on the unseen domain,
        in [0, 1]; "MODEL STAGE" is the mean of all six. And the device.
    """
    trained, tokenizer = load("albef-paper")
    size, length = settings["size"], settings["length"]
    noise = settings["mismatch"], settings["partial"]
    parts = [_pairs(domain, settings["pictures"], "train", size, *noise) for domain in settings["domains"]]
    seen = _batches(parts, tokenizer, length)
    few = _batches(
        [_pairs(settings["unseen"], settings["tuning_pictures"], "train", size, 0.0, 0.0)], tokenizer, length
    )
    ratio = settings["albef_batch"] / settings["batch_size"]

    def learn(model: nn.Module, data, steps: int, rate: float, at: int) -> None:
        size = settings["albef_batch" if isinstance(model, ALBEF) else "batch_size"]
        batches = pair_batches(*data, size, seed + 1000 * at)
        train(model, batches, steps=steps, learning_rate=rate, seed=seed, progress=False)

    clip = CLIP.tiny(len(tokenizer), seed=seed)
    for name in ("image_encoder", "text_encoder", "image_projection", "text_projection"):
        getattr(clip, name).load_state_dict(getattr(trained.student, name).state_dict())
    learn(clip, seen, settings["steps"], settings["learning_rate"], 0)
    options = {"layers": trained.built["layers"], "seed": seed}
    options |= {name: settings[name] for name in ("size", "queue_size", "momentum")}
    albef = ALBEF.tiny(len(tokenizer), ramp_steps=settings["albef_steps"] // 2, **options)
    albef.start_from(trained).start_from(clip)
    learn(albef, seen, settings["albef_steps"], settings["albef_rate"], 1)
    learn(clip, seen, round(settings["albef_steps"] * ratio), settings["learning_rate"], 1)
    found = _scores(clip, albef, tokenizer, settings, "zero")

    tuned = ALBEF.tiny(len(tokenizer), objectives=("itc", "itm"), same_ids=True, ramp_steps=100, **options)
    tuned.start_from(albef)
    learn(tuned, few, round(settings["tuning_steps"] / ratio), settings["tuning_rate"], 2)
    learn(clip, few, settings["tuning_steps"], settings["tuning_rate"], 2)
    found |= _scores(clip, tuned, tokenizer, settings, "tuned")
    return found | {"device": str(next(clip.parameters()).device)}


def _batches(parts: list[world.Pairs], tokenizer, length: int) -> tuple[Tensor, Batch, Tensor]:
    """Pictures, tokens and owners of several domains in one."""
    before = [sum(len(part.images) for part in parts[:at]) for at in range(len(parts))]
    owner = torch.cat([part.text_to_image + first for part, first in zip(parts, before, strict=True)])
    tokens = encode(tokenizer, [text for part in parts for text in part.texts], length)
    return torch.cat([part.images for part in parts]), tokens, owner


@torch.no_grad()
def _scores(clip: CLIP, albef: ALBEF, tokenizer, settings: dict, stage: str) -> dict[str, float]:
    """Recall in a gallery of the unseen domain."""
    scenes = world.World(settings["unseen"]).scenes(settings["gallery"], "test")
    data = world.pairs(scenes, ("full",), settings["size"])
    truth, tokens = world.truth(data.scenes, data.captions), encode(tokenizer, data.texts, settings["length"])
    clip.eval()
    device = next(clip.parameters()).device
    moved = {name: value.to(device) for name, value in tokens.items()}
    cosine = (clip.image_features(data.images.to(device)) @ clip.text_features(**moved).T).cpu()
    tables = {"clip": (cosine, cosine)}
    tables["itc"] = rerank(albef, data.images, tokens, 0)
    tables["albef"] = rerank(albef, data.images, tokens, settings["k"])
    found = {}
    for who, (texts, images) in tables.items():
        recall = metrics.any_true_recall(texts, truth, ks=KS), metrics.any_true_recall(images, truth, ks=KS)
        six = {f"i2t@{k}": recall[0][f"i2t@{k}"] for k in KS} | {f"t2i@{k}": recall[1][f"t2i@{k}"] for k in KS}
        found |= {f"{who} {stage} {name}": share for name, share in six.items()}
        found[f"{who} {stage}"] = sum(six.values()) / 6
    return found


STUDY = Study(name="05.retrieval", run=run, common={"tiny": TINY}, arms={"four domains, then pixel": {}}, seeds=2)
