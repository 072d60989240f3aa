"""What pre-training buys: the downstream heads of ALBEF (Li et al. 2021, section 5) from three starts.

Every head learns as many steps from the trained ALBEF, from the towers of the trained CLIP below a fresh fusion, and
from random weights. The questions, statements and hypotheses are the world's, balanced so that the text says nothing.
"""

from functools import lru_cache

import torch
from torch import nn

from vlnotes import world
from vlnotes.albef import ALBEF
from vlnotes.claims.engine import Study, loss_curves
from vlnotes.downstream import Answerer, Judge, PairJudge, Tasks, predictions
from vlnotes.text import encode
from vlnotes.train import train
from vlnotes.weights import load

TINY = {
    **{"domain": "paper", "pictures": 1500, "tested": 300, "size": 64, "length": 40, "batch_size": 48, "steps": 200},
    **{"learning_rate": 1e-3, "distill_weight": 0.0, "momentum": 0.99, "assignment_steps": 0},
    **{"task": "questions", "head": "answerer", "start": "albef", "kinds": ["both"]},
}
TASKS = ("questions", "statements", "hypotheses", "assignments")
STARTS = {"albef": "albef-paper", "towers": "clip-paper towers", "random": "random"}


def begin(start: str, seed: int = 0) -> tuple[ALBEF, object]:
    """The ALBEF that a head takes over, and the tokenizer of the shipped weights.

    Args:
        start: "albef", the trained one; "towers", the towers of clip-paper below a fresh fusion; "random".
        seed: of what is fresh.

    Returns:
        The model and the tokenizer.

    Raises:
        ValueError: another start.
    """
    if start not in STARTS:
        raise ValueError(f"start is {start!r}; expected one of {', '.join(STARTS)}")
    trained, tokenizer = load("albef-paper")
    if start == "albef":
        return trained, tokenizer
    fresh = ALBEF.tiny(len(tokenizer), layers=trained.built["layers"], queue_size=0, seed=seed)
    return (fresh.start_from(load("clip-paper")[0]) if start == "towers" else fresh), tokenizer


def tasks(
    task: str,
    tokenizer,
    pictures: int,
    split: str = "train",
    domain: str = "paper",
    size: int = 64,
    length: int = 40,
    kinds: tuple[str, ...] = world.QUANTIFIERS,
) -> tuple[Tasks, list[str]]:
    """Texts with labels about pictures of a split, and the kind of each text.

    Args:
        task: "questions" (labels: rows of `answers(domain)`), "statements" (0 false, 1 true), "hypotheses" (rows of
            `LABELS`) or "assignments" (0 left, 1 right, 2 neither).
        tokenizer: of the weights.
        pictures: scenes to draw; without neighbours.
        split: "train", "val" or "test".
        domain: of the pictures.
        size: pixels a side.
        length: L, most tokens a text.
        kinds: of statements.

    Returns:
        `Tasks` and M kinds.

    Raises:
        ValueError: another task.
    """
    scenes = world.World(domain).scenes(pictures, split, neighbours=False)
    if task == "questions":
        said, words = world.questions(scenes), world.answers(domain)
        label, first, second = [words.index(one.answer) for one in said], [one.picture for one in said], None
    elif task == "hypotheses":
        said = world.hypotheses(scenes)
        label, first, second = [world.LABELS.index(one.label) for one in said], list(range(len(said))), None
        scenes = [one.scene for one in said]
    elif task in TASKS:
        if task == "statements":
            said = world.statements(scenes, pictures, kinds=kinds)
        else:
            said = world.assignments(world.pairs(scenes, size=size), pictures)
        label = [int(one.answer) for one in said]
        first, second = [one.left for one in said], [one.right for one in said]
    else:
        raise ValueError(f"task is {task!r}; expected one of {', '.join(TASKS)}")
    images = torch.cat([world.draw(scenes[at : at + 500], size) for at in range(0, len(scenes), 500)])
    columns = [torch.tensor(column) for column in (label, first)] + ([] if second is None else [torch.tensor(second)])
    return Tasks(images, encode(tokenizer, [one.text for one in said], length), *columns), [one.kind for one in said]


