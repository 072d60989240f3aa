"""Every notebook keeps the rules, and each rule can speak: a good notebook is spoilt to prove it."""

import base64
import contextlib
import copy
import io
import json
import re
import struct
import sys

import nbconvert
import notebook_tools as tools
import pytest
import run_notebooks

from vlnotes import checks, records

PATHS = tools.paths()
NOTEBOOKS = {path.stem: tools.read(path) for path in PATHS}
README = tools.COURSE / "README.md"


# The course


def test_there_is_a_course():
    assert PATHS, f"no notebook in {tools.NOTEBOOKS}"
    strange = {path.name for path in tools.NOTEBOOKS.glob("*.ipynb")} - {path.name for path in PATHS}
    assert not strange, f"names begin with two digits: {strange}"


@pytest.mark.parametrize("rule", tools.RULES, ids=lambda rule: rule.__name__)
def test_every_notebook_keeps_the_rule(rule):
    said = [f"{name}: {sentence}" for name, notebook in NOTEBOOKS.items() for sentence in rule(notebook)]
    assert not said, "\n".join(said)


def test_prose_never_disagrees_with_the_records():
    texts = {name: tools.prose(notebook) for name, notebook in NOTEBOOKS.items()}
    texts["README.md"] = README.read_text(encoding="utf-8") if README.exists() else ""
    said = [f"{name}: {sentence}" for name, text in texts.items() for sentence in records.wrong_quotes(text)]
    assert not said, "\n".join(said)


def test_every_record_is_made_by_one_notebook_and_none_is_left_over():
    made = [name for notebook in NOTEBOOKS.values() for name in tools.recorded_names(notebook)]
    twice = {name for name in made if made.count(name) > 1}
    assert not twice, f"recorded twice: {twice}"
    stored = set(records.load())
    assert set(made) == stored, f"`make records` brings these in line: {set(made) ^ stored}"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_solution_cell_passes_its_own_check(name):
    said = []
    for unit in tools.exercise_units(NOTEBOOKS[name]):
        said += solution_troubles(unit, tools.imports(NOTEBOOKS[name]))
    assert not said, "\n".join(said)


def solution_troubles(unit, imports):
    """What goes wrong when the solution cell of one exercise runs alone, and its function meets the check."""
    asked, solved = (next(tools.source(c) for c in unit if tag in tools.tags(c)) for tag in ("exercise", "solution"))
    check, function = re.search(r"^checks\.(\w+)\((\w+)\)\s*$", asked, re.MULTILINE).groups()
    exercise = getattr(checks, check, None)
    if not isinstance(exercise, checks.Exercise):
        return [f"there is no check named {check}"]
    space = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(f"{imports}\n{solved}", space)
    verdict = exercise.judge(space[function])
    said = [] if verdict.kind == "right" else [f"the solution of {function}: {verdict.text}"]
    with contextlib.redirect_stdout(io.StringIO()) as heard:
        exec(f"{imports}\n{asked}", space)
    if "not solved yet" not in heard.getvalue():
        said.append(f"the exercise {function} is not left unsolved: {heard.getvalue()}")
    return said


# The rules themselves: a good small notebook, and what is heard when it is spoilt.

MACHINE = {"seconds": 12.3, "machine": "2 CPU cores, Linux x86_64, torch 2.15.0"}
ALT = "A 4x4 matrix of cosines, brightest on its diagonal, 0.9 at the first true pair."
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAQAAAAECAAAAACMmsGiAAAADklEQVR4nGNoAAIGVAIAUBQIAXAlrj8AAAAASUVORK5CYII="  # 4x4 greys
PNG_HEAD = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
WORDS = "The matrix holds every picture against every caption and the true pairs lie on its diagonal. " * 14


def markdown(text):
    return {"cell_type": "markdown", "metadata": {}, "source": text}


def code(text, *outputs, **metadata):
    return {"cell_type": "code", "metadata": metadata, "source": text, "outputs": list(outputs)}


def stream(text, name="stdout"):
    return {"output_type": "stream", "name": name, "text": text}


def display(data, metadata=None):
    return {"output_type": "display_data", "data": data, "metadata": metadata or {}}


def exercise(number, name):
    hints = "<details><summary>Hint</summary>one</details>\n<details><summary>Hint</summary>two</details>"
    placeholder = f"def {name}(a, b=0, c=0):\n    return ...\n\n\nchecks.{name}({name})"
    folded = {"tags": ["solution", "hide-input"], "jupyter": {"source_hidden": True}}
    return [
        markdown(f"You should now see 1.\n\n### Exercise {number}. Do it (easy, 5 minutes)\n\nSay why."),
        code(placeholder, stream(f"{name}: not solved yet.\n"), tags=["exercise"]),
        markdown(hints),
        code(getattr(checks, name).solution_text, **folded),
    ]


