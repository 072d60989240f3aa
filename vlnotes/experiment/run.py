"""What all methods share: open the data, train with a checkpoint, write everything down."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vlnotes import __version__
from vlnotes.datasets import CaptionDataset, PairDataset, load_pictures, open_captions
from vlnotes.text import save_tokenizer, train_tokenizer, unknown_rate
from vlnotes.train import epoch_indices, pick_device, pick_precision, train, trim_padding

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerFast

IN_MEMORY = 4 * 2**30  # bytes of pictures that are kept in memory rather than read again every epoch
UNFINISHED = "unfinished.safetensors"
BY_HEART = 100  # epochs after which a set is no longer understood


class Run:
    """One training on a path, from its data to its record.

    All pictures are opened at once: a bad one should stop us, or be left out, before the training and not after it.

    Args:
        path: anything that `open_captions` reads.
        out: folder for all that is written.
        method: its name in the record.
        size: pixels a side.
        batch_size: B; made smaller where the data has fewer training pictures.
        seed: of the shuffles and the split, where the data has none.
        skip_bad: go on without entries that cannot be used.
        progress: print what happens and show bars.

    Raises:
        ValueError: a size or batch that is too small, data that cannot be used, named by file and entry.
    """

    def __init__(
        self,
        path: str | Path,
        out: str | Path,
        method: str,
        *,
        size: int,
        batch_size: int,
        seed: int,
        skip_bad: bool,
        progress: bool,
    ):
        if batch_size < 2 or size < 16:
            raise ValueError(f"expected batch_size >= 2 and size >= 16; got {batch_size}, {size}")
        self.path, self.out, self.method = Path(path), Path(out), method
        self.size, self.seed, self.progress = size, seed, progress
        self.say = print if progress else (lambda *words: None)
        self.parts, self.split = _parts(path, skip_bad, seed)
        for name, part in self.parts.items():
            self.say(f"{name:<6} {part.report()}")
        self.say(f"split  {self.split}")
        self.train_data, self.test_data = self.parts["train"], self.parts["test"]
        fits = 3 * size * size * len(self.train_data) <= IN_MEMORY
        self.images = (
            load_pictures(self.train_data, size) if fits else None
        )  # (N, 3, size, size) uint8, or read on the way
        self.test_images = load_pictures(self.test_data, size)
        if not fits:
            self.train_data.verify(progress)
        if len(self.train_data) < 2:
            raise ValueError(
                f"{path}: {len(self.train_data)} training pictures; contrast needs at least 2; {self.split}"
            )
        self.batch_size = min(batch_size, len(self.train_data))

    def tokenizer(self) -> "tuple[PreTrainedTokenizerFast, float]":
        """Word pieces of the training captions.

        Returns:
            The tokenizer, and the share of the test tokens that it does not know.
        """
        words = [caption for captions in self.train_data.captions for caption in captions]
        letters = len({letter for caption in words for letter in caption})  # some scripts have thousands
        tokenizer = train_tokenizer(words, vocab_size=8000 + 2 * letters, kind="wordpiece")
        unknown = unknown_rate(tokenizer, [c for captions in self.test_data.captions for c in captions])
        pieces = f"{len(tokenizer)} pieces from the training captions"
        self.say(f"words  {pieces}; {unknown:.1%} of the test tokens are unknown")
        return tokenizer, unknown

    def fit(
        self,
        model: nn.Module,
        batches: Callable[[int], dict[str, Tensor]],
        settings: dict,
        *,
        steps: int | None,
        minutes: float | None,
        learning_rate: float,
        device: str | None,
        resume: bool,
        unfinished: str = UNFINISHED,
    ) -> "pd.DataFrame":
        """Train, or go on with an unfinished training of the same settings in `out`.

        Args:
            model: trained in place; `model.built` goes into the record.
            batches: step -> batch.
            settings: all that makes this run this run, JSON values.
            steps: see `vlnotes.train.train`.
            minutes: as well.
            learning_rate: as well.
            device: see `vlnotes.train.pick_device`.
            resume: False starts again.
            unfinished: name of the checkpoint in `out`.

        Returns:
            The history.

        Raises:
            ValueError: an unfinished run of other settings.
        """
        checkpoint = self.out / unfinished
        if not resume:
            checkpoint.unlink(missing_ok=True)
        elif checkpoint.exists():
            self.say(f"going on with the unfinished run in {checkpoint}")
        device = pick_device(device)
        precision = pick_precision(device)
        history = train(
            model,
            batches,
            steps=steps,
            minutes=minutes,
            learning_rate=learning_rate,
            device=device,
            precision=precision,
            seed=self.seed,
            checkpoint=checkpoint,
            checkpoint_seconds=30.0,
            settings={"method": self.method, **settings, "data": digest(self.train_data)},
            workers=0 if self.images is not None else 4,
            progress=self.progress,
        )
        rate = {"learning_rate": learning_rate, "precision": precision}
        self.settings = {**settings, **model.built, "seed": self.seed, **rate}
        self.fitted = time.perf_counter()
        return history

    def finish(
        self,
        model: nn.Module,
        history: "pd.DataFrame",
        scores: dict,
        *,
        tokenizer: "PreTrainedTokenizerFast | None" = None,
        last: Iterable[str] = (),
        **more,
    ) -> dict:
        """Write weights, model.json, tokenizer, history.csv and record.json; the checkpoint goes.

        Args:
            model: trained; `save(folder)`.
            history: of `fit`.
            scores: JSON values.
            tokenizer: of a model that reads.
            last: columns of the history whose mean over the last 50 steps is kept.
            more: JSON values for the record.

        Returns:
            The record.
        """
        bad = dict.fromkeys(item for part in self.parts.values() for item in part.skipped)
        record = {
            "vlnotes": __version__,
            "torch": torch.__version__,
            "method": self.method,
            "data": {
                "name": self.path.name,
                "layout": self.train_data.layout,
                **{name: len(part) for name, part in self.parts.items()},
                "split": self.split,
            },
            "settings": self.settings,
            "machine": {"device": history.attrs["device"], "threads": history.attrs["threads"]},
            "steps": len(history),
            "epochs": round(len(history) * self.batch_size / len(self.train_data), 2),
            "seconds": {
                "training": float(history["seconds"].iloc[-1]),
                "scoring": time.perf_counter() - self.fitted,
            },
            "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            **more,
            "skipped": [list(item) for item in bad],
            "last": {name: float(history[name].iloc[-50:].mean()) for name in ("loss", *last)},
            "scores": scores,
        }
        model.save(self.out)
        if tokenizer is not None:
            save_tokenizer(tokenizer, self.out / "tokenizer")
        history.to_csv(self.out / "history.csv", index=False)
        (self.out / "record.json").write_text(json.dumps(record, indent=1) + "\n")
        (self.out / UNFINISHED).unlink(missing_ok=True)
        return record

    def tell(self, record: dict, shown: str, end: str) -> None:
        """Print how it went.

        Args:
            record: from `finish`.
            shown: the scores, as text.
            end: what else to say in the line about the training.
        """
        self.say(shown)
        if record["epochs"] > BY_HEART:
            times = f"every picture was seen {record['epochs']:.0f} times"
            self.say(f"note   {times}: so small a set is learnt by heart, not understood\n")
        files = ["weights", *(["tokenizer"] if (self.out / "tokenizer").is_dir() else []), "history.csv"]
        self.say(
            f"{record['steps']} steps ({record['epochs']} epochs) in {record['seconds']['training']:.0f} s on "
            f"{record['machine']['device']}, {record['settings']['precision']}; {end}\n"
            f"{', '.join(files)} and record.json are in {self.out}"
        )


def batches_of(pairs: PairDataset, batch_size: int, seed: int = 0):
    """Batches as a function of the step, from memory or from disk.

    Args:
        pairs: pictures with tokenised captions.
        batch_size: B.
        seed: of the shuffles and of the choice among a picture's captions.

    Returns:
        A function step -> batch, for `vlnotes.train.train`.
    """

    def batch_at(step: int) -> dict[str, Tensor]:
        dice = torch.Generator().manual_seed(seed * 7_368_787 + step)
        return trim_padding(pairs.batch(epoch_indices(step, len(pairs), batch_size, seed), generator=dice))

    return batch_at


def digest(data: CaptionDataset) -> str:
    """A short name for exactly this data, so that a run never goes on with another.

    Args:
        data: pictures with captions.

    Returns:
        12 hexadecimal digits of ids, captions and file sizes.
    """
    sizes = [os.path.getsize(file) for file in data.files]
    return hashlib.sha256(json.dumps([data.ids, data.captions, sizes]).encode()).hexdigest()[:12]


def _parts(path, skip_bad: bool, seed: int) -> tuple[dict[str, CaptionDataset], str]:
    """Training and test part: those of the data, or a split by concept (by picture where there are none)."""
    whole = open_captions(path, skip_bad=skip_bad)
    names = set(whole.splits)

    def part(name: str) -> CaptionDataset:
        return whole.subset([index for index, split in enumerate(whole.splits) if split == name])

    held = [name for name in ("test", "val") if name in names]
    if "train" in names and held:
        return {"train": part("train"), "test": part(held[0])}, f"as in the data: train, {held[0]}"
    if whole.skipped and names <= {"test", "val"}:
        raise ValueError(
            f"{path}: only {sorted(names)} is left after skipping {len(whole.skipped)}; nothing to train on"
        )
    keys = whole.concepts or list(range(len(whole)))
    kinds = sorted(set(keys), key=str)
    dice = torch.randperm(len(kinds), generator=torch.Generator().manual_seed(seed)).tolist()
    held = {kinds[i] for i in dice[: max(1, len(kinds) // 5)]}
    chosen = [i for i, key in enumerate(keys) if key in held]
    others = [i for i, key in enumerate(keys) if key not in held]
    unit = "concept" if whole.concepts else "picture"
    how = f"ours: a fifth held out by {unit}, seed {seed} (the data has {sorted(names)})"
    return {"train": whole.subset(others), "test": whole.subset(chosen)}, how
