"""What PSD and xCLIP cost beside CLIP on the same towers; the papers promise next to nothing.

A step is forward, backward and AdamW of the tiny model, batch 128, pictures of 64 pixels, captions of 32 tokens. The
peer is our own CLIP.
"""

import torch
from measure import Row, interleaved_ms

from vlnotes.clip import CLIP
from vlnotes.psd import PSD
from vlnotes.xclip import NCLIP, XCLIP

BATCH, SIZE, LENGTH = 128, 64, 32
CASES = {
    "PSD step": (lambda: PSD.tiny(maximum=0.5, ramp_steps=0), "goal: ratio 1.03"),
    "PSD step, slow teacher": (lambda: PSD.tiny(maximum=0.5, ramp_steps=0, momentum=0.99), "a second forward pass"),
    "nCLIP step, C = 4,096": (lambda: NCLIP.tiny(codewords=4096), ""),
    "xCLIP step, C = 4,096": (lambda: XCLIP.tiny(codewords=4096), "goal: ratio 1.25"),
}


def training_step(model):
    dice = torch.Generator().manual_seed(0)
    batch = {
        "image": torch.randint(0, 256, (BATCH, 3, SIZE, SIZE), dtype=torch.uint8, generator=dice),
        "input_ids": torch.randint(5, 512, (BATCH, LENGTH), generator=dice),
        "attention_mask": torch.ones(BATCH, LENGTH, dtype=torch.long),
    }
    optimizer = torch.optim.AdamW([p for p in model.train().parameters() if p.requires_grad], lr=1e-4)

    def step():
        model(batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def rows():
    steps = [training_step(make()) for make, _ in CASES.values()]
    clip, *times = interleaved_ms(training_step(CLIP.tiny()), *steps, repeat=15)
    for (what, (_, note)), ours in zip(CASES.items(), times, strict=True):
        yield Row(what, ours, "CLIP", clip, note=note)