def build(settings: dict, albef: ALBEF, tokenizer) -> nn.Module:
    """The head of a run.

    Args:
        settings: as `TINY`.
        albef: what it starts from.
        tokenizer: of the shipped weights.

    Returns:
        An `Answerer`, a `Judge` or a `PairJudge`.
    """
    classes = {"questions": len(world.answers(settings["domain"])), "statements": 2, "hypotheses": 3, "assignments": 3}
    if settings["head"] == "pair":
        return PairJudge(albef, classes[settings["task"]])
    teacher = {name: settings[name] for name in ("distill_weight", "momentum")}
    if settings["head"] == "judge":
        return Judge(albef, classes[settings["task"]], **teacher)
    answers = encode(tokenizer, list(world.answers(settings["domain"])))
    return Answerer(
        albef, answers["input_ids"], answers["attention_mask"], ramp_steps=settings["steps"] // 2, **teacher
    )


def right(model: nn.Module, asked: Tasks, kinds: list[str]) -> dict[str, float]:
    """Shares of right answers.

    Args:
        model: a head.
        asked: what it is tried on.
        kinds: of its texts.

    Returns:
        "accuracy", and "accuracy KIND" for every kind, in [0, 1].
    """
    said, label = predictions(model, asked.in_order())
    hit = (said == label).float()
    of = {kind: torch.tensor([one == kind for one in kinds]) for kind in sorted(set(kinds))}
    return {"accuracy": float(hit.mean())} | {f"accuracy {kind}": float(hit[rows].mean()) for kind, rows in of.items()}


@lru_cache(maxsize=4)
def _drawn(task: str, pictures: int, split: str, domain: str, size: int, length: int, kinds: tuple[str, ...]):
    return tasks(task, load("clip-paper")[1], pictures, split, domain, size, length, kinds)


def run(settings: dict, seed: int) -> dict:
    """One head, trained and tried.

    Args:
        settings: as `TINY`; with assignment_steps a pair judge learns text assignment before, below a head that is then
            thrown away.
        seed: of what is fresh and of the shuffles; all runs see the same pictures and texts.

    Returns:
        `right` on scenes of test; loss_curve (means of twentieths of the run, nats); device.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        albef, tokenizer = begin(settings["start"], seed)
    found, history = carried(albef, tokenizer, settings, seed)
    return found | loss_curves(history, "loss") | {"device": history.attrs["device"]}


def carried(albef: ALBEF, tokenizer, settings: dict, seed: int):
    """A head on a model, trained and tried.

    Args:
        albef: what the head starts from.
        tokenizer: of the shipped weights.
        settings: as `TINY`, see `run`.
        seed: of what is fresh and of the shuffles.

    Returns:
        `right` on scenes of test, and the history of the training.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(settings, albef, tokenizer)
        if settings["assignment_steps"]:
            before = build(settings | {"task": "assignments"}, albef, tokenizer)
            _learn(before, "assignments", settings, settings["assignment_steps"], seed)
            model = before.to("cpu").with_head(model.classes)
    history = _learn(model, settings["task"], settings, settings["steps"], seed)
    asked, kinds = _drawn(settings["task"], settings["tested"], "test", *_shape(settings))
    return right(model, asked, kinds), history


def _shape(settings: dict) -> tuple:
    return *(settings[name] for name in ("domain", "size", "length")), tuple(settings["kinds"])


def _learn(model: nn.Module, task: str, settings: dict, steps: int, seed: int):
    fit, _ = _drawn(task, settings["pictures"], "train", *_shape(settings))
    together = 4 if task == "statements" else 1
    batches = fit.batches(settings["batch_size"], seed, together=together)
    return train(model, batches, steps=steps, learning_rate=settings["learning_rate"], seed=seed, progress=False)


_KINDS = {
    "decoder": {},
    "classifier": {"head": "judge"},
    "two pictures": {"task": "statements", "head": "pair", "learning_rate": 5e-4},
    "entailment": {"task": "hypotheses", "head": "judge", "distill_weight": 0.4},
}
STUDY = Study(
    name="07.downstream",
    run=run,
    common={"tiny": TINY},
    arms={
        **{
            f"{name}, {words}": changes | {"start": start}
            for name, changes in _KINDS.items()
            for start, words in STARTS.items()
        },
        "two pictures, after text assignment": _KINDS["two pictures"] | {"assignment_steps": 100},
        "two pictures, all kinds": _KINDS["two pictures"] | {"assignment_steps": 100, "kinds": list(world.QUANTIFIERS)},
        "entailment, no teacher": _KINDS["entailment"] | {"distill_weight": 0.0},
    },
    seeds=3,
)
