"""What minutes buy: CLIP from scratch on the paper domain, any-true recall in a gallery of 1,000.

On all cores; the pictures are drawn before the clock starts. Not a race with a peer: the
columns of milliseconds hold the time of a training step.
"""

import os

import torch

from vlnotes import world
from vlnotes.clip import CLIP, encode_images, encode_texts
from vlnotes.metrics import any_true_recall
from vlnotes.text import encode, train_tokenizer
from vlnotes.train import pair_batches, train

RUNS = [("full captions", ("full",), 1.0), ("default caption mix", world.KINDS, 3.0)]


def rows() -> list[dict]:
    """One row a run: one minute on full captions, three minutes on the default mix.

    Returns:
        dicts with what, ours_ms, peer, peer_ms, note.
    """
    return [one(*run) for run in RUNS]


def one(name: str, kinds: tuple[str, ...], minutes: float, count: int = 16_000, seed: int = 0) -> dict:
    """Train for some minutes, then score.

    Args:
        name: what the row is called.
        kinds: of captions to train on.
        minutes: time budget of the training.
        count: training pictures.
        seed: of the weights and the shuffles.

    Returns:
        The row.
    """
    paper = world.World("paper", seed=0)
    data = world.pairs(paper.scenes(count), kinds)
    gallery = world.pairs(paper.scenes(1000, split="test"), ("full",))
    tokenizer = train_tokenizer(data.texts)
    batches = pair_batches(data.images, encode(tokenizer, data.texts), data.text_to_image, 128, seed)
    model = CLIP.tiny(len(tokenizer), seed=seed)
    torch.set_num_threads(os.cpu_count())
    history = train(model, batches, minutes=minutes, seed=seed, progress=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    images = encode_images(model, gallery.images)
    texts = encode_texts(model, encode(tokenizer, gallery.texts))
    truth = world.truth(gallery.scenes, gallery.captions)
    found = any_true_recall(images @ texts.T, truth, ks=(1, 10))
    shown = ", ".join(f"{key} {100 * value:.1f} %" for key, value in found.items())
    return {
        "what": f"CLIP, {minutes:g} min, {name}",
        "ours_ms": 1000 * history["seconds"].iloc[-1] / len(history),
        "peer": None,
        "peer_ms": None,
        "note": f"{len(history)} steps, {history.attrs['precision']}, {threads} threads; {shown}",
    }
