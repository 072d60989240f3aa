"""How far one gets without looking: the numbers beside which every score on the picture world is to be read.

Three baselines. `colour_recall` looks, but learns no picture features: words against colour histograms. `text_alone`
does not look at all: can a reader who only sees the sentences tell a true one from that of a one-edit neighbour?
If the world is fair it cannot, and reaches 50 %. `tasks_alone` reads the questions and statements of the tasks and
guesses the answers: if these are fair it gets no further than the commonest answer.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from vlnotes.metrics import any_true_recall, histogram_baseline
from vlnotes.world import (
    CAPTION_OF,
    EDITS,
    QUESTION_KINDS,
    World,
    assignments,
    captions,
    edits,
    hard_gallery,
    hypotheses,
    pairs,
    questions,
    statements,
    truth,
)

TRAIN, TEST = 4000, 4000  # scenes looked through for `text_alone`; not every scene has a neighbour of every kind


def colour_recall(
    domain: str = "paper", *, train: int = 5000, test: int = 1000, groups: int = 250, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Retrieval of full captions by colour histograms: any-true recall, without any learned picture features.

    Args:
        domain: name of a domain.
        train: pictures of train from which `vlnotes.metrics.histogram_baseline` learns which words go with which
            colours.
        test: size of the gallery of test.
        groups: of four one-edit neighbours in the hard gallery, see `vlnotes.world.hard_gallery`.
        seed: of the `World`.

    Returns:
        "test" and "hard" -> {"i2t@1": share, "i2t@10": ..., "t2i@1": ..., "t2i@10": ...}, each in [0, 1].
    """
    world = World(domain, seed)
    fit = pairs(world.scenes(train), ("full",))
    scenes = {"test": world.scenes(test, "test"), "hard": hard_gallery(world, groups)[0]}
    found = pairs([*scenes["test"], *scenes["hard"]], ("full",))
    images, texts = histogram_baseline(fit.images, fit.texts, fit.text_to_image, found.images, found.texts)
    recall = {}
    for name, rows in {"test": slice(0, test), "hard": slice(test, None)}.items():
        right = truth(found.scenes[rows], found.captions[rows])
        recall[name] = any_true_recall(images[rows] @ texts[rows].T, right, ks=(1, 10))
    return recall


class Told(NamedTuple):
    """How well sentences alone give away which of them are true, in [0, 1]; 0.5 is a coin."""

    single: float  # share of sentences rightly called true or false, one at a time
    choice: float  # share of pairs in which the true sentence looks truer than the false one; a tie counts half


def told_apart(
    true: Sequence[str], false: Sequence[str], test_true: Sequence[str], test_false: Sequence[str], words: int = 2
) -> Told:
    """Can true sentences be told from false ones by their words alone? Logistic regression, scikit-learn.

    Args:
        true: n sentences that are true of their pictures.
        false: n sentences that are not; entry i is about the picture of true[i].
        test_true: m sentences, as `true`, of other pictures.
        test_false: m sentences, as `false`.
        words: 1 counts words, 2 also counts pairs of neighbouring words.

    Returns:
        `Told`, of the m pairs.

    Raises:
        ValueError: lists of different lengths or without entries, words other than 1 or 2.
    """
    if not len(true) == len(false) > 0 or not len(test_true) == len(test_false) > 0:
        counts = f"{len(true)} and {len(false)} to learn from, {len(test_true)} and {len(test_false)} to test on"
        raise ValueError(f"every true sentence needs its false one, at least one pair each; got {counts}")
    reader = _reader([*true, *false], [1] * len(true) + [0] * len(false), words)
    score = torch.from_numpy(reader.decision_function([*test_true, *test_false]))  # (2m,)
    right, wrong = score.split(len(test_true))
    single = ((right > 0).double().mean() + (wrong <= 0).double().mean()) / 2
    choice = (right > wrong).double().mean() + (right == wrong).double().mean() / 2
    return Told(float(single), float(choice))


def edit_captions(
    domain: str = "paper", n: int = 1000, split: str = "train", seed: int = 0
) -> dict[str, tuple[list[str], list[str]]]:
    """Captions of scenes, and the same sentences as they are for the scenes' one-edit neighbours.

    Args:
        domain: name of a domain.
        n: scenes to look through.
        split: "train", "val" or "test"; scenes of val and test are all drawn afresh, without neighbours among them.
        seed: of the `World`.

    Returns:
        Kind of edit -> (true, false), two lists in step: true[i] describes a scene, false[i] its neighbour, so it is
        false of that scene. Full captions, but relation captions for flips. Relation captions that a flip leaves as
        they are, because both things are called the same, are left out.
    """
    said: dict[str, tuple[list[str], list[str]]] = {kind: ([], []) for kind in EDITS}
    for scene in World(domain, seed).scenes(n, split, neighbours=False):
        for kind, other in edits(scene).items():
            mine, theirs = (_said(s, CAPTION_OF.get(kind, "full")) for s in (scene, other))
            if mine != theirs:
                said[kind][0].append(mine)
                said[kind][1].append(theirs)
    return said


