"""A Mod-X step beside a CLIP step: the regulariser costs one forward of the old model and little more.

A step is forward and backward on one batch of the tiny model. The peer's step is CLIP's and one forward of a frozen
copy, so a ratio of at most 1.05 of it is the goal.
"""

import torch
from measure import Row, interleaved_ms

from vlnotes.clip import CLIP
from vlnotes.modx import ModX

BATCH, LENGTH = 128, 24


def batch():
    dice = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 500, (BATCH, LENGTH), generator=dice)
    image = torch.randint(0, 256, (BATCH, 3, 64, 64), generator=dice, dtype=torch.uint8)
    return {"image": image, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


def modx_step(data):
    model = ModX.tiny().train()
    model.start_phase()

    def step():
        model.zero_grad()
        model(data)["loss"].backward()

    return step


def clip_step(data):
    """CLIP's step, and what a frozen old model would take if its features cost nothing to compare."""
    model, old = CLIP.tiny().train(), CLIP.tiny().eval()

    def step():
        model.zero_grad()
        with torch.no_grad():
            old.pair_features(data)
        model(data)["loss"].backward()

    return step


def rows():
    data = batch()
    ours, theirs = interleaved_ms(modx_step(data), clip_step(data), repeat=15)
    yield Row(f"Mod-X step, batch {BATCH}", ours, "CLIP + old forward", theirs, note="goal: ratio 1.05")
