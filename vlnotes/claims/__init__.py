"""The papers' claims as experiments that can fail, and the ablations of the course.

`python -m vlnotes claims run` does the runs that are missing, `claims table` says what became of the claims.
"""

import sys

from vlnotes.claims import against, albef, clip, codis, domains, downstream, moco, relations, retrieval
from vlnotes.claims.engine import (
    ENOUGH,
    RUNS,
    VERDICTS,
    Claim,
    Study,
    Verdict,
    arm_table,
    claim_table,
    judge,
    rows,
    run,
    run_file,
    scores,
    verdict,
)

__all__ = [
    "CLAIMS",
    "ENOUGH",
    "RUNS",
    "STUDIES",
    "VERDICTS",
    "Claim",
    "Study",
    "Verdict",
    "arm_table",
    "claim_table",
    "judge",
    "main",
    "rows",
    "run",
    "run_file",
    "scores",
    "table",
    "verdict",
]

STUDIES = {
    study.name: study
    for study in (
        *(domains.STUDY, clip.TEMPERATURE, moco.STUDY, albef.STUDY, retrieval.STUDY, relations.STUDY),
        *(downstream.STUDY, codis.STUDY, codis.PLANS, against.STUDY),
    )
}
CLAIMS = [*moco.CLAIMS, *albef.CLAIMS, *codis.CLAIMS, *against.CLAIMS]


def table(name: str, shown: tuple[str, ...] = ("i2t@1", "t2i@1", "i2t@10"), arms=None) -> str:
    """Mean and spread of every arm of a study.

    Args:
        name: of the study, such as "02.temperature".
        shown: scores, in percent.
        arms: which ones; None for all.

    Returns:
        An aligned table; "+-" is the standard deviation over the seeds.

    Raises:
        ValueError: an unknown study or arm.
    """
    return arm_table(_named(name), shown, arms=arms)


def main(action: str, minutes: float | None = None, only: str | None = None, scale="tiny", shard=(0, 1)) -> int:
    """`python -m vlnotes claims list | run | table`.

    Args:
        action: one of the three words.
        minutes, scale, shard: for run, see `run`; table takes the scale, too.
        only: one study, by its name.

    Returns:
        0, or 1 when runs of this shard are still missing.

    Raises:
        ValueError: an unknown action, study or scale.
        RuntimeError: a run that fails.
    """
    studies = [_named(only)] if only else list(STUDIES.values())
    chosen = [claim for claim in CLAIMS if not only or claim.study == only]
    if scale not in {known for study in studies for known in study.common}:
        raise ValueError(f"no study has a scale {scale!r}")
    if action == "list":
        for study in studies:
            print(f"{study.name}: {study.seeds} seeds of {'; '.join(study.arms)}")
        for claim in chosen:
            print(f"{claim.id:<4} {claim.statement}" + ("" if claim.study else f" (not tried: {claim.why})"))
        return 0
    if action == "run":
        missing = run(studies, minutes=minutes, scale=scale, shard=shard, say=lambda line: print(line, flush=True))
        print(f"{missing} runs are still missing" if missing else "all runs are there", file=sys.stderr)
        return int(missing > 0)
    if action != "table":
        raise ValueError(f"action must be list, run or table, not {action!r}")
    print(claim_table(chosen, STUDIES, scale))
    return 0


def _named(name: str) -> Study:
    if name not in STUDIES:
        raise ValueError(f"there is no study {name!r}; there are {', '.join(STUDIES)}")
    return STUDIES[name]
