"""Can a fusion encoder learn where things are to each other, and what must ask for it?

The trained ALBEF knows colours and shapes, but not "left of". It learns on for some hundred steps on captions of
relations alone, asked in one of two ways: hide the word that tells (MLM), or tell a picture from the one in which both
things have changed places (ITM). Or in both ways, one after the other. ITC is asked the same, with its towers free; and
to keep what was known, couples with any other edit are mixed in at last.
"""

from collections.abc import Callable
from functools import lru_cache
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlnotes import world
from vlnotes.albef import ALBEF, COLDEST, HOTTEST, itm_loss
from vlnotes.claims.engine import Study, loss_curves
from vlnotes.contrastive import clip_loss
from vlnotes.scoring import binding_scores, word_scores
from vlnotes.text import IGNORE, encode
from vlnotes.train import pair_batches, train
from vlnotes.weights import load
from vlnotes.world.domains import CONCEPTS

TINY = {
    **{"domain": "paper", "pictures": 4000, "size": 64, "length": 20, "batch_size": 48, "steps": 300},
    **{"learning_rate": 1e-3, "objective": "mlm", "words_first": 0, "tested": 300},
}
OBJECTIVES = ("mlm", "itm", "itc")
EXCHANGED = {
    **{"flip": "flip_relation", "swap": "swap_colours", "textures": "swap_textures", "shapes": "swap_shapes"},
}
FULL_LENGTH = 40  # tokens of a full caption


class Asked(nn.Module):
    """An ALBEF that learns relations: its fusion encoder over towers that stay as they are, or, for ITC, its towers.

    Args:
        albef: trained; changed.
        telling: (R,) ids of the words that tell a relation.
        objective: "mlm": the telling word of every caption is hidden and asked for; "itm": rows 2 i and 2 i + 1 of a
            batch show the same things in each other's places, and each caption belongs to one of the two; "itc": the
            same batch by cosine, every picture against every caption, the other of its couple among them.

    Raises:
        ValueError: another objective.
    """

    def __init__(self, albef: ALBEF, telling: Tensor, objective: str):
        super().__init__()
        if objective not in OBJECTIVES:
            raise ValueError(f"objective is {objective!r}; expected one of {', '.join(OBJECTIVES)}")
        self.albef, self.objective = albef, objective
        self.register_buffer("telling", telling, persistent=False)
        student = albef.student
        for part in (student.image_encoder, student.text_encoder, student.image_projection, student.text_projection):
            part.requires_grad_(objective == "itc")

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """One step of the objective.

        Args:
            batch: image (B, 3, H, W), input_ids and attention_mask (B, L).

        Returns:
            dict(loss), a scalar in nats.
        """
        student, mask, ids = self.albef.student, batch["attention_mask"], batch["input_ids"]
        if self.objective == "itc":
            features = self.albef.image_features(batch["image"]), self.albef.text_features(ids, mask)
            return {"loss": clip_loss(*features, temperature=self.albef.temperature.clamp(COLDEST, HOTTEST))}
        seen = student.see(batch["image"]).tokens
        if self.objective == "mlm":
            told = torch.isin(ids, self.telling)
            labels = ids.masked_fill(~told, IGNORE)
            hidden = ids.masked_fill(told, self.albef.vocabulary.mask_token_id)
            return {"loss": F.cross_entropy(student.hidden_words(hidden, mask, seen, labels), labels[told])}
        read = student.read(ids, mask).tokens
        other = torch.arange(len(ids), device=ids.device) ^ 1
        own, wrong = self.albef.match(seen, read, mask), self.albef.match(seen, read[other], mask[other])
        return {"loss": itm_loss(own, wrong)}


@lru_cache(maxsize=2)
def _couples(domain: str, count: int, size: int) -> world.Pairs:
    """Scenes of train, each followed by the scene in which two of its things have changed places."""
    couples, start = [], 0
    while len(couples) < count:
        for scene in world.World(domain).scenes(count, "train", start, neighbours=False):
            other = world.edits(scene).get("flip_relation")
            couples += [scene, other] if other else []
        start += count
    return world.pairs(couples[:count], ("rel",), size)


@lru_cache(maxsize=2)
def _edited(domain: str, count: int, size: int) -> world.Pairs:
    """Scenes of train, each followed by a scene with one edit of any kind but the flip."""
    couples, start, dice = [], 0, Random(0)
    while len(couples) < count:
        for scene in world.World(domain).scenes(count, "train", start, neighbours=False):
            others = {kind: other for kind, other in world.edits(scene).items() if kind != "flip_relation"}
            couples += [scene, others[dice.choice(sorted(others))]] if others else []
        start += count
    return world.pairs(couples[:count], ("full", "rel"), size)


