"""The course as a table, read from the notebooks themselves, so that README and notebook 00 cannot fall behind."""

import json
import re
from pathlib import Path

TABLE = re.compile(r"(<!--course-->\n).*?(<!--/course-->)", re.DOTALL)


def course_table(notebooks: Path, prefix: str = "") -> str:
    """One row a notebook: name, paper, what is built, measured minutes.

    Args:
        notebooks: the folder of the notebooks.
        prefix: what goes before the file name in the links.

    Returns:
        A Markdown table, ending in a newline.

    Raises:
        ValueError: a notebook whose first cell has no row for the paper or for what is built.
    """
    lines = ["| notebook | paper | what you build | minutes on 2 CPU cores |", "|---|---|---|---|"]
    for path in sorted(notebooks.glob("[0-9][0-9]_*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        head = "".join(notebook["cells"][0]["source"])
        rows = dict(re.findall(r"^\| *(Paper|You build) *\| *(.*?) *\|$", head, re.MULTILINE))
        if len(rows) < 2:
            raise ValueError(f"{path.name}: the table in the first cell needs the rows 'Paper' and 'You build'")
        seconds = notebook["metadata"].get("vlnotes", {}).get("seconds")
        minutes = "" if seconds is None else f"{seconds / 60:.1f}"
        link = f"[{path.stem.replace('_', ' ')}]({prefix}{path.name})"
        lines.append(f"| {link} | {rows['Paper']} | {rows['You build']} | {minutes} |")
    return "\n".join(lines) + "\n"


def rewrite_table(text: str, notebooks: Path, prefix: str = "") -> str:
    """Put the table between `<!--course-->` and `<!--/course-->`, where the text has these marks.

    Args:
        text: Markdown.
        notebooks: the folder of the notebooks.
        prefix: what goes before the file name in the links.

    Returns:
        The text, with the table brought up to date.
    """
    if not TABLE.search(text):
        return text
    table = course_table(notebooks, prefix)
    return TABLE.sub(lambda mark: mark[1] + table + mark[2], text)
