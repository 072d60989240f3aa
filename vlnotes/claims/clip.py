"""Ablations of CLIP: what the temperature and the second direction of the loss are worth."""

import math

import torch
from torch import Tensor, nn

from vlnotes import world
from vlnotes.claims.engine import Study
from vlnotes.clip import CLIP, LARGEST_SCALE, encode_images, encode_texts
from vlnotes.contrastive import clip_loss, info_nce
from vlnotes.metrics import any_true_recall
from vlnotes.text import encode, train_tokenizer
from vlnotes.train import pair_batches, train

COMMON = {
    **{"domain": "paper", "pictures": 6000, "captions": "full", "steps": 200, "batch_size": 128, "scale": "tiny"},
    "positions": "rotary",  # of the words; `CLIP.tiny` has no others
}
LENGTH = 32  # tokens a caption, as in the runs on record; 13 of the 6,000 full captions lose their end


class Arm(nn.Module):
    """A CLIP whose loss can be changed in one place.

    Args:
        model: the CLIP.
        temperature: a fixed one; None lets it learn.
        rows_only: ask only which caption belongs to a picture, not the other way round.
    """

    def __init__(self, model: CLIP, temperature: float | None = None, rows_only: bool = False):
        super().__init__()
        self.model, self.fixed, self.loss = model, temperature, info_nce if rows_only else clip_loss

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss of one batch.

        Args:
            batch: image (B, 3, H, W), input_ids (B, L), attention_mask (B, L).

        Returns:
            dict(loss), a scalar in nats.
        """
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=math.log(LARGEST_SCALE))
        images = self.model.image_features(batch["image"])
        texts = self.model.text_features(batch["input_ids"], batch["attention_mask"])
        temperature = self.model.temperature if self.fixed is None else self.fixed
        return {"loss": self.loss(images, texts, temperature=temperature)}


def run(settings: dict, seed: int) -> dict:
    """One training run and its scores.

    Args:
        settings: those of `COMMON` and of the arm: temperature (fixed) or rows_only.
        seed: of the weights, the shuffles, and nothing else: all arms see the same pictures.

    Returns:
        any-true recall in a gallery of 1,000 unseen pictures, "i2t@1" ... in [0, 1], and the device.
    """
    paper = world.World(settings["domain"], seed=0)
    data = world.pairs(paper.scenes(settings["pictures"]), (settings["captions"],))
    tokenizer = train_tokenizer(data.texts)
    batches = pair_batches(
        data.images, encode(tokenizer, data.texts, LENGTH), data.text_to_image, settings["batch_size"], seed
    )
    model = CLIP.tiny(len(tokenizer), seed=seed)
    arm = Arm(model, settings.get("temperature"), settings.get("rows_only", False))
    history = train(arm, batches, steps=settings["steps"], seed=seed, progress=False)
    gallery = world.pairs(paper.scenes(1000, split="test"), ("full",))
    images, texts = encode_images(model, gallery.images), encode_texts(model, encode(tokenizer, gallery.texts, LENGTH))
    found = any_true_recall(images @ texts.T, world.truth(gallery.scenes, gallery.captions), ks=(1, 10))
    return found | {"device": history.attrs["device"]}


TEMPERATURE = Study(
    name="02.temperature",
    run=run,
    common={"tiny": COMMON},
    arms={
        "learnt, from 0.07": {},
        "fixed at 0.07": {"temperature": 0.07},
        "fixed at 0.3": {"temperature": 0.3},
        "none (fixed at 1)": {"temperature": 1.0},
        "learnt, rows only": {"rows_only": True},
    },
    seeds=3,
)
