"""MoCo's whole step on given features beside lightly's NTXentLoss with its memory bank.

A step is the loss, the accuracy (ours only), the gradient of the queries and the keys' way into the queue.
`python moco.py CASE` prints the memory growth of one case in MB.
"""

import sys

import torch
import torch.nn.functional as F
from measure import Row, growth_in_a_fresh_process, growth_mb, installed, interleaved_ms

from vlnotes.encoders import ConvTower
from vlnotes.moco import MoCo

TEMPERATURE = 0.07
BATCH, SIZE, DIM = 256, 65_536, 256


def moco_step(peer=False):
    dice = torch.Generator().manual_seed(0)
    query, key = (F.normalize(torch.randn(BATCH, DIM, generator=dice), dim=1) for _ in range(2))
    query.requires_grad_()
    if peer:
        from lightly.loss import NTXentLoss

        loss = NTXentLoss(temperature=TEMPERATURE, memory_bank_size=(SIZE, DIM))
        loss(query[:2].detach(), key[:2])  # allocates the bank, which is no cost of the step
    else:
        model = MoCo(ConvTower(64), dim=DIM, queue_size=SIZE, temperature=TEMPERATURE)

    def step():
        query.grad = None
        (loss(query, key) if peer else model.contrast(query, key)["loss"]).backward()
        return query.grad

    return step


CASES = {"ours": moco_step, "lightly": lambda: moco_step(peer=True)}


def rows():
    what, note = "MoCo step 256 x 256, queue 65,536", "goal: ratio 0.5"
    mine = growth_in_a_fresh_process(__file__, "ours")
    if not installed("lightly"):
        yield Row(what, *interleaved_ms(moco_step(), repeat=9), "NTXentLoss", None, mine, None, "lightly not installed")
        return
    ours, theirs = interleaved_ms(moco_step(), moco_step(peer=True), repeat=9)
    yield Row(what, ours, "NTXentLoss", theirs, mine, growth_in_a_fresh_process(__file__, "lightly"), note)


if __name__ == "__main__":
    torch.set_num_threads(1)
    CASES[sys.argv[1]]()()  # warm up what a first call loads
    print(growth_mb(CASES[sys.argv[1]]()))