def good():
    """A notebook that keeps every rule."""
    cells = [
        markdown(f"# A title\n\n| what | where |\n|---|---|\n{tools.time_row(MACHINE)}\n"),
        code("import torch\nfrom torch.nn.functional import normalize\nfrom vlnotes import checks"),
        markdown(f"## 1. The idea\n\n{WORDS}"),
        code("show()", display({"image/png": PNG, "text/plain": "a"}, {"image/png": {"alt": ALT}})),
        markdown(f"## 2. Exercises\n\n![{ALT}](figure.png)"),
        *exercise(1, "chance"),
        *exercise(2, "r_at_1"),
        *exercise(3, "cosine"),
        code("record()", stream("02.a   61.3 %   expected 60.8 +- 6.0   ok\n02.b   1.0   no record yet\n")),
        markdown("## Summary\n\nSee [the paper](https://arxiv.org/abs/1).\n\n## References\n\nNone."),
    ]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell{number}"
    for count, cell in enumerate((c for c in cells if c["cell_type"] == "code"), start=1):
        cell["execution_count"] = count
    metadata = {"kernelspec": {"name": "python3"}, "vlnotes": dict(MACHINE)}
    notebook = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    tools.set_slides(notebook)
    return notebook


def everything_said(notebook):
    return [sentence for rule in tools.RULES for sentence in rule(notebook)]


def test_the_good_notebook_is_good():
    assert everything_said(good()) == []
    assert tools.recorded_names(good()) == ["02.a", "02.b"]


def add_output(notebook, output):
    notebook["cells"][3]["outputs"].append(output)


def replace_text(notebook, old, new):
    for cell in notebook["cells"]:
        cell["source"] = cell["source"].replace(old, new)


def set_cell(notebook, number, **changed):
    notebook["cells"][number].update(changed)


