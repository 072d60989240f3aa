"""`clip_loss` beside open_clip's ClipLoss, `info_nce` beside lightly's NTXentLoss with its memory bank.

Every step is forward and backward. `python contrastive.py CASE` prints the memory growth of one case in MB.
"""

import sys

import torch
import torch.nn.functional as F
from measure import Row, growth_in_a_fresh_process, growth_mb, installed, interleaved_ms

from vlnotes.contrastive import clip_loss, info_nce

TEMPERATURE = 0.07
QUEUE = (65_536, 256)


def unit(*shape):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(0)), dim=1)


def clip_step(batch, width, peer=False):
    image, text = unit(batch, width).requires_grad_(), unit(batch, width).flip(0).requires_grad_()
    if peer:
        from open_clip.loss import ClipLoss

        loss, scale = ClipLoss(), torch.tensor(1 / TEMPERATURE)

    def step():
        image.grad = text.grad = None
        if peer:
            loss(image, text, scale).backward()
        else:
            clip_loss(image, text, temperature=TEMPERATURE).backward()
        return image.grad

    return step


def queue_step(batch, peer=False):
    query, key = unit(batch, QUEUE[1]).requires_grad_(), unit(batch, QUEUE[1]).flip(0)
    if peer:
        from lightly.loss import NTXentLoss

        loss = NTXentLoss(temperature=TEMPERATURE, memory_bank_size=QUEUE)
        loss(query[:2].detach(), key[:2])  # allocates the bank, which is no cost of the step
    else:
        queue = unit(*QUEUE)

    def step():
        query.grad = None
        if peer:
            loss(query, key).backward()
        else:
            info_nce(query, key, queue, temperature=TEMPERATURE).backward()
        return query.grad

    return step


CASES = {
    "clip 512": lambda: clip_step(512, 512),
    "clip 512 open_clip": lambda: clip_step(512, 512, peer=True),
    "clip 16384": lambda: clip_step(16_384, 256),
    "clip 16384 open_clip": lambda: clip_step(16_384, 256, peer=True),
    "queue": lambda: queue_step(256),
    "queue lightly": lambda: queue_step(256, peer=True),
}


def compare(what, case, package, peer, repeat, note=""):
    """One row: times interleaved in this process, memory in a process each."""
    mine = CASES[case]()
    if not installed(package):
        (ours,) = interleaved_ms(mine, repeat=repeat)
        return Row(
            what,
            ours,
            peer,
            None,
            growth_in_a_fresh_process(__file__, case),
            None,
            f"{package} not installed",
        )
    ours, theirs = interleaved_ms(mine, CASES[f"{case} {package}"](), repeat=repeat)
    memory = [growth_in_a_fresh_process(__file__, name) for name in (case, f"{case} {package}")]
    return Row(what, ours, peer, theirs, *memory, note)


def rows():
    yield compare("clip_loss 512 x 512", "clip 512", "open_clip", "ClipLoss", 60, "goal: ratio 0.6")
    yield compare(
        "info_nce 256 x 256, queue 65,536",
        "queue",
        "lightly",
        "NTXentLoss",
        9,
        "goal: ratio 0.45, memory a tenth",
    )
    goal = "goal: grow by 300 MB at most; the logits alone are 1,024 MB"
    yield compare("clip_loss 16,384 x 256", "clip 16384", "open_clip", "ClipLoss", 1, goal)


if __name__ == "__main__":
    torch.set_num_threads(1)
    clip_step(4, 4)()  # warm up what a first call loads
    print(growth_mb(CASES[sys.argv[1]]()))