def text_alone(
    domain: str = "paper", *, words: int = 2, train: int = TRAIN, test: int = TEST, seed: int = 0
) -> dict[str, Told]:
    """The text-only baseline of every kind of edit: learnt on scenes of train, asked of scenes of test.

    Args:
        domain: name of a domain.
        words: see `told_apart`.
        train: scenes of train to look through.
        test: scenes of test to look through.
        seed: of the `World`.

    Returns:
        Kind of edit -> `Told`.
    """
    fit, asked = edit_captions(domain, train, "train", seed), edit_captions(domain, test, "test", seed)
    return {kind: told_apart(*fit[kind], *asked[kind], words=words) for kind in EDITS}


class Guess(NamedTuple):
    """How far one gets without the picture, in [0, 1]."""

    prior: float  # the answer that was commonest among those to learn from, given to everything
    alone: float  # the answer that the words speak for


def guessed(
    texts: Sequence[str], answers: Sequence, test_texts: Sequence[str], test_answers: Sequence, words: int = 2
) -> Guess:
    """Can answers be guessed from the words of the questions? Logistic regression, scikit-learn.

    Args:
        texts: n questions to learn from.
        answers: their answers, of two kinds at least.
        test_texts: m other questions.
        test_answers: their answers.
        words: 1 counts words, 2 also counts pairs of neighbouring words.

    Returns:
        `Guess`, shares of the m answers.

    Raises:
        ValueError: lists of different lengths or without entries, words other than 1 or 2.
    """
    if not len(texts) == len(answers) > 0 or not len(test_texts) == len(test_answers) > 0:
        counts = f"{len(texts)} and {len(answers)} to learn from, {len(test_texts)} and {len(test_answers)} to test on"
        raise ValueError(f"every question needs its answer, at least one each; got {counts}")
    common = max(sorted(set(answers), key=str), key=list(answers).count)
    told = _reader(texts, answers, words).predict(test_texts)

    def right(given: Sequence) -> float:
        return float(sum(a == b for a, b in zip(given, test_answers, strict=True)) / len(test_answers))

    return Guess(right([common] * len(test_answers)), right(list(told)))


def tasks_alone(
    domain: str = "paper", *, words: int = 2, train: int = 1000, test: int = 1000, seed: int = 0
) -> dict[str, Guess]:
    """The text-only baseline of every task: learnt on scenes of train, asked of scenes of test.

    Args:
        domain: name of a domain.
        words: see `guessed`.
        train: scenes of train to ask about.
        test: scenes of test to ask about.
        seed: of the `World` and of the questions.

    Returns:
        Each of `QUESTION_KINDS`, then "statements", "assignments" and "hypotheses" -> `Guess`.
    """
    fit, asked = (_tasks(World(domain, seed).scenes(n, s), seed) for n, s in ((train, "train"), (test, "test")))
    return {name: guessed(*fit[name], *asked[name], words=words) for name in fit}


def _tasks(scenes: list, seed: int) -> dict[str, tuple[list[str], list]]:
    """Task -> its texts and its answers."""
    asked = questions(scenes, seed=seed)
    made = {kind: [question for question in asked if question.kind == kind] for kind in QUESTION_KINDS}
    made |= {"statements": statements(scenes, seed=seed), "assignments": assignments(pairs(scenes), seed=seed)}
    told = {name: ([one.text for one in items], [one.answer for one in items]) for name, items in made.items()}
    supposed = hypotheses(scenes, seed=seed)
    return told | {"hypotheses": ([one.text for one in supposed], [one.label for one in supposed])}


def _reader(texts: Sequence[str], answers: Sequence, words: int):
    """Logistic regression on counted words, and for words=2 also pairs of neighbouring words."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    if words not in (1, 2):
        raise ValueError(f"words is {words}; expected 1 (words) or 2 (also pairs of words)")
    count = CountVectorizer(ngram_range=(1, words), token_pattern=r"(?u)\b\w+\b")
    return make_pipeline(count, LogisticRegression(max_iter=2000)).fit(list(texts), list(answers))


def card_rows(domain: str = "paper") -> tuple[str, str, str]:
    """The rows of one domain in the three tables of the dataset card.

    Args:
        domain: name of a domain.

    Returns:
        Markdown. Recall by colours: i2t@1, i2t@10, t2i@1, t2i@10, and i2t@1, t2i@1 in the hard gallery. Text alone:
        right choices, one cell a kind of edit. Tasks by text alone: right answers, in brackets those of the commonest
        answer, one cell a task.
    """
    found = colour_recall(domain)
    shown = [found["test"][key] for key in ("i2t@1", "i2t@10", "t2i@1", "t2i@10")]
    shown += [found["hard"][key] for key in ("i2t@1", "t2i@1")]
    told = [one.choice for one in text_alone(domain).values()]
    cells = [[f"{share:.1%}" for share in row] for row in (shown, told)]
    cells.append([f"{100 * guess.alone:.1f} ({100 * guess.prior:.1f})" for guess in tasks_alone(domain).values()])
    return tuple(f"| {domain} | " + " | ".join(row) + " |" for row in cells)


def _said(scene, kind: str) -> str:
    return next(caption.text for caption in captions(scene) if caption.kind == kind)
