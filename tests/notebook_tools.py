"""What the notebook tests and the headless runner share: reading, tidying, and the rules of hygiene.

A rule takes a notebook as a dictionary and returns sentences, one for each thing that is wrong. The rules are
plain functions so that a test can spoil a good notebook and see each of them speak.
"""

import ast
import base64
import html
import json
import math
import os
import platform
import re
import struct
from collections.abc import Iterator
from pathlib import Path

COURSE = Path(__file__).resolve().parents[1]
NOTEBOOKS = COURSE / "notebooks"
BUDGET = 180  # seconds a notebook may take on two CPU cores
MEDIAN_LINES, P90_LINES, MOST_LINES = 6, 20, 40
MOST_BYTES = 1_000_000
WORDS_PER_LINE = 6

SLIDE = 660  # pixels that fit on a slide, of the 720 of a projector
ZOOM = 1.3  # of figures on slides, see notebooks/rise.css
SHOW = {"scroll": True, "theme": "white", "transition": "none"}  # how the slides run; other themes fetch their letters

WIDGET = "application/vnd.jupyter.widget-view+json"
PROGRESS = re.compile(r"\d+%\|.*\||\d+(it|s|step|steps|batch)? \[\d\d:\d\d")
RECORD_LINE = re.compile(r"^([\w.\-]+) {3}\S.* {3}(?:expected |no record yet)", re.MULTILINE)
TIME_ROW = re.compile(r"^\| *Measured time *\|[^\n]*$", re.MULTILINE)
ABSOLUTE = re.compile(
    r"(?<![\w.:/<])/(?:home|Users|root|tmp|var|work|usr|opt|mnt|media|content|private)/\w|\b[A-Z]:\\\w"
)
FETCHED = re.compile(r"""(?:\bsrc|<link[^>]*href)\s*=\s*["']?(?:https?:)?//|url\(["']?https?:|\bfrom\s+["']https?:""")


def paths(names: list[str] | None = None) -> list[Path]:
    """The notebooks of the course in reading order, or those whose name begins with one of `names`."""
    found = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    return [p for p in found if not names or any(p.name.startswith(Path(n).name) for n in names)]


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def source(cell: dict) -> str:
    return "".join(cell["source"])


def tags(cell: dict) -> list[str]:
    return cell.get("metadata", {}).get("tags", [])


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code" and source(cell).strip()]


def prose(notebook: dict) -> str:
    return "\n\n".join(source(cell) for cell in notebook["cells"] if cell["cell_type"] == "markdown")


def code_lines(cell: dict) -> int:
    return sum(bool(line.strip()) for line in source(cell).splitlines())


def output_text(output: dict) -> str:
    """Everything a person can read in one output."""
    data = output.get("data", {})
    parts = [
        output.get("text", ""),
        *(data.get(kind, "") for kind in ("text/plain", "text/html", "text/markdown")),
    ]
    return "\n".join("".join(part) for part in parts)


def outputs(notebook: dict) -> Iterator[tuple[dict, dict]]:
    for cell in code_cells(notebook):
        for output in cell["outputs"]:
            yield cell, output


def recorded_names(notebook: dict) -> list[str]:
    """Names of the records that the stored outputs show, in order, doubles kept."""
    streams = ["".join(o.get("text", "")) for _, o in outputs(notebook) if o["output_type"] == "stream"]
    return [name for text in streams for name in RECORD_LINE.findall(text)]


# The rules. Each returns sentences.


def rule_format(notebook: dict) -> list[str]:
    said = []
    if (notebook["nbformat"], notebook["nbformat_minor"]) != (4, 5):
        said.append(f"the format is {notebook['nbformat']}.{notebook['nbformat_minor']}, expected 4.5")
    if notebook["metadata"].get("kernelspec", {}).get("name") != "python3":
        said.append("the kernel is not named python3")
    ids = [cell.get("id") for cell in notebook["cells"]]
    if not all(ids) or len(set(ids)) != len(ids):
        said.append("a cell has no id, or two share one")
    if "widgets" in notebook["metadata"]:
        said.append("widget state is stored; it never renders offline")
    return said


def rule_outputs(notebook: dict) -> list[str]:
    said = []
    counts = [cell["execution_count"] for cell in code_cells(notebook)]
    if counts != list(range(1, len(counts) + 1)):
        said.append(f"not run from top to bottom: execution counts are {counts}")
    if counts and not any(cell["outputs"] for cell in code_cells(notebook)):
        said.append("no outputs are stored")
    for cell, output in outputs(notebook):
        first = source(cell).strip().splitlines()[0]
        text = output_text(output)
        if output["output_type"] == "error":
            said.append(f"the cell `{first}` stored the error {output['ename']}")
        elif output.get("name") == "stderr":
            said.append(f"the cell `{first}` wrote to stderr: {text.strip()[:120]}")
        elif re.search(r"\b\w*Warning: ", text):
            said.append(f"the cell `{first}` shows a warning: {text.strip()[:120]}")
        if set(output.get("data", {})) == {WIDGET}:
            said.append(f"the cell `{first}` shows a widget that nobody sees without a kernel")
        if output["output_type"] == "execute_result" and re.search(r"<[\w. ]+ at 0x[0-9a-f]+>", text):
            said.append(f"the cell `{first}` shows a bare object: {text.strip()[:80]}")
    return said


