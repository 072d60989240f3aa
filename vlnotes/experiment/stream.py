"""One domain after another: train phase by phase, and after each ask for every domain what is left of it."""

import json
import os
import shutil
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from vlnotes import metrics
from vlnotes.clip import encode_images, encode_texts
from vlnotes.datasets import CaptionDataset, PairDataset, Phase, by_label, caption_targets
from vlnotes.experiment.run import Run, batches_of, digest
from vlnotes.modx import PRESETS, Continual, ModX
from vlnotes.text import encode

if TYPE_CHECKING:
    import pandas as pd

KS = (1, 5, 10)
HOUSEKEEPING = {"step", "loss", "temperature", "learning_rate", "seconds", "phase"}  # of a history; no losses
STATE = "stream.json"  # which phases are done, and how well


def train_modx_on(
    path: str | Path,
    out: str | Path,
    *,
    stream: str,
    order: Sequence[str] | None = None,
    minutes: float | None = 5.0,
    steps: int | None = None,
    preset: str = "code",
    weight: float | None = None,
    image: str = "conv",
    size: int = 64,
    length: int = 40,
    batch_size: int = 128,
    learning_rate: float = 3e-3,
    device: str | None = None,
    seed: int = 0,
    skip_bad: bool = False,
    resume: bool = True,
    progress: bool = True,
    kind: type[Continual] = ModX,
    **options,
) -> dict:
    """Train a small CLIP on one domain after another with Mod-X, and say what is left of each domain after every phase.

    Every phase has a warm-up and a cosine of its own. The tokenizer knows the words of all phases from the start, so
    that what is forgotten is not the vocabulary. A run that was killed goes on in the middle of its phase.

    Args:
        path: anything that `open_captions` reads and whose entries have more fields than picture and caption.
        out: folder for weights.safetensors, model.json, the tokenizer, history.csv and record.json, and for the model
            as it was after each phase, in phase-1, phase-2 ...
        stream: the field of the entries that parts them; a phase for each of its values.
        order: the values in the order of their phases; None: as they first appear.
        minutes: time budget of the whole training, the same for every phase; None for no limit (then `steps` is
            needed).
        steps: number of steps of each phase; None for as many as fit the minutes.
        preset: a key of `vlnotes.modx.PRESETS`; of ModX alone.
        weight: of what keeps the past, in place of the preset's.
        image: the image tower, see `CLIP.tiny`.
        size: pixels a side.
        length: L, tokens a caption; longer ones are cut, and counted in a warning.
        batch_size: B; made smaller in phases with fewer training pictures.
        learning_rate: of AdamW, at its peak in every phase.
        device: see `vlnotes.train.pick_device`.
        seed: of the weights, the shuffles and the split, where the data has none.
        skip_bad: go on without entries that cannot be used; they are counted and listed.
        resume: go on with an unfinished run of the same settings in `out`.
        progress: print what happens and show bars.
        kind: ModX, `Continual` for plain fine-tuning, or a rival of `vlnotes.rivals`.
        options: more of `kind`, JSON values.

    Returns:
        The record that is also written to record.json. Its scores: "phases", their names; "after", for every phase the
        recalls of every domain, shares in [0, 1], by picture and, where there are concepts, by concept; "untrained"
        and "chance" to compare with; "matrix", mean recall at 1 of both directions, by concept where there are any, a
        row a phase and a column a domain; "continual", what `continual_scores` makes of it.

    Raises:
        ValueError: data that cannot be used; a field that an entry lacks, values of one kind only, an order that does
            not name each once, a phase with fewer than 2 training pictures or without test pictures; an unknown preset.
    """
    if issubclass(kind, ModX):
        if preset not in PRESETS:
            raise ValueError(f"preset is {preset!r}; expected one of {', '.join(map(repr, PRESETS))}")
        options = {**PRESETS[preset], **options}
    if weight is not None:
        options["weight"] = weight
    method = "fine-tuning" if kind is Continual else kind.__name__.lower()
    run = Run(path, out, method, size=size, batch_size=batch_size, seed=seed, skip_bad=skip_bad, progress=progress)
    phases = stream_phases(run.train_data, stream, order, where=str(path))
    tests = _tests(run, stream, phases)
    names = [phase.name for phase in phases]
    run.say(f"stream {stream}: " + ", ".join(f"{name} {len(indices):,}" for name, indices in phases))
    tokenizer, unknown = run.tokenizer()
    model = kind.tiny(len(tokenizer), image=image, seed=seed, **options)
    for test in tests.values():
        test.tokens.update(encode(tokenizer, test.captions, length))
    untrained = _recalls(model, tests)

    settings = {"image": image, "size": size, "length": length, "stream": stream, "phases": names, **options}
    whole = {"method": method, **settings, "batch_size": run.batch_size, "steps": steps, "minutes": minutes}
    whole |= {"learning_rate": learning_rate, "seed": seed, "data": digest(run.train_data)}
    done = _Done(run.out, whole, resume)
    if done.after:
        model = kind.load(done.folder(len(done.after)))
        run.say(f"going on after phase {names[len(done.after) - 1]} of the unfinished run in {run.out}")
    fed: Callable[[int], dict[str, Tensor]] | None = None
    per_epoch = 0
    histories = [*done.histories]
    for at, phase in enumerate(phases):
        if at < len(done.after) - 1:  # of the last one that is done, the next may want to see the data
            continue
        rows = phase.indices.tolist()
        some = None if run.images is None else run.images[phase.indices]
        pairs = PairDataset(run.train_data.subset(rows), tokenizer, some, size=size, length=length)
        many = min(run.batch_size, len(rows))
        if at >= len(done.after):
            if fed is not None:
                model.start_phase(_epoch(fed, per_epoch))
            run.say(f"\nphase {at + 1} of {len(phases)}: {phase.name}, batches of {many}")
            history = run.fit(
                model,
                batches_of(pairs, many, seed + 1000 * at),
                {**settings, "batch_size": many, "phase": phase.name},
                steps=steps,
                minutes=None if minutes is None else minutes / len(phases),
                learning_rate=learning_rate,
                device=device,
                resume=resume,
                unfinished=f"unfinished-{at + 1}.safetensors",
            )
            history["phase"] = phase.name
            histories.append(history)
            after = _recalls(model, tests)
            run.say(_line(after, names[: at + 1]))
            if at + 1 < len(phases):  # the last one is done when the record is written
                done.add(model, history, after)
        fed, per_epoch = batches_of(pairs, many, seed + 1000 * at), len(rows) // many

    everything = [*done.after, after]
    scores = {
        "phases": names,
        "after": everything,
        "untrained": untrained,
        "chance": {name: test.chance() for name, test in tests.items()},
        "matrix": [[_one(row[name]) for name in names] for row in everything],
    }
    start = torch.tensor([_one(untrained[name]) for name in names])
    scores["continual"] = metrics.continual_scores(torch.tensor(scores["matrix"]), start)
    told = [phase.indices for phase in phases]
    epochs = [len(h) * min(run.batch_size, len(rows)) / len(rows) for h, rows in zip(histories, told, strict=True)]
    joined = _joined(histories)
    record = run.finish(
        model,
        joined,
        scores,
        tokenizer=tokenizer,
        last=[name for name in history if name not in HOUSEKEEPING],
        unknown_test_tokens=unknown,
        epochs=round(sum(epochs) / len(epochs), 2),
    )
    done.clear()
    gallery = ", ".join(f"{len(test.images)} {name}" for name, test in tests.items())
    run.tell(record, f"\n{stream_table(scores)}\n", f"test pictures: {gallery}")
    return record