SPOILS = [
    ("the format is 4.4", lambda n: n.update(nbformat_minor=4)),
    ("kernel is not named python3", lambda n: n["metadata"].pop("kernelspec")),
    ("a cell has no id", lambda n: n["cells"][2].pop("id")),
    ("two share one", lambda n: set_cell(n, 2, id="cell1")),
    ("widget state is stored", lambda n: n["metadata"].update(widgets={})),
    ("not run from top to bottom", lambda n: set_cell(n, 3, execution_count=7)),
    ("not run from top to bottom", lambda n: set_cell(n, 3, execution_count=None)),
    ("no outputs are stored", lambda n: [c.update(outputs=[]) for c in n["cells"] if "outputs" in c]),
    ("stored the error ValueError", lambda n: add_output(n, {"output_type": "error", "ename": "ValueError"})),
    ("wrote to stderr", lambda n: add_output(n, stream("a note", "stderr"))),
    ("shows a warning", lambda n: add_output(n, stream("x.py:1: UserWarning: careful"))),
    ("nobody sees without a kernel", lambda n: add_output(n, display({tools.WIDGET: {}}))),
    (
        "shows a bare object",
        lambda n: add_output(n, {**display({"text/plain": "<a.B at 0x7f>"}), "output_type": "execute_result"}),
    ),
    (
        "the median code cell has 7 lines",
        lambda n: [set_cell(n, i, source="a\n" * 7) for i in (1, 3, 6, 8, 10, 12)],
    ),
    (
        "a tenth of the code cells has 22",
        lambda n: set_cell(n, 1, source="a\n" * 21) or set_cell(n, 3, source="a\n" * 22),
    ),
    ("the longest code cell has 41", lambda n: set_cell(n, 3, source="a\n" * 41)),
    ("words of prose for", lambda n: replace_text(n, WORDS, "")),
    ("1.20 MB, at most 1", lambda n: add_output(n, stream("a" * 1_196_000))),
    ("alt text says", lambda n: n["cells"][3]["outputs"][0].update(metadata={})),
    (
        "alt text says",
        lambda n: n["cells"][3]["outputs"][0]["metadata"]["image/png"].update(alt="The 4x4 matrix"),
    ),
    (
        "alt text says",
        lambda n: n["cells"][3]["outputs"][0]["metadata"]["image/png"].update(alt="A matrix " * 9),
    ),
    ("alt text says", lambda n: add_output(n, display({"text/html": "<img src='data:image/png;base64,a'>"}))),
    ("alt text says", lambda n: replace_text(n, f"![{ALT}]", "![a figure]")),
    ("does not begin with a title", lambda n: replace_text(n, "# A title", "A title")),
    ("no section '## Summary'", lambda n: replace_text(n, "## Summary", "## The end")),
    ("no section '## References'", lambda n: replace_text(n, "## References", "## Papers")),
    ("sections are numbered in order", lambda n: replace_text(n, "## 2. Ex", "## 3. Ex")),
    (
        "sections are numbered in order",
        lambda n: replace_text(n, "## 2. Ex", "## Ex") or replace_text(n, "## 1. ", "## "),
    ),
    ("no measured run time", lambda n: n["metadata"].pop("vlnotes")),
    ("no measured run time", lambda n: n["metadata"]["vlnotes"].pop("machine")),
    ("the budget is 180 s", lambda n: n["metadata"]["vlnotes"].update(seconds=181)),
    ("needs one row", lambda n: replace_text(n, "Measured time", "Time")),
    ("measured was", lambda n: replace_text(n, "| 12 s", "| 90 s")),
    ("an absolute path", lambda n: replace_text(n, "show()", "open('/home/ann/a.png')")),
    ("an absolute path", lambda n: add_output(n, stream("wrote C:\\Users\\ann\\a.png"))),
    (
        "fetched from the network",
        lambda n: add_output(n, display({"text/html": "<script src='https://a.b/c.js'>"})),
    ),
    (
        "fetched from the network",
        lambda n: add_output(
            n,
            display({"text/html": "<i srcdoc='&lt;img src=&quot;//a.b/&quot; alt=&quot;" + ALT + "&quot;&gt;'>"}),
        ),
    ),
    ("code names a URL", lambda n: replace_text(n, "show()", "show('https://a.b')")),
    (
        "a picture in the text is fetched",
        lambda n: replace_text(n, "(figure.png)", "(https://a.b/figure.png)"),
    ),
    (
        "a quoted record begins a line",
        lambda n: replace_text(n, "# A title", "# A title\n\nIt is\n<!--record:a-->1<!--/-->"),
    ),
    ("there are 2 exercises", lambda n: replace_text(n, "### Exercise 3", "### Practice 3")),
    ("one cell tagged exercise", lambda n: set_cell(n, 6, metadata={})),
    ("one cell tagged exercise", lambda n: set_cell(n, 8, metadata={})),
    (
        "the last line of the exercise",
        lambda n: replace_text(n, "checks.chance(chance)", "checks.chance(chance(1, 1))"),
    ),
    ("should stand unsolved", lambda n: set_cell(n, 6, outputs=[stream("chance: right.")])),
    ("two hints", lambda n: set_cell(n, 7, source="<details>one</details>")),
    (
        "says no minutes",
        lambda n: replace_text(n, "Exercise 1. Do it (easy, 5 minutes)", "Exercise 1. Do it"),
    ),
    ("the solution is not folded", lambda n: n["cells"][8]["metadata"].pop("jupyter")),
    ("the solution is not folded", lambda n: n["cells"][8]["metadata"].update(tags=["solution"])),
    ("slides run as None", lambda n: n["metadata"].pop("rise")),
    ("is '-' of the slides, expected 'slide'", lambda n: n["cells"][2]["metadata"].pop("slideshow")),
    (
        "is 'skip' of the slides, expected '-'",
        lambda n: n["cells"][3]["metadata"].update(slideshow={"slide_type": "skip"}),
    ),
]


@pytest.mark.parametrize(("sentence", "spoil"), SPOILS, ids=[f"{i}-{s}" for i, (s, _) in enumerate(SPOILS)])
def test_a_spoilt_notebook_is_heard(sentence, spoil):
    notebook = copy.deepcopy(good())
    spoil(notebook)
    said = everything_said(notebook)
    assert any(sentence in one for one in said), said


def test_every_rule_is_spoilt_by_something():
    silent = {rule.__name__ for rule in tools.RULES}
    for _, spoil in SPOILS:
        notebook = copy.deepcopy(good())
        spoil(notebook)
        silent -= {rule.__name__ for rule in tools.RULES if rule(notebook)}
    assert not silent