def rule_sizes(notebook: dict) -> list[str]:
    lines = sorted(code_lines(cell) for cell in code_cells(notebook))
    if not lines:
        return ["there is no code cell"]
    said = []
    median, p90 = lines[(len(lines) - 1) // 2], lines[math.ceil(0.9 * len(lines)) - 1]
    if median > MEDIAN_LINES:
        said.append(f"the median code cell has {median} lines, at most {MEDIAN_LINES}")
    if p90 > P90_LINES:
        said.append(f"a tenth of the code cells has {p90} lines or more, at most {P90_LINES}")
    if lines[-1] > MOST_LINES:
        said.append(f"the longest code cell has {lines[-1]} lines, at most {MOST_LINES}")
    words = len(
        re.findall(r"[^\W\d_]+", re.sub(r"<!--.*?-->|\$\$.*?\$\$|\]\([^)]*\)", " ", prose(notebook), flags=re.S))
    )
    if words < WORDS_PER_LINE * sum(lines):
        said.append(f"{words} words of prose for {sum(lines)} lines of code, at least {WORDS_PER_LINE} a line")
    size = len(json.dumps(notebook, indent=1, ensure_ascii=False).encode())
    if size > MOST_BYTES:
        said.append(f"{size / 1e6:.2f} MB, at most {MOST_BYTES / 1e6:.0f}")
    return said


def rule_alt_text(notebook: dict) -> list[str]:
    found = []  # (where, alt text)
    for cell, output in outputs(notebook):
        first = source(cell).strip().splitlines()[0]
        for kind in output.get("data", {}):
            if kind.startswith("image/"):
                found.append((f"output of `{first}`", output["metadata"].get(kind, {}).get("alt", "")))
        found += [(f"html of `{first}`", alt) for alt in _html_alts(output_text(output))]
    text = prose(notebook)
    found += [("markdown", alt) for alt in re.findall(r"!\[([^\]]*)\]\(", text)]
    found += [("markdown", alt) for alt in _html_alts(text)]
    said = []
    for where, alt in found:
        if len(alt) < 30 or not re.search(r"\d", alt):
            said.append(f"{where}: a picture's alt text says what is to be seen and one number, got {alt!r}")
    return said


def _html_alts(text: str) -> list[str]:
    alts = [re.search(r"""\balt=(?:"([^"]*)"|'([^']*)')""", tag) for tag in re.findall(r"<img\b[^>]*>", text)]
    return [(match[1] or match[2] or "") if match else "" for match in alts]


def rule_anatomy(notebook: dict) -> list[str]:
    said = []
    first = notebook["cells"][0]
    if first["cell_type"] != "markdown" or not re.match(r"# \S", source(first)):
        said.append("the first cell does not begin with a title")
    for heading in ("Summary", "References"):
        if not re.search(rf"^## (\d+\. )?{heading}\b", prose(notebook), re.MULTILINE):
            said.append(f"there is no section '## {heading}'")
    numbers = [int(n) for n in re.findall(r"^## (\d+)\b", prose(notebook), re.MULTILINE)]
    if numbers != list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True:
        said.append(f"sections are numbered in order, '## 1. ...', '## 2. ...'; found {numbers}")
    return said


def rule_time(notebook: dict) -> list[str]:
    ran = notebook["metadata"].get("vlnotes", {})
    if not ran.get("machine") or not isinstance(ran.get("seconds"), int | float):
        return ["no measured run time is stored; `run_notebooks.py --write` measures it"]
    said = []
    if not 0 < ran["seconds"] <= BUDGET:
        said.append(f"it took {ran['seconds']} s, the budget is {BUDGET} s")
    rows = TIME_ROW.findall(prose(notebook))
    if len(rows) != 1:
        said.append(f"the header table needs one row '| Measured time | ... |', found {len(rows)}")
    elif rows[0] != time_row(ran):
        said.append(f"the header says {rows[0]!r}, measured was {time_row(ran)!r}")
    return said


def rule_paths_and_links(notebook: dict) -> list[str]:
    said = []
    for cell in notebook["cells"]:
        readable = [source(cell), *(output_text(output) for output in cell.get("outputs", []))]
        for text in readable:
            for match in ABSOLUTE.finditer(text):
                said.append(f"an absolute path: {text[match.start() : match.start() + 40]!r}")
            if FETCHED.search(html.unescape(text)):
                said.append(f"something is fetched from the network: {FETCHED.search(html.unescape(text))[0]!r}")
        if cell["cell_type"] == "code" and re.search(r"https?://", source(cell)):
            said.append(f"code names a URL: `{source(cell).strip().splitlines()[0]}`")
        if cell["cell_type"] == "markdown" and re.search(r"!\[[^\]]*\]\((https?:)?//", source(cell)):
            said.append("a picture in the text is fetched from the network")
        if cell["cell_type"] == "markdown" and re.search(r"\S\n *<!--record", source(cell)):
            said.append("a quoted record begins a line, where Markdown swallows the blank before it: join the lines")
    return said


def rule_exercises(notebook: dict) -> list[str]:
    units = exercise_units(notebook)
    said = []
    if not 3 <= len(units) <= 6:
        said.append(f"there are {len(units)} exercises under '### Exercise', expected 3 to 6")
    for unit in units:
        title = source(unit[0]).splitlines()[0].lstrip("# ")
        text = "\n".join(source(cell) for cell in unit if cell["cell_type"] == "markdown")
        asked = [cell for cell in unit if "exercise" in tags(cell)]
        solved = [cell for cell in unit if "solution" in tags(cell)]
        if len(asked) != 1 or len(solved) != 1:
            said.append(f"{title}: one cell tagged exercise, one solution; got {len(asked)} and {len(solved)}")
            continue
        if not re.search(r"^checks\.\w+\(\w+\)$", source(asked[0]).strip().splitlines()[-1]):
            said.append(f"{title}: the last line of the exercise calls its check, `checks.name(name)`")
        shown = "".join(output_text(output) for output in asked[0]["outputs"])
        if "not solved yet" not in shown:
            said.append(f"{title}: the stored exercise should stand unsolved, its output is {shown[:80]!r}")
        if len(re.findall(r"<details\b", text)) != 2 or text.count("</details>") != 2:
            said.append(f"{title}: two hints, each in <details>...</details>")
        if not re.search(r"\b\d+ min", text):
            said.append(f"{title}: says no minutes")
        folded = solved[0]["metadata"].get("jupyter", {}).get("source_hidden")
        if "hide-input" not in tags(solved[0]) or folded is not True:
            said.append(f"{title}: the solution is not folded (tag hide-input, jupyter.source_hidden true)")
    return said


def rule_slides(notebook: dict) -> list[str]:
    said = []
    if notebook["metadata"].get("rise") != SHOW:
        said.append(f"slides run as {notebook['metadata'].get('rise')}, expected {SHOW}")
    for cell, kind in zip(notebook["cells"], slide_types(notebook), strict=True):
        found = cell["metadata"].get("slideshow", {}).get("slide_type", "-")
        if found != kind:
            first = source(cell).strip().splitlines()[0]
            said.append(f"`{first}` is {found!r} of the slides, expected {kind!r}: `run_notebooks.py --slides` sets it")
    return said


RULES = [
    rule_format,
    rule_outputs,
    rule_sizes,
    rule_alt_text,
    rule_anatomy,
    rule_time,
    rule_paths_and_links,
    rule_exercises,
    rule_slides,
]


def exercise_units(notebook: dict) -> list[list[dict]]:
    """The cells of each exercise: from its '### Exercise' heading to the next heading that is not deeper."""
    units, current = [], None
    for cell in notebook["cells"]:
        if cell["cell_type"] != "markdown":
            parts = [cell]
        else:  # a heading may stand in the middle of a cell, below the last exercise's closing sentence
            parts = [{**cell, "source": part} for part in re.split(r"(?m)^(?=#{1,3} )", source(cell)) if part]
        for part in parts:
            if part["cell_type"] == "markdown" and re.match(r"#{1,3} ", source(part)):
                current = [] if re.match(r"### Exercise\b", source(part)) else None
                if current is not None:
                    units.append(current)
            if current is not None:
                current.append(part)
    return units


def slide_types(notebook: dict) -> list[str]:
    """What each cell is when the notebook runs as slides: slide (a title or section), subslide, "-" (goes on) or skip.

    A new subslide begins at a lower heading and wherever the slide would be full. Solutions, and cells that only write
    down an alt text, are skipped.
    """
    kinds, filled = [], SLIDE
    for cell in notebook["cells"]:
        text, height = source(cell), _height(cell)
        if "solution" in tags(cell) or re.match(r"alt = \(\n[^()]*\)\s*$", text):
            kinds.append("skip")
            continue
        headings = re.findall(r"(?m)^(#{1,3}) ", text) if cell["cell_type"] == "markdown" else []
        if headings and min(headings) != "###":
            kinds.append("slide")
        elif headings or filled + height > SLIDE:
            kinds.append("subslide")
        else:
            kinds.append("-")
        filled = height if kinds[-1] != "-" else filled + height
    return kinds


def _height(cell: dict) -> float:
    """Pixels that a cell takes on a slide, by and large."""
    if cell["cell_type"] == "markdown":
        text = re.sub(r"<!--.*?-->|\]\([^)]*\)", "", source(cell), flags=re.S)
        return 32 * sum(math.ceil(len(line) / 105) for line in text.splitlines())
    height = 24.0 * (len(source(cell).splitlines()) + 1)
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        if "image/png" in data:  # width and height stand in the first chunk of the file
            width, high = struct.unpack(">II", base64.b64decode("".join(data["image/png"])[:44])[16:24])
            height += high * min(ZOOM, 1160 / width, 0.7 * 720 / high)
        else:
            height += SLIDE if "<iframe" in output_text(output) else 24 * output_text(output).count("\n")
    return height


def imports(notebook: dict) -> str:
    """The import statements of a notebook, alone, so that one cell can be run by itself."""
    found = []
    for cell in code_cells(notebook):
        lines = [line for line in source(cell).splitlines() if not line.lstrip().startswith(("%", "!"))]
        tree = ast.parse("\n".join(lines))
        found += [ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    return "\n".join(found)


# What the runner does to a notebook before it is stored.


def machine() -> tuple[str, str]:
    """("cpu" or "gpu", a few words about this machine)."""
    import torch

    if torch.cuda.is_available():
        return "gpu", torch.cuda.get_device_name(0)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch_version = torch.__version__.split("+")[0]
    return "cpu", f"{cores} CPU cores, {platform.system()} {platform.machine()}, torch {torch_version}"


def time_row(ran: dict) -> str:
    """The header row of a notebook, from its metadata."""
    parts = [f"{ran['seconds']:.0f} s ({ran['machine']})"] if "seconds" in ran else []
    if "gpu" in ran:
        parts.append(f"{ran['gpu']['seconds']:.0f} s ({ran['gpu']['machine']})")
    return f"| Measured time | {'; '.join(parts)} |"


def set_time(notebook: dict, seconds: float, kind: str, words: str) -> None:
    """Store a measured run time in the metadata and in the header row; that of the other kind of machine
    stays."""
    ran = notebook["metadata"].setdefault("vlnotes", {})
    measured = {"seconds": round(seconds, 1), "machine": words}
    if kind == "gpu":
        ran["gpu"] = measured
    else:
        ran.update(measured)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = TIME_ROW.sub(lambda _: time_row(ran), source(cell), count=1)


def set_slides(notebook: dict) -> None:
    """Store what each cell is on slides, and how they run."""
    notebook["metadata"]["rise"] = SHOW
    for cell, kind in zip(notebook["cells"], slide_types(notebook), strict=True):
        cell["metadata"].pop("slideshow", None)
        if kind != "-":
            cell["metadata"]["slideshow"] = {"slide_type": kind}


def tidy(notebook: dict) -> None:
    """Take out what only a running kernel can show: widget state, execution times, all but a bar's last state."""
    notebook["metadata"].pop("widgets", None)
    for cell in notebook["cells"]:
        cell["metadata"].pop("execution", None)
        if cell["cell_type"] == "code":
            kept = [_without_widget(output) for output in _joined(cell["outputs"])]
            cell["outputs"] = [output for output in kept if output is not None]


def _joined(outputs: list[dict]) -> list[dict]:
    """Outputs in order, with what one stream wrote in several pieces put together."""
    joined: list[dict] = []
    for output in outputs:
        last = joined[-1] if joined else {}
        if output.get("output_type") == "stream" and output.get("name") == last.get("name"):
            last["text"] = "".join(last["text"]) + "".join(output["text"])
        else:
            joined.append(output)
    return joined


def _without_widget(output: dict) -> dict | None:
    def changed(**fields) -> dict:
        return type(output)({**output, **fields})  # a plain dictionary or nbformat's own kind

    if output.get("name") == "stderr":
        left = [
            line for line in re.split(r"[\r\n]+", "".join(output["text"])) if line.strip() and not PROGRESS.search(line)
        ]
        return changed(text="\n".join(left) + "\n") if left else None
    if output.get("name") == "stdout":  # a bar draws itself anew after each carriage return: keep how it ended
        lines = "".join(output["text"]).split("\n")
        return changed(text="\n".join(line.rstrip("\r").split("\r")[-1] for line in lines))
    data = output.get("data", {})
    if WIDGET not in data:
        return output
    if PROGRESS.search("".join(data.get("text/plain", ""))):
        return None
    kept = {kind: value for kind, value in data.items() if kind != WIDGET}
    return changed(data=kept) if kept else None
