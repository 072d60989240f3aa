"""Ablations: the same training with and without one trick, over several seeds, kept in `data/runs`.

`python -m vlnotes claims run` does the runs that are missing, seed by seed, so that the table is whole after every
round; `claims table` prints it. A run is named by a hash of its settings: changed settings make new runs.
"""

import hashlib
import json
import math
import os
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from vlnotes import __version__, world
from vlnotes.clip import CLIP, LARGEST_SCALE, encode_images, encode_texts
from vlnotes.contrastive import clip_loss, info_nce
from vlnotes.metrics import any_true_recall
from vlnotes.records import records_file
from vlnotes.text import encode, train_tokenizer
from vlnotes.train import pair_batches, train

RUNS = records_file().parent / "runs"
SEEDS = (0, 1, 2)
COMMON = {"domain": "paper", "pictures": 6000, "captions": "full", "steps": 200, "batch_size": 128, "scale": "tiny"}
ABLATIONS: dict[str, dict[str, dict]] = {
    "02.temperature": {
        "learnt, from 0.07": {},
        "fixed at 0.07": {"temperature": 0.07},
        "fixed at 0.3": {"temperature": 0.3},
        "none (fixed at 1)": {"temperature": 1.0},
        "learnt, rows only": {"rows_only": True},
    }
}


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


def run_arm(settings: dict, seed: int, progress: bool = False) -> dict[str, float]:
    """One training run and its scores.

    Args:
        settings: those of `COMMON` and of the arm.
        seed: of the weights, the shuffles, and nothing else: all arms see the same pictures.
        progress: show a bar.

    Returns:
        any-true recall in a gallery of 1,000 unseen pictures, "i2t@1" ... in [0, 1], and the seconds of training.
    """
    paper = world.World(settings["domain"], seed=0)
    data = world.pairs(paper.scenes(settings["pictures"]), (settings["captions"],))
    tokenizer = train_tokenizer(data.texts)
    batches = pair_batches(data.images, encode(tokenizer, data.texts), data.text_to_image, settings["batch_size"], seed)
    model = CLIP.tiny(len(tokenizer), seed=seed)
    arm = Arm(model, settings.get("temperature"), settings.get("rows_only", False))
    history = train(arm, batches, steps=settings["steps"], seed=seed, progress=progress)
    gallery = world.pairs(paper.scenes(1000, split="test"), ("full",))
    images, texts = encode_images(model, gallery.images), encode_texts(model, encode(tokenizer, gallery.texts))
    found = any_true_recall(images @ texts.T, world.truth(gallery.scenes, gallery.captions), ks=(1, 10))
    made = {"device": history.attrs["device"], "precision": history.attrs["precision"]}
    return found | {"seconds": float(history["seconds"].iloc[-1])} | made


def run(minutes: float | None = None, folder: Path = RUNS, progress: bool = True) -> int:
    """Do the runs that are missing, seed by seed.

    Args:
        minutes: start no run after so many minutes; None does all.
        folder: where the results are kept, one JSON file a run.
        progress: print a line a run.

    Returns:
        How many runs are still missing.
    """
    start, missing = time.perf_counter(), 0
    for seed in SEEDS:
        for name, arms in ABLATIONS.items():
            for arm, settings in arms.items():
                file = _file(folder, name, COMMON | settings, seed)
                if file.exists():
                    continue
                if minutes is not None and time.perf_counter() - start > 60 * minutes:
                    missing += 1
                    continue
                scores = run_arm(COMMON | settings, seed)
                versions = {"vlnotes": __version__, "torch": torch.__version__.split("+")[0]}
                row = {"ablation": name, "arm": arm, "seed": seed, "settings": COMMON | settings, "scores": scores}
                folder.mkdir(parents=True, exist_ok=True)
                unfinished = file.with_suffix(".part")
                unfinished.write_text(json.dumps(row | {"made_with": versions}, indent=1) + "\n")
                os.replace(unfinished, file)
                if progress:
                    print(f"{name}  seed {seed}  {arm:<20} t2i@1 {100 * scores['t2i@1']:.1f} %", flush=True)
    return missing


def table(name: str, folder: Path = RUNS, scores: tuple[str, ...] = ("i2t@1", "t2i@1", "i2t@10")) -> str:
    """Mean and spread of every arm.

    Args:
        name: of the ablation, such as "02.temperature".
        folder: where the results are kept.
        scores: which of them to show, in percent.

    Returns:
        An aligned table; "+-" is the standard deviation over the seeds.

    Raises:
        ValueError: an unknown ablation.
    """
    if name not in ABLATIONS:
        raise ValueError(f"there is no ablation {name!r}; there are {', '.join(ABLATIONS)}")
    lines = [f"{'arm':<20}" + "".join(f"{score:>16}" for score in scores) + "   seeds"]
    for arm, settings in ABLATIONS[name].items():
        files = [_file(folder, name, COMMON | settings, seed) for seed in SEEDS]
        rows = [json.loads(file.read_text())["scores"] for file in files if file.exists()]
        cells = ""
        for score in scores:
            values = [100 * row[score] for row in rows]
            spread = f" +- {statistics.stdev(values):4.1f}" if len(values) > 1 else ""
            cells += f"{(f'{statistics.mean(values):.1f}{spread}' if values else 'not run'):>16}"
        lines.append(f"{arm:<20}{cells}{len(rows):>8}")
    few = "; with fewer than 5 seeds a tendency, not a verdict" if len(SEEDS) < 5 else ""
    lines.append(f"scale {COMMON['scale']}: {COMMON['pictures']} pictures, {COMMON['steps']} steps{few}")
    return "\n".join(lines)


def main(action: str, minutes: float | None = None) -> int:
    """`python -m vlnotes claims list | run | table`.

    Args:
        action: one of the three words.
        minutes: for run, see there.

    Returns:
        0, or 1 when runs are still missing.
    """
    if action == "list":
        for name, arms in ABLATIONS.items():
            print(f"{name}: {'; '.join(arms)}; seeds {', '.join(map(str, SEEDS))}")
        return 0
    if action == "run":
        missing = run(minutes)
        print(f"{missing} runs are still missing" if missing else "all runs are there", file=sys.stderr)
        return int(missing > 0)
    for name in ABLATIONS:
        print(f"{name}\n{table(name)}\n")
    return 0


def _file(folder: Path, name: str, settings: dict, seed: int) -> Path:
    digest = hashlib.sha256(json.dumps([name, settings, seed], sort_keys=True).encode()).hexdigest()[:12]
    return folder / f"{name}-{digest}.json"