def test_a_solution_that_is_wrong_or_given_away_is_heard():
    notebook = good()
    units = tools.exercise_units(notebook)
    assert len(units) == 3
    assert [s for unit in units for s in solution_troubles(unit, tools.imports(notebook))] == []
    notebook["cells"][8]["source"] = "def chance(n, k):\n    return 1 / n"
    (said,) = solution_troubles(units[0], tools.imports(notebook))
    assert "this is the chance of the first place only" in said
    notebook = good()
    replace_text(notebook, "return ...", "return b / a")
    (said,) = solution_troubles(tools.exercise_units(notebook)[0], tools.imports(notebook))
    assert "not left unsolved" in said


# What the runner does to a notebook


def test_tidy_takes_out_what_only_a_kernel_can_show():
    notebook = good()
    bar = "100%|##########| 300/300 [00:12<00:00, 24.5it/s]\r\n"
    add_output(notebook, stream(bar, "stderr"))
    add_output(notebook, display({tools.WIDGET: {}, "text/plain": "  0%|          | 0/300 [00:00<?, ?it/s]"}))
    add_output(notebook, display({tools.WIDGET: {}, "text/html": "<iframe>", "text/plain": "Explorer()"}))
    notebook["cells"][3]["metadata"]["execution"] = {"iopub.status.busy": "2026"}
    notebook["metadata"]["widgets"] = {}
    tools.tidy(notebook)
    tools.set_slides(notebook)  # an explorer fills a slide
    assert everything_said(notebook) == []
    assert [sorted(output["data"]) for output in notebook["cells"][3]["outputs"]] == [
        ["image/png", "text/plain"],
        ["text/html", "text/plain"],
    ]
    assert "execution" not in notebook["cells"][3]["metadata"]


def test_slides_begin_at_headings_and_where_one_is_full_and_hide_what_is_not_for_the_class():
    def kinds(*cells):
        return tools.slide_types({"cells": list(cells)})

    picture = display({"image/png": base64.b64encode(PNG_HEAD + struct.pack(">II", 990, 400)).decode()})
    wide = display({"image/png": base64.b64encode(PNG_HEAD + struct.pack(">II", 4000, 400)).decode()})
    assert kinds(markdown("# Title"), markdown("text"), markdown("So.\n\n## 1. Part")) == ["slide", "-", "slide"]
    assert kinds(markdown("### a"), markdown("So.\n\n### Exercise 2"), code("a\n## b")) == ["subslide", "subslide", "-"]
    assert kinds(code("f()", picture), code("g()"), code("f()", picture)) == ["subslide", "-", "subslide"]
    assert kinds(code("f()", wide), code("f()", wide), code("f()", wide)) == ["subslide", "-", "-"]
    assert kinds(markdown("a " * 400), code("a\n" * 15), markdown("b")) == ["subslide", "-", "subslide"]
    assert kinds(code('alt = (\n    "seen"\n)'), code("x = 1"), code("f", tags=["solution"])) == [
        "skip",
        "subslide",
        "skip",
    ]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_notebook_becomes_slides(path):
    page, _ = nbconvert.SlidesExporter(reveal_url_prefix="reveal.js").from_filename(str(path))
    kinds = tools.slide_types(NOTEBOOKS[path.stem])
    stacks, slides = kinds.count("slide"), kinds.count("slide") + kinds.count("subslide")
    assert len(re.findall("<section", page)) == stacks + slides
    assert stacks >= 5


def test_tidy_keeps_a_warning_that_stands_among_progress_bars():
    notebook = good()
    add_output(notebook, stream(" 50%|#####     | 1/2\rcareful\n100%|##########| 2/2\n", "stderr"))
    tools.tidy(notebook)
    assert notebook["cells"][3]["outputs"][-1]["text"] == "careful\n"
    assert any("wrote to stderr: careful" in said for said in everything_said(notebook))


def test_the_measured_time_is_written_to_metadata_and_header():
    notebook = good()
    tools.set_time(notebook, 47.31, "cpu", "4 CPU cores")
    tools.set_time(notebook, 20.0, "gpu", "A fast one")
    assert notebook["metadata"]["vlnotes"]["seconds"] == 47.3
    assert "| Measured time | 47 s (4 CPU cores); 20 s (A fast one) |" in notebook["cells"][0]["source"]
    assert everything_said(notebook) == []


def test_notebooks_are_picked_by_the_beginning_of_their_names(monkeypatch, tmp_path):
    for name in ("00_start", "02_matrix", "draft"):
        (tmp_path / f"{name}.ipynb").write_text(json.dumps(good()))
    monkeypatch.setattr(tools, "NOTEBOOKS", tmp_path)
    assert [path.stem for path in tools.paths()] == ["00_start", "02_matrix"]
    assert [path.stem for path in tools.paths(["02"])] == ["02_matrix"]
    assert [path.stem for path in tools.paths(["notebooks/02_matrix.ipynb"])] == ["02_matrix"]


