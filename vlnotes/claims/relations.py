"""Can a fusion encoder learn where things are to each other, and what must ask for it?

The trained ALBEF knows colours and shapes, but not "left of". It learns on for some hundred steps on captions of
relations alone, asked in one of two ways: hide the word that tells (MLM), or tell a picture from the one in which both
things have changed places (ITM). Or in both ways, one after the other.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlnotes import world
from vlnotes.albef import ALBEF, itm_loss
from vlnotes.claims.engine import Study
from vlnotes.scoring import binding_scores, word_scores
from vlnotes.text import IGNORE, encode
from vlnotes.train import pair_batches, train
from vlnotes.weights import load
from vlnotes.world.domains import CONCEPTS

TINY = {
    **{"domain": "paper", "pictures": 4000, "size": 64, "length": 20, "batch_size": 48, "steps": 300},
    **{"learning_rate": 1e-3, "objective": "mlm", "words_first": 0, "tested": 300},
}
OBJECTIVES = ("mlm", "itm")


class Asked(nn.Module):
    """An ALBEF whose fusion encoder learns relations; its towers stay as they are.

    Args:
        albef: trained; changed.
        telling: (R,) ids of the words that tell a relation.
        objective: "mlm": the telling word of every caption is hidden and asked for; "itm": rows 2 i and 2 i + 1 of a
            batch show the same things in each other's places, and each caption belongs to one of the two.

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
            part.requires_grad_(False)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """One step of the objective.

        Args:
            batch: image (B, 3, H, W), input_ids and attention_mask (B, L).

        Returns:
            dict(loss), a scalar in nats.
        """
        student, mask, ids = self.albef.student, batch["attention_mask"], batch["input_ids"]
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


def run(settings: dict, seed: int) -> dict:
    """Learn relations for a while, then count.

    Args:
        settings: as `TINY`. words_first: steps of "mlm" before the steps of the objective.
        seed: of the shuffles.

    Returns:
        In [0, 1], on unseen scenes: hidden, hidden_shuffled: telling words said right with the own picture and with
        another one; flip: how often a picture's caption beats that of the flipped picture by ITM (chance 1/2);
        flip_group: both pictures and both captions right (1/6); colour: hidden colours still said right; swap: as flip,
        for exchanged colours. loss_curve (the objective's, means of twentieths, nats) and device.

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
    for objective, steps in (("mlm", settings["words_first"]), (settings["objective"], settings["steps"])):
        if steps:
            history = train(Asked(albef, telling, objective), batches, steps=steps, **options)
    albef = albef.to("cpu").eval()
    test = world.World(settings["domain"]).scenes(settings["tested"], "test", neighbours=False)
    shape = {"size": settings["size"]}  # and full captions at full length
    said = word_scores(albef, tokenizer, test, ("relation",), kind="rel", **shape)["relation"]
    colour = word_scores(albef, tokenizer, test, ("colour",), **shape)["colour"]["true"]
    told = binding_scores(albef, tokenizer, test, ("flip_relation", "swap_colours"), **shape)["itm"]
    flip = told["flip_relation"]
    curve = history["loss"].groupby(history["step"] * 20 // steps).mean().round(4).tolist()
    found = {"hidden": said["true"], "hidden_shuffled": said["shuffled"], "colour": colour}
    found |= {"flip": flip["choice"], "flip_group": flip["group"], "swap": told["swap_colours"]["choice"]}
    return found | {"loss_curve": curve, "device": history.attrs["device"]}


STUDY = Study(
    name="05.relations",
    run=run,
    common={"tiny": TINY},
    arms={
        "hide the telling word": {},
        "tell flipped pictures apart": {"objective": "itm"},
        "tell them apart, longer": {"objective": "itm", "steps": 640},
        "words first, then pictures": {"objective": "itm", "words_first": 220, "steps": 420},
    },
    seeds=3,
)