def stream_phases(
    data: CaptionDataset, field: str, order: Sequence[str] | None = None, where: str = "data"
) -> list[Phase]:
    """The phases of a data set whose entries say where they come from.

    Args:
        data: pictures with captions.
        field: the name of what parts them, such as "vendor".
        order: its values in the order of the phases; None: as they first appear.
        where: what errors call the data.

    Returns:
        At least 2 phases, each with at least 2 pictures.

    Raises:
        ValueError: an entry without the field, fewer than 2 values, an order that does not name each once, a phase
            with a single picture.
    """
    phases = by_label(_values(data, field, where), None if order is None else list(map(str, order)))
    if len(phases) < 2:
        raise ValueError(f"{where}: {field} is {phases[0].name!r} everywhere; a stream needs 2 phases or more")
    for name, indices in phases:
        if len(indices) < 2:
            raise ValueError(f"{where}: phase {name!r} of {field} has 1 training picture; contrast needs at least 2")
    return phases


def stream_table(scores: dict) -> str:
    """Domains by phases as text, percentages, with what it comes to.

    Args:
        scores: `train_modx_on(...)["scores"]`.

    Returns:
        An aligned table; a domain that no phase has taught yet is in brackets.
    """
    names = scores["phases"]
    wide = max(9, *(len(name) + 2 for name in names))
    first = max(len(name) for name in (*names, "untrained")) + 6
    lines = ["mean recall at 1".ljust(first) + "".join(name.rjust(wide) for name in names)]
    rows = [("untrained", [_one(scores["untrained"][name]) for name in names], 0)]
    rows += [(f"after {name}", row, at + 1) for at, (name, row) in enumerate(zip(names, scores["matrix"], strict=True))]
    for name, row, taught in rows:
        cells = [f"{100 * value:.1f}%" if at < taught else f"({100 * value:.1f}%)" for at, value in enumerate(row)]
        lines.append(name.ljust(first) + "".join(cell.rjust(wide) for cell in cells))
    lines.append(", ".join(f"{name} {100 * value:.1f}" for name, value in scores["continual"].items()) + " (points)")
    return "\n".join(lines)


