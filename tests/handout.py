"""What a teacher hands out: `python tests/handout.py [names] [--out FOLDER]`.

From each notebook two are made: a student edition without the solutions, whose exercises still stand unsolved above
their checks, and an answer key with every exercise, its solution and the mistakes that its check can name. Nothing is
written by hand, so neither can drift from the course.
"""

import argparse
import copy
import re
import sys
from pathlib import Path

import nbformat
import notebook_tools as tools

from vlnotes import checks

POINTS = {"easy": 1, "medium": 2, "hard": 3}
HEADING = re.compile(r"^### (Exercise \d+: .+?) \((\w+), (\d+) minutes?\)", re.MULTILINE)


def main(arguments: list[str] | None = None) -> int:
    """Write both editions.

    Args:
        arguments: of the command line; None takes those of the process.

    Returns:
        0, or 1 where no notebook was found.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="beginnings of notebook names, such as 00 02; all without")
    parser.add_argument("--out", type=Path, default=tools.COURSE / "handout", help="where they are written")
    asked = parser.parse_args(arguments)
    paths = tools.paths(asked.names)
    if not paths:
        print(f"no notebook begins with {' or '.join(asked.names)}", file=sys.stderr)
        return 1
    for path in paths:
        notebook = tools.read(path)
        for folder, made in (("student", student(notebook)), ("answers", answers(notebook))):
            place = asked.out / folder / path.name
            place.parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(nbformat.from_dict(made), place)
        print(f"{path.stem}: {len(tools.exercise_units(notebook))} exercises")
    print(f"student/ and answers/ are in {asked.out}")
    return 0


def student(notebook: dict) -> dict:
    """A notebook without its solutions; exercises carry points and a name for nbgrader.

    Args:
        notebook: of the course, left as it is.

    Returns:
        A new one. Difficulty gives the points: easy 1, medium 2, hard 3.
    """
    made = copy.deepcopy(notebook)
    made["cells"] = [cell for cell in made["cells"] if "solution" not in tools.tags(cell)]
    difficulty = {name: POINTS[hard] for _, hard, _, name in exercises(notebook)}
    for cell in made["cells"]:
        if "exercise" in tools.tags(cell):
            name = _check(cell)
            cell["metadata"]["nbgrader"] = {
                **{"schema_version": 3, "grade": True, "solution": True, "locked": False, "task": False},
                **{"points": difficulty[name], "grade_id": name},
            }
    return made


def answers(notebook: dict) -> dict:
    """The exercises of a notebook with their solutions, unfolded, and what their checks say to known mistakes.

    Args:
        notebook: of the course, left as it is.

    Returns:
        A new one. It runs from top to bottom: the first code cell has the notebook's imports.
    """
    title = tools.source(notebook["cells"][0]).splitlines()[0].lstrip("# ")
    cells = [_text("title", f"# Answers: {title}"), _code("imports", tools.imports(notebook))]
    for unit, (heading, hard, minutes, name) in zip(tools.exercise_units(notebook), exercises(notebook), strict=True):
        task, *after = [tools.source(cell).strip() for cell in unit if cell["cell_type"] == "markdown"]
        told, solved = task.split("\n", 1)[1], next(cell for cell in unit if "solution" in tools.tags(cell))
        known = getattr(checks, name).wrong
        mistakes = ["**Usual mistakes**, as the check names them:"]
        mistakes.append("\n".join(f"- {' '.join(wrong.__doc__.split())}" for wrong in known))
        cells += [
            _text(f"{name}-task", f"## {heading} ({hard}, {minutes} minutes, points: {POINTS[hard]})\n{told}"),
            _code(f"{name}-answer", tools.source(solved)),
            _text(f"{name}-after", "\n\n".join([*after, *mistakes])),
        ]
    return {**copy.deepcopy({key: value for key, value in notebook.items() if key != "cells"}), "cells": cells}


def exercises(notebook: dict) -> list[tuple[str, str, str, str]]:
    """Heading, difficulty, minutes and check of every exercise, in order.

    Args:
        notebook: of the course.

    Returns:
        Such as ("Exercise 1: follow", "easy", "5", "follow_once").

    Raises:
        ValueError: a heading without difficulty and minutes.
    """
    found = []
    for unit in tools.exercise_units(notebook):
        text = "\n".join(tools.source(cell) for cell in unit if cell["cell_type"] == "markdown")
        heading = HEADING.search(text)
        if heading is None or heading[2] not in POINTS:
            raise ValueError(
                f"{text.splitlines()[0]!r}: expected '### Exercise 1: name (easy, 5 minutes)'; "
                f"difficulties are {', '.join(POINTS)}"
            )
        found.append((*heading.groups(), _check(next(cell for cell in unit if "exercise" in tools.tags(cell)))))
    return found


def _check(cell: dict) -> str:
    """The name of the check that the last line of an exercise calls."""
    return re.fullmatch(r"checks\.(\w+)\(\w+\)", tools.source(cell).strip().splitlines()[-1])[1]


def _text(id: str, text: str) -> dict:
    return {"cell_type": "markdown", "id": id, "metadata": {}, "source": text}


def _code(id: str, text: str) -> dict:
    return {"cell_type": "code", "id": id, "metadata": {}, "source": text, "outputs": [], "execution_count": None}


if __name__ == "__main__":
    sys.exit(main())
