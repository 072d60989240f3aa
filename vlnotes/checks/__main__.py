"""`python -m vlnotes.checks`: write what is generated from the stored notebooks; with `--check`, only look.

Writes `data/graduation.md`, and brings the tables of the course, of the claims and of the world's gates, and every
number quoted from the records in README.md and the notebooks up to date.
"""

import argparse
import json
import re
import sys
from pathlib import Path

from vlnotes import claims, records
from vlnotes.checks.course import rewrite_table
from vlnotes.checks.graduation import complaints, marks, table, taught_functions

CLAIM_TABLE = re.compile(r"(<!--claims:?(\w*)-->)\n.*?(<!--/claims-->)", re.DOTALL)
GATE_TABLES = re.compile(r"(<!--gates-->\n).*?(<!--/gates-->)", re.DOTALL)


def generated(course: Path) -> dict[Path, bytes]:
    """Every file that is made from the stored notebooks and records, as it should be now.

    Args:
        course: the folder that holds `notebooks/`, `data/` and `README.md`.

    Returns:
        Path -> content.

    Raises:
        ValueError: a quote names a record that does not exist.
    """
    notebooks = course / "notebooks"
    files = {course / "data" / "graduation.md": table(taught_functions(), marks(notebooks))}
    for path in [course / "README.md"] if (course / "README.md").exists() else []:
        text = records.rewrite_quotes(path.read_text(encoding="utf-8"))
        files[path] = rewrite_table(rewrite_claims(text), notebooks, "notebooks/")
    for path in sorted(notebooks.glob("*.ipynb")):
        files[path] = _notebook(path)
    card = course / "data" / "DATASET_CARD.md"
    if card.exists():
        gates = claims.domains.gate_tables(claims.rows(claims.domains.STUDY))
        files[card] = GATE_TABLES.sub(lambda mark: mark[1] + gates + mark[2], card.read_text(encoding="utf-8"))
    return {path: text.encode() for path, text in files.items()}


def rewrite_claims(text: str) -> str:
    """Put what became of the claims between `<!--claims-->` and `<!--/claims-->`; `<!--claims:M-->` takes MoCo's alone.

    Args:
        text: Markdown.

    Returns:
        The text, with these tables brought up to date.

    Raises:
        ValueError: letters that no claim begins with.
    """

    def fresh(mark: re.Match) -> str:
        chosen = [claim for claim in claims.CLAIMS if mark[2] in ("", claim.id.rstrip("abcdefgh0123456789"))]
        if not chosen:
            raise ValueError(f"no claim begins with {mark[2]!r}; see `python -m vlnotes claims list`")
        return f"{mark[1]}\n{claims.claim_table(chosen, claims.STUDIES)}{mark[3]}"

    return CLAIM_TABLE.sub(fresh, text)


def main(arguments: list[str] | None = None) -> int:
    """Write the generated files and say what changed.

    Args:
        arguments: of the command line; None takes those of the process.

    Returns:
        0, or 1 when something cannot be made, or `--check` finds a file out of date or marks that disagree.
    """
    parser = argparse.ArgumentParser(prog="python -m vlnotes.checks", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, fail when something is out of date")
    parser.add_argument("--course", type=Path, default=Path(__file__).resolve().parents[2], help="folder of the course")
    options = parser.parse_args(arguments)

    try:
        files = generated(options.course)
    except ValueError as error:
        print(error)
        return 1
    stale = 0
    for path, content in files.items():
        if not path.exists() or path.read_bytes() != content:
            stale += 1
            print(f"{'out of date' if options.check else 'written'}: {path.relative_to(options.course)}")
            if not options.check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
    notebooks = options.course / "notebooks"
    wrong = complaints(taught_functions(), marks(notebooks), [path.stem for path in notebooks.glob("*.ipynb")])
    for sentence in wrong:
        print(sentence)
    if not stale:
        print("nothing to write")
    return 1 if options.check and (stale or wrong) else 0


def _notebook(path: Path) -> str:
    """The notebook with its quotes brought up to date; the text is untouched where nothing changes."""
    text = path.read_text(encoding="utf-8")
    notebook, changed = json.loads(text), False
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        fresh = source
        if cell["cell_type"] == "markdown":
            fresh = rewrite_table(rewrite_claims(records.rewrite_quotes(source)), path.parent)
        if fresh != source:
            cell["source"], changed = fresh.splitlines(keepends=True), True
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n" if changed else text


if __name__ == "__main__":
    sys.exit(main())