class _Test(NamedTuple):
    """The test pictures and captions of one domain."""

    images: Tensor  # (N, 3, H, W)
    captions: list[str]  # M of them
    tokens: dict[str, Tensor]  # each (M, L), filled in when there is a tokenizer
    owner: Tensor  # (M,)
    same: Tensor | None  # (N, M) bool, by concept

    def chance(self) -> dict[str, dict[str, float]]:
        found = {"by picture": metrics.chance_recall(len(self.images), self.owner, ks=KS)}
        return found if self.same is None else {**found, "by concept": metrics.chance_recall(truth=self.same, ks=KS)}


class _Done:
    """Which phases are over: stream.json and a folder with the model for each. Whole or not at all."""

    def __init__(self, out: Path, settings: dict, resume: bool):
        import pandas as pd

        self.out, self.settings, self.after, self.histories = out, settings, [], []
        file = out / STATE
        if not resume:
            self.clear()
        elif file.exists():
            try:
                told = json.loads(file.read_text())
                theirs, self.after = told["settings"], told["after"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{file} is damaged ({error}); delete it or name another folder") from error
            settings = json.loads(json.dumps(settings))
            if theirs != settings:
                names = sorted(theirs.keys() | settings.keys())
                differ = {k: (theirs.get(k), settings.get(k)) for k in names if theirs.get(k) != settings.get(k)}
                raise ValueError(
                    f"{file} belongs to another run; (there, here): {differ}. Name another folder or delete it."
                )
            for number in range(1, len(self.after) + 1):
                self.histories.append(pd.read_csv(self.folder(number) / "history.csv"))
                self._checkpoint(number).unlink(missing_ok=True)

    def folder(self, number: int) -> Path:
        return self.out / f"phase-{number}"

    def add(self, model: Continual, history: "pd.DataFrame", after: dict) -> None:
        number = len(self.after) + 1
        folder = self.folder(number)
        if folder.exists():
            shutil.rmtree(folder)
        model.save(folder)
        history.to_csv(folder / "history.csv", index=False)
        self.after.append(after)
        unfinished = self.out / f"{STATE}.part"
        unfinished.write_text(json.dumps({"settings": self.settings, "after": self.after}))
        os.replace(unfinished, self.out / STATE)
        self._checkpoint(number).unlink(missing_ok=True)

    def clear(self) -> None:
        (self.out / STATE).unlink(missing_ok=True)
        for checkpoint in self.out.glob("unfinished-*.safetensors"):
            checkpoint.unlink()

    def _checkpoint(self, number: int) -> Path:
        return self.out / f"unfinished-{number}.safetensors"


def _values(data: CaptionDataset, field: str, where: str) -> list[Hashable]:
    """The field of every entry, as text."""
    found = [extra.get(field) for extra in data.extra]
    without = [data.ids[row] for row, value in enumerate(found) if value is None or value == ""]
    if without:
        fields = sorted({str(key) for extra in data.extra for key in extra})
        have = f"fields here: {', '.join(fields)}" if fields else f"a {data.layout} file has no fields"
        raise ValueError(
            f"{where}: {len(without)} of {len(data)} pictures have no {field!r} (such as {without[0]!r}); "
            f"a stream needs it in every entry; {have}"
        )
    odd = [value for value in found if not isinstance(value, str | int | float)]
    if odd:
        raise ValueError(f"{where}: {field} is {odd[0]!r} in one entry; expected a word or a number")
    return [str(value) for value in found]


def _tests(run: Run, field: str, phases: list[Phase]) -> dict[str, _Test]:
    values = _values(run.test_data, field, f"{run.path}, test part")
    strange = sorted(set(values) - {phase.name for phase in phases})
    if strange:
        raise ValueError(f"{run.path}: test pictures of {field} {', '.join(strange)} have no training phase")
    tests = {}
    for phase in phases:
        rows = [row for row, value in enumerate(values) if value == phase.name]
        if not rows:
            raise ValueError(f"{run.path}: phase {phase.name!r} of {field} has no test pictures; its recall needs some")
        data = run.test_data.subset(rows)
        targets = caption_targets(data)
        same = metrics.truth_from_labels(targets.image_concept, targets.text_concept) if data.concepts else None
        tests[phase.name] = _Test(run.test_images[rows], targets.captions, {}, targets.text_to_image, same)
    return tests


def _recalls(model: Continual, tests: dict[str, _Test]) -> dict[str, dict[str, dict[str, float]]]:
    found = {}
    for name, test in tests.items():
        similarity = encode_images(model, test.images) @ encode_texts(model, test.tokens).T  # (N, M)
        found[name] = {"by picture": metrics.recall_at_k(similarity, test.owner, ks=KS)}
        if test.same is not None:
            found[name]["by concept"] = metrics.any_true_recall(similarity, test.same, ks=KS)
    return found


def _epoch(batches: Callable[[int], dict[str, Tensor]], count: int) -> Iterator[dict[str, Tensor]]:
    """Every picture of a phase once, but for the ragged end."""
    return (batches(step) for step in range(count))


def _one(row: dict[str, dict[str, float]]) -> float:
    """The one number for the matrix."""
    shares = row.get("by concept", row["by picture"])
    return (shares["i2t@1"] + shares["t2i@1"]) / 2


def _line(after: dict, names: list[str]) -> str:
    return "recall at 1 of " + ", ".join(f"{name} {100 * _one(after[name]):.1f}%" for name in names)


def _joined(histories: "list[pd.DataFrame]") -> "pd.DataFrame":
    """All phases below each other; seconds run on."""
    import pandas as pd

    parts, before = [], 0.0
    for history in histories:
        parts.append(history.assign(seconds=history["seconds"] + before))
        before = float(parts[-1]["seconds"].iloc[-1])
    table = pd.concat(parts, ignore_index=True)
    table.attrs.update(histories[-1].attrs)
    return table