def runnable(*sources):
    """A notebook of code cells that was never run."""
    cells = [{**code(text), "id": f"cell{i}", "execution_count": None} for i, text in enumerate(sources)]
    head = {**markdown("# Title\n\n| a | b |\n|---|---|\n| Measured time | |\n"), "id": "head"}
    return {"cells": [head, *cells], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def test_the_runner_goes_on_after_a_failure_and_stores_what_ran(monkeypatch, tmp_path, capsys):
    folder, out = tmp_path / "notebooks", tmp_path / "executed"
    folder.mkdir()
    monkeypatch.setattr(tools, "NOTEBOOKS", folder)
    monkeypatch.setenv("VLNOTES_RECORDS", "warn")
    monkeypatch.setenv("VLNOTES_REALDATA", "somewhere")
    fails = runnable("a = 1", "def f():\n    return a / 0\n\n\nf()", "print('never')")
    runs = runnable(
        "import os, sys\nprint(sys.executable, os.environ['VLNOTES_RECORDS'])",
        "print(os.getcwd(), os.environ.get('VLNOTES_REALDATA'))",
    )
    for name, notebook in (("00_fails", fails), ("01_runs", runs)):
        (folder / f"{name}.ipynb").write_text(json.dumps(notebook))

    assert run_notebooks.main(["--write", "--out", str(out)]) == 1
    said = capsys.readouterr().out
    assert re.search(r"00_fails +\d+\.\d s  FAILED in cell 2\n.*f\(\)\n.*return a / 0\n +ZeroDivisionError", said)
    assert re.search(r"01_runs +\d+\.\d s  ok\n", said)
    assert "1 of 2 notebooks ran" in said
    assert "failed: 00_fails" in said

    assert tools.read(folder / "00_fails.ipynb") == fails  # what failed is not stored ...
    assert tools.read(out / "00_fails.ipynb")["cells"][2]["outputs"][0]["ename"] == "ZeroDivisionError"
    stored = tools.read(folder / "01_runs.ipynb")
    shown = [tools.output_text(output).strip() for _, output in tools.outputs(stored)]
    assert shown == [
        f"{sys.executable} warn",
        f"{folder} None",
    ]  # ... and this interpreter's kernel ran, in its folder; nothing of real pictures can be stored
    assert [cell["id"] for cell in stored["cells"]] == ["head", "cell0", "cell1"]
    assert tools.rule_time(stored) == []
    assert "widgets" not in stored["metadata"]


def test_two_notebooks_run_at_a_time_with_one_thread_each(monkeypatch, tmp_path, capsys):
    folder, out = tmp_path / "notebooks", tmp_path / "executed"
    folder.mkdir()
    monkeypatch.setattr(tools, "NOTEBOOKS", folder)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    meet = """import os, pathlib, time
name, other = "{0}", pathlib.Path("{1}")
pathlib.Path(name).touch()
while not other.exists():  # each waits for the other one
    time.sleep(0.1)
print(os.environ["OMP_NUM_THREADS"])"""
    for name, other in (("00_a", "01_b"), ("01_b", "00_a")):
        (folder / f"{name}.ipynb").write_text(json.dumps(runnable(meet.format(name, other))))
    (folder / "02_fails.ipynb").write_text(json.dumps(runnable("1 / 0")))

    assert run_notebooks.main(["--jobs", "2", "--timeout", "60", "--out", str(out)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["00_a", "01_b", "02_fails"]
    assert lines[1].endswith("s  ok") and "ZeroDivisionError" in "".join(lines)
    for name in ("00_a", "01_b"):
        shown = [tools.output_text(output).strip() for _, output in tools.outputs(tools.read(out / f"{name}.ipynb"))]
        assert shown == ["1"]


@pytest.mark.parametrize("words", [["--write"], ["--records"], ["--time"], []])
def test_times_and_records_are_stored_by_one_notebook_at_a_time(words, capsys):
    with pytest.raises(SystemExit):
        run_notebooks.main(["--jobs", "2" if words else "0", *words])
    assert "--jobs is" in capsys.readouterr().err


def test_the_runner_says_when_there_is_nothing_to_run(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tools, "NOTEBOOKS", tmp_path)
    assert run_notebooks.main(["07", "--out", str(tmp_path / "out")]) == 1
    assert "begins with 07" in capsys.readouterr().out