def _mixed(settings: dict, tokenizer, seed: int) -> Callable[[int], dict[str, Tensor]]:
    """Batches of which one half are flipped couples, told by their relation, the other half `_edited` couples."""
    some = settings["domain"], settings["pictures"], settings["size"]
    halves = [
        pair_batches(
            data.images,
            encode(tokenizer, data.texts, FULL_LENGTH),
            data.text_to_image,
            settings["batch_size"] // 2,
            seed,
            together=2,
        )
        for data in (_couples(*some), _edited(*some))
    ]

    def batch_at(step: int) -> dict[str, Tensor]:
        parts = [half(step) for half in halves]
        longest = max(part["input_ids"].shape[1] for part in parts)
        words = {
            name: torch.cat([F.pad(part[name], (0, longest - part[name].shape[1])) for part in parts])
            for name in ("input_ids", "attention_mask")
        }
        return {"image": torch.cat([part["image"] for part in parts]), **words}

    return batch_at


def run(settings: dict, seed: int) -> dict:
    """Learn relations for a while, then count.

    Args:
        settings: as `TINY`. words_first: steps of "mlm" before the steps of the objective; mixed_last, if it is there:
            steps of the objective after them, on `_mixed` batches.
        seed: of the shuffles.

    Returns:
        In [0, 1], on unseen scenes: hidden, hidden_shuffled: telling words said right with the own picture and with
        another one; flip: how often a picture's caption beats that of the flipped picture by ITM (chance 1/2), or by
        cosine, if the objective is "itc"; flip_group: both pictures and both captions right (1/6); colour: hidden
        colours still said right; swap, textures, shapes: as flip, for what was exchanged, and with _group. loss_curve
        (of the last stage, means of twentieths, nats) and device.

    Raises:
        ValueError: an objective that is not known.
    """
    albef, tokenizer = load("albef-paper")
    known = tokenizer.get_vocab()
    telling = torch.tensor([known[w] for w, (role, _) in CONCEPTS.items() if role == "relation" and w in known])
    data = _couples(settings["domain"], settings["pictures"], settings["size"])
    tokens = encode(tokenizer, data.texts, settings["length"])
    batches = pair_batches(data.images, tokens, data.text_to_image, settings["batch_size"], seed, together=2)
    options = {"learning_rate": settings["learning_rate"], "seed": seed, "progress": False}
    stages = [("mlm", settings["words_first"], batches), (settings["objective"], settings["steps"], batches)]
    if settings.get("mixed_last"):
        stages.append((settings["objective"], settings["mixed_last"], _mixed(settings, tokenizer, seed)))
    for objective, steps, of in stages:
        if steps:
            history = train(Asked(albef, telling, objective), of, steps=steps, **options)
    albef = albef.to("cpu").eval()
    test = world.World(settings["domain"]).scenes(settings["tested"], "test", neighbours=False)
    shape = {"size": settings["size"]}  # and full captions at full length
    said = word_scores(albef, tokenizer, test, ("relation",), kind="rel", **shape)["relation"]
    colour = word_scores(albef, tokenizer, test, ("colour",), **shape)["colour"]["true"]
    judge = "itc" if settings["objective"] == "itc" else "itm"
    told = binding_scores(albef, tokenizer, test, tuple(EXCHANGED.values()), **shape)[judge]
    found = {"hidden": said["true"], "hidden_shuffled": said["shuffled"], "colour": colour}
    for name, kind in EXCHANGED.items():
        found |= {name: told[kind]["choice"], f"{name}_group": told[kind]["group"]}
    return found | loss_curves(history, "loss") | {"device": history.attrs["device"]}


STUDY = Study(
    name="05.relations",
    run=run,
    common={"tiny": TINY},
    arms={
        "hide the telling word": {},
        "tell flipped pictures apart": {"objective": "itm"},
        "tell them apart, longer": {"objective": "itm", "steps": 640},
        "words first, then pictures": {"objective": "itm", "words_first": 220, "steps": 420},
        "words, pictures, then all": {"objective": "itm", "words_first": 220, "steps": 420, "mixed_last": 630},
        "ITC: pictures": {"objective": "itc", "steps": 640},
        "ITC: pictures, then all": {"objective": "itc", "steps": 640, "mixed_last": 630},
    },
    seeds=3,
)
