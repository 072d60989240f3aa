"""How a claim is tried: runs over seeds, kept by the hash of their settings; a paired effect; an interval; a verdict.

A `Study` is one experiment with several arms. A `Claim` is a sentence of a paper, put as a comparison between arms of
a study. Runs are made seed by seed, so that every table is whole after every round, and one that is there is never
made again.
"""

import hashlib
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from vlnotes import __version__
from vlnotes.records import records_file

if TYPE_CHECKING:
    import pandas as pd

RUNS = records_file().parent / "runs"
ENOUGH = 5  # seeds; with fewer the verdict says how many there were
VERDICTS = ("holds", "does not hold", "no difference", "undecided")


@dataclass(frozen=True)
class Study:
    """One experiment: what is run, and what its arms change.

    Args:
        name: such as "03.moco"; the folder of its runs.
        run: (settings, seed) -> scores. Numbers, or lists of numbers for curves.
        common: scale -> the settings that all arms share; "tiny" is what two cores can do.
        arms: name of the arm -> the settings that it changes.
        seeds: how many; 0, 1, ...
    """

    name: str
    run: Callable[[dict, int], dict]
    common: dict[str, dict]
    arms: dict[str, dict]
    seeds: int = ENOUGH

    def settings(self, arm: str, scale: str = "tiny") -> dict:
        """Everything that a run of this arm is made from, but the seed.

        Args:
            arm: its name.
            scale: "tiny", or another one that the study knows.

        Returns:
            The settings.

        Raises:
            ValueError: an unknown arm or scale.
        """
        if arm not in self.arms:
            raise ValueError(f"{self.name} has no arm {arm!r}; it has {list(self.arms)}")
        if scale not in self.common:
            raise ValueError(f"{self.name} has no scale {scale!r}; it has {list(self.common)}")
        return {**self.common[scale], **self.arms[arm]}


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper as a comparison that can fail.

    The effect of a seed is the sum of weight x score over the arms, all of that seed: a paired comparison. Or, where
    that is no sum, what `effect` makes of them.

    Args:
        id: as in the course's list of claims, such as "M2".
        statement: what is said.
        figure: what the paper reports, in words and numbers.
        study: name of the `Study`; "" where it cannot be tried here, then `why` says so.
        contrast: arm -> weight; two arms with 1 and -1 are a plain difference.
        score: which of the run's scores.
        direction: "+": the effect is above zero; "=": it lies within the margin.
        margin: what would be no difference, in units of the effect.
        factor: scores are multiplied by it: 100 makes points of shares.
        why: why it is not tried, or a remark that stands beside the verdict.
        effect: arm -> scores of its run, for every arm of the contrast, -> the effect of a seed before the factor.
    """

    id: str
    statement: str
    figure: str
    study: str = ""
    contrast: dict[str, float] = field(default_factory=dict)
    score: str = ""
    direction: str = "+"
    margin: float = 2.0
    factor: float = 100.0
    why: str = ""
    effect: Callable[[dict[str, dict]], float] | None = None


class Verdict(NamedTuple):
    """What the runs say: mean effect, its 95 % interval, how many seeds, and one of `VERDICTS`."""

    effect: float
    low: float
    high: float
    seeds: int
    verdict: str


def judge(effects: Iterable[float], direction: str = "+", margin: float = 2.0) -> Verdict:
    """The verdict on one effect a seed, from Student's t interval of their mean.

    "+": no difference, if the interval lies within the margin; holds, if it lies above 0; does not hold, if it lies
    below 0. "=": holds, if it lies within the margin; does not hold, if it lies outside. Else undecided.

    Args:
        effects: one finite number a seed.
        direction: "+" or "=".
        margin: 0 or more, in units of the effects.

    Returns:
        A `Verdict`; undecided, with an infinite interval, for fewer than two seeds.

    Raises:
        ValueError: another direction, a negative margin, an effect that is not finite.
    """
    effects = [float(effect) for effect in effects]
    if direction not in ("+", "="):
        raise ValueError(f"direction must be '+' or '=', not {direction!r}")
    if not margin >= 0:
        raise ValueError(f"margin must be 0 or more, not {margin}")
    if not all(map(math.isfinite, effects)):
        raise ValueError(f"every effect must be a finite number; got {effects}")
    if len(effects) < 2:
        return Verdict(effects[0] if effects else math.nan, -math.inf, math.inf, len(effects), "undecided")
    from scipy.stats import t

    mean, error = statistics.mean(effects), statistics.stdev(effects) / math.sqrt(len(effects))
    reach = float(t.ppf(0.975, len(effects) - 1)) * error
    low, high = mean - reach, mean + reach
    within, outside = -margin <= low and high <= margin, low > margin or high < -margin
    if direction == "=":
        verdict = "holds" if within else "does not hold" if outside else "undecided"
    elif within:
        verdict = "no difference"
    else:
        verdict = "holds" if low > 0 else "does not hold" if high < 0 else "undecided"
    return Verdict(mean, low, high, len(effects), verdict)


def run_file(study: Study, arm: str, seed: int, scale: str = "tiny", folder: Path = RUNS) -> Path:
    """Where a run is kept: named by the hash of study, settings and seed, so changed settings make a new one.

    Changed *code* makes no new run. Delete the file to make it again; the row says with which versions it was made.

    Args:
        study: the study.
        arm: its arm; two arms with the same settings share their runs.
        seed: of the run.
        scale: "tiny" or another.
        folder: of all runs.

    Returns:
        The JSON file, there or not.
    """
    made_from = [study.name, study.settings(arm, scale), seed]
    digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:12]
    return folder / study.name / f"{digest}.json"


def run(
    studies: Iterable[Study],
    *,
    minutes: float | None = None,
    scale: str = "tiny",
    shard: tuple[int, int] = (0, 1),
    folder: Path = RUNS,
    say: Callable[[str], None] = print,
) -> int:
    """Do the runs that are missing, seed by seed.

    Args:
        studies: which ones.
        minutes: start no run that would not end in so many minutes, if it takes as long as the longest so far.
        scale: "tiny" or another; studies that do not know it are left out.
        shard: (i, n): do the i-th of n parts of the runs, so that n processes or machines share the work. Two processes
            without shards would make the same runs.
        folder: where the results are kept, one JSON file a run.
        say: takes a line a run.

    Returns:
        How many of this shard's runs are still missing.

    Raises:
        RuntimeError: a run that fails, with its study, arm and seed; those that were made before are kept.
    """
    studies = [study for study in studies if scale in study.common]
    todo: dict[Path, tuple[Study, str, int]] = {}
    for seed in range(max((study.seeds for study in studies), default=0)):
        for study in studies:
            for arm in study.arms if seed < study.seeds else ():
                todo.setdefault(run_file(study, arm, seed, scale, folder), (study, arm, seed))
    part, parts = shard  # by the hash: counting on would leave an arm to the same shard for every seed
    mine = [(file, work) for file, work in todo.items() if int(file.stem, 16) % parts == part]
    start, longest = time.perf_counter(), 0.0
    for at, (file, (study, arm, seed)) in enumerate(mine, 1):
        if file.exists():
            continue
        if minutes is not None and time.perf_counter() - start + longest > 60 * minutes:
            say(f"stopping: the next run might not end within {minutes:g} minutes")
            break
        began = time.perf_counter()
        try:
            scores = study.run(study.settings(arm, scale), seed)
        except Exception as error:  # out of memory, a loss that is no number: say of which run
            raise RuntimeError(f"{study.name}, arm {arm!r}, seed {seed}: {error}") from error
        seconds = time.perf_counter() - began
        longest = max(longest, seconds)
        made = {"vlnotes": __version__, "torch": torch.__version__.split("+")[0], "python": platform.python_version()}
        row = {
            **{"study": study.name, "arm": arm, "seed": seed, "scale": scale},
            **{"settings": study.settings(arm, scale), "scores": scores},
            **{"seconds": round(seconds, 1), "device": scores.pop("device", "cpu"), "made_with": made},
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(f".{os.getpid()}.part")
        unfinished.write_text(json.dumps(row, indent=1, allow_nan=False) + "\n")
        os.replace(unfinished, file)
        numbers = "  ".join(f"{name} {value:.3g}" for name, value in scores.items() if isinstance(value, float))
        say(f"[{at}/{len(mine)}] {study.name}, seed {seed}, {arm}: {seconds:.0f} s  {numbers}")
    return sum(not file.exists() for file, _ in mine)


def loss_curves(history: "pd.DataFrame", *names: str, points: int = 20) -> dict[str, list[float]]:
    """The curves of a run, short enough to be stored: means of so many equal parts.

    Args:
        history: what `vlnotes.train.train` returns.
        names: columns; those that it lacks are left out.
        points: parts; fewer where there are fewer steps.

    Returns:
        {"NAME_curve": means, rounded to 4 digits}.
    """
    part = history["step"] * points // (int(history["step"].iloc[-1]) + 1)
    known = [name for name in names if name in history]
    return {f"{name}_curve": history[name].groupby(part).mean().round(4).tolist() for name in known}


def rows(study: Study, scale: str = "tiny", folder: Path = RUNS) -> list[dict]:
    """The runs of a study that are there, in the order of its arms, then of the seeds.

    Args:
        study: the study.
        scale: "tiny" or another.
        folder: where the results are kept.

    Returns:
        One dict a run: arm, seed, scale, settings, scores, seconds, device, made_with. Arms that share their runs
        have them each, under their own name.
    """
    found = []
    for arm in study.arms:
        for seed in range(study.seeds):
            file = run_file(study, arm, seed, scale, folder)
            if file.exists():
                found.append({**json.loads(file.read_text()), "arm": arm})
    return found


def scores(study: Study, scale: str = "tiny", folder: Path = RUNS):
    """The runs of a study as a table, for figures.

    Args:
        study: the study.
        scale: "tiny" or another.
        folder: where the results are kept.

    Returns:
        A pandas DataFrame: one row a run, with arm, seed and every score that is a number.
    """
    import pandas as pd

    flat = []
    for row in rows(study, scale, folder):
        numbers = {name: value for name, value in row["scores"].items() if isinstance(value, int | float)}
        flat.append({"arm": row["arm"], "seed": row["seed"], **numbers})
    return pd.DataFrame(flat, columns=None if flat else ["arm", "seed"])


def verdict(claim: Claim, study: Study, scale: str = "tiny", folder: Path = RUNS) -> Verdict:
    """The verdict on a claim, from the seeds for which all of its arms are there.

    Args:
        claim: what is claimed.
        study: the study that it names.
        scale: "tiny" or another.
        folder: where the results are kept.

    Returns:
        A `Verdict`; effect and interval in units of score x factor.

    Raises:
        ValueError: an arm that the study does not have, or a score that its runs do not have.
    """
    by_seed: dict[int, float] = {}
    for seed in range(study.seeds):
        files = {arm: run_file(study, arm, seed, scale, folder) for arm in claim.contrast}
        if not all(file.exists() for file in files.values()):
            continue
        found = {arm: json.loads(file.read_text())["scores"] for arm, file in files.items()}
        for told in found.values():
            if claim.score not in told:
                raise ValueError(f"claim {claim.id}: runs of {study.name} have no score {claim.score!r}: {list(told)}")
        if claim.effect is None:
            effect = sum(weight * found[arm][claim.score] for arm, weight in claim.contrast.items())
        else:
            effect = claim.effect(found)
        by_seed[seed] = claim.factor * effect
    try:
        return judge(by_seed.values(), claim.direction, claim.margin)
    except ValueError as error:
        raise ValueError(f"claim {claim.id}, seeds {list(by_seed)}: {error}") from error


def claim_table(claims: Iterable[Claim], studies: dict[str, Study], scale: str = "tiny", folder: Path = RUNS) -> str:
    """What became of the claims, as a Markdown table.

    Args:
        claims: in the order of the rows.
        studies: name -> study.
        scale: "tiny" or another.
        folder: where the results are kept.

    Returns:
        Markdown: id, claim, the paper's figure, effect with its 95 % interval, seeds and scale, verdict.

    Raises:
        ValueError: a claim that names a study, an arm or a score that is not there.
    """
    lines = [
        "| claim | what is said | in the paper | here, 95 % interval | seeds, scale | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for claim in claims:
        if not claim.study:
            lines.append(f"| {claim.id} | {claim.statement} | {claim.figure} | | | not tried: {claim.why} |")
            continue
        if claim.study not in studies:
            raise ValueError(f"claim {claim.id} names the study {claim.study!r}; there are {list(studies)}")
        found = verdict(claim, studies[claim.study], scale, folder)
        here = f"{found.effect:+.1f} ({found.low:+.1f} to {found.high:+.1f})" if found.seeds > 1 else ""
        words = f"**{found.verdict}**" if found.seeds > 1 else "not enough runs"
        if found.verdict == "no difference" or claim.direction == "=":
            words += f" (margin {claim.margin:g})"
        if 1 < found.seeds < ENOUGH:
            words += f", but only {found.seeds} seeds"
        words += f"; {claim.why}" if claim.why else ""
        lines.append(f"| {claim.id} | {claim.statement} | {claim.figure} | {here} | {found.seeds}, {scale} | {words} |")
    return "\n".join(lines) + "\n"


def arm_table(study: Study, shown: Iterable[str], scale: str = "tiny", folder: Path = RUNS, arms=None) -> str:
    """Mean and spread of every arm, as aligned text.

    Args:
        study: the study.
        shown: names of the scores to show, shares in [0, 1]; they are shown in percent.
        scale: "tiny" or another.
        folder: where the results are kept.
        arms: which ones; None for all.

    Returns:
        One line an arm; "+-" is the standard deviation over the seeds.

    Raises:
        ValueError: an unknown arm, or a score that no run of the study has.
    """
    arms, shown, found = list(study.arms if arms is None else arms), list(shown), rows(study, scale, folder)
    settings = [study.settings(arm, scale) for arm in arms]  # refuses an unknown one
    for score in shown:
        if found and not any(score in row["scores"] for row in found):
            raise ValueError(f"runs of {study.name} have no score {score!r}; they have {sorted(found[0]['scores'])}")
    wide = max(len(arm) for arm in arms) + 2
    lines = [f"{'arm':<{wide}}" + "".join(f"{score:>16}" for score in shown) + "   seeds"]
    for arm in arms:
        mine, cells = [row["scores"] for row in found if row["arm"] == arm], ""
        for score in shown:
            values = [100 * row[score] for row in mine if score in row]
            spread = f" +- {statistics.stdev(values):4.1f}" if len(values) > 1 else ""
            cells += f"{(f'{statistics.mean(values):.1f}{spread}' if values else '-' if mine else 'not run'):>16}"
        lines.append(f"{arm:<{wide}}{cells}{len(mine):>8}")
    few = f"; with fewer than {ENOUGH} seeds a tendency, not a verdict" if study.seeds < ENOUGH else ""
    alike = len({one["steps"] for one in settings}) == 1
    steps = f"{settings[0]['steps']} steps" if alike else "steps differ by arm"
    lines.append(f"scale {scale}: {settings[0]['pictures']} pictures, {steps}{few}")
    return "\n".join(lines)
